//! An archive in a file of its own: made, copied into, and looked into before an event leaves the log.
//!
//! An event is copied in a transaction of the archive, while nobody's lock is held on the application's file; that is made durable; only then the
//! event leaves the log, where the copy is found there with the same in every column. A crash in between leaves it in both, which readers take once
//! ([`crate::source::archive_file`]), and the next run goes on from there. Before a copy is made durable, the application's `-wal` is: what is archived
//! can be undone by no power cut, and what the archive knows to have left the log has left it for good.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params, params_from_iter};

use super::tables::ARCHIVE;
use crate::controls::{self, Protection, Seam};
use crate::maintenance::Failure;
use crate::source::archive_file::{self, Seal, Witness};
use crate::source::fit::quoted;
use crate::sqlite::barrier::Barrier;
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::open::{self, Durable};
use crate::sqlite::place;
use crate::sqlite::writer::JobError;

const ITS_OWN: &str = "CREATE TABLE archive_of (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, copied INTEGER NOT NULL, left_there INTEGER NOT NULL) STRICT";

#[derive(Debug)]
pub struct Vault {
    live: PathBuf,
    path: PathBuf,
    id: String,
    inode: (u64, u64),
    connection: Connection,
    barrier: Barrier,
    /// `?1` a row of the log.
    select: String,
    insert: String,
    /// `?1` a position.
    copy: String,
    /// `?1` a row, then the columns' values: only where they are the same.
    delete: String,
    /// Copied in the transaction that is open.
    copied: i64,
    /// Why rows could not be copied.
    refused: HashMap<i64, String>,
    _lock: LockFile,
}

/// What became of a row that was to leave the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    Yes,
    NotCopied,
    Fault(String),
}

impl Vault {
    /// The archive of this file, which is made where the file says that nothing was moved yet. `tell` says something to the file.
    pub fn open(
        app: &Connection,
        live: &Path,
        path: &Path,
        tell: impl Fn(&'static str, Vec<String>) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let unread = |error: rusqlite::Error| Failure::Unavailable(format!("{}: {error}", live.display()));
        if !archive_file::is_known(app).map_err(unread)? {
            let file = live.display();
            let what =
                format!("{file}: there is no table archive_file. Remedy: `outboxd init {file}` makes what is missing");
            return Err(Failure::Data(what));
        }
        let witness = Witness::of(app).map_err(unread)?;
        let lock = LockFile::take(path).map_err(|error| match error {
            LockError::Held { .. } => Failure::Locked(error.to_string()),
            LockError::Io { ref source, .. } => {
                let remedy = "Remedy: see that the archive's folder is there, and may be written by outboxd";
                Failure::Unavailable(format!("{error}: {source}. {remedy}"))
            }
        })?;
        let connection = match &witness {
            Some(witness) if witness.moved > 0 && !path.exists() => {
                return Err(Failure::Data(archive_file::missing(live, path, witness)));
            }
            Some(witness) if witness.moved > 0 => opened(live, path)?,
            _ => made(app, live, path, witness.as_ref())?,
        };
        let unwritten = |error: rusqlite::Error| unusable(path, &error);
        let seal = Seal::of(&connection, "main").map_err(unwritten)?;
        let seal = seal.ok_or_else(|| Failure::Data(archive_file::anothers(live, path)))?;
        controls::reach(Seam::ArchiveFile);
        match &witness {
            None if seal.copied > 0 => {
                return Err(Failure::Data(format!(
                    "{} has events that were archived already, and {} knows of none: it is another file's archive, or the file was restored from \
                     before. Remedy: name another archive_path, or restore the file and its archive from the same backup",
                    path.display(),
                    live.display()
                )));
            }
            None => {
                let sql = "INSERT INTO archive_file (one, id, path, moved) VALUES (1, ?1, ?2, 0)";
                tell(sql, vec![seal.id.clone(), named(live, path)?])?;
                controls::reach(Seam::ArchiveFile);
            }
            Some(witness) => {
                archive_file::fits(&seal, witness, live, path).map_err(Failure::Data)?;
                if !place::is_same(&witness.place(live), path) {
                    let sql = "UPDATE archive_file SET path = ?2 WHERE one = 1 AND id = ?1";
                    tell(sql, vec![seal.id.clone(), named(live, path)?])?;
                }
            }
        }
        let names: Vec<String> =
            open::columns(app, "events").map_err(unread)?.into_iter().map(|(name, _)| quoted(&name)).collect();
        let there = open::columns(&connection, ARCHIVE).map_err(unwritten)?;
        if let Some(name) = names.iter().find(|name| !there.iter().any(|(there, _)| quoted(there) == **name)) {
            return Err(Failure::Data(format!(
                "{}: the table {ARCHIVE} has no column {name}, which would be lost of each event. Remedy: there, too, ALTER TABLE {ARCHIVE} ADD COLUMN {name}",
                path.display()
            )));
        }
        let listed = names.join(", ");
        let marks: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
        let same: Vec<String> = names.iter().zip(2..).map(|(name, n)| format!("{name} IS ?{n}")).collect();
        let real = place::real(live);
        let mut barrier = Barrier::new(&real);
        barrier.follow(&real);
        let meta = fs::metadata(path).map_err(|error| Failure::Unavailable(format!("{}: {error}", path.display())))?;
        Ok(Self {
            live: live.to_owned(),
            path: path.to_owned(),
            id: seal.id,
            inode: (meta.dev(), meta.ino()),
            connection,
            barrier,
            select: format!("SELECT {listed} FROM main.events WHERE rowid = ?1"),
            insert: format!("INSERT INTO {ARCHIVE} ({listed}) VALUES ({})", marks.join(", ")),
            copy: format!("SELECT {listed} FROM {ARCHIVE} WHERE position = ?1"),
            delete: format!("DELETE FROM events WHERE rowid = ?1 AND {}", same.join(" AND ")),
            copied: 0,
            refused: HashMap::new(),
            _lock: lock,
        })
    }

    pub fn begin(&mut self) -> Result<(), Failure> {
        (self.copied, self.refused) = (0, HashMap::new());
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| unusable(&self.path, &error))
    }

    /// Copies an event into the transaction that is open.
    pub fn copy(&mut self, app: &Connection, row: i64) -> Result<(), JobError> {
        let Some(values) = values(app, &self.select, row)? else { return Ok(()) };
        let refused = |error: &rusqlite::Error| JobError::Refused(unusable(&self.path, error).to_string());
        let inserted = self
            .connection
            .prepare_cached(&self.insert)
            .and_then(|mut insert| insert.execute(params_from_iter(&values)));
        match inserted {
            Ok(_) => {
                self.copied += 1;
                controls::reach(Seam::ArchiveFile);
                Ok(())
            }
            Err(rusqlite::Error::SqliteFailure(error, message)) if error.code == ErrorCode::ConstraintViolation => {
                let there = self.connection_values(row).map_err(|error| refused(&error))?;
                // It was copied by a run that did not come to its end.
                if there.as_ref() != Some(&values) {
                    let message = message.unwrap_or_else(|| error.to_string());
                    self.refused.insert(row, format!(
                        "{ARCHIVE} in {} does not take it ({message}): it, or another of its version or position, stands there already. Remedy: compare \
                         the two, and delete the wrong one",
                        self.path.display()
                    ));
                }
                Ok(())
            }
            Err(error) => Err(refused(&error)),
        }
    }

    /// Ends the transaction: what was copied is durable, and what it was copied from is, too. `moved` have left the log by now.
    pub fn seal(&mut self, moved: i64) -> Result<(), Failure> {
        let unusable = |error: rusqlite::Error| unusable(&self.path, &error);
        if self.copied == 0 {
            return self.connection.execute_batch("ROLLBACK").map_err(unusable);
        }
        let sql = "UPDATE archive_of SET copied = copied + ?1, left_there = ?2";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut update| update.execute([self.copied, moved]))
            .map_err(unusable)?;
        self.barrier.raise().map_err(|detail| {
            Failure::Unavailable(format!(
                "{}: what is archived cannot be made durable first: {detail}. Nothing of it has left the log. Remedy: mend the disk, restart outboxd",
                self.live.display()
            ))
        })?;
        if controls::is_off(Protection::CopyFirst) {
            return Ok(());
        }
        self.connection.execute_batch("COMMIT").map_err(unusable)?;
        controls::reach(Seam::ArchiveFile);
        Ok(())
    }

    /// Undoes what was not sealed.
    pub fn forget(&self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// Of the control that leaves it open.
    pub fn sealed_late(&self) -> Result<(), Failure> {
        match self.connection.is_autocommit() {
            true => Ok(()),
            false => self.connection.execute_batch("COMMIT").map_err(|error| unusable(&self.path, &error)),
        }
    }

    /// Takes an event out of the log, if its copy is found. Runs in the writer's transaction.
    pub fn take(&self, app: &Connection, row: i64) -> Result<Taken, JobError> {
        if controls::is_off(Protection::Copied) {
            app.prepare_cached("DELETE FROM events WHERE rowid = ?1")?.execute([row])?;
            return Ok(Taken::Yes);
        }
        if let Some(fault) = self.refused.get(&row) {
            return Ok(Taken::Fault(fault.clone()));
        }
        let copy = self.connection_values(row);
        let copy = copy.map_err(|error| JobError::Refused(unusable(&self.path, &error).to_string()))?;
        let Some(copy) = copy else { return Ok(Taken::NotCopied) };
        let values = std::iter::once(Value::Integer(row)).chain(copy);
        match app.prepare_cached(&self.delete)?.execute(params_from_iter(values)) {
            Ok(1) => Ok(Taken::Yes),
            Ok(_) => Ok(Taken::Fault(format!(
                "it does not stand in {} as it stands in the log. Remedy: compare the two, and delete the wrong one",
                self.path.display()
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts what has left the log, in the same transaction: `to` is the newest version of each stream that has.
    pub fn count<'a>(
        &self,
        app: &Connection,
        events: u64,
        to: impl Iterator<Item = (&'a str, i64)>,
    ) -> Result<(), JobError> {
        let there = fs::metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if there != Some(self.inode) {
            return Err(JobError::Refused(format!(
                "the archive {} was replaced while events were moved; they stay. Remedy: see that it is the right one; the next run looks at it",
                self.path.display()
            )));
        }
        let sql = "UPDATE archive_file SET moved = moved + ?1 WHERE one = 1 AND id = ?2";
        if app.prepare_cached(sql)?.execute(params![events as i64, self.id])? != 1 {
            return Err(JobError::Refused(archive_file::anothers(&self.live, &self.path)));
        }
        let mut update = app.prepare_cached("UPDATE streams SET archived = max(archived, ?2) WHERE stream_id = ?1")?;
        for (stream, version) in to {
            update.execute(params![stream, version])?;
        }
        Ok(())
    }

    fn connection_values(&self, position: i64) -> rusqlite::Result<Option<Vec<Value>>> {
        values(&self.connection, &self.copy, position)
    }
}

fn values(connection: &Connection, sql: &str, key: i64) -> rusqlite::Result<Option<Vec<Value>>> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    statement.query_row([key], |row| (0..columns).map(|n| row.get(n)).collect()).optional()
}

/// The one that is there.
fn opened(live: &Path, path: &Path) -> Result<Connection, Failure> {
    let connection = open::appender(path, Durable::Full).map_err(|error| unusable(path, &error))?;
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'archive_of')";
    match connection.query_row(sql, [], |row| row.get(0)).map_err(|error| unusable(path, &error))? {
        true => Ok(connection),
        false => Err(Failure::Data(archive_file::anothers(live, path))),
    }
}

/// A new one, or one that was made and never used.
fn made(app: &Connection, live: &Path, path: &Path, witness: Option<&Witness>) -> Result<Connection, Failure> {
    let unmade = |error: rusqlite::Error| unusable(path, &error);
    if fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        let sql = "SELECT count(*), coalesce(max(name = 'archive_of'), 0) FROM sqlite_schema WHERE type = 'table'";
        let looked =
            open::visitor(path).and_then(|found| found.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))));
        match looked.map_err(unmade)? {
            (_, true) => return opened(live, path),
            (0, _) => {}
            (1.., false) => return Err(Failure::Data(archive_file::anothers(live, path))),
            (..0, _) => unreachable!("a count"),
        }
    }
    let connection = open::state_file(path).map_err(unmade)?;
    let sql = "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1";
    let table: String = app
        .query_row(sql, [ARCHIVE], |row| row.get(0))
        .map_err(|error| Failure::Unavailable(format!("{}: {error}", live.display())))?;
    let id = witness.map(|witness| witness.id.clone());
    let fill = |connection: &Connection| -> rusqlite::Result<()> {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(&format!("{ITS_OWN}; {table};"))?;
        let sql = "INSERT INTO archive_of VALUES (1, coalesce(?1, lower(hex(randomblob(16)))), 0, 0)";
        transaction.execute(sql, [id])?;
        transaction.commit()
    };
    fill(&connection).map_err(unmade)?;
    // Its name has to last as long as what is put into it.
    let folder = place::folder_of(&place::real(path));
    File::open(&folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Failure::Unavailable(format!("{} cannot be made durable: {error}", folder.display())))?;
    Ok(connection)
}

/// As the file names its archive: from its own folder where it lies in it, so that both can be put elsewhere together.
fn named(live: &Path, path: &Path) -> Result<String, Failure> {
    let (folder, path) = (place::folder_of(&place::real(live)), place::real(path));
    let named = path.strip_prefix(&folder).unwrap_or(&path);
    let named = named.to_str().ok_or_else(|| Failure::Data(format!("{}: the path is no UTF-8", path.display())))?;
    Ok(named.to_owned())
}

fn unusable(path: &Path, error: &rusqlite::Error) -> Failure {
    let what = format!("the archive {}: {error}. Nothing that is not in it has left the log", path.display());
    match fault::classify(error).0 {
        Kind::Corrupt => {
            Failure::Data(format!("{what}. Remedy: restore it, together with the file that events come from"))
        }
        Kind::Storage => {
            Failure::Unavailable(format!("{what}. Remedy: make room on its disk, or mend that; the next run goes on"))
        }
        _ => Failure::Unavailable(format!(
            "{what}. Remedy: see that it may be read and written, and that nobody holds it"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    #[test]
    fn log_and_archive_are_searched_and_merged() {
        let folder = tempfile::tempdir().unwrap();
        let (live, path) = (folder.path().join("a.db"), folder.path().join("old.db"));
        let app = open::state_file(&live).unwrap();
        app.execute_batch(&store::schema()).unwrap();
        let tell = |sql: &'static str, values: Vec<String>| {
            app.execute(sql, params_from_iter(&values)).unwrap();
            Ok(())
        };
        Vault::open(&app, &live, &path, tell).unwrap();
        let reader = open::reader(&live).unwrap();
        archive_file::attach(&reader, &live).unwrap();
        for sql in [store::sql::OF_STREAM, store::sql::OF_ALL, store::sql::BY_ID] {
            let mut statement = reader.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let nothing = vec![rusqlite::types::Null; statement.parameter_count()];
            let steps = statement.query_map(params_from_iter(nothing), |row| row.get(3)).unwrap();
            let steps: Vec<String> = steps.map(Result::unwrap).collect();
            let is_walk =
                |step: &String| step.starts_with("SCAN") || step.contains("TEMP B-TREE") || step.contains("CO-ROUTINE");
            assert!(
                !steps.iter().any(is_walk) && steps.iter().filter(|step| step.starts_with("SEARCH")).count() >= 5,
                "{steps:?}"
            );
        }
    }
}
