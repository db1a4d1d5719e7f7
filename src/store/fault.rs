//! Why something was not appended, or cannot be read.

use super::event::{EVENTS_MAX, Expected};
use crate::source::archive_file;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is not there")]
    NotThere { path: String },
    #[error("{0}")]
    Premises(String),
    /// Of an archive in a file of its own, with place and remedy.
    #[error("{0}")]
    Archive(String),
    #[error("cannot open {path}")]
    Open { path: String, source: rusqlite::Error },
    #[error("{path} is no SQLite database, or a damaged one")]
    NoDatabase { path: String, source: rusqlite::Error },
    #[error("{path} is in journal mode {mode}; appends beside readers need WAL")]
    Journal { path: String, mode: String },
    #[error("{path} has no {missing}")]
    NoTables { path: String, missing: String },
}

/// Nothing of it was appended; except of [`AppendError::Unknown`] and [`AppendError::Ended`], where it is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    #[error("stream {stream} is {}, where {} was expected", told(*.actual), expectation(*.expected))]
    Conflict {
        stream: String,
        expected: Expected,
        /// `None`: it is not there.
        actual: Option<i64>,
    },
    #[error("stream {stream} is of type {actual}, not {asked}")]
    OtherType { stream: String, actual: String, asked: String },
    #[error("event {id} is there already, with another {difference} (stream {stream}, version {version})")]
    IdTaken { id: String, stream: String, version: i64, difference: &'static str },
    #[error(
        "event {there} is there already, and {missing} of the same append is not: an append is repeated as it was, or not at all"
    )]
    PartlyThere { there: String, missing: String },
    #[error("event {id} comes twice in it")]
    IdTwice { id: String },
    #[error("the outbox has a row {id} already")]
    OutboxIdTaken { id: String },
    #[error("stream {stream} has an event of version {version}, which its row in `streams` does not know of")]
    VersionTaken { stream: String, version: i64 },
    #[error("stream {stream} is at version {version}, and no {count} versions are left")]
    VersionsUsedUp { stream: String, version: i64, count: usize },
    #[error("the {field} of {id} is no valid JSON{object}, or nested more than 1,000 deep", object = if *.field == "data" { "" } else { " object" })]
    NotJson { id: String, field: &'static str },
    #[error("event {id} has {bytes} bytes, at most {most} are taken")]
    TooLarge { id: String, bytes: usize, most: usize },
    #[error("more than {EVENTS_MAX} events or 64 MiB in one transaction")]
    TooMuch,
    #[error("there are no events in it")]
    Empty,
    #[error("the {field} {what}")]
    Name { field: &'static str, what: String },
    /// The lock was held by others, or the queue full, for as long as the caller would wait.
    #[error("the file was locked by others, or its turn did not come, all the time that the append had")]
    Locked,
    #[error("SQLite refused it: {text} (code {code})")]
    Sqlite { text: String, code: i32 },
    /// COMMIT failed: what was written may be found there after a crash, or not.
    #[error("the disk failed at the commit: {text} (code {code}); whether it was appended is not known")]
    Unknown { text: String, code: i32 },
    #[error("the store has been closed, or its writer has ended; whether it was appended is not known")]
    Ended,
}

impl AppendError {
    /// Whether it is known that nothing was appended.
    pub fn is_known(&self) -> bool {
        !matches!(self, AppendError::Unknown { .. } | AppendError::Ended)
    }
}

/// Which of several appends failed; none was done, as far as that [is known](AppendError::is_known).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("append {}: {error}", .index + 1)]
pub struct AppendsError {
    pub index: usize,
    pub error: AppendError,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading failed")]
    Sqlite(#[source] sqlx::Error),
    /// Of an archive in a file of its own, with place and remedy.
    #[error("{0}")]
    Archive(String),
    #[error(
        "stream {stream} has no event of version {missing}, though {there} is there: it was deleted, or never written"
    )]
    Hole { stream: String, missing: i64, there: i64 },
    #[error("stream {stream} has two events of version {version}: {one} and {other}")]
    Doubled { stream: String, version: i64, one: String, other: String },
    #[error("position {position} stands for two events: {one} and {other}")]
    PositionTwice { position: i64, one: String, other: String },
    #[error("the snapshot of stream {stream} is of version {snapshot}, and its newest event of version {version}")]
    SnapshotAhead { stream: String, snapshot: i64, version: i64 },
    #[error("the snapshot of stream {stream} at version {version} is no valid JSON")]
    SnapshotCorrupt { stream: String, version: i64 },
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        match archive_file::said(&error) {
            Some(what) => ReadError::Archive(what),
            None => ReadError::Sqlite(error),
        }
    }
}

fn told(version: Option<i64>) -> String {
    version.map_or("not there".to_owned(), |version| format!("at version {version}"))
}

fn expectation(expected: Expected) -> String {
    match expected {
        Expected::Any => "anything".to_owned(),
        Expected::NoStream => "no stream".to_owned(),
        Expected::StreamExists => "a stream".to_owned(),
        Expected::Exact(version) => format!("version {version}"),
    }
}
