//! A file that nobody else reads or writes: the proof of it, and that it stays so until it is let go of.
//!
//! In `locking_mode = EXCLUSIVE`, set before the first read, SQLite takes the whole file's lock and makes no `-shm`: whoever has the file in
//! WAL mode, in whatever container, has a lock that stands against it. A file that SQLite cannot read any more is locked whole by the same kind of lock.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rusqlite::Connection;
use rustix::fs::FlockOperation;

use super::fault::{self, Kind};
use super::open;

/// As long as it lives, nobody else reads or writes the file.
#[derive(Debug)]
pub struct Sole(How);

#[derive(Debug)]
enum How {
    Connection(Connection),
    /// SQLite says that it is no database, or a damaged one.
    File(#[expect(dead_code, reason = "closed, it would let go of the lock")] File),
}

#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    #[error("somebody has it locked")]
    Held,
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for SoleError {
    fn from(error: rusqlite::Error) -> Self {
        match fault::classify(&error).0 {
            Kind::Busy => SoleError::Held,
            _ => SoleError::Sqlite(error),
        }
    }
}

impl Sole {
    /// No connection of this process may have it open.
    pub fn take(path: &Path) -> Result<Self, SoleError> {
        // SQLite would remove the `-wal` of a file that was cut to nothing.
        if fs::metadata(path)?.len() == 0 {
            return Self::of_file(path);
        }
        match open::sole(path).map_err(SoleError::from) {
            Ok(connection) => Ok(Self(How::Connection(connection))),
            Err(SoleError::Sqlite(error)) if fault::classify(&error).0 == Kind::Corrupt => Self::of_file(path),
            Err(error) => Err(error),
        }
    }

    fn of_file(path: &Path) -> Result<Self, SoleError> {
        let file = File::options().read(true).write(true).open(path)?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(How::File(file))),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(SoleError::Held),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// The one that has it; `None`: SQLite cannot read it.
    pub fn connection(&self) -> Option<&Connection> {
        match &self.0 {
            How::Connection(connection) => Some(connection),
            How::File(_) => None,
        }
    }

    /// Writes what stands in the `-wal` into the file, so that the file is all of it. `false`: SQLite cannot, because the file is damaged.
    pub fn fold(&self) -> Result<bool, SoleError> {
        let How::Connection(connection) = &self.0 else { return Ok(false) };
        let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        match busy.map_err(SoleError::from) {
            Ok(false) => Ok(true),
            Ok(true) => Err(SoleError::Held),
            Err(SoleError::Sqlite(error)) if fault::classify(&error).0 == Kind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an application opens its file")]
mod tests {
    use super::*;
    use crate::sqlite::place::beside;

    fn application(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t (a)").unwrap();
        connection
    }

    /// fcntl's locks are a process's: the other one has to be another.
    fn another(path: &Path, sql: &str) -> bool {
        let script = "import sqlite3, sys\nsqlite3.connect(sys.argv[1], timeout=0).execute(sys.argv[2]).fetchall()";
        let mut python = std::process::Command::new("python3");
        python.args(["-c", script]).arg(path).arg(sql).stderr(std::process::Stdio::null());
        python.status().unwrap().success()
    }

    #[test]
    fn nobody_else_reads_it_and_its_wal_is_written_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let app = application(&path);
        app.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        app.execute_batch("INSERT INTO t VALUES (7)").unwrap();
        drop(app);
        let wal = || fs::metadata(beside(&path, "-wal")).map_or(0, |meta| meta.len());
        assert!(wal() > 0);
        let sole = Sole::take(&path).unwrap();
        assert!(!another(&path, "SELECT * FROM t"));
        assert!(sole.fold().unwrap());
        assert_eq!(wal(), 0);
        assert!(!another(&path, "SELECT * FROM t"));
        drop(sole);
        assert!(another(&path, "INSERT INTO t VALUES (8)"));
        let rows: i64 =
            Connection::open(&path).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert!(rows >= 1, "what stood in the -wal is there");
    }

    #[test]
    fn what_is_no_database_is_locked_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        for bytes in [&[0xa5; 8192][..], &[]] {
            fs::write(&path, bytes).unwrap();
            let sole = Sole::take(&path).unwrap();
            assert!(!sole.fold().unwrap());
            assert!(!another(&path, "CREATE TABLE x (a)"));
            drop(sole);
        }
    }
}
