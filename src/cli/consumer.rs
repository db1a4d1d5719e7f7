//! `outboxd consumer`.

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

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    let request = match command {
        Command::List => control_client::Consumer::List,
        Command::Accept { consumer } => control_client::Consumer::Accept { consumer: consumer.clone() },
        Command::Forget { consumer } => {
            let name = terminal::visible(consumer);
            terminal::confirm(&format!("Forget {name}, its checkpoint and its held events for good?"), context.yes)?;
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
            terminal::print(&format!("{} is forgotten\n", terminal::visible(consumer)))?
        }
    }
    Ok(Exit::Ok)
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
