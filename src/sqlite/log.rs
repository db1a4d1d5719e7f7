//! How far an application's checkpoints have come with its `-wal`, and how a reader keeps out of their way.
//!
//! An application checkpoints behind the commit that makes the `-wal` 1,000 pages long (SQLite's default). What a reader began with is not
//! copied past, and while anything is missing each further commit tries again, with a sync of its own: beside a reader that reads without a
//! pause, a few hundred in turn.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::controls::{self, Protection};

/// From this length on SQLite checkpoints at every commit, by default.
pub const DUE_PAGES: i64 = 1_000;
/// So long before that it is waited for: some commits, of which a batch may miss one or two.
const EARLY_PAGES: i64 = 12;
/// A commit is waited for no longer: a sync on a slow disk, and some commits.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// How long a reader goes on after a wait, as a multiple of it: where it was good for something, and where it was in vain (somebody else reads
/// for long, say).
const WORK_FACTOR: u32 = 1;
const WORK_FACTOR_IN_VAIN: u32 = 9;
const LOOK: Duration = Duration::from_micros(500);

/// Pages in the `-wal`, and those of them that stand in the database file, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    pages: i64,
    copied: i64,
}

impl Log {
    /// Reads where the `-wal` stands and moves nothing. Must not be called in a transaction.
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare_cached("PRAGMA wal_checkpoint = NOOP")?;
        statement.query_row([], |row| Ok(Self { pages: row.get(1)?, copied: row.get(2)? }))
    }

    /// Pages that no checkpoint has copied yet.
    pub fn backlog(self) -> i64 {
        (self.pages - self.copied).max(0)
    }

    /// It has so many pages, and not all of them are copied.
    pub fn is_due(self, least: i64) -> bool {
        self.pages >= least && self.copied < self.pages
    }
}

/// Lets a checkpoint through that is due.
#[derive(Debug)]
pub struct GiveWay {
    not_before: Instant,
    /// Nobody came: the `-wal` stood so then, and is not waited for before it has moved.
    in_vain: Option<Log>,
}

impl Default for GiveWay {
    fn default() -> Self {
        Self { not_before: Instant::now(), in_vain: None }
    }
}

impl GiveWay {
    /// Called between two transactions of a reader that would go on at once.
    pub fn wait(&mut self, connection: &Connection) {
        let began = Instant::now();
        if began < self.not_before || controls::is_off(Protection::GiveWay) {
            return;
        }
        // Where it cannot be asked (a folder that is only read), there is nothing to wait for.
        let due = || Log::of(connection).ok().filter(|log| log.is_due(DUE_PAGES - EARLY_PAGES));
        let mut found = due();
        if found.is_none() || found == self.in_vain {
            return;
        }
        while found.is_some() && began.elapsed() < WAIT_MAX {
            thread::sleep(LOOK);
            found = due();
        }
        self.in_vain = found;
        let factor = if found.is_none() { WORK_FACTOR } else { WORK_FACTOR_IN_VAIN };
        self.not_before = Instant::now() + began.elapsed() * factor;
    }
}
