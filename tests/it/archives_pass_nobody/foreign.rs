//! Tables of others: the real eventsource-py, and FlightDeck's own statements, go on from snapshots when older events are archived.

use rusqlite::Connection;
use serde_json::Value;

use super::{PATIENCE, RELAY, config, refused, run, told};
use crate::snapshots_are_true::{ACCOUNT, current_state, flightdeck_append, python};
use crate::support::eventsource::count;
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;

/// The job, a job that takes snapshots, and a relay.
fn scene(preset: &str, keys: &str, snapshots: &str) -> Scene {
    let snapshots = format!("[jobs.snaps]\ntype = \"snapshot\"\nsource = \"log\"\n{snapshots}\n");
    Scene::without_a_file(&config(preset, &[keys, "\n", &snapshots, RELAY].concat()))
}

fn settle(scene: &Scene, head: i64) {
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", head, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
}

/// The positions that were delivered, in their order.
fn delivered(scene: &Scene) -> Vec<i64> {
    let text = std::fs::read_to_string(scene.path("lines.ndjson")).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap()).collect()
}

fn states(lines: &[Value]) -> Vec<(Value, Value)> {
    lines.iter().map(|line| (line["version"].clone(), line["state"].clone())).collect()
}

#[test]
fn the_real_eventsource_py_goes_on_with_an_archive() {
    let _machine = shared_machine();
    let keys = "application_reads_archive = true\nschema_versions = { Account = 3 }";
    let scene = scene("eventsource-py", keys, ACCOUNT);
    let file = scene.path("app.db").to_str().unwrap().to_owned();
    drop(open(&scene.path("app.db")));
    let check = scene.outboxd(&["check"]);
    let said = String::from_utf8([check.stdout, check.stderr].concat()).unwrap();
    assert!(said.contains("there is no table events yet"), "not its archive, which nobody wants: {said}");
    python(&["write", &file, "3", "25"]);
    let before = states(&python(&["fast", &file]));
    // The table is not the library's: whoever wants it makes it, as it is told.
    let wants = refused(&run(&scene));
    let (_, statement) = wants.split_once("Remedy: ").unwrap();
    let app = open(&scene.path("app.db"));
    app.execute_batch(statement.lines().next().unwrap()).unwrap();
    settle(&scene, 75);
    assert!(
        told(&run(&scene)).contains(": 0 events of 0 streams moved to archived_events; 3 streams have no snapshot")
    );
    told(&scene.outboxd(&["job", "run", "snaps"]));
    // Its own projections, as its releases write how far they are; its outbox; its dead letters.
    let insert =
        "INSERT INTO projection_checkpoints (projection_name, position_token, global_position, last_event_id) VALUES";
    let held = |sql: &str, clean: &str, what: &str| {
        app.execute_batch(sql).unwrap();
        let said = told(&run(&scene));
        assert!(said.contains(what), "{sql}: {said}");
        app.execute_batch(clean).unwrap();
    };
    let nobody = "DELETE FROM projection_checkpoints";
    held(
        &format!("{insert} ('P', NULL, NULL, NULL)"),
        nobody,
        ": 0 events of 0 streams moved to archived_events; 72 held back by eventsource-py's projection P, which is at position 0",
    );
    held(
        &format!("{insert} ('P', '{{\"s\":\"sqlite:app.db\",\"k\":[4]}}', 70, NULL), ('Q', NULL, 30, NULL)"),
        nobody,
        ": 4 events of 1 streams moved to archived_events; 68 held back by eventsource-py's projection P, which is at position 4",
    );
    held(
        &format!("{insert} ('P', '{{', NULL, (SELECT event_id FROM archived_events WHERE global_position = 3))"),
        nobody,
        ": 0 events of 0 streams moved to archived_events; 68 held back by eventsource-py's projection P, which is at position 3",
    );
    held(&format!("{insert} ('P', NULL, 6, NULL)"), nobody, ": 2 events of 1 streams");
    let row = |status: &str| {
        format!(
            "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, status) SELECT event_id, event_id, event_type, aggregate_id, aggregate_type, '{{}}', '{status}' FROM events WHERE global_position = 8"
        )
    };
    for status in ["pending", "failed"] {
        let what = "65 held back by a row of event_outbox that is not published (its event is at position 8)";
        held(&row(status), "DELETE FROM event_outbox", what);
    }
    held(
        "INSERT INTO dead_letter_queue (event_id, projection_name, event_type, event_data, error_message) SELECT event_id, 'P', 'T', '{}', '' FROM events WHERE global_position = 9",
        "UPDATE dead_letter_queue SET status = 'resolved'",
        ": 1 events of 1 streams moved to archived_events; 64 held back by a row of dead_letter_queue that is not resolved (its event is at position 9)",
    );
    app.execute_batch(&row("published")).unwrap();
    assert!(told(&run(&scene)).contains(": 64 events of 3 streams moved to archived_events\n"));
    assert_eq!((count(&app, "events"), count(&app, "archived_events")), (3, 72));
    // The library loads from its snapshots, and goes on appending where it was.
    assert_eq!(states(&python(&["fast", &file])), before);
    let grown = states(&python(&["grow", &file, "12"]));
    assert!(grown.iter().all(|(version, _)| version == 37));
    told(&scene.outboxd(&["job", "run", "snaps"]));
    settle(&scene, 111);
    assert!(told(&run(&scene)).contains(": 36 events of 3 streams"));
    assert_eq!(states(&python(&["fast", &file])), grown);
    // From the first event on, whichever table it stands in.
    assert!(told(&scene.outboxd(&["job", "verify", "snaps"])).contains("3 snapshots are what 111 events come to"));
    // All that ever was is what the library comes to from the first event on.
    let copy = scene.path("copy.db");
    app.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let whole = open(&copy);
    whole.execute_batch("INSERT INTO events SELECT * FROM archived_events; DELETE FROM archived_events").unwrap();
    drop(whole);
    let from_the_first = python(&["read", copy.to_str().unwrap()]);
    assert!(from_the_first.iter().all(|line| line["same"] == true), "{from_the_first:?}");
    assert_eq!(states(&from_the_first), grown);
    // And a relay from the beginning finds all of it.
    assert_eq!(delivered(&scene), (1..=111).collect::<Vec<_>>());
    told(&scene.outboxd(&["position", "set", "to_lines", "first", "--yes"]));
    settle(&scene, 111);
    assert_eq!(delivered(&scene), (1..=111).chain(1..=111).collect::<Vec<_>>());
    // A snapshot that the class does not take holds nothing.
    python(&["grow", &file, "12"]);
    told(&scene.outboxd(&["job", "run", "snaps"]));
    app.execute("UPDATE snapshots SET schema_version = 2", []).unwrap();
    assert!(told(&run(&scene)).contains(
        ": 0 events of 0 streams moved to archived_events; the snapshots of 3 streams are of another schema_version"
    ));
    Proof::of("archive, eventsource-py 0.8.1").tried("aggregates", 3).found("loaded otherwise than from all events", 0);
}

fn lists(app: &Connection) -> Vec<usize> {
    ["c1", "c2"].map(|stream| current_state(app, stream).0.len()).to_vec()
}

#[test]
fn flightdecks_own_statements_go_on_with_an_archive() {
    let _machine = shared_machine();
    let scene = scene("flightdeck", "", "");
    let app = open(&scene.path("app.db"));
    app.execute_batch(include_str!("../../fixtures/flightdeck.sql")).unwrap();
    flightdeck_append(&app, "c1", 1, 70);
    flightdeck_append(&app, "c2", 1, 60);
    let all = [current_state(&app, "c1"), current_state(&app, "c2")];
    told(&scene.outboxd(&["job", "run", "snaps"]));
    // Without a feed, and before its start, nobody knows how far the relay is.
    assert!(told(&run(&scene)).contains(
        ": 0 events of 0 streams moved to archived_events; 128 held back by to_lines, which has never started"
    ));
    told(&scene.outboxd(&["init", "--feed", "events", "--archive", "archived_events", "app.db"]));
    assert!(told(&run(&scene)).contains(": 0 events of 0 streams"));
    settle(&scene, 130);
    flightdeck_append(&app, "c1", 71, 75);
    assert!(
        told(&run(&scene)).contains(": 129 events of 2 streams moved to archived_events\n"),
        "of c1 what its snapshot holds, of c2 all but the newest"
    );
    assert_eq!((count(&app, "events"), count(&app, "archived_events WHERE archived_at LIKE '20%Z'")), (6, 129));
    let (events, last) = current_state(&app, "c1");
    assert_eq!((events.len(), last, &events[..70]), (75, 75, &all[0].0[..]));
    assert_eq!(current_state(&app, "c2"), all[1]);
    // It goes on, and so do we.
    flightdeck_append(&app, "c1", 76, 130);
    told(&scene.outboxd(&["job", "run", "snaps"]));
    assert!(told(&run(&scene)).contains("59 held back by to_lines, which is at position 130"));
    settle(&scene, 190);
    assert!(told(&run(&scene)).contains(": 59 events of 1 streams"));
    assert_eq!(lists(&app), [130, 60]);
    assert_eq!(current_state(&app, "c1").0[..70], all[0].0[..]);
    // Whoever begins anew finds everything.
    told(&scene.outboxd(&["position", "set", "to_lines", "first", "--yes"]));
    settle(&scene, 190);
    assert_eq!(delivered(&scene), (1..=190).chain(1..=190).collect::<Vec<_>>());
    // FlightDeck's own snapshot, taken after an archive, is a list without its head: what only that holds stays.
    flightdeck_append(&app, "c1", 131, 140);
    settle(&scene, 200);
    app.execute("UPDATE snapshots SET version = 140, data = '[1, 2, 3]' WHERE stream_id = 'c1'", []).unwrap();
    let said = refused(&run(&scene));
    assert!(said.contains("stream c1 of type ContentCreated: its snapshot of version 140 cannot be read: it is a list of 3 events, and its stream had 140 by then"), "{said}");
    app.execute_batch("DROP TABLE archived_events").unwrap();
    assert!(refused(&run(&scene)).contains("there is no table archived_events, into which events could be moved. Remedy: CREATE TABLE archived_events (id TEXT PRIMARY KEY"));
    Proof::of("archive, FlightDeck's own statements")
        .tried("events", 200)
        .found("states other than from all events", 0);
}
