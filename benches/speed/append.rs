//! The event store's speed beside that of a bare prepared-statement loop.
//!
//! All sides write the same events into a file that `outboxd init` has made, at `synchronous=NORMAL`, in transactions of the same size, by
//! turns. docs/BENCHMARKS.md says what is measured, and what is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use outboxd::sqlite::pool;
use outboxd::store::event::{Append, Expected, NewEvent, new_id};
use outboxd::store::{self, EventStore, Options, sql};
use rusqlite::params;
use sqlx::Connection;

use crate::meter::{Drain, Meter};
use crate::table::Table;

const STREAMS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// A prepared INSERT in a loop, with versions known beforehand; a stream a transaction.
    Bare,
    /// One caller, one append a transaction.
    Store,
    /// The loop by sqlx, whose connection lives on a thread of its own.
    Sqlx,
    /// The bare loop; every event of a transaction is of another stream.
    BareSpread,
    /// As many callers as events in a transaction, each with a stream of its own and an event an append: the store puts them together.
    Callers,
}

const SIDES: [Side; 5] = [Side::Bare, Side::Store, Side::Sqlx, Side::BareSpread, Side::Callers];

pub fn measure(events: usize, rounds: usize, table: &mut Table) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be made");
    for batch in [100, 1_000] {
        let mut results: [Vec<Drain>; SIDES.len()] = Default::default();
        for round in 0..rounds {
            for turn in 0..SIDES.len() {
                let at = (round + turn) % SIDES.len();
                let result = runtime.block_on(run(SIDES[at], batch, events));
                eprintln!("append, {batch} a transaction, round {}: {:?} {result}", round + 1, SIDES[at]);
                results[at].push(result);
            }
        }
        let [bare, store, sqlx, spread, callers] = results.map(|runs| Drain::median(&runs));
        let of = |what: &str| format!("append, {batch} a transaction: {what}");
        table.sides(of("one caller"), &bare, &store);
        table.sides(of("a caller an event"), &spread, &callers);
        table.sides(of("(bare, by sqlx)"), &bare, &sqlx);
    }
}

/// The n-th batch is for the n-th stream, and round again.
fn event(n: usize) -> NewEvent {
    let data = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(230));
    NewEvent { id: new_id(), kind: "Happened".into(), data, metadata: None, time: None }
}

async fn run(side: Side, batch: usize, events: usize) -> Drain {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file: PathBuf = folder.path().join("shop.db");
    store::init(&file).await.expect("the tables can be made");
    let batches: Vec<Vec<NewEvent>> = (0..events / batch).map(|_| (0..batch).map(event).collect()).collect();
    match side {
        Side::Bare | Side::BareSpread => bare(&file, batches, events, side == Side::BareSpread),
        Side::Store => through_the_store(&file, batches, events).await,
        Side::Callers => many_callers(&file, batches, events).await,
        Side::Sqlx => through_sqlx(&file, batches, events).await,
    }
}

fn bare(file: &Path, batches: Vec<Vec<NewEvent>>, events: usize, is_spread: bool) -> Drain {
    let connection = rusqlite::Connection::open(file).expect("the file can be opened");
    connection.execute_batch("PRAGMA synchronous = NORMAL").expect("it can be set");
    let meter = Meter::start();
    let mut insert = connection.prepare(sql::INSERT_EVENT).expect("the statement fits");
    let streams: Vec<String> = (0..STREAMS).map(|n| format!("stream-{n}")).collect();
    for (n, batch) in batches.iter().enumerate() {
        connection.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        for (index, event) in batch.iter().enumerate() {
            let (stream, version) =
                if is_spread { (index, n + 1) } else { (n % STREAMS, n / STREAMS * batch.len() + index + 1) };
            let (stream, version) = (&streams[stream], version as i64);
            let row = params![event.id, stream, "Thing", version, event.kind, event.data, event.metadata, event.time];
            insert.execute(row).expect("it is new");
        }
        connection.execute_batch("COMMIT").expect("nobody else writes");
    }
    meter.read_shared(events)
}

async fn through_the_store(file: &Path, batches: Vec<Vec<NewEvent>>, events: usize) -> Drain {
    let store = EventStore::open(file, Options::default()).await.expect("the tables are there");
    let meter = Meter::start();
    for (n, batch) in batches.into_iter().enumerate() {
        let expected = Expected::Exact((n / STREAMS * batch.len()) as i64);
        let append = Append::new(format!("stream-{}", n % STREAMS), "Thing", expected, batch);
        store.append(append, PATIENCE).await.expect("nobody else writes");
    }
    let result = meter.read_shared(events);
    store.close().await;
    result
}

async fn many_callers(file: &Path, batches: Vec<Vec<NewEvent>>, events: usize) -> Drain {
    let store = EventStore::open(file, Options::default()).await.expect("the tables are there");
    let callers = batches[0].len();
    let mut shares: Vec<Vec<NewEvent>> = (0..callers).map(|_| Vec::with_capacity(batches.len())).collect();
    for batch in batches {
        shares.iter_mut().zip(batch).for_each(|(share, event)| share.push(event));
    }
    let meter = Meter::start();
    let callers = shares.into_iter().enumerate().map(|(caller, share)| {
        let store = store.clone();
        tokio::spawn(async move {
            for (n, event) in share.into_iter().enumerate() {
                let expected = Expected::Exact(n as i64);
                let append = Append::new(format!("stream-{caller}"), "Thing", expected, vec![event]);
                store.append(append, PATIENCE).await.expect("each has a stream of its own");
            }
        })
    });
    join_all(callers).await.into_iter().for_each(|ended| ended.expect("no caller panics"));
    let result = meter.read_shared(events);
    store.close().await;
    result
}

async fn through_sqlx(file: &Path, batches: Vec<Vec<NewEvent>>, events: usize) -> Drain {
    let mut connection = pool::application(file).await.expect("the file can be opened");
    let meter = Meter::start();
    for (n, batch) in batches.iter().enumerate() {
        let (stream, before) = (format!("stream-{}", n % STREAMS), n / STREAMS * batch.len());
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.expect("nobody else writes");
        for (index, event) in batch.iter().enumerate() {
            sqlx::query(sql::INSERT_EVENT)
                .bind(&event.id)
                .bind(&stream)
                .bind("Thing")
                .bind((before + index + 1) as i64)
                .bind(&event.kind)
                .bind(&event.data)
                .bind(&event.metadata)
                .bind(&event.time)
                .execute(&mut *transaction)
                .await
                .expect("it is new");
        }
        transaction.commit().await.expect("nobody else writes");
    }
    let result = meter.read_shared(events);
    connection.close().await.expect("it can be closed");
    result
}
