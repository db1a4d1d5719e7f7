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
    /// The rowid of a free one that has no name by which it could be marked.
    pub nameless: Option<i64>,
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
    table: String,
    /// How many columns rows are sorted by.
    columns: usize,
    /// The first slice, and those that follow: the rest of one time, then later times. By rowid both are the same.
    first: String,
    rest: String,
    later: String,
    most: usize,
    /// The last row that was looked at.
    time: Option<Rank>,
    rowid: i64,
    /// The greatest rowid that is looked at, and the schema's version; known from the first slice on.
    top: Option<i64>,
    schema: Option<i64>,
    progress: Progress,
    heap: BinaryHeap<Listed>,
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
        most: usize,
    ) -> Result<Self, ReadFault> {
        let RowMapping { pending, order, walk: by, .. } =
            mapping.rows.as_ref().expect("a table read by row has a row mapping");
        let time = by.as_deref().unwrap_or("NULL");
        let sorted: String = order.iter().map(|column| format!(", {column}")).collect();
        let select = |condition: &str, order: &str| {
            format!(
                "SELECT {row}, o.rowid, {time}, {pending}, CASE WHEN o.rowid <= :top THEN {free} END{sorted} \
                 FROM {from} WHERE {condition} ORDER BY {order} LIMIT {SLICE_ROWS}",
                row = mapping.row_bounded(),
                from = mapping.from,
            )
        };
        let by_time = format!("{time}, o.rowid");
        let first = select(pending, &by_time);
        let walk = Self {
            connection,
            table: quoted(&mapping.table),
            columns: order.len(),
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
            nameless: None,
        };
        let from = match scope {
            Scope::Pending if by.is_some() && has_index(connection, &walk.first)? => return Ok(walk),
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
        let parameters: [(&str, &dyn ToSql); 3] = [(":top", &self.top), (":rowid", &self.rowid), (":time", &self.time)];
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
        self.time = Some(Rank::of(row.get_ref(2)?));
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
            if self.heap.len() < self.most || self.heap.peek().is_some_and(|last| place < last.place) {
                self.heap.push(Listed { place, row: key });
                if self.heap.len() > self.most {
                    self.heap.pop();
                }
            }
        }
        Ok(())
    }

    fn listing(self) -> Listing {
        let rows = self.heap.into_sorted_vec().into_iter().map(|listed| listed.row).collect();
        Listing { rows, newest: self.newest, pending: self.pending, nameless: self.nameless }
    }
}

/// Whether an index brings the rows in the order of the statement: then a slice of them costs a slice.
fn has_index(connection: &Connection, sql: &str) -> Result<bool, ReadFault> {
    let mut statement = connection.prepare_cached(&format!("EXPLAIN QUERY PLAN {sql}"))?;
    let plan = statement.query_map(named_params! { ":top": 0 }, |row| row.get::<_, String>(3))?;
    let steps = plan.collect::<Result<Vec<_>, _>>()?;
    Ok(!steps.iter().any(|step| step.contains("TEMP B-TREE")))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "this plays the application")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rusqlite::functions::FunctionFlags;

    use super::*;
    use crate::source::declared::{Declared, DeclaredRows, From, Mark, Pending, Take};
    use crate::source::fit;

    const ROWS: usize = 7_000;
    const TABLES: &str = include_str!("../../tests/tools/eventsource_generations/g4.sql");

    /// A table with ties, both ways of writing a time, rows without an event, and rows that are not pending; inserted in disorder.
    fn table(folder: &tempfile::TempDir) -> Connection {
        let connection = Connection::open(folder.path().join("app.db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
        connection.execute_batch(TABLES).unwrap();
        let transaction = connection.unchecked_transaction().unwrap();
        for n in (0..ROWS).map(|n| n * 4_999 % ROWS) {
            let separator = if n % 2 == 0 { ' ' } else { 'T' };
            insert(&transaction, n, &format!("2026-11-21{separator}03:15:{:02}", n * 31 % 3));
            if n % 3 > 0 {
                let event = "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                             VALUES ('e' || ?1, 'k', 'A', 'T', ?1, '', '{}')";
                transaction.prepare_cached(event).unwrap().execute([n as i64]).unwrap();
            }
        }
        transaction.execute("UPDATE event_outbox SET status = 'published' WHERE rowid % 11 = 0", []).unwrap();
        transaction.commit().unwrap();
        connection
    }

    fn insert(connection: &Connection, n: usize, time: &str) {
        let row =
            "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
                   VALUES ('r' || ?1, 'e' || ?1, 'T', 'k', 'A', '{}', ?2)";
        connection.prepare_cached(row).unwrap().execute(rusqlite::params![n as i64, time]).unwrap();
    }

    fn mapping(connection: &Connection) -> Mapping {
        let column = |name: &str| Take::column(name);
        let declared = Declared {
            from: From::Table {
                name: "event_outbox".into(),
                join: Some("LEFT JOIN events e ON e.event_id = o.event_id".into()),
            },
            position: Some(Take::First(vec!["e.global_position".into(), "rowid".into()])),
            allow_reused_positions: false,
            id: column("o.event_id"),
            key: Some(column("o.aggregate_id")),
            stream_id: None,
            stream_type: None,
            version: None,
            kind: column("o.event_type"),
            payload: column("o.event_data"),
            headers: None,
            time: Some(column("o.created_at")),
            tombstones: false,
            rows: Some(DeclaredRows {
                row: "o.id".into(),
                pending: Pending::Sql("o.status = 'pending'".into()),
                order: vec!["e.global_position".into(), "o.created_at".into()],
                on_delivered: Mark::Delete,
                on_retry: None,
                on_rejected: None,
                on_dead_letter: None,
            }),
            refuse: None,
        };
        fit::mapping(connection, &[declared]).unwrap().unwrap()
    }

    fn sorted(connection: &Connection, condition: &str, most: usize) -> VecDeque<RowKey> {
        let sql = format!(
            "SELECT o.id FROM event_outbox o LEFT JOIN events e ON e.event_id = o.event_id WHERE o.status = 'pending' AND {condition}
             ORDER BY e.global_position IS NULL, e.global_position, replace(o.created_at, ' ', 'T'), o.rowid LIMIT {most}"
        );
        let mut statement = connection.prepare(&sql).unwrap();
        let rows = statement.query_map([], Mapping::row_key).unwrap();
        rows.map(|key| key.unwrap().unwrap()).collect()
    }

    #[test]
    fn slices_list_what_one_statement_would() {
        let folder = tempfile::tempdir().unwrap();
        let connection = table(&folder);
        let mapping = mapping(&connection);
        let free = "CASE WHEN o.status = 'pending' THEN o.rowid % 7 > 0 END";
        let lists_all = || {
            for most in [1, 3_000, 100_000] {
                let listing = list(&connection, &mapping, free, Scope::Pending, most).unwrap();
                assert_eq!(listing.rows, sorted(&connection, "o.rowid % 7 > 0", most));
                assert_eq!(listing.pending, sorted(&connection, "true", ROWS).len() as u64);
            }
            let listing = list(&connection, &mapping, free, Scope::NewerThan(2_500), 4_000).unwrap();
            assert_eq!(listing.rows, sorted(&connection, "o.rowid % 7 > 0 AND o.rowid > 2500", 4_000));
        };
        lists_all();
        connection
            .execute_batch(
                "DROP INDEX idx_outbox_status_created; DROP INDEX idx_outbox_pending; DROP INDEX idx_outbox_event_id",
            )
            .unwrap();
        lists_all();
    }

    /// Whatever stands behind the look or before it.
    #[test]
    fn what_is_committed_meanwhile_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let connection = table(&folder);
        let before = sorted(&connection, "true", ROWS);
        let other = Connection::open(folder.path().join("app.db")).unwrap();
        let asked = AtomicU32::new(0);
        connection
            .create_scalar_function("meanwhile", 0, FunctionFlags::SQLITE_UTF8, move |_| {
                match asked.fetch_add(1, Ordering::Relaxed) {
                    2_500 => insert(&other, ROWS, "2026-11-21T03:15:00"),
                    2_600 => insert(&other, ROWS + 1, "2026-11-21T03:15:09"),
                    _ => {}
                }
                Ok(true)
            })
            .unwrap();
        let listing = list(&connection, &mapping(&connection), "meanwhile()", Scope::Pending, 100_000).unwrap();
        assert_eq!(sorted(&connection, "true", 100_000).len(), before.len() + 2);
        assert_eq!(listing.rows, before);
    }

    #[test]
    fn rows_that_are_renumbered_meanwhile_are_listed_anew() {
        let folder = tempfile::tempdir().unwrap();
        let connection = table(&folder);
        let other = Connection::open(folder.path().join("app.db")).unwrap();
        let asked = AtomicU32::new(0);
        connection
            .create_scalar_function("meanwhile", 0, FunctionFlags::SQLITE_UTF8, move |_| {
                if asked.fetch_add(1, Ordering::Relaxed) == 2_500 {
                    other.execute_batch("DELETE FROM event_outbox WHERE rowid < 1000; VACUUM").unwrap();
                }
                Ok(true)
            })
            .unwrap();
        let listing = list(&connection, &mapping(&connection), "meanwhile()", Scope::Pending, 100_000).unwrap();
        assert_eq!(listing.rows, sorted(&connection, "true", 100_000));
    }
}
