//! Asynchronous access for code that plays an application: the event store, `init`, the demo.
//!
//! The engine does not use it: its threads hold a statement for microseconds and a lock for milliseconds, and a hand-over between
//! threads in the middle of either would cost more than the work.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlitePool};

/// Opens a file as an application would: WAL, `synchronous=NORMAL`, a busy timeout; made when it is not there.
#[expect(clippy::disallowed_methods, reason = "this is the room that opens database files")]
pub async fn application(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    SqliteConnection::connect_with(&options).await
}

/// Connections that read a file that is there, and write nothing; each is opened when it is first needed.
#[expect(clippy::disallowed_methods, reason = "this is the room that opens database files")]
pub fn readers(path: &Path, most: u32) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .pragma("query_only", "ON")
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    SqlitePoolOptions::new().max_connections(most).test_before_acquire(false).connect_lazy_with(options)
}
