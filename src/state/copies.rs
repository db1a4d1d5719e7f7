//! Copies of dead letters that are on their way to the dead-letter sink: written in the transaction in which the event died, and
//! taken away when the sink has acknowledged them. What becomes of the dead letter itself meanwhile does not matter to them.

use rusqlite::{Connection, named_params, params};

use crate::clock;
use crate::controls::{self, Seam};
use crate::event::{Death, Destination, Position, RowKey};
use crate::sqlite::writer::JobError;

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS outboxd_dead_letter_copy (
    number   INTEGER PRIMARY KEY,
    consumer TEXT NOT NULL,
    key      BLOB NOT NULL,
    position INTEGER NOT NULL,
    row_id   ANY,
    event_id TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    reason   TEXT,
    detail   TEXT,
    died_at  TEXT NOT NULL,
    payload  BLOB                             -- the event as an envelope, where one was kept
) STRICT;
";

/// A copy that was not acknowledged yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadCopy {
    pub number: i64,
    pub key: Vec<u8>,
    pub position: Position,
    pub row_key: Option<RowKey>,
    pub event_id: String,
    pub death: Death,
    pub payload: Option<Vec<u8>>,
}

/// Puts a copy of a held row on its way; without an ordinal, of the newest row of the key.
pub fn queue(connection: &Connection, consumer: &str, key: &[u8], ordinal: Option<i64>) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "INSERT INTO outboxd_dead_letter_copy (consumer, key, position, row_id, event_id, attempts, reason, detail, died_at, payload) \
             SELECT consumer, key, position, row_id, event_id, attempts, reason, detail, :now, payload FROM outboxd_held \
             WHERE consumer = :consumer AND key = :key AND ordinal = \
             coalesce(:ordinal, (SELECT max(ordinal) FROM outboxd_held WHERE consumer = :consumer AND key = :key))",
        )?
        .execute(named_params! {
            ":now": clock::iso(clock::now_micros()),
            ":consumer": consumer,
            ":key": key,
            ":ordinal": ordinal,
        })?;
    controls::reach(Seam::DeadLetterCopy);
    Ok(())
}

/// The oldest behind `after`.
pub fn waiting(connection: &Connection, consumer: &str, after: i64, most: usize) -> Result<Vec<DeadCopy>, JobError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, key, position, row_id, event_id, attempts, reason, detail, died_at, payload FROM outboxd_dead_letter_copy \
         WHERE consumer = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
    )?;
    let rows = statement.query_map(params![consumer, after, most as i64], |row| {
        Ok(DeadCopy {
            number: row.get(0)?,
            key: row.get(1)?,
            position: Position(row.get(2)?),
            row_key: RowKey::of(row.get_ref(3)?),
            event_id: row.get(4)?,
            death: Death {
                consumer: consumer.to_owned(),
                attempts: row.get(5)?,
                reason: row.get::<_, Option<String>>(6)?.unwrap_or_default(),
                detail: row.get::<_, Option<String>>(7)?.unwrap_or_default(),
                at: row.get(8)?,
                destination: Destination::Unknown,
            },
            payload: row.get(9)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub fn count(connection: &Connection, consumer: &str) -> Result<u64, JobError> {
    let sql = "SELECT count(*) FROM outboxd_dead_letter_copy WHERE consumer = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([consumer], |row| row.get::<_, i64>(0))? as u64)
}

/// They have arrived. Returns how many are left.
pub fn arrived(connection: &Connection, consumer: &str, numbers: &[i64]) -> Result<u64, JobError> {
    let mut statement = connection.prepare_cached("DELETE FROM outboxd_dead_letter_copy WHERE number = ?1")?;
    for number in numbers {
        statement.execute([number])?;
    }
    controls::reach(Seam::DeadLetterCopy);
    count(connection, consumer)
}

/// Those that have not arrived are given up. Returns how many that were.
pub fn forget(connection: &Connection, consumer: &str) -> Result<usize, JobError> {
    Ok(connection.execute("DELETE FROM outboxd_dead_letter_copy WHERE consumer = ?1", [consumer])?)
}
