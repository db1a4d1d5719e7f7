//! The events that did not get through and those that wait behind them: one table behind retry, dead letter and waiting.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::checkpoint;
use crate::clock::{self, Moment};
use crate::controls::{self, Seam};
use crate::event::{Position, RowKey};
use crate::retry;
use crate::sqlite::writer::JobError;

/// In a list, the type of a larger one is not looked for: all of them are read in one transaction.
const KIND_BYTES_MAX: i64 = 16 << 10;
/// Larger events are kept without their payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HeldState {
    /// Refused; is tried again at `next_attempt_at`.
    Retrying,
    /// Its attempts are spent: a dead letter.
    Dead,
    /// A dead letter that holds nothing.
    Skipped,
    /// Not tried: an earlier event of its key is held.
    Waiting,
}

impl HeldState {
    pub const ALL: [HeldState; 4] = [HeldState::Retrying, HeldState::Dead, HeldState::Skipped, HeldState::Waiting];

    pub fn as_str(self) -> &'static str {
        match self {
            HeldState::Retrying => "retrying",
            HeldState::Dead => "dead",
            HeldState::Skipped => "skipped",
            HeldState::Waiting => "waiting",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// One row of `outboxd_held`; the ordinal is given when it is inserted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldRow {
    pub key: Box<[u8]>,
    pub ordinal: i64,
    pub position: Position,
    pub row_key: Option<RowKey>,
    pub event_id: String,
    pub state: HeldState,
    pub attempts: u32,
    pub next_attempt_micros: Option<i64>,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub held_at: String,
    /// The event as an envelope.
    pub payload: Option<Vec<u8>>,
}

/// What an engine needs to know of a key that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldKey {
    pub key: Box<[u8]>,
    pub rows: u64,
    pub head: HeldState,
    /// When a retrying head is due.
    pub due: Option<Moment>,
    pub since_micros: i64,
}

const COLUMNS: &str =
    "key, ordinal, position, row_id, event_id, state, attempts, next_attempt_at, reason, detail, held_at, payload";

fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<HeldRow> {
    let state: String = row.get(5)?;
    Ok(HeldRow {
        key: row.get::<_, Vec<u8>>(0)?.into(),
        ordinal: row.get(1)?,
        position: Position(row.get(2)?),
        row_key: RowKey::of(row.get_ref(3)?),
        event_id: row.get(4)?,
        state: HeldState::parse(&state).expect("the table's CHECK admits these states only"),
        attempts: row.get(6)?,
        next_attempt_micros: row.get(7)?,
        reason: row.get(8)?,
        detail: row.get(9)?,
        held_at: row.get(10)?,
        payload: row.get(11)?,
    })
}

/// Adds the row behind all others of its key.
pub fn insert(connection: &Connection, consumer: &str, row: &HeldRow) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "INSERT INTO outboxd_held (consumer, key, ordinal, position, row_id, event_id, state, attempts, next_attempt_at, \
             reason, detail, held_at, payload) VALUES (:consumer, :key, \
             (SELECT coalesce(max(ordinal), 0) + 1 FROM outboxd_held WHERE consumer = :consumer AND key = :key), \
             :position, :row_id, :event_id, :state, :attempts, :next, :reason, :detail, :held_at, :payload)",
        )?
        .execute(named_params! {
            ":consumer": consumer,
            ":key": &row.key[..],
            ":position": row.position.0,
            ":row_id": row.row_key,
            ":event_id": row.event_id,
            ":state": row.state.as_str(),
            ":attempts": row.attempts,
            ":next": row.next_attempt_micros,
            ":reason": row.reason,
            ":detail": row.detail,
            ":held_at": row.held_at,
            ":payload": row.payload,
        })?;
    controls::reach(Seam::Hold);
    note_death(row.state);
    Ok(())
}

fn note_death(state: HeldState) {
    if matches!(state, HeldState::Dead | HeldState::Skipped) {
        controls::reach(Seam::DeadLetter);
    }
}

/// Writes what a further attempt came to.
pub fn update(connection: &Connection, consumer: &str, row: &HeldRow) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "UPDATE outboxd_held SET state = :state, attempts = :attempts, next_attempt_at = :next, reason = :reason, \
             detail = :detail, payload = coalesce(:payload, payload) WHERE consumer = :consumer AND key = :key AND ordinal = :ordinal",
        )?
        .execute(named_params! {
            ":consumer": consumer,
            ":key": &row.key[..],
            ":ordinal": row.ordinal,
            ":state": row.state.as_str(),
            ":attempts": row.attempts,
            ":next": row.next_attempt_micros,
            ":reason": row.reason,
            ":detail": row.detail,
            ":payload": row.payload,
        })?;
    note_death(row.state);
    Ok(())
}

pub fn delete(connection: &Connection, consumer: &str, key: &[u8], ordinal: i64) -> Result<(), JobError> {
    connection
        .prepare_cached("DELETE FROM outboxd_held WHERE consumer = ?1 AND key = ?2 AND ordinal = ?3")?
        .execute(params![consumer, key, ordinal])?;
    checkpoint::set_freed(connection, consumer)?;
    controls::reach(Seam::Unhold);
    Ok(())
}

/// The keys that hold something, each with its head. Skipped rows hold nothing. `retry_min` is what attempts are spaced by.
pub fn keys(connection: &Connection, consumer: &str, retry_min: Duration) -> Result<Vec<HeldKey>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT key, count(*), min(ordinal), min(held_at) FROM outboxd_held WHERE consumer = ?1 AND state <> 'skipped' GROUP BY key",
    )?;
    let mut head = connection.prepare_cached(
        "SELECT state, next_attempt_at, attempts, event_id FROM outboxd_held WHERE consumer = ?1 AND key = ?2 AND ordinal = ?3",
    )?;
    let mut rows = statement.query([consumer])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let key: Vec<u8> = row.get(0)?;
        let ordinal: i64 = row.get(2)?;
        let held_at: String = row.get(3)?;
        let (state, due) = head.query_row(params![consumer, key, ordinal], |row| {
            let (next, attempts, id): (Option<i64>, u32, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let most = retry::next_attempt_in(retry_min, attempts, &id);
            Ok((row.get::<_, String>(0)?, next.map(|next| Moment::recorded(next, most))))
        })?;
        keys.push(HeldKey {
            key: key.into(),
            rows: row.get::<_, i64>(1)? as u64,
            head: HeldState::parse(&state).expect("the table's CHECK admits these states only"),
            due,
            since_micros: clock::parse_micros(&held_at).unwrap_or_default(),
        });
    }
    Ok(keys)
}

/// The first rows of a key that hold, in order.
pub fn of_key(connection: &Connection, consumer: &str, key: &[u8], most: usize) -> Result<Vec<HeldRow>, JobError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM outboxd_held WHERE consumer = ?1 AND key = ?2 AND state <> 'skipped' ORDER BY ordinal LIMIT ?3"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_map(params![consumer, key, most as i64], from_row)?.collect::<Result<_, _>>()?)
}

/// Each consumer that holds something, with the lowest position of that.
pub fn lowest(connection: &Connection) -> Result<Vec<(String, i64)>, JobError> {
    let sql = "SELECT consumer, min(position) FROM outboxd_held GROUP BY consumer";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
}

/// The positions behind one that a consumer holds.
pub fn behind(connection: &Connection, consumer: &str, place: i64) -> Result<HashSet<i64>, JobError> {
    let sql = "SELECT position FROM outboxd_held WHERE consumer = ?1 AND position > ?2";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map(params![consumer, place], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// One dead letter, if there is any.
pub fn first_dead(connection: &Connection, consumer: &str) -> Result<Option<HeldRow>, JobError> {
    let sql = format!("SELECT {COLUMNS} FROM outboxd_held WHERE consumer = ?1 AND state = 'dead' LIMIT 1");
    Ok(connection.prepare_cached(&sql)?.query_row([consumer], from_row).optional()?)
}

pub fn dead_rows(connection: &Connection, consumer: &str) -> Result<Vec<RowKey>, JobError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM outboxd_held WHERE consumer = ?1 AND state IN ('dead', 'skipped') AND row_id IS NOT NULL"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows: Vec<HeldRow> = statement.query_map([consumer], from_row)?.collect::<Result<_, _>>()?;
    Ok(rows.into_iter().filter_map(|row| row.row_key).collect())
}

/// How many rows there are in each state.
pub fn counts(connection: &Connection, consumer: &str) -> Result<[u64; 4], JobError> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM outboxd_held WHERE consumer = ?1 AND state = ?2")?;
    let mut counts = [0; 4];
    for (count, state) in counts.iter_mut().zip(HeldState::ALL) {
        *count = statement.query_row(params![consumer, state.as_str()], |row| row.get::<_, i64>(0))? as u64;
    }
    Ok(counts)
}

/// Which held events an operator means. All that is said must fit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    pub id: Option<String>,
    pub key: Option<Vec<u8>>,
    /// Held for at least this long, in microseconds.
    pub older_than_micros: Option<i64>,
    /// Heads only (retrying, dead, skipped), not what waits behind them.
    pub heads_only: bool,
}

/// The rows that are meant, without their payloads; at most `most`: heads before what waits behind them, the oldest first.
pub fn select(
    connection: &Connection,
    consumer: &str,
    selection: &Selection,
    most: usize,
) -> Result<Vec<HeldRow>, JobError> {
    // Each may be of a megabyte.
    let columns = COLUMNS.replace(", payload", ", NULL");
    let sql = format!(
        "SELECT {columns} FROM outboxd_held WHERE consumer = :consumer AND (:id IS NULL OR event_id = :id) \
         AND (:key IS NULL OR key = :key) AND (:before IS NULL OR held_at <= :before) \
         AND (NOT :heads OR state <> 'waiting') ORDER BY state = 'waiting', held_at, key, ordinal LIMIT :most"
    );
    let before = selection.older_than_micros.map(|age| clock::iso(clock::now_micros().saturating_sub(age)));
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(
        named_params! {
            ":consumer": consumer,
            ":id": selection.id,
            ":key": selection.key,
            ":before": before,
            ":heads": selection.heads_only,
            ":most": most as i64,
        },
        from_row,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What is kept of a held event, if anything is.
pub fn payload(connection: &Connection, consumer: &str, row: &HeldRow) -> Result<Option<Vec<u8>>, JobError> {
    let mut statement = connection
        .prepare_cached("SELECT payload FROM outboxd_held WHERE consumer = ?1 AND key = ?2 AND ordinal = ?3")?;
    Ok(statement.query_row(params![consumer, &row.key[..], row.ordinal], |row| row.get(0)).optional()?.flatten())
}

/// The type of a held event, out of what is kept of it, unless that is large.
pub fn kind(connection: &Connection, consumer: &str, row: &HeldRow) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT CASE WHEN octet_length(payload) <= ?4 AND json_valid(CAST(payload AS TEXT)) THEN CAST(payload AS TEXT) ->> 'type' END
         FROM outboxd_held WHERE consumer = ?1 AND key = ?2 AND ordinal = ?3",
    )?;
    let kind = statement.query_row(params![consumer, &row.key[..], row.ordinal, KIND_BYTES_MAX], |row| row.get(0));
    Ok(kind.optional()?.flatten())
}

/// Makes a dead or skipped event due at once, with its attempts counted anew. A skipped one goes before what its key holds now.
pub fn revive(connection: &Connection, consumer: &str, row: &HeldRow, now_micros: i64) -> Result<(), JobError> {
    connection.execute(
        "UPDATE outboxd_held SET state = 'retrying', attempts = 0, next_attempt_at = ?4 \
         WHERE consumer = ?1 AND key = ?2 AND ordinal = ?3 AND state IN ('dead', 'skipped', 'retrying')",
        params![consumer, &row.key[..], row.ordinal, now_micros],
    )?;
    Ok(())
}

pub fn by_row_key(connection: &Connection, consumer: &str, row: &RowKey) -> Result<Option<HeldRow>, JobError> {
    let sql = format!("SELECT {COLUMNS} FROM outboxd_held WHERE consumer = ?1 AND row_id = ?2 LIMIT 1");
    Ok(connection.prepare_cached(&sql)?.query_row(params![consumer, row], from_row).optional()?)
}

/// The ids of all held events, waiting ones included.
pub fn ids(connection: &Connection, consumer: &str) -> Result<Vec<String>, JobError> {
    let mut statement = connection.prepare_cached("SELECT event_id FROM outboxd_held WHERE consumer = ?1")?;
    let ids = statement.query_map([consumer], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}
