//! `outboxd dead-letters`.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::control_client::{DeadLetters, Filter, Request};
use super::{Context, Exit, Failure, terminal};
use crate::config::Span;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List rejected events, and those that wait behind them
    List {
        #[command(flatten)]
        selection: Selection,
        /// List so many at most
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: u64,
    },
    /// Show one, with its payload
    Show {
        /// The event's id
        #[arg(value_name = "ID")]
        id: String,
        /// Of this consumer only
        #[arg(long, value_name = "CONSUMER")]
        consumer: Option<String>,
    },
    /// Try dead letters once more, each key in its order
    Retry {
        #[command(flatten)]
        selection: Selection,
        /// Every dead letter
        #[arg(long)]
        all: bool,
    },
    /// Give dead letters up, and let the events behind them go on; this cannot be undone
    Discard {
        #[command(flatten)]
        selection: Selection,
        /// Every dead letter
        #[arg(long)]
        all: bool,
        /// Why; it is recorded
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Which dead letters are meant: those that everything said here fits.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Of this consumer
    #[arg(long, value_name = "CONSUMER")]
    pub consumer: Option<String>,
    /// Of this key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Of this event
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Rejected at least so long ago, as in 1h
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    pub older_than: Option<Span>,
}

/// A dead letter in the daemon's answer.
#[derive(Debug, Deserialize)]
pub struct DeadLetter {
    pub consumer: String,
    pub id: Option<String>,
    pub key: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `retrying`, `dead`, `skipped` or `waiting`.
    pub state: String,
    #[serde(default)]
    pub attempts: u64,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub position: Option<i64>,
    /// Of a table read by row: what names it there.
    pub row: Option<String>,
    pub failed_at: Option<String>,
    pub next_attempt_at: Option<String>,
    /// Only when one is shown.
    pub headers: Option<Value>,
    pub payload: Option<String>,
    pub payload_base64: Option<String>,
    /// How many events wait behind it.
    pub waiting_events: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    dead_letters: Vec<DeadLetter>,
    #[serde(default)]
    more: bool,
}

#[derive(Debug, Deserialize)]
struct Detailed {
    dead_letter: DeadLetter,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    let answer = context.ask(&Request::DeadLetters(request(command, context)?))?;
    if context.json {
        terminal::print_json(&answer)?;
        return Ok(Exit::Ok);
    }
    let text = match command {
        Command::List { .. } => list(serde_json::from_value(answer)?),
        Command::Show { .. } => detail(serde_json::from_value::<Detailed>(answer)?.dead_letter),
        Command::Retry { .. } => format!("{} will be tried again\n", answer["changed"].as_u64().unwrap_or(0)),
        Command::Discard { .. } => format!("{} discarded\n", answer["changed"].as_u64().unwrap_or(0)),
    };
    terminal::print(&text)?;
    Ok(Exit::Ok)
}

fn request(command: &Command, context: &Context) -> anyhow::Result<DeadLetters> {
    Ok(match command {
        Command::List { selection, limit } => DeadLetters::List { filter: selection.filter(), limit: *limit },
        Command::Show { id, consumer } => DeadLetters::Show { id: id.clone(), consumer: consumer.clone() },
        Command::Retry { selection, all } => {
            selection.require_something(*all)?;
            DeadLetters::Retry { filter: selection.filter() }
        }
        Command::Discard { selection, all, reason } => {
            selection.require_something(*all)?;
            if reason.trim().is_empty() {
                return Err(Failure::new(Exit::Usage, "the reason is empty", "say why, for whoever asks later").into());
            }
            terminal::confirm(|| Ok("Discard these dead letters for good?".to_owned()), context.yes)?;
            DeadLetters::Discard { filter: selection.filter(), reason: reason.clone() }
        }
    })
}

impl Selection {
    fn filter(&self) -> Filter {
        Filter {
            consumer: self.consumer.clone(),
            key: self.key.clone(),
            id: self.id.clone(),
            older_than_seconds: self.older_than.map(|span| span.0.as_secs()),
        }
    }

    fn require_something(&self, is_all: bool) -> Result<(), Failure> {
        let is_said = self.filter() != Filter::default();
        match (is_said, is_all) {
            (true, false) | (false, true) => Ok(()),
            (false, false) => Err(Failure::new(
                Exit::Usage,
                "which dead letters are meant?",
                "say --id, --key, --consumer or --older-than; or --all",
            )),
            (true, true) => {
                Err(Failure::new(Exit::Usage, "--all is said together with a selection", "say one of them"))
            }
        }
    }
}

fn list(listed: Listed) -> String {
    if listed.dead_letters.is_empty() {
        return "none\n".to_owned();
    }
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = listed
        .dead_letters
        .into_iter()
        .map(|letter| {
            vec![
                letter.consumer,
                letter.state,
                // As a shell takes it.
                letter.id.map_or_else(none, |id| if id.is_empty() { "\"\"".to_owned() } else { id }),
                letter.row.or(letter.position.map(|position| position.to_string())).unwrap_or_else(none),
                letter.key.unwrap_or_else(none),
                letter.kind.unwrap_or_else(none),
                letter.attempts.to_string(),
                letter.failed_at.unwrap_or_else(none),
                letter.reason.unwrap_or_else(none),
                letter.detail.unwrap_or_default(),
            ]
        })
        .collect();
    let columns = ["CONSUMER", "STATE", "ID", "ROW", "KEY", "TYPE", "ATTEMPTS", "FAILED", "REASON", "DETAIL"];
    let table = terminal::table(&columns, &rows);
    match listed.more {
        true => table + "... and more: say --limit, or select\n",
        false => table,
    }
}

fn detail(letter: DeadLetter) -> String {
    let rows = [
        ("consumer", Some(letter.consumer)),
        ("id", letter.id),
        ("key", letter.key),
        ("type", letter.kind),
        ("state", Some(letter.state)),
        ("attempts", Some(letter.attempts.to_string())),
        ("reason", letter.reason),
        ("detail", letter.detail),
        ("position", letter.position.map(|position| position.to_string())),
        ("row", letter.row),
        ("failed at", letter.failed_at),
        ("next attempt at", letter.next_attempt_at),
        ("waiting behind it", letter.waiting_events.map(|events| events.to_string())),
        ("headers", letter.headers.filter(|headers| !headers.is_null()).map(|headers| headers.to_string())),
        ("payload", letter.payload),
        ("payload (base64)", letter.payload_base64),
    ];
    let rows: Vec<(&str, String)> = rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    terminal::sheet(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_hostile_payload_moves_nothing() {
        let letter = json!({"consumer": "a", "id": "1", "state": "dead", "attempts": 5, "reason": "refused",
                            "payload": "\u{1b}]0;owned\u{7}\u{202e}"});
        let text = detail(serde_json::from_value(letter).unwrap());
        assert!(text.contains("payload   \\u{1b}]0;owned\\u{7}\\u{202e}\n"), "{text}");
        let listed = json!({"dead_letters": [{"consumer": "a", "state": "dead", "key": "k\u{9b}2J"}], "more": true});
        let text = list(serde_json::from_value(listed).unwrap());
        assert!(text.contains("k\\u{9b}2J") && text.ends_with("select\n"), "{text}");
    }

    /// Who is to mend a row has to find it.
    #[test]
    fn a_dead_letter_without_an_id_is_found_by_its_row() {
        let letter = |row: Value| json!({"consumer": "a", "id": "", "state": "dead", "position": 7, "row": row});
        let listed = json!({"dead_letters": [letter(Value::Null), letter("r-1".into())]});
        let text = list(serde_json::from_value(listed).unwrap());
        let words: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().skip(2).take(2).collect()).collect();
        assert_eq!(words, [["\"\"", "7"], ["\"\"", "r-1"]], "{text}");
    }
}
