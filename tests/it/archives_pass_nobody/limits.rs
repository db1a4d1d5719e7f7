//! What holds events back, each asked in the transaction that moves them, and told.

use std::process::Output;

use rusqlite::Connection;
use serde_json::json;

use super::{PATIENCE, PLACES, RELAY, archived, config, expected, grow, log, refused, run, snap, told, whole};
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::rig::open;
use crate::support::wait::until;
use crate::the_controls_fail_without_their_protection::without;

const OUT: &str = "[sources.out]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"outbox\"\n[sinks.rows]\ntype = \"file\"\npath = \"rows.ndjson\"\n\
                   [relays.to_rows]\nsource = \"out\"\nsink = \"rows\"\nstart = \"first\"\n";

#[test]
fn what_snapshots_hold_is_moved_and_read_as_before() {
    PLACES.into_iter().for_each(what_snapshots_hold_is_moved_and_read_as_before_in);
}

fn what_snapshots_hold_is_moved_and_read_as_before_in(place: &str) {
    let scene = Scene::new(&config("outboxd", place));
    let app = open(&scene.path("app.db"));
    for (stream, version, snapshot) in [("a", 20, 15), ("b", 10, 10), ("c", 10, 0), ("d", 1, 1)] {
        grow(&app, stream, 1, version);
        if snapshot > 0 {
            snap(&app, stream, snapshot);
        }
    }
    let before = log(&whole(&scene));
    let show = |scene: &Scene| told(&scene.outboxd(&["events", "show", "log", "b", "--json"]));
    let tail =
        |scene: &Scene| told(&scene.outboxd(&["events", "tail", "log", "--after", "0", "--no-follow", "--json"]));
    let (shown, tailed) = (show(&scene), tail(&scene));
    let said = told(&run(&scene));
    assert!(
        said.contains(": 24 events of 2 streams moved to ") && said.contains("; 1 streams have no snapshot"),
        "{said}"
    );
    assert_eq!(archived(&whole(&scene)), expected(&[("a", 15), ("b", 9)]), "the newest stays");
    assert_eq!(log(&whole(&scene)), before);
    assert_eq!((show(&scene), tail(&scene)), (shown, tailed));
    assert!(told(&run(&scene)).contains(": 0 events of 0 streams"));
    // Versions and positions go on where they were, whoever appends.
    grow(&app, "b", 11, 12);
    let newest: (i64, i64) = app
        .query_row("SELECT position, version FROM events ORDER BY 1 DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(newest, (43, 12));
    let again = app.execute(
        "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('x', 'b', 'Order', 9, 'T', '{}')",
        [],
    );
    assert!(again.unwrap_err().to_string().contains("an archived event has this id or version"));
    let line = "{\"stream_id\": \"b\", \"stream_type\": \"Order\", \"expected\": 12, \"type\": \"T\", \"data\": {}}\n";
    scene.write("line", line);
    let script = format!("{} events append log < line", env!("CARGO_BIN_EXE_outboxd"));
    let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(scene.path(".")).output().unwrap();
    assert!(told(&output).contains("b: version 13"));
}

#[test]
fn each_limit_holds_back_and_is_told() {
    PLACES.into_iter().for_each(each_limit_holds_back_and_is_told_in);
}

fn each_limit_holds_back_and_is_told_in(place: &str) {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", &[place, RELAY].concat()));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 30);
    snap(&app, "a", 25);
    // A consumer that has never started is at the beginning.
    let said = told(&run(&scene));
    assert!(
        said.contains(": 0 events of 0 streams moved to ")
            && said.contains("; 25 held back by to_lines, which has never started"),
        "{said}"
    );
    settle(&scene, &app, "to_lines");
    grow(&app, "a", 31, 40);
    snap(&app, "a", 40);
    // What is held is behind the checkpoint, and stays with all that comes after it.
    let state = open(&scene.path("app.db-outboxd.db"));
    for (ordinal, position, kind) in [(1, 13, "waiting"), (0, 12, "dead")] {
        let sql = "INSERT INTO outboxd_held (consumer, key, ordinal, position, event_id, state, attempts, held_at)
                   VALUES ('to_lines', x'61', ?1, ?2, 'a-' || ?2, ?3, 5, '2026-11-21T00:00:00Z')";
        state.execute(sql, (ordinal, position, kind)).unwrap();
    }
    let said = told(&run(&scene));
    assert!(
        said.contains(": 11 events of 1 streams")
            && said.contains("28 held back by an event that to_lines holds at position 12"),
        "{said}"
    );
    state.execute("DELETE FROM outboxd_held WHERE state = 'dead'", []).unwrap();
    assert!(told(&run(&scene)).contains("27 held back by an event that to_lines holds at position 13"));
    state.execute("DELETE FROM outboxd_held", []).unwrap();
    let said = told(&run(&scene));
    assert!(said.contains("9 held back by to_lines, which is at position 30"), "{said}");
    assert_eq!(archived(&whole(&scene)), expected(&[("a", 30)]));
    // One that is not in the configuration any more has not been forgotten.
    scene.configure(&config("outboxd", place));
    let said = told(&run(&scene));
    assert!(said.contains("9 held back by to_lines, which is at position 30 and not in the configuration (`outboxd consumer forget to_lines`"), "{said}");
    told(&scene.outboxd(&["consumer", "forget", "to_lines", "--yes"]));
    assert!(told(&run(&scene)).contains(": 9 events of 1 streams"));
    assert_eq!(archived(&whole(&scene)), expected(&[("a", 39)]));
}

/// A projection's checkpoint stands in its own file, or in the application's.
#[test]
fn a_projection_is_not_passed_wherever_its_checkpoint_stands() {
    PLACES.into_iter().for_each(a_projection_is_not_passed_wherever_its_checkpoint_stands_in);
}

fn a_projection_is_not_passed_wherever_its_checkpoint_stands_in(place: &str) {
    let _machine = shared_machine();
    for file in ["read.db", "app.db"] {
        let projection = format!(
            "\n[projections.counts]\nsource = \"log\"\npath = \"{file}\"\ntables = [\"counts\"]\nschema = \"CREATE TABLE counts (id TEXT)\"\n\
             [projections.counts.on]\nT = \"INSERT INTO counts VALUES (:id)\"\n"
        );
        let scene = Scene::new(&config("outboxd", &[place, &projection].concat()));
        let app = open(&scene.path("app.db"));
        grow(&app, "a", 1, 10);
        snap(&app, "a", 10);
        assert!(told(&run(&scene)).contains("9 held back by counts, which has never started"));
        settle(&scene, &app, "counts");
        grow(&app, "a", 11, 20);
        snap(&app, "a", 20);
        let said = told(&run(&scene));
        assert!(
            said.contains(": 10 events of 1 streams moved to ")
                && said.contains("; 9 held back by counts, which is at position 10"),
            "{said}"
        );
    }
}

#[test]
fn an_outbox_row_that_is_not_published_holds_its_event_back() {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 10);
    grow(&app, "b", 1, 10);
    for stream in ["a", "b"] {
        snap(&app, stream, 10);
    }
    app.execute_batch("INSERT INTO outbox (id, type) VALUES ('other', 'T'), ('a-7', 'T'), ('b-3', 'T')").unwrap();
    // Nobody carries it: whoever will has not begun.
    let said = told(&run(&scene));
    assert!(
        said.contains(": 6 events of 1 streams")
            && said.contains("12 held back by row 2 of the outbox, which is not published"),
        "{said}"
    );
    scene.configure(&config("outboxd", OUT));
    assert!(told(&run(&scene)).contains(": 0 events"));
    let mut daemon = scene.daemon();
    daemon.until_settled("to_rows", 3, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    app.execute("INSERT INTO outbox (id, type) VALUES ('b-5', 'T')", []).unwrap();
    let said = told(&run(&scene));
    assert!(said.contains("5 held back by row 4 of the outbox"), "{said}");
    assert_eq!(archived(&app), expected(&[("a", 9), ("b", 4)]));
    settle_to(&scene, "to_rows", 4);
    // Held by the relay of the outbox.
    let state = open(&scene.path("app.db-outboxd.db"));
    let sql = "INSERT INTO outboxd_held (consumer, key, ordinal, position, event_id, state, attempts, held_at)
               VALUES ('to_rows', x'61', 0, 4, 'b-5', 'dead', 5, '2026-11-21T00:00:00Z')";
    state.execute(sql, []).unwrap();
    assert!(told(&run(&scene)).contains(": 0 events of 0 streams moved to archived_events; 5 held back by row 4"));
    state.execute("DELETE FROM outboxd_held", []).unwrap();
    assert!(told(&run(&scene)).contains(": 5 events of 1 streams moved to archived_events\n"));
}

#[test]
fn what_is_younger_than_was_said_stays() {
    let scene = Scene::new(&config("outboxd", "older_than = \"2h\""));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 20);
    snap(&app, "a", 15);
    assert!(
        told(&run(&scene)).contains(": 0 events of 0 streams moved to archived_events; 15 held back by older_than")
    );
    // In whatever form it is written.
    let times = [
        "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-3 hours')",
        "datetime('now', '-3 hours')",
        "strftime('%Y-%m-%dT%H:%M:%S+05:00', 'now', '+2 hours')",
    ];
    for version in 1..=20_i64 {
        let time = times[version as usize % 3];
        app.execute(&format!("UPDATE events SET time = {time} WHERE version = ?1 AND version <> 12"), [version])
            .unwrap();
    }
    let said = told(&run(&scene));
    assert!(said.contains(": 11 events of 1 streams") && said.contains("4 held back by older_than"), "{said}");
    app.execute("UPDATE events SET time = 'long ago' WHERE version = 12", []).unwrap();
    assert!(refused(&run(&scene)).contains("stream a of type Order: version 12: \"long ago\" is no time"));
    assert_eq!(archived(&app), expected(&[("a", 11)]));
}

/// The application holds the lock; while a run waits for it, something changes; then it lets go.
fn while_it_waits(scene: &Scene, daemon: &Daemon, app: &Connection, change: impl FnOnce()) -> Output {
    let retried = || daemon.metric("outboxd_transactions_total{file=\"app.db\",result=\"retried\"}").unwrap_or(0.0);
    let before = retried();
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(scene));
        until("it wants to write", PATIENCE, || (retried() > before).then_some(()));
        change();
        app.execute_batch("COMMIT").unwrap();
        running.join().unwrap()
    })
}

#[test]
fn what_changes_while_a_run_waits_is_seen() {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", RELAY));
    let app = open(&scene.path("app.db"));
    for stream in ["a", "b"] {
        grow(&app, stream, 1, 30);
    }
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 60, PATIENCE);
    told(&scene.outboxd(&["pause", "to_lines"]));
    daemon.until_state("to_lines", "paused", PATIENCE);
    let job_is_known = || {
        daemon
            .ask(&json!({ "command": "job", "action": "list" }))
            .filter(|answer| answer["jobs"][0]["state"] == "scheduled")
    };
    until("the job is known", PATIENCE, job_is_known);
    snap(&app, "a", 20);
    // The snapshot goes.
    let output = while_it_waits(&scene, &daemon, &app, || app.execute_batch("DELETE FROM snapshots").unwrap());
    assert!(told(&output).contains(": 0 events"));
    // It becomes an older one.
    snap(&app, "a", 20);
    let output =
        while_it_waits(&scene, &daemon, &app, || app.execute_batch("UPDATE snapshots SET version = 3").unwrap());
    assert!(told(&output).contains(": 0 events"));
    assert!(told(&run(&scene)).contains(": 3 events"));
    // An outbox row comes.
    snap(&app, "a", 20);
    let output = while_it_waits(&scene, &daemon, &app, || {
        app.execute("INSERT INTO outbox (id, type) VALUES ('a-6', 'T')", []).unwrap();
    });
    assert!(
        told(&output)
            .contains(": 2 events of 1 streams moved to archived_events; 15 held back by rows that are not published")
    );
    app.execute("DELETE FROM outbox", []).unwrap();
    // The newest events go: what is the newest now stays.
    snap(&app, "b", 30);
    let output = while_it_waits(&scene, &daemon, &app, || {
        app.execute("DELETE FROM events WHERE stream_id = 'b' AND version > 2", []).unwrap();
    });
    assert!(told(&output).contains(": 16 events of 2 streams"));
    assert_eq!(archived(&app), expected(&[("a", 20), ("b", 1)]));
    // A position is set backwards, which every reader of ours bears; still it is not passed.
    snap(&app, "a", 29);
    let output = while_it_waits(&scene, &daemon, &app, || {
        told(&scene.outboxd(&["position", "set", "to_lines", "24", "--yes"]));
    });
    let said = told(&output);
    assert!(
        said.contains(": 4 events of 1 streams") && said.contains("5 held back by to_lines, which is at position 24"),
        "{said}"
    );
    // It shows what holds it back.
    let listed = told(&scene.outboxd(&["job", "list"]));
    assert!(listed.contains("5 held back by to_lines, which is at position 24"), "{listed}");
    let series =
        |reason: &str| daemon.metric(&format!("outboxd_archive_held_back_events{{job=\"old\",reason=\"{reason}\"}}"));
    assert_eq!((series("consumer"), series("age")), (Some(5.0), Some(0.0)));
    assert_eq!(daemon.metric("outboxd_archived_events_total{job=\"old\"}"), Some(25.0));
}

/// Without the limits, a consumer that has never started is passed.
#[test]
fn control_without_the_limits_a_consumer_is_passed() {
    let scene = Scene::new(&config("outboxd", RELAY));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 30);
    snap(&app, "a", 25);
    told(&scene.outboxd_with(&["job", "run", "old"], &without("Passed")));
    assert_eq!(archived(&app), expected(&[("a", 25)]));
}

/// Without the look at the snapshot, the application's state of the stream is not what its events come to: it reads `events` alone.
#[test]
fn control_without_the_look_at_snapshots_what_none_holds_is_moved() {
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 30);
    snap(&app, "a", 25);
    told(&scene.outboxd_with(&["job", "run", "old"], &without("Covered")));
    assert_eq!(archived(&app), expected(&[("a", 29)]));
}

/// Without it, an application that takes the next version from its table would begin anew.
#[test]
fn control_without_the_newest_event_a_version_would_come_again() {
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 30);
    snap(&app, "a", 30);
    told(&scene.outboxd_with(&["job", "run", "old"], &without("NewestStays")));
    let next: i64 = app
        .query_row("SELECT 1 + coalesce(max(version), 0) FROM events WHERE stream_id = 'a'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(next, 1);
}

fn settle(scene: &Scene, app: &Connection, consumer: &str) {
    settle_to(scene, consumer, app.query_row("SELECT max(position) FROM events", [], |row| row.get(0)).unwrap());
}

fn settle_to(scene: &Scene, consumer: &str, head: i64) {
    let mut daemon = scene.daemon();
    daemon.until_settled(consumer, head, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
}
