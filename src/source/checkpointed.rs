//! A table read by checkpoint: append-only, with an AUTOINCREMENT key, so that commit order is key order and no key is reused.
//!
//! Nothing in it is written. That it is still the table which the checkpoint was taken from is looked at on every read: the event
//! at the checkpoint (if it is still there) has the id that was recorded, and `sqlite_sequence` is not behind.

use rusqlite::{Connection, OptionalExtension, named_params};

use super::feed::{Care, NEWEST_ROWS};
use super::mapping::{Mapping, Pushed};
use super::plan::Plan;
use super::reader::{Halt, Look, Mark, ReadFault, ReadRequest};
use crate::clock;
use crate::controls::{self, Protection};
use crate::event::{Batch, BatchBuilder, Position};
use crate::sqlite::open;

#[derive(Debug)]
pub struct Checkpointed {
    mapping: Mapping,
    /// Of a table read by its feed: the version of the schema under which the feed was found whole.
    whole_at: Option<i64>,
    care: Care,
    /// What that left out.
    warnings: Vec<String>,
}

impl Checkpointed {
    pub fn new(mapping: Mapping, care: Care) -> Self {
        Self { mapping, whole_at: None, care, warnings: Vec::new() }
    }

    /// Sees that every row is in the feed, at first and whenever the schema has changed: without a change of the schema the trigger
    /// cannot have gone. To be called outside of a transaction: each slice of rows has its own.
    pub fn prepare(&mut self, connection: &Connection) -> Result<(), ReadFault> {
        let Some(feed) = self.mapping.feed.as_ref().filter(|_| !controls::is_off(Protection::Feed)) else {
            return Ok(());
        };
        loop {
            let version = open::schema_version(connection)?;
            if self.whole_at == Some(version) {
                return Ok(());
            }
            let trigger = feed.check(connection)?;
            let (unfed, longer) = match self.care {
                Care::Whole => (feed.unfed(connection)?, Vec::new()),
                Care::Newest => feed.unfed_newest(connection)?,
            };
            if open::schema_version(connection)? != version {
                continue;
            }
            let what = match (trigger, unfed) {
                (Ok(()), 0) => {
                    let left_out = |table: &&str| {
                        format!(
                            "of {table} the newest {NEWEST_ROWS} rows are in the feed; whether all older ones are was not looked at (`run` \
                             looks at all before it sends anything)"
                        )
                    };
                    self.warnings = longer.iter().map(left_out).collect();
                    self.whole_at = Some(version);
                    return Ok(());
                }
                (Ok(()), unfed) => format!("{unfed} rows of {} are not in its feed", feed.table),
                (Err(what), unfed) => format!("{what}; {unfed} rows are not in the feed"),
            };
            return Err(Halt::new(format!("{what}. Nothing was passed over. {}", feed.remedy(connection))).into());
        }
    }

    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub fn look(&self, connection: &Connection) -> Result<Look, ReadFault> {
        let Mapping { table, from, row, .. } = &self.mapping;
        let first = format!("SELECT {row} FROM {from} WHERE {row} IS NOT NULL ORDER BY {row} LIMIT 1");
        let first: Option<i64> =
            connection.prepare_cached(&first)?.query_row([], |row| row.get(0)).optional()?.flatten();
        if first == Some(i64::MIN) {
            return Err(ReadFault::Halt(Halt::new(format!(
                "table {table} has an event at position {}, and nothing comes before that, so it cannot be read after anything. Remedy: \
                 give it another position, then `outboxd resume`",
                i64::MIN
            ))));
        }
        let before_first = Position(first.map_or(0, |first| first.saturating_sub(1).min(0)));
        let head = self.sequence(connection)?;
        let sql = format!("SELECT {} FROM {from} WHERE {row} = ?1", self.mapping.id_bounded());
        let head_id = connection.prepare_cached(&sql)?.query_row([head], |row| self.mapping.id_of(row)).optional()?;
        let mapping = self.mapping.clone();
        let plan = Plan::of(connection, &mapping)?;
        let head_id = head_id.unwrap_or_default();
        let (head, has_events) = (Position(head), first.is_some());
        Ok(Look { before_first, head, head_id, has_events, mapping, plan, warnings: self.warnings.clone() })
    }

    /// The highest key that was ever given out; where SQLite gives keys out again, the highest that is there.
    fn sequence(&self, connection: &Connection) -> Result<i64, ReadFault> {
        if let Some(newest) = &self.mapping.newest {
            let newest: Option<i64> = connection.prepare_cached(newest)?.query_row([], |row| row.get(0))?;
            return Ok(newest.unwrap_or(0));
        }
        let sequence = connection
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1")?
            .query_row([&self.mapping.table], |row| row.get(0))
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
        let Mapping { table, from, row: position, .. } = &self.mapping;
        let sequence = self.sequence(connection)?;
        if sequence < newest.0 {
            if open::columns(connection, table)?.is_empty() {
                return Err(ReadFault::Halt(Halt::new(format!(
                    "table {table} is gone. Nothing was passed over. Remedy: bring the table back, then `outboxd resume`"
                ))));
            }
            return Err(ReadFault::Halt(Halt::position_ahead(format!(
                "table {table} went back: the checkpoint is at position {newest}, but the newest position ever given out is \
                 {sequence}. The file was restored from an older copy, or the table was rebuilt{or_pruned}. {REMEDY}",
                or_pruned = if self.mapping.newest.is_some() { ", or its newest rows were deleted" } else { "" },
            ))));
        }
        let there = self.mapping.and_there();
        let sql = format!("SELECT {} FROM {from} WHERE {position} = ?1{there}", self.mapping.id_bounded());
        let mut statement = connection.prepare_cached(&sql)?;
        for mark in marks.iter().filter(|mark| !mark.event_id.is_empty()) {
            let found = statement.query_row([mark.position.0], |row| self.mapping.id_of(row)).optional()?;
            if let Some(found) = found.filter(|found| *found != mark.event_id) {
                return Err(ReadFault::Halt(Halt::position_ahead(format!(
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
        // A schema that has changed since `prepare` is a commit, after which everything is asked anew.
        if self.whole_at.is_some_and(|version| open::schema_version(connection).is_ok_and(|now| now != version)) {
            return Ok(None);
        }
        self.verify(connection, std::slice::from_ref(&request.mark))?;
        let filter = format!("{} > :after", self.mapping.row);
        let tail = format!("ORDER BY {} LIMIT :most", self.mapping.row);
        let sql = self.mapping.select(request.event_bytes_max, &filter, &tail);
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows =
            statement.query(named_params! { ":after": request.after.0, ":most": request.events_max as i64 })?;
        let mut batch = BatchBuilder::with_capacity(request.events_max.min(1024), 64 << 10);
        let mut passed_over = None;
        let mut last = request.after.0;
        while let Some(row) = rows.next()? {
            let before = || {
                passed_over.as_ref().map(|(_, id): &(_, String)| id.clone()).or_else(|| batch.end().map(|(_, id)| id))
            };
            if self.mapping.is_copy(row, last, before)? {
                continue;
            }
            last = self.mapping.position_behind(row, last).map_err(Halt::new)?;
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
        drop(rows);
        let Some((end, end_id)) = passed_over.or_else(|| batch.end()) else { return Ok(None) };
        if self.mapping.is_joined {
            self.check_unique(connection, end)?;
        }
        let mut batch = batch.finish(end, clock::now_micros());
        batch.end_id = end_id;
        Ok(Some(batch))
    }

    /// A query may join what it likes: a second event with the position of the batch's last one would be passed over. The same one in the
    /// table and in its archive is one.
    fn check_unique(&self, connection: &Connection, end: Position) -> Result<(), ReadFault> {
        let Mapping { from, row, .. } = &self.mapping;
        let each = match self.mapping.archive {
            Some(_) => format!("DISTINCT {}", self.mapping.id_bounded()),
            None => "1".to_owned(),
        };
        let sql = format!("SELECT count(*) FROM (SELECT {each} FROM {from} WHERE {row} = ?1 LIMIT 2)");
        let count: i64 = connection.prepare_cached(&sql)?.query_row([end.0], |row| row.get(0))?;
        if count > 1 {
            return Err(Halt::new(format!(
                "the query gives more than one event with position {end}, of which only one would be read. Nothing of the batch was \
                 sent. Remedy: join so that each position comes once"
            ))
            .into());
        }
        Ok(())
    }

    /// The events at these positions that are still there, in the order asked for.
    pub fn fetch(
        &self,
        connection: &Connection,
        positions: &[i64],
        event_bytes_max: usize,
    ) -> Result<Batch, ReadFault> {
        let filter = format!("{} = :row{}", self.mapping.row, self.mapping.and_there());
        let sql = self.mapping.select(event_bytes_max, &filter, "");
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
                      `outboxd position set`; where a backup was restored, `outboxd restore --reset-positions` knows it";
