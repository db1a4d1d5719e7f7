//! `outboxd replay`.

use std::time::Duration;

use serde_json::Value;

use super::bar::Bar;
use super::control_client::{self, Answer, Request};
use super::{Context, Exit, Failure, offline, terminal};
use crate::clock;
use crate::consumer::replay::{Limit, Wanted};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Send events once more that were delivered already, marked with the header `outboxd-replay`
///
/// A replay stands beside the live flow, whose checkpoint, held keys and order it leaves alone. It covers what is settled when it begins, in
/// the source's order, and leaves out what is held and what was discarded. How far it came is recorded: after a crash of the daemon it goes
/// on by itself, at most 500 events (by row, 1,000) before. A refused event stops it; the same command goes on there. The daemon carries it,
/// and this command watches; when no daemon runs, this command carries it. It goes to the relay's own sink, or to `--to-sink`; a file that a
/// running relay writes takes no other writer. A table read by row is gone through by rowid, `--from` and `--to` notwithstanding; rows that move to an
/// archive are read there, and where they are deleted when they are delivered there is nothing to replay, which is said.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The consumer's name
    #[arg(value_name = "CONSUMER")]
    pub consumer: String,
    /// Beginning with this position, or with events of this time, as in 2026-11-21T08:00:00Z
    #[arg(long, value_name = "PLACE", value_parser = limit, allow_negative_numbers = true)]
    pub from: Option<Limit>,
    /// Up to and including this position or time
    #[arg(long, value_name = "PLACE", value_parser = limit, allow_negative_numbers = true)]
    pub to: Option<Limit>,
    /// Only events of this key; may be given again
    #[arg(long, value_name = "KEY")]
    pub key: Vec<String>,
    /// Only this event; may be given again
    #[arg(long, value_name = "ID")]
    pub id: Vec<String>,
    /// Only events of these types, with commas; `*` stands for anything
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Everything that is settled
    #[arg(long, conflicts_with_all = ["from", "to", "key", "id", "types"])]
    pub all: bool,
    /// At most so many events a second
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// To this sink of the configuration instead of the relay's own
    #[arg(long, value_name = "SINK")]
    pub to_sink: Option<String>,
    /// Give up the one that is under way
    #[arg(long, conflicts_with_all = ["from", "to", "key", "id", "types", "all", "rate", "to_sink"])]
    pub cancel: bool,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let name = terminal::visible(&args.consumer);
    if args.cancel {
        let cancel = control_client::Replay::Cancel { consumer: args.consumer.clone() };
        let answer = context.ask(&Request::Replay(cancel))?;
        match context.json {
            true => terminal::print_json(&answer)?,
            false => terminal::print(&format!("the replay of {name} is given up\n"))?,
        }
        return Ok(Exit::Ok);
    }
    let wanted = args.wanted()?;
    let loaded = context.load()?;
    if let Some(sink) = wanted.to_sink.as_ref().filter(|sink| !loaded.config.sinks.contains_key(*sink)) {
        let known: Vec<&str> = loaded.config.sinks.keys().map(String::as_str).collect();
        let reason = format!("there is no sink {}", terminal::visible(sink));
        return Err(Failure::new(Exit::Usage, reason, format!("name one of: {}", known.join(", "))).into());
    }
    let start = control_client::Replay::Start { consumer: args.consumer.clone(), wanted: wanted.clone() };
    let mut bar = Bar::new(context);
    let replay = match control_client::ask(&loaded.config.daemon.control, &Request::Replay(start))? {
        Answer::Given(begun) => watch(args, context, begun["number"].as_i64().unwrap_or(0), &mut bar)?,
        Answer::NotRunning => offline::replay(&loaded, &args.consumer, wanted, &mut |replay| draw(&mut bar, replay))?,
    };
    bar.clear();
    let state = replay["state"].as_str().unwrap_or_default();
    let number = |field: &str| replay[field].as_u64().unwrap_or(0);
    if context.json {
        terminal::print_json(&replay)?;
    } else if state != "stopped" {
        let left_out = match number("left_out") {
            0 => String::new(),
            events => format!(", {events} left out (held, or given up)"),
        };
        terminal::print(&format!("{name}: {state}, {} sent again{left_out}\n", number("sent")))?;
    }
    match state {
        "stopped" if context.json => Ok(Exit::Data),
        "stopped" => {
            let detail = replay["detail"].as_str().unwrap_or_default();
            let reason = format!("the replay stopped after {} events: {detail}", number("sent"));
            Err(Failure { exit: Exit::Data, reason, remedy: None }.into())
        }
        _ => Ok(Exit::Ok),
    }
}

/// Looks until the daemon has carried it.
fn watch(args: &Args, context: &Context, number: i64, bar: &mut Bar) -> anyhow::Result<Value> {
    loop {
        let status = context.ask(&Request::Status)?;
        let consumers = status["consumers"].as_array().cloned().unwrap_or_default();
        let replay = consumers.into_iter().find(|consumer| consumer["name"] == args.consumer.as_str());
        let replay = replay.map(|mut consumer| consumer["replay"].take()).unwrap_or_default();
        if replay["number"].as_i64() > Some(number) {
            return Err(Failure::new(Exit::Data, "another replay took its place", "see `outboxd status --json`").into());
        }
        if replay["number"] == number {
            if replay["state"] != "running" {
                return Ok(replay);
            }
            draw(bar, &replay);
        } else if status["consumers"].as_array().is_some_and(|all| all.iter().all(|one| one["state"] == "stopped")) {
            let reason = "the daemon has ended; the replay goes on when it runs again";
            return Err(Failure { exit: Exit::Unavailable, reason: reason.into(), remedy: None }.into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Args {
    fn wanted(&self) -> Result<Wanted, Failure> {
        let wanted = Wanted {
            from: self.from,
            to: self.to,
            keys: self.key.clone(),
            ids: self.id.clone(),
            types: self.types.clone(),
            rate: self.rate,
            to_sink: self.to_sink.clone(),
        };
        let said = Wanted { rate: None, to_sink: None, ..wanted.clone() };
        if said == Wanted::default() && !self.all {
            let remedy = "say --from, --to, --key, --id or --types; or --all";
            return Err(Failure::new(Exit::Usage, "which events are meant?", remedy));
        }
        Ok(wanted)
    }
}

fn limit(text: &str) -> Result<Limit, String> {
    if let Ok(position) = text.parse() {
        return Ok(Limit::Position(position));
    }
    let time = clock::parse_micros(text).map(Limit::Time);
    time.ok_or_else(|| "write a position, or a time as in 2026-11-21T08:00:00Z".to_owned())
}

/// Draws it.
fn draw(bar: &mut Bar, replay: &Value) {
    let (percent, told) = progress(replay);
    bar.draw(percent, &told);
}

fn progress(replay: &Value) -> (usize, String) {
    let place = |field: &str| replay[field].as_i64().unwrap_or(0);
    let (first, place, upto) = (place("first"), place("place"), place("upto"));
    let whole = i128::from(upto) - i128::from(first);
    let part = (i128::from(place) - i128::from(first)).clamp(0, whole.max(0));
    let percent = if whole > 0 { (part * 100 / whole) as usize } else { 100 };
    let waits_for = match replay["detail"].as_str().unwrap_or_default() {
        "" => String::new(),
        detail => format!("  waits: {:.80}", terminal::visible(detail)),
    };
    (percent, format!("{} sent, at {place} of {upto}{waits_for}", replay["sent"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bar;
    use serde_json::json;

    #[test]
    fn a_place_is_a_position_or_a_time() {
        assert_eq!(limit("-7"), Ok(Limit::Position(-7)));
        assert_eq!(limit("2026-11-21T08:00:00Z"), Ok(Limit::Time(1_795_248_000_000_000)));
        assert!(limit("yesterday").is_err());
    }

    #[test]
    fn a_bar_shows_how_far_it_has_come() {
        let replay = json!({"first": 100, "place": 150, "upto": 200, "sent": 40, "detail": "away\u{1b}[2J"});
        let expected = "[###############---------------]  50 %  40 sent, at 150 of 200  waits: away\\u{1b}[2J";
        let line = |replay: &Value| {
            let (percent, told) = progress(replay);
            bar::line(percent, &told)
        };
        assert_eq!(line(&replay), expected);
        let nothing = json!({"first": 7, "place": 7, "upto": 7, "sent": 0, "detail": ""});
        assert!(line(&nothing).contains("] 100 %"));
    }
}
