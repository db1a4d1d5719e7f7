//! `outboxd init`.

use std::path::{Path, PathBuf};

use super::{Context, Exit, Failure, terminal};
use crate::source::declared::From;
use crate::source::feed::{self, MakeError};
use crate::sqlite::fault;
use crate::store::{self, InitError};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application's SQLite file; it is made when it is not there
    #[arg(value_name = "FILE", required_unless_present = "feed")]
    pub file: Option<PathBuf>,
    /// Make nothing; print what would be made
    #[arg(long)]
    pub dry_run: bool,
    /// Make a feed for this table of the application, and a trigger that fills it; without FILE, in the file of the source that is
    /// read by it. Done again, it mends what is missing
    #[arg(long, value_name = "TABLE")]
    pub feed: Option<String>,
    /// The table into which the application moves rows of that one: what stands there is fed first
    #[arg(long, value_name = "TABLE", requires = "feed")]
    pub archive: Option<String>,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    match (&args.feed, &args.file) {
        (Some(table), Some(file)) => feed(file, table, args.archive.as_deref(), args.dry_run),
        (Some(table), None) => {
            let (file, archive) = fed(context, table)?;
            feed(&file, table, args.archive.as_deref().or(archive.as_deref()), args.dry_run)
        }
        (None, Some(file)) => tables(file, args.dry_run),
        (None, None) => unreachable!("clap asks for one of them"),
    }
}

fn tables(file: &Path, dry_run: bool) -> anyhow::Result<Exit> {
    if dry_run {
        terminal::print(&store::schema())?;
        return Ok(Exit::Ok);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(store::init(file)).map_err(|error| {
        let taken = matches!(error, InitError::Taken { .. });
        let reason = format!("{:#}", anyhow::Error::new(error));
        let remedy = if taken {
            "map the tables that are there by a preset, or use a file of its own for ours"
        } else {
            "see whether the folder is there and may be written, and the file is a database"
        };
        Failure::new(if taken { Exit::Data } else { Exit::CannotCreate }, reason, remedy)
    })?;
    terminal::print(&config(file))?;
    Ok(Exit::Ok)
}

/// The file and the archive of the source that reads this table by its feed.
fn fed(context: &Context, table: &str) -> anyhow::Result<(PathBuf, Option<String>)> {
    let loaded = context.load()?;
    let sources = loaded.config.sources.values().filter_map(|source| match &source.tables[0].from {
        From::Fed { table: named, archive, .. } if named.eq_ignore_ascii_case(table) => {
            Some((source.path.clone(), archive.clone()))
        }
        _ => None,
    });
    let mut found: Vec<_> = sources.collect();
    found.dedup();
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    let reason = format!("{} sources of {} read {table} by its feed", found.len(), loaded.file.display());
    Err(Failure::new(Exit::Usage, reason, "name the FILE").into())
}

fn feed(file: &Path, table: &str, archive: Option<&str>, dry_run: bool) -> anyhow::Result<Exit> {
    let run = if dry_run { feed::Run::Say } else { feed::Run::Make };
    let made = feed::make(file, table, archive, run).map_err(|error| not_made(file, error))?;
    let mut text = String::new();
    for statement in &made.statements {
        text.push_str(&format!("{statement};\n"));
    }
    let rows = made.rows;
    text.push_str(&match (made.statements.is_empty(), dry_run) {
        (true, _) => format!("-- {}: the feed of {table} is whole; nothing was changed\n", file.display()),
        (false, true) => format!("-- {}: nothing was changed; {rows} rows would be fed\n", file.display()),
        (false, false) => format!("-- {}: done, in one transaction; {rows} rows were fed\n", file.display()),
    });
    text.push_str(&format!("-- to undo it: {}\n", made.undo().join("; ")));
    let archive = made.feed.archive.map_or(String::new(), |archive| format!(", archive = {archive:?}"));
    text.push_str(&format!("-- its source says: table = {:?}, feed = true{archive}\n", made.feed.table));
    terminal::print(&text)?;
    Ok(Exit::Ok)
}

fn not_made(file: &Path, error: MakeError) -> Failure {
    let (exit, remedy) = match &error {
        MakeError::Unfit(what) => {
            let (reason, remedy) = what.split_once(" Remedy: ").unwrap_or((what, "name a table that is there"));
            return Failure::new(Exit::Data, format!("{}: {}", file.display(), reason.trim_end_matches('.')), remedy);
        }
        MakeError::Sqlite(cause) => match fault::classify(cause).0 {
            fault::Kind::Busy => (Exit::Locked, "try again when the application writes less"),
            fault::Kind::CannotOpen => (Exit::Data, "name the application's SQLite file; it must be there"),
            fault::Kind::Permission => (Exit::Permission, "run this as the application's user"),
            _ => (Exit::Data, "see whether it is the application's SQLite file; nothing was changed"),
        },
    };
    Failure::new(exit, format!("{}: {:#}", file.display(), anyhow::Error::new(error)), remedy)
}

fn config(file: &Path) -> String {
    format!(
        "# The tables outbox, events, streams, snapshots and archived_events are in the file now.\n\
         # In your application, in the transaction that changes something:\n\
         #   INSERT INTO outbox (stream_id, stream_type, type, payload) VALUES ('order-1', 'Order', 'OrderPlaced', '{{\"total\": 7}}');\n{}",
        proposal(file, "outboxd", "outbox")
    )
}

/// A configuration to start from; everything but itself is a comment, so that it can be put into a file as it is.
pub(super) fn proposal(file: &Path, preset: &str, read: &str) -> String {
    let name = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = name.trim_matches('_').replace("__", "_");
    let name = if name.is_empty() { "app" } else { &name };
    let path = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let path = toml::Value::String(path.display().to_string());
    format!(
        "# Save this as outboxd.toml, then: outboxd check, outboxd run\n\
         [sources.{name}]\npath = {path}\npreset = \"{preset}\"\nread = \"{read}\"\n\n\
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
