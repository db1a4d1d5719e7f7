//! The events: the same on both sides, made from their number.

use std::path::Path;
use std::time::Instant;

use outboxd::event::{Batch, BatchBuilder, Event, Position};
use rusqlite::{Connection, params};

use crate::meter::Beat;

/// Order is kept for so many keys.
const KEYS: usize = 1_000;
pub const KIND: &str = "OrderPlaced";
/// Rows that are inserted in one transaction.
const ROWS_A_TRANSACTION: usize = 50_000;
const BATCH_EVENTS: usize = 1_000;

/// Event `n`, in buffers that are used again.
#[derive(Default)]
pub struct Draft {
    pub id: String,
    pub key: String,
    pub payload: String,
}

impl Draft {
    pub fn make(&mut self, n: usize, bytes: usize) {
        use std::fmt::Write;
        let Self { id, key, payload } = self;
        [&mut *id, &mut *key, &mut *payload].into_iter().for_each(String::clear);
        let written = write!(id, "0195f3a2-7b1c-7000-8000-{n:012x}")
            .and_then(|()| write!(key, "order-{}", n % KEYS))
            .and_then(|()| write!(payload, "{{\"order\":\"{key}\",\"number\":{n},\"note\":\""));
        written.expect("a string can be written to");
        let filler = bytes.saturating_sub(payload.len() + 2);
        payload.extend(std::iter::repeat_n('x', filler));
        payload.push_str("\"}");
    }
}

/// An application's commits, one event each, so many a second and as long as `goes_on` says, which is told how many there were: what each took, in
/// nanoseconds.
pub fn commits(app: &Connection, per_second: usize, mut goes_on: impl FnMut(usize) -> bool) -> Vec<i64> {
    let (beat, mut draft, mut took) = (Beat::new(per_second), Draft::default(), Vec::new());
    while goes_on(took.len()) {
        std::thread::sleep(beat.wait(took.len()));
        draft.make(took.len(), 256);
        draft.id = outboxd::store::event::new_id();
        let began = Instant::now();
        app.execute_batch("BEGIN IMMEDIATE").expect("within the busy timeout");
        insert(app, &draft);
        app.execute_batch("COMMIT").expect("the disk has room");
        took.push(began.elapsed().as_nanos() as i64);
    }
    took
}

/// Events in memory, laid out as the relay has them.
pub fn batches(events: usize, bytes: usize) -> Vec<Batch> {
    let mut draft = Draft::default();
    let starts = (0..events).step_by(BATCH_EVENTS);
    starts
        .map(|start| {
            let mut builder = BatchBuilder::with_capacity(BATCH_EVENTS, BATCH_EVENTS * (bytes + 80));
            for n in start..(start + BATCH_EVENTS).min(events) {
                draft.make(n, bytes);
                builder.push(Event {
                    position: Position(n as i64 + 1),
                    id: &draft.id,
                    key: Some(draft.key.as_bytes()),
                    stream_id: None,
                    stream_type: None,
                    version: None,
                    kind: KIND,
                    payload: Some(draft.payload.as_bytes()),
                    headers: None,
                    time: None,
                    time_micros: None,
                    death: None,
                });
            }
            builder.finish(Position::default(), 0)
        })
        .collect()
}

/// Makes the application's file with so many events in its outbox; the connection that comes back is the application's.
pub fn fill(database: &Path, events: usize, bytes: usize) -> Connection {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
    runtime.block_on(outboxd::store::init(database)).expect("the tables can be made");
    let mut connection = open(database);
    let mut draft = Draft::default();
    for start in (0..events).step_by(ROWS_A_TRANSACTION) {
        let transaction = connection.transaction().expect("nobody else writes");
        for n in start..(start + ROWS_A_TRANSACTION).min(events) {
            draft.make(n, bytes);
            insert(&transaction, &draft);
        }
        transaction.commit().expect("the disk has room");
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else reads");
    connection
}

/// As an application opens its file.
pub fn open(database: &Path) -> Connection {
    let connection = Connection::open(database).expect("the file is there");
    connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000").expect("these are known");
    connection
}

/// Plain SQL, as an application in any language would write it.
pub fn insert(connection: &Connection, draft: &Draft) {
    connection
        .prepare_cached(
            "INSERT INTO outbox (id, stream_id, stream_type, type, payload) VALUES (?1, ?2, 'Order', ?3, ?4)",
        )
        .and_then(|mut statement| statement.execute(params![draft.id, draft.key, KIND, draft.payload]))
        .expect("the table takes it");
}
