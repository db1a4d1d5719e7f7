//! The archive in a file of its own: whoever reads finds each event once, wherever it stands; a file that is missing or another one is told.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use outboxd::store::event::{Append, Expected, NewEvent};
use outboxd::store::{EventStore, Options, Reader};
use rusqlite::Connection;
use serde_json::Value;

use super::{APART, PATIENCE, RELAY, archived, config, expected, grow, log, refused, run, snap, told, whole};
use crate::support::disk::SmallDisk;
use crate::support::events::{Shop, TOTALS, standing};
use crate::support::process::{Scene, ended_with, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::the_controls_fail_without_their_protection::without;

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// What everybody is shown of the log: positions, from the beginning.
fn tail(scene: &Scene) -> Output {
    scene.outboxd(&["events", "tail", "log", "--after", "0", "--no-follow", "--json"])
}

fn positions(lines: &str) -> Vec<i64> {
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap()).collect()
}

/// A file as it lies there, with all that was committed.
fn copy(from: &Path, to: &Path) {
    open(from).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    replace(from, to);
}

/// Put into another's place.
fn replace(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", to.display()));
    }
    std::fs::copy(from, to).unwrap();
}

/// All that read, from the beginning or on from where they were, while events move without a pause.
#[test]
fn everybody_reads_what_moves_to_another_file_once() {
    const STREAMS: usize = 6;
    let _machine = shared_machine();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let totals = TOTALS.replace("\"shop\"", "\"log\"");
    let again = "[sinks.again]\ntype = \"file\"\npath = \"again.ndjson\"\n";
    let scene = Scene::new(&config("outboxd", &[APART, RELAY, again, &totals].concat()));
    let file = scene.path("app.db");
    // Whoever opened the file before it had an archive sees that it has one.
    let store = runtime.block_on(EventStore::open(&file, Options::default())).unwrap();
    let mut daemon = scene.daemon();
    let (over, moved, head) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (mut reads, mut rounds) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let app = open(&file);
            while !over.load(SeqCst) {
                // The truth is known before it is read.
                for n in 0..STREAMS {
                    let stream = format!("s{n}");
                    let sql = "SELECT coalesce(max(version), 0) FROM streams WHERE stream_id = ?1";
                    let version: i64 = app.query_row(sql, [&stream], |row| row.get(0)).unwrap();
                    grow(&app, &stream, version + 1, version + 100);
                    snap(&app, &stream, version + 100);
                }
                let newest = number(&app, "SELECT max(position) FROM events") as u64;
                head.store(newest, SeqCst);
                daemon.until_settled("to_lines", newest as i64, PATIENCE);
                daemon.until_settled("totals", newest as i64, PATIENCE);
                let said = told(&run(&scene));
                let count: u64 = said.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                moved.fetch_add(count, SeqCst);
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while moved.load(SeqCst) < 6_000 || reads < 100 {
                let known = head.load(SeqCst) as usize;
                let all = runtime.block_on(store.read_all(0, 1_000_000)).unwrap();
                assert!(all.len() >= known && all.iter().map(|event| event.position).eq(1..=all.len() as i64));
                let one = runtime.block_on(store.load("s1", 1)).unwrap();
                assert!(one.len() >= known / STREAMS && one.iter().map(|event| event.version).eq(1..=one.len() as i64));
                reads += 2;
                if reads % 50 == 0 {
                    let shown = positions(&told(&tail(&scene)));
                    assert!(shown.len() >= known && shown.iter().copied().eq(1..=shown.len() as i64));
                    told(&scene.outboxd(&["verify", "totals"]));
                    rounds += 1;
                }
            }
        }));
        over.store(true, SeqCst);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let head = head.load(SeqCst) as i64;
    assert!(number(&open(&file), "SELECT count(*) FROM events") < head, "they were moved");
    // What is archived is read by those who begin anew, and nothing of it came twice to those who were there.
    let carried = |file: &str| positions(&std::fs::read_to_string(scene.path(file)).unwrap());
    assert!(carried("lines.ndjson").into_iter().eq(1..=head));
    told(&scene.outboxd(&["replay", "to_lines", "--all", "--to-sink", "again", "--yes"]));
    assert!(carried("again.ndjson").into_iter().eq(1..=head), "the replay");
    told(&scene.outboxd(&["rebuild", "totals"]));
    daemon.until_settled("totals", head, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    told(&scene.outboxd(&["audit", "to_lines"]));
    Proof::of("archive in another file while everybody reads")
        .tried("events moved", moved.load(SeqCst))
        .tried("reads of all", reads)
        .tried("verified", rounds)
        .found("missing, doubled or out of order", 0);
}

/// A statement takes its snapshot of the file that events come from first, whatever it names first.
#[test]
fn the_log_is_seen_before_its_archive() {
    let scene = Scene::new(&config("outboxd", APART));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 10);
    snap(&app, "a", 10);
    told(&run(&scene));
    app.execute("ATTACH ?1 AS outboxd_archive", [scene.path("old.db").to_str()]).unwrap();
    for sql in [
        "SELECT * FROM outboxd_archive.archived_events UNION ALL SELECT * FROM main.events",
        "SELECT (SELECT max(position) FROM outboxd_archive.archived_events), (SELECT max(position) FROM main.events)",
    ] {
        let mut statement = app.prepare(&format!("EXPLAIN {sql}")).unwrap();
        let steps = statement.query_map([], |row| Ok((row.get::<_, String>(1)?, row.get::<_, i64>(2)?))).unwrap();
        let opened = steps.map(Result::unwrap).filter(|(step, _)| step == "Transaction");
        // The second number of each is that of the database.
        let mut places = app.prepare(&format!("EXPLAIN {sql}")).unwrap();
        let places = places.query_map([], |row| Ok((row.get::<_, String>(1)?, row.get::<_, i64>(2)?))).unwrap();
        let places: Vec<i64> =
            places.map(Result::unwrap).filter(|(step, _)| step == "Transaction").map(|(_, n)| n).collect();
        assert!(opened.count() == 2 && places == [0, 2], "{sql}: {places:?}");
    }
}

/// Each step of a first run: the file is made, named, copied into, sealed; events leave the log.
fn climb(protections: &[(&str, &str)], mut look: impl FnMut(&Scene, &str, bool)) -> BTreeMap<String, u64> {
    let mut seams = BTreeMap::new();
    for step in 1.. {
        let scene = Scene::new(&config("outboxd", APART));
        let app = open(&scene.path("app.db"));
        for stream in ["a", "b"] {
            grow(&app, stream, 1, 3);
            snap(&app, stream, 3);
        }
        let before = log(&app);
        let step = step.to_string();
        let crashed =
            scene.outboxd_with(&["job", "run", "old"], &[&[("CRASH_AT", step.as_str())], protections].concat());
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let seam = said.lines().find_map(|line| line.strip_prefix("crashed at "));
        let Some(seam) = seam else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        look(&scene, &format!("step {step}, {seam}"), log(&whole(&scene)) == before);
    }
    seams
}

#[test]
fn a_crash_anywhere_leaves_an_event_in_one_of_two_files_or_in_both() {
    let mut in_both = 0;
    let seams = climb(&[], |scene, place, is_whole| {
        assert!(is_whole, "{place}");
        assert_eq!(positions(&told(&tail(scene))), [1, 2, 3, 4, 5, 6], "{place}");
        let both = "SELECT count(*) FROM old.archived_events a JOIN main.events e ON e.id = a.id";
        in_both += whole(scene).query_row(both, [], |row| row.get(0)).unwrap_or(0);
        told(&run(scene));
        let app = whole(scene);
        assert_eq!(archived(&app), expected(&[("a", 2), ("b", 2)]), "{place}");
        assert_eq!(number(&app, "SELECT count(*) FROM main.events"), 2, "{place}");
        assert_eq!(positions(&told(&tail(scene))), [1, 2, 3, 4, 5, 6], "{place}");
        assert_eq!(number(&app, "SELECT moved FROM main.archive_file"), 4, "{place}");
    });
    assert!(in_both > 0, "some crashed between the copy and the deletion");
    assert!(seams["ArchiveFile"] >= 8 && seams["Commit"] >= 4, "{seams:?}");
    Proof::of("crash ladder, archive in another file")
        .tried("crashes", seams.values().sum())
        .found("lost, doubled or changed", 0);
}

/// It leaves the log while its copy can still be undone.
#[test]
fn control_without_the_copy_first_a_crash_loses_events() {
    let mut lost = 0;
    climb(&without("CopyFirst"), |_, _, is_whole| lost += u64::from(!is_whole));
    assert!(lost > 0);
}

/// What is not among the copies leaves the log with the others.
#[test]
fn control_without_a_look_at_the_copies_events_are_lost() {
    let scene = Scene::new(&config("outboxd", APART));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 3_000);
    snap(&app, "a", 3_000);
    scene.outboxd_with(&["job", "run", "old"], &without("Copied"));
    assert!(log(&whole(&scene)).len() < 3_000);
    assert!(refused(&tail(&scene)).contains("is older than"));
}

#[test]
fn nothing_archived_in_another_file_is_given_out_again() {
    let scene = Scene::new(&config("outboxd", APART));
    let file = scene.path("app.db");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = runtime.block_on(EventStore::open(&file, Options::default())).unwrap();
    let app = open(&file);
    let append = |expected: Expected, ids: &[&str]| {
        let event = |id: &&str| NewEvent { id: (*id).to_owned(), ..NewEvent::new("T", "{}") };
        let append = Append::new("a", "Order", expected, ids.iter().map(event).collect());
        runtime.block_on(store.append(append, PATIENCE))
    };
    append(Expected::NoStream, &["1", "2", "3"]).unwrap();
    snap(&app, "a", 3);
    told(&run(&scene));
    assert_eq!(archived(&whole(&scene)), expected(&[("a", 2)]));
    // The store was open when the file got its archive. The same again is answered as it was, another event of the id refused.
    let again = append(Expected::Any, &["1", "2"]).unwrap();
    assert!(again.is_repeat && (again.first_version, again.last_position) == (1, 2));
    assert!(append(Expected::Any, &["2", "9"]).is_err());
    assert_eq!(append(Expected::Exact(3), &["4"]).unwrap().first_position, 4);
    let by_hand =
        "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('9', 'a', 'Order', 2, 'T', '{}')";
    assert!(app.execute(by_hand, []).unwrap_err().to_string().contains("an archived event has this id or version"));
    assert!(app.execute("DELETE FROM streams", []).unwrap_err().to_string().contains("the stream has events"));
}

#[test]
fn an_archive_that_is_missing_older_or_anothers_is_told() {
    let _machine = shared_machine();
    let totals = TOTALS.replace("\"shop\"", "\"log\"");
    let snapshots = "[jobs.snapshots]\ntype = \"snapshot\"\nsource = \"log\"\nreducers = { Order = \"merge-patch\" }\n";
    let scene = Scene::new(&config("outboxd", &[APART, RELAY, &totals, snapshots].concat()));
    let (app, old, kept) = (scene.path("app.db"), scene.path("old.db"), scene.path("kept.db"));
    let shop = Shop::of(&scene);
    shop.count(300, 3);
    let truth = shop.truth(300);
    let snap_all = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) SELECT stream_id, version, '{}', 'own' FROM streams";
    shop.connection.execute_batch(snap_all).unwrap();
    let all_pass = |head: i64| {
        let mut daemon = scene.daemon();
        daemon.until_settled("to_lines", head, PATIENCE);
        daemon.until_settled("totals", head, PATIENCE);
        assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    };
    all_pass(300);
    told(&run(&scene));
    copy(&old, &scene.path("older.db"));
    copy(&app, &scene.path("app-older.db"));
    for stream in ["s0", "s1", "s2"] {
        grow(&shop.connection, stream, 101, 200);
    }
    shop.connection.execute_batch(snap_all).unwrap();
    all_pass(600);
    told(&run(&scene));
    copy(&old, &kept);
    copy(&app, &scene.path("app-kept.db"));
    let another = Scene::new(&config("outboxd", APART));
    grow(&open(&another.path("app.db")), "x", 1, 900);
    snap(&open(&another.path("app.db")), "x", 900);
    told(&run(&another));
    copy(&another.path("old.db"), &scene.path("foreign.db"));
    let made_anew = || number(&open(&old), "SELECT count(*) FROM sqlite_schema");
    drop(shop);

    let trials: [(&str, &dyn Fn(), &str); 5] = [
        ("missing", &|| std::fs::remove_file(&old).unwrap(), "is not there: 597 events were moved to it"),
        ("older", &|| replace(&scene.path("older.db"), &old), "is older than"),
        ("another's", &|| replace(&scene.path("foreign.db"), &old), "is not the archive that events of"),
        ("no archive", &|| std::fs::write(&old, "").unwrap(), "is not the archive that events of"),
        ("newer", &|| replace(&scene.path("app-older.db"), &app), "is older than its archive"),
    ];
    for (what, spoil, says) in trials {
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", old.display()));
        }
        spoil();
        let before = std::fs::metadata(&old).ok().map(|meta| meta.len());
        let commands: [&[&str]; 8] = [
            &["events", "tail", "log", "--after", "0", "--no-follow"],
            &["events", "show", "log", "s1"],
            &["events", "state", "log", "s1"],
            &["job", "run", "old"],
            &["job", "run", "snapshots"],
            &["job", "verify", "snapshots"],
            &["verify", "totals"],
            &["audit", "to_lines"],
        ];
        for command in commands {
            let output = scene.outboxd(command);
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert_ne!(output.status.code(), Some(0), "{what}, {command:?}: {said}");
            assert!(
                said.contains(says) && (said.contains("Remedy: ") || said.contains("fix: ")),
                "{what}, {command:?}: {said}"
            );
            assert!(said.contains("old.db") && said.contains("app.db"), "{what}, {command:?}: {said}");
        }
        let mut daemon = scene.daemon();
        for consumer in ["to_lines", "totals"] {
            let status = daemon.until_state(consumer, "halted", PATIENCE);
            assert!(status.to_string().contains(says), "{what}: {status}");
        }
        daemon.kill();
        assert_eq!(std::fs::metadata(&old).ok().map(|meta| meta.len()), before, "{what}: nobody made it anew");
        replace(&kept, &old);
        replace(&scene.path("app-kept.db"), &app);
        assert!(made_anew() > 0);
    }
    // With the right one everything is there.
    assert_eq!(positions(&told(&tail(&scene))).len(), 600);
    told(&scene.outboxd(&["rebuild", "totals"]));
    assert!(standing(&scene.path("read.db"), "totals").0.len() == truth.len());
    told(&scene.outboxd(&["verify", "totals"]));
    Proof::of("archives that do not belong").tried("kinds", 5).tried("commands", 40).found("shorter histories", 0);
}

/// Replaced while it is read: whoever has it open notices.
#[test]
fn an_archive_that_is_replaced_while_it_is_read_is_noticed() {
    let scene = Scene::new(&config("outboxd", APART));
    let (file, old) = (scene.path("app.db"), scene.path("old.db"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let app = open(&file);
    grow(&app, "a", 1, 10);
    snap(&app, "a", 10);
    told(&run(&scene));
    let _in_runtime = runtime.enter();
    let reader = Reader::open(&file, false).unwrap();
    assert_eq!(runtime.block_on(reader.read_all(0, 100)).unwrap().len(), 10);
    // The same, but another file: what is moved into it is not in the one that is open.
    copy(&old, &scene.path("copy.db"));
    std::fs::rename(scene.path("copy.db"), &old).unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", old.display()));
    }
    assert_eq!(runtime.block_on(reader.read_all(0, 100)).unwrap().len(), 10);
    grow(&app, "a", 11, 20);
    snap(&app, "a", 20);
    told(&run(&scene));
    let error = runtime.block_on(reader.read_all(15, 100)).unwrap_err().to_string();
    assert!(error.contains("is older than") && error.contains("Remedy"), "{error}");
    // Put elsewhere on purpose: the job is told, and everybody follows.
    std::fs::create_dir(scene.path("far")).unwrap();
    copy(&old, &scene.path("far/old.db"));
    std::fs::remove_file(&old).unwrap();
    let said = refused(&run(&scene));
    assert!(said.contains("is not there: 19 events were moved to it"), "{said}");
    scene.configure(&config("outboxd", "archive_path = \"far/old.db\""));
    told(&run(&scene));
    assert_eq!(runtime.block_on(reader.read_all(0, 100)).unwrap().len(), 20);
    assert_eq!(positions(&told(&tail(&scene))).len(), 20);
    // A job that does not say it would move on into the same file.
    scene.configure(&config("outboxd", ""));
    let said = refused(&run(&scene));
    assert!(said.contains("far/old.db") && said.contains("say archive_path"), "{said}");
}

#[test]
fn what_does_not_fit_into_another_file_is_told_and_stays() {
    let scene = Scene::new(&config("outboxd", APART));
    let app = open(&scene.path("app.db"));
    for stream in ["a", "b", "c"] {
        grow(&app, stream, 1, 10);
        snap(&app, stream, 5);
    }
    told(&run(&scene));
    let old = open(&scene.path("old.db"));
    // Another event of the same position; a copy that was changed; and one that is as it should be.
    let put = "INSERT INTO archived_events SELECT position, id, stream_id, stream_type, version, type, data, metadata, time FROM live.events WHERE stream_id = ?1 AND version = 6";
    old.execute("ATTACH ?1 AS live", [scene.path("app.db").to_str()]).unwrap();
    for stream in ["a", "b", "c"] {
        old.execute(put, [stream]).unwrap();
    }
    old.execute_batch(
        "UPDATE archived_events SET id = 'other', stream_id = 'z' WHERE id = 'a-6'; UPDATE archived_events SET data = '0' WHERE id = 'b-6'; UPDATE archive_of SET copied = copied + 3; DETACH live",
    )
    .unwrap();
    drop(old);
    for stream in ["a", "b", "c"] {
        snap(&app, stream, 10);
    }
    let said = refused(&run(&scene));
    for stream in ["a", "b"] {
        let place = format!("stream {stream} of type Order: version 6: event {stream}-6: ");
        let line = said.lines().find(|line| line.contains(&place)).unwrap_or_else(|| panic!("{stream}: {said}"));
        assert!(line.contains("old.db") && line.contains("Remedy: compare the two"), "{line}");
    }
    assert!(said.contains("4 events of 1 streams moved"), "{said}");
    assert_eq!(number(&app, "SELECT count(*) FROM events WHERE stream_id IN ('a', 'b') AND version > 5"), 10);
    // A column that it does not have.
    app.execute_batch("ALTER TABLE events ADD COLUMN tenant TEXT; ALTER TABLE archived_events ADD COLUMN tenant TEXT")
        .unwrap();
    let said = refused(&run(&scene));
    assert!(said.contains("old.db") && said.contains("ALTER TABLE archived_events ADD COLUMN"), "{said}");
    // A file of somebody else's is not written to.
    let scene = Scene::new(&config("outboxd", APART));
    let strange = open(&scene.path("old.db"));
    strange.execute_batch("CREATE TABLE mine (n)").unwrap();
    grow(&open(&scene.path("app.db")), "a", 1, 10);
    snap(&open(&scene.path("app.db")), "a", 10);
    assert!(refused(&run(&scene)).contains("is not the archive that events of"));
    assert_eq!(number(&strange, "SELECT count(*) FROM sqlite_schema"), 1);
}

#[test]
fn both_files_come_back_from_one_backup() {
    let backups =
        "[jobs.nightly]\ntype = \"backup\"\nfiles = [\"app.db\", \"old.db\"]\ntarget = \"kept\"\nevery = \"1h\"\n";
    let scene = Scene::new(&config("outboxd", &[APART, backups].concat()));
    let app = open(&scene.path("app.db"));
    for newest in [20, 40] {
        grow(&app, "a", newest - 19, newest);
        snap(&app, "a", newest);
        told(&run(&scene));
        if newest == 20 {
            told(&scene.outboxd(&["backup", "now"]));
        }
    }
    std::fs::create_dir(scene.path("back")).unwrap();
    for name in ["app.db", "old.db"] {
        told(&scene.outboxd(&["restore", "--file", name, "--to", &format!("back/{name}")]));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _in_runtime = runtime.enter();
    let restored = scene.path("back/app.db");
    let reader = Reader::open(&restored, false).unwrap();
    let events = runtime.block_on(reader.read_all(0, 100)).unwrap();
    assert!(events.iter().map(|event| event.position).eq(1..=20));
    assert_eq!(number(&open(&restored), "SELECT count(*) FROM events"), 1);
    // Beside the archive of now, it would give positions out that stand there.
    copy(&scene.path("old.db"), &scene.path("back/old.db"));
    let error = Reader::open(&restored, false).unwrap_err().to_string();
    assert!(error.contains("is older than its archive") && error.contains("restore both"), "{error}");
}

#[test]
fn a_full_disk_under_the_archive_loses_nothing() {
    let proof = Proof::of("a full disk under the archive");
    let disk = match SmallDisk::new(20_000) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let place = format!("archive_path = \"{}\"", disk.path("old.db").display());
    let scene = Scene::new(&config("outboxd", &place));
    let app = open(&scene.path("app.db"));
    grow(&app, "a", 1, 10);
    snap(&app, "a", 10);
    told(&run(&scene));
    grow(&app, "a", 11, 3_000);
    snap(&app, "a", 3_000);
    disk.fill();
    let said = ended_with(&run(&scene), 69);
    assert!(said.contains("old.db") && said.contains("make room"), "{said}");
    assert_eq!(number(&app, "SELECT count(*) FROM events"), 2_991);
    disk.free();
    told(&run(&scene));
    assert_eq!(number(&app, "SELECT count(*) FROM events"), 1);
    assert_eq!(positions(&told(&tail(&scene))).len(), 3_000);
    proof.tried("full", 1).found("lost", 0);
}
