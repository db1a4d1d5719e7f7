//! Asynchronous access for code that plays an application: the event store, `init`, the demo.
//!
//! The engine does not use it: its threads hold a statement for microseconds and a lock for milliseconds, and a hand-over between
//! threads in the middle of either would cost more than the work.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlitePool};

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

/// Connections that read a file that is there, and write nothing; each is opened when it is first needed. `prepare` says what a new one runs
/// first; one for which `is_current` answers 0 is opened anew.
#[expect(clippy::disallowed_methods, reason = "this is the room that opens database files")]
pub fn readers(
    path: &Path,
    most: u32,
    prepare: impl Fn() -> Result<Vec<String>, sqlx::Error> + Send + Sync + 'static,
    is_current: &'static str,
) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    let prepare = Arc::new(prepare);
    SqlitePoolOptions::new()
        .max_connections(most)
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let prepare = prepare.clone();
            Box::pin(async move {
                for sql in prepare()? {
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
                }
                sqlx::raw_sql("PRAGMA query_only = ON").execute(connection).await?;
                Ok(())
            })
        })
        .before_acquire(move |connection, _| Box::pin(sqlx::query_scalar(is_current).fetch_one(connection)))
        .connect_lazy_with(options)
}
