//! `outboxd events`: JSON lines in and out.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::archive;
use crate::support::process::{SHOP, Scene};
use crate::support::relays::{file, relay};
use crate::support::rig::open;

const LOG: &str = "\n[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n";
const OTHER: &str = "\n[sources.other]\npath = \"other.db\"\npreset = \"emmett\"\n";

/// Runs a command with these lines as its input: exit code, what it printed, what it told.
fn run(scene: &Scene, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut child = command(scene, arguments).envs(environment.iter().copied()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn command(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    command.arg("events").args(arguments).current_dir(scene.path("app.db").parent().unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("OUTBOXD_CONFIG");
    command
}

fn events(scene: &Scene) -> i64 {
    open(&scene.path("app.db")).query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap()
}

fn placed(stream: &str, id: &str) -> String {
    format!(
        "{{\"stream_id\":\"{stream}\",\"stream_type\":\"Order\",\"id\":\"{id}\",\"type\":\"Placed\",\"data\":{{\"n\": 1}}}}\n"
    )
}

#[test]
fn bad_lines_are_named_and_nothing_is_appended() {
    let scene = Scene::new("");
    let good = placed("a", "1");
    let line = |text: &str| format!("{good}\n{text}\n{}", placed("a", "2"));
    let mut cases = vec![
        (line("{"), 65, "line 3: EOF while parsing an object (column 1)".to_owned()),
        (line("no JSON"), 65, "line 3: expected ident (column 2)".into()),
        (line("{\"typ\":\"Placed\"}"), 65, "line 3: unknown field `typ`".into()),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"type\":\"T\"}"),
            65,
            "line 3: it has no \"data\"".into(),
        ),
        (line("{\"stream_id\":\"a\",\"type\":\"T\",\"data\":1}"), 65, "line 3: it has no \"stream_type\"".into()),
        (line("{\"type\":\"T\",\"data\":1}"), 65, "line 3: it has no \"stream_id\"".into()),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"type\":\"T\",\"data\":1,\"id\":\"\"}"),
            65,
            "line 3: the id is empty".into(),
        ),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"type\":\"T\",\"data\":1,\"metadata\":[]}"),
            65,
            "line 3: the metadata of".into(),
        ),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"events\":[],\"type\":\"T\"}"),
            65,
            "line 3: it has \"events\" and an event".into(),
        ),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"events\":[]}"),
            65,
            "line 3: there are no events in it".into(),
        ),
        (line(good.trim()), 65, "line 3: event 1 comes twice in it".into()),
        (
            line("{\"stream_id\":\"a\",\"stream_type\":\"Other\",\"type\":\"T\",\"data\":1}"),
            65,
            "line 3: stream a is of type Order, not Other".into(),
        ),
    ];
    for (expected, told) in [
        ("9223372036854775808", "not 9223372036854775808"),
        ("1e99", "not 1e+99"),
        ("\"9223372036854775808\"", "not \"9223372036854775808\""),
        ("\"some\"", "expected is \"any\", \"none\", \"exists\" or a version"),
        ("-1", "the expected version is -1, below 0"),
        ("7", "line 3: stream a is at version 1, where version 7 was expected"),
        ("\"none\"", "line 3: stream a is at version 1, where no stream was expected"),
    ] {
        let text = format!(
            "{{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"type\":\"T\",\"data\":1,\"expected\":{expected}}}"
        );
        cases.push((line(&text), 65, told.to_owned()));
    }
    for (input, code, told) in cases {
        let (exit, printed, error) = run(&scene, &["append", "./app.db"], &input, &[]);
        assert_eq!((exit, printed.as_str()), (code, ""), "{input}: {error}");
        assert!(error.contains(&told) && error.contains("; nothing was appended\n  fix: "), "{input}: {error}");
        assert_eq!(events(&scene), 0, "{input}");
        // Line by line: what came before it is appended, and that is said.
        let (exit, printed, error) = run(&scene, &["append", "./app.db", "--each"], &input, &[]);
        let is_repeat = input.contains(&format!("{good}\n{}", good.trim()));
        assert_eq!((exit, printed.lines().count()), if is_repeat { (0, 3) } else { (code, 1) }, "{input}: {error}");
        assert!(
            is_repeat || error.contains("; the lines before it were appended, from line 3 on nothing was"),
            "{error}"
        );
        assert_eq!(events(&scene), if is_repeat { 2 } else { 1 });
        open(&scene.path("app.db")).execute_batch("DELETE FROM events; DELETE FROM streams").unwrap();
    }
    let (exit, _, error) = run(&scene, &["append", "./app.db", "--each"], "{}\n", &[]);
    assert_eq!((exit, error.contains("; nothing was appended\n")), (65, true), "{error}");
    let (exit, _, error) = run(&scene, &["append", "./app.db"], "{\"stream_id\":\"\u{fffd}\n", &[]);
    assert_eq!((exit, error.contains("line 1: ")), (65, true), "{error}");
    assert_eq!(run(&scene, &["append", "./app.db"], "\n \n", &[]), (0, String::new(), String::new()));
}

#[cfg(feature = "controls")]
fn without(protection: &str) -> [(&str, &str); 1] {
    [("TURNED_OFF", protection)]
}

/// The second of two events is refused when the first is written already.
#[test]
#[cfg(feature = "controls")]
fn control_without_its_protection_half_an_append_stays() {
    let scene = Scene::new("");
    let half = "{\"stream_id\":\"a\",\"stream_type\":\"Order\",\"events\":[{\"type\":\"T\",\"data\":1},{\"type\":\"T\",\"data\":1,\"metadata\":[]}]}";
    let (exit, ..) = run(&scene, &["append", "./app.db"], half, &[]);
    assert_eq!((exit, events(&scene)), (65, 0));
    let (exit, ..) = run(&scene, &["append", "./app.db"], half, &without("Savepoint"));
    assert_eq!((exit, events(&scene)), (65, 1));
}

#[test]
fn a_stream_is_one_append_and_lines_come_out_as_they_went_in() {
    let scene = Scene::new(&[SHOP, LOG, &file("lines"), &relay("lines", "")].concat());
    let one =
        ["append", "log", "--stream", "o-1", "--stream-type", "Order", "--expected", "none", "--outbox", "--json"];
    let lines = "{\"id\":\"1\",\"type\":\"Placed\",\"data\":{\"total\": 7.50}}\n{\"id\":\"2\",\"type\":\"Paid\",\"data\":null,\"metadata\":{\"by\":\"me\"},\"time\":\"2026-11-21T01:02:03Z\"}\n";
    for is_repeat in [false, true] {
        let (exit, printed, error) = run(&scene, &one, lines, &[]);
        assert_eq!(exit, 0, "{error}");
        let answer: Value = serde_json::from_str(&printed).unwrap();
        let told = serde_json::json!({"line": 1, "stream_id": "o-1", "first_version": 1, "last_version": 2, "first_position": 1,
            "last_position": 2, "repeat": is_repeat});
        assert_eq!(answer, told);
    }
    let (exit, _, error) = run(&scene, &one, "{\"type\":\"Placed\",\"data\":1}", &[]);
    assert_eq!(
        (exit, error.contains("stream o-1 is at version 2, where no stream was expected")),
        (65, true),
        "{error}"
    );
    let (exit, _, error) = run(&scene, &one, &placed("o-2", "9"), &[]);
    assert_eq!((exit, error.contains("is not the \"o-1\" of --stream")), (65, true), "{error}");
    archive(&open(&scene.path("app.db")), "o-1", 1);
    let (exit, shown, _) = run(&scene, &["show", "./app.db", "o-1", "--json"], "", &[]);
    assert_eq!((exit, shown.lines().count()), (0, 2));
    assert!(shown.starts_with("{\"position\":1,\"id\":\"1\",\"stream_id\":\"o-1\",\"stream_type\":\"Order\",\"version\":1,\"type\":\"Placed\",\"data\":{\"total\": 7.50},"), "{shown}");
    // What is printed of one log can be appended to another, and again.
    let other = Scene::new("");
    for _ in 0..2 {
        let (exit, printed, error) = run(&other, &["append", "./app.db"], &shown, &[]);
        assert_eq!((exit, printed.lines().count()), (0, 2), "{error}");
    }
    assert_eq!(run(&other, &["show", "./app.db", "o-1", "--json"], "", &[]).1, shown);
    assert!(
        run(&other, &["show", "./app.db", "o-1", "--from", "2"], "", &[])
            .1
            .contains("Paid  2026-11-21T01:02:03Z  null")
    );
    assert_eq!(run(&other, &["show", "./app.db", "nobody"], "", &[]).0, 65);
    assert_eq!(
        run(&other, &["streams", "./app.db"], "", &[]).1,
        "STREAM  TYPE   VERSION  SNAPSHOT\no-1     Order  2        -\n"
    );
    let listed = run(&other, &["streams", "./app.db", "--json"], "", &[]).1;
    assert_eq!(listed, "{\"snapshot_version\":null,\"stream_id\":\"o-1\",\"stream_type\":\"Order\",\"version\":2}\n");
}

/// Data over several lines is one line of JSON, and is appended elsewhere byte for byte.
#[test]
fn data_over_several_lines_comes_out_in_one_and_goes_in_as_it_was() {
    let (scene, other) = (Scene::new(""), Scene::new(""));
    let data = ["{\n  \"n\": 1,\r\n  \"text\": \"a\\nb\"\n}\n", " [1,\r2] ", "{\"n\": 1}"];
    let app = open(&scene.path("app.db"));
    for (n, data) in data.iter().enumerate() {
        let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data, metadata) VALUES (?1, 'a', 'Order', 1 + ?1, 'T', ?2, ?3)";
        app.execute(sql, (n as i64, data, "{\n\"by\": \"me\"}")).unwrap();
    }
    let (exit, shown, error) = run(&scene, &["show", "./app.db", "a", "--json"], "", &[]);
    assert_eq!((exit, shown.lines().count()), (0, 3), "{error}");
    assert_eq!(shown.matches("data_text").count(), 5, "only where it says more: {shown}");
    assert!(shown.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["data"] != Value::Null));
    for scene in [&other, &other, &scene] {
        let (exit, printed, error) = run(scene, &["append", "./app.db"], &shown, &[]);
        assert_eq!((exit, printed.lines().count()), (0, 3), "{error}");
        let app = open(&scene.path("app.db"));
        let mut statement = app.prepare("SELECT data FROM events ORDER BY position").unwrap();
        let stored: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(stored, data);
    }
    let torn = shown.lines().next().unwrap().replace(r#"\"n\": 1"#, r#"\"n\": 2"#);
    let (exit, _, error) = run(&Scene::new(""), &["append", "./app.db"], &torn, &[]);
    assert!(exit == 65 && error.contains("its \"data\" and \"data_text\" are not the same"), "{error}");
}

/// What a failed sync leaves may be found after a crash, or not: nothing else is said.
#[test]
fn a_sync_that_fails_at_the_commit_is_not_told_as_nothing() {
    let scene = Scene::new("");
    let wal = format!("{}-wal", scene.path("app.db").canonicalize().unwrap().display());
    let traced = |which: &str, arguments: &[&str], input: &str| {
        let inject = format!("inject=fdatasync,fsync:error=EIO:when={which}");
        let mut child = Command::new("strace")
            .args(["-f", "-o", "trace", "-P", &wal, "-e", "trace=fdatasync,fsync", "-e", &inject])
            .args([env!("CARGO_BIN_EXE_outboxd"), "events", "append", "./app.db"])
            .args(arguments)
            .current_dir(scene.path("app.db").parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("scripts/setup installs strace");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // The file stays open, and with it the -wal.
    let app = open(&scene.path("app.db"));
    app.execute_batch("CREATE TABLE warm (n); INSERT INTO warm VALUES (1)").unwrap();
    let lines = [placed("a", "1"), placed("a", "2"), placed("a", "3")].concat();
    let (exit, error) = traced("1", &[], &lines);
    assert_eq!(exit, Some(74), "{error}");
    assert!(
        error.contains("whether anything was appended is not known") && error.contains("with the same ids"),
        "{error}"
    );
    let (exit, error) = traced("2", &["--each"], &lines);
    assert_eq!(exit, Some(74), "{error}");
    assert!(error.contains("the lines before it were appended; whether line 2 was is not known"), "{error}");
    // With the same ids it is whole, and once.
    let (exit, _, error) = run(&scene, &["append", "./app.db"], &placed("a", "1"), &[]);
    assert_eq!(exit, 0, "{error}");
    let (exit, _, error) = run(&scene, &["append", "./app.db", "--each"], &lines, &[]);
    assert_eq!((exit, events(&scene)), (0, 3), "{error}");
}

#[test]
fn what_cannot_be_used_has_its_exit_code() {
    let scene = Scene::new(&[SHOP, OTHER, &file("lines"), &relay("lines", "")].concat());
    let code = |arguments: &[&str]| run(&scene, arguments, "", &[]);
    let is = |arguments: &[&str], exit: i32, told: &str| {
        let (code, _, error) = code(arguments);
        assert_eq!(code, exit, "{arguments:?}: {error}");
        assert!(error.contains(told), "{arguments:?}: {error}");
    };
    is(&["streams", "nobody"], 64, "there is no source nobody");
    is(&["streams", "other"], 64, "is not read as outboxd's own tables");
    is(&["streams", "./absent.db"], 69, "outboxd init ./absent.db");
    is(&["append", "./outboxd.toml"], 65, "is no SQLite database");
    is(&["tail", "./app.db", "--after", "-1"], 64, "");
    is(&["append", "./app.db", "--expected", "3"], 64, "--stream");
    is(&["append", "./app.db", "--each", "--stream", "a", "--expected", "3"], 64, "cannot be used with");
    // A lock that is not given back in time.
    let app = open(&scene.path("app.db"));
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (exit, _, error) = run(&scene, &["append", "./app.db", "--wait", "50ms"], &placed("a", "1"), &[]);
    assert_eq!((exit, error.contains("nothing was appended")), (75, true), "{error}");
}

#[test]
fn tail_wakes_on_a_commit_and_rests_in_between() {
    let scene = Scene::new("");
    run(&scene, &["append", "./app.db"], &placed("a", "1"), &[]);
    let mut child = command(&scene, &["tail", "./app.db", "--after", "0", "--json", "--count", "22"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["id"], "1");
    archive(&open(&scene.path("app.db")), "a", 0);
    let app = open(&scene.path("app.db"));
    let mut waits = Vec::new();
    for n in 2..=21 {
        let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES (?1, 'a', 'Order', ?1, 'T', '{}')";
        app.execute(sql, [n]).unwrap();
        let committed = Instant::now();
        assert_eq!(next()["version"], n);
        waits.push(committed.elapsed());
    }
    waits.sort_unstable();
    println!("from commit to line: {:?} at the median", waits[waits.len() / 2]);
    // The poll alone would take 125 ms.
    assert!(waits[waits.len() / 2] < Duration::from_millis(60), "{waits:?}");
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_secs(1));
    assert!(cpu() - before <= 5, "at rest it used {} ticks a second", cpu() - before);
    app.execute("INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('z', 'a', 'Order', 22, 'T', '{}')", []).unwrap();
    assert_eq!(next()["id"], "z");
    assert!(child.wait().unwrap().success());
    let (exit, printed, _) = run(&scene, &["tail", "./app.db", "--after", "20", "--no-follow"], "", &[]);
    assert_eq!((exit, printed.lines().count()), (0, 2));
    assert!(printed.starts_with("21  20") && printed.contains("  a/21  T  {}\n"), "{printed}");
}

/// A reader that goes away ends it.
#[test]
fn tail_ends_when_nobody_reads() {
    let scene = Scene::new("");
    run(&scene, &["append", "./app.db"], &placed("a", "1"), &[]);
    let mut child = command(&scene, &["tail", "./app.db", "--after", "0"]).spawn().unwrap();
    let mut line = String::new();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut line).unwrap();
    drop(reader);
    run(&scene, &["append", "./app.db"], &placed("a", "2"), &[]);
    assert!(child.wait().unwrap().success());
}

/// The examples of docs/EVENTS.md, one after the other in one folder: what the document says they print, they print.
#[test]
fn the_document_says_what_happens() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/EVENTS.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = std::path::Path::new(env!("CARGO_BIN_EXE_outboxd")).parent().unwrap();
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let mut printed = String::new();
    let mut examples = 0;
    for block in document.split("```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        match language {
            "sh" => {
                let shell =
                    Command::new("sh").args(["-c", text]).current_dir(folder.path()).env("PATH", &path).output();
                let Output { stdout, stderr, .. } = shell.unwrap();
                printed = String::from_utf8([stdout, stderr].concat()).unwrap();
                examples += 1;
            }
            "text" => assert_eq!(printed, text),
            "rust" => assert!(include_str!("document.rs").contains(text.trim()), "the example is that of the test"),
            _ => {}
        }
    }
    assert!(examples >= 4, "{examples} examples");
}
