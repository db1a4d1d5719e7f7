//! Opening the file when it and the table are there, and seeing that they are still the same.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::Connection;

use super::{Desk, Halt, Open, ReadFault, Table};
use crate::controls::{self, Protection};
use crate::source::Settings;
use crate::source::checkpointed::Checkpointed;
use crate::source::fit::{self, Misfit};
use crate::source::inspection;
use crate::source::plan::Plan;
use crate::source::rows::Rows;
use crate::sqlite::open::{self, TimeLimit};
use crate::sqlite::{fault, premises, sizes};
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
        if let Some(refusal) = inspection::refusal(&self.settings) {
            return Err(refusal.into());
        }
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
                let needs_application = matches!(kind, fault::Kind::Permission | fault::Kind::CannotOpen);
                if let Some(why) = needs_application.then(|| premises::waits_for_application(&path)).flatten() {
                    self.wait_for(why);
                    return Ok(false);
                }
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
        for detail in Plan::of(connection, table.mapping())?.warnings {
            tracing::warn!(event = "slow_plan", source = %self.settings.name, %detail);
        }
        Ok(())
    }

    fn open_file(&self, path: &Path, inode: (u64, u64)) -> Result<Result<Open, Misfit>, ReadFault> {
        let connection = open::reader(path)?;
        let mut warnings = inspection::before_opening(&self.settings);
        warnings.extend(inspection::old_library(&connection, path)?);
        warnings.extend(sizes::advice(&connection, path));
        open::restrict(&connection)?;
        let limit = match self.settings.tables.iter().find(|table| !table.own_sql().is_empty()) {
            Some(table) => TimeLimit::of(&connection, table.sql_time_max)?,
            None => TimeLimit::none(),
        };
        let schema_version = open::schema_version(&connection)?;
        let mapping = match fit::mapping(&connection, &self.settings.tables)? {
            Ok(mapping) => mapping,
            Err(misfit) => return Ok(Err(misfit)),
        };
        if let Some(refusal) = inspection::journal(&connection, path)? {
            return Err(Halt::from(refusal).into());
        }
        let table = match mapping.rows {
            None => Table::Checkpointed(Checkpointed::new(mapping, self.care)),
            Some(_) => Table::Rows(Rows::new(&connection, mapping, self.excluded.clone(), limit.clone())?),
        };
        self.warn_of_plan(&connection, &table)?;
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        for detail in &warnings {
            tracing::warn!(event = "source_warning", source = %self.settings.name, %detail);
        }
        let (durable_version, served_version, headed_version) = (None, None, None);
        Ok(Ok(Open {
            connection,
            limit,
            table,
            inode,
            schema_version,
            warnings,
            durable_version,
            served_version,
            headed_version,
        }))
    }
}

/// Where the schema was changed: all that was looked at when the file was opened.
pub(super) fn check_schema(open: &mut Open, settings: &Settings) -> Result<(), ReadFault> {
    let schema_version = open::schema_version(&open.connection)?;
    if schema_version == open.schema_version || controls::is_off(Protection::Schema) {
        return Ok(());
    }
    // To prepare a statement takes the schema as this connection last saw it; to run one brings it up to date.
    open.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let before = open.table.mapping();
    let what = match fit::mapping(&open.connection, &settings.tables)? {
        Ok(now) if now.definition == before.definition && now.newest.is_some() == before.newest.is_some() => {
            open.schema_version = schema_version;
            return Ok(());
        }
        Ok(_) => "what is said of this source now means another table. Remedy: see what was changed".to_owned(),
        Err(Misfit::NoTable(_)) => format!("table {} is gone. Remedy: bring the table back", before.table),
        Err(Misfit::Unusable(what)) => what,
    };
    Err(Halt::new(format!(
        "{}: the schema was changed while it was read: {what}. Nothing was passed over; when it is as it should be, `outboxd resume`",
        settings.path.display()
    ))
    .into())
}
