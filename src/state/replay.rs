//! How far a replay has come: one row a consumer, apart from everything that the live flow records.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::clock;
use crate::controls::{self, Seam};
use crate::sqlite::open;
use crate::sqlite::writer::JobError;

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS outboxd_replay (
    consumer   TEXT PRIMARY KEY,
    number     INTEGER NOT NULL,              -- goes up each time that one begins or goes on
    wanted     TEXT NOT NULL,                 -- JSON: what was asked for
    state      TEXT NOT NULL CHECK (state IN ('running', 'stopped', 'cancelled', 'done')),
    first      INTEGER NOT NULL,              -- it began behind this place,
    place      INTEGER NOT NULL,              -- has come to this one,
    upto       INTEGER NOT NULL,              -- and ends with this one
    sent       INTEGER NOT NULL,
    left_out   INTEGER NOT NULL,
    detail     TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplayState {
    Running,
    /// An event was refused, or something has to be mended; goes on when it is asked for again.
    Stopped,
    Cancelled,
    Done,
}

impl ReplayState {
    const ALL: [(&'static str, ReplayState); 4] = [
        ("running", ReplayState::Running),
        ("stopped", ReplayState::Stopped),
        ("cancelled", ReplayState::Cancelled),
        ("done", ReplayState::Done),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// A row of `outboxd_replay`. Places are positions, or rowids of a table read by row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replay {
    pub number: i64,
    pub wanted: String,
    pub state: ReplayState,
    pub first: i64,
    pub place: i64,
    pub upto: i64,
    pub sent: u64,
    /// Events that fitted and are held, or were given up.
    pub left_out: u64,
    pub detail: String,
}

/// Replays that go on, or may: the consumer, and the place behind which everything is still to be read.
pub fn unfinished(connection: &Connection) -> Result<Vec<(String, i64)>, JobError> {
    if open::columns(connection, "outboxd_replay")?.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT consumer, place FROM outboxd_replay WHERE state IN ('running', 'stopped')";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub fn load(connection: &Connection, consumer: &str) -> Result<Option<Replay>, JobError> {
    let sql = "SELECT number, wanted, state, first, place, upto, sent, left_out, detail FROM outboxd_replay WHERE consumer = ?1";
    let row = connection.prepare_cached(sql)?.query_row([consumer], |row| {
        let state: String = row.get(2)?;
        let known = ReplayState::ALL.into_iter().find(|(name, _)| *name == state);
        Ok(Replay {
            number: row.get(0)?,
            wanted: row.get(1)?,
            state: known.expect("the table's CHECK admits these states only").1,
            first: row.get(3)?,
            place: row.get(4)?,
            upto: row.get(5)?,
            sent: row.get::<_, i64>(6)? as u64,
            left_out: row.get::<_, i64>(7)? as u64,
            detail: row.get(8)?,
        })
    });
    Ok(row.optional()?)
}

/// Notes what the places of the replay depend on; `None`: they stay.
fn number(connection: &Connection, consumer: &str, numbering: Option<i64>) -> Result<(), JobError> {
    let sql = "INSERT OR REPLACE INTO outboxd_meta (name, value) VALUES (?1, ?2)";
    match numbering {
        Some(numbering) => connection.execute(sql, params![numbering_of(consumer), numbering.to_string()])?,
        None => connection.execute("DELETE FROM outboxd_meta WHERE name = ?1", [numbering_of(consumer)])?,
    };
    Ok(())
}

/// See [`begin`].
pub fn numbering(connection: &Connection, consumer: &str) -> Result<Option<i64>, JobError> {
    let sql = "SELECT CAST(value AS INTEGER) FROM outboxd_meta WHERE name = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([numbering_of(consumer)], |row| row.get(0)).optional()?)
}

fn numbering_of(consumer: &str) -> String {
    format!("replay {consumer} numbering")
}

/// Begins a replay of these places, or goes on with one that was asked for in the same words and was stopped. `numbering` is what places depend on.
pub fn begin(
    connection: &Connection,
    consumer: &str,
    wanted: &str,
    (first, upto): (i64, i64),
    numbering: Option<i64>,
) -> Result<Replay, JobError> {
    let before = load(connection, consumer)?;
    let unfinished = |replay: &&Replay| matches!(replay.state, ReplayState::Running | ReplayState::Stopped);
    if let Some(before) = before.as_ref().filter(unfinished) {
        if before.wanted == wanted {
            // Whoever looks can tell that it goes on from that it was stopped.
            let number = before.number + i64::from(before.state == ReplayState::Stopped);
            let sql = "UPDATE outboxd_replay SET state = 'running', detail = '', number = ?2 WHERE consumer = ?1";
            connection.execute(sql, params![consumer, number])?;
            return Ok(Replay { number, state: ReplayState::Running, detail: String::new(), ..before.clone() });
        }
        if before.state == ReplayState::Running {
            return Err(JobError::Refused(format!(
                "another replay of {consumer} is under way: {}. Remedy: let it end, or `outboxd replay {consumer} --cancel`",
                before.wanted
            )));
        }
    }
    let replay = Replay {
        number: before.map_or(1, |before| before.number + 1),
        wanted: wanted.to_owned(),
        state: ReplayState::Running,
        first,
        place: first,
        upto,
        sent: 0,
        left_out: 0,
        detail: String::new(),
    };
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO outboxd_replay (consumer, number, wanted, state, first, place, upto, sent, left_out, detail, \
             updated_at) VALUES (:consumer, :number, :wanted, 'running', :first, :first, :upto, 0, 0, '', :now)",
        )?
        .execute(named_params! {
            ":consumer": consumer,
            ":number": replay.number,
            ":wanted": wanted,
            ":first": first,
            ":upto": upto,
            ":now": clock::iso(clock::now_micros()),
        })?;
    number(connection, consumer, numbering)?;
    controls::reach(Seam::Replay);
    Ok(replay)
}

/// Records how far it has come; refused when it was cancelled, or another one took its place.
pub fn note(connection: &Connection, consumer: &str, replay: &Replay) -> Result<(), JobError> {
    let noted = connection
        .prepare_cached(
            "UPDATE outboxd_replay SET state = :state, place = :place, sent = :sent, left_out = :left_out, detail = :detail, \
             updated_at = :now WHERE consumer = :consumer AND number = :number AND state = 'running'",
        )?
        .execute(named_params! {
            ":state": replay.state.as_str(),
            ":place": replay.place,
            ":sent": replay.sent as i64,
            ":left_out": replay.left_out as i64,
            ":detail": replay.detail,
            ":now": clock::iso(clock::now_micros()),
            ":consumer": consumer,
            ":number": replay.number,
        })?;
    controls::reach(Seam::Replay);
    if noted == 1 { Ok(()) } else { Err(JobError::Refused("the replay was cancelled".into())) }
}

/// Gives it up, whether it runs or was stopped. Says whether there was one.
pub fn cancel(connection: &Connection, consumer: &str) -> Result<bool, JobError> {
    let sql = "UPDATE outboxd_replay SET state = 'cancelled' WHERE consumer = ?1 AND state IN ('running', 'stopped')";
    Ok(connection.execute(sql, [consumer])? > 0)
}

pub fn forget(connection: &Connection, consumer: &str) -> Result<(), JobError> {
    connection.execute("DELETE FROM outboxd_replay WHERE consumer = ?1", params![consumer])?;
    number(connection, consumer, None)
}
