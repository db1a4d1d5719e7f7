//! The SQL over `events` and `archived_events`, which are read as one: the log first, then the archive, in one statement and so in one
//! snapshot. Where the archive is another file, `archived_events` is a view of the connection's own: [`crate::source::archive_file`].

use rusqlite::{Connection, OptionalExtension};

macro_rules! columns {
    () => {
        "position, id, stream_id, stream_type, version, type, data, metadata, time"
    };
}

/// What is read of an event, in this order.
pub const COLUMNS: &str = columns!();

/// `?1` stream, `?2` the lowest version.
pub const OF_STREAM: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM events WHERE stream_id = ?1 AND version >= ?2 UNION ALL SELECT ",
    columns!(),
    " FROM archived_events WHERE stream_id = ?1 AND version >= ?2 ORDER BY version, position"
);

/// `?1` the position behind which it begins, `?2` how many.
pub const OF_ALL: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM events WHERE position > ?1 UNION ALL SELECT ",
    columns!(),
    " FROM archived_events WHERE position > ?1 ORDER BY position LIMIT ?2"
);

/// The newest position.
pub const HEAD: &str = "SELECT max(coalesce((SELECT max(position) FROM events), 0), \
     coalesce((SELECT position FROM archived_events ORDER BY position DESC LIMIT 1), 0))";

/// `?1` id.
pub const BY_ID: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM events WHERE id = ?1 UNION ALL SELECT ",
    columns!(),
    " FROM archived_events WHERE id = ?1 LIMIT 1"
);

/// `?1` stream.
pub const STREAM: &str = "SELECT version, stream_type FROM streams WHERE stream_id = ?1";

/// `?1` the stream behind which it begins, `?2` how many.
pub const STREAMS: &str = "SELECT stream_id, stream_type, version, \
     (SELECT max(n.version) FROM snapshots n WHERE n.stream_id = s.stream_id) \
     FROM streams s WHERE stream_id > ?1 ORDER BY stream_id LIMIT ?2";

/// `?1` stream.
pub const SNAPSHOT: &str = "SELECT version, state, reducer_hash, time, json_valid(state) FROM snapshots WHERE stream_id = ?1 \
     ORDER BY version DESC LIMIT 1";

/// `streams` follows by a trigger.
pub const INSERT_EVENT: &str = "INSERT INTO events (id, stream_id, stream_type, version, type, data, metadata, time) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, coalesce(?8, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))";

pub const INSERT_MESSAGE: &str = "INSERT INTO outbox (id, stream_id, stream_type, type, key, payload, headers) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// What of our tables and triggers a file does not have.
pub fn missing(connection: &Connection) -> rusqlite::Result<Option<String>> {
    const OURS: [(&str, &str); 7] = [
        ("table", "outbox"),
        ("table", "streams"),
        ("table", "events"),
        ("table", "snapshots"),
        ("table", "archived_events"),
        ("trigger", "events_streams"),
        ("trigger", "events_are_new"),
    ];
    for (kind, name) in OURS {
        let sql = "SELECT 1 FROM sqlite_schema WHERE type = ?1 AND name = ?2";
        let found: Option<i64> = connection.query_row(sql, [kind, name], |row| row.get(0)).optional()?;
        if found.is_none() {
            return Ok(Some(format!("{kind} {name}")));
        }
    }
    // Somebody else's tables of the same names.
    Ok(connection
        .prepare(INSERT_EVENT)
        .and(connection.prepare(OF_ALL))
        .err()
        .map(|_| "events with the columns of ours".to_owned()))
}
