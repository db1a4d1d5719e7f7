//! `outboxd audit`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Context, Exit, Failure, terminal};
use crate::audit::{self, Error, Found, Options, Report};

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The relay's name
    #[arg(value_name = "CONSUMER")]
    pub consumer: String,
    /// RabbitMQ: a queue that gets everything this relay sends and that nobody consumes from. From a stream nothing is taken; from a
    /// classic queue all messages are fetched and given back, marked as redelivered; a quorum queue is refused, because its delivery
    /// limit might cost messages
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
    /// File: one that people renamed away, read before the sink's own (those that it rotates are found by themselves); the oldest first
    #[arg(long, value_name = "FILE")]
    pub older: Vec<PathBuf>,
    /// Others send to the same place: what the source does not have is no phantom
    #[arg(long)]
    pub shared: bool,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let config = &loaded.config;
    let relay = config.relays.iter().find(|relay| relay.name == args.consumer).ok_or_else(|| {
        let names: Vec<_> = config.relays.iter().map(|relay| relay.name.as_str()).collect();
        Failure::new(
            Exit::Usage,
            format!("{} is not in the config", args.consumer),
            format!("known are {}", names.join(", ")),
        )
    })?;
    let options = Options { queue: args.queue.clone(), older: args.older.clone(), shared: args.shared };
    let mut shown = Shown::new();
    let audited = audit::audit(relay, &config.sources[&relay.source], &config.relays, &options, &mut |what, count| {
        shown.step(what, count);
    });
    shown.end();
    let report = audited.map_err(failure)?;
    if context.json {
        terminal::print_json(&serde_json::to_value(&report)?)?;
    } else {
        terminal::print(&text(&report))?;
    }
    Ok(if report.clean { Exit::Ok } else { Exit::Data })
}

fn failure(error: Error) -> anyhow::Error {
    let (exit, remedy) = match &error {
        Error::Usage(_, remedy) => (Exit::Usage, Some(remedy.clone())),
        Error::Data(_) => (Exit::Data, None),
        Error::Source { is_there: true, .. } => (Exit::Data, None),
        Error::Source { .. } => (Exit::Unavailable, None),
        Error::Sink(_) => (Exit::Unavailable, None),
    };
    Failure { exit, reason: format!("{:#}", anyhow::Error::from(error)), remedy }.into()
}

/// Progress on stderr, while somebody watches.
struct Shown {
    is_watched: bool,
    last: Option<Instant>,
}

impl Shown {
    fn new() -> Self {
        Self { is_watched: io::stderr().is_terminal(), last: None }
    }

    fn step(&mut self, what: &str, count: u64) {
        if self.is_watched && self.last.is_none_or(|last| last.elapsed() >= SHOWN_EVERY) {
            self.last = Some(Instant::now());
            // It is no more than a help.
            let _ = write!(io::stderr(), "\r\x1b[K{count} {what}");
        }
    }

    fn end(&self) {
        if self.last.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(report: &Report) -> String {
    let number = |count: u64| count.to_string();
    let rows = [
        ("consumer", report.consumer.clone()),
        ("compared", format!("source {} with {}", report.source, report.sink)),
        ("settled", number(report.settled)),
        ("held", number(report.held)),
        ("discarded", number(report.discarded)),
        ("skipped", number(report.skipped)),
        ("of other types", number(report.not_asked_for)),
        ("not settled yet", number(report.not_settled)),
        ("messages", number(report.messages)),
        ("events arrived", number(report.arrived)),
        ("duplicates", format!("{} (no fault: at least once)", report.duplicate_messages)),
        ("overtaken", format!("{} (no fault: sent again behind)", report.overtaken)),
        ("lost", number(report.lost.count)),
        ("phantom", number(report.phantom.count)),
        ("reordered", number(report.reordered.count)),
        ("altered", number(report.altered.count)),
    ];
    let quiet = ["discarded", "skipped", "of other types", "duplicates", "overtaken"];
    let is_told = |row: &&(&str, String)| !(quiet.contains(&row.0) && row.1.split(' ').next() == Some("0"));
    let rows: Vec<_> = rows.iter().filter(is_told).cloned().collect();
    let mut text = terminal::sheet(&rows);
    for (what, found) in [
        ("lost", &report.lost),
        ("phantom", &report.phantom),
        ("reordered", &report.reordered),
        ("altered", &report.altered),
    ] {
        text.push_str(&examples(what, found));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {}\n", terminal::visible(note)));
    }
    text.push_str(if report.clean { "nothing is wrong\n" } else { "something is wrong\n" });
    text
}

fn examples(what: &str, found: &Found) -> String {
    let rows = found.examples.iter().map(|example| {
        let position = example.position.map_or_else(|| "-".to_owned(), |position| position.to_string());
        vec![what.to_uppercase(), example.id.clone(), position, example.key.clone().unwrap_or_else(|| "-".to_owned())]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() { String::new() } else { terminal::table(&["", "ID", "POSITION", "KEY"], &rows) }
}
