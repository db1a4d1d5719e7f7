//! A projection's speed, and a rebuild's, beside that of a bare prepared-statement loop.
//!
//! All run the same SQL for the same events, 4,000 a transaction, into a file in WAL mode at `synchronous = FULL`. The bare loop has its events in memory; the
//! projection reads them from an events table, and writes its checkpoint with them. A third one reads the table by a SELECT and does nothing else: the
//! shortest projector that could be written by hand. They take turns.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outboxd::config;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::fleet::Fleet;
use outboxd::shutdown::Shutdown;
use rusqlite::{Connection, named_params, params};

use crate::meter::{self, Drain, Meter};
use crate::table::Table;

const SIDES: [&str; 3] = ["bare", "reading", "outboxd"];
const STREAMS: usize = 20_000;
/// As many as a projection takes by default.
const BATCH: usize = 4_000;

const SCHEMA: &str = "CREATE TABLE totals (id TEXT PRIMARY KEY, events INTEGER NOT NULL, amount INTEGER NOT NULL, last TEXT NOT NULL) STRICT";
const SQL: &str = "INSERT INTO totals VALUES (:stream_id, 1, :data ->> 'amount', :id) ON CONFLICT DO UPDATE SET events = events + 1, amount = \
                   amount + excluded.amount, last = excluded.last";

/// Id, stream, data.
type Draft = (String, String, String);

fn event(n: usize) -> Draft {
    let note = "x".repeat(120);
    (format!("event-{n}"), format!("stream-{}", n * 7919 % STREAMS), format!("{{\"amount\":{n},\"note\":\"{note}\"}}"))
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    connection
}

fn bare(folder: &Path, events: &[Draft]) -> Drain {
    let connection = open(&folder.join("bare.db"));
    connection.execute_batch(SCHEMA).unwrap();
    let meter = Meter::start();
    for batch in events.chunks(BATCH) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut statement = connection.prepare_cached(SQL).unwrap();
        for (id, stream, data) in batch {
            statement.execute(named_params! { ":id": id, ":stream_id": stream, ":data": data }).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    }
    meter.read_shared(events.len())
}

/// The same, and where it was is not kept.
fn reading(folder: &Path, count: usize) -> Drain {
    let connection = open(&folder.join("reading.db"));
    connection.execute_batch(SCHEMA).unwrap();
    let log = open(&folder.join("shop.db"));
    let meter = Meter::start();
    let mut next = log
        .prepare("SELECT position, id, stream_id, data FROM events WHERE position > ?1 ORDER BY position LIMIT ?2")
        .unwrap();
    let mut statement = connection.prepare(SQL).unwrap();
    let mut after = 0;
    while after < count as i64 {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut rows = next.query(params![after, BATCH as i64]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            after = row.get_unwrap(0);
            let text = |index: usize| row.get_ref_unwrap(index).as_str().unwrap();
            statement.execute(named_params! { ":id": text(1), ":stream_id": text(2), ":data": text(3) }).unwrap();
        }
        drop(rows);
        connection.execute_batch("COMMIT").unwrap();
    }
    meter.read_shared(count)
}

/// Its start included.
fn projection(folder: &Path, events: usize) -> Drain {
    configure(folder);
    let config = config::load_with(&folder.join("outboxd.toml"), Vec::new()).unwrap().config;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (shutdown, phase) = Shutdown::new();
        let (consumers, sinks) = (config.consumers().cloned().collect(), Default::default());
        let meter = Meter::start();
        let mut fleet = Fleet::spawn(&config.sources, &sinks, consumers, WhenLocked::Refuse, &phase).unwrap();
        let mut status = fleet.handle("totals").unwrap().status.clone();
        status.wait_for(|status| status.position == events as i64).await.unwrap();
        let took = meter.read_shared(events);
        shutdown.drain(Duration::from_secs(10));
        fleet.ended().await.unwrap();
        took
    })
}

fn configure(folder: &Path) {
    let text = format!(
        "[sources.shop]\npath = \"shop.db\"\npreset = \"outboxd\"\nread = \"events\"\n[projections.totals]\nsource = \"shop\"\npath = \"read.db\"\n\
         tables = [\"totals\"]\nschema = '''{SCHEMA}'''\n[projections.totals.on]\nCounted = '''{SQL}'''\n"
    );
    std::fs::write(folder.join("outboxd.toml"), text).unwrap();
}

/// The command, as a user runs it, from the process's start to the swap.
fn rebuild(folder: &Path, events: usize) -> Drain {
    configure(folder);
    meter::command(events, || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        let output = command.args(["rebuild", "totals"]).current_dir(folder).output().expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn fill(folder: &Path, events: &[Draft]) {
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

pub fn measure(events: usize, rounds: usize, table: &mut Table) {
    by_turns("projection", events, rounds, table, projection);
}

pub fn measure_rebuild(events: usize, rounds: usize, table: &mut Table) {
    by_turns("rebuild", events, rounds, table, |folder, events| {
        // So that there is something to be swapped.
        projection(folder, events);
        rebuild(folder, events)
    });
}

fn by_turns(what: &str, count: usize, rounds: usize, table: &mut Table, ours: impl Fn(&Path, usize) -> Drain) {
    let events: Vec<_> = (0..count).map(event).collect();
    let mut sides = [const { Vec::new() }; SIDES.len()];
    for round in 0..rounds {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fill(folder.path(), &events);
        for turn in 0..SIDES.len() {
            let side = (round + turn) % SIDES.len();
            let result = match side {
                0 => bare(folder.path(), &events),
                1 => reading(folder.path(), count),
                _ => ours(folder.path(), count),
            };
            eprintln!("{what}, round {}: {} {result}", round + 1, SIDES[side]);
            sides[side].push(result);
        }
    }
    let [bare, reading, ours] = sides.map(|results| Drain::median(&results));
    table.sides(format!("{what}: {} k events", count / 1000), &bare, &ours);
    table.sides(format!("{what}: beside a loop that reads"), &reading, &ours);
}
