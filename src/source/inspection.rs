//! What is wrong with a source's files, told with evidence and remedy: the one place that a start, `check`, commands and `/readyz` ask.
//!
//! What is wrong with its tables is told by [`super::fit`], in the same words.

use std::path::Path;

use rusqlite::Connection;

use super::reader::Halt;
use super::{Settings, StatePlace};
use crate::sqlite::open;
use crate::sqlite::premises::{self, Finding, Use};

/// The first SQLite whose checkpoints do not damage a file that others write at that moment (the WAL-reset bug, 3.7.0 to 3.51.2).
const SAFE_SQLITE: u32 = 3_051_003;

impl From<Finding> for Halt {
    fn from(finding: Finding) -> Self {
        Halt::new(finding.to_string())
    }
}

/// Before anything is opened: places, rights, file systems. A file that is not there yet is waited for.
pub fn before_opening(source: &Settings) -> Vec<Finding> {
    let allow = source.allow_network_filesystem;
    match source.state {
        StatePlace::Inside => premises::of_file(&source.path, Use::Write, allow),
        _ => premises::of_file(&source.path, Use::Read, allow).into_iter().chain(of_state(source)).collect(),
    }
}

/// The same without the file system that the file lies on.
pub fn rights_before_opening(source: &Settings) -> Vec<Finding> {
    match source.state {
        StatePlace::Inside => premises::rights_of_file(&source.path, Use::Write),
        _ => premises::rights_of_file(&source.path, Use::Read).into_iter().chain(of_state(source)).collect(),
    }
}

fn of_state(source: &Settings) -> Vec<Finding> {
    match source.path.exists() {
        true => premises::of_own(&source.state_path(), source.allow_network_filesystem),
        false => Vec::new(),
    }
}

/// What keeps it from being opened, if anything does.
pub fn refusal(source: &Settings) -> Option<Finding> {
    before_opening(source).into_iter().find(Finding::is_refusal)
}

/// The journal mode, which can also be switched later.
pub fn journal(connection: &Connection, path: &Path) -> rusqlite::Result<Option<Finding>> {
    let mode = open::journal_mode(connection)?;
    Ok((mode != "wal").then(|| {
        let evidence = format!(
            "{} is in journal mode {mode}; outboxd reads files in WAL mode only (otherwise every read would lock the application out)",
            path.display()
        );
        Finding::refusal(evidence, "in the application, PRAGMA journal_mode = WAL; then `outboxd resume`")
    }))
}

/// A file that SQLite's own releases could damage.
pub fn old_library(connection: &Connection, path: &Path) -> rusqlite::Result<Option<Finding>> {
    Ok(open::last_library(connection)?.filter(|version| (1..SAFE_SQLITE).contains(version)).map(|version| {
        let (major, minor, patch) = (version / 1_000_000, version / 1_000 % 1_000, version % 1_000);
        let evidence = format!(
            "{} was last written by SQLite {major}.{minor}.{patch}, of the versions before 3.51.3 whose checkpoints can, rarely, damage a file in \
             WAL mode that two connections write (the WAL-reset bug)",
            path.display()
        );
        Finding::warning(evidence, "give the application SQLite 3.51.3 or later")
    }))
}
