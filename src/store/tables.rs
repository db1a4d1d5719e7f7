//! Our tables in an application's file: how they are made.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::{Connection, SqliteConnection};

use crate::sqlite::pool;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// What `migrations/` make.
pub const TABLES: [&str; 6] = ["outbox", "streams", "events", "snapshots", "archived_events", "archive_file"];

/// Why the tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("cannot open {path}")]
    Open { path: String, source: sqlx::Error },
    #[error("cannot look into {path}")]
    Look { path: String, source: sqlx::Error },
    #[error("{path} already has a table {table} that outboxd did not make; nothing was changed")]
    Taken { path: String, table: String },
    #[error("cannot make the tables in {path}")]
    Migrate { path: String, source: sqlx::migrate::MigrateError },
}

/// Makes the tables, in one transaction a migration; a file that has them is left as it is. Sets WAL mode.
pub async fn init(path: &Path) -> Result<(), InitError> {
    let name = || path.display().to_string();
    let mut connection = pool::application(path).await.map_err(|source| InitError::Open { path: name(), source })?;
    if let Some(table) = taken(&mut connection).await.map_err(|source| InitError::Look { path: name(), source })? {
        return Err(InitError::Taken { path: name(), table });
    }
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    // The application may have a table `_sqlx_migrations` of its own.
    migrator.dangerous_set_table_name("outboxd_migrations");
    let migrated = migrator.run(&mut connection).await;
    migrated.map_err(|source| InitError::Migrate { path: name(), source })?;
    connection.close().await.map_err(|source| InitError::Open { path: name(), source })
}

/// What [`init`] runs.
pub fn schema() -> String {
    MIGRATIONS.iter().map(|migration| migration.sql.as_str()).collect()
}

/// One of our names that is taken by a table of somebody else's.
async fn taken(connection: &mut SqliteConnection) -> Result<Option<String>, sqlx::Error> {
    let ours: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'outboxd_migrations'")
        .fetch_one(&mut *connection)
        .await?;
    if ours > 0 {
        return Ok(None);
    }
    let sql = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') \
               AND name IN (SELECT value FROM json_each(?1)) ORDER BY name LIMIT 1";
    sqlx::query_scalar(sql).bind(serde_json::json!(TABLES).to_string()).fetch_optional(connection).await
}
