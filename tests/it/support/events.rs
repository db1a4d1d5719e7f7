//! An application that keeps its state as events, and read models beside it.

use std::path::Path;

use rusqlite::{Connection, params};
use serde_json::Value;

use super::process::Scene;
use super::rig::open;

/// The configuration's first part: an events table, in `app.db`.
pub const EVENTS: &str = "
[daemon]
admin = \"127.0.0.1:0\"

[sources.shop]
path = \"app.db\"
preset = \"outboxd\"
read = \"events\"
";

/// Counts what happens to each stream, and writes down its versions in the order in which they came.
pub const TOTALS: &str = "
[projections.totals]
source = \"shop\"
path = \"read.db\"
tables = [\"totals\"]
schema = \"\"\"
CREATE TABLE totals (stream_id TEXT PRIMARY KEY, events INTEGER NOT NULL, amount INTEGER NOT NULL, seen TEXT NOT NULL) STRICT;
CREATE INDEX totals_by_amount ON totals (amount);
CREATE VIEW large (stream_id, amount) AS SELECT stream_id, amount FROM totals WHERE amount > 100;
\"\"\"
[projections.totals.on]
Counted = \"\"\"
INSERT INTO totals VALUES (:stream_id, 1, :data ->> 'amount', :version)
ON CONFLICT DO UPDATE SET events = events + 1, amount = amount + excluded.amount, seen = seen || ',' || excluded.seen
\"\"\"
";

pub struct Shop {
    pub connection: Connection,
}

impl Shop {
    pub fn open(path: &Path) -> Self {
        Self { connection: open(path) }
    }

    pub fn of(scene: &Scene) -> Self {
        Self::open(&scene.path("app.db"))
    }

    /// The next event of a stream.
    pub fn happens(&self, stream: &str, kind: &str, data: &Value) {
        let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data) SELECT ?1 || '-' || (1 + count(*)), ?1, 'Order', \
                   1 + count(*), ?2, ?3 FROM events WHERE stream_id = ?1";
        let mut insert = self.connection.prepare_cached(sql).unwrap();
        insert.execute(params![stream, kind, data.to_string()]).unwrap();
    }

    /// So many `Counted` events, in turn over the streams `s0`, `s1`, ..., in one transaction.
    pub fn count(&self, events: usize, streams: usize) {
        let transaction = self.connection.unchecked_transaction().unwrap();
        for n in 0..events {
            self.happens(&format!("s{}", n % streams), "Counted", &serde_json::json!({ "amount": n }));
        }
        transaction.commit().unwrap();
    }

    pub fn head(&self) -> i64 {
        self.connection.query_row("SELECT coalesce(max(position), 0) FROM events", [], |row| row.get(0)).unwrap()
    }

    /// What [`TOTALS`] has to come to with the events up to a position.
    pub fn truth(&self, upto: i64) -> Vec<Total> {
        let sql = "SELECT stream_id, count(*), sum(data ->> 'amount'), group_concat(version) FROM \
                   (SELECT * FROM events WHERE type = 'Counted' AND position <= ?1 ORDER BY position) GROUP BY stream_id";
        totals(&self.connection, sql, [upto])
    }
}

/// Stream, events, amount, versions in the order of their coming.
pub type Total = (String, i64, i64, String);

fn totals(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> Vec<Total> {
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A read model's totals and the checkpoint that stands beside them, in one snapshot.
pub fn standing(file: &Path, consumer: &str) -> (Vec<Total>, i64) {
    let connection = open(file);
    let snapshot = connection.unchecked_transaction().unwrap();
    let sql = "SELECT coalesce((SELECT position FROM outboxd_checkpoint WHERE consumer = ?1), 0)";
    let position = snapshot.query_row(sql, [consumer], |row| row.get(0)).unwrap();
    (totals(&snapshot, "SELECT * FROM totals ORDER BY stream_id", []), position)
}
