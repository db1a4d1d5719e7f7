//! `outboxd consumer`.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Deserialize;

use super::control_client::{self, Request};
use super::{Context, Exit, terminal};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the consumers of the configuration, and those that only the files still know
    List,
    /// Accept that a consumer's mapping or key has changed, and let it go on
    Accept {
        /// The consumer's name
        #[arg(value_name = "CONSUMER")]
        consumer: String,
    },
    /// Forget a consumer: its checkpoint and its held events; this cannot be undone
    Forget {
        /// The consumer's name
        #[arg(value_name = "CONSUMER")]
        consumer: String,
    },
}

/// A consumer in the daemon's answer.
#[derive(Debug, Deserialize)]
pub struct Known {
    pub name: String,
    pub kind: String,
    pub source: Option<String>,
    pub sink: Option<String>,
    /// Whether the configuration has it; otherwise only a file's state does.
    pub is_configured: bool,
    pub state: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    consumers: Vec<Known>,
}

#[derive(Debug, Deserialize)]
struct Forgotten {
    #[serde(default)]
    forgotten: Vec<Gone>,
    #[serde(default)]
    is_configured: bool,
}

/// What stood in one file.
#[derive(Debug, Deserialize)]
struct Gone {
    source: Option<String>,
    position: Option<i64>,
    held: BTreeMap<String, u64>,
    copies: u64,
    safe_position: Option<i64>,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    let request = match command {
        Command::List => control_client::Consumer::List,
        Command::Accept { consumer } => control_client::Consumer::Accept { consumer: consumer.clone() },
        Command::Forget { consumer } => {
            let name = terminal::visible(consumer);
            let question = || Ok(format!("Forget {name}, its checkpoint and its held events for good?"));
            terminal::confirm(question, context.yes)?;
            control_client::Consumer::Forget { consumer: consumer.clone() }
        }
    };
    let answer = context.ask(&Request::Consumer(request))?;
    match (context.json, command) {
        (true, _) => terminal::print_json(&answer)?,
        (false, Command::List) => terminal::print(&table(serde_json::from_value(answer)?))?,
        (false, Command::Accept { consumer }) => {
            terminal::print(&format!("{} is accepted as it is\n", terminal::visible(consumer)))?
        }
        (false, Command::Forget { consumer }) => {
            terminal::print(&forgotten(consumer, serde_json::from_value(answer)?))?
        }
    }
    Ok(Exit::Ok)
}

/// What went with it, and what that lets the application do.
fn forgotten(consumer: &str, answer: Forgotten) -> String {
    let name = terminal::visible(consumer);
    let mut text = format!("{name} is forgotten\n");
    for gone in answer.forgotten {
        let place =
            gone.position.map_or("it had no checkpoint".to_owned(), |position| format!("its checkpoint at {position}"));
        let held: Vec<String> = gone
            .held
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        let held =
            if held.is_empty() { "no held events".to_owned() } else { format!("held events: {}", held.join(", ")) };
        text.push_str(&format!("  gone: {place}, {held}, {} copies of dead letters under way\n", gone.copies));
        let source = terminal::visible(gone.source.as_deref().unwrap_or("its source"));
        text.push_str(&match gone.safe_position {
            Some(safe) => format!("  the application may prune {source} up to position {safe} now\n"),
            None => format!("  no consumer keeps the application from pruning {source} now\n"),
        });
    }
    if answer.is_configured {
        text.push_str(&format!("  {name} is still in the configuration: it begins anew as its `start` says\n"));
    }
    text
}

fn table(listed: Listed) -> String {
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = listed
        .consumers
        .into_iter()
        .map(|consumer| {
            let configured = if consumer.is_configured { "yes" } else { "no" };
            vec![
                consumer.name,
                consumer.kind,
                consumer.source.unwrap_or_else(none),
                consumer.sink.unwrap_or_else(none),
                configured.to_owned(),
                consumer.state.unwrap_or_else(none),
            ]
        })
        .collect();
    terminal::table(&["CONSUMER", "KIND", "SOURCE", "SINK", "CONFIGURED", "STATE"], &rows)
}
