//! A table read by checkpoint: append-only, with an AUTOINCREMENT key, so that commit order is key order and no key is reused.
//!
//! Nothing in it is written. That it is still the table which the checkpoint was taken from is looked at on every read: the event
//! at the checkpoint (if it is still there) has the id that was recorded, and `sqlite_sequence` is not behind.

use rusqlite::{Connection, OptionalExtension, named_params};

use super::mapping::{Mapping, Pushed};
use super::reader::{Halt, Look, Mark, ReadFault, ReadRequest};
use crate::clock;
use crate::controls::{self, Protection};
use crate::event::{Batch, BatchBuilder, Position};
use crate::sqlite::open;

#[derive(Debug)]
pub struct Checkpointed {
    mapping: Mapping,
}

impl Checkpointed {
    /// Refuses a table whose keys SQLite may reuse.
    pub fn new(connection: &Connection, mapping: Mapping) -> Result<Self, ReadFault> {
        let sql: Option<String> = connection
            .query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1", [mapping.table], |row| {
                row.get(0)
            })
            .optional()?;
        let autoincrement = sql.is_some_and(|sql| sql.to_uppercase().contains("AUTOINCREMENT"));
        if !autoincrement {
            return Err(ReadFault::Halt(Halt::new(format!(
                "table {table} has no AUTOINCREMENT key: SQLite reuses the ids of deleted rows, and events behind a checkpoint \
                 would be passed over. Remedy: rebuild the table with INTEGER PRIMARY KEY AUTOINCREMENT",
                table = mapping.table
            ))));
        }
        Ok(Self { mapping })
    }

    pub fn look(&self, connection: &Connection) -> Result<Look, ReadFault> {
        let table = self.mapping.table;
        let first: Option<i64> = connection
            .prepare_cached(&format!("SELECT min({}) FROM {table}", self.mapping.row))?
            .query_row([], |row| row.get(0))?;
        if first == Some(i64::MIN) {
            return Err(ReadFault::Halt(Halt::new(format!(
                "table {table} has an event at position {}, and nothing comes before that, so it cannot be read after anything. Remedy: \
                 give it another position, then `outboxd resume`",
                i64::MIN
            ))));
        }
        let before_first = Position(first.map_or(0, |first| first.saturating_sub(1).min(0)));
        let head = self.sequence(connection)?;
        let sql = format!("SELECT {} FROM {table} WHERE {} = ?1", self.mapping.id_bounded(), self.mapping.row);
        let head_id = connection.prepare_cached(&sql)?.query_row([head], |row| id_text(row, 0)).optional()?;
        let mapping = self.mapping.clone();
        let head_id = head_id.unwrap_or_default();
        Ok(Look { before_first, head: Position(head), head_id, has_events: first.is_some(), mapping })
    }

    /// The highest key that was ever given out.
    fn sequence(&self, connection: &Connection) -> Result<i64, ReadFault> {
        let sequence = connection
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1")?
            .query_row([self.mapping.table], |row| row.get(0))
            .optional()?;
        Ok(sequence.unwrap_or(0))
    }

    pub fn head(&self, connection: &Connection) -> Result<Position, ReadFault> {
        Ok(Position(self.sequence(connection)?))
    }

    /// Compares what was recorded with the table: the marks' ids, and the sequence.
    pub fn verify(&self, connection: &Connection, marks: &[Mark]) -> Result<(), ReadFault> {
        let Some(newest) = marks.iter().map(|mark| mark.position).max() else { return Ok(()) };
        if controls::is_off(Protection::Fingerprint) {
            return Ok(());
        }
        let table = self.mapping.table;
        let sequence = self.sequence(connection)?;
        if sequence < newest.0 {
            if open::columns(connection, table)?.is_empty() {
                return Err(ReadFault::Halt(Halt::new(format!(
                    "table {table} is gone. Nothing was passed over. Remedy: bring the table back, then `outboxd resume`"
                ))));
            }
            return Err(ReadFault::Halt(Halt::new(format!(
                "table {table} went back: the checkpoint is at position {newest}, but the newest position ever given out is \
                 {sequence}. The file was restored from an older copy, or the table was rebuilt. {REMEDY}"
            ))));
        }
        let sql = format!("SELECT {} FROM {table} WHERE {} = ?1", self.mapping.id_bounded(), self.mapping.row);
        let mut statement = connection.prepare_cached(&sql)?;
        for mark in marks.iter().filter(|mark| !mark.event_id.is_empty()) {
            let found = statement.query_row([mark.position.0], |row| id_text(row, 0)).optional()?;
            if let Some(found) = found.filter(|found| *found != mark.event_id) {
                return Err(ReadFault::Halt(Halt::new(format!(
                    "table {table} is not the one that was read: at position {position} stood event {expected}, now stands {found}. \
                     The file was restored or the table was rebuilt. {REMEDY}",
                    position = mark.position,
                    expected = mark.event_id,
                ))));
            }
        }
        Ok(())
    }

    /// The next events after `request.after`; `None` at the head.
    pub fn read(&self, connection: &Connection, request: &ReadRequest) -> Result<Option<Batch>, ReadFault> {
        self.verify(connection, std::slice::from_ref(&request.mark))?;
        let filter = format!("{} > :after", self.mapping.row);
        let tail = format!("ORDER BY {} LIMIT :most", self.mapping.row);
        let sql = self.mapping.select(request.event_bytes_max, &filter, &tail);
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows =
            statement.query(named_params! { ":after": request.after.0, ":most": request.events_max as i64 })?;
        let mut batch = BatchBuilder::with_capacity(request.events_max.min(1024), 64 << 10);
        let mut passed_over = None;
        while let Some(row) = rows.next()? {
            passed_over = match self
                .mapping
                .push(row, &mut batch, request.event_bytes_max, |kind| request.filter.admits(kind))?
            {
                Pushed::Taken => None,
                Pushed::PassedOver { position, id } => Some((position, id)),
            };
            if batch.bytes() >= request.bytes_max {
                break;
            }
        }
        let Some((end, end_id)) = passed_over.or_else(|| batch.end()) else { return Ok(None) };
        let mut batch = batch.finish(end, clock::now_micros());
        batch.end_id = end_id;
        Ok(Some(batch))
    }

    /// The events at these positions that are still there, in the order asked for.
    pub fn fetch(
        &self,
        connection: &Connection,
        positions: &[i64],
        event_bytes_max: usize,
    ) -> Result<Batch, ReadFault> {
        let sql = self.mapping.select(event_bytes_max, &format!("{} = :row", self.mapping.row), "");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut batch = BatchBuilder::default();
        for position in positions {
            let mut rows = statement.query(named_params! { ":row": position })?;
            if let Some(row) = rows.next()? {
                self.mapping.push(row, &mut batch, event_bytes_max, |_| true)?;
            }
        }
        Ok(batch.finish(Position::default(), clock::now_micros()))
    }
}

const REMEDY: &str = "Nothing was sent from it. Remedy: see which events the far side has, then choose where to go on with \
                      `outboxd position set`";

/// An id in the form in which [`Mapping::push`] hands it on.
fn id_text(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<String> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(index)? {
        ValueRef::Null => String::new(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    })
}
