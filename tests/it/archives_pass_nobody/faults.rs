//! Bad input, crashes, and an application that writes beside it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{PATIENCE, PLACES, archived, config, expected, grow, log, refused, run, snap, told};
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::support::wait::until;
use crate::the_controls_fail_without_their_protection::without;

#[test]
fn what_is_wrong_is_told_and_the_others_go_on() {
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    let put = |stream: &str, version: i64| {
        format!(
            "INSERT INTO archived_events SELECT position, id, stream_id, stream_type, version, type, data, metadata, time FROM events WHERE stream_id = '{stream}' AND version = {version}"
        )
    };
    let faults = [
        ("both", put("both", 1), "version 1 stands there twice, or is archived already"),
        // The same position, or id, as another's.
        (
            "taken",
            put("taken", 1).replace("stream_id, stream_type, version,", "'free', stream_type, 1,"),
            "version 1: archived_events does not take event taken-1 (UNIQUE constraint failed",
        ),
        (
            "hole",
            "DELETE FROM events WHERE stream_id = 'hole' AND version = 4".into(),
            "version 4 is missing: behind version 3 comes 5",
        ),
        (
            "head",
            "DELETE FROM events WHERE stream_id = 'head' AND version = 1".into(),
            "version 1 is missing: behind version 0 comes 2",
        ),
        (
            "corrupt",
            "UPDATE snapshots SET state = '{\"n\":' WHERE stream_id = 'corrupt'".into(),
            "its snapshot of version 9 cannot be read: EOF while parsing",
        ),
        (
            "future",
            "UPDATE snapshots SET version = 50 WHERE stream_id = 'future'".into(),
            "its snapshot is of version 50, and its newest event of version 10",
        ),
    ];
    for stream in faults.iter().map(|(stream, ..)| *stream).chain(["free", "well"]) {
        grow(&app, stream, 1, 10);
        snap(&app, stream, 9);
    }
    app.execute_batch(
        "DELETE FROM snapshots WHERE stream_id = 'free'; DELETE FROM events WHERE stream_id = 'free' AND version = 1",
    )
    .unwrap();
    app.execute_batch("PRAGMA ignore_check_constraints = ON").unwrap();
    for (_, sql, _) in &faults {
        app.execute_batch(sql).unwrap();
    }
    let said = refused(&run(&scene));
    for (stream, _, what) in &faults {
        let place = format!("stream {stream} of type Order: ");
        let line = said.lines().find(|line| line.contains(&place)).unwrap_or_else(|| panic!("{stream}: {said}"));
        assert!(line.contains(what) && line.contains("Remedy: "), "{stream}: {line}");
    }
    assert!(said.contains("12 events of 2 streams moved") && said.contains("6 streams are left as they are"), "{said}");
    assert_eq!(archived(&app), expected(&[("both", 1), ("free", 1), ("hole", 3), ("well", 9)]));
}

#[test]
fn an_archive_that_does_not_fit_is_refused_with_the_remedy() {
    let drop_guards = "DROP TRIGGER archived_events_are_whole; DROP TRIGGER events_are_new; DROP TRIGGER streams_stay;";
    let guard = "CREATE TRIGGER events_are_new BEFORE INSERT ON events WHEN 0 BEGIN SELECT 1; END;";
    let made = |columns: &str| {
        format!("{drop_guards} DROP TABLE archived_events; CREATE TABLE archived_events ({columns}); {guard}")
    };
    let all = "position INTEGER PRIMARY KEY, id TEXT UNIQUE, stream_id TEXT, stream_type TEXT, version INTEGER, type TEXT, data TEXT, metadata TEXT, time TEXT";
    for (sql, what) in [
        (
            format!("{drop_guards} DROP TABLE archived_events"),
            "there is no table archived_events. Remedy: `outboxd init",
        ),
        ("DROP TRIGGER events_are_new".to_owned(), "there is no trigger events_are_new. Remedy: `outboxd init"),
        (
            made(&all.replace("version INTEGER", "version TEXT")),
            "the column version of events is of type INTEGER, that of archived_events of type TEXT",
        ),
        (made(&format!("{all}, moved_by TEXT NOT NULL")), "wants a value for its column moved_by"),
        (made(&all.replace(" UNIQUE", "")), "Remedy: CREATE UNIQUE INDEX archived_events_id ON archived_events (id)"),
        (
            "ALTER TABLE events ADD COLUMN tenant TEXT".to_owned(),
            "has no column tenant, which would be lost of each event. Remedy: ALTER TABLE archived_events ADD COLUMN \"tenant\" TEXT",
        ),
        (
            "CREATE TABLE notes (event TEXT REFERENCES events (id))".to_owned(),
            "the table notes refers to events by a foreign key",
        ),
        ("PRAGMA journal_mode = DELETE".to_owned(), "is in journal mode delete"),
    ] {
        let scene = Scene::new(&config("outboxd", ""));
        let app = open(&scene.path("app.db"));
        grow(&app, "a", 1, 10);
        snap(&app, "a", 9);
        app.execute_batch(&sql).unwrap();
        drop(app);
        let said = refused(&run(&scene));
        assert!(said.contains(what), "{sql}: {said}");
        let app = crate::support::eventsource::open(&scene.path("app.db"));
        assert_eq!(crate::support::eventsource::count(&app, "events"), 10);
    }
    // A trigger of somebody's: what it refuses, or changes, undoes the move.
    for (sql, what) in [
        (
            "CREATE TRIGGER t BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'never'); END",
            "event a-1 cannot be taken out of the log: never",
        ),
        (
            "CREATE TRIGGER t BEFORE DELETE ON events BEGIN SELECT raise(IGNORE); END",
            "event a-1 does not stand in the archive as it stood",
        ),
        (
            "CREATE TRIGGER t AFTER INSERT ON archived_events BEGIN UPDATE archived_events SET data = '0'; END",
            "event a-1 does not stand in the archive as it stood",
        ),
    ] {
        let scene = Scene::new(&config("outboxd", ""));
        let app = open(&scene.path("app.db"));
        grow(&app, "a", 1, 10);
        snap(&app, "a", 9);
        app.execute_batch(sql).unwrap();
        let before = log(&app);
        let said = refused(&run(&scene));
        assert!(said.contains(what) && said.contains("Remedy: see which triggers"), "{sql}: {said}");
        assert_eq!((log(&app), archived(&app).len()), (before, 0));
    }
}

/// Without the comparison, what a trigger makes of the copy is all that is left.
#[test]
fn control_without_the_comparison_an_event_is_changed_on_its_way() {
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 10);
    snap(&app, "a", 9);
    let sql = "CREATE TRIGGER t AFTER INSERT ON archived_events BEGIN UPDATE archived_events SET data = '0'; END";
    app.execute_batch(sql).unwrap();
    let before = log(&app);
    told(&scene.outboxd_with(&["job", "run", "old"], &without("Copied")));
    assert_eq!(archived(&app), expected(&[("a", 9)]));
    assert_ne!(log(&app), before);
}

#[test]
fn who_would_not_find_what_was_moved_is_refused() {
    let log = "[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n";
    let mapped = "position = \"position\"\nid = \"id\"\ntype = \"type\"\npayload = \"data\"\n";
    for (before, keys, key, what) in [
        (log.replace("read = \"events\"", "read = \"outbox\""), "", "source", "reads another table than `events`"),
        (log.replace("outboxd", "emmett"), "", "source", "name a source with one of these presets"),
        (
            format!("{log}[sources.own]\npath = \"./app.db\"\ntable = \"Events\"\n{mapped}"),
            "",
            "source",
            "[sources.own] reads `events` of this file without its archive",
        ),
        (
            format!("{log}[sources.own]\npath = \"app.db\"\nquery = \"SELECT * FROM events\"\n{mapped}"),
            "",
            "source",
            "[sources.own] reads events of this file by a query",
        ),
        (
            log.replace("outboxd", "eventsource-py"),
            "",
            "application_reads_archive",
            "eventsource-py reads `events` alone",
        ),
        (
            log.replace("outboxd", "eventsource-py"),
            "application_reads_archive = false",
            "application_reads_archive",
            "say application_reads_archive = true",
        ),
        (log.to_owned(), "application_reads_archive = true", "application_reads_archive", "leave it out"),
        (log.to_owned(), "schema_versions = { Order = 2 }", "schema_versions", "leave it out"),
        (log.to_owned(), "older_than = \"900000h\"", "older_than", "write something from"),
        (
            log.to_owned(),
            "archive_path = \"app.db-outboxd.db\"",
            "archive_path",
            "this is the file of a source, or of its state",
        ),
        (log.to_owned(), "archive_path = \".\"", "archive_path", "this is no file"),
        (
            log.replace("outboxd", "flightdeck"),
            "archive_path = \"old.db\"",
            "archive_path",
            "of the preset outboxd alone",
        ),
    ] {
        let scene =
            Scene::without_a_file(&format!("{before}[jobs.old]\ntype = \"archive\"\nsource = \"log\"\n{keys}\n"));
        let output = scene.outboxd(&["config", "show"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{before}{keys}: {told}");
        assert!(told.contains(&format!("error: jobs.old.{key}  (")) && told.contains(what), "{told}");
    }
}

/// Says how often it crashed where, when each run has so many events of each stream to move.
fn climb(streams: &[&str], events: i64) -> BTreeMap<String, u64> {
    let mut seams = BTreeMap::<String, u64>::new();
    let scene = Scene::new(&config("outboxd", ""));
    let app = open(&scene.path("app.db"));
    let mut version = 0;
    for step in 1.. {
        // The newest event stays: at first it takes one more.
        let newest = version.max(1) + events;
        for stream in streams {
            grow(&app, stream, version + 1, newest);
            snap(&app, stream, newest);
        }
        version = newest;
        let before = log(&app);
        let crashed = scene.outboxd_with(&["job", "run", "old"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let seam = said.lines().find_map(|line| line.strip_prefix("crashed at "));
        assert_eq!(log(&app), before, "after step {step}, {seam:?}");
        archived(&app);
        let Some(seam) = seam else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        told(&run(&scene));
        assert_eq!(log(&app), before);
        let all: Vec<_> = streams.iter().map(|stream| (*stream, version - 1)).collect();
        assert_eq!(archived(&app), expected(&all), "after step {step}");
    }
    seams
}

#[test]
fn a_crash_anywhere_moves_events_whole_or_not() {
    let one = climb(&["a"], 1);
    // The job is taken over, its run begins, the event is moved, its run ends.
    assert!(one["Archive"] == 1 && one["Commit"] == 4, "{one:?}");
    // How many events share a transaction, and so how many steps there are, differs from run to run.
    let several = climb(&["a", "b"], 4);
    assert!(several["Archive"] >= 1 && several["Commit"] >= 1, "{several:?}");
    let crashes = one.values().chain(several.values()).sum();
    Proof::of("crash ladder, archive").tried("crashes", crashes).found("lost, doubled or changed", 0);
}

/// Beside an application that writes all the while: no error, and short locks only.
#[test]
fn the_application_hardly_notices_its_archive() {
    PLACES.into_iter().for_each(hardly_noticed);
}

fn hardly_noticed(place: &str) {
    let _machine = shared_machine();
    let scene = Scene::new(&config("outboxd", &[place, "every = \"1s\""].concat()));
    let app = open(&scene.path("app.db"));
    for n in 0..10 {
        grow(&app, &format!("s{n}"), 1, 1_000);
        snap(&app, &format!("s{n}"), 1_000);
    }
    let daemon = scene.daemon();
    app.busy_timeout(Duration::from_secs(1)).unwrap();
    let (mut slowest, mut n) = (Duration::ZERO, 0);
    let began = Instant::now();
    until("all is moved", PATIENCE, || {
        let asked = Instant::now();
        grow(&app, "live", n + 1, n + 1);
        slowest = slowest.max(asked.elapsed());
        n += 1;
        (crate::support::eventsource::count(&app, "events WHERE stream_id <> 'live'") == 10).then_some(())
    });
    let held = |le: &str| daemon.metric(&format!("outboxd_lock_held_seconds_bucket{{file=\"app.db\",le=\"{le}\"}}"));
    let (short, all) = (held("0.005").unwrap(), held("+Inf").unwrap());
    println!(
        "{place:?}: 9990 events in {:?}; {n} commits beside it, the slowest {slowest:?}; {short} of {all} locks of at most 5 ms",
        began.elapsed()
    );
    // On a busy machine the thread is taken off the processor now and then while it holds the lock.
    assert!(short >= 0.8 * all, "{short} of {all}");
    let what = if place.is_empty() {
        "archive beside an application"
    } else {
        "archive in another file beside an application"
    };
    Proof::of(what)
        .tried("commits of the application", n as u64)
        .found("errors", 0)
        .found("locks held for at most 5 ms", format!("{short} of {all}"))
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}
