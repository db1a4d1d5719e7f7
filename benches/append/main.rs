//! The event store's speed beside that of a bare prepared-statement loop: `cargo bench --bench append`, `-- --quick`.
//!
//! All sides write the same events into a file that `outboxd init` has made, at `synchronous=NORMAL`, in transactions of the same size, by
//! turns. docs/BENCHMARKS.md says what is measured, and what is not.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "a benchmark stands outside the rooms")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use futures_util::future::join_all;
use outboxd::sqlite::pool;
use outboxd::store::event::{Append, Expected, NewEvent, new_id};
use outboxd::store::{self, EventStore, Options, sql};
use rusqlite::params;
use sqlx::Connection;

#[path = "../relay/meter.rs"]
#[allow(dead_code, reason = "the relay's benchmark uses more of it")]
mod meter;

use meter::{Drain, Meter};

const STREAMS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser, Clone, Debug)]
struct Arguments {
    /// A smoke run of seconds: the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Events a side and round.
    #[arg(long, default_value_t = 300_000)]
    events: usize,
    /// The sides take turns so often; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

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

/// Each with the one that it is compared with.
const SIDES: [(Side, usize); 5] =
    [(Side::Bare, 0), (Side::Store, 0), (Side::Sqlx, 0), (Side::BareSpread, 3), (Side::Callers, 3)];

fn main() {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.events, arguments.rounds) = (20_000, 1);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be made");
    println!("| events in a transaction | side | events/s | of the bare loop | CPU s a million |");
    println!("|---|---|--:|--:|--:|");
    for batch in [100, 1_000] {
        let mut results: [Vec<Drain>; SIDES.len()] = Default::default();
        for round in 0..arguments.rounds {
            for turn in 0..SIDES.len() {
                let at = (round + turn) % SIDES.len();
                let result = runtime.block_on(run(SIDES[at].0, batch, arguments.events));
                eprintln!("{batch} a transaction, round {}: {:?} {result}", round + 1, SIDES[at].0);
                results[at].push(result);
            }
        }
        let medians = results.map(|runs| Drain::median(&runs));
        for ((side, bare), median) in SIDES.iter().zip(&medians) {
            let ratio = median.rate() / medians[*bare].rate();
            println!("| {batch} | {side:?} | {:.1} k | {ratio:.2} | {:.1} |", median.rate() / 1e3, median.cpu());
        }
    }
    println!("\nMedians of {} rounds of {} events.", arguments.rounds, arguments.events);
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
    meter.read(events)
}

async fn through_the_store(file: &Path, batches: Vec<Vec<NewEvent>>, events: usize) -> Drain {
    let store = EventStore::open(file, Options::default()).await.expect("the tables are there");
    let meter = Meter::start();
    for (n, batch) in batches.into_iter().enumerate() {
        let expected = Expected::Exact((n / STREAMS * batch.len()) as i64);
        let append = Append::new(format!("stream-{}", n % STREAMS), "Thing", expected, batch);
        store.append(append, PATIENCE).await.expect("nobody else writes");
    }
    let result = meter.read(events);
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
    let result = meter.read(events);
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
    let result = meter.read(events);
    connection.close().await.expect("it can be closed");
    result
}
