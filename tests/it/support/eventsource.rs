//! An application beside outboxd: its own connection, in WAL mode, with the tables of an eventsource-py release.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

/// Opens (and makes) the file as an application does.
#[expect(clippy::disallowed_methods, reason = "it plays an application, which opens its file by itself")]
pub fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    connection.execute_batch("PRAGMA synchronous = NORMAL").unwrap();
    connection
}

/// `tests/tools/eventsource_generations/NAME.sql`, and its rows where there are any.
pub fn make(path: &Path, generation: &str) -> Connection {
    let connection = open(path);
    connection.execute_batch(&generation_sql(&format!("{generation}.sql")).unwrap()).unwrap();
    if let Some(rows) = generation_sql(&format!("{generation}.rows.sql")) {
        connection.execute_batch(&rows).unwrap();
    }
    connection
}

fn generation_sql(file: &str) -> Option<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools/eventsource_generations");
    std::fs::read_to_string(folder.join(file)).ok()
}

/// Adds rows to G3's outbox: `(row, key)`; their event is `e-{row}`, their payload says the row.
pub fn enqueue(connection: &Connection, rows: &[(&str, &str)]) {
    let transaction = connection.unchecked_transaction().unwrap();
    for (row, key) in rows {
        connection
            .prepare_cached(
                "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at) \
                 VALUES (?1, 'e-' || ?1, 'Happened', ?2, 'Thing', '{\"payload\": {\"row\": \"' || ?1 || '\"}}', \
                 '2026-11-21T03:15:20.378836+00:00')",
            )
            .unwrap()
            .execute([row, key])
            .unwrap();
    }
    transaction.commit().unwrap();
}

/// Rows `000000`, `000001`, ... whose keys `k00`, `k01`, ... take turns.
pub fn enqueue_many(connection: &Connection, rows: usize, keys: usize) {
    let rows: Vec<(String, String)> = (0..rows).map(|n| (format!("{n:06}"), format!("k{:02}", n % keys))).collect();
    enqueue(connection, &rows.iter().map(|(row, key)| (row.as_str(), key.as_str())).collect::<Vec<_>>());
}

/// Adds one event to G3's log, in a transaction of its own.
pub fn append(connection: &Connection, n: usize) {
    let sql = "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
               VALUES ('e-' || ?1, 'k' || ?1, 'Thing', 'Happened', ?1, '2026-11-21T03:15:20+00:00', '{\"n\": ' || ?1 || '}')";
    connection.prepare_cached(sql).unwrap().execute([n as i64]).unwrap();
}

/// What the outbox says of a row: status, retries, last error, when it was published.
pub type RowState = (String, i64, Option<String>, Option<String>);

pub fn row_state(connection: &Connection, row: &str) -> RowState {
    let sql = "SELECT status, retry_count, last_error, published_at FROM event_outbox WHERE id = ?1";
    connection.query_row(sql, [row], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap()
}

pub fn count(connection: &Connection, what: &str) -> i64 {
    connection.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
}
