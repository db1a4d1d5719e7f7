//! The pending rows of a table read by row, listed in the declared order without one long look: in slices, each in a short read
//! transaction of its own, sorted here. A look at a million rows at once would keep the application's `-wal` from being checkpointed.
//!
//! Invariants:
//! 1. No read transaction sees more than [`SLICE_ROWS`] rows.
//! 2. A list holds nothing that was committed after it was begun: a later event of a key is never listed without an earlier one.
//!    New rows have greater rowids than all that are there; when the newest rows are deleted meanwhile, the limit goes down with them.
//! 3. Rows that were renumbered meanwhile (VACUUM, a rebuilt table) void what was listed: it is begun again.

use std::collections::{BinaryHeap, VecDeque};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, named_params};

use super::mapping::{Mapping, RowMapping};
use super::reader::ReadFault;
use crate::event::RowKey;

const SLICE_ROWS: usize = 2_000;

/// Which rows are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that are pending.
    Pending,
    /// Those with a greater rowid.
    NewerThan(i64),
}

#[derive(Debug, Default)]
pub struct Listing {
    /// Those that are free, in order; no more than asked for.
    pub rows: VecDeque<RowKey>,
    /// The greatest rowid of a free one.
    pub newest: i64,
    /// How many were pending, free or not.
    pub pending: u64,
}

/// What rows are sorted by: those without a number come last.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    has_no_number: bool,
    number: i64,
    time: Box<[u8]>,
    rowid: i64,
}

struct Listed {
    place: Place,
    row: RowKey,
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Listed {}

impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Listed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}

/// Lists the first `most` rows. `free` is an SQL condition, asked of each pending row once.
pub fn list(
    connection: &Connection,
    mapping: &Mapping,
    free: &str,
    scope: Scope,
    most: usize,
) -> Result<Listing, ReadFault> {
    loop {
        let mut walk = Walk::new(connection, mapping, free, scope, most)?;
        while walk.progress == Progress::Goes {
            connection.prepare_cached("BEGIN")?.execute([])?;
            let looked = walk.slice();
            connection.prepare_cached("COMMIT")?.execute([])?;
            looked?;
        }
        if walk.progress == Progress::Ended {
            return Ok(walk.listing());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Goes,
    Ended,
    /// The rows are not numbered any more as they were.
    Void,
}

struct Walk<'a> {
    connection: &'a Connection,
    table: &'static str,
    /// The first slice, and those that follow: the rest of one time, then later times. By rowid both are the same.
    first: String,
    rest: String,
    later: String,
    most: usize,
    /// The last row that was looked at.
    time: Option<Value>,
    rowid: i64,
    /// The greatest rowid that is looked at, and the schema's version; known from the first slice on.
    top: Option<i64>,
    schema: Option<i64>,
    progress: Progress,
    heap: BinaryHeap<Listed>,
    newest: i64,
    pending: u64,
}

impl<'a> Walk<'a> {
    fn new(
        connection: &'a Connection,
        mapping: &Mapping,
        free: &str,
        scope: Scope,
        most: usize,
    ) -> Result<Self, ReadFault> {
        let RowMapping { pending, number, .. } = mapping.rows.as_ref().expect("a table read by row has a row mapping");
        let time = mapping.time;
        let select = |condition: &str, order: &str| {
            format!(
                "SELECT {row}, o.rowid, {number}, {time}, {pending}, CASE WHEN o.rowid <= :top THEN {free} END \
                 FROM {from} WHERE {condition} ORDER BY {order} LIMIT {SLICE_ROWS}",
                row = mapping.row,
                from = mapping.from,
            )
        };
        let by_time = format!("{time}, o.rowid");
        let first = select(pending, &by_time);
        let walk = Self {
            connection,
            table: mapping.table,
            first,
            rest: select(&format!("{pending} AND {time} = :time AND o.rowid > :rowid"), "o.rowid"),
            later: select(&format!("{pending} AND {time} > :time"), &by_time),
            most,
            time: None,
            rowid: i64::MIN,
            top: None,
            schema: None,
            progress: Progress::Goes,
            heap: BinaryHeap::new(),
            newest: 0,
            pending: 0,
        };
        let from = match scope {
            Scope::Pending if has_index(connection, &walk.first)? => return Ok(walk),
            Scope::Pending => i64::MIN,
            Scope::NewerThan(rowid) => rowid,
        };
        let by_rowid = select("o.rowid > :rowid", "o.rowid");
        Ok(Self { first: by_rowid.clone(), rest: by_rowid, later: String::new(), rowid: from, ..walk })
    }

    fn slice(&mut self) -> Result<(), ReadFault> {
        let sql = format!("SELECT coalesce(max(rowid), 0) FROM {}", self.table);
        let top = self.connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0))?;
        self.top = Some(self.top.map_or(top, |before| before.min(top)));
        let schema = self.connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
        if *self.schema.get_or_insert(schema) != schema {
            self.progress = Progress::Void;
            return Ok(());
        }
        let mut seen = self.look(if self.time.is_none() { |walk| &walk.first } else { |walk| &walk.rest })?;
        if seen == 0 && self.time.is_some() && !self.later.is_empty() {
            seen = self.look(|walk| &walk.later)?;
        }
        if seen == 0 {
            self.progress = Progress::Ended;
        }
        Ok(())
    }

    fn look(&mut self, sql: fn(&Self) -> &String) -> Result<usize, ReadFault> {
        let mut statement = self.connection.prepare_cached(sql(self))?;
        for (name, value) in
            [(":top", Value::from(self.top)), (":rowid", self.rowid.into()), (":time", self.time.clone().into())]
        {
            if let Some(index) = statement.parameter_index(name)? {
                statement.raw_bind_parameter(index, value)?;
            }
        }
        let mut rows = statement.raw_query();
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            self.take(row)?;
        }
        Ok(seen)
    }

    fn take(&mut self, row: &Row<'_>) -> Result<(), ReadFault> {
        let time: Value = row.get(3)?;
        self.rowid = row.get(1)?;
        self.pending += u64::from(row.get::<_, Option<bool>>(4)?.unwrap_or(false));
        if row.get::<_, Option<bool>>(5)?.unwrap_or(false) {
            let number: Option<i64> = row.get(2)?;
            let place = Place {
                has_no_number: number.is_none(),
                number: number.unwrap_or(0),
                time: comparable(&time),
                rowid: self.rowid,
            };
            self.newest = self.newest.max(self.rowid);
            if self.heap.len() < self.most || self.heap.peek().is_some_and(|last| place < last.place) {
                self.heap.push(Listed { place, row: Mapping::row_key(row)? });
                if self.heap.len() > self.most {
                    self.heap.pop();
                }
            }
        }
        self.time = Some(time);
        Ok(())
    }

    fn listing(self) -> Listing {
        let rows = self.heap.into_sorted_vec().into_iter().map(|listed| listed.row).collect();
        Listing { rows, newest: self.newest, pending: self.pending }
    }
}

/// Times are written as `2026-11-21 03:15:20` and as `2026-11-21T03:15:20`, even in one table.
fn comparable(time: &Value) -> Box<[u8]> {
    match time {
        Value::Text(text) => text.replace(' ', "T").into_bytes().into(),
        Value::Blob(bytes) => bytes.as_slice().into(),
        _ => Box::default(),
    }
}

/// Whether an index brings the rows in the order of the statement: then a slice of them costs a slice.
fn has_index(connection: &Connection, sql: &str) -> Result<bool, ReadFault> {
    let mut statement = connection.prepare_cached(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    let plan = statement.query_map(named_params! { ":top": 0 }, |row| row.get::<_, String>(3))?;
    let steps = plan.collect::<Result<Vec<_>, _>>()?;
    Ok(!steps.iter().any(|step| step.contains("TEMP B-TREE")))
}
