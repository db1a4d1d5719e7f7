//! A table read by row: pending rows in the declared order; what became of each is marked in the table.
//!
//! No position is stored. What is in flight, and the keys that are held, are left out inside the statement (by the SQL function
//! `outboxd_free`), so that a table full of held events never starves what flows. A pass lists the pending rows once, in order;
//! batches are taken from the list and read anew. Between full passes over a table with many held rows, only rows newer than
//! those of the last pass are listed; a full pass follows at least every [`FULL_PASS_EVERY`].

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, named_params};

use super::mapping::{Mapping, Pushed};
use super::filter::Filter;
use super::reader::{Look, ReadFault, ReadRequest, RowsUpdate};
use crate::clock;
use crate::event::{Batch, BatchBuilder, Position, RowKey};

const PASS_ROWS_MAX: usize = 50_000;
const FULL_PASS_EVERY: Duration = Duration::from_secs(5);
/// As long as fewer rows are passed over, every pass is a full one.
const PASSED_OVER_FEW: usize = 1_000;

#[derive(Debug)]
pub struct Rows {
    mapping: Mapping,
    // Shared with the SQL function, which SQLite calls on the same thread: never contended.
    excluded: Arc<Mutex<Excluded>>,
    pass: VecDeque<RowKey>,
    last_full_pass: Option<Instant>,
    /// The newest row of the last full pass.
    seen_rowid: i64,
}

#[derive(Debug, Default)]
struct Excluded {
    in_flight: HashSet<RowKey>,
    held_keys: HashSet<Box<[u8]>>,
    /// Dead rows: found pending, the application asks for a retry.
    dead: HashSet<RowKey>,
    revived: Vec<RowKey>,
    passed_over: usize,
    filter: Arc<Filter>,
}

impl Excluded {
    fn is_free(&mut self, row: &RowKey, key: &[u8], kind: &str) -> bool {
        if !self.filter.admits(kind) {
            return false;
        }
        if self.dead.contains(row) {
            self.revived.push(row.clone());
            return false;
        }
        let free = !self.in_flight.contains(row) && !self.held_keys.contains(key);
        self.passed_over += usize::from(!free);
        free
    }
}

impl Rows {
    pub fn new(connection: &Connection, mapping: Mapping) -> Result<Self, ReadFault> {
        let excluded = Arc::new(Mutex::new(Excluded::default()));
        let shared = excluded.clone();
        connection.create_scalar_function("outboxd_free", 3, FunctionFlags::SQLITE_UTF8, move |call| {
            let row = match call.get_raw(0) {
                ValueRef::Integer(n) => RowKey::Integer(n),
                ValueRef::Text(text) => RowKey::Text(String::from_utf8_lossy(text).into()),
                _ => RowKey::Text("".into()),
            };
            let integer;
            let key: &[u8] = match call.get_raw(1) {
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
                ValueRef::Integer(n) => {
                    integer = n.to_string();
                    integer.as_bytes()
                }
                _ => &[],
            };
            let kind = match call.get_raw(2) {
                ValueRef::Text(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
                _ => "",
            };
            Ok(shared.lock().expect("no panic happens under this lock").is_free(&row, key, kind))
        })?;
        Ok(Self { mapping, excluded, pass: VecDeque::new(), last_full_pass: None, seen_rowid: 0 })
    }

    pub fn look(&self, connection: &Connection) -> Result<Look, ReadFault> {
        let rows = self.rows();
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE {})", self.mapping.from, rows.pending);
        let has_events = connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
        Ok(Look { head: Position::default(), head_id: String::new(), has_events, mapping: self.mapping.clone() })
    }

    /// How many rows are pending, in flight and held ones included.
    pub fn pending(&self, connection: &Connection) -> Result<u64, ReadFault> {
        let sql = format!("SELECT count(*) FROM {} o WHERE {}", self.mapping.table, self.rows().pending);
        Ok(connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0))? as u64)
    }

    fn rows(&self) -> &super::mapping::RowMapping {
        self.mapping.rows.as_ref().expect("a table read by row has a row mapping")
    }

    /// Forgets what was in flight: the engine starts anew.
    pub fn restart(&mut self) {
        *self.excluded() = Excluded::default();
        self.pass.clear();
        self.last_full_pass = None;
    }

    /// Takes note of what was settled, held and released since.
    pub fn update(&mut self, update: RowsUpdate) {
        let released = !update.free.is_empty();
        {
            let mut excluded = self.excluded();
            for row in &update.settled {
                excluded.in_flight.remove(row);
                excluded.dead.remove(row);
            }
            excluded.held_keys.extend(update.hold);
            for key in &update.free {
                excluded.held_keys.remove(key);
            }
            excluded.dead.extend(update.dead);
        }
        if released {
            self.pass.clear();
            self.last_full_pass = None;
        }
    }

    fn excluded(&self) -> std::sync::MutexGuard<'_, Excluded> {
        self.excluded.lock().expect("no panic happens under this lock")
    }

    /// The next pending rows; `None` when every pending row is in flight or held. Also: dead rows found pending again.
    pub fn read(&mut self, connection: &Connection, request: &ReadRequest) -> Result<(Option<Batch>, Vec<RowKey>), ReadFault> {
        self.excluded().filter = request.filter.clone();
        if self.pass.is_empty() {
            self.list(connection)?;
        }
        let revived = std::mem::take(&mut self.excluded().revived);
        let filter = format!("{} = :row AND {}", self.mapping.row, self.rows().pending);
        let sql = self.mapping.select(request.event_bytes_max, &filter, "");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut batch = BatchBuilder::with_capacity(request.events_max.min(1024), 64 << 10);
        while batch.len() < request.events_max && batch.bytes() < request.bytes_max {
            let Some(key) = self.pass.pop_front() else { break };
            let mut rows = match &key {
                RowKey::Integer(n) => statement.query(named_params! { ":row": n })?,
                RowKey::Text(text) => statement.query(named_params! { ":row": &**text })?,
            };
            let Some(row) = rows.next()? else { continue };
            let pushed = self.mapping.push(row, &mut batch, request.event_bytes_max, |kind| request.filter.admits(kind))?;
            if matches!(pushed, Pushed::Taken) {
                self.excluded().in_flight.insert(key.clone());
                batch.row_key(key);
            }
        }
        let batch = (!batch.is_empty()).then(|| batch.finish(Position::default(), clock::now_micros()));
        Ok((batch, revived))
    }

    /// Rows were passed over, and it is time to look at all of them again.
    pub fn is_full_pass_due(&self) -> bool {
        self.last_full_pass.is_some_and(|last| last.elapsed() >= FULL_PASS_EVERY)
            && self.excluded().passed_over >= PASSED_OVER_FEW
    }

    /// Lists pending rows in order.
    fn list(&mut self, connection: &Connection) -> Result<(), ReadFault> {
        let rows = self.rows().clone();
        let due = self.last_full_pass.is_none_or(|last| last.elapsed() >= FULL_PASS_EVERY);
        let full = due || self.excluded().passed_over < PASSED_OVER_FEW;
        // The unary plus keeps SQLite from reading every pending row by its index where only the newest are wanted.
        let newer = format!("+{} AND o.rowid > :seen", rows.pending);
        let pending = if full { rows.pending } else { &newer };
        if full {
            self.excluded().passed_over = 0;
        }
        let sql = format!(
            "SELECT {row}, o.rowid FROM {from} WHERE {pending} AND outboxd_free({row}, {key}, {kind}) ORDER BY {order} LIMIT {PASS_ROWS_MAX}",
            row = self.mapping.row,
            key = self.mapping.key,
            kind = self.mapping.kind,
            from = self.mapping.from,
            order = rows.order,
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut listed =
            if full { statement.query([])? } else { statement.query(named_params! { ":seen": self.seen_rowid })? };
        let mut newest = 0;
        while let Some(row) = listed.next()? {
            self.pass.push_back(Mapping::row_key(row)?);
            newest = newest.max(row.get::<_, i64>(1)?);
        }
        if full {
            // A list that was cut goes on with a full pass.
            self.last_full_pass = (self.pass.len() < PASS_ROWS_MAX).then(Instant::now);
            self.seen_rowid = self.seen_rowid.max(newest);
        }
        Ok(())
    }

    /// These rows, pending or not, in the order asked for; those that are gone are left out.
    pub fn fetch(&self, connection: &Connection, keys: &[RowKey], event_bytes_max: usize) -> Result<Batch, ReadFault> {
        let sql = self.mapping.select(event_bytes_max, &format!("{} = :row", self.mapping.row), "");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut batch = BatchBuilder::default();
        for key in keys {
            let mut rows = match key {
                RowKey::Integer(n) => statement.query(named_params! { ":row": n })?,
                RowKey::Text(text) => statement.query(named_params! { ":row": &**text })?,
            };
            if let Some(row) = rows.next()? {
                self.mapping.push(row, &mut batch, event_bytes_max, |_| true)?;
                batch.row_key(key.clone());
            }
        }
        Ok(batch.finish(Position::default(), clock::now_micros()))
    }
}
