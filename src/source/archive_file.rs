//! The archive in a file of its own: where it is, and how log and archive are read as one.
//!
//! The file that events come from says it itself, in `archive_file`: which file has its archive (an id), where that is, and how many events were
//! moved there. So everybody finds it who opens the file, whatever his configuration says. He attaches it for reading, and puts a view over the name
//! `archived_events`, on his own connection alone: the table of the file and that of the archive. SQL that reads the two as one stays what it is.
//!
//! Invariants, named by tests in `tests/it/archives_pass_nobody/apart.rs`:
//! 1. A statement takes its snapshot of the file that events come from before that of the archive, and an event is there before it leaves here: it is
//!    found in one of them, and the view leaves out what still stands in both (`everybody_reads_what_moves_to_another_file_once`).
//! 2. Whoever reads a shorter history than there was is told: each statement over the view compares what was moved with what the archive has ever
//!    taken (`an_archive_that_is_missing_older_or_anothers_is_told`). So a file that was put in its place while it is read is found, too.
//! 3. A connection that was opened before there was an archive, or when it was another file, reads nothing: it has to be opened anew.
//!
//! Nothing here makes a file: that is the job's alone (`maintenance::archive::vault`).

use std::path::{Path, PathBuf};

use rusqlite::{Connection, MAIN_DB, OptionalExtension};

use super::fit::{literal, quoted};
use crate::sqlite::{fault, open, place};

/// What the archive is attached as.
const SCHEMA: &str = "outboxd_archive";
const TABLE: &str = "archived_events";
/// Begins what the view says; behind it stands the text.
const SAID: &str = "archived events: ";
/// What it says where the connection has to be opened anew.
const ANEW: &str = "they are in another file since this connection was opened";

const RESTORE_BOTH: &str = "One of the two was restored without the other. Remedy: restore both from the same backup";

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// With place and remedy.
    #[error("{0}")]
    Unfit(String),
}

/// What a file says of its archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Witness {
    pub id: String,
    /// As it is written there.
    pub path: String,
    /// Events that have left the file for it.
    pub moved: i64,
}

impl Witness {
    pub fn of(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let sql = "SELECT id, path, moved FROM main.archive_file WHERE one = 1";
        let row = |row: &rusqlite::Row<'_>| Ok(Self { id: row.get(0)?, path: row.get(1)?, moved: row.get(2)? });
        connection.prepare_cached(sql)?.query_row([], row).optional()
    }

    /// Where the archive is.
    pub fn place(&self, live: &Path) -> PathBuf {
        place::folder_of(&place::real(live)).join(&self.path)
    }
}

/// What an archive says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seal {
    pub id: String,
    /// Events that were ever copied into it.
    pub copied: i64,
    /// Of those, how many were known to have left the file that they came from.
    pub left: i64,
}

impl Seal {
    pub fn of(connection: &Connection, schema: &str) -> rusqlite::Result<Option<Self>> {
        let sql = format!("SELECT id, copied, left_there FROM {schema}.archive_of WHERE one = 1");
        connection
            .query_row(&sql, [], |row| Ok(Self { id: row.get(0)?, copied: row.get(1)?, left: row.get(2)? }))
            .optional()
    }
}

/// Whether a file can have an archive of its own.
pub fn is_known(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = 'archive_file')";
    connection.query_row(sql, [], |row| row.get(0))
}

/// From now on the connection reads the file's archive, too, as it stands there now.
pub fn attach(connection: &Connection, live: &Path) -> Result<(), Fault> {
    let is_query_only: bool = connection.query_row("PRAGMA query_only", [], |row| row.get(0))?;
    // A view of the connection's own is written, too.
    connection.execute_batch("PRAGMA query_only = OFF")?;
    let attached = look_through(connection, live);
    if is_query_only {
        connection.execute_batch("PRAGMA query_only = ON")?;
    }
    attached
}

/// As [`attach`], where it may have been done before: outside of transactions.
pub fn attach_anew(connection: &Connection, live: &Path) -> Result<(), Fault> {
    for (kind, name) in [("TRIGGER", "archived_ids_are_taken"), ("VIEW", TABLE), ("VIEW", "archive_is_current")] {
        connection.execute_batch(&format!("DROP {kind} IF EXISTS temp.{name}"))?;
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_database_list WHERE name = ?1)";
    if connection.query_row(sql, [SCHEMA], |row| row.get(0))? {
        connection.execute_batch(&format!("DETACH {SCHEMA}"))?;
    }
    attach(connection, live)
}

/// Whether the connection reads the archive that the file names now (1), or has to be opened anew (0).
pub const IS_CURRENT: &str = "SELECT yes FROM temp.archive_is_current";

/// The same, of a connection to which nothing may be attached.
pub fn is_current(connection: &Connection) -> rusqlite::Result<bool> {
    let Ok(mut statement) = connection.prepare_cached(IS_CURRENT) else { return Ok(false) };
    statement.query_row([], |row| row.get(0))
}

/// What an appender's connection needs besides: an id that was archived is not given to another event. A trigger of the file's own does not look
/// into another file.
pub fn guard_ids(connection: &Connection) -> rusqlite::Result<()> {
    if !is_known(connection)? || Witness::of(connection)?.is_none() {
        return Ok(());
    }
    connection.execute_batch(&format!(
        "CREATE TEMP TRIGGER archived_ids_are_taken BEFORE INSERT ON main.events
         WHEN EXISTS (SELECT 1 FROM {SCHEMA}.{TABLE} a WHERE a.id = NEW.id)
         BEGIN SELECT raise(ABORT, 'an archived event has this id or version'); END"
    ))
}

/// What a new connection to the file runs to read its archive, too, which is looked at here. Where something is wrong with that, it says so when it
/// is asked for archived events.
pub fn statements(live: &Path) -> rusqlite::Result<Vec<String>> {
    let connection = open::visitor(live)?;
    match sql(&connection, live) {
        Ok((sql, _)) => match attach(&connection, live) {
            Ok(()) => Ok(sql),
            Err(Fault::Sqlite(error)) => Err(error),
            Err(Fault::Unfit(what)) => broken(&connection, &what),
        },
        Err(Fault::Sqlite(error)) => Err(error),
        Err(Fault::Unfit(what)) => broken(&connection, &what),
    }
}

fn broken(connection: &Connection, what: &str) -> rusqlite::Result<Vec<String>> {
    Ok(vec![view(connection, None, what)?, is_current_view("0")])
}

fn is_current_view(condition: &str) -> String {
    format!("CREATE TEMP VIEW archive_is_current AS SELECT {condition} AS yes")
}

/// What makes a connection read the archive, and where that is.
fn sql(connection: &Connection, live: &Path) -> Result<(Vec<String>, Option<PathBuf>), Fault> {
    if !is_known(connection)? {
        let never = "NOT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE name = 'archive_file')";
        return Ok((vec![is_current_view(never)], None));
    }
    let Some(witness) = Witness::of(connection)? else {
        let view = view(connection, None, ANEW)?;
        return Ok((vec![view, is_current_view("NOT EXISTS (SELECT 1 FROM main.archive_file)")], None));
    };
    let archive = witness.place(live);
    if !archive.exists() {
        return Err(Fault::Unfit(missing(live, &archive, &witness)));
    }
    let same = format!("id = {} AND path = {}", literal(&witness.id), literal(&witness.path));
    let sql = vec![
        attach_sql(connection, &archive)?,
        view(connection, Some(&witness), &older(live, &archive))?,
        is_current_view(&format!("EXISTS (SELECT 1 FROM main.archive_file WHERE {same})")),
    ];
    Ok((sql, Some(archive)))
}

fn look_through(connection: &Connection, live: &Path) -> Result<(), Fault> {
    let (sql, archive) = sql(connection, live)?;
    for sql in sql {
        connection.execute_batch(&sql).map_err(|error| match (fault::classify(&error).0, &archive) {
            (fault::Kind::Corrupt, Some(archive)) => Fault::Unfit(format!(
                "the archive {} of {} is no database, or damaged ({error}). Remedy: restore both from the same backup",
                archive.display(),
                live.display()
            )),
            _ => Fault::Sqlite(error),
        })?;
    }
    archive.map_or(Ok(()), |archive| compare(connection, live, &archive))
}

/// Whether the two belong together, each as it is.
fn compare(connection: &Connection, live: &Path, archive: &Path) -> Result<(), Fault> {
    let sql = format!(
        "SELECT count(*) = 2 FROM {SCHEMA}.sqlite_schema WHERE type = 'table' AND name IN ('archive_of', '{TABLE}')"
    );
    if !connection.query_row(&sql, [], |row| row.get(0))? {
        return Err(Fault::Unfit(anothers(live, archive)));
    }
    // Events may move meanwhile. What the archive knows to have left the file has left it by the time that the file is asked, and what has left
    // it is in the archive by the time that this is asked again.
    let (before, witness, after) =
        (Seal::of(connection, SCHEMA)?, Witness::of(connection)?, Seal::of(connection, SCHEMA)?);
    match (before, witness, after) {
        (Some(Seal { left, .. }), Some(witness), Some(after)) => {
            fits(&Seal { left, ..after }, &witness, live, archive).map_err(Fault::Unfit)?;
        }
        _ => return Err(Fault::Unfit(anothers(live, archive))),
    }
    let newest =
        |sql: &str| connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).optional().map(Option::flatten);
    let archived = newest(&format!("SELECT max(position) FROM {SCHEMA}.{TABLE}"))?.unwrap_or(0);
    let given_out = newest("SELECT seq FROM main.sqlite_sequence WHERE name = 'events'")?.unwrap_or(0);
    if archived > given_out {
        return Err(Fault::Unfit(format!(
            "{live} is older than its archive {archive}, in which stands an event at position {archived}: the newest that was ever given out is \
             {given_out}. {RESTORE_BOTH}",
            live = live.display(),
            archive = archive.display(),
        )));
    }
    let columns = |schema: &str| -> rusqlite::Result<Vec<String>> {
        let sql = format!("SELECT name FROM pragma_table_info('{TABLE}', '{schema}')");
        connection.prepare(&sql)?.query_map([], |row| row.get(0))?.collect()
    };
    let there = columns(SCHEMA)?;
    match columns("main")?.into_iter().find(|name| !there.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Fault::Unfit(format!(
            "{TABLE} in {} has no column {name}, and that of {} has. Remedy: there, too, ALTER TABLE {TABLE} ADD COLUMN {name}",
            archive.display(),
            live.display()
        ))),
    }
}

/// Whether the archive has all that was moved, and no more than was.
pub fn fits(seal: &Seal, witness: &Witness, live: &Path, archive: &Path) -> Result<(), String> {
    if seal.id != witness.id {
        return Err(anothers(live, archive));
    }
    if witness.moved > seal.copied {
        return Err(older(live, archive));
    }
    if seal.left > witness.moved {
        return Err(format!(
            "{live} is older than its archive {archive}: {} events are known there to have left it, and by its own count {} have. {RESTORE_BOTH}",
            seal.left,
            witness.moved,
            live = live.display(),
            archive = archive.display(),
        ));
    }
    Ok(())
}

pub fn missing(live: &Path, archive: &Path, witness: &Witness) -> String {
    format!(
        "the archive {} of {} is not there: {} events were moved to it, and a history without them would be read. Remedy: restore that file, too, or \
         where it was put elsewhere, say so as archive_path of the job and run it",
        archive.display(),
        live.display(),
        witness.moved
    )
}

pub fn anothers(live: &Path, archive: &Path) -> String {
    format!(
        "{} is not the archive that events of {} were moved to. Remedy: put that one in its place (each knows the other by an id)",
        archive.display(),
        live.display()
    )
}

fn older(live: &Path, archive: &Path) -> String {
    format!(
        "the archive {} is older than {}: it lacks events that were moved to it. Remedy: restore both from the same backup, or bring the newer archive back",
        archive.display(),
        live.display()
    )
}

/// For reading, whatever the connection may do: it takes over that this one reads only, or is told so.
fn attach_sql(connection: &Connection, archive: &Path) -> Result<String, Fault> {
    let path = place::real(archive);
    let path = path.to_str().ok_or_else(|| Fault::Unfit(format!("{}: the path is no UTF-8", path.display())))?;
    let name = match connection.is_readonly(MAIN_DB)? {
        true => path.to_owned(),
        false => format!("file:{}?mode=ro", path.replace('%', "%25").replace('?', "%3f").replace('#', "%23")),
    };
    Ok(format!("ATTACH {} AS {SCHEMA}", literal(&name)))
}

/// The archive as a view of the connection's own. Its last part gives no row: it says what is wrong, for which SQLite has nothing but an error
/// that repeats an argument.
fn view(connection: &Connection, witness: Option<&Witness>, wrong: &str) -> rusqlite::Result<String> {
    let sql = format!("SELECT name FROM pragma_table_info('{TABLE}', 'main')");
    let names: Vec<String> = connection.prepare(&sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let columns = names.iter().map(|name| format!("a.{}", quoted(name))).collect::<Vec<_>>().join(", ");
    // The text hangs on a column, or SQLite would work it out before it is asked for.
    let say = |text: &str| format!("json_extract('{{}}', {} || f.id)", literal(&format!("{SAID}{text} / ")));
    let here = format!("SELECT {columns} FROM main.{TABLE} a");
    let body = match witness {
        None => format!(
            "{here} UNION ALL SELECT {columns} FROM main.archive_file f CROSS JOIN main.{TABLE} a WHERE f.one = 1 AND {}",
            say(wrong)
        ),
        Some(Witness { id, path, .. }) => format!(
            "{here} UNION ALL SELECT {columns} FROM {SCHEMA}.{TABLE} a
               WHERE NOT EXISTS (SELECT 1 FROM main.events e WHERE e.position = a.position AND e.id = a.id)
             UNION ALL SELECT {columns} FROM main.archive_file f LEFT JOIN {SCHEMA}.archive_of o ON o.one = 1 CROSS JOIN main.{TABLE} a
               WHERE f.one = 1 AND CASE WHEN f.id IS NOT {id} OR f.path IS NOT {path} THEN {anew}
                 WHEN o.id IS NOT f.id OR f.moved > o.copied THEN {wrong} END",
            id = literal(id),
            path = literal(path),
            anew = say(ANEW),
            wrong = say(wrong),
        ),
    };
    Ok(format!("CREATE TEMP VIEW {TABLE} AS {body}"))
}

/// What the view has said, out of SQLite's words.
pub fn said(error: &dyn std::error::Error) -> Option<String> {
    let error = error.to_string();
    let (_, text) = error.split_once(SAID)?;
    Some(text.rsplit_once(" / ").map_or(text, |(text, _)| text).replace("''", "'"))
}

/// The connection has to be opened anew.
pub fn is_stale(error: &rusqlite::Error) -> bool {
    said(error).is_some_and(|said| is_moved(&said))
}

/// The same, of what was said.
pub fn is_moved(said: &str) -> bool {
    said == ANEW
}

/// An error of SQLite's as it is told.
pub fn told(error: &rusqlite::Error) -> String {
    said(error).unwrap_or_else(|| error.to_string())
}
