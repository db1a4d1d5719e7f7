//! The archive: what a snapshot holds is moved, and read as if it had not moved; nobody who still has to read it is passed; wherever a run ends,
//! each event stands in one of the two tables, as it was.

mod apart;
mod faults;
mod foreign;
mod limits;
mod moving;

use std::collections::BTreeMap;
use std::process::Output;
use std::time::Duration;

use rusqlite::{Connection, params};

use crate::support::process::Scene;
pub use crate::support::process::{refused, told};
use crate::support::rig::open;

/// The archive in the same file, and in one of its own.
pub const PLACES: [&str; 2] = ["", APART];
pub const APART: &str = "archive_path = \"old.db\"\n";

pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn config(preset: &str, keys: &str) -> String {
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.log]\npath = \"app.db\"\npreset = \"{preset}\"\nread = \"events\"\n\
         [jobs.old]\ntype = \"archive\"\nsource = \"log\"\n{keys}\n"
    )
}

/// A relay of the log to a file, `lines.ndjson`.
pub const RELAY: &str = "\n[sinks.lines]\ntype = \"file\"\npath = \"lines.ndjson\"\n[relays.to_lines]\nsource = \"log\"\nsink = \"lines\"\nstart = \"first\"\n";

/// Versions `from` to `to` of a stream.
pub fn grow(app: &Connection, stream: &str, from: i64, to: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    for version in from..=to {
        let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data, metadata) VALUES (?1, ?2, 'Order', ?3, 'T', ?4, ?5)";
        let data = format!("{{\"n\": {version}.50}}");
        let values = params![format!("{stream}-{version}"), stream, version, data, (version % 2 == 0).then_some("{}")];
        transaction.prepare_cached(sql).unwrap().execute(values).unwrap();
    }
    transaction.commit().unwrap();
}

/// A snapshot as an application takes it.
pub fn snap(app: &Connection, stream: &str, version: i64) {
    let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES (?1, ?2, '{\"n\": 1}', 'own')";
    app.execute(sql, params![stream, version]).unwrap();
}

pub fn run(scene: &Scene) -> Output {
    scene.outboxd(&["job", "run", "old"])
}

/// The application's file with what was archived of it, wherever: what stands in both files comes once.
pub fn whole(scene: &Scene) -> Connection {
    let app = open(&scene.path("app.db"));
    let archive = scene.path("old.db");
    if std::fs::metadata(&archive).is_ok_and(|meta| meta.len() > 0) {
        app.execute("ATTACH ?1 AS old", [archive.to_str()]).unwrap();
        let made = "SELECT count(*) FROM old.sqlite_schema WHERE name = 'archived_events'";
        if app.query_row(made, [], |row| row.get::<_, i64>(0)).unwrap() == 1 {
            app.execute_batch(
                "CREATE TEMP VIEW archived_events AS SELECT * FROM main.archived_events UNION ALL SELECT * FROM old.archived_events a
                 WHERE NOT EXISTS (SELECT 1 FROM main.events e WHERE e.position = a.position AND e.id = a.id)",
            )
            .unwrap();
        }
    }
    app
}

/// Every event, wherever it stands, in order of position; one that stands in both tables comes twice.
pub fn log(app: &Connection) -> Vec<Vec<rusqlite::types::Value>> {
    let mut statement = app.prepare("SELECT * FROM events UNION ALL SELECT * FROM archived_events ORDER BY 1").unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|n| row.get(n)).collect()).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The versions that are archived, by stream: always a beginning.
pub fn archived(app: &Connection) -> BTreeMap<String, i64> {
    let sql = "SELECT stream_id, max(version), count(*), min(version) FROM archived_events GROUP BY stream_id";
    let mut statement = app.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let (newest, count, first): (i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
        assert_eq!((newest, first), (count, 1));
        Ok((row.get(0)?, newest))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

pub fn expected(streams: &[(&str, i64)]) -> BTreeMap<String, i64> {
    streams.iter().map(|(stream, version)| ((*stream).to_owned(), *version)).collect()
}
