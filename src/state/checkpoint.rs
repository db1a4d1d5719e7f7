//! How far a consumer has durably come, with enough beside it to see that the table is still the one that was read.

use rusqlite::{Connection, OptionalExtension, named_params, params};
use serde_json::Value;

use crate::clock;
use crate::controls::{self, Protection, Seam};
use crate::event::Position;
use crate::source::reader::Mark;
use crate::sqlite::writer::JobError;

/// One row of `outboxd_checkpoint`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    pub consumer: String,
    pub source: String,
    pub definition: String,
    pub mark: Mark,
    pub witnesses: Witnesses,
    pub sent: Sent,
    pub updated_at: String,
}

/// What behind the checkpoint may have been sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The last run ended by a drain.
    Nothing = 0,
    /// No more than a window.
    Window = 1,
    /// What was held was freed, and others behind it had been sent long before: by row, their number says nothing.
    Anything = 2,
}

impl Sent {
    fn of(number: i64) -> Self {
        match number {
            0 => Sent::Nothing,
            1 => Sent::Window,
            _ => Sent::Anything,
        }
    }
}

/// What stood at exponentially growing distances behind the checkpoint: one mark a power of two.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Witnesses(Vec<Mark>);

impl Witnesses {
    const MAX: usize = 16;

    pub fn marks(&self) -> &[Mark] {
        &self.0
    }

    /// Adds the newest mark, and thins out the older ones: of each distance class the oldest stays, of the last the newest.
    pub fn advance(&mut self, newest: &Mark) {
        self.0.retain(|mark| mark.position < newest.position);
        self.0.push(newest.clone());
        let mut kept: [Option<Mark>; Self::MAX] = Default::default();
        for mark in self.0.drain(..) {
            let distance = newest.position.0.abs_diff(mark.position.0).saturating_add(1);
            let class = (distance.ilog2() as usize).min(Self::MAX - 1);
            if kept[class].is_none() || class == Self::MAX - 1 {
                kept[class] = Some(mark);
            }
        }
        self.0.extend(kept.into_iter().rev().flatten());
    }

    fn to_json(&self) -> String {
        let pairs: Vec<(i64, &str)> = self.0.iter().map(|mark| (mark.position.0, mark.event_id.as_str())).collect();
        serde_json::to_string(&pairs).expect("numbers and strings are always JSON")
    }

    fn from_json(text: &str) -> Result<Self, JobError> {
        let pairs: Vec<(i64, String)> = serde_json::from_str(text)
            .map_err(|error| JobError::Refused(format!("outboxd_checkpoint.witnesses is damaged: {error}")))?;
        Ok(Self(
            pairs.into_iter().map(|(position, event_id)| Mark { position: Position(position), event_id }).collect(),
        ))
    }
}

/// Every checkpoint in the file.
pub fn all(connection: &Connection) -> Result<Vec<Checkpoint>, JobError> {
    let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY consumer"))?;
    let rows: Vec<(Checkpoint, String)> = statement.query_map([], from_row)?.collect::<Result<_, _>>()?;
    rows.into_iter().map(with_witnesses).collect()
}

pub fn load(connection: &Connection, consumer: &str) -> Result<Option<Checkpoint>, JobError> {
    let row = connection
        .prepare_cached(&format!("{SELECT} WHERE consumer = ?1"))?
        .query_row([consumer], from_row)
        .optional()?;
    row.map(with_witnesses).transpose()
}

const SELECT: &str =
    "SELECT consumer, source, definition, position, event_id, witnesses, dirty, updated_at FROM outboxd_checkpoint";

fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Checkpoint, String)> {
    let checkpoint = Checkpoint {
        consumer: row.get(0)?,
        source: row.get(1)?,
        definition: row.get(2)?,
        mark: Mark { position: Position(row.get(3)?), event_id: row.get(4)? },
        witnesses: Witnesses::default(),
        sent: Sent::of(row.get(6)?),
        updated_at: row.get(7)?,
    };
    Ok((checkpoint, row.get(5)?))
}

fn with_witnesses((checkpoint, json): (Checkpoint, String)) -> Result<Checkpoint, JobError> {
    Ok(Checkpoint { witnesses: Witnesses::from_json(&json)?, ..checkpoint })
}

/// Writes a checkpoint whatever stood there: at a consumer's first start, and when an operator sets it.
pub fn put(connection: &Connection, checkpoint: &Checkpoint) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "INSERT INTO outboxd_checkpoint (consumer, source, definition, position, event_id, witnesses, dirty, updated_at) \
             VALUES (:consumer, :source, :definition, :position, :event_id, :witnesses, :dirty, :updated_at) \
             ON CONFLICT (consumer) DO UPDATE SET source = excluded.source, definition = excluded.definition, \
             position = excluded.position, event_id = excluded.event_id, witnesses = excluded.witnesses, dirty = excluded.dirty, \
             updated_at = excluded.updated_at",
        )?
        .execute(named_params! {
            ":consumer": checkpoint.consumer,
            ":source": checkpoint.source,
            ":definition": checkpoint.definition,
            ":position": checkpoint.mark.position.0,
            ":event_id": checkpoint.mark.event_id,
            ":witnesses": checkpoint.witnesses.to_json(),
            ":dirty": checkpoint.sent as i64,
            ":updated_at": clock::iso(clock::now_micros()),
        })?;
    Ok(())
}

/// A run begins at a checkpoint that stood there when it looked, or at the first one: from now on events behind it may have been sent.
pub fn begin(connection: &Connection, checkpoint: &Checkpoint, is_first: bool) -> Result<(), JobError> {
    if is_first && load(connection, &checkpoint.consumer)?.is_none() {
        return put(connection, &Checkpoint { sent: Sent::Window, ..checkpoint.clone() });
    }
    let (consumer, position) = (&checkpoint.consumer, checkpoint.mark.position);
    let sql = "UPDATE outboxd_checkpoint SET dirty = max(dirty, 1) WHERE consumer = ?1 AND (position = ?2 OR ?3)";
    let unchecked = controls::is_off(Protection::CompareAndSet);
    let begun = connection.prepare_cached(sql)?.execute(params![consumer, position.0, unchecked])?;
    if begun == 1 { Ok(()) } else { Err(moved_by_others(consumer, position)) }
}

fn moved_by_others(consumer: &str, from: Position) -> JobError {
    JobError::Refused(format!(
        "the checkpoint of {consumer} is no longer at position {from}: somebody else moved it. Remedy: see that only one outboxd \
         runs on this file, then `outboxd resume {consumer}`"
    ))
}

/// Moves the checkpoint from where this daemon believes it to be.
pub fn advance(
    connection: &Connection,
    consumer: &str,
    from: Position,
    to: &Mark,
    witnesses: &Witnesses,
) -> Result<(), JobError> {
    let moved = connection
        .prepare_cached(
            "UPDATE outboxd_checkpoint SET position = :to, event_id = :event_id, witnesses = :witnesses, dirty = 1, updated_at = :now \
             WHERE consumer = :consumer AND (position = :from OR :unchecked)",
        )?
        .execute(named_params! {
            ":to": to.position.0,
            ":event_id": to.event_id,
            ":witnesses": witnesses.to_json(),
            ":now": clock::iso(clock::now_micros()),
            ":consumer": consumer,
            ":from": from.0,
            ":unchecked": controls::is_off(Protection::CompareAndSet),
        })?;
    if moved == 1 {
        controls::reach(Seam::Advance);
        return Ok(());
    }
    Err(moved_by_others(consumer, from))
}

/// A clean stop: nothing behind the checkpoint was sent.
pub fn set_clean(connection: &Connection, consumer: &str) -> Result<(), JobError> {
    let sql = "UPDATE outboxd_checkpoint SET dirty = ?2 WHERE consumer = ?1";
    connection.prepare_cached(sql)?.execute(params![consumer, Sent::Nothing as i64])?;
    Ok(())
}

/// Something that was held has gone: what stands behind it in the source may be sent from now on.
pub fn set_freed(connection: &Connection, consumer: &str) -> Result<(), JobError> {
    let sql = "UPDATE outboxd_checkpoint SET dirty = ?2 WHERE consumer = ?1 AND dirty <> ?3";
    connection.prepare_cached(sql)?.execute(params![consumer, Sent::Anything as i64, Sent::Nothing as i64])?;
    Ok(())
}

/// A pause outlives a restart.
pub fn set_paused(connection: &Connection, consumer: &str, paused: bool) -> Result<(), JobError> {
    let name = format!("paused:{consumer}");
    if paused {
        connection.execute("INSERT OR REPLACE INTO outboxd_meta (name, value) VALUES (?1, '1')", [name])?;
    } else {
        connection.execute("DELETE FROM outboxd_meta WHERE name = ?1", [name])?;
    }
    Ok(())
}

pub fn is_paused(connection: &Connection, consumer: &str) -> Result<bool, JobError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM outboxd_meta WHERE name = ?1)";
    Ok(connection.query_row(sql, [format!("paused:{consumer}")], |row| row.get(0))?)
}

/// Writes down what a projection's tables were made by, as JSON.
pub fn keep_section(connection: &Connection, consumer: &str, section: &Value) -> Result<(), JobError> {
    let sql = "INSERT OR REPLACE INTO outboxd_meta (name, value) VALUES (?1, ?2)";
    connection.execute(sql, params![format!("projection:{consumer}"), section.to_string()])?;
    Ok(())
}

pub fn section(connection: &Connection, consumer: &str) -> Result<Option<Value>, JobError> {
    let sql = "SELECT value FROM outboxd_meta WHERE name = ?1";
    let name = format!("projection:{consumer}");
    let text: Option<String> = connection.query_row(sql, [name], |row| row.get(0)).optional()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

pub fn forget(connection: &Connection, consumer: &str) -> Result<(), JobError> {
    connection.execute("DELETE FROM outboxd_meta WHERE name = ?1", [format!("projection:{consumer}")])?;
    connection.execute("DELETE FROM outboxd_checkpoint WHERE consumer = ?1", [consumer])?;
    connection.execute("DELETE FROM outboxd_held WHERE consumer = ?1", [consumer])?;
    super::replay::forget(connection, consumer)?;
    super::copies::forget(connection, consumer)?;
    set_paused(connection, consumer, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn witnesses_stay_few_old_and_ordered(steps in proptest::collection::vec(1_i64..5_000, 1..200)) {
            let mut witnesses = Witnesses::default();
            let mut position = 0;
            for step in &steps {
                position += step;
                witnesses.advance(&Mark { position: Position(position), event_id: position.to_string() });
            }
            let positions: Vec<i64> = witnesses.marks().iter().map(|m| m.position.0).collect();
            proptest::prop_assert!(positions.len() <= Witnesses::MAX);
            proptest::prop_assert!(positions.is_sorted());
            proptest::prop_assert_eq!(positions.last().copied(), Some(position));
            proptest::prop_assert_eq!(Witnesses::from_json(&witnesses.to_json()).unwrap(), witnesses);
        }
    }

    #[test]
    fn witnesses_reach_far_back() {
        let mut witnesses = Witnesses::default();
        for position in 1..=100_000 {
            witnesses.advance(&Mark { position: Position(position), event_id: String::new() });
        }
        assert!(witnesses.marks()[0].position.0 <= 100_000 - 32_768);
    }

    /// Of each class of distances (1, 2 to 3, 4 to 7, ...) the oldest stays, of the last one the newest.
    #[test]
    fn witnesses_are_kept_at_growing_distances() {
        let after = |newest: i64| {
            let mut witnesses = Witnesses::default();
            for position in 1..=newest {
                witnesses.advance(&Mark { position: Position(position), event_id: String::new() });
            }
            witnesses.marks().iter().map(|mark| newest - mark.position.0).collect::<Vec<_>>()
        };
        assert_eq!(after(100), [99, 35, 19, 11, 3, 1, 0]);
        let far = [34_463, 18_079, 9_887, 5_791, 3_743, 1_695, 671, 415, 159, 95, 31, 15, 7, 3, 1, 0];
        assert_eq!(after(100_000), far);
    }

    #[test]
    fn the_newest_word_on_a_position_counts() {
        let mut witnesses = Witnesses::default();
        for (position, id) in [(1, "a"), (5, "b"), (5, "c")] {
            witnesses.advance(&Mark { position: Position(position), event_id: id.into() });
        }
        let ids: Vec<&str> = witnesses.marks().iter().map(|mark| mark.event_id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
    }
}
