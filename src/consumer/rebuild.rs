//! A projection's tables made anew beside the live ones, and swapped with them in one transaction; or compared.
//!
//! They are made by the same engine, in a file of their own (`<read model>-rebuild-<name>.db`) with its own checkpoint: a rebuild that was
//! ended goes on where it was. Invariants (tests in `tests/it/rebuilds.rs`):
//! 1. A reader of the read model sees the old tables or the new ones, never none and never half of them; views stay valid.
//! 2. Tables, held events and checkpoint are swapped in one transaction.
//! 3. The tables never go back behind the live checkpoint.
//! 4. One maker at a time has the file ([`Scratch`]), and removes it.
//! 5. What others have in the read model's file stays: no table, index or trigger of theirs goes without a word ([`swap`]).

mod comparison;
mod scratch;
mod swap;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};
use serde_json::Value;

pub use self::comparison::{Comparison, Difference};
pub use self::scratch::{Purpose, Scratch};
use self::swap::{Swap, Swapped};

use super::Settings;
use super::engine::WhenLocked;
use super::fleet::Fleet;
use super::status::{State, Status};
use crate::event::Position;
use crate::projection::Definition;
use crate::shutdown::Shutdown;
use crate::source;
use crate::source::reader::Reader;
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::checkpoint;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the source, or the file, may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

fn definition_of(settings: &Settings) -> Result<&Arc<Definition>, JobError> {
    let not = || JobError::Refused(format!("{} is a relay: only projections have tables", settings.name));
    settings.destination.tables().ok_or_else(not)
}

/// Puts the tables that were made anew in the place of the live ones. These stand still meanwhile: when they have gone on since, the new ones
/// are brought up to them first. `definition` is what the checkpoint has to carry.
pub async fn put_in_place(
    writer: &Writer,
    reader: &Reader,
    settings: &Settings,
    definition: String,
    with_dead_letters: bool,
) -> Result<Value, JobError> {
    definition_of(settings)?;
    let refused = |why: &dyn std::fmt::Display| JobError::Refused(why.to_string());
    let scratch = Scratch::claim(settings, Purpose::Rebuild).map_err(|error| refused(&error))?;
    loop {
        let (settings, path, definition) = (settings.clone(), scratch.path().to_owned(), definition.clone());
        let (guard, owner) = (writer.guard.clone(), writer.owner);
        let swap = move |connection: &Connection| {
            let (settings, scratch, definition) = (&settings, &*path, &*definition);
            Swap { settings, scratch, definition, with_dead_letters, owner }.perform(connection, &guard)
        };
        match writer.perform(swap).await? {
            Swapped::Done(value) => {
                scratch.remove();
                return Ok(value);
            }
            Swapped::Behind => match run_up_to(&reader.settings, &scratch.settings, None, &mut |_| {}).await {
                Ok(()) => {}
                Err(Failed::Halted(why) | Failed::Away(why)) => return Err(refused(&why)),
            },
        }
    }
}

/// Drops the tables that rebuilds have kept, and what an ended one has left.
pub async fn drop_kept(writer: &Writer, settings: &Settings) -> Result<Value, JobError> {
    definition_of(settings)?;
    let name = settings.name.clone();
    let dropped = writer.perform(move |connection| swap::drop_kept(connection, &name)).await?;
    if let Ok(scratch) = Scratch::claim(settings, Purpose::Rebuild) {
        scratch.remove();
    }
    Ok(dropped)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The columns that can be written, with the rowid where there is one.
fn columns(connection: &Connection, table: &str) -> Result<Vec<String>, JobError> {
    let sql = "SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0";
    let mut names: Vec<String> =
        connection.prepare(sql)?.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let is_view = "SELECT type = 'view' FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
    let is_view: Option<bool> = connection.query_row(is_view, [table], |row| row.get(0)).optional()?;
    let has_rowid = connection.prepare(&format!("SELECT rowid FROM {} LIMIT 0", quoted(table))).is_ok();
    if has_rowid && is_view != Some(true) && !names.iter().any(|name| name.eq_ignore_ascii_case("rowid")) {
        names.insert(0, "rowid".to_owned());
    }
    Ok(names)
}

fn copy(from: &Connection, to: &Connection, table: &str, into: &str) -> Result<u64, JobError> {
    copy_rows(from, to, (table, into), &columns(from, table)?, "", &[])
}

fn copy_where(from: &Connection, to: &Connection, table: &str, consumer: &str) -> Result<u64, JobError> {
    copy_rows(from, to, (table, table), &columns(from, table)?, "WHERE consumer = ?1", &[&consumer])
}

fn copy_rows(
    from: &Connection,
    to: &Connection,
    (table, into): (&str, &str),
    columns: &[String],
    which: &str,
    values: &[&dyn ToSql],
) -> Result<u64, JobError> {
    let names: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let (names, places) = (names.join(", "), vec!["?"; columns.len()].join(", "));
    let mut select = from.prepare(&format!("SELECT {names} FROM {} {which}", quoted(table)))?;
    let mut insert = to.prepare(&format!("INSERT INTO {} ({names}) VALUES ({places})", quoted(into)))?;
    let mut rows = select.query(params_from_iter(values))?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        for index in 0..columns.len() {
            insert.raw_bind_parameter(index + 1, ToSqlOutput::Borrowed(row.get_ref(index)?))?;
        }
        insert.raw_execute()?;
        count += 1;
    }
    Ok(count)
}

/// Why the tables were not made.
#[derive(Debug)]
pub enum Failed {
    /// A person has to act.
    Halted(String),
    /// The source or the file is away.
    Away(String),
}

/// Runs the projection into its file until all is applied, up to a position or to the end; `look` is told how far it is.
pub async fn run_up_to(
    source: &source::Settings,
    settings: &Settings,
    until: Option<Position>,
    look: &mut (dyn FnMut(&Status) + Send),
) -> Result<(), Failed> {
    let settings = Settings { until, ..settings.clone() };
    let name = settings.name.clone();
    let (shutdown, phase) = Shutdown::new();
    let sources = BTreeMap::from([(source.name.clone(), source.clone())]);
    let fleet = Fleet::spawn(&sources, &BTreeMap::new(), vec![settings], WhenLocked::Wait, &phase);
    let fleet = fleet.map_err(|error| Failed::Away(error.to_string()))?;
    let status = fleet.handle(&name).expect("it was just started").status.clone();
    let mut well_since = Instant::now();
    let failed = loop {
        let now = status.borrow().clone();
        look(&now);
        match now.state {
            State::Running if now.is_at_end && now.in_flight == 0 && now.retrying == 0 => break None,
            State::Running => well_since = Instant::now(),
            State::Halted => break Some(Failed::Halted(now.detail)),
            _ if well_since.elapsed() >= PATIENCE => break Some(Failed::Away(now.detail)),
            _ => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    shutdown.drain(PATIENCE);
    let closed = fleet.closed().await;
    match failed {
        None => closed.map_err(|error| Failed::Away(error.to_string())),
        Some(failed) => Err(failed),
    }
}

/// Where a consumer stands in a file.
pub fn position(path: &Path, consumer: &str) -> Result<Option<Position>, JobError> {
    Ok(checkpoint::load(&open::reader(path)?, consumer)?.map(|checkpoint| checkpoint.mark.position))
}
