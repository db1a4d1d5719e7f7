//! How fast streams are folded into snapshots, from an application's file to its snapshots' rows, and what that costs the application.
//!
//! The binary is run as a user runs it, `outboxd job run`, its start included. Both reducers fold the same events: 200 bytes of data each, in streams of
//! 250. The bare loop reads the same rows, evaluates the same expression (SQLite's own `json_patch` for merge patch) by a prepared statement, and writes
//! the same snapshots.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rusqlite::{Connection, named_params, params};

use crate::load;
use crate::meter::{self, Drain, Meter, Pace};
use crate::table::Table;

const STREAM: usize = 250;
/// Snapshots in a transaction of the bare loop.
const BATCH: usize = 64;
/// The application's commits.
const PER_SECOND: usize = 500;

const TOTAL: &str = "json_set(:state, '$.total', coalesce(:state ->> 'total', 0) + (:data ->> 'amount'), '$.status', :data ->> 'status')";

#[derive(Clone, Copy)]
enum Reducer {
    MergePatch,
    Sql,
}

impl Reducer {
    fn name(self) -> &'static str {
        match self {
            Reducer::MergePatch => "merge-patch",
            Reducer::Sql => "SQL",
        }
    }

    fn configured(self) -> String {
        match self {
            Reducer::MergePatch => "Order = \"merge-patch\"".to_owned(),
            Reducer::Sql => format!("Order = {{ \"*\" = \"{TOTAL}\" }}"),
        }
    }

    fn expression(self) -> &'static str {
        match self {
            Reducer::MergePatch => "json_patch(:state, :data)",
            Reducer::Sql => TOTAL,
        }
    }
}

/// An application's file with events in it.
struct Log {
    folder: tempfile::TempDir,
    app: Connection,
    events: usize,
}

impl Log {
    fn of(events: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("app.db");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
        runtime.block_on(outboxd::store::init(&path)).expect("the tables can be made");
        let app = load::open(&path);
        fill(&app, events);
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else reads");
        Self { folder, app, events }
    }

    fn begin(&self, reducer: Reducer) {
        self.app.execute("DELETE FROM snapshots", []).expect("nobody else writes");
        let config = format!(
            "[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n[jobs.fold]\ntype = \"snapshot\"\nsource = \"log\"\n\
             [jobs.fold.reducers]\n{}\n",
            reducer.configured()
        );
        std::fs::write(self.folder.path().join("outboxd.toml"), config).expect("the folder is there");
    }

    fn job(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.args(["job", "run", "fold"]).current_dir(self.folder.path()).stdout(Stdio::piped());
        command.spawn().expect("it can be started")
    }

    fn ended(&self, job: Child) {
        let output = job.wait_with_output().expect("it can be waited for");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told.contains(&format!("of {} events", self.events)), "{told}");
    }
}

fn fill(app: &Connection, events: usize) {
    let transaction = app.unchecked_transaction().expect("nobody else writes");
    let sql =
        "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES (?1, 'Order', ?2, 'Changed', ?3)";
    let mut insert = app.prepare(sql).expect("the table is there");
    for n in 0..events {
        let (stream, version) = (n / STREAM, n % STREAM + 1);
        let data = format!(
            r#"{{"amount":{version},"status":"paid-{}","note":"{:0>60}","address":{{"city":"Zürich","line{}":"{:0>20}"}},"tag{}":true}}"#,
            n % 5,
            n,
            n % 9,
            n,
            n % 11
        );
        insert.execute((format!("order-{stream:08}"), version as i64, data)).expect("it is new");
    }
    drop(insert);
    transaction.commit().expect("the disk has room");
}

fn bare(log: &Log, reducer: Reducer) -> Drain {
    let reader = load::open(&log.folder.path().join("app.db"));
    let calculator = load::open(Path::new(":memory:"));
    let mut next = calculator.prepare(&format!("SELECT {}", reducer.expression())).expect("it is an expression");
    let sql = "SELECT stream_id, version, data FROM events ORDER BY stream_id, version";
    let mut events = reader.prepare(sql).expect("the table is there");
    let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES (?1, ?2, ?3, 'bare')";
    let mut insert = log.app.prepare(sql).expect("the table is there");
    let mut write = |fresh: &mut Vec<(String, i64, String)>| {
        log.app.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        for (stream, version, state) in fresh.drain(..) {
            insert.execute(params![stream, version, state]).expect("it is new");
        }
        log.app.execute_batch("COMMIT").expect("the disk has room");
    };
    let meter = Meter::start();
    let (mut fresh, mut current) = (Vec::new(), (String::new(), 0, "{}".to_owned()));
    let mut rows = events.query([]).expect("the table can be read");
    while let Some(row) = rows.next().expect("the table can be read") {
        let text = |n| row.get_ref(n).and_then(|value| Ok(value.as_str()?)).expect("it is text");
        if text(0) != current.0 {
            if current.1 > 0 {
                fresh.push(std::mem::replace(&mut current, (String::new(), 0, "{}".to_owned())));
            }
            current.0 = text(0).to_owned();
            if fresh.len() == BATCH {
                write(&mut fresh);
            }
        }
        current.1 = row.get(1).expect("it is a number");
        let values = named_params! { ":state": current.2, ":data": text(2) };
        current.2 = next.query_row(values, |row| row.get(0)).expect("it gives text");
    }
    fresh.push(current);
    write(&mut fresh);
    meter.read_shared(log.events)
}

pub fn measure(events: usize, rounds: usize, table: &mut Table) {
    let log = Log::of(events);
    for reducer in [Reducer::MergePatch, Reducer::Sql] {
        let mut sides = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for side in [round % 2, (round + 1) % 2] {
                log.begin(reducer);
                let ours = || meter::command(events, || log.ended(log.job()));
                let result = if side == 0 { bare(&log, reducer) } else { ours() };
                let (name, side_name) = (reducer.name(), ["bare", "outboxd"][side]);
                eprintln!("snapshots by {name}, round {}: {side_name} {result}", round + 1);
                sides[side].push(result);
            }
        }
        let [bare, ours] = sides.map(|results| Drain::median(&results));
        table.sides(format!("snapshots: {}, {} k events", reducer.name(), events / 1000), &bare, &ours);
    }
}

/// The application's commits, alone and beside snapshots, by turns.
pub fn measure_neighbour(events: usize, rounds: usize, table: &mut Table) {
    let log = Log::of(events);
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        log.begin(Reducer::Sql);
        // What was written before is on the disk.
        rustix::fs::sync();
        let mut job = log.job();
        let beside = load::commits(&log.app, PER_SECOND, |_| job.try_wait().expect("it can be asked").is_none());
        log.ended(job);
        rustix::fs::sync();
        let alone = load::commits(&log.app, PER_SECOND, |n| n < beside.len());
        for (side, nanos) in [alone, beside].into_iter().enumerate() {
            let result = Pace::of(nanos);
            eprintln!("the application's commits, round {}: {} {result}", round + 1, ["alone", "beside"][side]);
            sides[side].push(result);
        }
    }
    let [alone, beside] = sides.map(|results| Pace::median(&results));
    table.pace(&format!("an application's commits at {PER_SECOND}/s, alone and beside snapshots"), &alone, &beside);
}
