//! The doctor: faults that are planted are found, and the remedies that it prints mend them; what it prints is kept; it changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::process::{Scene, ended_with, told};
use crate::support::rig::open;

/// What depends on the machine that the test runs on: what the file lies on, and how full that is.
const OF_THE_MACHINE: [&str; 4] = ["place", "owners", "room", "growth"];

/// Five files with a relay for each, and a secret in the configuration itself.
const FIVE: &str = r#"
[daemon]
admin = "127.0.0.1:0"

[sources.app]
path = "app.db"
preset = "outboxd"
read = "outbox"
[sources.django]
path = "django.db"
preset = "django-outbox-pattern"
[sources.loose]
path = "loose.db"
preset = "outboxd"
read = "outbox"
[sources.plain]
path = "plain.db"
preset = "outboxd"
read = "outbox"
[sources.twice]
path = "twice.db"
preset = "outboxd"
read = "outbox"

[sinks.out]
type = "file"
path = "out.ndjson"
[sinks.bus]
type = "amqp"
uri = "amqp://guest:guest@127.0.0.1:1"
exchange = "shop"
routing_key = "{type}"

[relays.app]
source = "app"
sink = "bus"
start = "first"
[relays.django]
source = "django"
sink = "out"
[relays.loose]
source = "loose"
sink = "bus"
start = "first"
[relays.plain]
source = "plain"
sink = "bus"
start = "first"
[relays.twice]
source = "twice"
sink = "bus"
start = "first"
"#;

struct Doctored {
    code: i32,
    found: Vec<Value>,
}

impl Doctored {
    fn of(scene: &Scene) -> Self {
        let output = scene.outboxd(&["doctor", "--offline", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { code: output.status.code().unwrap(), found: answer["findings"].as_array().unwrap().clone() }
    }

    /// What is not ok, and no matter of this machine.
    fn wrong(&self) -> Vec<&Value> {
        let is_ours = |found: &&Value| {
            let check = found["check"].as_str().unwrap();
            found["verdict"] != "ok"
                && (!OF_THE_MACHINE.contains(&check) || told_of(found).contains("names (hard links)"))
                || told_of(found).contains("anybody on this machine may write")
        };
        self.found.iter().filter(is_ours).collect()
    }

    /// The one that says this of this file.
    fn fault(&self, check: &str, verdict: &str, words: &str) -> &Value {
        let is_it =
            |found: &&Value| found["check"] == check && found["verdict"] == verdict && told_of(found).contains(words);
        self.found.iter().find(is_it).unwrap_or_else(|| panic!("{check} {words:?} is not found in {:#?}", self.found))
    }
}

fn told_of(found: &Value) -> String {
    format!("{}: {}", found["subject"].as_str().unwrap(), found["evidence"].as_str().unwrap())
}

fn sh(scene: &Scene, command: &str) -> Output {
    let output = Command::new("sh").args(["-c", command]).current_dir(scene.path("")).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Carries the remedy out, as it is printed.
fn mend(scene: &Scene, fault: &Value) -> String {
    let commands = fault["commands"].as_array().unwrap();
    assert!(!commands.is_empty(), "it has commands: {fault:#}");
    commands.iter().map(|command| String::from_utf8(sh(scene, command.as_str().unwrap()).stdout).unwrap()).collect()
}

fn place(app: &Connection, id: &str) {
    app.execute("INSERT INTO outbox (id, stream_id, type, payload) VALUES (?1, 'o', 'Placed', '{}')", [id]).unwrap();
}

/// An outbox in WAL mode with an event, written and closed.
fn outbox(scene: &Scene, name: &str) -> PathBuf {
    told(&scene.outboxd(&["init", name]));
    let app = open(&scene.path(name));
    place(&app, "e1");
    app.close().unwrap();
    scene.path(name)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// An outbox as the doctor is not to see it: without AUTOINCREMENT, with an index and a trigger of the application's own.
fn plant_no_autoincrement(scene: &Scene) {
    let made = outbox(scene, "made.db");
    let sql = "SELECT sql FROM sqlite_schema WHERE name = 'outbox'";
    let schema: String = open(&made).query_row(sql, [], |row| row.get(0)).unwrap();
    let app = open(&scene.path("loose.db"));
    app.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; {}; CREATE INDEX by_time ON outbox (time); CREATE TABLE seen (id TEXT);
         CREATE TRIGGER kept AFTER INSERT ON outbox BEGIN INSERT INTO seen VALUES (new.id); END;",
        schema.replace(" AUTOINCREMENT", "")
    ))
    .unwrap();
    place(&app, "e1");
}

/// In `app.db`: whose rights are too wide, and of which four things are wrong inside. The reader holds the `-wal`.
fn plant_in_the_file(scene: &Scene) -> (Connection, Connection) {
    let path = outbox(scene, "app.db");
    chmod(&path, 0o666);
    for end in ["-wal", "-shm"] {
        let side = scene.path(&format!("app.db{end}"));
        if side.exists() {
            chmod(&side, 0o666);
        }
    }
    let app = open(&path);
    app.execute_batch(
        "PRAGMA foreign_keys = OFF;
         CREATE TABLE customers (id INTEGER PRIMARY KEY);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customers, note TEXT);
         INSERT INTO orders VALUES (1, 7, NULL);
         CREATE TABLE notes (note TEXT);
         INSERT INTO notes VALUES (x'636166c3a9'), ('tea');
         DELETE FROM sqlite_sequence WHERE name = 'outbox';
         CREATE TABLE ballast (content BLOB);
         INSERT INTO ballast VALUES (zeroblob(40 << 20)); DELETE FROM ballast;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    let reader = open(&path);
    reader.execute_batch("BEGIN; SELECT count(*) FROM outbox;").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).unwrap();
    app.execute_batch("INSERT INTO ballast VALUES (zeroblob(8 << 20))").unwrap();
    (app, reader)
}

#[test]
fn planted_faults_are_found_and_the_printed_remedies_mend_them() {
    let scene = Scene::without_a_file(FIVE);
    chmod(&scene.path("outboxd.toml"), 0o644);
    let (app, reader) = plant_in_the_file(&scene);
    plant_no_autoincrement(&scene);
    // Written by SQLite 3.40.1, and without an index that brings pending rows in order.
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/libraries/django_outbox_pattern.db");
    fs::copy(fixture, scene.path("django.db")).unwrap();
    let plain = outbox(&scene, "plain.db");
    open(&plain).execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    let file = fs::File::options().write(true).open(&plain).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(7_200)).unwrap();
    drop(file);
    let twice = outbox(&scene, "twice.db");
    fs::hard_link(&twice, scene.path("again.db")).unwrap();

    let found = Doctored::of(&scene);
    assert_eq!(found.code, 78, "the configuration is the first thing to mend");
    let secret = found.fault("configuration", "danger", "secrets stand in");
    let rights = found.fault("owners", "advice", "anybody on this machine may write");
    let library = found.fault("library", "advice", "django.db was last written by SQLite 3.40.1");
    let plan = found.fault("plans", "advice", "every look for pending rows sorts all of them");
    let sequence = found.fault("positions", "danger", "sqlite_sequence has nothing for outbox, whose newest row is 1");
    let key = found.fault("positions", "danger", "table outbox has no AUTOINCREMENT key position");
    let orphans = found.fault("keys", "danger", "1 rows of orders refer to rows of customers that are not there");
    let bytes = found.fault("values", "advice", "of notes, 1 have in note something else than text");
    let pinned = found.fault("wal", "advice", "pages of the -wal wait to be copied into the file");
    let free = found.fault("free-pages", "advice", "MiB are free pages");
    let journal = found.fault("journal", "danger", "plain.db is in journal mode delete");
    let clock = found.fault("clock", "advice", "the clock of this machine was set back, or is wrong");
    let names = found.fault("place", "danger", "has 2 names (hard links)");
    let unseen = found.fault("contents", "advice", "what is in it was not looked at");
    let all =
        [secret, rights, library, plan, sequence, key, orphans, bytes, pinned, free, journal, clock, names, unseen];
    let others: Vec<&Value> = found.wrong().into_iter().filter(|found| !all.contains(found)).collect();
    assert!(others.is_empty(), "nothing else is wrong: {others:#?}");

    assert!(pinned["remedy"].as_str().unwrap().contains("read"), "{pinned:#}");
    mend(&scene, sequence);
    drop(reader);
    place(&app, "e2");
    for fault in [secret, rights, plan, key, orphans, bytes, free, journal, clock] {
        mend(&scene, fault);
    }
    let other_names = mend(&scene, names);
    assert_eq!(other_names.trim(), fs::canonicalize(scene.path("again.db")).unwrap().display().to_string());
    fs::remove_file(other_names.trim()).unwrap();
    // The remedy is a newer SQLite, such as the one in here. What was mended by the system's `sqlite3` was written by an old one, too.
    assert!(library["remedy"].as_str().unwrap().contains("give the application SQLite 3.51.3 or later"));
    for name in ["app.db", "django.db", "loose.db", "plain.db"] {
        open(&scene.path(name)).execute_batch("CREATE TABLE of_a_newer_sqlite (n INTEGER)").unwrap();
    }

    let found = Doctored::of(&scene);
    assert!(found.wrong().is_empty(), "all is mended: {:#?}", found.wrong());
    let of_the_machine = found.found.iter().any(|found| found["verdict"] != "ok");
    assert_eq!(found.code == 0, !of_the_machine, "the exit code is that of the worst");
    let loose = open(&scene.path("loose.db"));
    let kept = "SELECT (SELECT count(*) FROM outbox), (SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema \
                WHERE tbl_name = 'outbox' AND sql IS NOT NULL ORDER BY name))";
    let kept: (i64, String) = loose.query_row(kept, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(kept, (1, "by_time,kept,outbox".to_owned()), "rows, indexes and triggers are kept");
    let text: i64 = app.query_row("SELECT count(*) FROM notes WHERE note = 'café'", [], |row| row.get(0)).unwrap();
    assert_eq!(text, 1, "bytes became the text that they were");
}

#[test]
fn whoever_holds_the_write_lock_is_named() {
    let scene = Scene::without_a_file("");
    let app = open(&outbox(&scene, "app.db"));
    let lock = || {
        let output = scene.outboxd(&["doctor", "app.db", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut found = answer["findings"].as_array().unwrap().iter();
        let lock = found.find(|found| found["check"] == "lock").unwrap();
        (lock["verdict"].as_str().unwrap().to_owned(), lock["evidence"].as_str().unwrap().to_owned())
    };
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    place(&app, "e2");
    let (verdict, evidence) = lock();
    let holder =
        format!("in 20 of 20 looks within 200ms the write lock was held, mostly by process {}", std::process::id());
    assert!(verdict == "advice" && evidence.starts_with(&holder), "{evidence}");
    app.execute_batch("COMMIT").unwrap();
    assert_eq!(lock().0, "ok");
}

#[test]
fn a_secret_that_others_may_read_is_found_and_mended() {
    let config = FIVE.replace("uri = \"amqp://guest:guest@127.0.0.1:1\"", "uri_file = \"bus.uri\"");
    let scene = Scene::without_a_file(&config);
    let secret = scene.write("bus.uri", "amqp://guest:guest@127.0.0.1:1");
    chmod(&secret, 0o644);
    let found = Doctored::of(&scene);
    assert_eq!(found.code, 78);
    mend(&scene, found.fault("configuration", "danger", "may be read by anybody on this machine (mode 644)"));
    let found = Doctored::of(&scene);
    assert_eq!(found.code, 1, "no file is there yet: {:#?}", found.found);
    found.fault("place", "advice", "it is not there yet");
}

/// Without the lines that say what this machine is like; the folder is called /FOLDER.
fn kept(scene: &Scene, output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let folder = scene.path("").display().to_string();
    let text = text.replace(folder.trim_end_matches('/'), "/FOLDER");
    let machine = [&OF_THE_MACHINE[..], &["clock", "library", "free-pages"]].concat();
    let mut is_kept = true;
    let lines = text.lines().filter(|line| {
        // A check begins with its verdict; what is indented further belongs to it.
        match line.get(..10).filter(|head| !head.starts_with("   ")) {
            Some(head) if head.starts_with("  ") => {
                is_kept = !machine.iter().any(|check| line[10..].starts_with(check))
            }
            _ if line.starts_with("   ") => {}
            _ => is_kept = !line.starts_with("danger: "),
        }
        is_kept
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_it_prints_is_kept() {
    let scene = Scene::without_a_file("");
    let path = outbox(&scene, "app.db");
    let app = open(&path);
    app.execute_batch(
        "PRAGMA foreign_keys = OFF; CREATE TABLE customers (id INTEGER PRIMARY KEY);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customers, note TEXT);
         INSERT INTO orders VALUES (1, 7, x'61'); UPDATE sqlite_sequence SET seq = 0 WHERE name = 'outbox';
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    let written = || {
        let meta = fs::metadata(&path).unwrap();
        (fs::read_to_string(scene.path("outboxd.toml")).unwrap(), meta.modified().unwrap(), meta.len())
    };
    let before = written();
    let output = scene.outboxd(&["doctor", "app.db"]);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(written(), before, "nothing is changed");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/doctor.txt");
    let said = kept(&scene, &output);
    assert!(
        fs::read_to_string(golden).unwrap_or_default() == said,
        "tests/golden/doctor.txt is not what is said:\n{said}"
    );
}

#[test]
fn a_configuration_is_proposed_for_any_file_whose_tables_are_known() {
    let known = [("emmett", 65), ("eventsourcing", 1), ("django_outbox_pattern", 1)];
    for (name, code) in known {
        let scene = Scene::without_a_file("");
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/libraries/{name}.db"));
        fs::copy(fixture, scene.path("app.db")).unwrap();
        let output = scene.outboxd(&["doctor", "app.db", "--json"]);
        let said = ended_with(&output, code);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let proposal = answer["proposal"].as_str().unwrap();
        assert!(proposal.contains(&format!("preset = \"{}\"", name.replace('_', "-"))), "{said}");
        scene.configure(proposal);
        open(&scene.path("app.db")).execute_batch("PRAGMA journal_mode = WAL").unwrap();
        told(&scene.outboxd(&["check"]));
    }
}

#[test]
fn what_is_no_file_of_ours_is_told() {
    let scene = Scene::without_a_file("");
    let missing = ended_with(&scene.outboxd(&["doctor", "app.db"]), 69);
    assert!(missing.contains("app.db is not there"), "{missing}");
    fs::write(scene.path("app.db"), "x".repeat(8192)).unwrap();
    let foreign = ended_with(&scene.outboxd(&["doctor", "app.db"]), 65);
    assert!(foreign.contains("it cannot be read: file is not a database"), "{foreign}");
    fs::remove_file(scene.path("app.db")).unwrap();
    open(&scene.path("app.db")).execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE things (id TEXT)").unwrap();
    let unknown = ended_with(&scene.outboxd(&["doctor", "app.db"]), 1);
    assert!(unknown.contains("none of its tables is known by name: things"), "{unknown}");
    assert!(unknown.contains("outboxd init --feed TABLE app.db"), "{unknown}");
}

/// What `check` says of a sink the doctor says, too.
#[test]
fn a_sink_that_is_away_is_a_danger() {
    let scene = Scene::without_a_file(FIVE);
    let output = scene.outboxd(&["doctor", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["verdict"]), (Some(69), &Value::from("danger")));
    let sinks = answer["findings"].as_array().unwrap().iter().filter(|found| found["check"] == "sink");
    let verdicts: Vec<(&Value, &Value)> = sinks.map(|found| (&found["subject"], &found["verdict"])).collect();
    assert!(verdicts.contains(&(&Value::from("sink bus of relay app"), &Value::from("danger"))), "{verdicts:?}");
    assert!(verdicts.contains(&(&Value::from("sink out of relay django"), &Value::from("ok"))), "{verdicts:?}");
}
