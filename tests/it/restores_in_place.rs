//! Restores in the place of the file that stands there: only when nobody has it open, the old file or the restored one whatever ends the command, and what
//! follows for each consumer is said and chosen by nobody but the one who reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use serde_json::Value;

use crate::support::application::Application;
use crate::support::process::{Daemon, SHOP, Scene, ended_with, shared_machine, told};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::relays::{file, relay};
use crate::support::rig::open;
use crate::the_controls_fail_without_their_protection::without;

const PATIENCE: Duration = Duration::from_secs(30);
const IN_PLACE: [&str; 3] = ["restore", "--force", "--yes"];

/// Folds every event of the outbox.
const SEEN: &str = "
[projections.seen]
source = \"shop\"
path = \"read.db\"
tables = [\"seen\"]
schema = \"CREATE TABLE seen (id TEXT PRIMARY KEY, times INTEGER NOT NULL) STRICT\"
[projections.seen.on]
\"*\" = \"INSERT INTO seen VALUES (:id, 1) ON CONFLICT DO UPDATE SET times = times + 1\"
";

fn job(name: &str, files: &str) -> String {
    format!(
        "\n[jobs.{name}]\ntype = \"backup\"\nfiles = [{files}]\ntarget = \"kept\"\nschedule = \"0 3 * * *\"\nkeep = {{ daily = 9 }}\n"
    )
}

fn json(scene: &Scene, arguments: &[&str]) -> Value {
    serde_json::from_str(&told(&scene.outboxd(&[arguments, &["--json"]].concat()))).unwrap()
}

fn count(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

const ROWS: &str = "SELECT count(*) FROM outbox";

/// The connection goes, and leaves what it wrote in the `-wal`, as a process that is killed does.
fn leave(connection: Connection) {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    drop(connection);
}

fn add(connection: &Connection, name: &str, rows: usize) {
    for n in 0..rows {
        let sql = "INSERT INTO outbox (id, stream_id, type, payload) VALUES (?1 || '-' || ?2, 'key-' || ?2 % 5, 'Happened', 'x')";
        connection.execute(sql, (name, n as i64)).unwrap();
    }
}

/// Names in the folder that begin so.
fn lying(scene: &Scene, start: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).collect();
    all.sort();
    all
}

#[test]
fn a_file_that_somebody_has_open_is_not_replaced() {
    let scene = Scene::new(&[SHOP, &job("nightly", "\"app.db\"")].concat());
    let path = scene.path("app.db");
    let application = open(&path);
    add(&application, "before", 20);
    let mode = fs::metadata(&path).unwrap().mode();
    told(&scene.outboxd(&["backup", "now"]));
    add(&application, "after", 10);
    let own = format!("process {}", std::process::id());
    let said = ended_with(&scene.outboxd(&IN_PLACE), 75);
    assert!(said.contains(&own) && said.contains("stop it first"), "{said}");
    // A process of somebody else's.
    leave(application);
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nprint(c.execute('PRAGMA journal_mode').fetchone(), flush=True)\nsys.stdin.read()";
    let mut python = Command::new("python3");
    let mut python =
        python.args(["-c", script]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(python.stdout.as_mut().unwrap()), &mut line).unwrap();
    let said = ended_with(&scene.outboxd(&IN_PLACE), 75);
    assert!(
        said.contains(&format!("process {} (", python.id())) && said.contains("python3 -c import sqlite3"),
        "{said}"
    );
    drop(python.stdin.take());
    python.wait().unwrap();
    // Another name, which would go on leading to the file of before.
    fs::hard_link(&path, scene.path("other.db")).unwrap();
    assert!(ended_with(&scene.outboxd(&IN_PLACE), 65).contains("has 2 names"));
    fs::remove_file(scene.path("other.db")).unwrap();
    assert!(ended_with(&scene.outboxd(&["restore", "--force"]), 64).contains("--yes"));
    assert_eq!((count(&path, ROWS), lying(&scene, "app.db.").len()), (30, 0));
    // A link stays one.
    fs::create_dir(scene.path("data")).unwrap();
    fs::rename(&path, scene.path("data/real.db")).unwrap();
    symlink("data/real.db", &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let said = told(&scene.outboxd(&IN_PLACE));
    assert!(said.contains("data/real.db: app.db of nightly-") && said.contains("kept as"), "{said}");
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(count(&path, ROWS), 20);
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode, "that of the file that was backed up");
    assert_eq!(open(&path).query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(), "wal");
}

#[test]
fn a_daemon_that_runs_is_not_restored_under() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", ""), &job("nightly", "\"app.db\"")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(20);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 20, PATIENCE);
    told(&scene.outboxd(&["backup", "now"]));
    drop(application);
    assert!(ended_with(&scene.outboxd(&IN_PLACE), 75).contains("the daemon runs"));
    // Its door is gone, and it is there.
    fs::remove_file(scene.path("outboxd.sock")).unwrap();
    let said = ended_with(&scene.outboxd(&IN_PLACE), 75);
    assert!(said.contains(&format!("process {}", daemon.pid())), "{said}");
    daemon.kill();
    told(&scene.outboxd(&IN_PLACE));
}

/// Who has the file open goes on with the old one: what it commits stands in no file that anybody will read.
#[test]
fn control_without_the_look_for_holders_an_application_writes_into_the_void() {
    let scene = Scene::new(&[SHOP, &job("nightly", "\"app.db\"")].concat());
    let path = scene.path("app.db");
    let application = open(&path);
    add(&application, "before", 20);
    told(&scene.outboxd(&["backup", "now"]));
    let said = ended_with(&scene.outboxd_with(&IN_PLACE, &without("InUse")), 75);
    assert!(said.contains("opened the file of before"), "what shows afterwards is still told: {said}");
    add(&application, "lost", 10);
    assert_eq!(count(&path, "SELECT count(*) FROM outbox WHERE id LIKE 'lost-%'"), 0);
}

/// A folder in which relay and application have come to their end: what both have since the backup stands partly in a `-wal`.
fn ended(off: bool) -> Scene {
    let files = "\"app.db\", \"app.db-outboxd.db\"";
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", ""), &job("nightly", files)].concat());
    let path = scene.path("app.db");
    let application = open(&path);
    add(&application, "before", 20);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 20, PATIENCE);
    told(&scene.outboxd(&["backup", "now"]));
    add(&application, "after", 10);
    daemon.until_settled("to_lines", 30, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    if off {
        // Of this -wal every page is needed.
        application.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }
    add(&application, "late", 5);
    leave(application);
    assert!(fs::metadata(scene.path("app.db-wal")).unwrap().len() > 0);
    scene
}

/// A database as it lies there, with what lies beside it: its rows, or why it is none.
fn found(at: &Path, sql: &str) -> Result<i64, String> {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy.db");
    for end in ["", "-wal", "-journal"] {
        let from = PathBuf::from(format!("{}{end}", at.display()));
        if from.exists() {
            fs::copy(from, format!("{}{end}", copy.display())).unwrap();
        }
    }
    let connection = Connection::open(&copy).unwrap();
    let whole: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(|e| e.to_string())?;
    if whole != "ok" {
        return Err(whole);
    }
    connection.query_row(sql, [], |row| row.get(0)).map_err(|error| error.to_string())
}

#[test]
fn a_crash_anywhere_leaves_the_old_file_or_the_restored_one() {
    let _machine = shared_machine();
    let before = ended(false);
    let position = "SELECT position FROM outboxd_checkpoint";
    let mut seams: BTreeMap<String, u64> = BTreeMap::new();
    for step in 1.. {
        let scene = Scene::without_a_file("");
        let copied = Command::new("cp").arg("-a").arg(before.path(".")).arg(scene.path(".")).status().unwrap();
        assert!(copied.success());
        let crashed = scene.outboxd_with(&IN_PLACE, &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        let rows = found(&scene.path("app.db"), ROWS).unwrap_or_else(|why| panic!("step {step}: {why}"));
        let stands =
            found(&scene.path("app.db-outboxd.db"), position).unwrap_or_else(|why| panic!("step {step}: {why}"));
        assert!([20, 35].contains(&rows) && [20, 30].contains(&stands), "step {step}: {rows} rows, {stands}");
        assert!(stands <= rows, "step {step}: a checkpoint at {stands} is ahead of {rows}");
        // What was there is somewhere.
        let somewhere = |start: &str, sql: &str, wanted: i64| {
            let is_it = |path: &PathBuf| !path.to_string_lossy().ends_with("-wal") && found(path, sql) == Ok(wanted);
            lying(&scene, start).iter().any(is_it)
        };
        assert!(rows == 35 || somewhere("app.db.", ROWS, 35), "step {step}: the old file is gone");
        assert!(stands == 30 || somewhere("app.db-outboxd.db.", position, 30), "step {step}: the old state is gone");
        // And it goes through the next time.
        let said = told(&scene.outboxd(&IN_PLACE));
        assert!(said.contains("to_lines goes on behind position 20: "), "{said}");
        assert_eq!(said.contains("up to position 30, is at its far side"), stands == 30, "step {step}: {said}");
        assert_eq!(
            (found(&scene.path("app.db"), ROWS), found(&scene.path("app.db-outboxd.db"), position)),
            (Ok(20), Ok(20))
        );
        assert!(somewhere("app.db.", ROWS, 35) && somewhere("app.db-outboxd.db.", position, 30), "step {step}");
        assert!(lying(&scene, "app.db").iter().all(|path| {
            let name = path.to_string_lossy();
            !name.ends_with(".partial") && !name.ends_with(".swap")
        }));
    }
    assert!(seams.get("Restore").is_some_and(|count| *count >= 7), "{seams:?}");
    Proof::of("crash ladder, restores in place").tried("crashes", seams.values().sum()).found("lost or half", 0);
}

/// What lay beside the old file is taken for the new one's.
#[test]
fn control_with_the_old_wal_beside_it_the_restored_file_is_not_what_was_backed_up() {
    let _machine = shared_machine();
    let scene = ended(true);
    told(&scene.outboxd_with(&[&IN_PLACE[..], &["--file", "app.db"]].concat(), &without("OldWal")));
    assert_ne!(found(&scene.path("app.db"), ROWS), Ok(20));
    let scene = ended(true);
    told(&scene.outboxd(&[&IN_PLACE[..], &["--file", "app.db"]].concat()));
    assert_eq!(found(&scene.path("app.db"), ROWS), Ok(20));
}

#[test]
fn what_is_damaged_cut_or_gone_is_replaced_and_kept() {
    let scene = Scene::new(&[SHOP, &job("nightly", "\"app.db\"")].concat());
    let path = scene.path("app.db");
    let application = open(&path);
    add(&application, "before", 20);
    told(&scene.outboxd(&["backup", "now"]));
    leave(application);
    let wal = scene.path("app.db-wal");
    let bytes = fs::read(&wal).unwrap();
    assert!(!bytes.is_empty());
    for (number, damage) in ["no database", "cut to nothing", "gone", "a page"].into_iter().enumerate() {
        match damage {
            "no database" => fs::write(&path, [0xa5; 8192]).unwrap(),
            "cut to nothing" => fs::write(&path, []).unwrap(),
            "gone" => fs::remove_file(&path).unwrap(),
            _ => {
                let mut whole = fs::read(&path).unwrap();
                let middle = whole.len() / 4096 / 2 * 4096;
                whole[middle..middle + 4096].fill(0xa5);
                fs::write(&path, whole).unwrap();
            }
        }
        let is_of_the_file = number < 3;
        if is_of_the_file {
            fs::write(&wal, &bytes).unwrap();
        }
        let answer = json(&scene, &IN_PLACE);
        assert_eq!(found(&path, ROWS), Ok(20), "{damage}");
        assert!(!wal.exists(), "{damage}");
        let kept = PathBuf::from(answer["files"][0]["kept"].as_str().unwrap());
        assert_eq!(kept.exists(), damage != "gone", "{damage}");
        if is_of_the_file {
            assert_eq!(fs::read(format!("{}-wal", kept.display())).unwrap(), bytes, "{damage}: all of it is kept");
        }
    }
    // A manifest is no order to write somewhere.
    let other = [SHOP, &job("nightly", "\"other.db\"")].concat();
    fs::copy(&path, scene.path("other.db")).unwrap();
    scene.configure(&other);
    assert!(ended_with(&scene.outboxd(&IN_PLACE), 65).contains("so that it has no place"));
}

/// How often each event stands in a relay's file.
fn arrived(scene: &Scene, name: &str) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    readers::lines(&scene.path(name)).into_iter().for_each(|arrival| *all.entry(arrival.id).or_default() += 1);
    all
}

fn halted(daemon: &mut Daemon, consumer: &str) {
    let status = daemon.until_state(consumer, "halted", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("went back"), "{status}");
}

/// By hand, as docs/BACKUP.md says it: three relays, of which each takes another of the ways that are printed, and a read model.
#[test]
fn every_way_on_after_a_restore_loses_nothing() {
    let _machine = shared_machine();
    let all = "\"app.db\", \"app.db-outboxd.db\", \"read.db\"";
    let ends: String = ["a", "b", "c"].iter().map(|name| [file(name), relay(name, "")].concat()).collect();
    let scene = Scene::new(&[SHOP, &ends, SEEN, &job("alone", "\"app.db\""), &job("whole", all)].concat());
    let path = scene.path("app.db");
    let consumers = ["to_a", "to_b", "to_c", "seen"];
    let application = open(&path);
    add(&application, "first", 250);
    let mut daemon = scene.daemon();
    consumers.iter().for_each(|name| drop(daemon.until_settled(name, 250, PATIENCE)));
    // One of them is behind when the backup is made.
    told(&scene.outboxd(&["pause", "to_a"]));
    add(&application, "second", 50);
    consumers[1..].iter().for_each(|name| drop(daemon.until_settled(name, 300, PATIENCE)));
    for name in ["alone", "whole"] {
        told(&scene.outboxd(&["backup", "now", name]));
    }
    told(&scene.outboxd(&["resume", "to_a"]));
    add(&application, "gone", 200);
    consumers.iter().for_each(|name| drop(daemon.until_settled(name, 500, PATIENCE)));
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    leave(application);

    // The disaster, and the file alone comes back: all four know more than it.
    fs::write(&path, [0xa5; 8192]).unwrap();
    let said = told(&scene.outboxd(&[&IN_PLACE[..], &["alone"]].concat()));
    for name in &consumers[..3] {
        assert!(said.contains(&format!("{name} HALTS until you choose: its checkpoint is at position 500")), "{said}");
    }
    assert!(said.contains("seen HALTS: its tables are ahead") && said.contains("rebuild seen"), "{said}");
    assert!(said.contains("goes on behind position 250, where it stood when the backup was made: 50 events"), "{said}");
    assert!(said.contains("outboxd position set to_c 300"), "{said}");
    let offered: Vec<i64> =
        said.lines().filter_map(|line| line.trim().strip_prefix("outboxd position set to_b ")?.parse().ok()).collect();
    let [common, 300] = offered[..] else { panic!("{offered:?} in {said}") };
    assert!((1..300).contains(&common), "{said}");

    let application = open(&path);
    add(&application, "new", 100);
    let mut daemon = scene.daemon();
    consumers.iter().for_each(|name| halted(&mut daemon, name));
    // Each its own way. The last is for those that have taken none.
    told(&scene.outboxd(&["position", "set", "to_b", &common.to_string(), "--yes"]));
    told(&scene.outboxd(&["position", "set", "to_c", "300", "--yes"]));
    let reset = json(&scene, &["restore", "--reset-positions", "alone", "--yes"]);
    let to_a = serde_json::json!([{ "consumer": "to_a", "position": 250, "previous": 500 }]);
    assert_eq!(reset["reset"], to_a);
    told(&scene.outboxd(&["rebuild", "seen"]));
    consumers.iter().for_each(|name| drop(daemon.until_settled(name, 400, PATIENCE)));
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let is_there = |ids: &BTreeMap<String, u32>, name: &str, count: usize, times: u32| {
        (0..count).all(|n| ids.get(&format!("{name}-{n}")) == Some(&times))
    };
    for (name, again) in [("a", 50), ("b", 300 - common), ("c", 0)] {
        let ids = arrived(&scene, &format!("{name}.ndjson"));
        let twice = ids.values().filter(|times| **times == 2).count() as i64;
        assert_eq!((twice, ids.len()), (again, 600), "{name}: as many as was said come once more, and nothing is lost");
        assert!(is_there(&ids, "new", 100, 1) && is_there(&ids, "gone", 200, 1), "{name}");
    }
    let seen = "SELECT count(*) * 1000 + sum(times) FROM seen";
    assert_eq!(count(&scene.path("read.db"), seen), 400_400, "the read model is that of the restored file");

    // Everything at one: nobody has to choose.
    leave(application);
    let said = told(&scene.outboxd(&[&IN_PLACE[..], &["whole"]].concat()));
    assert!(!said.contains("HALTS"), "{said}");
    assert!(said.contains("to_a goes on behind position 250: 50 events that it had sent come once more"), "{said}");
    for name in ["to_b", "to_c"] {
        assert!(said.contains(&format!("{name} goes on behind position 300: nothing comes twice")), "{said}");
    }
    assert!(said.contains("seen goes on behind position 300: its tables went back with it"), "{said}");
    let application = open(&path);
    add(&application, "last", 10);
    let mut daemon = scene.daemon();
    // It was paused when the backup was made.
    daemon.until_state("to_a", "paused", PATIENCE);
    told(&scene.outboxd(&["resume", "to_a"]));
    consumers.iter().for_each(|name| drop(daemon.until_settled(name, 310, PATIENCE)));
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    for name in ["a", "b", "c"] {
        assert!(is_there(&arrived(&scene, &format!("{name}.ndjson")), "last", 10, 1), "{name}");
    }
    assert_eq!(count(&scene.path("read.db"), seen), 310_310);
    let said = told(&scene.outboxd(&["restore", "--reset-positions", "alone", "--yes"]));
    assert!(said.contains("to_a stays at position 310"), "{said}");
    Proof::of("restores in place, each way on").tried("consumers", 7).found("lost", 0);
}

#[test]
fn state_inside_the_file_goes_back_with_it() {
    let _machine = shared_machine();
    let inside = SHOP.replace("[sources.shop]", "[sources.shop]\nstate = \"inside\"");
    let scene = Scene::new(&[&inside[..], &file("lines"), &relay("lines", ""), &job("nightly", "\"app.db\"")].concat());
    let application = open(&scene.path("app.db"));
    add(&application, "first", 250);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 250, PATIENCE);
    told(&scene.outboxd(&["pause", "to_lines"]));
    add(&application, "second", 50);
    told(&scene.outboxd(&["backup", "now"]));
    told(&scene.outboxd(&["resume", "to_lines"]));
    daemon.until_settled("to_lines", 300, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    leave(application);
    let answer = json(&scene, &IN_PLACE);
    let then = serde_json::json!([{ "consumer": "to_lines", "then": "goes-on", "position": 250, "again": 50 }]);
    assert_eq!(answer["consumers"], then);
    let mut daemon = scene.daemon();
    // Its pause went back with it, too.
    daemon.until_state("to_lines", "paused", PATIENCE);
    told(&scene.outboxd(&["resume", "to_lines"]));
    daemon.until_settled("to_lines", 300, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let ids = arrived(&scene, "lines.ndjson");
    let twice: BTreeSet<&str> =
        ids.iter().filter(|(_, times)| **times == 2).map(|(id, _)| id.split('-').next().unwrap()).collect();
    assert_eq!(
        (ids.len(), ids.values().filter(|times| **times == 2).count(), twice),
        (300, 50, BTreeSet::from(["second"]))
    );
}
