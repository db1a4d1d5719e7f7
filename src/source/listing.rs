//! The pending rows of a table read by row, listed in the declared order without one long look: in slices, each in a short read
//! transaction of its own, sorted here. A look at a million rows at once would keep the application's `-wal` from being checkpointed.
//!
//! Invariants:
//! 1. No read transaction sees more than [`SLICE_ROWS`] rows.
//! 2. A list holds nothing that was committed after it was begun: a later event of a key is never listed without an earlier one.
//!    New rows have greater rowids than all that are there; when the newest rows are deleted meanwhile, the limit goes down with them.
//! 3. Rows that were renumbered meanwhile (VACUUM, a rebuilt table) void what was listed: it is begun again.

use std::collections::{BinaryHeap, VecDeque};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql, named_params};

use super::fit::quoted;
use super::mapping::{Mapping, RowMapping};
use super::reader::ReadFault;
use crate::event::RowKey;
use crate::sqlite::open::{self, TimeLimit};

const SLICE_ROWS: usize = 2_000;
/// What `pending` is where every row is.
pub const ALL_PENDING: &str = "(true)";

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
    /// The rowid of a free one that has no name by which it could be marked.
    pub nameless: Option<i64>,
    /// There are more.
    pub is_cut: bool,
}

/// How long a list may become. Names and what is sorted by may have any length, so their number alone bounds nothing.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub rows: usize,
    pub bytes: usize,
}

/// What rows are sorted by.
#[derive(PartialEq)]
struct Place {
    order: Vec<Rank>,
    rowid: i64,
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order).then(self.rowid.cmp(&other.rowid))
    }
}

/// A value among others, as SQLite sorts them, except that `NULL` comes last.
#[derive(PartialEq, Debug)]
enum Rank {
    Number(f64),
    Integer(i64),
    /// SQLite takes any bytes for text.
    Text(Box<[u8]>),
    Blob(Box<[u8]>),
    Null,
}

impl Rank {
    fn of(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Rank::Null,
            ValueRef::Integer(number) => Rank::Integer(number),
            ValueRef::Real(number) => Rank::Number(number),
            ValueRef::Text(text) => Rank::Text(text.into()),
            ValueRef::Blob(bytes) => Rank::Blob(bytes.into()),
        }
    }

    fn class(&self) -> u8 {
        match self {
            Rank::Number(_) | Rank::Integer(_) => 0,
            Rank::Text(_) => 1,
            Rank::Blob(_) => 2,
            Rank::Null => 3,
        }
    }
}

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Rank::Integer(one), Rank::Integer(two)) => one.cmp(two),
            (Rank::Number(one), Rank::Number(two)) => one.total_cmp(two),
            (Rank::Integer(one), Rank::Number(two)) => (*one as f64).total_cmp(two),
            (Rank::Number(one), Rank::Integer(two)) => one.total_cmp(&(*two as f64)),
            (Rank::Text(one), Rank::Text(two)) | (Rank::Blob(one), Rank::Blob(two)) => one.cmp(two),
            _ => self.class().cmp(&other.class()),
        }
    }
}

impl ToSql for Rank {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Rank::Null => ValueRef::Null,
            Rank::Integer(number) => ValueRef::Integer(*number),
            Rank::Number(number) => ValueRef::Real(*number),
            Rank::Text(text) => ValueRef::Text(text),
            Rank::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

struct Listed {
    place: Place,
    row: RowKey,
}

impl Listed {
    fn bytes(&self) -> usize {
        let name = match &self.row {
            RowKey::Integer(_) => 0,
            RowKey::Text(bytes) | RowKey::Blob(bytes) => bytes.len(),
        };
        let of = |rank: &Rank| match rank {
            Rank::Text(bytes) | Rank::Blob(bytes) => size_of::<Rank>() + bytes.len(),
            _ => size_of::<Rank>(),
        };
        size_of::<Self>() + name + self.place.order.iter().map(of).sum::<usize>()
    }
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

/// Lists the first rows, at most so many. `free` is an SQL condition, asked of each pending row once; `limit` is for each slice anew.
pub fn list(
    connection: &Connection,
    mapping: &Mapping,
    free: &str,
    scope: Scope,
    most: Most,
    limit: &TimeLimit,
) -> Result<Listing, ReadFault> {
    loop {
        let mut walk = Walk::new(connection, mapping, free, scope, most)?;
        while walk.progress == Progress::Goes {
            limit.begin();
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
    table: String,
    /// How many columns rows are sorted by.
    columns: usize,
    way: Way,
    /// The first slice, and those that follow: the rest of one value, then greater values. By rowid both are the same.
    first: String,
    rest: String,
    later: String,
    most: Most,
    /// The last row that was looked at.
    value: Option<Rank>,
    rowid: i64,
    /// The greatest rowid that is looked at, and the schema's version; known from the first slice on.
    top: Option<i64>,
    schema: Option<i64>,
    progress: Progress,
    heap: BinaryHeap<Listed>,
    bytes: usize,
    /// The first that had no room: none behind it is listed, or it would be overtaken.
    cut: Option<Place>,
    newest: i64,
    pending: u64,
    nameless: Option<i64>,
}

impl<'a> Walk<'a> {
    fn new(
        connection: &'a Connection,
        mapping: &Mapping,
        free: &str,
        scope: Scope,
        most: Most,
    ) -> Result<Self, ReadFault> {
        let RowMapping { pending, walk: time, tested, .. } =
            mapping.rows.as_ref().expect("a table read by row has a row mapping");
        let by_rowid = |rows: &str, from: i64| {
            let sql = select(mapping, free, "NULL", &format!("{rows}o.rowid > :rowid"), "o.rowid");
            Self { first: sql.clone(), rest: sql, rowid: from, ..Self::over(connection, mapping, most) }
        };
        if let Scope::NewerThan(rowid) = scope {
            return Ok(by_rowid("", rowid));
        }
        let by_column = |column: &String| {
            let order = format!("{column}, o.rowid");
            let same = format!("{pending} AND {column} = :value AND o.rowid > :rowid");
            Self {
                first: select(mapping, free, column, pending, &order),
                rest: select(mapping, free, column, &same, "o.rowid"),
                later: select(mapping, free, column, &format!("{pending} AND {column} > :value"), &order),
                ..Self::over(connection, mapping, most)
            }
        };
        let by_time = time.iter().map(|time| Self { way: Way::ByTime, ..by_column(time) });
        let by_pending = Self { way: Way::ByIndex, ..by_rowid(&format!("{pending} AND "), i64::MIN) };
        let by_test = tested.iter().map(|column| Self { way: Way::ByIndex, ..by_column(column) });
        for walk in by_time.chain([by_pending]).chain(by_test) {
            if finds(connection, mapping, &walk.first)? {
                return Ok(walk);
            }
        }
        Ok(by_rowid("", i64::MIN))
    }

    fn over(connection: &'a Connection, mapping: &Mapping, most: Most) -> Self {
        Self {
            connection,
            way: Way::Whole,
            table: quoted(&mapping.table),
            columns: mapping.rows.as_ref().map_or(0, |rows| rows.order.len()),
            first: String::new(),
            rest: String::new(),
            later: String::new(),
            most,
            value: None,
            rowid: i64::MIN,
            top: None,
            schema: None,
            progress: Progress::Goes,
            heap: BinaryHeap::new(),
            bytes: 0,
            cut: None,
            newest: 0,
            pending: 0,
            nameless: None,
        }
    }

    fn slice(&mut self) -> Result<(), ReadFault> {
        let sql = format!("SELECT coalesce(max(rowid), 0) FROM {}", self.table);
        let top = self.connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0))?;
        self.top = Some(self.top.map_or(top, |before| before.min(top)));
        let schema = open::schema_version(self.connection)?;
        if *self.schema.get_or_insert(schema) != schema {
            self.progress = Progress::Void;
            return Ok(());
        }
        let mut seen = self.look(if self.value.is_none() { |walk| &walk.first } else { |walk| &walk.rest })?;
        if seen == 0 && self.value.is_some() && !self.later.is_empty() {
            seen = self.look(|walk| &walk.later)?;
        }
        if seen == 0 {
            self.progress = Progress::Ended;
        }
        Ok(())
    }

    fn look(&mut self, sql: fn(&Self) -> &String) -> Result<usize, ReadFault> {
        let mut statement = self.connection.prepare_cached(sql(self))?;
        let parameters: [(&str, &dyn ToSql); 3] =
            [(":top", &self.top), (":rowid", &self.rowid), (":value", &self.value)];
        for (name, value) in parameters {
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
        self.rowid = row.get(1)?;
        self.value = Some(Rank::of(row.get_ref(2)?));
        self.pending += u64::from(row.get::<_, Option<bool>>(3)?.unwrap_or(false));
        if row.get::<_, Option<bool>>(4)?.unwrap_or(false) {
            let mut order = Vec::with_capacity(self.columns);
            for index in 0..self.columns {
                order.push(Rank::of(row.get_ref(5 + index)?));
            }
            let place = Place { order, rowid: self.rowid };
            self.newest = self.newest.max(self.rowid);
            let Some(key) = Mapping::row_key(row)? else {
                self.nameless = Some(self.rowid);
                return Ok(());
            };
            if self.cut.as_ref().is_none_or(|cut| place < *cut) {
                self.add(Listed { place, row: key });
            }
        }
        Ok(())
    }

    fn add(&mut self, listed: Listed) {
        self.bytes += listed.bytes();
        self.heap.push(listed);
        while self.heap.len() > self.most.rows || (self.bytes > self.most.bytes && self.heap.len() > 1) {
            let Some(last) = self.heap.pop() else { break };
            self.bytes -= last.bytes();
            self.cut = Some(last.place);
        }
    }

    fn listing(self) -> Listing {
        let rows = self.heap.into_sorted_vec().into_iter().map(|listed| listed.row).collect();
        Listing {
            rows,
            newest: self.newest,
            pending: self.pending,
            nameless: self.nameless,
            is_cut: self.cut.is_some(),
        }
    }
}

/// How all pending rows are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By an index, in the declared order of time.
    ByTime,
    /// By an index, in another order.
    ByIndex,
    /// Every row of the table is looked at.
    Whole,
}

/// The way, and SQLite's plan for it.
pub fn way(connection: &Connection, mapping: &Mapping) -> Result<(Way, Vec<String>), ReadFault> {
    let walk = Walk::new(connection, mapping, "1", Scope::Pending, Most { rows: 0, bytes: 0 })?;
    Ok((walk.way, plan(connection, &walk.first)?))
}

/// A slice, with the column by whose value the next one is found.
fn select(mapping: &Mapping, free: &str, value: &str, condition: &str, order: &str) -> String {
    let rows = mapping.rows.as_ref().expect("a table read by row has a row mapping");
    let sorted: String = rows.order.iter().map(|column| format!(", {column}")).collect();
    format!(
        "SELECT {row}, o.rowid, {value}, {pending}, CASE WHEN o.rowid <= :top THEN {free} END{sorted} \
         FROM {from} WHERE {condition} ORDER BY {order} LIMIT {SLICE_ROWS}",
        row = mapping.row_bounded(),
        pending = rows.pending,
        from = mapping.from,
    )
}

fn plan(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare_cached(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    statement.query_map(named_params! { ":top": 0 }, |row| row.get(3))?.collect()
}

/// Whether an index brings pending rows, and no others, in the order of the statement: then a slice of them costs a slice.
fn finds(connection: &Connection, mapping: &Mapping, sql: &str) -> rusqlite::Result<bool> {
    let steps = plan(connection, sql)?;
    let is_sorted = !steps.iter().any(|step| step.contains("TEMP B-TREE"));
    let all_pending = mapping.rows.as_ref().is_some_and(|rows| rows.pending == ALL_PENDING);
    let Some((kind, index)) = steps.iter().find_map(|step| index_of(step)) else {
        return Ok(is_sorted && all_pending && sql.contains(":rowid"));
    };
    let is_narrow = kind == "SEARCH"
        || all_pending
        || connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE name = ?2 AND partial)")?
            .query_row([&mapping.table, index], |row| row.get(0))?;
    Ok(is_sorted && is_narrow)
}

/// `SEARCH` or `SCAN`, and the index, of the step that reads the table itself.
fn index_of(step: &str) -> Option<(&str, &str)> {
    let (kind, rest) = step.split_once(" o USING ")?;
    let (_, index) = rest.split_once("INDEX ").filter(|(before, _)| before.is_empty() || *before == "COVERING ")?;
    Some((kind, index.split_once(" (").map_or(index, |(name, _)| name)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "this plays the application")]
mod tests;
