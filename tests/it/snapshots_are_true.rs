//! Snapshots: each holds what all events up to its version come to; a stream with a fault is left alone, by name; the real eventsource-py and
//! FlightDeck's own statements read what was written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::support::eventsource;
use crate::support::process::{Scene, shared_machine};
pub use crate::support::process::{refused, told};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::support::wait::until;
use crate::the_controls_fail_without_their_protection::without;

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn config(preset: &str, keys: &str) -> String {
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.log]\npath = \"app.db\"\npreset = \"{preset}\"\nread = \"events\"\n\
         [jobs.snaps]\ntype = \"snapshot\"\nsource = \"log\"\n{keys}\n"
    )
}

pub const REDUCERS: &str = r#"every_events = 10
[jobs.snaps.reducers]
Order = "merge-patch"
Note = "none"
[jobs.snaps.reducers.Cart]
Added = "json_set(:state, '$.count', coalesce(:state ->> 'count', 0) + (:data ->> 'count'), '$.last', :type)"
"*" = "json_set(:state, '$.last', :type)"
"#;

/// An event of our own tables; its stream's type is the first word of its name.
fn append(app: &Connection, stream: &str, version: i64, kind: &str, data: &str) {
    let stream_type = stream.split('-').next().unwrap();
    let sql = "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES (?1, ?2, ?3, ?4, ?5)";
    app.prepare_cached(sql).unwrap().execute(params![stream, stream_type, version, kind, data]).unwrap();
}

/// Versions `from` to `to`, whose fold is easily told.
pub fn grow(app: &Connection, stream: &str, from: i64, to: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    for version in from..=to {
        match stream.starts_with("Cart") {
            true => append(app, stream, version, "Added", &format!("{{\"count\": {version}}}")),
            false => append(
                app,
                stream,
                version,
                "Changed",
                &format!("{{\"n\": {version}, \"f{}\": {version}}}", version % 7),
            ),
        }
    }
    transaction.commit().unwrap();
}

/// What `grow` up to a version comes to, worked out apart.
fn truth(stream: &str, version: i64) -> Value {
    if stream.starts_with("Cart") {
        return json!({ "count": (1..=version).sum::<i64>(), "last": "Added" });
    }
    let mut fields: serde_json::Map<String, Value> = (1..=version).map(|n| (format!("f{}", n % 7), n.into())).collect();
    fields.insert("n".into(), version.into());
    fields.into()
}

pub fn run(scene: &Scene) -> Output {
    scene.outboxd(&["job", "run", "snaps"])
}

fn snapshots(app: &Connection) -> BTreeMap<String, (i64, Value)> {
    let mut statement = app.prepare("SELECT stream_id, version, state FROM snapshots").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get::<_, String>(2)?)))).unwrap();
    rows.map(Result::unwrap)
        .map(|(id, (version, state)): (String, (i64, String))| (id, (version, serde_json::from_str(&state).unwrap())))
        .collect()
}

#[test]
fn a_snapshot_holds_what_all_events_come_to() {
    let scene = Scene::new(&config("outboxd", REDUCERS));
    let app = open(&scene.path("app.db"));
    for (stream, version) in [("Order-1", 25), ("Order-2", 9), ("Cart-1", 10), ("Cart-2", 2_345), ("Note-1", 99)] {
        grow(&app, stream, 1, version);
    }
    assert!(told(&run(&scene)).contains("3 snapshots of 2380 events"));
    let expected = |streams: &[(&str, i64)]| -> BTreeMap<String, (i64, Value)> {
        streams.iter().map(|(stream, version)| ((*stream).to_owned(), (*version, truth(stream, *version)))).collect()
    };
    assert_eq!(snapshots(&app), expected(&[("Order-1", 25), ("Cart-1", 10), ("Cart-2", 2_345)]));
    // Nothing is due, and so nothing is read or written.
    assert!(told(&run(&scene)).contains("0 snapshots of 0 events"));
    grow(&app, "Order-1", 26, 40);
    grow(&app, "Order-2", 10, 12);
    grow(&app, "Cart-2", 2_346, 2_350);
    assert!(told(&run(&scene)).contains("2 snapshots of 27 events"), "the old one is gone on from");
    let now = expected(&[("Order-1", 40), ("Order-2", 12), ("Cart-1", 10), ("Cart-2", 2_345)]);
    assert_eq!(snapshots(&app), now);
    assert!(told(&scene.outboxd(&["job", "verify", "snaps"])).contains("4 snapshots are what 2407 events come to"));
    // Archived events count as before.
    app.execute_batch(
        "BEGIN; INSERT INTO archived_events SELECT * FROM events WHERE stream_id = 'Order-1' AND version <= 30;
         DELETE FROM events WHERE stream_id = 'Order-1' AND version <= 30; COMMIT",
    )
    .unwrap();
    assert!(told(&scene.outboxd(&["job", "verify", "snaps"])).contains("4 snapshots are"));
    // Another reducer begins anew where a stream is due, and what it has not made yet is not compared.
    scene.configure(&config("outboxd", &REDUCERS.replace("'$.last', :type", "'$.last', :type, '$.more', 1")));
    grow(&app, "Cart-2", 2_351, 2_360);
    assert!(told(&run(&scene)).contains("1 snapshots of 2360 events"));
    assert_eq!(snapshots(&app)["Cart-2"].1["more"], 1);
    assert!(
        told(&scene.outboxd(&["job", "verify", "snaps"])).contains("3 snapshots are"),
        "and one of another reducer"
    );
    // What somebody changed is found.
    app.execute("UPDATE snapshots SET state = json_set(state, '$.n', 7) WHERE stream_id = 'Order-1'", []).unwrap();
    let wrong = refused(&scene.outboxd(&["job", "verify", "snaps"]));
    assert!(wrong.contains("stream Order-1 of type Order: its snapshot of version 40 is not what"), "{wrong}");
}

/// Makes a stream that is due, and spoils it.
fn spoiled(app: &Connection, stream: &str, sql: &str) {
    grow(app, stream, 1, 20);
    app.execute_batch("PRAGMA ignore_check_constraints = ON").unwrap();
    app.execute_batch(&sql.replace("$s", &format!("stream_id = '{stream}'"))).unwrap();
}

#[test]
fn what_is_wrong_with_a_stream_is_told_and_the_others_go_on() {
    let scene = Scene::new(&config("outboxd", &REDUCERS.replace("\"*\" = ", "Other = ")));
    let app = open(&scene.path("app.db"));
    let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
    let faults = [
        ("Order-hole", "DELETE FROM events WHERE $s AND version = 7".to_owned(), "version 7 is missing: behind version 6 comes 8"),
        ("Order-head", "DELETE FROM events WHERE $s AND version <= 5".into(), "version 1 is missing: behind version 0 comes 6"),
        ("Order-tail", "DELETE FROM events WHERE $s AND version >= 15".into(), "version 15 is missing: the stream is at version 20"),
        (
            "Order-double",
            "INSERT INTO archived_events SELECT position + 1000000, id, stream_id, stream_type, version, type, data, metadata, time
             FROM events WHERE $s AND version = 9"
                .into(),
            "version 9 stands there twice",
        ),
        ("Order-json", "UPDATE events SET data = '{\"n\":' WHERE $s AND version = 4".into(), "version 4: its data is no JSON"),
        ("Order-deep", format!("UPDATE events SET data = '{deep}' WHERE $s AND version = 3"), "version 3: its data is no JSON: "),
        ("Order-empty", "UPDATE events SET data = '' WHERE $s AND version = 5".into(), "version 5: its data is no JSON"),
        (
            "Order-future",
            "INSERT INTO snapshots (stream_id, version, state, reducer_hash) SELECT stream_id, 50, '{}', '' FROM streams WHERE $s".into(),
            "its snapshot is of version 50, and its newest event of version 20",
        ),
        ("Cart-null", "UPDATE events SET data = '{}' WHERE $s AND version = 6".into(), "no"),
        ("Cart-type", "UPDATE events SET type = 'Unheard' WHERE $s AND version = 8".into(), "version 8: no expression is said for events of type \"Unheard\""),
        ("Box-1", "SELECT 1".into(), "nothing says how their events are folded"),
    ];
    for (stream, sql, _) in &faults {
        spoiled(&app, stream, sql);
    }
    grow(&app, "Order-well", 1, 20);
    grow(&app, "Cart-well", 1, 20);
    let told = refused(&run(&scene));
    for (stream, _, what) in &faults {
        let place = if stream.starts_with("Box") {
            "streams of type Box are due".to_owned()
        } else {
            format!("stream {stream} of type")
        };
        // An expression that makes NULL of a field goes on.
        if *stream == "Cart-null" {
            assert!(!told.contains(&place), "{told}");
            continue;
        }
        let line = told.lines().find(|line| line.contains(&place));
        assert!(
            line.is_some_and(|line| line.contains(what) && line.contains("Remedy") | line.contains("version")),
            "{stream}: {told}"
        );
    }
    assert!(told.contains("3 snapshots of") && told.contains("10 streams are left as they are"), "{told}");
    let made: Vec<String> = snapshots(&app).into_keys().filter(|stream| stream != "Order-future").collect();
    assert_eq!(made, ["Cart-null", "Cart-well", "Order-well"]);
    // A snapshot that was spoiled later: it is read only when its stream is due again.
    grow(&app, "Order-well", 21, 40);
    app.execute("UPDATE snapshots SET state = '{\"n\":' WHERE stream_id = 'Order-well'", []).unwrap();
    let told = refused(&run(&scene));
    assert!(told.contains("stream Order-well of type Order: its snapshot of version 20 cannot be read"), "{told}");
    app.execute("DELETE FROM snapshots WHERE stream_id = 'Order-well'", []).unwrap();
    refused(&run(&scene));
    assert_eq!(snapshots(&app)["Order-well"], (40, truth("Order-well", 40)));
}

/// Without the look at versions, a stream with a hole has a snapshot, and it is wrong.
#[test]
fn control_without_the_look_at_versions_a_hole_is_folded_over() {
    let scene = Scene::new(&config("outboxd", REDUCERS));
    let app = open(&scene.path("app.db"));
    spoiled(&app, "Cart-hole", "DELETE FROM events WHERE $s AND version = 7");
    let output = scene.outboxd_with(&["job", "run", "snaps"], &without("Versions"));
    assert!(told(&output).contains("1 snapshots of 19 events"));
    assert_ne!(snapshots(&app)["Cart-hole"].1, truth("Cart-hole", 20));
}

/// While ours is on its way, the application writes a newer one: says which stands in the end.
fn race(off: &[(&str, &str)]) -> (i64, Value) {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", REDUCERS));
    let app = open(&scene.path("app.db"));
    grow(&app, "Cart-1", 1, 20);
    let daemon = scene.daemon_with(off);
    until("the job is known", PATIENCE, || {
        let answer = daemon.ask(&json!({ "command": "job", "action": "list" }))?;
        (answer["jobs"][0]["state"] == "scheduled").then_some(())
    });
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&scene));
        let series = "outboxd_transactions_total{file=\"app.db\",result=\"retried\"}";
        until("it wants to write", PATIENCE, || daemon.metric(series).filter(|count| *count > 0.0));
        for version in 21..=30 {
            append(&app, "Cart-1", version, "Added", "{\"count\": 1}");
        }
        let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES ('Cart-1', 30, '{\"newer\":true}', '')";
        app.execute_batch(&format!("{sql}; COMMIT")).unwrap();
        told(&running.join().unwrap());
    });
    let sql = "SELECT version, state FROM snapshots ORDER BY version DESC LIMIT 1";
    let (version, state): (i64, String) = app.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    (version, serde_json::from_str(&state).unwrap())
}

#[test]
fn a_newer_snapshot_stays() {
    assert_eq!(race(&[]), (30, json!({ "newer": true })));
}

#[test]
fn control_without_the_look_at_what_stands_there_a_newer_snapshot_goes() {
    assert_eq!(race(&without("NewerSnapshot")).0, 20);
}

/// Says how often it crashed where.
fn climb(streams: &[&str]) -> BTreeMap<String, u64> {
    let mut seams = BTreeMap::<String, u64>::new();
    let scene = Scene::new(&config("outboxd", REDUCERS));
    let app = open(&scene.path("app.db"));
    let mut version = 0;
    for step in 1.. {
        for stream in streams {
            grow(&app, stream, version + 1, version + 12);
        }
        version += 12;
        let crashed = scene.outboxd_with(&["job", "run", "snaps"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let seam = said.lines().find_map(|line| line.strip_prefix("crashed at "));
        for (stream, (version, state)) in snapshots(&app) {
            assert_eq!(state, truth(&stream, version), "{stream} after step {step}, {seam:?}");
        }
        let Some(seam) = seam else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        told(&run(&scene));
        assert!(snapshots(&app).into_values().all(|(made, _)| made == version), "after step {step}");
    }
    told(&scene.outboxd(&["job", "verify", "snaps"]));
    seams
}

#[test]
fn a_crash_anywhere_leaves_whole_snapshots_and_the_next_run_makes_the_rest() {
    let one = climb(&["Cart-1"]);
    // The job is taken over, its run begins, its snapshot is written, its run ends.
    assert!(one["Snapshot"] == 1 && one["Commit"] == 4, "{one:?}");
    // Whether several share a transaction is the writer's affair: how many steps there are differs from run to run.
    let several = climb(&["Cart-1", "Order-1", "Order-2"]);
    assert!(several["Snapshot"] >= 1 && several["Commit"] >= 1, "{several:?}");
    let crashes = one.values().chain(several.values()).sum();
    Proof::of("crash ladder, snapshots").tried("crashes", crashes).found("wrong or half", 0);
}

#[test]
fn sql_that_does_more_than_calculate_is_refused_with_its_place() {
    let hostile = [
        ("SELECT", "syntax error"),
        (":state); DELETE FROM events; --", "more than one statement"),
        ("(SELECT max(version) FROM events)", "no such table"),
        ("(SELECT name FROM sqlite_schema)", "prohibited"),
        ("(SELECT file FROM pragma_database_list)", "prohibited"),
        ("load_extension('x')", "not authorized"),
        ("random()", "not authorized"),
        ("hex(randomblob(8))", "not authorized"),
        ("current_timestamp", "not authorized"),
        ("last_insert_rowid()", "not authorized"),
        (":sate", "there is no :sate"),
        ("?1", "there is no ?1"),
        ("1, 2", "row value"),
        ("nosuch(:state)", "no such function"),
        ("\"state\"", "no such column"),
        ("", "syntax error"),
    ];
    let expressions: String =
        hostile.iter().enumerate().map(|(n, (sql, _))| format!("E{n:02} = '''{sql}'''\n")).collect();
    let keys = format!("[jobs.snaps.reducers.Cart]\n{expressions}");
    let scene = Scene::without_a_file(&config("outboxd", &keys));
    let output = scene.outboxd(&["config", "show"]);
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8_lossy(&output.stderr);
    for (n, (sql, what)) in hostile.iter().enumerate() {
        let place = format!("error: jobs.snaps.reducers.Cart.E{n:02}  (outboxd.toml, line");
        let block = told.split("\n\n").find(|block| block.starts_with(&place));
        let block = block.unwrap_or_else(|| panic!("{sql} was taken: {told}"));
        assert!(block.contains(what), "{sql}: {block}");
    }
    // What runs away is stopped when it is run.
    let endless = "E = '''(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n)'''\n\"*\" = \":state\"";
    let big = "E = '''json_array(hex(zeroblob(20000000)))'''\n\"*\" = \":state\"";
    for (sql, what) in [
        (endless, "interrupted"),
        (big, "string or blob too big"),
        ("E = '''jsonb(:data)'''", "it gives a BLOB"),
        ("E = 'NULL'", "it gives NULL"),
        ("E = '''substr(:data, 1, 3)'''", "is no JSON"),
    ] {
        let scene = Scene::new(&config("outboxd", &format!("every_events = 2\n[jobs.snaps.reducers.Cart]\n{sql}\n")));
        let app = open(&scene.path("app.db"));
        append(&app, "Cart-1", 1, "E", "{\"a\": 1}");
        append(&app, "Cart-1", 2, "E", "{\"a\": 1}");
        let told = refused(&run(&scene));
        assert!(told.contains(what) && told.contains("stream Cart-1"), "{sql}: {told}");
    }
}

#[test]
fn a_reducer_is_said_and_never_guessed() {
    for (preset, keys, key, remedy) in [
        ("outboxd", "", "reducers", "for example: reducers = { Order = \"merge-patch\" }"),
        ("outboxd", "reducers = { Order = \"mergepatch\" }", "reducers.Order", "write \"merge-patch\""),
        ("flightdeck", "reducers = { \"*\" = \"merge-patch\" }", "reducers", "leave `reducers` out"),
        (
            "outboxd",
            "reducers = { Order = \"merge-patch\" }\nschema_versions = { Order = 2 }",
            "schema_versions",
            "leave it out",
        ),
        ("emmett", "reducers = { Order = \"merge-patch\" }", "source", "name a source with one of these presets"),
        (
            "outboxd",
            "reducers = { Order = \"merge-patch\" }\nevery_events = 0",
            "every_events",
            "write something from 1",
        ),
    ] {
        let scene = Scene::without_a_file(&config(preset, keys));
        let output = scene.outboxd(&["config", "show"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{keys}: {told}");
        assert!(
            told.contains(&format!("error: jobs.snaps.{key}  (")) && told.contains(&format!("fix: {remedy}")),
            "{told}"
        );
    }
}

pub fn python(arguments: &[&str]) -> Vec<Value> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools/eventsource_snapshots.py");
    let output = Command::new("python3").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub const ACCOUNT: &str = r#"every_events = 10
schema_versions = { Account = 3 }
[jobs.snaps.reducers.Account]
AccountOpened = "json_object('account_id', :stream_id, 'owner', :data ->> 'owner', 'cents', 0, 'deposits', 0)"
Deposited = "json_set(:state, '$.cents', (:state ->> 'cents') + (:data ->> 'cents'), '$.deposits', (:state ->> 'deposits') + 1)"
OwnerRenamed = "json_set(:state, '$.owner', :data ->> 'owner')"
"#;

/// The library takes them, and comes to the same as from all events; then it goes on, and so do we, from its own snapshots as well.
#[test]
fn the_real_eventsource_py_takes_them() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&config("eventsource-py", ACCOUNT));
    let file = scene.path("app.db").to_str().unwrap().to_owned();
    python(&["write", &file, "3", "25"]);
    python(&["write", &file, "1", "9"]);
    let before = python(&["read", &file]);
    assert!(before.iter().all(|line| line["snapshot"].is_null()));
    assert!(told(&run(&scene)).contains("3 snapshots of 75 events"));
    let after = python(&["read", &file]);
    let taken: Vec<i64> = after.iter().filter_map(|line| line["snapshot"].as_i64()).collect();
    assert_eq!(taken, [25, 25, 25], "the library takes them");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&after["same"], &after["state"]), (&json!(true), &before["state"]));
    }
    told(&scene.outboxd(&["job", "verify", "snaps"]));
    // Under the same number, another reducer would mix two kinds of states.
    scene.configure(&config("eventsource-py", &ACCOUNT.replace("'deposits', 0)", "'deposits', 0, 'x', 1)")));
    let changed = refused(&run(&scene));
    assert!(
        changed.contains("the reducer for \"Account\" is another") && changed.contains("schema_version is still 3"),
        "{changed}"
    );
    scene.configure(&config("eventsource-py", &ACCOUNT.replace("Account = 3", "Account = 4")));
    let app = open(&scene.path("app.db"));
    let sql = "UPDATE snapshots SET version = version - 10";
    app.execute(sql, []).unwrap();
    assert!(told(&run(&scene)).contains("3 snapshots of 75 events"), "with another number they are made anew");
    let lines = python(&["read", &file]);
    assert!(
        lines.iter().all(|line| line["snapshot"].is_null() && line["same"] == true),
        "the class does not take these: {lines:?}"
    );
    Proof::of("snapshots, eventsource-py 0.8.1")
        .tried("aggregates", 4)
        .found("loaded otherwise than from all events", 0);
}

/// As FlightDeck's code does it: `getCurrentState`, with a fold that lists what it is given.
pub fn current_state(app: &Connection, stream: &str) -> (Vec<Value>, i64) {
    let snapshot: Option<(i64, String)> = app
        .query_row("SELECT version, data, timestamp FROM snapshots WHERE stream_id = @streamId", [stream], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .ok();
    let (version, mut events) = match snapshot {
        Some((version, data)) => (version, serde_json::from_str::<Vec<Value>>(&data).unwrap()),
        None => (0, Vec::new()),
    };
    let sql = "SELECT id, stream_id, version, event_type, data, metadata, timestamp FROM events
               WHERE stream_id = @streamId AND version > @version ORDER BY version ASC";
    let mut statement = app.prepare(sql).unwrap();
    let newer = statement.query_map(params![stream, version], |row| {
        let json = |n| row.get::<_, String>(n).map(|text| serde_json::from_str::<Value>(&text).unwrap());
        Ok(json!({ "Id": row.get::<_, String>(0)?, "StreamId": row.get::<_, String>(1)?, "Version": row.get::<_, i64>(2)?,
                   "EventType": row.get::<_, String>(3)?, "Data": json(4)?, "Metadata": json(5)? }))
    });
    events.extend(newer.unwrap().map(Result::unwrap));
    let last = events.last().map_or(0, |event| event["Version"].as_i64().unwrap());
    (events, last)
}

/// `appendEvent`, of the same document.
pub fn flightdeck_append(app: &Connection, stream: &str, from: i64, to: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    for version in from..=to {
        let time = format!("2026-11-21T03:15:{:02}.1234567+00:00", version % 60);
        if version == 1 {
            let sql = "INSERT INTO streams (stream_id, type, version, created_at, updated_at) VALUES (?1, 'ContentCreated', 1, ?2, ?2)";
            app.execute(sql, params![stream, time]).unwrap();
        } else {
            let sql = "UPDATE streams SET version = ?2, updated_at = ?3 WHERE stream_id = ?1";
            app.execute(sql, params![stream, version, time]).unwrap();
        }
        let sql = "INSERT INTO events (id, stream_id, version, event_type, data, metadata, timestamp) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let data = format!("{{\"ContentId\":\"{stream}\",\"Title\":\"Größe {version}\",\"n\":{version}.50}}");
        let metadata = format!("{{\"CorrelationId\":null,\"Timestamp\":\"{time}\"}}");
        let id = format!("{stream}-{version}");
        app.execute(sql, params![id, stream, version, "ContentUpdated", data, metadata, time]).unwrap();
    }
    transaction.commit().unwrap();
}

/// `archiveEvents`.
fn flightdeck_archive(app: &Connection, stream: &str, version: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    let sql = "INSERT INTO archived_events (id, stream_id, version, event_type, data, metadata, timestamp, archived_at)
               SELECT id, stream_id, version, event_type, data, metadata, timestamp, 'now' FROM events WHERE stream_id = ?1 AND version <= ?2";
    app.execute(sql, params![stream, version]).unwrap();
    app.execute("DELETE FROM events WHERE stream_id = ?1 AND version <= ?2", params![stream, version]).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn flightdecks_own_statements_read_them_also_after_an_archive() {
    let scene = Scene::without_a_file(&config("flightdeck", ""));
    let app = open(&scene.path("app.db"));
    app.execute_batch(include_str!("../fixtures/flightdeck.sql")).unwrap();
    flightdeck_append(&app, "c1", 1, 70);
    flightdeck_append(&app, "c2", 1, 49);
    let all = current_state(&app, "c1");
    assert!(told(&run(&scene)).contains("1 snapshots of 70 events"), "50 are the usual number");
    assert_eq!(current_state(&app, "c1"), all, "the same from the snapshot");
    let (version, time): (i64, String) =
        app.query_row("SELECT version, timestamp FROM snapshots", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!((version, time.as_str()), (70, "2026-11-21T03:15:10.1234567+00:00"));
    flightdeck_archive(&app, "c1", 60);
    flightdeck_append(&app, "c1", 71, 125);
    assert!(told(&run(&scene)).contains("1 snapshots of 55 events"), "the list is gone on with");
    let (events, last) = current_state(&app, "c1");
    assert_eq!((events.len(), last, &events[..70]), (125, 125, &all.0[..]));
    // Its own code makes a list of what is in its table, and loses the head; ours finds that in the archive.
    let (own, _) = {
        app.execute("DELETE FROM snapshots", []).unwrap();
        current_state(&app, "c1")
    };
    assert_eq!(own.len(), 65);
    let sql = "INSERT OR REPLACE INTO snapshots (stream_id, version, data, timestamp) VALUES ('c1', 125, ?1, '2026')";
    app.execute(sql, [serde_json::to_string(&own).unwrap()]).unwrap();
    flightdeck_append(&app, "c1", 126, 180);
    assert!(told(&run(&scene)).contains("1 snapshots of 180 events"));
    assert_eq!(current_state(&app, "c1").0.len(), 180);
    told(&scene.outboxd(&["job", "verify", "snaps"]));
}

/// Beside an application that writes all the while: no error, and short locks only.
#[test]
fn the_application_hardly_notices_its_snapshots() {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", &format!("every = \"1s\"\n{REDUCERS}")));
    let app = open(&scene.path("app.db"));
    for n in 0..400 {
        grow(&app, &format!("Order-{n}"), 1, 30);
    }
    let daemon = scene.daemon();
    app.busy_timeout(Duration::from_secs(1)).unwrap();
    let (mut slowest, mut n) = (Duration::ZERO, 0);
    until("all have a snapshot", PATIENCE, || {
        let began = std::time::Instant::now();
        grow(&app, "Order-live", n + 1, n + 1);
        slowest = slowest.max(began.elapsed());
        n += 1;
        (eventsource::count(&app, "snapshots") >= 400).then_some(())
    });
    let held = |le: &str| daemon.metric(&format!("outboxd_lock_held_seconds_bucket{{file=\"app.db\",le=\"{le}\"}}"));
    let (short, all) = (held("0.005").unwrap(), held("+Inf").unwrap());
    println!("{n} commits beside it, the slowest {slowest:?}; {short} of {all} locks of at most 5 ms");
    assert!(short >= 0.9 * all, "{short} of {all}");
    Proof::of("snapshots beside an application")
        .tried("commits of the application", n as u64)
        .found("errors", 0)
        .found("locks held for at most 5 ms", format!("{short} of {all}"))
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}

#[test]
fn tables_that_are_not_there_are_named() {
    let scene = Scene::without_a_file(&config("outboxd", REDUCERS));
    open(&scene.path("app.db")).execute_batch("CREATE TABLE events (id)").unwrap();
    assert!(refused(&run(&scene)).contains("there is no table streams. Remedy:"));
    let scene = Scene::without_a_file(&config("outboxd", REDUCERS));
    assert_eq!(run(&scene).status.code(), Some(69), "it is waited for");
}
