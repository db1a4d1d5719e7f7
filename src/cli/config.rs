//! `outboxd config`.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::{Context, Exit, reference, terminal};
use crate::config::{self as configuration, Shown, preset};
use crate::telemetry::metric;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print what is in force: what was said, and the defaults of what was not; secrets as ***
    Show {
        /// Tell where each value came from
        #[arg(long)]
        origin: bool,
    },
    /// Print a preset: how its tables are described, in the words that a table of one's own is described in
    Preset {
        /// Its name; without one, the names of all
        name: Option<String>,
    },
    /// Print the reference of all keys (docs/CONFIG.md)
    Reference {
        /// Print the reference of all commands instead (docs/CLI.md)
        #[arg(long, conflicts_with = "metrics")]
        commands: bool,
        /// Print the reference of all metrics instead (docs/METRICS.md)
        #[arg(long)]
        metrics: bool,
    },
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::Show { origin } => {
            let loaded = context.load()?;
            match context.json {
                true => terminal::print_json(&as_json(&loaded.shown, *origin))?,
                false => terminal::print(&plain(&loaded.shown.toml(*origin)))?,
            }
        }
        Command::Preset { name: None } => {
            terminal::print(&preset::names().map(|name| format!("{name}\n")).collect::<String>())?
        }
        Command::Preset { name: Some(name) } => match preset::text(name) {
            Some(text) => terminal::print(text)?,
            None => {
                let known = preset::names().collect::<Vec<_>>().join(", ");
                eprintln!("error: there is no preset {}. Known are {known}", terminal::visible(name));
                return Ok(Exit::Usage);
            }
        },
        Command::Reference { metrics: true, .. } => terminal::print(&metric::reference())?,
        Command::Reference { commands: true, .. } => terminal::print(&reference::markdown())?,
        Command::Reference { .. } => terminal::print(&configuration::reference::markdown())?,
    }
    Ok(Exit::Ok)
}

fn plain(toml: &str) -> String {
    toml.lines().map(|line| terminal::visible(line) + "\n").collect()
}

/// By key path: the value as TOML writes it, with its origin when that is asked for.
fn as_json(shown: &Shown, with_origin: bool) -> Value {
    let lines = shown.lines.iter().map(|line| {
        let value = match with_origin {
            true => json!({"value": line.value, "origin": line.origin.to_string()}),
            false => Value::from(line.value.clone()),
        };
        (line.path.to_string(), value)
    });
    Value::Object(lines.collect::<Map<_, _>>())
}
