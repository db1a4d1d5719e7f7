//! `outboxd status`.

use std::io::IsTerminal;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::control_client::Request;
use super::{Context, Exit, Failure, job, terminal};
use crate::telemetry::visible::visible;

const REDRAW: Duration = Duration::from_secs(1);
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Draw it anew each second, until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    pub watch: bool,
}

/// The daemon's answer.
#[derive(Debug, Deserialize)]
pub struct Status {
    pub consumers: Vec<Consumer>,
    #[serde(default)]
    pub jobs: Vec<job::Job>,
}

/// One consumer in it. What is not known is left out or null.
#[derive(Debug, Deserialize)]
pub struct Consumer {
    pub name: String,
    pub state: String,
    pub lag_seconds: Option<f64>,
    pub backlog_events: Option<u64>,
    #[serde(default)]
    pub delivered_total: u64,
    #[serde(default)]
    pub held_keys: u64,
    #[serde(default)]
    pub dead_letters: u64,
    pub detail: Option<String>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    if !args.watch {
        let answer = context.ask(&Request::Status)?;
        match context.json {
            true => terminal::print_json(&answer)?,
            false => terminal::print(&drawn(answer)?)?,
        }
        return Ok(Exit::Ok);
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "--watch needs a terminal", "leave it out, or ask for --json").into());
    }
    loop {
        let text = match context.ask(&Request::Status).and_then(drawn) {
            Ok(text) => text,
            // It may be starting again; what cannot get better by waiting ends the watch.
            Err(error) if Exit::of(&error) == Exit::Unavailable => format!("{}\n", super::told(&error)),
            Err(error) => return Err(error),
        };
        terminal::print(&format!("{CLEAR}{text}"))?;
        std::thread::sleep(REDRAW);
    }
}

fn drawn(answer: Value) -> anyhow::Result<String> {
    let status: Status = serde_json::from_value(answer)?;
    let warnings = warnings(&status.consumers);
    let rows: Vec<Vec<String>> = status.consumers.into_iter().map(row).collect();
    let head = ["CONSUMER", "STATE", "LAG", "BACKLOG", "DELIVERED", "HELD", "DEAD", "DETAIL"];
    let jobs = if status.jobs.is_empty() { String::new() } else { format!("\n{}", job::table(status.jobs)) };
    Ok(terminal::table(&head, &rows) + &warnings + &jobs)
}

/// What is wrong with a file is said once, whoever reads it.
fn warnings(consumers: &[Consumer]) -> String {
    let mut told: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, warning) in consumers.iter().flat_map(|of| of.warnings.iter().map(|warning| (&*of.name, &**warning))) {
        match told.iter_mut().find(|(text, _)| *text == warning) {
            Some((_, names)) => names.push(name),
            None => told.push((warning, vec![name])),
        }
    }
    told.iter().map(|(text, names)| format!("{}: warning: {}\n", names.join(", "), visible(text))).collect()
}

fn row(consumer: Consumer) -> Vec<String> {
    // Nothing keeps it from running; dead letters wait for a person all the same.
    let next = match consumer.dead_letters {
        0 => String::new(),
        _ => format!("`outboxd dead-letters list --consumer {}` tells why", consumer.name),
    };
    vec![
        consumer.name,
        consumer.state,
        consumer.lag_seconds.map_or("-".to_owned(), lag),
        consumer.backlog_events.map_or("-".to_owned(), |events| events.to_string()),
        consumer.delivered_total.to_string(),
        consumer.held_keys.to_string(),
        consumer.dead_letters.to_string(),
        consumer.detail.filter(|detail| !detail.is_empty()).unwrap_or(next),
    ]
}

/// Two parts of a duration are enough to act on.
fn lag(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 if seconds > 0.0 => format!("{:.0}ms", (seconds * 1000.0).ceil()),
        0..60 => format!("{whole}s"),
        60..3_600 => format!("{}m {}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h {}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d {}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn status_is_a_table() {
        let answer = json!({"ok": true, "consumers": [
            {"name": "shop_to_bus", "state": "running", "lag_seconds": 0.0042, "backlog_events": 3, "delivered_total": 120_000,
             "held_keys": 1, "dead_letters": 2, "detail": null, "more": "is ignored", "warnings": ["an old SQLite", "slow"]},
            {"name": "b", "state": "halted", "lag_seconds": 90_061.0, "detail": "exchange \u{1b}[31m missing", "dead_letters": 1,
             "warnings": ["an old SQLite"]},
        ]});
        let expected = "\
CONSUMER     STATE    LAG    BACKLOG  DELIVERED  HELD  DEAD  DETAIL
shop_to_bus  running  5ms    3        120000     1     2     `outboxd dead-letters list --consumer shop_to_bus` tells why
b            halted   1d 1h  -        0          0     1     exchange \\u{1b}[31m missing
shop_to_bus, b: warning: an old SQLite
shop_to_bus: warning: slow
";
        assert_eq!(drawn(answer).unwrap(), expected);
    }
}
