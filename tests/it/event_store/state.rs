//! `outboxd events state`: what a stream's state is made of, and what it comes to.

use serde_json::{Value, json};

use crate::support::process::Scene;
use crate::support::rig::open;

const LOG: &str = "[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n";
const JOB: &str = "[jobs.snaps]\ntype = \"snapshot\"\nsource = \"log\"\nevery_events = 1\n";
const REDUCERS: &str = "[jobs.snaps.reducers.Order]\nPlaced = \"json_object('n', 1)\"\n\"*\" = \"json_set(:state, '$.n', (:state ->> 'n') + 1)\"\n";

fn run(scene: &Scene, arguments: &[&str]) -> (i32, String) {
    let output = scene.outboxd(&[&["events", "state"], arguments].concat());
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn seen(scene: &Scene, store: &str) -> Value {
    let (exit, printed) = run(scene, &[store, "order-1", "--json"]);
    assert_eq!(exit, 0, "{printed}");
    assert_eq!(printed.lines().count(), 1, "a line of JSON: {printed}");
    let line: Value = serde_json::from_str(&printed).unwrap();
    let versions: Vec<&Value> = line["events"].as_array().unwrap().iter().map(|event| &event["version"]).collect();
    json!([line["version"], line["snapshot"], versions, line.get("state")])
}

fn append(scene: &Scene, versions: std::ops::RangeInclusive<i64>) {
    for version in versions {
        let kind = if version == 1 { "Placed" } else { "Changed" };
        open(&scene.path("app.db"))
            .execute(
                "INSERT INTO events (stream_id, stream_type, version, type, data, time) VALUES ('order-1', 'Order', ?1, ?2, '{}', '2026-11-21T10:00:00Z')",
                (version, kind),
            )
            .unwrap();
    }
}

#[test]
fn a_state_is_shown_with_what_it_is_made_of() {
    let config = [LOG, JOB, REDUCERS].concat();
    let scene = Scene::new(&config);
    append(&scene, 1..=3);
    assert_eq!(seen(&scene, "log"), json!([3, null, [1, 2, 3], { "n": 3 }]));
    assert!(scene.outboxd(&["job", "run", "snaps"]).status.success());
    assert_eq!(seen(&scene, "log"), json!([3, { "version": 3, "state": { "n": 3 } }, [], { "n": 3 }]));
    append(&scene, 4..=5);
    let with_newer = json!([5, { "version": 3, "state": { "n": 3 } }, [4, 5], { "n": 5 }]);
    assert_eq!(seen(&scene, "log"), with_newer);
    // Wherever the events are, they are the same.
    let app = open(&scene.path("app.db"));
    app.execute_batch(
        "BEGIN; INSERT INTO archived_events SELECT * FROM events WHERE version <= 4; DELETE FROM events WHERE version <= 4; COMMIT",
    )
    .unwrap();
    assert_eq!(seen(&scene, "log"), with_newer);
    let (_, told) = run(&scene, &["log", "order-1"]);
    assert_eq!(
        told,
        "stream     order-1 of type Order, at version 5\n\
         snapshot   of version 3: {\"n\":3}\n\
         behind it  2 events\n\
         VERSION  TYPE     TIME                  DATA\n\
         4        Changed  2026-11-21T10:00:00Z  {}\n\
         5        Changed  2026-11-21T10:00:00Z  {}\n\
         state      {\"n\":5}\n"
    );
    // Another reducer begins with the first event, and says so; without one, what would give the state is told.
    scene.configure(&config.replace("+ 1", "+ 10"));
    assert_eq!(seen(&scene, "log"), json!([5, { "version": 3, "state": { "n": 3 } }, [4, 5], { "n": 41 }]));
    let (_, told) = run(&scene, &["log", "order-1"]);
    assert!(
        told.contains("state      {\"n\":41} (from the first event on: another reducer has made the snapshot)"),
        "{told}"
    );
    let unknown = json!([5, { "version": 3, "state": { "n": 3 } }, [4, 5], null]);
    assert_eq!(seen(&scene, "./app.db"), unknown, "a file says nothing of reducers");
    let (exit, told) = run(&scene, &["./app.db", "order-1"]);
    assert!(exit == 0 && told.contains("[jobs.<name>.reducers], Order = ...; name its source, not the file"), "{told}");
    scene.configure(&config.replace("reducers.Order", "reducers.Other"));
    assert_eq!(seen(&scene, "log"), unknown, "a job that says nothing of this type");
    // With nothing behind it, the snapshot is the state.
    app.execute("UPDATE snapshots SET version = 5", []).unwrap();
    assert_eq!(seen(&scene, "./app.db"), json!([5, { "version": 5, "state": { "n": 3 } }, [], { "n": 3 }]));
}

/// Nothing wrong is folded: each fault is told, with its place.
#[test]
fn what_cannot_be_told_is_refused_by_name() {
    let scene = Scene::new(&[LOG, JOB, REDUCERS, "[sources.other]\npath = \"app.db\"\npreset = \"emmett\"\n"].concat());
    append(&scene, 1..=4);
    let app = open(&scene.path("app.db"));
    for (arguments, code, part) in [
        (vec!["log", "order-2"], 65, "there is no stream order-2"),
        (vec!["none", "order-1"], 64, "there is no source none"),
        (vec!["./none.db", "order-1"], 69, "`outboxd init ./none.db`"),
        (vec!["other", "order-1"], 64, "name a source with the preset outboxd, eventsource-py or flightdeck"),
    ] {
        let (exit, told) = run(&scene, &arguments);
        assert!(exit == code && told.contains(part), "{arguments:?}: {exit} {told}");
    }
    for (sql, part) in [
        ("DELETE FROM events WHERE version = 2", "version 2 is missing: behind version 1 comes 3"),
        ("DELETE FROM events WHERE version = 4", "version 4 is missing: the stream is at version 4"),
        ("INSERT INTO snapshots VALUES ('order-1', 9, '{}', 'x', '')", "its snapshot is of version 9"),
    ] {
        app.execute_batch(sql).unwrap();
        for store in ["log", "./app.db"] {
            let (exit, told) = run(&scene, &[store, "order-1"]);
            assert!(exit == 65 && told.contains(part) && told.contains("order-1"), "{sql}: {exit} {told}");
        }
        app.execute_batch("DELETE FROM snapshots; DELETE FROM events; DELETE FROM streams").unwrap();
        append(&scene, 1..=4);
    }
    scene.configure(&[LOG, JOB, "[jobs.snaps.reducers]\nOrder = { \"*\" = \":data ->> 'missing'\" }\n"].concat());
    let (exit, told) = run(&scene, &["log", "order-1"]);
    assert!(exit == 65 && told.contains("version 1: the expression for \"Placed\": it gives NULL"), "{exit} {told}");
}

/// The tables of others, each in its own shape.
#[test]
fn the_states_of_other_schemas_are_shown() {
    let flightdeck = include_str!("../../fixtures/flightdeck.sql");
    let eventsource = include_str!("../../tools/eventsource_generations/g3.sql");
    for (preset, tables, event, snapshot, state) in [
        (
            "eventsource-py",
            eventsource,
            "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
             VALUES (?1, 'order-1', 'Order', 'Changed', ?1, '2026-11-21T10:00:00', json_object('event_id', 'x', 'f' || ?1, 1))",
            json!({ "version": 2, "state": { "f1": 1, "f2": 1 } }),
            json!({ "f1": 1, "f2": 1, "f3": 1 }),
        ),
        (
            "flightdeck",
            flightdeck,
            "INSERT INTO events (id, stream_id, version, event_type, data, metadata, timestamp)
             VALUES (?1, 'order-1', ?1, 'Changed', '{}', '{}', '2026-11-21T10:00:00')",
            json!(null),
            json!(null),
        ),
    ] {
        let reducers = if preset == "flightdeck" { "" } else { "reducers = { Order = \"merge-patch\" }\n" };
        let scene = Scene::without_a_file(&[&LOG.replace("\"outboxd\"", &format!("\"{preset}\"")), JOB, reducers].concat());
        let app = open(&scene.path("app.db"));
        app.execute_batch(tables).unwrap();
        if preset == "flightdeck" {
            app.execute_batch("INSERT INTO streams VALUES ('order-1', 'Order', 3, '', '')").unwrap();
        }
        let insert = |version: i64| app.execute(event, [version]).unwrap();
        insert(1);
        insert(2);
        if preset == "eventsource-py" {
            let run = scene.outboxd(&["job", "run", "snaps"]);
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        }
        insert(3);
        let shown = seen(&scene, "log");
        if preset == "eventsource-py" {
            assert_eq!(shown, json!([3, snapshot, [3], state]), "{preset}");
        } else {
            assert_eq!((&shown[0], &shown[2]), (&json!(3), &json!([1, 2, 3])), "{preset}");
            let listed: Vec<&Value> = shown[3].as_array().unwrap().iter().map(|event| &event["Version"]).collect();
            assert_eq!(listed, [&json!(1), &json!(2), &json!(3)], "the list of its events");
        }
    }
}
