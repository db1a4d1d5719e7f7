//! Opening the file when it and the table are there, and seeing that they are still the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::Connection;

use super::{Desk, Halt, Open, ReadFault, Table};
use crate::controls::{self, Protection};
use crate::source::checkpointed::Checkpointed;
use crate::source::fit::{self, Misfit};
use crate::source::plan::Plan;
use crate::source::rows::Rows;
use crate::sqlite::fault;
use crate::sqlite::open::{self, TimeLimit};
use crate::telemetry::metric;

impl Desk {
    pub(super) fn check_inode(&self) -> Result<(), Halt> {
        let Some(open) = &self.open else { return Ok(()) };
        if controls::is_off(Protection::Inode) {
            return Ok(());
        }
        let path = self.settings.path.display();
        match fs::metadata(&self.settings.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == open.inode => Ok(()),
            Ok(_) => Err(Halt::new(format!(
                "{path} was replaced by another file while it was read. Nothing was sent from the new one. Remedy: make sure that the \
                 application uses the new file, and that no -wal of the old one lies beside it; then `outboxd resume`"
            ))),
            Err(error) => Err(Halt::new(format!(
                "{path} is gone while it was read ({error}). Remedy: bring the file back, then `outboxd resume`"
            ))),
        }
    }

    /// Opens the file when it and the table are there.
    pub(super) fn try_open(&mut self) -> Result<bool, Halt> {
        let path = self.settings.path.clone();
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if self.seen => {
                return Err(Halt::new(format!(
                    "{} is gone: {error}. Remedy: bring the file back, then `outboxd resume`",
                    path.display()
                )));
            }
            Err(error) => {
                self.wait_for(format!("{} is not there yet ({error})", path.display()));
                return Ok(false);
            }
        };
        match self.open_file(&path, (meta.dev(), meta.ino())) {
            Ok(Ok(open)) => {
                // SQLite follows a symbolic link, and the `-wal` lies beside what it leads to.
                let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                self.wake.watch(&real);
                self.barrier.follow(&real);
                self.seen = true;
                self.open = Some(open);
                metric::source_ready(&self.settings.name, true);
                Ok(true)
            }
            Ok(Err(Misfit::NoTable(what))) if !self.seen => {
                self.wait_for(format!("{}: {what}", path.display()));
                Ok(false)
            }
            Ok(Err(Misfit::NoTable(what) | Misfit::Unusable(what))) => {
                Err(Halt::new(format!("{}: {what}", path.display())))
            }
            Err(ReadFault::Halt(halt)) => Err(halt),
            Err(ReadFault::Sqlite(error)) => {
                let (kind, code) = fault::classify(&error);
                let what = format!("{}: {error} (SQLite code {code})", path.display());
                match kind {
                    fault::Kind::Busy | fault::Kind::Storage | fault::Kind::CannotOpen => {
                        self.wait_for(what);
                        Ok(false)
                    }
                    fault::Kind::Permission => Err(Halt::new(format!(
                        "{what}. Remedy: run outboxd as the application's user, or make the folder setgid (2770) with a shared group"
                    ))),
                    fault::Kind::Corrupt => Err(Halt::new(format!(
                        "{what}: not a database, or damaged. Nothing was written to it. Remedy: restore it from a backup"
                    ))),
                    fault::Kind::Stopped => Err(self.stopped()),
                    fault::Kind::Sql => Err(Halt::new(format!(
                        "{what}. Remedy: compare what is said of this source with the application's tables; SQL of your own may only read"
                    ))),
                }
            }
        }
    }

    /// A look that costs more the longer the table is told once, with its remedy.
    fn warn_of_plan(&self, connection: &Connection, table: &Table) -> Result<(), ReadFault> {
        let mapping = match table {
            Table::Checkpointed(table) => table.mapping(),
            Table::Rows(table) => table.mapping(),
        };
        for detail in Plan::of(connection, mapping)?.warnings {
            tracing::warn!(event = "slow_plan", source = %self.settings.name, %detail);
        }
        Ok(())
    }

    fn open_file(&self, path: &Path, inode: (u64, u64)) -> Result<Result<Open, Misfit>, ReadFault> {
        let connection = open::reader(path)?;
        open::restrict(&connection)?;
        let limit = match self.settings.tables.iter().find(|table| !table.own_sql().is_empty()) {
            Some(table) => TimeLimit::of(&connection, table.sql_time_max)?,
            None => TimeLimit::none(),
        };
        let mapping = match fit::mapping(&connection, &self.settings.tables)? {
            Ok(mapping) => mapping,
            Err(misfit) => return Ok(Err(misfit)),
        };
        check_journal(&connection, path)?;
        let table = match mapping.rows {
            None => Table::Checkpointed(Checkpointed::new(mapping)),
            Some(_) => Table::Rows(Rows::new(&connection, mapping, self.excluded.clone(), limit.clone())?),
        };
        self.warn_of_plan(&connection, &table)?;
        Ok(Ok(Open {
            connection,
            limit,
            table,
            inode,
            durable_version: None,
            served_version: None,
            headed_version: None,
        }))
    }
}

pub(super) fn check_journal(connection: &Connection, path: &Path) -> Result<(), ReadFault> {
    let mode = open::journal_mode(connection)?;
    if mode == "wal" {
        return Ok(());
    }
    Err(ReadFault::Halt(Halt::new(format!(
        "{} is in journal mode {mode}; outboxd reads files in WAL mode only (otherwise every read would lock the application out). \
         Remedy: in the application, PRAGMA journal_mode = WAL; then `outboxd resume`",
        path.display()
    ))))
}
