//! The newest events of a source, and its largest one: for whoever asks what would become of them, and sends nothing.

use std::time::Duration;

use rusqlite::named_params;
use rusqlite::types::ValueRef;

use super::{Scan, ScanError};
use crate::event::{Batch, BatchBuilder, Position};
use crate::source::filter::Filter;
use crate::sqlite::open::TimeLimit;

/// Rows that are passed over because no consumer wants their types.
const ROWS_MAX: usize = 10_000;
const BYTES_MAX: usize = 32 << 20;
/// In one short read transaction.
const SLICE_ROWS: usize = 2_000;

/// The largest event among the rows that were looked at, which are the newest.
pub struct Largest {
    /// With that one event, or none.
    pub batch: Batch,
    pub rows: u64,
    /// Those were all.
    pub is_whole: bool,
}

impl Scan {
    /// At most so many, the newest first. A look that takes longer than `most` is interrupted.
    pub fn newest(&self, filter: &Filter, events_max: usize, most: Duration) -> Result<Batch, ScanError> {
        let tail = format!("ORDER BY {} DESC LIMIT {ROWS_MAX}", self.place());
        let limit = TimeLimit::of(&self.connection, most)?;
        limit.begin();
        self.taken(&format!("1{}", self.mapping.and_there()), &tail, filter, events_max)
    }

    /// Looks from the newest row on until the time is over.
    pub fn largest(&self, filter: &Filter, most: Duration) -> Result<Largest, ScanError> {
        let place = self.place();
        let limit = TimeLimit::of(&self.connection, most)?;
        limit.begin();
        let (mut rows, mut is_whole, mut before) = (0, false, i64::MAX);
        let mut largest: Option<(i64, i64)> = None;
        while !is_whole {
            let slice = match self.slice(before, filter, largest.map_or(-1, |found| found.1)) {
                Err(ScanError::Sqlite(error)) if is_over(&error) => break,
                slice => slice?,
            };
            rows += slice.rows;
            largest = slice.largest.or(largest);
            is_whole = slice.is_last;
            before = slice.last;
        }
        limit.begin();
        let batch = match largest {
            None => Batch::default(),
            Some((at, _)) => self.taken(&format!("{place} = {at}{}", self.mapping.and_there()), "", filter, 1)?,
        };
        Ok(Largest { batch, rows, is_whole })
    }

    fn taken(&self, rows: &str, tail: &str, filter: &Filter, events_max: usize) -> Result<Batch, ScanError> {
        let sql = self.mapping.select(self.event_bytes_max, rows, tail);
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let mut batch = BatchBuilder::with_capacity(events_max, 64 << 10);
        while let Some(row) = rows.next()? {
            if let Some((last, id)) = batch.end().filter(|_| self.mapping.archive.is_some())
                && self.mapping.is_copy(row, last.0, || Some(id))?
            {
                continue;
            }
            self.mapping.push(row, &mut batch, self.event_bytes_max, |kind| filter.admits(kind))?;
            if batch.len() >= events_max || batch.bytes() >= BYTES_MAX {
                break;
            }
        }
        Ok(batch.finish(Position::default(), 0))
    }

    fn slice(&self, before: i64, filter: &Filter, largest: i64) -> Result<Slice, ScanError> {
        let (place, mapping) = (self.place(), &self.mapping);
        let sql = format!(
            "SELECT {place}, {size}, {kind} FROM {from} WHERE {place} < :before{there} ORDER BY {place} DESC LIMIT {SLICE_ROWS}",
            size = mapping.size,
            kind = mapping.kind_bounded(),
            from = mapping.from,
            there = mapping.and_there(),
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(named_params! { ":before": before })?;
        let mut slice = Slice { rows: 0, last: before, is_last: false, largest: None };
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            let at = row.get(0)?;
            if at == slice.last {
                // It stands in the table and in its archive.
                continue;
            }
            slice.rows += 1;
            slice.last = at;
            let ValueRef::Integer(size) = row.get_ref(1)? else { continue };
            let is_wanted = || {
                let kind = mapping.kind.text(row.get_ref(2)?, "type", &mut None);
                Ok::<_, rusqlite::Error>(kind.is_none_or(|kind| filter.admits(&kind)))
            };
            if size > slice.largest.map_or(largest, |found| found.1) && is_wanted()? {
                slice.largest = Some((slice.last, size));
            }
        }
        slice.is_last = seen < SLICE_ROWS;
        Ok(slice)
    }
}

struct Slice {
    rows: u64,
    last: i64,
    /// There are no more.
    is_last: bool,
    /// Its place and size, where it is larger than the largest before.
    largest: Option<(i64, i64)>,
}

fn is_over(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}
