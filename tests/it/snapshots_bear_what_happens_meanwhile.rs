//! Snapshots beside what the application does while they are made, and of what it has written: what is newer or erased stays so, what cannot be
//! read is named and keeps nobody else from having one, and neither memory nor a read transaction grows with what there is.

use std::time::Duration;

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::hostile_rows::peak_mib;
use crate::snapshots_are_true::{PATIENCE, REDUCERS, config, grow, refused, run, told};
use crate::support::eventsource::count;
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::rig::open;
use crate::support::wait::{until, within};

const PATCHES: &str = "every_events = 10\nreducers = { Order = \"merge-patch\" }\n";

fn scene(preset: &str, keys: &str) -> (Scene, Connection) {
    let scene = if preset == "outboxd" {
        Scene::new(&config(preset, keys))
    } else {
        Scene::without_a_file(&config(preset, keys))
    };
    let app = open(&scene.path("app.db"));
    if preset == "eventsource-py" {
        app.execute_batch(include_str!("../tools/eventsource_generations/g3.sql")).unwrap();
    }
    (scene, app)
}

/// Events of eventsource-py's.
fn library_grows(app: &Connection, kind: &str, id: &str, from: i64, to: i64) {
    let sql = "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
               VALUES (?1, ?2, ?3, 'E', ?4, '2026-11-21T03:00:00+00:00', ?5)";
    let transaction = app.unchecked_transaction().unwrap();
    for version in from..=to {
        let values = params![format!("{kind}{id}{version}"), id, kind, version, format!("{{\"n\": {version}}}")];
        app.execute(sql, values).unwrap();
    }
    transaction.commit().unwrap();
}

fn is(daemon: &Daemon, state: &str) {
    until(&format!("the job is {state}"), PATIENCE, || shown(daemon).filter(|job| job["state"] == state));
}

fn shown(daemon: &Daemon) -> Option<Value> {
    Some(daemon.ask(&json!({ "command": "job", "action": "list" }))?["jobs"][0].clone())
}

/// Waits until the job's first snapshot asks for the lock, which the application has.
fn wants_to_write(daemon: &Daemon) {
    let series = "outboxd_transactions_total{file=\"app.db\",result=\"retried\"}";
    until("it wants to write", PATIENCE, || daemon.metric(series).filter(|count| *count > 0.0));
}

/// The page of streams that is worked on is old by the time: the application has gone on, has written a snapshot of its own, and has erased one
/// that is on its way and one whose turn has yet to come.
#[test]
fn what_the_application_does_meanwhile_counts() {
    let _machine = shared_machine();
    for preset in ["outboxd", "eventsource-py"] {
        let (scene, app) = scene(preset, PATCHES);
        let id = |n: usize| format!("Order-{n:03}");
        let sql = |ours: &str, librarys: &str| if preset == "outboxd" { ours.to_owned() } else { librarys.to_owned() };
        // More than can be under way.
        for n in 0..150 {
            match preset {
                "outboxd" => grow(&app, &id(n), 1, 20),
                _ => library_grows(&app, "Order", &id(n), 1, 20),
            }
        }
        let daemon = scene.daemon();
        is(&daemon, "scheduled");
        app.execute_batch("BEGIN IMMEDIATE").unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| run(&scene));
            wants_to_write(&daemon);
            let write = sql(
                "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES ('Order-140', 'Order', 21, 'E', '{\"n\": 21}');
                 INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES ('Order-140', 21, '{\"own\":true}', '');
                 DELETE FROM events WHERE stream_id IN ('Order-000', 'Order-141'); DELETE FROM streams WHERE stream_id IN ('Order-000', 'Order-141')",
                "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                 VALUES ('new', 'Order-140', 'Order', 'E', 21, '', '{\"n\": 21}');
                 INSERT INTO snapshots (aggregate_id, aggregate_type, version, schema_version, state, created_at)
                 VALUES ('Order-140', 'Order', 21, 1, '{\"own\":true}', '2026');
                 DELETE FROM events WHERE aggregate_id IN ('Order-000', 'Order-141')",
            );
            app.execute_batch(&format!("{write}; COMMIT")).unwrap();
            let done = told(&running.join().unwrap());
            assert!(done.contains("147 snapshots of "), "{preset}: {done}");
        });
        assert_eq!(count(&app, "snapshots"), 148, "{preset}");
        let (stream, state) = (sql("stream_id", "aggregate_id"), "SELECT state FROM snapshots WHERE");
        let own: String = app.query_row(&format!("{state} {stream} = 'Order-140'"), [], |row| row.get(0)).unwrap();
        assert_eq!(own, "{\"own\":true}", "{preset}");
        let erased = format!("SELECT count(*) FROM snapshots WHERE {stream} IN ('Order-000', 'Order-141')");
        assert_eq!(
            app.query_row(&erased, [], |row| row.get::<_, i64>(0)).unwrap(),
            0,
            "{preset}: what is erased stays so"
        );
    }
}

/// A trigger of the application's own refuses one of many that share a transaction, and ends it: the others are written all the same.
#[test]
fn a_snapshot_that_the_application_refuses_takes_no_other_with_it() {
    let _machine = shared_machine();
    let (scene, app) = scene("outboxd", PATCHES);
    (0..40).for_each(|n| grow(&app, &format!("Order-{n}"), 1, 20));
    let trigger = "CREATE TRIGGER no BEFORE INSERT ON snapshots WHEN NEW.stream_id IN ('Order-7', 'Order-30')
                   BEGIN SELECT RAISE(ROLLBACK, 'not that one'); END";
    app.execute_batch(trigger).unwrap();
    let daemon = scene.daemon();
    is(&daemon, "scheduled");
    // While the file is locked they all queue, and so share transactions.
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&scene));
        wants_to_write(&daemon);
        app.execute_batch("ROLLBACK").unwrap();
        let said = refused(&running.join().unwrap());
        assert!(said.contains("38 snapshots of ") && said.contains("2 streams are left as they are"), "{said}");
        for stream in ["Order-7", "Order-30"] {
            assert!(
                said.contains(&format!("stream {stream} of type Order: its snapshot cannot be written: not that one")),
                "{said}"
            );
        }
    });
    assert_eq!(count(&app, "snapshots"), 38);
}

/// It has no place for a reducer's hash: which one a number stands for is remembered for the aggregate's type, wherever the reducer is written.
#[test]
fn a_reducer_that_moves_between_all_and_a_name_is_still_another() {
    let expressions =
        |place: &str, sql: &str| format!("every_events = 10\n[jobs.snaps.reducers.{place}]\nE = \"{sql}\"\n");
    let (one, other) = ("json_set(:state, '$.a', :version)", "json_set(:state, '$.b', :version)");
    let (scene, app) = scene("eventsource-py", &expressions("\"*\"", one));
    library_grows(&app, "Order", "o", 1, 10);
    library_grows(&app, "Cart", "c", 1, 10);
    assert!(told(&run(&scene)).contains("2 snapshots of 20 events"));
    // Under its name, the same: nothing has changed.
    scene.configure(&config("eventsource-py", &expressions("Order", one)));
    library_grows(&app, "Order", "o", 11, 20);
    assert!(told(&run(&scene)).contains("1 snapshots of 10 events"));
    // Another one, under its name: only its streams are left as they are.
    let both = format!("{}\n[jobs.snaps.reducers.\"*\"]\nE = \"{one}\"\n", expressions("Order", other));
    scene.configure(&config("eventsource-py", &both));
    library_grows(&app, "Order", "o", 21, 30);
    library_grows(&app, "Cart", "c", 11, 20);
    let said = refused(&run(&scene));
    assert!(
        said.contains("the reducer for \"Order\" is another") && said.contains("1 snapshots of 10 events"),
        "{said}"
    );
    let state = "SELECT state FROM snapshots WHERE aggregate_type = 'Order'";
    assert_eq!(app.query_row(state, [], |row| row.get::<_, String>(0)).unwrap(), "{\"a\":20}");
    // With another number, they are made anew.
    let raised = both.replace("every_events = 10", "every_events = 10\nschema_versions = { Order = 2 }");
    scene.configure(&config("eventsource-py", &raised));
    assert!(told(&run(&scene)).contains("1 snapshots of 30 events"));
    assert_eq!(app.query_row(state, [], |row| row.get::<_, String>(0)).unwrap(), "{\"b\":30}");
}

#[test]
fn what_cannot_be_read_is_named_and_the_others_go_on() {
    let (scene, app) = scene("eventsource-py", PATCHES);
    for id in ["before", "payload", "text", "version", "snapshot", "future", "never", "state", "zz"] {
        library_grows(&app, "Order", id, 1, 20);
    }
    let snapshot = |id: &str, version: &str, state: &str| {
        format!(
            "INSERT INTO snapshots (aggregate_id, aggregate_type, version, schema_version, state, created_at)
             VALUES ('{id}', 'Order', {version}, 1, {state}, '')"
        )
    };
    for sql in [
        "UPDATE events SET payload = x'FF' WHERE aggregate_id = 'payload' AND version = 7".to_owned(),
        "UPDATE events SET payload = CAST(x'7B2261223A22FF227D' AS TEXT) WHERE aggregate_id = 'text' AND version = 8"
            .to_owned(),
        "UPDATE events SET version = 'twenty' WHERE aggregate_id = 'version' AND version = 20".to_owned(),
        "UPDATE events SET aggregate_type = x'FF' WHERE aggregate_id = 'before' AND version = 20".to_owned(),
        snapshot("snapshot", "'ten'", "'{}'"),
        snapshot("future", "50", "'{}'"),
        snapshot("never", "-5", "'{}'"),
        snapshot("state", "5", "CAST(x'7B2261223A22FF227D' AS TEXT)"),
        "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
         SELECT 'odd' || version, x'FF', 'Order', 'E', version, '', '{}' FROM events WHERE aggregate_id = 'zz'"
            .to_owned(),
    ] {
        app.execute(&sql, []).unwrap();
    }
    let said = refused(&run(&scene));
    assert!(said.contains("2 snapshots of ") && said.contains("9 streams are left as they are"), "{said}");
    for (stream, what) in [
        ("stream payload of type Order", "version 7: its data cannot be read as text (it is Blob)"),
        ("stream text of type Order", "version 8: its data cannot be read as text"),
        ("stream version", "Invalid column type Text"),
        ("stream before", "what is said of it cannot be read"),
        ("stream snapshot", "what is said of it cannot be read"),
        ("stream future of type Order", "its snapshot is of version 50, and its newest event of version 20"),
        ("stream never of type Order", "its snapshot of version -5 cannot be read"),
        ("stream state of type Order", "its snapshot of version 5 cannot be read: it is no UTF-8"),
        ("stream \u{fffd}", "what is said of it cannot be read"),
    ] {
        let line = said.lines().find(|line| line.contains(stream));
        assert!(line.is_some_and(|line| line.contains(what) && line.contains("Remedy: ")), "{stream}: {said}");
    }
    let verified = refused(&scene.outboxd(&["job", "verify", "snaps"]));
    assert!(
        verified.contains("2 snapshots are what ") && verified.contains("stream state of type Order"),
        "{verified}"
    );
    // A file that must not be opened is refused, whoever asks.
    std::fs::remove_file(scene.path("app.db")).unwrap();
    std::fs::create_dir(scene.path("app.db")).unwrap();
    let verified = refused(&scene.outboxd(&["job", "verify", "snaps"]));
    assert!(verified.contains("is no file") && verified.contains("Remedy: "), "{verified}");
}

/// A field more with each event, of a MiB: the state is too large long before its last event. And an event that is too large by itself.
#[test]
fn what_is_too_large_is_left_before_it_is_read() {
    let (scene, app) = scene("outboxd", PATCHES);
    let sql = "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 40)
               INSERT INTO events (stream_id, stream_type, version, type, data)
               SELECT 'Order-grows', 'Order', v, 'E', '{\"f' || v || '\":\"' || hex(zeroblob(524288)) || '\"}' FROM n";
    app.execute(sql, []).unwrap();
    grow(&app, "Order-large", 1, 15);
    let sql = "UPDATE events SET data = '{\"n\":\"' || hex(zeroblob(9000000)) || '\"}' WHERE stream_id = 'Order-large' AND version = 4";
    app.execute(sql, []).unwrap();
    grow(&app, "Order-state", 1, 15);
    let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash)
               SELECT 'Order-state', 2, '{\"n\":\"' || hex(zeroblob(9000000)) || '\"}', ?1";
    let hash = {
        grow(&app, "Order-well", 1, 15);
        refused(&run(&scene));
        app.query_row("SELECT reducer_hash FROM snapshots", [], |row| row.get::<_, String>(0)).unwrap()
    };
    app.execute("DELETE FROM snapshots", []).unwrap();
    app.execute(sql, [hash]).unwrap();
    let said = refused(&run(&scene));
    assert!(said.contains("1 snapshots of ") && said.contains("3 streams are left"), "{said}");
    let line =
        |stream: &str| said.lines().find(|line| line.contains(stream)).unwrap_or_else(|| panic!("{stream}: {said}"));
    assert!(
        line("Order-grows").contains("version 16: its state has ") && line("Order-grows").contains("Remedy: "),
        "{said}"
    );
    assert!(line("Order-large").contains("version 4 has 18000") && line("Order-large").contains("Remedy: "), "{said}");
    assert!(line("Order-state").contains("its snapshot of version 2 cannot be read: it has 18000"), "{said}");
}

/// Two hundred MiB of states that cannot be written yet are not kept in memory.
#[test]
fn what_waits_for_the_lock_is_bounded() {
    let _machine = shared_machine();
    const MOST_MIB: u64 = 140;
    let (scene, app) = scene("outboxd", "every_events = 1\nreducers = { Order = \"merge-patch\" }\n");
    let sql = "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 50)
               INSERT INTO events (stream_id, stream_type, version, type, data)
               SELECT 'Order-' || v, 'Order', 1, 'E', '{\"f\":\"' || hex(zeroblob(2097152)) || '\"}' FROM n";
    app.execute(sql, []).unwrap();
    let daemon = scene.daemon();
    is(&daemon, "scheduled");
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&scene));
        wants_to_write(&daemon);
        let grown = within(Duration::from_secs(2), || (peak_mib(&daemon) >= MOST_MIB).then_some(()));
        app.execute_batch("ROLLBACK").unwrap();
        assert_eq!(grown, None, "{MOST_MIB} MiB and more");
        assert!(told(&running.join().unwrap()).contains("50 snapshots of 50 events"));
    });
    println!("50 states of 4 MiB: at most {} MiB", peak_mib(&daemon));
    assert!(peak_mib(&daemon) < MOST_MIB, "{} MiB", peak_mib(&daemon));
}

/// A stream that takes seconds to be folded: the application empties its `-wal` all the same.
#[test]
fn no_read_transaction_lasts_for_as_long_as_folding_takes() {
    let _machine = shared_machine();
    let slow = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000) SELECT max(i) FROM n)";
    let keys = format!("every_events = 10\n[jobs.snaps.reducers.Order]\n\"*\" = \"json_set(:state, '$.n', {slow})\"\n");
    let (scene, app) = scene("outboxd", &keys);
    grow(&app, "Order-slow", 1, 900);
    let daemon = scene.daemon();
    is(&daemon, "scheduled");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&scene));
        is(&daemon, "running");
        let empty = || app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).unwrap() == 0;
        app.busy_timeout(Duration::ZERO).unwrap();
        for n in 0..30 {
            grow(&app, "Note-1", n + 1, n + 1);
            until("the -wal is emptied", PATIENCE, || empty().then_some(()));
        }
        assert_eq!(shown(&daemon).unwrap()["state"], "running", "while it is folded");
        drop(daemon);
        drop(running.join());
    });
}

#[test]
fn a_stop_is_heard_in_the_midst_of_a_stream() {
    let _machine = shared_machine();
    let slow = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500000) SELECT max(i) FROM n)";
    let keys = format!("every = \"1s\"\n{}", REDUCERS.replace(":type)\"\n\"*\"", &format!("{slow})\"\n\"*\"")));
    let (scene, app) = scene("outboxd", &keys);
    grow(&app, "Cart-slow", 1, 2_000);
    let mut daemon = scene.daemon();
    is(&daemon, "running");
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let sql = "SELECT result FROM outboxd_job_run ORDER BY rowid DESC LIMIT 1";
    let state = Connection::open(scene.path("app.db-outboxd.db")).unwrap();
    assert_eq!(state.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap(), "aborted");
}
