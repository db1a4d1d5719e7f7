//! `type = "integrity"`: whether a file is sound, looked at where that costs its application nothing.
//!
//! Invariants, named by tests in `tests/it/damage_is_found.rs`:
//! 1. A backup that was taken of the file in time was opened and checked: it counts, and nothing is done twice (`a_backup_in_time_counts`).
//! 2. The copy is gone when a run has ended, whatever ended it (`the_copy_goes_whatever_ends_the_run`).
//! 3. On the live file each table has a read transaction of its own, of a bounded length, and the longest is told (`the_live_file_is_looked_at_table_by_table`).

mod keys;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection;

pub use self::keys::Integrity as Keys;
use super::backup::copy::{self, Share};
use super::{Context, Failure, Job, Report, Stop};
use crate::clock;
use crate::controls::{self, Seam};
use crate::source;
use crate::source::fit::literal;
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::{open, place};
use crate::state::job_run;

/// Beside what the copy needs.
const SPARE_BYTES: u64 = 16 << 20;
/// SQLite asks so often, in steps of its machine, whether to go on.
const STEPS: i32 = 10_000;
const REMEDY: &str = "Remedy: stop the application, and restore the last backup; an index alone is mended by REINDEX";

/// What is asked of SQLite.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// All but whether indexes say what their tables say.
    Quick,
    Full,
}

/// Where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Copy,
    /// No table's look may take longer.
    Live(Duration),
}

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Integrity {
    source: source::Settings,
    on: On,
    check: Check,
    /// Backup jobs whose copies of this file are checked.
    backups: Vec<String>,
    /// So long one of them counts.
    period: Duration,
}

impl Check {
    fn pragma(self) -> &'static str {
        match self {
            Check::Quick => "quick_check",
            Check::Full => "integrity_check",
        }
    }

    /// What is wrong; nothing when all is well.
    fn ask(self, connection: &Connection, of: &str) -> rusqlite::Result<Option<String>> {
        let mut statement = connection.prepare(&format!("PRAGMA {}({of})", self.pragma()))?;
        let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok((lines != ["ok"]).then(|| lines.join("; ")))
    }
}

impl Integrity {
    fn unread(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.source.path.display()))
    }

    fn damaged(&self, what: &str) -> Failure {
        Failure::Data(format!("{} is damaged: {what}. {REMEDY}", self.source.path.display()))
    }

    /// A copy that a backup has made and checked, lately enough.
    fn backup_in_time(&self, context: &Context) -> Result<Option<String>, Failure> {
        let (backups, since) = (self.backups.clone(), clock::now_micros() - self.period.as_micros() as i64);
        context.state(move |state| {
            for backup in &backups {
                if let Some(run) = job_run::success(state, backup)?.filter(|run| run.began >= since) {
                    return Ok(Some(format!(
                        "the run of {backup} at {} opened and checked its copy of the file (integrity_check): it counts",
                        clock::iso(run.began)
                    )));
                }
            }
            Ok(None)
        })
    }

    fn scratch(&self) -> PathBuf {
        let name = self.source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        place::folder_of(&self.source.path).join(format!(".{name}-outboxd-integrity"))
    }

    fn on_a_copy(&self, stop: &Stop) -> Result<Report, Failure> {
        let path = &self.source.path;
        let bytes =
            open::visitor(path).and_then(|connection| open::size(&connection)).map_err(|error| self.unread(&error))?;
        let free = place::free_bytes(&place::folder_of(path)).map_err(|error| self.unread(&error))?;
        if free < bytes + SPARE_BYTES {
            return Err(self.unread(&format!(
                "its folder has {free} bytes free, and a copy needs {}. Remedy: make room there, or say on = \"live\"",
                bytes + SPARE_BYTES
            )));
        }
        self.tidy().map_err(|error| self.unread(&error))?;
        let scratch = self.scratch();
        // Nobody else may read it; SQLite takes an empty file for none.
        let made = File::options().write(true).create_new(true).mode(0o600).open(&scratch);
        made.map_err(|error| self.unread(&error))?;
        controls::reach(Seam::Integrity);
        let began = Instant::now();
        let found = copy::vacuum_into(path, &scratch, Share { before: 0.0, own: 1.0 }, stop).and_then(|()| {
            controls::reach(Seam::Integrity);
            self.look(stop)
        });
        self.tidy().map_err(|error| self.unread(&error))?;
        match found? {
            Some(what) => Err(self.damaged(&what)),
            None => Ok(Report(format!(
                "{} of a copy of {bytes} bytes: ok, in {:.1?}",
                self.check.pragma(),
                began.elapsed()
            ))),
        }
    }

    fn look(&self, stop: &Stop) -> Result<Option<String>, Failure> {
        let asked = stop.clone();
        let looked = open::still(&self.scratch()).and_then(|connection| {
            connection.progress_handler(STEPS, Some(move || asked.is_asked()))?;
            self.check.ask(&connection, "10")
        });
        looked.map_err(|error| if stop.is_asked() { Failure::Aborted } else { self.damaged(&error.to_string()) })
    }

    /// Each table in a read transaction of its own: while one is looked at, the `-wal` cannot be emptied.
    fn on_the_live_file(&self, most: Duration, stop: &Stop) -> Result<Report, Failure> {
        let connection = open::visitor(&self.source.path).map_err(|error| self.unread(&error))?;
        let sql =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
        let tables =
            || -> rusqlite::Result<Vec<String>> { connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect() };
        let tables = tables().map_err(|error| self.damaged(&error.to_string()))?;
        let (mut longest, mut wrong, mut left) = (Duration::ZERO, Vec::new(), Vec::new());
        for table in &tables {
            let (began, asked) = (Instant::now(), stop.clone());
            let is_over = move || asked.is_asked() || began.elapsed() > most;
            connection.progress_handler(STEPS, Some(is_over)).map_err(|error| self.unread(&error))?;
            match self.check.ask(&connection, &literal(table)) {
                Ok(found) => wrong.extend(found.map(|what| format!("table {table}: {what}"))),
                Err(_) if stop.is_asked() => return Err(Failure::Aborted),
                Err(error) if fault::classify(&error).0 == Kind::Stopped => left.push(table.as_str()),
                Err(error) if fault::classify(&error).0 == Kind::Corrupt => {
                    wrong.push(format!("table {table}: {error}"))
                }
                Err(error) => return Err(self.unread(&error)),
            }
            longest = longest.max(began.elapsed());
        }
        let told = format!(
            "{} of {} tables of the live file, the longest read transaction {longest:.1?} (free pages, and pages of no table, only a copy shows)",
            self.check.pragma(),
            tables.len() - left.len()
        );
        if !wrong.is_empty() {
            return Err(self.damaged(&wrong.join("; ")));
        }
        match left.as_slice() {
            [] => Ok(Report(format!("{told}: ok"))),
            left => Err(self.unread(&format!(
                "{told}; {} took longer than read_max and is not checked. Remedy: raise it, or look at a copy (on = \"copy\")",
                left.join(", ")
            ))),
        }
    }
}

impl Job for Integrity {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        match self.on {
            On::Live(most) => self.on_the_live_file(most, context.stop()),
            On::Copy => match self.backup_in_time(context)? {
                Some(told) => Ok(Report(told)),
                None => self.on_a_copy(context.stop()),
            },
        }
    }

    fn tidy(&self) -> io::Result<Vec<PathBuf>> {
        let scratch = self.scratch();
        match fs::remove_file(&scratch) {
            Ok(()) => Ok(vec![scratch]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
