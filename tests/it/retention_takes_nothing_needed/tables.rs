//! The other tables whose rows go: what was decided of dead letters, the history of jobs, archived events.

use rusqlite::Connection;

use super::{OLD, config, run, settle, state, told};
use crate::archives_pass_nobody::{grow, log, snap};
use crate::support::eventsource::{count, make};
use crate::support::process::{SHOP, Scene, ended_with, shared_machine};
use crate::support::rig::open;

const LOG: &str = "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n\
                   [jobs.old]\ntype = \"archive\"\nsource = \"shop\"\n";

/// A job's newest run stays, and its newest that went well, however old they are: by them it is known when it is due.
#[test]
fn the_history_of_jobs_goes_but_not_what_says_when_they_are_due() {
    let scene = Scene::new(&config(SHOP, "what = \"runs\"\nolder_than = \"24h\"", &["a"]));
    let state = state(&scene);
    let put = |job: &str, n: i64, result: Option<&str>| {
        let sql = "INSERT INTO outboxd_job_run (job, began, ended, result) VALUES (?1, ?2, ?2, ?3)";
        state.execute(sql, rusqlite::params![job, format!("2020-01-{n:02}T00:00:00.000000Z"), result]).unwrap();
    };
    for (n, result) in [(1, "done"), (2, "done"), (3, "failed"), (4, "killed")] {
        put("other", n, Some(result));
    }
    for n in 1..=3 {
        put("tidy", n, Some("done"));
    }
    put("running", 1, Some("done"));
    put("running", 2, None);
    let said = told(&run(&scene));
    assert!(said.contains(": 4 rows of outboxd_job_run deleted; 4 stay"), "{said}");
    let left = |job: &str| count(&state, &format!("outboxd_job_run WHERE job = '{job}' AND began LIKE '2020%'"));
    assert_eq!((left("other"), left("running")), (2, 2), "the newest, and the newest that was done");
}

#[test]
fn what_was_decided_of_dead_letters_goes() {
    let py = "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\npreset = \"eventsource-py\"\nread = \"outbox\"\n";
    let scene = Scene::without_a_file(&config(py, "what = \"resolved\"\nolder_than = \"24h\"", &["a"]));
    let app = make(&scene.path("app.db"), "g3");
    drop(run(&scene));
    app.execute("DELETE FROM dead_letter_queue", []).unwrap();
    let put = |n: i64, status: &str, resolved: Option<&str>| {
        let sql = "INSERT INTO dead_letter_queue (event_id, projection_name, event_type, event_data, error_message, last_failed_at, status, resolved_at)
                   VALUES (?1, 'P', 'T', '{}', '', '2020-01-01 00:00:00', ?2, ?3)";
        app.execute(sql, rusqlite::params![n, status, resolved]).unwrap();
    };
    put(1, "resolved", Some("2020-01-02T00:00:00+00:00"));
    put(2, "failed", None);
    put(3, "retrying", None);
    put(4, "resolved", None);
    put(5, "resolved", Some("2999-01-01 00:00:00"));
    for (at, action) in [(OLD, "discard"), (OLD, "position"), ("2999-01-01T00:00:00Z", "discard")] {
        let sql = "INSERT INTO outboxd_resolution (at, consumer, action, reason, detail) VALUES (?1, 'to_a', ?2, '', 'from 1 to 2')";
        app.execute(sql, [at, action]).unwrap();
    }
    let said = told(&run(&scene));
    assert!(
        said.contains("2 rows of dead_letter_queue deleted, 1 rows of outboxd_resolution deleted; 2 are younger"),
        "{said}"
    );
    assert_eq!((count(&app, "dead_letter_queue"), count(&app, "outboxd_resolution WHERE action = 'position'")), (3, 1));
}

fn archive(scene: &Scene, app: &Connection, stream: &str, from: i64, to: i64) {
    grow(app, stream, from, to);
    snap(app, stream, to);
    settle(scene, "to_a", app.query_row("SELECT max(position) FROM events", [], |row| row.get(0)).unwrap());
    told(&scene.outboxd(&["job", "run", "old"]));
}

/// Of each stream the newest archived event stays, and what no snapshot holds; the archive goes on behind it, and so do all readers.
#[test]
fn archived_events_go_and_everything_goes_on() {
    let _machine = shared_machine();
    let scene = Scene::new(&config(LOG, "what = \"archived\"\nhistory_may_go = true\nolder_than = \"1h\"", &["a"]));
    let app = open(&scene.path("app.db"));
    archive(&scene, &app, "a", 1, 20);
    assert!(told(&run(&scene)).contains(": 0 rows of archived_events deleted; 19 are younger"));
    app.execute("UPDATE archived_events SET time = '2020-01-01T00:00:00Z'", []).unwrap();
    // No snapshot holds them any more: the application could not tell the stream's state.
    app.execute("UPDATE snapshots SET version = 5", []).unwrap();
    let said = told(&run(&scene));
    assert!(said.contains(": 5 rows of archived_events deleted; 14 stay"), "{said}");
    app.execute("UPDATE snapshots SET version = 20", []).unwrap();
    // What a relay has to read once more is not taken from it.
    told(&scene.outboxd(&["position", "set", "to_a", "10", "--yes"]));
    let said = told(&run(&scene));
    assert!(said.contains("5 rows of archived_events deleted; 9 held back by to_a, which is at position 10"), "{said}");
    settle(&scene, "to_a", 20);
    assert!(told(&run(&scene)).contains(": 8 rows of archived_events deleted; 1 stay"));
    assert_eq!((log(&app).len(), count(&app, "archived_events")), (2, 1), "the newest archived, and the newest");
    archive(&scene, &app, "a", 21, 40);
    assert_eq!(count(&app, "archived_events"), 21);
    assert!(archived_is(&app, "a", 39));
    let again = app.execute(
        "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('x', 'a', 'Order', 39, 'T', '{}')",
        [],
    );
    assert!(again.is_err());
    let lines = std::fs::read_to_string(scene.path("a.ndjson")).unwrap();
    assert_eq!(lines.lines().count(), 50, "ten of them once more");
    app.execute("INSERT INTO archive_file VALUES (1, 'its id', 'app-archive.db', 0)", []).unwrap();
    assert!(
        ended_with(&run(&scene), 65)
            .contains("its archive is a file of its own, from which nothing is deleted. Remedy")
    );
}

fn archived_is(app: &Connection, stream: &str, newest: i64) -> bool {
    count(app, &format!("archived_events WHERE stream_id = '{stream}' AND version = {newest}")) == 1
}
