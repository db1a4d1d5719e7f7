//! A table read by row: pending rows in the declared order; what became of each is marked in the table.
//!
//! No position is stored. What is in flight, and the keys that are held, are left out inside the statement (by the SQL function
//! `outboxd_free`), so that a table full of held events never starves what flows. A pass lists the pending rows once, in order
//! ([`super::listing`]); batches are taken from the list and read anew. Between full passes over a table with many rows that are passed over, only rows newer
//! than those of the last full pass are listed; a full pass follows at least every [`FULL_PASS_EVERY`].
//!
//! Invariants:
//! 1. A row is handed out once, until it is settled; one of a held key never.
//! 2. A key that was freed is handed out again only from a full pass that began afterwards: rows that were passed over stand before
//!    what is left of an older list.
//! 3. A row of a key that was held, listed in the first full pass after it was freed, says that it may have been sent before: what was in
//!    flight behind the refused one stays pending.
//! 4. What was told ([`RowsUpdate`]) outlives the connection.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::{Connection, Statement, named_params};

use super::decode::Field;
use super::filter::Filter;
use super::fit::quoted;
use super::listing::{self, Most, Scope};
use super::mapping::{Mapping, RowMapping};
use super::plan::Plan;
use super::reader::{Halt, Look, ReadFault, ReadRequest};
use crate::clock;
use crate::controls::{self, Protection};
use crate::event::{Batch, BatchBuilder, Position, RowKey, hold_key};
use crate::sqlite::open::{self, TimeLimit};

const PASS_ROWS_MAX: usize = 50_000;
const PASS: Most = Most { rows: PASS_ROWS_MAX, bytes: 16 << 20 };
const FULL_PASS_EVERY: Duration = Duration::from_secs(5);
/// As long as fewer rows are passed over, every pass is a full one.
const PASSED_OVER_FEW: usize = 1_000;
/// A list that is not used up is thrown away for keys that were freed only after so many times what a full pass took: keys
/// that are freed one after another must not make it list for ever.
const RELIST_FACTOR: u32 = 4;

/// For sources read by row: what changed since the last request, in the order in which it happened.
#[derive(Debug, Default)]
pub struct RowsUpdate {
    /// A new session: what was told before is void.
    anew: bool,
    changes: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Settled(RowKey),
    Hold(Box<[u8]>),
    Free(Box<[u8]>),
    Dead(RowKey),
    Ordinary(RowKey),
}

impl RowsUpdate {
    pub fn anew() -> Self {
        Self { anew: true, changes: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.anew && self.changes.is_empty()
    }

    /// The reader does not know of a held key yet.
    pub fn holds_any(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Hold(_)))
    }

    pub fn settled(&mut self, row: RowKey) {
        self.changes.push(Change::Settled(row));
    }

    pub fn hold(&mut self, key: Box<[u8]>) {
        self.changes.push(Change::Hold(key));
    }

    pub fn free(&mut self, key: Box<[u8]>) {
        self.changes.push(Change::Free(key));
    }

    pub fn dead(&mut self, row: RowKey) {
        self.changes.push(Change::Dead(row));
    }

    /// A row that was found revived and of which nothing is recorded any more: it is read like every other.
    pub fn ordinary(&mut self, row: RowKey) {
        self.changes.push(Change::Ordinary(row));
    }

    /// Adds what happened later.
    pub fn append(&mut self, later: RowsUpdate) {
        if later.anew {
            *self = later;
        } else {
            self.changes.extend(later.changes);
        }
    }
}

/// What the engine told of rows and keys.
#[derive(Debug, Default)]
pub struct Excluded {
    in_flight: HashSet<RowKey>,
    held_keys: HashSet<Box<[u8]>>,
    /// Free, but not yet for what is left of the current list.
    freed_keys: Vec<Box<[u8]>>,
    /// Free since the current list was made.
    released_keys: HashSet<Box<[u8]>>,
    /// Dead rows: found pending, the application asks for a retry.
    dead: HashSet<RowKey>,
    /// Nothing in a row tells that it is dead: it stays pending.
    dead_rows_stay: bool,
    revived: Vec<RowKey>,
    /// Rows stand in the table that no list but a full one finds.
    wants_full_pass: bool,
    passed_over: usize,
    filter: Arc<Filter>,
}

/// Shared with the SQL function, which SQLite calls on the same thread: never contended.
pub type Shared = Arc<Mutex<Excluded>>;

/// Takes note without a connection.
pub fn update(shared: &Shared, update: RowsUpdate) {
    shared.lock().expect("no panic happens under this lock").update(update);
}

impl Excluded {
    fn update(&mut self, update: RowsUpdate) {
        if update.anew {
            *self = Excluded::default();
        }
        for change in update.changes {
            match change {
                Change::Settled(row) => {
                    self.in_flight.remove(&row);
                    self.dead.remove(&row);
                }
                Change::Hold(key) => {
                    self.freed_keys.retain(|freed| *freed != key);
                    self.held_keys.insert(key);
                }
                Change::Free(key) if controls::is_off(Protection::Overtaking) => drop(self.held_keys.remove(&key)),
                Change::Free(key) => {
                    if self.held_keys.contains(&key) {
                        self.freed_keys.push(key);
                    }
                    self.wants_full_pass = true;
                }
                Change::Dead(row) => drop(self.dead.insert(row)),
                Change::Ordinary(row) => {
                    self.in_flight.remove(&row);
                    self.wants_full_pass = true;
                }
            }
        }
    }

    fn is_free(&mut self, row: &RowKey, key: &[u8], kind: &str) -> bool {
        if self.dead_rows_stay && self.dead.contains(row) {
            self.passed_over += 1;
            return false;
        }
        if self.filter.admits(kind) && self.dead.remove(row) {
            // The engine releases it; until then it is not read like another.
            self.in_flight.insert(row.clone());
            self.revived.push(row.clone());
            return false;
        }
        let free = self.filter.admits(kind) && !self.in_flight.contains(row) && !self.held_keys.contains(key);
        self.passed_over += usize::from(!free);
        free
    }

    fn begin_full_pass(&mut self) {
        self.passed_over = 0;
        self.wants_full_pass = false;
        for key in std::mem::take(&mut self.freed_keys) {
            self.held_keys.remove(&key);
            self.released_keys.insert(key);
        }
    }
}

#[derive(Debug)]
pub struct Rows {
    mapping: Mapping,
    excluded: Shared,
    pass: VecDeque<RowKey>,
    /// `None`: the next one is to be a full one.
    last_full_pass: Option<FullPass>,
    /// The newest row of the last full pass.
    seen_rowid: i64,
    /// How many rows were pending then.
    listed_pending: u64,
    limit: TimeLimit,
}

#[derive(Clone, Copy, Debug)]
struct FullPass {
    ended: Instant,
    took: Duration,
    data_version: i64,
}

impl Rows {
    pub fn new(
        connection: &Connection,
        mapping: Mapping,
        excluded: Shared,
        limit: TimeLimit,
    ) -> Result<Self, ReadFault> {
        let shared = excluded.clone();
        let Mapping { key, id, kind, .. } = mapping.clone();
        let stays = mapping.rows.as_ref().is_some_and(|rows| rows.on_rejected.is_empty());
        connection.create_scalar_function("outboxd_free", 5, FunctionFlags::SQLITE_UTF8, move |call| {
            let mut excluded = shared.lock().expect("no panic happens under this lock");
            excluded.dead_rows_stay = stays;
            Ok(is_free(&mut excluded, call, [&key, &id, &kind]))
        })?;
        Ok(Self {
            mapping,
            excluded,
            pass: VecDeque::new(),
            last_full_pass: None,
            seen_rowid: 0,
            listed_pending: 0,
            limit,
        })
    }

    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub fn look(&self, connection: &Connection) -> Result<Look, ReadFault> {
        let rows = self.rows();
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE {})", self.mapping.from, rows.pending);
        let has_events = connection.prepare_cached(&sql)?.query_row([], |row| row.get(0))?;
        let mapping = self.mapping.clone();
        let plan = Plan::of(connection, &mapping)?;
        Ok(Look {
            before_first: Position::default(),
            head: Position::default(),
            head_id: String::new(),
            has_events,
            mapping,
            plan,
            warnings: Vec::new(),
        })
    }

    /// How many rows are pending, in flight and held ones included. Many are not counted anew: then it is what the last full pass found.
    pub fn pending(&self, connection: &Connection) -> Result<u64, ReadFault> {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} o WHERE {} LIMIT {PASS_ROWS_MAX})",
            quoted(&self.mapping.table),
            self.rows().pending
        );
        let counted = connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0))? as u64;
        Ok(if counted < PASS_ROWS_MAX as u64 { counted } else { counted.max(self.listed_pending) })
    }

    fn rows(&self) -> &RowMapping {
        self.mapping.rows.as_ref().expect("a table read by row has a row mapping")
    }

    /// Takes note of what was settled, held and released since.
    pub fn update(&mut self, update: RowsUpdate) {
        if update.anew {
            self.pass.clear();
            self.last_full_pass = None;
        }
        self.excluded().update(update);
    }

    fn excluded(&self) -> MutexGuard<'_, Excluded> {
        self.excluded.lock().expect("no panic happens under this lock")
    }

    /// Lists anew when the list is used up, or does not show what has to be seen. To be called outside of a transaction: it has its own.
    pub fn prepare(&mut self, connection: &Connection, filter: &Arc<Filter>) -> Result<(), ReadFault> {
        self.excluded().filter = filter.clone();
        if self.pass.is_empty() || (self.excluded().wants_full_pass && self.is_relist_paid_for()) {
            self.list(connection)?;
        }
        Ok(())
    }

    /// The next rows of the list that are still pending; `None` when every pending row is in flight or held. Also: dead rows found
    /// pending again. A batch that is handed on has to be told of ([`Rows::handed_out`]).
    pub fn read(
        &mut self,
        connection: &Connection,
        request: &ReadRequest,
    ) -> Result<(Option<Batch>, Vec<RowKey>), ReadFault> {
        let filter = format!("{} = :row AND {}", self.mapping.row, self.free());
        let sql = self.mapping.select(request.event_bytes_max, &filter, "");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut batch = BatchBuilder::with_capacity(request.events_max.min(1024), 64 << 10);
        while batch.len() < request.events_max && batch.bytes() < request.bytes_max {
            let Some(key) = self.pass.pop_front() else { break };
            let mut rows = by_name(&mut statement, &key)?;
            let Some(row) = rows.next()? else { continue };
            self.mapping.push(row, &mut batch, request.event_bytes_max, |_| true)?;
            batch.row_key(key);
        }
        let mut batch = (!batch.is_empty()).then(|| batch.finish(Position::default(), clock::now_micros()));
        let mut excluded = self.excluded();
        if let Some(batch) = batch.as_mut().filter(|_| !excluded.released_keys.is_empty()) {
            batch.note_again(|event| excluded.released_keys.contains(event.hold_key().as_ref()));
        }
        Ok((batch, std::mem::take(&mut excluded.revived)))
    }

    /// The batch is with the engine now.
    pub fn handed_out(&mut self, batch: &Batch) {
        self.excluded().in_flight.extend((0..batch.len()).filter_map(|index| batch.row_key(index).cloned()));
    }

    /// A list would find rows that were passed over, although nothing was committed since.
    pub fn is_full_pass_due(&self, data_version: i64) -> bool {
        let excluded = self.excluded();
        let paid = self.is_relist_paid_for();
        (excluded.wants_full_pass && paid)
            || (excluded.passed_over >= PASSED_OVER_FEW
                && self
                    .last_full_pass
                    .is_some_and(|last| last.ended.elapsed() >= FULL_PASS_EVERY && last.data_version != data_version))
    }

    fn is_relist_paid_for(&self) -> bool {
        self.last_full_pass.is_none_or(|last| last.ended.elapsed() >= last.took * RELIST_FACTOR)
    }

    /// The condition under which a row is handed out. `CASE` keeps SQLite from asking of rows that are not pending.
    fn free(&self) -> String {
        let mapping = &self.mapping;
        let (row, key) = (mapping.row_bounded(), mapping.key_bounded());
        let (id, kind) = (mapping.id_bounded(), mapping.kind_bounded());
        let (pending, position) = (&self.rows().pending, &mapping.position);
        format!("{pending} AND CASE WHEN {pending} THEN outboxd_free({row}, {key}, {id}, {kind}, {position}) END")
    }

    /// Lists pending rows in order.
    fn list(&mut self, connection: &Connection) -> Result<(), ReadFault> {
        let began = Instant::now();
        let due = self.last_full_pass.is_none_or(|last| last.ended.elapsed() >= FULL_PASS_EVERY);
        let full = {
            let mut excluded = self.excluded();
            let wanted = excluded.wants_full_pass && self.is_relist_paid_for();
            let full = due || wanted || excluded.passed_over < PASSED_OVER_FEW;
            // After a list that was cut, the next one goes on with it.
            if self.last_full_pass.is_some() {
                excluded.released_keys.clear();
            }
            if full {
                excluded.begin_full_pass();
            }
            full
        };
        let scope = if full { Scope::Pending } else { Scope::NewerThan(self.seen_rowid) };
        self.pass.clear();
        let data_version = open::data_version(connection)?;
        let listing = listing::list(connection, &self.mapping, &self.free(), scope, PASS, &self.limit)?;
        if let Some(rowid) = listing.nameless {
            return Err(ReadFault::Halt(self.nameless(rowid)));
        }
        self.pass = listing.rows;
        if full {
            let pass = FullPass { ended: Instant::now(), took: began.elapsed(), data_version };
            // A list that was cut goes on with a full pass.
            self.last_full_pass = (!listing.is_cut).then_some(pass);
            self.seen_rowid = self.seen_rowid.max(listing.newest);
            self.listed_pending = listing.pending;
        }
        Ok(())
    }

    fn nameless(&self, rowid: i64) -> Halt {
        Halt::new(format!(
            "a pending row of {table} has no {row} by which it could be marked (or one of more than 64 KiB): rowid {rowid}. Nothing is sent \
             twice or passed over. Remedy: give it one or delete it (WHERE rowid = {rowid}), then `outboxd resume`",
            table = self.mapping.table,
            row = self.mapping.row,
        ))
    }

    /// These rows, pending or not, in the order asked for; those that are gone are left out.
    pub fn fetch(&self, connection: &Connection, keys: &[RowKey], event_bytes_max: usize) -> Result<Batch, ReadFault> {
        let sql = self.mapping.select(event_bytes_max, &format!("{} = :row", self.mapping.row), "");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut batch = BatchBuilder::default();
        for key in keys {
            let mut rows = by_name(&mut statement, key)?;
            if let Some(row) = rows.next()? {
                self.mapping.push(row, &mut batch, event_bytes_max, |_| true)?;
                batch.row_key(key.clone());
            }
        }
        Ok(batch.finish(Position::default(), clock::now_micros()))
    }
}

fn by_name<'a>(statement: &'a mut Statement<'_>, row: &RowKey) -> rusqlite::Result<rusqlite::Rows<'a>> {
    statement.query(named_params! { ":row": row })
}

/// `outboxd_free(row, key, id, type, position)`, each as the batch will hold it.
fn is_free(excluded: &mut Excluded, call: &Context<'_>, [key, id, kind]: [&Field; 3]) -> bool {
    // One without a name is listed, and said to be one.
    let Some(row) = RowKey::of(call.get_raw(0)) else { return true };
    // What is wrong is told when the row is read.
    let mut told = None;
    let key = key.bytes(call.get_raw(1), "key", &mut told);
    let id = id.text(call.get_raw(2), "id", &mut told).unwrap_or_default();
    let kind = kind.text(call.get_raw(3), "type", &mut told).unwrap_or_default();
    let position = Position(call.get_raw(4).as_i64().unwrap_or_default());
    excluded.is_free(&row, &hold_key(key.as_deref(), id.as_bytes(), position), &kind)
}
