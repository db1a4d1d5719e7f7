//! What a projection's SQL may not do is refused before the first event: by the configuration, with its place and the reason.

use crate::support::events::{EVENTS, Shop};
use crate::support::process::Scene;

/// A projection in the source's own file, with tables of the application's all around it.
fn config(statement: &str) -> String {
    format!(
        "{EVENTS}
[projections.mine]
source = \"shop\"
path = \"read.db\"
tables = [\"mine\", \"parent\"]
schema = '''
CREATE TABLE parent (id TEXT PRIMARY KEY) STRICT;
CREATE TABLE mine (id TEXT PRIMARY KEY, n INTEGER, parent TEXT REFERENCES parent (id) ON DELETE CASCADE) STRICT;
CREATE VIEW ours AS SELECT * FROM mine;
'''
[projections.mine.on]
Placed = ['''{statement}''']

[projections.other]
source = \"shop\"
path = \"read.db\"
tables = [\"theirs\"]
reads = [\"parent\"]
schema = '''
CREATE TABLE theirs (id TEXT PRIMARY KEY, parent TEXT REFERENCES parent (id) ON DELETE CASCADE) STRICT;
CREATE VIEW window_on_theirs AS SELECT * FROM theirs;
'''
[projections.other.on]
Placed = '''INSERT INTO theirs (id) VALUES (:id)'''
"
    )
}

/// Each statement, and what has to be said of it.
const HOSTILE: [(&str, &str); 36] = [
    ("INSERT INTO mine (id, n) SELECT :id, count(*) FROM theirs", "may not read theirs"),
    ("INSERT INTO mine (id) SELECT id FROM window_on_theirs", "may not read"),
    ("UPDATE mine SET n = (SELECT max(rowid) FROM theirs)", "may not read theirs"),
    ("DELETE FROM theirs", "may not write theirs"),
    ("UPDATE theirs SET id = 1", "may not write theirs"),
    ("INSERT INTO theirs (id) VALUES (:id)", "may not write theirs"),
    // Its cascade goes through another projection's table.
    ("DELETE FROM parent WHERE id = :id", "may not read theirs"),
    ("DELETE FROM outboxd_checkpoint", "outboxd_checkpoint"),
    ("UPDATE sqlite_master SET sql = ''", "sqlite_master"),
    ("DELETE FROM sqlite_sequence", "sqlite_sequence"),
    ("INSERT INTO mine (id) SELECT sql FROM sqlite_schema", "may not read"),
    ("ATTACH 'app.db' AS app", "nothing else"),
    ("DETACH main", "nothing else"),
    ("PRAGMA journal_mode = DELETE", "nothing else"),
    ("PRAGMA writable_schema = ON", "nothing else"),
    ("INSERT INTO mine (id) SELECT name FROM pragma_table_info('theirs')", "may not read"),
    ("VACUUM INTO 'copy.db'", "changes nothing"),
    ("VACUUM", "changes nothing"),
    ("BEGIN", "nothing else"),
    ("COMMIT", "nothing else"),
    ("ROLLBACK", "nothing else"),
    ("SAVEPOINT a", "nothing else"),
    ("CREATE TABLE more (a)", "may not write sqlite_master"),
    ("CREATE TEMP TABLE more (a)", "may not write sqlite_temp_master"),
    ("CREATE TRIGGER t AFTER INSERT ON theirs BEGIN DELETE FROM mine; END", "nothing else"),
    ("CREATE VIRTUAL TABLE v USING fts5(a)", "may not write sqlite_master"),
    ("DROP TABLE mine", "may not write sqlite_master"),
    ("ALTER TABLE mine ADD COLUMN b", "nothing else"),
    ("ANALYZE", "may not write sqlite_master"),
    ("REINDEX mine", "nothing else"),
    ("INSERT INTO mine (id) SELECT load_extension('x')", "load_extension"),
    ("INSERT INTO mine (id, n) VALUES (:id, random())", "may not call random()"),
    ("SELECT 1", "changes nothing"),
    ("INSERT INTO mine (id) VALUES (:id); DELETE FROM mine", "more than one statement"),
    ("INSERT INTO mine (id) VALUES (:id) RETURNING id", "returns rows"),
    ("INSERT INTO mine (id) VALUES (?1)", "there is no value ?1"),
];

/// What a person gets wrong, and where.
const MISTAKEN: [(&str, &str); 6] = [
    ("INSERT INTO mine (id) VALUES (:streamid)", "did you mean :stream_id?"),
    ("INSERT INTO mine (id, m) VALUES (:id, 1)", "table mine has no column named m"),
    ("INSERT INTO mine (id)\nVALUE (:id)", "line 2, column 1: near \"VALUE\""),
    ("UPDATE mine SET n = :data.amount", "near \".\": syntax error"),
    ("INSERT INTO mine (id) VALUES (\"x\")", "no such column"),
    ("", "changes nothing"),
];

const GOOD: [&str; 6] = [
    "INSERT INTO mine (id, n) VALUES (:id, :data ->> 'n')",
    "INSERT INTO mine (id) WITH a(b) AS (SELECT :id) SELECT b FROM a",
    "INSERT OR IGNORE INTO mine (id) SELECT value FROM json_each(:data, '$.ids')",
    "UPDATE mine SET n = (SELECT count(*) FROM ours)",
    "DELETE FROM mine WHERE id = :stream_id",
    "INSERT INTO mine (id, n) VALUES (:id, 1) ON CONFLICT DO UPDATE SET n = n + 1 -- as ever",
];

fn check(scene: &Scene, statement: &str) -> (Option<i32>, String) {
    scene.configure(&config(statement));
    let output = scene.outboxd(&["check"]);
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn what_sql_may_not_do_is_refused_with_its_place() {
    let scene = Scene::new(&config(GOOD[0]));
    for (statement, reason) in HOSTILE.into_iter().chain(MISTAKEN) {
        let (code, text) = check(&scene, statement);
        assert_eq!(code, Some(78), "{statement}: {text}");
        assert!(text.contains(reason), "{statement}: {text}");
        assert!(text.contains("projections.mine.on.Placed") && text.contains("on Placed, statement 1"), "{text}");
    }
    for statement in GOOD {
        let (code, text) = check(&scene, statement);
        assert_eq!(code, Some(0), "{statement}: {text}");
    }
}

#[test]
fn what_a_schema_may_not_make_is_refused() {
    let scene = Scene::new(&config(GOOD[0]));
    let good = config(GOOD[0]);
    let made = "CREATE VIEW ours AS SELECT * FROM mine;";
    for (more, reason) in [
        ("CREATE TABLE more (a);", "more"),
        ("CREATE TABLE outboxd_x (a);", "outboxd_x"),
        ("CREATE TEMP TABLE mine2 (a);", "sqlite_temp_master"),
        ("CREATE VIRTUAL TABLE v USING fts5(a);", "nothing else"),
        ("DROP TABLE mine;", "nothing else"),
        ("PRAGMA user_version = 3;", "nothing else"),
        ("ATTACH 'app.db' AS a;", "nothing else"),
        ("COMMIT;", "nothing else"),
        ("CREATE TABLE;", "syntax error"),
    ] {
        scene.configure(&good.replace(made, more));
        let output = scene.outboxd(&["check"]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(78), "{more}: {text}");
        assert!(text.contains("projections.mine.schema") && text.contains(reason), "{more}: {text}");
    }
}

/// A trigger of the projection's own is part of what its statements do.
#[test]
fn a_trigger_that_writes_elsewhere_is_refused_with_the_statement() {
    let scene = Scene::new("");
    let trigger = "CREATE TRIGGER t AFTER INSERT ON mine BEGIN DELETE FROM theirs; END;";
    scene.configure(&config(GOOD[0]).replace("CREATE VIEW ours AS SELECT * FROM mine;", trigger));
    let output = scene.outboxd(&["check"]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("may not write theirs"), "{text}");
}

/// The real file decides, where what is read is not made by a projection: at `check`, and when the daemon starts.
#[test]
fn statements_are_proven_on_the_real_file() {
    let text = config("INSERT INTO mine (id, n) SELECT :id, vip FROM customers")
        .replace("tables = [\"mine\"", "reads = [\"customers\"]\ntables = [\"mine\"");
    let scene = Scene::new(&text);
    let other = crate::support::rig::open(&scene.path("read.db"));
    other.execute_batch("CREATE TABLE customers (id TEXT)").unwrap();
    let output = scene.outboxd(&["check"]);
    let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(told.contains("no such column: vip"), "{told}");
    Shop::of(&scene).happens("a", "Placed", &serde_json::json!({}));
    let mut daemon = scene.daemon();
    let status = daemon.until_state("mine", "halted", std::time::Duration::from_secs(20));
    assert!(status["detail"].as_str().unwrap().contains("no such column: vip"), "{status}");
    other.execute_batch("ALTER TABLE customers ADD COLUMN vip INTEGER").unwrap();
    daemon.until_settled("mine", 1, std::time::Duration::from_secs(20));
}

/// What the authorizer is there for: with it the statement is refused before it runs, without it another's table is empty.
#[cfg(feature = "controls")]
#[test]
fn without_the_authorizer_statements_reach_other_tables() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
    let config = config("DELETE FROM theirs").replace("[projections.mine]\n", "[projections.mine]\npaused = true\n");
    let scene = Scene::new(&config);
    Shop::of(&scene).happens("a", "Placed", &serde_json::json!({}));
    let (code, text) = (scene.outboxd(&["run"]).status.code(), scene.outboxd(&["check"]).stderr);
    assert_eq!(code, Some(78), "{}", String::from_utf8_lossy(&text));
    let mut daemon = scene.daemon_with(&without("Authorizer"));
    daemon.until_settled("other", 1, PATIENCE);
    let theirs = || {
        let sql = "SELECT count(*) FROM theirs";
        crate::support::rig::open(&scene.path("read.db")).query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(theirs(), 1);
    let resumed = daemon.ask(&serde_json::json!({ "command": "resume", "consumer": "mine" }));
    assert_eq!(resumed.unwrap()["ok"], true);
    daemon.until_settled("mine", 1, PATIENCE);
    assert_eq!(theirs(), 0);
}

#[cfg(feature = "controls")]
fn without(protection: &str) -> [(&str, &str); 1] {
    [("TURNED_OFF", protection)]
}
