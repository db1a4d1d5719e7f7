//! The event store: our own tables in an application's file, and how events are appended to and read from them.
//!
//! The tables (`migrations/`) are the application's from then on: plain SQL inserts from any language are enough, relays only read them.
//! [`EventStore`] is for applications in Rust, and stands behind `outboxd events`.
//!
//! Invariants, each named by a test in `tests/it/event_store`:
//! 1. An append is whole or not at all, whatever becomes of others in its transaction and of the process ([`writer`]).
//! 2. Who is told of an append finds it in the file; who is told of an error knows that nothing of it was done, or that this is not known.
//! 3. The same event appended again is answered as it was the first time, and stands there once ([`apply`]).
//! 4. An event is read where it is, in the log or in the archive, and a move meanwhile hides none ([`read`]).
//! 5. A stream is read without a hole or a doubled version, or not at all ([`merge`]).
//!
//! It moves nothing to the archive and takes no snapshots; the SQL that reads both tables as one is in [`sql`].
//! How it fails: [`fault`]. Where to start reading: [`apply`].

mod apply;
pub mod event;
pub mod fault;
pub mod merge;
mod read;
pub mod sql;
mod tables;
mod writer;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::source::archive_file;
use crate::sqlite::fault as sqlite_fault;
use crate::sqlite::fault::Kind;
use crate::sqlite::open::{self, Durable};
use crate::sqlite::premises::{self, Finding, Use};
use event::{Append, Appended, State, StoredEvent};
use fault::{AppendError, AppendsError, OpenError, ReadError};
pub use read::Reader;
pub use tables::{InitError, TABLES, init, schema};
use writer::Writer;

/// How a store is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// `Normal`: a power cut, not a crash, may undo the last appends (WAL, `synchronous=NORMAL`). `Full`: none that was answered.
    pub durable: Durable,
    /// Of data and metadata together; larger ones are refused, since a relay would not carry them either.
    pub event_bytes_max: usize,
    pub allow_network_filesystem: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { durable: Durable::Normal, event_bytes_max: 16 << 20, allow_network_filesystem: false }
    }
}

/// A file's event store. Clones are of the same one: they share its writer and its readers.
#[derive(Clone, Debug)]
pub struct EventStore {
    writer: Writer,
    reader: Reader,
    options: Options,
}

impl EventStore {
    /// Opens the tables that [`init`] has made.
    pub async fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let opened = || open::appender(path, options.durable);
        let connection = checked(path, Use::Write, options.allow_network_filesystem, opened)?;
        // From now on each caller says how long he waits.
        let no_longer = connection.busy_timeout(Duration::ZERO);
        let guarded = no_longer.and_then(|()| archive_file::guard_ids(&connection));
        guarded.map_err(|source| OpenError::Open { path: path.display().to_string(), source })?;
        Ok(Self { writer: Writer::start(connection, path), reader: Reader::of(path), options })
    }

    /// Appends events to a stream, in the order of calls; answered when they are committed. `within` is how long it may wait for its
    /// turn and for the lock. A future that is dropped before its turn has come does nothing.
    pub async fn append(&self, append: Append, within: Duration) -> Result<Appended, AppendError> {
        let mut done = self.append_all(vec![append], within).await.map_err(|error| error.error)?;
        Ok(done.pop().expect("one append has one answer"))
    }

    /// Several appends, to several streams, in one transaction: all of them or none. Later ones see earlier ones.
    pub async fn append_all(&self, appends: Vec<Append>, within: Duration) -> Result<Vec<Appended>, AppendsError> {
        event::validate(&appends, self.options.event_bytes_max)?;
        self.writer.append(appends, Instant::now() + within).await
    }

    /// What reads it, on connections of its own.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    pub async fn load(&self, stream: &str, from: i64) -> Result<Vec<StoredEvent>, ReadError> {
        self.reader.load(stream, from).await
    }

    pub async fn read_all(&self, after: i64, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        self.reader.read_all(after, limit).await
    }

    pub async fn state(&self, stream: &str) -> Result<Option<State>, ReadError> {
        self.reader.state(stream).await
    }

    /// Ends it; what is queued is appended first. Clones keep it open until they go.
    pub async fn close(self) {
        let Self { writer, reader, .. } = self;
        // Clones read until they go.
        writer.ended().await;
        reader.close().await;
    }
}

/// The connection, if the file is one of ours and nothing is wrong with its place.
fn checked(
    path: &Path,
    usage: Use,
    allow_network_filesystem: bool,
    open: impl FnOnce() -> rusqlite::Result<rusqlite::Connection>,
) -> Result<rusqlite::Connection, OpenError> {
    let name = || path.display().to_string();
    if !path.exists() {
        return Err(OpenError::NotThere { path: name() });
    }
    let findings = premises::of_file(path, usage, allow_network_filesystem);
    if let Some(refusal) = findings.into_iter().find(Finding::is_refusal) {
        return Err(OpenError::Premises(refusal.to_string()));
    }
    let unopened = |source: rusqlite::Error| match sqlite_fault::classify(&source).0 {
        Kind::Corrupt => OpenError::NoDatabase { path: name(), source },
        _ => OpenError::Open { path: name(), source },
    };
    let connection = open().map_err(unopened)?;
    let mode = open::journal_mode(&connection).map_err(unopened)?;
    if mode != "wal" {
        return Err(OpenError::Journal { path: name(), mode });
    }
    if let Some(missing) = sql::missing(&connection).map_err(unopened)? {
        return Err(OpenError::NoTables { path: name(), missing });
    }
    match archive_file::attach(&connection, path) {
        Ok(()) => Ok(connection),
        Err(archive_file::Fault::Sqlite(error)) => Err(unopened(error)),
        Err(archive_file::Fault::Unfit(what)) => Err(OpenError::Archive(what)),
    }
}
