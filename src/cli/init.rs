//! `outboxd init`.

use std::path::{Path, PathBuf};

use super::{Context, Exit, Failure, terminal};
use crate::store::{self, InitError};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application's SQLite file; it is made when it is not there
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Make nothing; print what would be made
    #[arg(long)]
    pub dry_run: bool,
}

pub fn execute(args: &Args, _context: &Context) -> anyhow::Result<Exit> {
    if args.dry_run {
        terminal::print(&store::schema())?;
        return Ok(Exit::Ok);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(store::init(&args.file)).map_err(|error| {
        let taken = matches!(error, InitError::Taken { .. });
        let reason = format!("{:#}", anyhow::Error::new(error));
        let remedy = if taken {
            "map the tables that are there by a preset, or use a file of its own for ours"
        } else {
            "see whether the folder is there and may be written, and the file is a database"
        };
        Failure::new(if taken { Exit::Data } else { Exit::CannotCreate }, reason, remedy)
    })?;
    terminal::print(&config(&args.file))?;
    Ok(Exit::Ok)
}

/// A configuration to start from; everything but itself is a comment, so that it can be put into a file as it is.
fn config(file: &Path) -> String {
    let name = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = name.trim_matches('_').replace("__", "_");
    let name = if name.is_empty() { "app" } else { &name };
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let path = toml::Value::String(path.display().to_string());
    format!(
        "# The tables outbox, events, streams, snapshots and archived_events are in the file now.\n\
         # In your application, in the transaction that changes something:\n\
         #   INSERT INTO outbox (stream_id, stream_type, type, payload) VALUES ('order-1', 'Order', 'OrderPlaced', '{{\"total\": 7}}');\n\
         # Save this as outboxd.toml, then: outboxd check, outboxd run\n\
         [sources.{name}]\npath = {path}\npreset = \"outboxd\"\nread = \"outbox\"\n\n\
         [sinks.events]\ntype = \"file\"\npath = \"events.ndjson\"        # or type = \"kafka\", \"amqp\": see docs/CONFIG.md\n\n\
         [relays.{name}_to_events]\nsource = \"{name}\"\nsink = \"events\"\nstart = \"first\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_config_names_the_file_and_is_toml() {
        let text = config(Path::new("/data/My Shop.db"));
        assert!(toml::from_str::<toml::Table>(&text).is_ok(), "{text}");
        assert!(text.contains("[sources.my_shop]") && text.contains("path = \"/data/My Shop.db\""), "{text}");
    }
}
