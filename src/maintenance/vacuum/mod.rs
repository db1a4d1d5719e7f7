//! `type = "vacuum"`: pages that are free go back to the file system.
//!
//! Invariants, named by tests in `tests/it/free_pages_go_back.rs`:
//! 1. `incremental`: the write lock is held for about a millisecond at a time (`the_application_hardly_notices_an_incremental_vacuum`).
//! 2. `full` happens in its window alone, is begun only when it is expected to end within the application's busy timeout, and is broken off when it takes
//!    longer than that allows; never where Litestream owns the checkpoints (`a_full_vacuum_happens_in_its_window_alone`, `litestream_is_left_in_charge`).
//! 3. Wherever a run ends, the file holds what it held (`a_crash_anywhere_leaves_a_whole_file`).

mod full;
mod keys;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection;

pub use self::full::Full;
pub use self::keys::Vacuum as Keys;
use super::{Context, Failure, Job, Report, Stop};
use crate::controls::{self, Seam};
use crate::source::{self, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::Writer;

/// What is begun before this is finished; then others have their turn.
const SLICE: Duration = Duration::from_millis(1);

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Vacuum {
    source: source::Settings,
    /// Per cent of the pages: below that nothing is done.
    min_free: u64,
    /// `None`: incremental.
    full: Option<Full>,
}

/// A file's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    pub all: u64,
    pub free: u64,
    pub bytes: u64,
}

impl Pages {
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
        connection.query_row(sql, [], |row| {
            let number = |n: usize| row.get::<_, i64>(n).map(|number| number as u64);
            Ok(Self { all: number(0)?, free: number(1)?, bytes: number(2)? })
        })
    }

    fn free_per_cent(self) -> u64 {
        100 * self.free / self.all.max(1)
    }

    fn free_bytes(self) -> u64 {
        self.free * self.bytes
    }

    fn used_bytes(self) -> u64 {
        (self.all - self.free) * self.bytes
    }
}

impl Vacuum {
    fn unread(&self, error: &rusqlite::Error) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.source.path.display()))
    }

    fn refused(&self, what: impl std::fmt::Display) -> Failure {
        Failure::Data(format!("{}: {what}", self.source.path.display()))
    }

    fn open(&self) -> Result<(Connection, Pages), Failure> {
        let connection = open::visitor(&self.source.path).map_err(|error| self.unread(&error))?;
        let finding = inspection::journal(&connection, &self.source.path).map_err(|error| self.unread(&error))?;
        if let Some(finding) = finding {
            return Err(Failure::Data(finding.to_string()));
        }
        let pages = Pages::of(&connection).map_err(|error| self.unread(&error))?;
        Ok((connection, pages))
    }

    /// What is to be done; nothing when too little is free.
    fn plan(&self, connection: &Connection, pages: Pages) -> Result<Result<String, Report>, Failure> {
        let told = format!(
            "{} of {} pages are free ({} %, {} bytes)",
            pages.free,
            pages.all,
            pages.free_per_cent(),
            pages.free_bytes()
        );
        if pages.free == 0 || pages.free_per_cent() < self.min_free {
            return Ok(Err(Report(format!("nothing to do: {told}, and min_free is {} %", self.min_free))));
        }
        match &self.full {
            Some(full) => {
                full.may_begin(&self.source.path, connection, pages).map(|estimate| Ok(format!("{told}; {estimate}")))
            }
            None => self.incremental(connection).map(|()| Ok(told)),
        }
    }

    /// Whether SQLite keeps the books that giving back single pages takes.
    fn incremental(&self, connection: &Connection) -> Result<(), Failure> {
        let mode: i64 =
            connection.query_row("PRAGMA auto_vacuum", [], |row| row.get(0)).map_err(|error| self.unread(&error))?;
        match mode {
            2 => Ok(()),
            1 => Err(self.refused("auto_vacuum is FULL: SQLite gives pages back at every commit by itself. Remedy: leave the job out")),
            _ => Err(self.refused(
                "auto_vacuum is NONE, and without it single pages cannot be given back. Remedy: once, while the application is stopped, \
                 PRAGMA auto_vacuum = INCREMENTAL; VACUUM; or a job with mode = \"full\" and make_incremental = true",
            )),
        }
    }

    /// Gives pages back, a few at a time, until none is free.
    fn give_back(&self, context: &Context, writer: &Writer) -> Result<u64, Failure> {
        let mut given_back = 0;
        loop {
            context.go_on()?;
            // It may be called again when the transaction is undone: what was told last counts.
            match writer.work(|connection| Ok(slice(connection)?)) {
                Ok(0) => return Ok(given_back),
                Ok(freed) => given_back += freed,
                Err(error) => return Err(Failure::Unavailable(format!("{}: {error}", self.source.path.display()))),
            }
        }
    }
}

/// Runs in the writer's transaction; says how many pages went.
fn slice(connection: &Connection) -> rusqlite::Result<u64> {
    let began = Instant::now();
    let free = || connection.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get::<_, i64>(0));
    let before = free()?;
    let mut left = before;
    while left > 0 && began.elapsed() < SLICE {
        // It frees a page with each step, and so has to be stepped to its end.
        let mut statement = connection.prepare_cached("PRAGMA incremental_vacuum(16)")?;
        let mut steps = statement.query([])?;
        while steps.next()?.is_some() {}
        drop(steps);
        controls::reach(Seam::Vacuum);
        let now = free()?;
        if now == left {
            break;
        }
        left = now;
    }
    Ok((before - left).max(0) as u64)
}

impl Job for Vacuum {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let (connection, pages) = self.open()?;
        let told = match self.plan(&connection, pages)? {
            Ok(told) => told,
            Err(nothing) => return Ok(nothing),
        };
        // Nobody else of ours writes there, and no other daemon.
        let writer = context.application(&self.source)?;
        match &self.full {
            None => {
                let given_back = self.give_back(context, &writer)?;
                Ok(Report(format!("{given_back} pages given back, {} bytes; {told}", given_back * pages.bytes)))
            }
            Some(full) => {
                let took = full.run(&self.source.path, context.stop())?;
                let after = Pages::of(&connection).map_err(|error| self.unread(&error))?;
                let given_back = pages.all.saturating_sub(after.all);
                Ok(Report(format!(
                    "{given_back} pages given back, {} bytes; the write lock was held for {took:.1?}; {told}",
                    given_back * pages.bytes
                )))
            }
        }
    }

    fn dry_run(&self, _: &Stop) -> Result<Report, Failure> {
        let (connection, pages) = self.open()?;
        Ok(match self.plan(&connection, pages)? {
            Ok(told) => Report(format!("would give back {} pages; {told}", pages.free)),
            Err(nothing) => nothing,
        })
    }
}
