//! A projection's speed beside that of a bare prepared-statement loop: `cargo bench --bench projection -- [EVENTS] [ROUNDS]`.
//!
//! Both run the same SQL for the same events, 1,000 a transaction, into a file in WAL mode at `synchronous = FULL`. The loop has its events in memory; the
//! projection reads them from an events table, and writes its checkpoint with them. They take turns; medians are printed.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "a benchmark stands outside the rooms")]

use std::path::Path;
use std::time::{Duration, Instant};

use outboxd::config;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::fleet::Fleet;
use outboxd::shutdown::Shutdown;
use rusqlite::{Connection, named_params, params};

const STREAMS: usize = 20_000;
const BATCH: usize = 1_000;

const SCHEMA: &str = "CREATE TABLE totals (id TEXT PRIMARY KEY, events INTEGER NOT NULL, amount INTEGER NOT NULL, last TEXT NOT NULL) STRICT";
const SQL: &str = "INSERT INTO totals VALUES (:stream_id, 1, :data ->> 'amount', :id) ON CONFLICT DO UPDATE SET events = events + 1, amount = \
                   amount + excluded.amount, last = excluded.last";

fn event(n: usize) -> (String, String, String) {
    let note = "x".repeat(120);
    (format!("event-{n}"), format!("stream-{}", n * 7919 % STREAMS), format!("{{\"amount\":{n},\"note\":\"{note}\"}}"))
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    connection
}

/// Seconds that the bare loop takes.
fn bare(folder: &Path, events: &[(String, String, String)]) -> f64 {
    let connection = open(&folder.join("bare.db"));
    connection.execute_batch(SCHEMA).unwrap();
    let began = Instant::now();
    for batch in events.chunks(BATCH) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut statement = connection.prepare_cached(SQL).unwrap();
        for (id, stream, data) in batch {
            statement.execute(named_params! { ":id": id, ":stream_id": stream, ":data": data }).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    }
    began.elapsed().as_secs_f64()
}

/// Seconds that the projection takes, its start included.
fn projection(folder: &Path, events: usize) -> f64 {
    let text = format!(
        "[sources.shop]\npath = \"shop.db\"\npreset = \"outboxd\"\nread = \"events\"\n[projections.totals]\nsource = \"shop\"\npath = \"read.db\"\n\
         tables = [\"totals\"]\nschema = '''{SCHEMA}'''\n[projections.totals.on]\nCounted = '''{SQL}'''\n"
    );
    std::fs::write(folder.join("outboxd.toml"), text).unwrap();
    let config = config::load_with(&folder.join("outboxd.toml"), Vec::new()).unwrap().config;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (shutdown, phase) = Shutdown::new();
        let (consumers, sinks) = (config.consumers().cloned().collect(), Default::default());
        let began = Instant::now();
        let mut fleet = Fleet::spawn(&config.sources, &sinks, consumers, WhenLocked::Refuse, &phase).unwrap();
        let mut status = fleet.handle("totals").unwrap().status.clone();
        status.wait_for(|status| status.position == events as i64).await.unwrap();
        let took = began.elapsed().as_secs_f64();
        shutdown.drain(Duration::from_secs(10));
        fleet.ended().await.unwrap();
        took
    })
}

fn fill(folder: &Path, events: &[(String, String, String)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(outboxd::store::init(&folder.join("shop.db"))).unwrap();
    let connection = open(&folder.join("shop.db"));
    let mut versions = std::collections::HashMap::<&str, i64>::new();
    connection.execute_batch("BEGIN").unwrap();
    let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES (?1, ?2, 'Order', ?3, 'Counted', ?4)";
    let mut insert = connection.prepare(sql).unwrap();
    for (id, stream, data) in events {
        let version = versions.entry(stream).or_default();
        *version += 1;
        insert.execute(params![id, stream, *version, data]).unwrap();
    }
    connection.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (count, rounds) = (numbers.first().copied().unwrap_or(300_000), numbers.get(1).copied().unwrap_or(3));
    let events: Vec<_> = (0..count).map(event).collect();
    let (mut loops, mut projections) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), &events);
        loops.push(bare(folder.path(), &events));
        projections.push(projection(folder.path(), count));
    }
    let (bare, ours) = (count as f64 / median(loops), count as f64 / median(projections));
    println!("bare loop: {bare:.0} events/s; projection: {ours:.0} events/s; ratio {:.2}", ours / bare);
}
