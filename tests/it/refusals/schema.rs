//! The schema is changed while the table is read: what was looked at when the file was opened is looked at again.

use std::time::Duration;

use outboxd::consumer::control::Command;
use outboxd::consumer::status::State;

use crate::support::by_hand::Table;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived};

const FIELDS: &str = "table = \"t\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\n";

fn insert(table: &Table, id: &str, data: &str) {
    table.app.execute("INSERT INTO t (id, kind, data) VALUES (?1, 'K', ?2)", [id, data]).unwrap();
}

/// Begins with an event, changes the schema, and puts it right again.
async fn halts_until_it_is_mended(sql: &str, keys: &str, change: &str, words: &[&str], mend: &str) {
    let table = Table::new(sql, &format!("{FIELDS}{keys}"));
    insert(&table, "e1", "1");
    let far_side = FarSide::default();
    let relays = Relays::one(table.source.clone(), fleet::fake(&far_side));
    arrived(&far_side, 1).await;
    relays.reaches("r", |status| status.in_flight == 0 && status.state == State::Running).await;
    table.app.execute_batch(&format!("BEGIN IMMEDIATE; {change}; COMMIT")).unwrap();
    let detail = relays.reaches("r", |status| status.state == State::Halted).await.detail;
    for word in words.iter().chain(&["the schema was changed while it was read", "outboxd resume"]) {
        assert!(detail.contains(word), "{change}: {word:?} is not said in {detail}");
    }
    table.app.execute_batch(&format!("BEGIN IMMEDIATE; {mend}; COMMIT")).unwrap();
    insert(&table, "e2", "2");
    relays.handle("r").ask(Command::Resume).await.unwrap();
    let ids: Vec<String> = arrived(&far_side, 2).await.into_iter().map(|arrival| arrival.id).collect();
    assert_eq!(ids, ["e1", "e2"], "{change}");
    relays.stop().await;
}

const AUTO: &str = "CREATE TABLE t (pos INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, kind TEXT, data TEXT)";
const BY_ROW: &str = "row = \"id\"\norder = [\"n\"]\npending = { sent = 0 }\non_delivered = { set = { sent = 1 } }\n";
const ROWS: &str = "CREATE TABLE t (n INTEGER, id TEXT, kind TEXT, data TEXT, sent INTEGER DEFAULT 0); CREATE UNIQUE INDEX t_id ON t (id)";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_no_longer_fits_halts_until_it_is_mended() {
    let position = "position = \"pos\"\n";
    // Rebuilt by copy, and the AUTOINCREMENT was forgotten: ids would be given out again.
    let rebuild = |key: &str| {
        format!(
            "CREATE TABLE n (pos INTEGER PRIMARY KEY {key}, id TEXT, kind TEXT, data TEXT); INSERT INTO n SELECT * FROM t; DROP TABLE t;
             ALTER TABLE n RENAME TO t"
        )
    };
    halts_until_it_is_mended(
        AUTO,
        position,
        &rebuild(""),
        &["has no AUTOINCREMENT key pos"],
        &rebuild("AUTOINCREMENT"),
    )
    .await;
    let allowed = "position = \"pos\"\nallow_reused_positions = true\n";
    let plain = "CREATE TABLE t (pos INTEGER DEFAULT 1, id TEXT, kind TEXT, data TEXT); CREATE UNIQUE INDEX t_pos ON t (pos);
                 CREATE TRIGGER counts AFTER INSERT ON t BEGIN UPDATE t SET pos = (SELECT max(rowid) FROM t) WHERE rowid = new.rowid; END";
    halts_until_it_is_mended(
        plain.replace("DEFAULT 1", "").as_str(),
        allowed,
        "DROP INDEX t_pos",
        &["the position pos is not unique", "CREATE UNIQUE INDEX"],
        "CREATE UNIQUE INDEX t_pos ON t (pos)",
    )
    .await;
    halts_until_it_is_mended(
        AUTO,
        position,
        "ALTER TABLE t RENAME COLUMN data TO body",
        &["there is no column data in table t"],
        "ALTER TABLE t RENAME COLUMN body TO data",
    )
    .await;
    halts_until_it_is_mended(
        AUTO,
        position,
        "ALTER TABLE t RENAME TO elsewhere",
        &["table t is gone"],
        "ALTER TABLE elsewhere RENAME TO t",
    )
    .await;
    let refuse = "position = \"pos\"\nrefuse_if = \"SELECT 1 FROM sqlite_schema WHERE name = 'too_new'\"\nrefuse_because = \"too new. Remedy: wait\"\n";
    halts_until_it_is_mended(
        AUTO,
        refuse,
        "CREATE TABLE too_new (x)",
        &["too new. Remedy: wait"],
        "DROP TABLE too_new",
    )
    .await;
}

/// A row is known by its unique column when it is marked: without the index one mark could settle two rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_that_goes_halts_a_table_read_by_row() {
    halts_until_it_is_mended(
        ROWS,
        BY_ROW,
        "DROP INDEX t_id; INSERT INTO t (id, kind, data) VALUES ('e2', 'K', 'a'), ('e2', 'K', 'b')",
        &["id is not unique in table t", "CREATE UNIQUE INDEX"],
        "DELETE FROM t WHERE id = 'e2'; CREATE UNIQUE INDEX t_id ON t (id)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_concern_us_may_change() {
    for (sql, keys) in [(AUTO, "position = \"pos\"\n"), (ROWS, BY_ROW)] {
        let table = Table::new(sql, &format!("{FIELDS}{keys}"));
        let far_side = FarSide::default();
        let relays = Relays::one(table.source.clone(), fleet::fake(&far_side));
        for (n, change) in [
            "CREATE TABLE other (x)",
            "ALTER TABLE t ADD COLUMN note",
            "CREATE INDEX t_kind ON t (kind)",
            "CREATE TRIGGER notes AFTER INSERT ON t BEGIN INSERT INTO other VALUES (1); END",
            "DROP INDEX t_kind",
        ]
        .into_iter()
        .enumerate()
        {
            table.app.execute_batch(change).unwrap();
            insert(&table, &format!("e{n}"), "1");
            arrived(&far_side, n + 1).await;
        }
        relays.reaches("r", |status| status.state == State::Running && status.in_flight == 0).await;
        assert_eq!(far_side.arrivals().len(), 5);
        relays.stop().await;
    }
}

/// Without the look, a row that came with the name of another one is marked with it, and never sent.
#[test]
#[cfg(feature = "controls")]
fn control_without_the_look_at_a_changed_schema_one_mark_settles_two_rows() {
    use crate::support::process::Scene;
    use crate::support::rig::open;
    use crate::support::wait::until;

    let protection = outboxd::controls::Protection::Schema;
    let lost = |off: &str| {
        let config = format!(
            "[sources.s]\npath = \"app.db\"\n{FIELDS}{BY_ROW}[sinks.out]\ntype = \"file\"\npath = \"out.ndjson\"\n[relays.r]\nsource = \"s\"\nsink = \"out\"\nwindow_events = 1\n"
        );
        let scene = Scene::without_a_file(&config);
        let app = open(&scene.path("app.db"));
        app.execute_batch(ROWS).unwrap();
        let turned_off = [("TURNED_OFF", off)];
        let mut daemon = scene.daemon_with(if off.is_empty() { &[] } else { &turned_off });
        daemon.until_state("r", "running", super::PATIENCE);
        app.execute_batch("DROP INDEX t_id").unwrap();
        // One is sent at a time, and the name of the first marks both.
        app.execute_batch("INSERT INTO t (id, kind, data) VALUES ('twin', 'K', 'a'), ('twin', 'K', 'b')").unwrap();
        let pending =
            || app.query_row("SELECT count(*) FROM t WHERE sent = 0", [], |row| row.get::<_, i64>(0)).unwrap();
        until("it halts, or marks", Duration::from_secs(20), || {
            (daemon.status("r").is_some_and(|status| status["state"] == "halted") || pending() == 0).then_some(())
        });
        let sent = std::fs::read_to_string(scene.path("out.ndjson")).unwrap_or_default().lines().count() as i64;
        daemon.kill();
        2 - pending() - sent
    };
    assert_eq!(lost(""), 0);
    assert_eq!(lost(&format!("{protection:?}")), 1, "without it one is lost");
}
