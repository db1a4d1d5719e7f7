//! `type = "vacuum"`: pages that are free go back to the file system.
//!
//! Invariants, named by tests in `tests/it/free_pages_go_back.rs`:
//! 1. `incremental`: the write lock is held for about a millisecond at a time (`the_application_hardly_notices_an_incremental_vacuum`).
//! 2. `full` happens in its window alone, is begun only when it is expected to end within the application's busy timeout, and is broken off when it takes
//!    longer than that allows; never where Litestream owns the checkpoints (`a_full_vacuum_happens_in_its_window_alone`, `litestream_is_left_in_charge`).
//! 3. Wherever a run ends, the file holds what it held (`a_crash_anywhere_leaves_a_whole_file`).
//! 4. In `tests/it/files_are_written_anew.rs`: `into` replaces a file only while nobody else has it, from before it is copied on, and only by one that holds the same
//!    (`a_file_that_somebody_has_open_is_not_written_anew`, `a_file_is_written_anew_and_holds_what_it_held`); whatever ends it, one of the two stands
//!    there (`a_crash_anywhere_leaves_the_old_file_or_the_one_written_anew`).

mod full;
mod into;
mod keys;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use self::full::Full;
use self::into::{Into, Swapped};
pub use self::keys::Vacuum as Keys;
use super::backup::replace;
use super::{Context, Failure, Job, Report, Stop};
use crate::clock;
use crate::controls::{self, Seam};
use crate::source::{self, inspection};
use crate::sqlite::writer::Writer;
use crate::sqlite::{holders, litestream, open, place};

/// What is begun before this is finished; then others have their turn.
const SLICE: Duration = Duration::from_millis(1);
/// Beside what a file that is written anew needs.
const SPARE_BYTES: u64 = 16 << 20;

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Vacuum {
    source: source::Settings,
    /// Per cent of the pages: below that nothing is done.
    min_free: u64,
    how: How,
}

#[derive(Debug)]
enum How {
    Incremental,
    Full(Full),
    Into(Into),
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
        let switches = match &self.how {
            How::Into(into) => into.switches(connection).map_err(|error| self.unread(&error))?,
            How::Incremental | How::Full(_) => false,
        };
        if !switches && (pages.free == 0 || pages.free_per_cent() < self.min_free) {
            return Ok(Err(Report(format!("nothing to do: {told}, and min_free is {} %", self.min_free))));
        }
        let path = &self.source.path;
        match &self.how {
            How::Incremental => self.incremental(connection).map(|()| Ok(told)),
            How::Full(full) => {
                not_beside_litestream(connection, path)?;
                full.may_begin(path, pages).map(|estimate| Ok(format!("{told}; {estimate}")))
            }
            How::Into(_) => {
                not_beside_litestream(connection, path)?;
                // The copy, and what stands in the -wal, which goes into the file of before.
                let wal = std::fs::metadata(place::beside(path, "-wal")).map_or(0, |meta| meta.len());
                has_room(path, pages.used_bytes() + wal + SPARE_BYTES)?;
                Ok(Ok(told))
            }
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
                 PRAGMA auto_vacuum = INCREMENTAL; VACUUM; or a job with mode = \"full\" or \"into\" and make_incremental = true",
            )),
        }
    }

    /// What a run that was killed has left.
    fn left(&self) -> Result<Vec<PathBuf>, Failure> {
        match &self.how {
            How::Into(_) => replace::tidy(&self.source.path, clock::now_micros()),
            How::Incremental | How::Full(_) => Ok(Vec::new()),
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

fn not_beside_litestream(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let name = path.display();
    match litestream::is_there(connection, path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::Data(format!(
            "{name}: Litestream is at work here (its tables, or its folder), and would lose track of a file that is written anew. Remedy: leave the job \
             out; or mode = \"incremental\""
        ))),
        Err(error) => Err(Failure::Unavailable(format!("{name}: {error}"))),
    }
}

fn has_room(path: &Path, needed: u64) -> Result<(), Failure> {
    let name = path.display();
    let free = place::free_bytes(&place::folder_of(&place::real(path)))
        .map_err(|error| Failure::Unavailable(format!("{name}: {error}")))?;
    if free >= needed {
        return Ok(());
    }
    Err(Failure::Unavailable(format!(
        "{name}: its folder has {free} bytes free, and a copy and a -wal of it may need {needed}. Remedy: make room there"
    )))
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
        let left = self
            .left()?
            .iter()
            .map(|left| format!("; a run that was ended had left {}", left.display()))
            .collect::<String>();
        let (connection, pages) = self.open()?;
        let told = match self.plan(&connection, pages)? {
            Ok(told) => told + &left,
            Err(Report(nothing)) => return Ok(Report(nothing + &left)),
        };
        let report = |after: Pages, what: String| {
            let given_back = pages.all.saturating_sub(after.all);
            Ok(Report(format!("{given_back} pages given back, {} bytes; {what}; {told}", given_back * pages.bytes)))
        };
        match &self.how {
            How::Incremental => {
                let given_back = self.give_back(context, &context.application(&self.source)?)?;
                Ok(Report(format!("{given_back} pages given back, {} bytes; {told}", given_back * pages.bytes)))
            }
            How::Full(full) => {
                // Nobody else of ours writes there, and no other daemon.
                let _writer = context.application(&self.source)?;
                let took = full.run(&self.source.path, context.stop())?;
                let after = Pages::of(&connection).map_err(|error| self.unread(&error))?;
                report(after, format!("the write lock was held for {took:.1?}"))
            }
            How::Into(into) => {
                drop(connection);
                let Swapped { pages, kept } = into.run(&self.source.path, context.stop())?;
                let kept = kept.display();
                report(pages, format!("the file of before is kept as {kept}: remove it when the application runs well"))
            }
        }
    }

    fn dry_run(&self, _: &Stop) -> Result<Report, Failure> {
        let (connection, pages) = self.open()?;
        let told = match self.plan(&connection, pages)? {
            Ok(told) => told,
            Err(nothing) => return Ok(nothing),
        };
        let holders = match &self.how {
            How::Into(_) => holders::of(&self.source.path),
            How::Incremental | How::Full(_) => Vec::new(),
        };
        let in_use = holders.iter().map(|holder| format!("; it cannot while {holder} has the file open"));
        Ok(Report(format!("would give back {} pages; {told}{}", pages.free, in_use.collect::<String>())))
    }

    fn tidy(&self) -> io::Result<Vec<PathBuf>> {
        self.left().map_err(io::Error::other)
    }
}
