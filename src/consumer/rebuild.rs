//! A projection's tables made anew beside the live ones, and swapped with them in one transaction; or compared.
//!
//! They are made by the same engine, in a file of their own (`<read model>-rebuild-<name>-<hash>.db`) with its own checkpoint: a rebuild that was
//! ended goes on where it was. Invariants (tests in `tests/it/rebuilds.rs`):
//! 1. A reader of the read model sees the old tables or the new ones, never none and never half of them; views stay valid.
//! 2. Tables, held events and checkpoint are swapped in one transaction.
//! 3. The tables never go back behind the live checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use serde_json::{Value, json};

use super::engine::WhenLocked;
use super::fleet::Fleet;
use super::status::{State, Status};
use super::{Destination, Settings};
use crate::controls::{self, Seam};
use crate::event::Position;
use crate::projection::{Definition, tables};
use crate::shutdown::Shutdown;
use crate::source;
use crate::sqlite::guard::Guard;
use crate::sqlite::lockfile::LockFile;
use crate::sqlite::open;
use crate::sqlite::writer::JobError;
use crate::state::checkpoint::{self, Checkpoint};
use crate::state::held;

/// What the tables that were replaced are kept as.
const KEPT: &str = "outboxd_old_";
/// Rows of a table that are shown.
pub const SHOWN_MAX: usize = 20;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the source, or the file, may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a scratch file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Rebuild,
    Verify,
}

/// Why the tables were not swapped.
pub const BEHIND: &str = "the live tables have gone on meanwhile";

fn definition_of(settings: &Settings) -> Result<&Arc<Definition>, JobError> {
    let not = || JobError::Refused(format!("{} is a relay: only projections have tables", settings.name));
    settings.destination.tables().ok_or_else(not)
}

/// The same projection, into a file of its own.
pub fn beside(settings: &Settings, purpose: Purpose) -> Result<Settings, JobError> {
    let definition = definition_of(settings)?;
    let what = match purpose {
        Purpose::Rebuild => "rebuild",
        Purpose::Verify => "verify",
    };
    let mut path = definition.path.clone().into_os_string();
    path.push(format!("-{what}-{}-{}.db", definition.name, definition.hash()));
    let definition = Definition { path: path.into(), ..(**definition).clone() };
    let mut bounds = settings.bounds;
    // What fails does so because of what stands in the event and the tables: a second attempt would fail, too.
    bounds.attempts_max = 1;
    bounds.retry_min = Duration::from_millis(1);
    Ok(Settings { destination: Destination::Tables(Arc::new(definition)), bounds, paused: false, ..settings.clone() })
}

/// The file itself, and what SQLite and the lock put beside it.
pub fn remove(path: &Path) {
    for end in ["", "-wal", "-shm", "-outboxd.lock"] {
        // What is not there need not be removed.
        let _ = std::fs::remove_file(PathBuf::from(format!("{}{end}", path.display())));
    }
}

/// Brings what the statements read, as it is now, into the file in which they are going to run.
pub fn bring_reads(live: &Path, settings: &Settings) -> Result<(), JobError> {
    let definition = definition_of(settings)?;
    if definition.reads.is_empty() {
        return Ok(());
    }
    let _lock = LockFile::take(&definition.path).map_err(|error| JobError::Refused(error.to_string()))?;
    let (from, to) = (open::reader(live)?, open::state_file(&definition.path)?);
    to.execute_batch("BEGIN IMMEDIATE")?;
    let snapshot = from.unchecked_transaction()?;
    for table in &definition.reads {
        let columns = open::columns(&snapshot, table)?;
        if columns.is_empty() || !open::columns(&to, table)?.is_empty() {
            continue;
        }
        let typed: Vec<String> = columns.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        to.execute_batch(&format!("CREATE TABLE {} ({})", quoted(table), typed.join(", ")))?;
        copy(&snapshot, &to, table)?;
    }
    to.execute_batch("COMMIT")?;
    Ok(())
}

/// Puts the tables that were made anew in the place of the live ones, in the caller's transaction. `definition` is what the checkpoint carries.
pub fn swap(
    connection: &Connection,
    guard: &Guard,
    settings: &Settings,
    source_definition: &str,
    with_dead_letters: bool,
) -> Result<Value, JobError> {
    let live = definition_of(settings)?;
    let made = beside(settings, Purpose::Rebuild)?;
    let path = &definition_of(&made)?.path;
    // What is wrong with that file is not wrong with the live one, which would be waited for.
    let unread = |error: &dyn std::fmt::Display| {
        JobError::Refused(format!(
            "{}: {error}. Remedy: see that the daemon may read it, then rebuild again",
            path.display()
        ))
    };
    let scratch = open::visitor(path).map_err(|error| unread(&error))?;
    let snapshot = scratch.unchecked_transaction().map_err(|error| unread(&error))?;
    let name = &settings.name;
    let Some(new) = checkpoint::load(&snapshot, name).map_err(|error| unread(&error))? else {
        return Err(JobError::Refused(format!("{name} was not rebuilt: there is no checkpoint of it")));
    };
    if new.definition != source_definition {
        return Err(JobError::Refused(format!("{name} was rebuilt by another definition. Remedy: rebuild it again")));
    }
    let old = checkpoint::load(connection, name)?;
    if old.as_ref().is_some_and(|old| old.source == new.source && old.mark.position > new.mark.position) {
        return Err(JobError::Refused(BEHIND.to_owned()));
    }
    let counts = held::counts(&snapshot, name).map_err(|error| unread(&error))?;
    let dead = counts[1];
    if dead > 0 && !with_dead_letters {
        return Err(JobError::Refused(format!(
            "{dead} events were refused when {name} was rebuilt, and the live tables stay as they are. Remedy: mend what refuses them, or say \
             --with-dead-letters"
        )));
    }
    let configs = [
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
        // Views name a table, not the one that it was renamed from.
        (DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, true),
    ];
    for (config, on) in configs {
        connection.set_db_config(config, on)?;
    }
    let swapped = exchange(connection, guard, live, &snapshot);
    for (config, on) in configs {
        connection.set_db_config(config, !on)?;
    }
    let (kept, rows) = swapped?;
    connection.execute("DELETE FROM outboxd_held WHERE consumer = ?1", [name])?;
    copy_where(&snapshot, connection, "outboxd_held", name)?;
    checkpoint::put(connection, &Checkpoint { ..new.clone() })?;
    checkpoint::keep_section(connection, name, &live.as_json())?;
    controls::reach(Seam::Swap);
    Ok(json!({
        "consumer": name, "position": new.mark.position.0, "previous": old.map(|old| old.mark.position.0),
        "rows": rows, "kept": kept, "dead_letters": dead,
    }))
}

/// Old tables are renamed, the new ones made and filled.
fn exchange(
    connection: &Connection,
    guard: &Guard,
    definition: &Definition,
    from: &Connection,
) -> Result<(Vec<String>, u64), JobError> {
    let before = checkpoint::section(connection, &definition.name)?;
    let named = |part: &str| -> Vec<String> {
        let list = before.as_ref().and_then(|before| before[part].as_array().cloned()).unwrap_or_default();
        list.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    for (part, wanted) in [("tables", &definition.tables), ("views", &definition.views)] {
        let made = named(part);
        // Where nothing was made yet, whoever asks for a rebuild means what is there: it is kept under another name.
        let is_foreign = |name: &&String| {
            let is_made = made.iter().any(|own| own.eq_ignore_ascii_case(name));
            before.is_some() && !is_made && is_anybodys(connection, name)
        };
        if let Some(taken) = wanted.iter().find(is_foreign) {
            return Err(JobError::Refused(format!(
                "{taken} is there already, and {} has not made it; nothing was changed. Remedy: name another one in `{part}` and `schema`, or take \
                 it out of the way",
                definition.name
            )));
        }
    }
    let views = [named("views"), definition.views.clone()].concat();
    for view in views {
        connection.execute_batch(&format!("DROP VIEW IF EXISTS {}", quoted(&view)))?;
    }
    let mut kept = Vec::new();
    let mut old = [named("tables"), definition.tables.clone()].concat();
    old.sort();
    old.dedup();
    for table in old {
        if open::columns(connection, &table)?.is_empty() {
            continue;
        }
        let sql = "SELECT type, name FROM sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL";
        let mut statement = connection.prepare(sql)?;
        let parts: Vec<(String, String)> =
            statement.query_map([&table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        for (kind, part) in parts {
            connection.execute_batch(&format!("DROP {kind} {}", quoted(&part)))?;
        }
        let as_kept = format!("{KEPT}{table}");
        connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&as_kept)))?;
        connection.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", quoted(&table), quoted(&as_kept)))?;
        kept.push(as_kept);
    }
    controls::reach(Seam::Swap);
    tables::make(connection, guard, definition)?;
    let mut rows = 0;
    for table in &definition.tables {
        // What the schema itself puts in was put in there, too.
        connection.execute(&format!("DELETE FROM {}", quoted(table)), [])?;
        rows += copy(from, connection, table)?;
    }
    controls::reach(Seam::Swap);
    Ok((kept, rows))
}

/// Drops the tables that a rebuild has kept.
pub fn drop_kept(connection: &Connection, settings: &Settings) -> Result<Value, JobError> {
    let definition = definition_of(settings)?;
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'outboxd\\_old\\_%' ESCAPE '\\'";
    let kept: Vec<String> = connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let is_own = |name: &&String| {
        let table = &name[KEPT.len()..];
        definition.tables.iter().any(|own| own.eq_ignore_ascii_case(table)) || !is_anybodys(connection, table)
    };
    let kept: Vec<String> = kept.iter().filter(is_own).cloned().collect();
    for table in &kept {
        connection.execute_batch(&format!("DROP TABLE {}", quoted(table)))?;
    }
    Ok(json!({ "consumer": settings.name, "dropped": kept }))
}

/// Whether a table of that name is in use: then what is kept of it is another projection's.
fn is_anybodys(connection: &Connection, table: &str) -> bool {
    open::columns(connection, table).is_ok_and(|columns| !columns.is_empty())
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

fn copy(from: &Connection, to: &Connection, table: &str) -> Result<u64, JobError> {
    copy_rows(from, to, table, "", &[])
}

fn copy_where(from: &Connection, to: &Connection, table: &str, consumer: &str) -> Result<u64, JobError> {
    copy_rows(from, to, table, "WHERE consumer = ?1", &[consumer])
}

fn copy_rows(from: &Connection, to: &Connection, table: &str, which: &str, values: &[&str]) -> Result<u64, JobError> {
    let columns = columns(from, table)?;
    let names: Vec<String> =
        columns.iter().map(|name| if name == "rowid" { name.clone() } else { quoted(name) }).collect();
    let (names, places) = (names.join(", "), vec!["?"; columns.len()].join(", "));
    let mut select = from.prepare(&format!("SELECT {names} FROM {} {which}", quoted(table)))?;
    let mut insert = to.prepare(&format!("INSERT INTO {} ({names}) VALUES ({places})", quoted(table)))?;
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

/// The rows that one of two has and the other has not.
#[derive(Debug, Default)]
pub struct Difference {
    pub table: String,
    /// As SQL literals, up to [`SHOWN_MAX`] of each.
    pub only_live: Vec<String>,
    pub only_rebuilt: Vec<String>,
    pub rows: u64,
}

/// Compares the tables in a file with those made anew, both as they are now.
pub struct Comparison {
    connection: Connection,
}

impl Comparison {
    /// From now on the live file is seen as it is at this moment. Returns where the projection stands in it.
    pub fn begin(live: &Path, rebuilt: &Path, consumer: &str) -> Result<(Self, Option<Position>), JobError> {
        let connection = open::reader(live)?;
        let rebuilt = rebuilt.to_string_lossy();
        connection.execute("ATTACH ?1 AS rebuilt", [rebuilt.as_ref()])?;
        connection.execute_batch("BEGIN")?;
        let position = checkpoint::load(&connection, consumer)?.map(|checkpoint| checkpoint.mark.position);
        Ok((Self { connection }, position))
    }

    pub fn differences(&self, definition: &Definition) -> Result<Vec<Difference>, JobError> {
        let mut differences = Vec::new();
        for table in &definition.tables {
            let columns: Vec<String> =
                open::columns(&self.connection, table)?.into_iter().map(|(name, _)| name).collect();
            let (mut only_live, few_live) = self.only(table, &columns, "main", "rebuilt")?;
            let (mut only_rebuilt, few_rebuilt) = self.only(table, &columns, "rebuilt", "main")?;
            only_live.truncate(SHOWN_MAX);
            only_rebuilt.truncate(SHOWN_MAX);
            let rows = few_live + few_rebuilt;
            if rows > 0 {
                differences.push(Difference { table: table.clone(), only_live, only_rebuilt, rows });
            }
        }
        Ok(differences)
    }

    /// As literals, and how often each stands there: nothing is taken for the same that is not.
    fn only(&self, table: &str, columns: &[String], here: &str, there: &str) -> Result<(Vec<String>, u64), JobError> {
        let literals: Vec<String> = columns.iter().map(|name| format!("quote({})", quoted(name))).collect();
        let literal = literals.join(" || ', ' || ");
        let rows = |schema: &str| {
            format!("SELECT {literal} AS line, count(*) AS times FROM {schema}.{} GROUP BY line", quoted(table))
        };
        let sql = format!("{} EXCEPT {} ORDER BY line", rows(here), rows(there));
        let mut statement = self.connection.prepare(&sql)?;
        let mut found = statement.query([])?;
        let (mut shown, mut count) = (Vec::new(), 0);
        while let Some(row) = found.next()? {
            count += 1;
            if shown.len() < SHOWN_MAX {
                shown.push(row.get(0)?);
            }
        }
        Ok((shown, count))
    }
}
