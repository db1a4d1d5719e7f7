//! What must survive a restart: checkpoints, held events, what operators decided, runs of jobs. Each its table, its SQL, its type.
//!
//! The tables stand in a file beside the source (`<file>-outboxd.db`) or in the source's own file (`state = "inside"`); there they
//! are the only tables of ours. Invariants:
//! 1. A checkpoint moves by compare-and-set alone ([`checkpoint::advance`]): two daemons cannot both move it.
//! 2. A refused event's row is written in the transaction that moves the checkpoint past it ([`settlement::Settlement::apply`]).
//! 3. A newer schema than ours is refused, never guessed at.

pub mod checkpoint;
pub mod copies;
pub mod files;
pub mod held;
pub mod job_run;
pub mod replay;
pub mod resolution;
pub mod settlement;
#[cfg(test)]
mod tests;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::controls::{self, Seam};
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::open;
use crate::sqlite::premises::Finding;
use crate::sqlite::writer::JobError;

/// What makes each version of the tables from the one before it; the first from nothing.
const MIGRATIONS: [&str; 1] = [FIRST];

pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

const FIRST: &str = "
CREATE TABLE outboxd_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE outboxd_checkpoint (
    consumer   TEXT PRIMARY KEY,
    source     TEXT NOT NULL,
    definition TEXT NOT NULL,                 -- of mapping and key: another one halts until it is accepted
    position   INTEGER NOT NULL,
    event_id   TEXT NOT NULL,                 -- of the event at the position
    witnesses  TEXT NOT NULL,                 -- JSON [[position, event id], ...]
    dirty      INTEGER NOT NULL,              -- 1 while running: what follows the checkpoint may have been sent; 2: and a held one was freed since
    updated_at TEXT NOT NULL
) STRICT;
CREATE TABLE outboxd_held (
    consumer        TEXT NOT NULL,
    key             BLOB NOT NULL,
    ordinal         INTEGER NOT NULL,
    position        INTEGER NOT NULL,
    row_id          ANY,                      -- the row's own name, for sources read by row
    event_id        TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('retrying', 'dead', 'skipped', 'waiting')),
    attempts        INTEGER NOT NULL,
    next_attempt_at INTEGER,                  -- microseconds since 1970 UTC
    reason          TEXT,
    detail          TEXT,
    held_at         TEXT NOT NULL,
    payload         BLOB,                     -- the event as an envelope, for failed ones of up to 1 MiB
    PRIMARY KEY (consumer, key, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX outboxd_held_state ON outboxd_held (consumer, state, next_attempt_at);
CREATE TABLE outboxd_resolution (
    at       TEXT NOT NULL,
    consumer TEXT NOT NULL,
    action   TEXT NOT NULL,                   -- discard, position, accept, forget
    event_id TEXT,
    key      BLOB,
    reason   TEXT NOT NULL,
    detail   TEXT NOT NULL
) STRICT;
CREATE TABLE outboxd_job_run (
    job      TEXT NOT NULL,
    began    TEXT NOT NULL,
    ended    TEXT,
    result   TEXT,
    detail   TEXT,
    PRIMARY KEY (job, began)
) STRICT;
-- An application may delete what is at or below this position: everything there is settled, and no held event needs its row.
CREATE VIEW outboxd_safe_position (source, position) AS
    SELECT source, min(position) FROM (
        SELECT source, position FROM outboxd_checkpoint
        UNION ALL
        SELECT c.source, h.position - 1 FROM outboxd_held h JOIN outboxd_checkpoint c ON c.consumer = h.consumer
         WHERE h.state = 'waiting' OR (h.payload IS NULL AND h.state <> 'skipped')
    ) GROUP BY source;
";

/// Brings the tables to our version; refuses a schema that is not ours to use. Runs in the caller's transaction.
pub fn migrate(connection: &Connection) -> Result<(), JobError> {
    migrate_to(connection, SCHEMA_VERSION)
}

/// The same up to an older version, so that the way on from there can be tried.
pub fn migrate_to(connection: &Connection, wanted: i64) -> Result<(), JobError> {
    let there = schema_version(connection)?.unwrap_or(0);
    if !(0..=SCHEMA_VERSION).contains(&there) {
        return Err(JobError::Refused(format!(
            "the outboxd tables are of schema version {there}, this outboxd knows {SCHEMA_VERSION}. Remedy: run the outboxd that made them, or a newer one"
        )));
    }
    if there == SCHEMA_VERSION && wanted == SCHEMA_VERSION {
        return check_whole(connection);
    }
    if there == 0 {
        check_free(connection)?;
    }
    for (version, step) in (1..=wanted).zip(MIGRATIONS).skip(there as usize) {
        connection.execute_batch(step)?;
        controls::reach(Seam::Migrate);
        connection.execute(
            "INSERT OR REPLACE INTO outboxd_meta (name, value) VALUES ('schema_version', ?1)",
            [version.to_string()],
        )?;
    }
    if wanted == SCHEMA_VERSION {
        // What an older outboxd can do without makes no new version: one can go back to it.
        connection.execute_batch(replay::TABLE)?;
        connection.execute_batch(copies::TABLE)?;
    }
    Ok(())
}

/// A name, and the columns with their types.
type Made = (String, Vec<(String, String)>);

/// Tables and views of our version with their columns, as they are made.
fn as_made() -> rusqlite::Result<Vec<Made>> {
    let made = open::scratch()?;
    for step in MIGRATIONS {
        made.execute_batch(step)?;
    }
    let names: Vec<String> = made
        .prepare("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    names.into_iter().map(|name| Ok((name.clone(), open::columns(&made, &name)?))).collect()
}

/// No table of a name of ours stands there that is not ours.
fn check_free(connection: &Connection) -> Result<(), JobError> {
    for (name, _) in as_made()? {
        if !open::columns(connection, &name)?.is_empty() {
            return Err(JobError::Refused(format!(
                "a table {name} is there that is not ours: no version is stamped on it. {NOT_OURS}"
            )));
        }
    }
    Ok(())
}

/// What is stamped with our version is as we made it: no table and no column is missing.
fn check_whole(connection: &Connection) -> Result<(), JobError> {
    for (name, columns) in as_made()? {
        let there = open::columns(connection, &name)?;
        if let Some(missing) = columns.iter().find(|column| !there.contains(column)) {
            return Err(JobError::Refused(format!(
                "the outboxd tables are said to be of schema version {SCHEMA_VERSION}, but {name} has no column {}: somebody changed them. {LOST}",
                missing.0
            )));
        }
    }
    Ok(())
}

/// What keeps a file from being the state's own: another's database would be put into WAL mode, and tables made in it.
pub fn foreign(path: &Path) -> rusqlite::Result<Option<Finding>> {
    if !path.exists() {
        return Ok(None);
    }
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'outboxd_*' AND name NOT GLOB 'sqlite_*' LIMIT 1";
    let found = open::reader(path).and_then(|file| file.query_row(sql, [], |row| row.get::<_, String>(0)).optional());
    let place = path.display();
    match found {
        Ok(table) => Ok(table.map(|table| {
            let evidence =
                format!("the state is to stand in {place}, which is somebody else's: it has a table {table}");
            Finding::refusal(evidence, "give the state a file of its own (`state`); then `outboxd resume`")
        })),
        Err(error) if fault::classify(&error).0 == Kind::Corrupt => Ok(Some(Finding::refusal(
            format!("the state {place} cannot be read: {error}"),
            LOST.trim_start_matches("Remedy: "),
        ))),
        Err(error) => Err(error),
    }
}

const NOT_OURS: &str = "Remedy: rename it, or give the state a file of its own (`state`); then `outboxd resume`";
const LOST: &str = "Remedy: restore that file from a backup; or move it away, see which events the far side has, and say with `start` or \
                    `outboxd position set` where to go on; then `outboxd resume`";

/// What is remembered under a name; what is said now, when nothing is.
pub fn remembered(connection: &Connection, name: &str, now: &str) -> Result<String, JobError> {
    connection.execute("INSERT OR IGNORE INTO outboxd_meta (name, value) VALUES (?1, ?2)", [name, now])?;
    Ok(connection.query_row("SELECT value FROM outboxd_meta WHERE name = ?1", [name], |row| row.get(0))?)
}

/// `None` where there are no tables of ours.
pub fn schema_version(connection: &Connection) -> Result<Option<i64>, JobError> {
    let there: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'outboxd_meta')",
        [],
        |row| row.get(0),
    )?;
    if !there {
        return Ok(None);
    }
    let text: Option<String> = connection
        .query_row("SELECT value FROM outboxd_meta WHERE name = 'schema_version'", [], |row| row.get(0))
        .optional()?;
    text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
        JobError::Refused(format!(
            "a table outboxd_meta is there that is not ours: it names no schema version. {NOT_OURS}"
        ))
    })
}
