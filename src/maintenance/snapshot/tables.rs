//! The tables that snapshots are made of and written to: one set of SQL for each schema that is known.
//!
//! Streams are found by their versions and those of their snapshots, through indexes; no event is counted (`streams_are_found_by_indexes_alone`).

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::reducer::{Reducer, STATE_BYTES_MAX};
use super::slice;
use crate::clock;
use crate::controls::{self, Protection};
use crate::sqlite::open;

/// Which tables these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schema {
    Outboxd,
    EventsourcePy,
    Flightdeck,
}

/// Streams in a page.
pub const PAGE: i64 = 500;

/// A stream, and how far its snapshot has come.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stream {
    pub id: String,
    pub kind: String,
    pub version: i64,
    /// 0 = there is none.
    pub snapshot: i64,
}

/// A row of a page that is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// The stream, as far as it can be told.
    pub id: String,
    pub what: String,
}

/// Where a page ends, in SQLite's order of ids: text is not always UTF-8, and a BLOB comes behind all text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum After {
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl After {
    /// Before the first.
    pub fn nothing() -> Self {
        After::Text(Vec::new())
    }
}

impl ToSql for After {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            After::Text(bytes) => ValueRef::Text(bytes),
            After::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// A snapshot as it stands there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub version: i64,
    /// What is wrong with it, where it cannot be read.
    pub state: Result<String, String>,
    /// What it was made by: the reducer's hash, or the number of the state's schema.
    pub made_by: String,
}

/// A snapshot to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fresh {
    pub stream: Stream,
    pub version: i64,
    pub state: String,
    pub made_by: String,
    /// Of the last event.
    pub time: String,
}

impl Schema {
    pub const PRESETS: [(&str, Schema); 3] =
        [("outboxd", Schema::Outboxd), ("eventsource-py", Schema::EventsourcePy), ("flightdeck", Schema::Flightdeck)];

    /// Fields of an event's data that say which event it is, not what happened.
    pub fn envelope(self) -> &'static [&'static str] {
        match self {
            Schema::Outboxd | Schema::Flightdeck => &[],
            Schema::EventsourcePy => &[
                "event_id",
                "event_type",
                "event_version",
                "occurred_at",
                "aggregate_id",
                "aggregate_type",
                "aggregate_version",
                "tenant_id",
                "actor_id",
                "correlation_id",
                "causation_id",
                "metadata",
            ],
        }
    }

    /// What a snapshot of this reducer is marked with.
    pub fn mark(self, reducer: &Reducer, schema_version: u64) -> String {
        match self {
            Schema::Outboxd => reducer.hash(),
            Schema::EventsourcePy => schema_version.to_string(),
            Schema::Flightdeck => String::new(),
        }
    }

    fn tables(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Schema::Outboxd => &[
                ("streams", &["stream_id", "stream_type", "version"]),
                ("events", &["position", "id", "stream_id", "version", "type", "data", "metadata", "time"]),
                ("archived_events", &["position", "id", "stream_id", "version", "type", "data", "metadata", "time"]),
                ("snapshots", &["stream_id", "version", "state", "reducer_hash", "time"]),
            ],
            Schema::EventsourcePy => &[
                (
                    "events",
                    &["event_id", "aggregate_id", "aggregate_type", "event_type", "version", "timestamp", "payload"],
                ),
                ("snapshots", &["aggregate_id", "aggregate_type", "version", "schema_version", "state", "created_at"]),
            ],
            Schema::Flightdeck => &[
                ("streams", &["stream_id", "type", "version"]),
                ("events", &["id", "stream_id", "version", "event_type", "data", "metadata", "timestamp"]),
                ("snapshots", &["stream_id", "version", "data", "timestamp"]),
            ],
        }
    }

    /// A table or column that is missing.
    pub fn missing(self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        for (table, wanted) in self.tables() {
            let there = open::columns(connection, table)?;
            if there.is_empty() {
                return Ok(Some(format!("there is no table {table}")));
            }
            let has = |name: &str| there.iter().any(|(column, _)| column.eq_ignore_ascii_case(name));
            if let Some(column) = wanted.iter().find(|name| !has(name)) {
                return Ok(Some(format!("the table {table} has no column {column}")));
            }
        }
        Ok(None)
    }

    /// `?1` = behind this stream, `?2` = so many.
    pub fn streams_sql(self) -> &'static str {
        match self {
            Schema::Outboxd => {
                "SELECT s.stream_id, s.stream_type, s.version, (SELECT max(n.version) FROM snapshots n WHERE n.stream_id = s.stream_id)
                 FROM streams s WHERE s.stream_id > ?1 ORDER BY s.stream_id LIMIT ?2"
            }
            Schema::Flightdeck => {
                "SELECT s.stream_id, s.type, s.version, (SELECT n.version FROM snapshots n WHERE n.stream_id = s.stream_id)
                 FROM streams s WHERE s.stream_id > ?1 ORDER BY s.stream_id LIMIT ?2"
            }
            // It has no table of streams: each is found from the one before by a step in an index.
            Schema::EventsourcePy => {
                "WITH RECURSIVE ids (id, n) AS (
                   SELECT (SELECT min(aggregate_id) FROM events WHERE aggregate_id > ?1), 1
                   UNION ALL
                   SELECT (SELECT min(aggregate_id) FROM events WHERE aggregate_id > ids.id), n + 1 FROM ids WHERE id IS NOT NULL AND n < ?2),
                 streams (id, type) AS (
                   SELECT id, (SELECT min(aggregate_type) FROM events WHERE aggregate_id = ids.id) FROM ids WHERE id IS NOT NULL
                   UNION ALL
                   SELECT id, (SELECT min(aggregate_type) FROM events e WHERE e.aggregate_id = streams.id AND e.aggregate_type > streams.type)
                   FROM streams WHERE type IS NOT NULL)
                 SELECT s.id, s.type, (SELECT max(version) FROM events e WHERE e.aggregate_id = s.id AND e.aggregate_type = s.type),
                        (SELECT n.version FROM snapshots n WHERE n.aggregate_id = s.id AND n.aggregate_type = s.type)
                 FROM streams s WHERE s.type IS NOT NULL"
            }
        }
    }

    /// The next streams, in some order, behind the one where the last page ended; each with its place.
    pub fn page(
        self,
        connection: &Connection,
        after: &After,
    ) -> rusqlite::Result<Vec<(After, Result<Stream, Unreadable>)>> {
        let mut statement = connection.prepare_cached(self.streams_sql())?;
        let mut rows = statement.query(params![after, PAGE])?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            let place = match row.get_ref(0)? {
                ValueRef::Text(bytes) => After::Text(bytes.to_vec()),
                ValueRef::Blob(bytes) => After::Blob(bytes.to_vec()),
                // A column of text makes text of numbers.
                _ => continue,
            };
            let stream = || -> rusqlite::Result<Stream> {
                let snapshot = row.get::<_, Option<i64>>(3)?.unwrap_or(0);
                Ok(Stream { id: row.get(0)?, kind: row.get(1)?, version: row.get(2)?, snapshot })
            };
            let stream = stream().map_err(|error| {
                let (After::Text(id) | After::Blob(id)) = &place;
                let what = format!("what is said of it cannot be read: {error}. Remedy: mend that row, or delete it");
                Unreadable { id: String::from_utf8_lossy(id).into_owned(), what }
            });
            page.push((place, stream));
        }
        Ok(page)
    }

    /// The version of the stream's newest event; `None` when there is no such stream (any more).
    pub fn version(self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<i64>> {
        let sql = match self {
            Schema::Outboxd | Schema::Flightdeck => {
                "SELECT version FROM streams WHERE stream_id = ?1 AND ?2 IS NOT NULL"
            }
            Schema::EventsourcePy => "SELECT max(version) FROM events WHERE aggregate_id = ?1 AND aggregate_type = ?2",
        };
        let found = connection.prepare_cached(sql)?.query_row(params![stream.id, stream.kind], |row| row.get(0));
        Ok(found.optional()?.flatten())
    }

    pub fn stored(self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<Stored>> {
        let (state, from) = match self {
            Schema::Outboxd => (
                "state",
                "reducer_hash FROM snapshots WHERE stream_id = ?1 AND ?2 IS NOT NULL ORDER BY version DESC LIMIT 1",
            ),
            Schema::EventsourcePy => {
                ("state", "CAST(schema_version AS TEXT) FROM snapshots WHERE aggregate_id = ?1 AND aggregate_type = ?2")
            }
            Schema::Flightdeck => ("data", "'' FROM snapshots WHERE stream_id = ?1 AND ?2 IS NOT NULL"),
        };
        let sql = format!(
            "SELECT version, octet_length({state}), CASE WHEN octet_length({state}) <= {STATE_BYTES_MAX} THEN {state} END, {from}"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let found = statement.query_row(params![stream.id, stream.kind], |row| {
            let bytes = row.get::<_, Option<i64>>(1)?.unwrap_or(0);
            let state = match row.get_ref(2)? {
                ValueRef::Text(text) => {
                    str::from_utf8(text).map(str::to_owned).map_err(|error| format!("it is no UTF-8: {error}"))
                }
                _ if bytes > STATE_BYTES_MAX as i64 => {
                    Err(format!("it has {bytes} bytes, and {STATE_BYTES_MAX} are the most"))
                }
                other => Err(format!("it is no text, but {}", other.data_type())),
            };
            Ok(Stored { version: row.get(0)?, state, made_by: row.get(3)? })
        });
        found.optional()
    }

    /// Whether there is a table into which events are archived as they are.
    pub fn has_archive(self, connection: &Connection) -> rusqlite::Result<bool> {
        let archived = open::columns(connection, "archived_events")?;
        let has = |column: &(String, String)| archived.iter().any(|(name, _)| *name == column.0);
        Ok(self == Schema::Outboxd || open::columns(connection, "events")?.iter().all(has))
    }

    /// A stream's events (`?1`, `?2` = its type) behind a version (`?3`) up to one (`?4`), archived ones among them.
    pub fn events_sql(self, archive: bool) -> String {
        let of = |columns: &str, table: &str, stream: &str| {
            format!("SELECT {columns} FROM {table} WHERE {stream} AND version > ?3 AND version <= ?4")
        };
        let (columns, stream) = match self {
            Schema::Outboxd => (
                slice::columns("position", ["id", "type", "data", "metadata", "time"]),
                "stream_id = ?1 AND ?2 IS NOT NULL",
            ),
            Schema::EventsourcePy => (
                slice::columns("NULL", ["event_id", "event_type", "payload", "NULL", "timestamp"]),
                "aggregate_id = ?1 AND aggregate_type = ?2",
            ),
            Schema::Flightdeck => (
                slice::columns("NULL", ["id", "event_type", "data", "metadata", "timestamp"]),
                "stream_id = ?1 AND ?2 IS NOT NULL",
            ),
        };
        let live = of(&columns, "events", stream);
        let archived =
            if archive { format!(" UNION ALL {}", of(&columns, "archived_events", stream)) } else { String::new() };
        format!("{live}{archived} ORDER BY version LIMIT {}", slice::EVENTS_MAX)
    }

    /// Writes it, unless a newer one stands there by now, or the stream has gone; says whether. Runs in the writer's transaction.
    pub fn write(self, connection: &Connection, fresh: &Fresh) -> rusqlite::Result<bool> {
        let guard = !controls::is_off(Protection::NewerSnapshot);
        let Fresh { stream, version, state, made_by, time } = fresh;
        let written = match self {
            Schema::Outboxd => {
                let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) SELECT ?1, ?2, ?3, ?4
                           WHERE NOT (?5 AND EXISTS (SELECT 1 FROM snapshots WHERE stream_id = ?1 AND version > ?2))
                           AND EXISTS (SELECT 1 FROM streams WHERE stream_id = ?1 AND version >= ?2)
                           ON CONFLICT (stream_id, version) DO UPDATE SET state = excluded.state, reducer_hash = excluded.reducer_hash, time = excluded.time";
                let mut insert = connection.prepare_cached(sql)?;
                let written = insert.execute(params![stream.id, version, state, made_by, guard])?;
                if written > 0 {
                    let sql = "DELETE FROM snapshots WHERE stream_id = ?1 AND version <> ?2";
                    connection.prepare_cached(sql)?.execute(params![stream.id, version])?;
                }
                written
            }
            Schema::EventsourcePy => {
                let sql = "INSERT INTO snapshots (aggregate_id, aggregate_type, version, schema_version, state, created_at)
                           SELECT ?1, ?2, ?3, CAST(?4 AS INTEGER), ?5, ?6
                           WHERE EXISTS (SELECT 1 FROM events WHERE aggregate_id = ?1 AND aggregate_type = ?2 AND version >= ?3)
                           ON CONFLICT (aggregate_id, aggregate_type) DO UPDATE SET version = excluded.version,
                           schema_version = excluded.schema_version, state = excluded.state, created_at = excluded.created_at
                           WHERE NOT (?7 AND snapshots.version > excluded.version)";
                let now = clock::python_iso(clock::now_micros());
                let values = params![stream.id, stream.kind, version, made_by, state, now, guard];
                connection.prepare_cached(sql)?.execute(values)?
            }
            Schema::Flightdeck => {
                let sql = "INSERT INTO snapshots (stream_id, version, data, timestamp) SELECT ?1, ?2, ?3, ?4
                           WHERE EXISTS (SELECT 1 FROM streams WHERE stream_id = ?1 AND version >= ?2)
                           ON CONFLICT (stream_id) DO UPDATE SET version = excluded.version, data = excluded.data, timestamp = excluded.timestamp
                           WHERE NOT (?5 AND snapshots.version > excluded.version)";
                connection.prepare_cached(sql)?.execute(params![stream.id, version, state, time, guard])?
            }
        };
        Ok(written > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLIGHTDECK: &str = include_str!("../../../tests/fixtures/flightdeck.sql");
    const EVENTSOURCE: &str = include_str!("../../../tests/tools/eventsource_generations/g3.sql");

    fn made(schema: Schema) -> Connection {
        let connection = open::scratch().unwrap();
        let sql = match schema {
            Schema::Outboxd => crate::store::schema(),
            Schema::EventsourcePy => EVENTSOURCE.to_owned(),
            Schema::Flightdeck => FLIGHTDECK.to_owned(),
        };
        connection.execute_batch(&sql).unwrap();
        connection
    }

    fn plan(connection: &Connection, sql: &str, parameters: usize) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![rusqlite::types::Null; parameters];
        let steps = statement.query_map(rusqlite::params_from_iter(nothing), |row| row.get(3)).unwrap();
        steps.map(Result::unwrap).collect()
    }

    /// A page of streams costs a step in an index for each, and a batch of a stream's events is found where it lies: no table is walked.
    #[test]
    fn streams_are_found_by_indexes_alone() {
        for (_, schema) in Schema::PRESETS {
            let connection = made(schema);
            assert_eq!(schema.missing(&connection).unwrap(), None, "{schema:?}");
            // FlightDeck's archive is looked into only when an event is missing.
            let archive = schema.has_archive(&connection).unwrap() && schema != Schema::Flightdeck;
            let events = schema.events_sql(archive);
            for (sql, parameters) in [(schema.streams_sql(), 2), (&events, 4)] {
                let steps = plan(&connection, sql, parameters);
                let walks = |step: &&String| {
                    let is_table = ["events", "archived_events", "snapshots", " e", " n", " s"]
                        .iter()
                        .any(|name| step.ends_with(name));
                    step.starts_with("SCAN") && is_table && !step.contains("SCAN s")
                };
                assert!(!steps.is_empty() && steps.iter().find(walks).is_none(), "{schema:?}: {steps:#?}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let connection = open::scratch().unwrap();
        assert_eq!(Schema::Flightdeck.missing(&connection).unwrap().unwrap(), "there is no table streams");
        connection.execute_batch("CREATE TABLE streams (stream_id, type)").unwrap();
        assert_eq!(
            Schema::Flightdeck.missing(&connection).unwrap().unwrap(),
            "the table streams has no column version"
        );
    }

    /// More than a page, and aggregates of several types under one id.
    #[test]
    fn every_stream_is_found_once() {
        let connection = made(Schema::EventsourcePy);
        let sql = "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                   VALUES (?1, ?2, ?3, 'E', ?4, '', '{}')";
        let mut expected = Vec::new();
        connection.execute_batch("BEGIN").unwrap();
        for n in 0..1_200 {
            let id = format!("id-{n:04}");
            for kind in ["Cart", "Order"].iter().take(1 + n % 2) {
                for version in 1..=3 {
                    connection.execute(sql, params![format!("{n}{kind}{version}"), id, kind, version]).unwrap();
                }
                expected.push((id.clone(), (*kind).to_owned()));
            }
        }
        // Ids that are no text: each is told once, and keeps nobody else from being found.
        for (n, id) in ["CAST(x'69642D30303031FF' AS TEXT)", "x'FF'", "x'FFFF'"].into_iter().enumerate() {
            let sql = format!(
                "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                 VALUES ('odd{n}', {id}, 'Cart', 'E', 1, '', '{{}}')"
            );
            connection.execute(&sql, []).unwrap();
        }
        let (mut found, mut odd, mut after) = (Vec::new(), Vec::new(), After::nothing());
        loop {
            let page = Schema::EventsourcePy.page(&connection, &after).unwrap();
            let Some(last) = page.iter().map(|(place, _)| place.clone()).max() else { break };
            for (_, stream) in page {
                match stream {
                    Ok(stream) => {
                        assert_eq!((stream.version, stream.snapshot), (3, 0));
                        found.push((stream.id, stream.kind));
                    }
                    Err(unreadable) => odd.push(unreadable.id),
                }
            }
            after = last;
        }
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(odd, ["id-0001\u{fffd}", "\u{fffd}", "\u{fffd}\u{fffd}"]);
    }
}
