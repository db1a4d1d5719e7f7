//! How fast streams are folded into snapshots, from an application's file to its snapshots' rows: `make bench-snapshots`.
//!
//! The release binary is run as a user runs it, `outboxd job run`; a run's own figure is taken, so that the start of a process does not count. Both
//! reducers fold the same events: 200 bytes of data each, in streams of 250. docs/BENCHMARKS.md has the figures.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "a benchmark stands outside the rooms")]

use std::path::Path;
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;

const STREAM: usize = 250;
const ROUNDS: usize = 3;

const MERGE_PATCH: &str = "Order = \"merge-patch\"";
const SQL: &str = "Order = { \"*\" = \"json_set(:state, '$.total', coalesce(:state ->> 'total', 0) + (:data ->> 'amount'), '$.status', \
                   :data ->> 'status')\" }";

fn outboxd(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_outboxd")).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn fill(app: &Connection, events: usize) {
    let transaction = app.unchecked_transaction().unwrap();
    let sql =
        "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES (?1, 'Order', ?2, 'Changed', ?3)";
    let mut insert = app.prepare(sql).unwrap();
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
        insert.execute((format!("order-{stream:08}"), version as i64, data)).unwrap();
    }
    drop(insert);
    transaction.commit().unwrap();
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let events = if quick { 20_000 } else { 1_000_000 };
    let folder = tempfile::tempdir().unwrap();
    outboxd(folder.path(), &["init", "app.db"]);
    let app = Connection::open(folder.path().join("app.db")).unwrap();
    app.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    fill(&app, events);
    println!("| reducer | events | events/s, median of {ROUNDS} |\n|---|---|---|");
    for (name, reducer) in [("merge-patch", MERGE_PATCH), ("SQL, json_set", SQL)] {
        let config = format!(
            "[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n[jobs.fold]\ntype = \"snapshot\"\nsource = \"log\"\n\
             [jobs.fold.reducers]\n{reducer}\n"
        );
        std::fs::write(folder.path().join("outboxd.toml"), config).unwrap();
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                app.execute("DELETE FROM snapshots", []).unwrap();
                let told: Value =
                    serde_json::from_slice(&outboxd(folder.path(), &["job", "run", "fold", "--json"])).unwrap();
                assert!(told["run"]["detail"].as_str().unwrap().ends_with(&format!("of {events} events")), "{told}");
                events as f64 / told["run"]["duration_seconds"].as_f64().unwrap()
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!("| {name} | {events} | {:.0} |", rates[ROUNDS / 2]);
    }
}
