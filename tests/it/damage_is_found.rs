//! Jobs that look whether a file is sound, and those that make its statistics anew.

use std::fs;
use std::time::Duration;

use rusqlite::Connection;

use crate::free_pages_go_back::beside_an_application;
use crate::support::process::{SHOP, Scene, ended_with, refused, shared_machine, told};
use crate::support::proof::Proof;
use crate::support::rig::open;

fn config(kind: &str, keys: &str) -> String {
    format!("{SHOP}\n[jobs.look]\ntype = \"{kind}\"\nsource = \"shop\"\n{keys}\n")
}

fn scene(keys: &str) -> (Scene, Connection) {
    let scene = Scene::new(&config("integrity", keys));
    let app = open(&scene.path("app.db"));
    app.execute_batch(
        "CREATE TABLE t (a, b); CREATE INDEX by_a ON t (a);
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) INSERT INTO t SELECT n, 'row ' || n FROM c",
    )
    .unwrap();
    (scene, app)
}

const KINDS: [(&str, &str); 4] = [
    ("", "quick_check of a copy of "),
    ("check = \"full\"", "integrity_check of a copy of "),
    ("on = \"live\"", "quick_check of "),
    ("on = \"live\"\ncheck = \"full\"", "integrity_check of "),
];

/// The file, and what lies beside it that is no business of SQLite's or outboxd's own.
fn copies(scene: &Scene) -> usize {
    let names = fs::read_dir(scene.path(".")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("integrity")).count()
}

#[test]
fn a_sound_file_is_found_so_beside_an_application() {
    let _machine = shared_machine();
    let (scene, app) = scene("");
    let mut commits = 0;
    for (keys, told_of) in KINDS {
        scene.configure(&config("integrity", keys));
        let (output, n, _) = beside_an_application(&scene, &app, Duration::from_secs(1), "look");
        let said = told(&output);
        assert!(said.contains(told_of) && said.contains("ok"), "{keys}: {said}");
        commits += n;
        assert_eq!(copies(&scene), 0);
    }
    Proof::of("integrity beside an application").tried("commits of the application", commits).found("errors", 0);
}

#[test]
fn damage_is_found_and_an_index_that_lies_by_the_full_check() {
    let (scene, app) = scene("");
    app.execute_batch(
        "CREATE TABLE s (a, b); INSERT INTO s VALUES (1, 2), (3, 4); CREATE INDEX stale ON s (a); PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX stale ON s (b)' WHERE name = 'stale'; PRAGMA writable_schema = RESET",
    )
    .unwrap();
    for (keys, _) in KINDS {
        scene.configure(&config("integrity", keys));
        match keys.contains("full") {
            true => {
                let said = refused(&scene.outboxd(&["job", "run", "look"]));
                assert!(said.contains("stale") && said.contains("REINDEX"), "{keys}: {said}");
            }
            // As its document says.
            false => drop(told(&scene.outboxd(&["job", "run", "look"]))),
        }
    }
    app.execute_batch("DROP TABLE s").unwrap();
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let page: i64 = app.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 't'", [], |row| row.get(0)).unwrap();
    drop(app);
    let mut bytes = fs::read(scene.path("app.db")).unwrap();
    let at = (page as usize - 1) * 4096;
    bytes[at..at + 4096].fill(0xa5);
    fs::write(scene.path("app.db"), &bytes).unwrap();
    for (keys, _) in KINDS {
        scene.configure(&config("integrity", keys));
        let said = refused(&scene.outboxd(&["job", "run", "look"]));
        assert!(said.contains("is damaged"), "{keys}: {said}");
        assert_eq!(copies(&scene), 0);
    }
}

#[test]
fn a_backup_in_time_counts() {
    let backup = "[jobs.nightly]\ntype = \"backup\"\nfiles = [\"app.db\"]\ntarget = \"kept\"\nevery = \"24h\"\n";
    let (scene, _app) = scene("");
    let both = |keys: &str| [config("integrity", keys), backup.to_owned()].concat();
    scene.configure(&both(""));
    let run = || told(&scene.outboxd(&["job", "run", "look"]));
    assert!(run().contains("quick_check of a copy of "), "there is none yet");
    told(&scene.outboxd(&["backup", "now"]));
    assert!(run().contains("opened and checked its copy of the file (integrity_check): it counts"));
    // One that is older than the time between two looks does not.
    let state = open(&scene.path("app.db-outboxd.db"));
    state.execute("UPDATE outboxd_job_run SET began = '2020-01-01T00:00:00.000000Z' WHERE job = 'nightly' AND result = 'done'", []).unwrap();
    assert!(run().contains("quick_check of a copy of "));
    scene.configure(&both("").replace("app.db\"]", "other.db\"]"));
    assert!(run().contains("quick_check of a copy of "), "it is another file's");
}

#[test]
fn the_copy_goes_whatever_ends_the_run() {
    let (scene, _app) = scene("check = \"full\"");
    let mut crashes = 0;
    for step in 1.. {
        let crashed = scene.outboxd_with(&["job", "run", "look"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        assert_eq!(copies(&scene), usize::from(seam == "Integrity"), "{seam}");
        crashes += 1;
    }
    assert_eq!(copies(&scene), 0);
    Proof::of("crash ladder, integrity").tried("crashes", crashes).found("copies that stayed", 0);
}

#[test]
fn the_live_file_is_looked_at_table_by_table() {
    let (scene, app) = scene("on = \"live\"");
    let said = told(&scene.outboxd(&["job", "run", "look"]));
    assert!(said.contains("tables of the live file, the longest read transaction "), "{said}");
    app.execute_batch("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 400000) INSERT INTO t SELECT n, 'row ' || n FROM c")
        .unwrap();
    scene.configure(&config("integrity", "on = \"live\"\nread_max = \"10ms\""));
    let said = ended_with(&scene.outboxd(&["job", "run", "look"]), 69);
    assert!(said.contains("; t took longer than read_max and is not checked"), "{said}");
}

#[test]
fn statistics_are_made_anew_where_they_are_out_of_date() {
    let _machine = shared_machine();
    let (scene, app) = scene("");
    scene.configure(&config("optimize", ""));
    let has = || -> bool {
        app.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1')", [], |row| row.get(0))
            .unwrap()
    };
    assert!(!has());
    let (output, commits, slowest) = beside_an_application(&scene, &app, Duration::from_secs(1), "look");
    let said = told(&output);
    assert!(said.contains(" made anew, of at most 400 rows of an index") && has(), "{said}");
    let stat: String = app.query_row("SELECT stat FROM sqlite_stat1 WHERE idx = 'by_a'", [], |row| row.get(0)).unwrap();
    assert!(stat.starts_with("20000 "), "{stat}");
    // What was written meanwhile counts once more; then nothing is written.
    told(&scene.outboxd(&["job", "run", "look"]));
    assert!(told(&scene.outboxd(&["job", "run", "look"])).contains("no statistics are out of date"));
    Proof::of("statistics beside an application")
        .tried("commits of the application", commits)
        .found("errors", 0)
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}
