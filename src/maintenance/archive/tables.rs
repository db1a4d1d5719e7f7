//! The tables that events are moved between: one set of SQL for each schema that is known.

use rusqlite::{Connection, OptionalExtension, params};
use serde::de::IgnoredAny;

use crate::controls::{self, Protection};
use crate::maintenance::readers::{Limit, Why};
use crate::maintenance::snapshot::tables::{Schema, Stored, Stream};
use crate::source::fit::quoted;
use crate::sqlite::open;
use crate::store;

/// Where events are moved to, in each schema.
pub const ARCHIVE: &str = "archived_events";
/// Outbox rows in one look.
const PAGE: i64 = 2_000;
/// Events of a stream that are looked at in one transaction.
pub const HEADS: i64 = 200;

const FLIGHTDECKS: &str = "CREATE TABLE archived_events (id TEXT PRIMARY KEY, stream_id TEXT NOT NULL, version INTEGER NOT NULL, event_type TEXT NOT \
                           NULL, data TEXT NOT NULL, metadata TEXT NOT NULL, timestamp TEXT NOT NULL, archived_at TEXT NOT NULL)";

/// SQL that fits the file as it is.
#[derive(Debug)]
pub struct Tables {
    schema: Schema,
    /// `?1`, `?2` a stream and its type, `?3` the highest version.
    heads: String,
    first: String,
    newest: String,
    newest_archived: Option<String>,
    /// `?1` the row, `?2` the time of now.
    insert: String,
    /// `?1` the row: only where the archive has the same.
    delete: String,
    /// `?1` an event's id, `?2` outbox rows above it are not published.
    referred: Option<String>,
    /// eventsource-py's own checkpoints.
    projections: Option<String>,
    /// The lowest positions that rows of its outbox and its dead letters refer to.
    waiting: Vec<(Why, &'static str, String)>,
}

/// An event that may be moved, as far as that has to be known.
#[derive(Debug)]
pub struct Head {
    pub row: i64,
    /// `None`: nothing tells it.
    pub position: Option<i64>,
    /// `None`: it is no text.
    pub id: Option<String>,
    pub version: i64,
    pub time: Option<String>,
}

type Found<T> = rusqlite::Result<Result<T, String>>;

impl Tables {
    /// The tables, or what keeps events from being moved between them.
    pub fn of(schema: Schema, connection: &Connection) -> Found<Self> {
        if schema == Schema::Outboxd
            && let Some(missing) = store::sql::missing(connection)?
        {
            return Ok(Err(format!("there is no {missing}. Remedy: `outboxd init FILE` makes what is missing")));
        }
        if let Some(what) = schema.missing(connection)? {
            let remedy = "Remedy: let the application make its tables, or name the preset that these are";
            return Ok(Err(format!("{what}. {remedy}")));
        }
        let columns = match archive_columns(schema, connection)? {
            Ok(columns) => columns,
            Err(what) => return Ok(Err(what)),
        };
        let has = |table: &str| open::columns(connection, table).map(|columns| !columns.is_empty());
        let names: Vec<String> = open::columns(connection, "events")?.into_iter().map(|(name, _)| name).collect();
        let id = id_of(schema);
        let (stream, time, position) = match schema {
            Schema::Outboxd => ("stream_id = ?1 AND ?2 IS NOT NULL", "time", "position".to_owned()),
            Schema::EventsourcePy => {
                let is_old = !names.iter().any(|name| name == "global_position");
                let position = if is_old { "id" } else { "global_position" };
                ("aggregate_id = ?1 AND aggregate_type = ?2", "timestamp", position.to_owned())
            }
            Schema::Flightdeck => {
                let feed = "(SELECT f.position FROM outboxd_feed_events f WHERE f.key1 = events.id)";
                let position = if has("outboxd_feed_events")? { feed } else { "NULL" };
                ("stream_id = ?1 AND ?2 IS NOT NULL", "timestamp", position.to_owned())
            }
        };
        let listed: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        let listed = listed.join(", ");
        let same: Vec<String> = names.iter().map(|name| format!("a.{0} IS e.{0}", quoted(name))).collect();
        let (at, now) = match columns.iter().any(|name| name == "archived_at") && !names.contains(&"archived_at".into())
        {
            true => (", archived_at", ", ?2"),
            false => ("", ""),
        };
        let mut tables = Self {
            schema,
            heads: format!(
                "SELECT rowid, {position}, {id}, version, {time} FROM events WHERE {stream} AND version <= ?3 ORDER BY version LIMIT {HEADS}"
            ),
            first: format!("SELECT min(version) FROM events WHERE {stream}"),
            newest: format!("SELECT max(version) FROM events WHERE {stream}"),
            // FlightDeck's has no index that finds a stream.
            newest_archived: (schema != Schema::Flightdeck)
                .then(|| format!("SELECT max(version) FROM {ARCHIVE} WHERE {stream}")),
            insert: format!(
                "INSERT INTO {ARCHIVE} ({listed}{at}) SELECT {listed}{now} FROM events WHERE rowid = ?1 AND ?2 IS NOT NULL"
            ),
            delete: format!(
                "DELETE FROM events AS e WHERE rowid = ?1 AND EXISTS (SELECT 1 FROM {ARCHIVE} a WHERE {})",
                same.join(" AND ")
            ),
            referred: None,
            projections: None,
            waiting: Vec::new(),
        };
        match schema {
            Schema::Outboxd => {
                let sql = "SELECT EXISTS (SELECT 1 FROM outbox WHERE id = ?1 AND position > ?2)";
                tables.referred = Some(sql.to_owned());
            }
            Schema::EventsourcePy => tables.add_eventsource(connection, &position)?,
            Schema::Flightdeck => {}
        }
        Ok(Ok(tables))
    }

    fn add_eventsource(&mut self, connection: &Connection, position: &str) -> rusqlite::Result<()> {
        let there = |table: &str| -> rusqlite::Result<Vec<String>> {
            Ok(open::columns(connection, table)?.into_iter().map(|(name, _)| name).collect())
        };
        let checkpoints = there("projection_checkpoints")?;
        if !checkpoints.is_empty() {
            let has = |name: &str| checkpoints.iter().any(|column| column == name);
            let mut places = Vec::new();
            if has("position_token") {
                places.push("CASE WHEN json_valid(position_token) THEN position_token ->> '$.k[0]' END".to_owned());
            }
            if has("global_position") {
                places.push("c.global_position".to_owned());
            }
            for table in ["events", ARCHIVE] {
                places.push(format!("(SELECT e.{position} FROM {table} e WHERE e.event_id = c.last_event_id)"));
            }
            self.projections = Some(format!(
                "SELECT projection_name, CAST(coalesce({}, 0) AS INTEGER) FROM projection_checkpoints c ORDER BY 2 LIMIT 1",
                places.join(", ")
            ));
        }
        let lowest = |table: &str, status: &str| {
            format!(
                "SELECT min(e.{position}) FROM {table} t CROSS JOIN events e ON e.event_id = t.event_id WHERE t.status = '{status}'"
            )
        };
        let mut referred = Vec::new();
        for (table, ended, statuses, why, what) in [
            (
                "event_outbox",
                "published",
                ["pending", "failed"],
                Why::Outbox,
                "a row of event_outbox that is not published",
            ),
            (
                "dead_letter_queue",
                "resolved",
                ["failed", "retrying"],
                Why::Held,
                "a row of dead_letter_queue that is not resolved",
            ),
        ] {
            if there(table)?.is_empty() {
                continue;
            }
            referred.push(format!("EXISTS (SELECT 1 FROM {table} WHERE event_id = ?1 AND status <> '{ended}')"));
            self.waiting.extend(statuses.map(|status| (why, what, lowest(table, status))));
        }
        if !referred.is_empty() {
            self.referred = Some(format!("SELECT ({}) AND ?2 IS NOT NULL", referred.join(" OR ")));
        }
        Ok(())
    }

    /// The version of the first event that is not archived.
    pub fn first(&self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<i64>> {
        one(connection, &self.first, stream)
    }

    /// The newest version that is not archived.
    pub fn newest(&self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<i64>> {
        one(connection, &self.newest, stream)
    }

    /// The newest version that is archived (0: none), where an index tells it.
    pub fn newest_archived(&self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<i64>> {
        let Some(sql) = &self.newest_archived else { return Ok(None) };
        Ok(Some(one(connection, sql, stream)?.unwrap_or(0)))
    }

    /// The snapshot's version, and its size in bytes, which SQLite knows without reading it.
    pub fn snapshot(&self, connection: &Connection, stream: &Stream) -> rusqlite::Result<Option<(i64, i64)>> {
        let sql = match self.schema {
            Schema::Outboxd => {
                "SELECT version, octet_length(state) FROM snapshots WHERE stream_id = ?1 AND ?2 IS NOT NULL ORDER BY version DESC LIMIT 1"
            }
            Schema::EventsourcePy => {
                "SELECT version, octet_length(state) FROM snapshots WHERE aggregate_id = ?1 AND aggregate_type = ?2"
            }
            Schema::Flightdeck => {
                "SELECT version, octet_length(data) FROM snapshots WHERE stream_id = ?1 AND ?2 IS NOT NULL"
            }
        };
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_row(params![stream.id, stream.kind], |row| Ok((row.get(0)?, row.get(1)?))).optional()
    }

    /// The first events of a stream up to a version.
    pub fn heads(&self, connection: &Connection, stream: &Stream, upto: i64) -> rusqlite::Result<Vec<Head>> {
        let mut statement = connection.prepare_cached(&self.heads)?;
        let heads = statement.query_map(params![stream.id, stream.kind, upto], |row| {
            let text = |n: usize| row.get_ref(n).map(|value| value.as_str().ok().map(str::to_owned));
            Ok(Head { row: row.get(0)?, position: row.get(1)?, id: text(2)?, version: row.get(3)?, time: text(4)? })
        })?;
        heads.collect()
    }

    /// Whether something that is not published refers to it.
    pub fn is_referred_to(&self, connection: &Connection, id: &str, outbox: i64) -> rusqlite::Result<bool> {
        match &self.referred {
            Some(sql) => connection.prepare_cached(sql)?.query_row(params![id, outbox], |row| row.get(0)),
            None => Ok(false),
        }
    }

    pub fn copy(&self, connection: &Connection, row: i64, now: &str) -> rusqlite::Result<usize> {
        connection.prepare_cached(&self.insert)?.execute(params![row, now])
    }

    /// Takes it out of the log, if the archive has it as it is.
    pub fn delete(&self, connection: &Connection, row: i64) -> rusqlite::Result<usize> {
        let sql =
            if controls::is_off(Protection::Copied) { "DELETE FROM events WHERE rowid = ?1" } else { &self.delete };
        connection.prepare_cached(sql)?.execute([row])
    }

    /// How far eventsource-py's own projections have come.
    pub fn projections_limit(&self, connection: &Connection) -> rusqlite::Result<Limit> {
        let Some(sql) = &self.projections else { return Ok(Limit::none()) };
        let lowest = connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        Ok(lowest.map_or(Limit::none(), |(name, position): (String, i64)| {
            let by = format!("eventsource-py's projection {name}, which is at position {position}");
            Limit { position, why: Why::Consumer, by }
        }))
    }

    /// The same, and what its outbox and its dead letters refer to.
    pub fn foreign_limit(&self, connection: &Connection) -> rusqlite::Result<Limit> {
        let mut limit = self.projections_limit(connection)?;
        for (why, what, sql) in &self.waiting {
            let lowest: Option<i64> = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            if let Some(position) = lowest {
                let by = format!("{what} (its event is at position {position})");
                limit = limit.or(Limit { position: position - 1, why: *why, by });
            }
        }
        Ok(limit)
    }

    /// Events that rows of our own outbox above a position refer to: the lowest.
    pub fn unpublished(&self, connection: &Connection, outbox: i64) -> rusqlite::Result<Limit> {
        let (mut after, mut limit) = (outbox, Limit::none());
        if self.schema != Schema::Outboxd {
            return Ok(limit);
        }
        let sql = "SELECT o.position, (SELECT e.position FROM events e WHERE e.id = o.id) FROM outbox o WHERE o.position > ?1 ORDER BY 1 LIMIT ?2";
        let mut statement = connection.prepare(sql)?;
        loop {
            let rows = statement.query_map(params![after, PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(i64, Option<i64>)> = rows.collect::<Result<_, _>>()?;
            let Some((last, _)) = rows.last() else { return Ok(limit) };
            after = *last;
            for (row, position) in rows {
                let Some(position) = position else { continue };
                let by =
                    format!("row {row} of the outbox, which is not published (its event is at position {position})");
                limit = limit.or(Limit { position: position - 1, why: Why::Outbox, by });
            }
        }
    }
}

fn one(connection: &Connection, sql: &str, stream: &Stream) -> rusqlite::Result<Option<i64>> {
    connection.prepare_cached(sql)?.query_row(params![stream.id, stream.kind], |row| row.get(0))
}

fn id_of(schema: Schema) -> &'static str {
    match schema {
        Schema::Outboxd | Schema::Flightdeck => "id",
        Schema::EventsourcePy => "event_id",
    }
}

/// How many bytes it has, if the application can go on from it.
pub fn readable(schema: Schema, stored: &Stored) -> Result<(), String> {
    let state = stored.state.as_ref().map_err(String::clone)?;
    if schema != Schema::Flightdeck {
        return serde_json::from_str::<IgnoredAny>(state).map(drop).map_err(|error| error.to_string());
    }
    let list: Vec<IgnoredAny> = serde_json::from_str(state).map_err(|error| error.to_string())?;
    match list.len() as i64 == stored.version {
        true => Ok(()),
        false => Err(format!("it is a list of {} events, and its stream had {} by then", list.len(), stored.version)),
    }
}

/// The archive's columns, if whole events go into it.
fn archive_columns(schema: Schema, connection: &Connection) -> Found<Vec<String>> {
    let (events, archive) = (open::columns(connection, "events")?, open::columns(connection, ARCHIVE)?);
    if archive.is_empty() {
        let sql = match schema {
            Schema::Flightdeck => FLIGHTDECKS.to_owned(),
            Schema::Outboxd | Schema::EventsourcePy => {
                let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'events'";
                let sql: String = connection.query_row(sql, [], |row| row.get(0))?;
                let words = sql.replacen("events", ARCHIVE, 1).replace(" AUTOINCREMENT", "");
                words.split_whitespace().collect::<Vec<_>>().join(" ")
            }
        };
        return Ok(Err(format!("there is no table {ARCHIVE}, into which events could be moved. Remedy: {sql}")));
    }
    for (name, kind) in &events {
        match archive.iter().find(|(there, _)| there == name) {
            Some((_, there)) if there == kind => {}
            Some((_, there)) => {
                return Ok(Err(format!(
                    "the column {name} of events is of type {kind}, that of {ARCHIVE} of type {there}: a value could become another. Remedy: \
                     make the table anew with the columns of events"
                )));
            }
            None => {
                let column = quoted(name);
                return Ok(Err(format!(
                    "the table {ARCHIVE} has no column {name}, which would be lost of each event. Remedy: ALTER TABLE {ARCHIVE} ADD COLUMN {column} {kind}"
                )));
            }
        }
    }
    let wanted: Option<String> = connection
        .query_row(
            "SELECT name FROM pragma_table_info(?1) WHERE \"notnull\" AND dflt_value IS NULL AND name <> 'archived_at'
             AND name NOT IN (SELECT name FROM pragma_table_info('events')) LIMIT 1",
            [ARCHIVE],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(name) = wanted {
        return Ok(Err(format!(
            "the table {ARCHIVE} wants a value for its column {name}, and events has none. Remedy: give that column a default"
        )));
    }
    let id = id_of(schema);
    let is_unique: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) l WHERE l.\"unique\" AND NOT l.partial
         AND (SELECT group_concat(name) FROM pragma_index_info(l.name)) = ?2)",
        [ARCHIVE, id],
        |row| row.get(0),
    )?;
    if !is_unique {
        return Ok(Err(format!(
            "nothing keeps an event from standing in {ARCHIVE} twice. Remedy: CREATE UNIQUE INDEX {ARCHIVE}_{id} ON {ARCHIVE} ({id})"
        )));
    }
    let child: Option<String> = connection
        .query_row(
            "SELECT m.name FROM sqlite_schema m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table' AND f.\"table\" = 'events' COLLATE NOCASE LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(child) = child {
        return Ok(Err(format!(
            "the table {child} refers to events by a foreign key, which an event that is moved would break. Remedy: make {child} without it"
        )));
    }
    Ok(Ok(archive.into_iter().map(|(name, _)| name).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTSOURCE: &str = include_str!("../../../tests/tools/eventsource_generations/g3.sql");
    const FLIGHTDECK: &str = include_str!("../../../tests/fixtures/flightdeck.sql");
    const FEED: &str = "CREATE TABLE outboxd_feed_events (position INTEGER PRIMARY KEY AUTOINCREMENT, key1);
                        CREATE INDEX outboxd_feed_events_key ON outboxd_feed_events (key1);";

    fn made(schema: Schema) -> Connection {
        let connection = open::scratch().unwrap();
        let sql = match schema {
            Schema::Outboxd => store::schema(),
            Schema::EventsourcePy => EVENTSOURCE.to_owned(),
            Schema::Flightdeck => [FLIGHTDECK, FEED].concat(),
        };
        connection.execute_batch(&sql).unwrap();
        connection
    }

    fn walks(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![rusqlite::types::Null; statement.parameter_count()];
        let steps = statement.query_map(rusqlite::params_from_iter(nothing), |row| row.get(3)).unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        let is_walk =
            |step: &String| step.starts_with("SCAN") && !step.contains("CONSTANT ROW") || step.contains("TEMP B-TREE");
        steps.into_iter().filter(is_walk).collect()
    }

    /// What runs while the lock is held finds each row where it lies: no table is walked. The statement that is told for eventsource-py makes
    /// an archive of which that is true.
    #[test]
    fn what_is_moved_is_found_by_indexes_alone() {
        for (_, schema) in Schema::PRESETS {
            let connection = made(schema);
            if schema == Schema::EventsourcePy {
                let wanted = Tables::of(schema, &connection).unwrap().unwrap_err();
                connection.execute_batch(wanted.split_once("Remedy: ").unwrap().1).unwrap();
            }
            let tables = Tables::of(schema, &connection).unwrap().unwrap();
            let Tables { heads, first, newest, insert, delete, newest_archived, referred, .. } = &tables;
            let all = [Some(heads), Some(first), Some(newest), Some(insert), Some(delete), newest_archived.as_ref()];
            for sql in all.into_iter().chain([referred.as_ref()]).flatten() {
                assert_eq!(walks(&connection, sql), Vec::<String>::new(), "{schema:?}: {sql}");
            }
        }
    }

    #[test]
    fn a_snapshot_is_one_that_its_application_reads() {
        let stored = |state: &str| Stored { version: 2, state: Ok(state.to_owned()), made_by: String::new() };
        for (schema, state, is_read) in [
            (Schema::Outboxd, "{\"n\": 1}", true),
            (Schema::Outboxd, "{\"n\": 1", false),
            (Schema::EventsourcePy, "", false),
            (Schema::Flightdeck, "[1, {}]", true),
            (Schema::Flightdeck, "[1]", false),
            (Schema::Flightdeck, "{}", false),
        ] {
            assert_eq!(readable(schema, &stored(state)).is_ok(), is_read, "{schema:?}: {state}");
        }
    }
}
