//! What is told of a file's size, of what is free in it, and of who holds its lock.

use std::time::Duration;

use crate::support::process::{SHOP, Scene, shared_machine, told};
use crate::support::rig::open;
use crate::support::wait::until;

const PATIENCE: Duration = Duration::from_secs(30);
const RELAY: &str = "state = \"inside\"\n[sinks.lines]\ntype = \"file\"\npath = \"lines.ndjson\"\n[relays.to_lines]\nsource = \"shop\"\nsink = \"lines\"\nstart = \"first\"\n";

#[test]
fn sizes_are_told_with_advice_and_the_lock_with_its_holder() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, RELAY].concat());
    let app = open(&scene.path("app.db"));
    app.execute_batch(
        "CREATE TABLE big (b BLOB);
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 40) INSERT INTO big SELECT zeroblob(1 << 20) FROM c;
         DELETE FROM big; INSERT INTO outbox (type) VALUES ('T')",
    )
    .unwrap();
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 1, PATIENCE);
    let metric = |series: &str| daemon.metric(&format!("outboxd_{series}{{file=\"app.db\"}}"));
    let free: i64 = app.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
    until("what is free is told", PATIENCE, || {
        metric("freelist_bytes").filter(|bytes| *bytes >= (free - 10) as f64 * 4096.0)
    });
    assert!(metric("disk_free_bytes").unwrap() > 0.0 && metric("checkpoint_backlog_pages").is_some());
    let status = told(&scene.outboxd(&["status"]));
    assert!(status.contains("MiB are free pages") && status.contains("a job of type `vacuum`"), "{status}");
    // The application, which is this process, holds the lock for longer than it should.
    app.execute_batch("BEGIN IMMEDIATE; INSERT INTO outbox (type) VALUES ('T'); COMMIT; BEGIN IMMEDIATE").unwrap();
    let holder = format!("process {} holds the write lock", std::process::id());
    daemon.until("to_lines", "waiting for the lock", PATIENCE, |status| {
        status["detail"].as_str().is_some_and(|detail| detail.contains(&holder))
    });
    app.execute_batch("COMMIT").unwrap();
    daemon.until_settled("to_lines", 2, PATIENCE);
}

#[test]
fn who_is_kept_waiting_for_the_lock_again_and_again_is_told_with_figures() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, RELAY].concat());
    let app = open(&scene.path("app.db"));
    app.busy_timeout(PATIENCE).unwrap();
    let mut daemon = scene.daemon();
    let warned = || {
        let status = told(&scene.outboxd(&["status"]));
        status.contains("waited for longer than 100 ms for its write lock").then_some(status)
    };
    let mut events = 0;
    let said = until("the waiting is told", 3 * PATIENCE, || {
        // Of each event the settlement comes to a lock that the application holds.
        app.execute_batch("INSERT INTO outbox (type) VALUES ('T'); BEGIN IMMEDIATE").unwrap();
        std::thread::sleep(Duration::from_millis(250));
        app.execute_batch("COMMIT").unwrap();
        events += 1;
        daemon.until_settled("to_lines", events, PATIENCE);
        if events <= 5 {
            assert_eq!(daemon.status("to_lines").unwrap()["warnings"], serde_json::json!([]), "a few say nothing");
        }
        warned()
    });
    assert!(said.contains("transactions a second") && said.contains("BEGIN IMMEDIATE"), "{said}");
    let ready = daemon.get("/readyz?verbose").1;
    assert!(ready.contains("for its write lock"), "{ready}");
}
