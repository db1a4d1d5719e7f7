//! Vacuum into a file that takes the place of the live one: only while nobody has it open, it holds what that held, and whatever ends the run one of the two
//! stands there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use serde_json::Value;

use crate::support::dice::Dice;
use crate::support::disk::SmallDisk;
use crate::support::process::{SHOP, Scene, ended_with, refused, shared_machine, told};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::relays::{file, relay};
use crate::support::rig::open;
use crate::the_controls_fail_without_their_protection::without;

const PATIENCE: Duration = Duration::from_secs(30);
const INSIDE: &str = "state = \"inside\"\n";

fn config(inside: &str, keys: &str) -> String {
    let job = format!("\n[jobs.shrink]\ntype = \"vacuum\"\nsource = \"shop\"\nmode = \"into\"\n{keys}\n");
    [SHOP, inside, &file("lines"), &relay("lines", ""), &job].concat()
}

fn run(scene: &Scene) -> Output {
    scene.outboxd(&["job", "run", "shrink"])
}

/// Tables with every kind of number that may not change, of which most rows are gone; what was written last stands in the `-wal` alone.
fn fill(app: &Connection, rows: i64) {
    app.execute_batch(&format!(
        "PRAGMA user_version = 41; PRAGMA application_id = 42;
         CREATE TABLE IF NOT EXISTS big (n INTEGER PRIMARY KEY, b BLOB);
         CREATE TABLE IF NOT EXISTS counted (n INTEGER PRIMARY KEY AUTOINCREMENT, a);
         CREATE TABLE IF NOT EXISTS unnamed (a); CREATE INDEX IF NOT EXISTS by_a ON unnamed (a);
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) INSERT OR REPLACE INTO big SELECT n, randomblob(2000) FROM c;
         INSERT INTO counted (a) VALUES ('x'), ('y'), ('z'); DELETE FROM counted WHERE n > 1;
         INSERT INTO unnamed SELECT n FROM big WHERE n <= 50; DELETE FROM unnamed WHERE a % 3 = 0;
         DELETE FROM big WHERE n <= {rows} * 2 / 3"
    ))
    .unwrap();
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    add(app, "late", 5);
}

fn add(app: &Connection, name: &str, rows: i64) {
    for n in 0..rows {
        let sql = "INSERT INTO outbox (id, stream_id, type, payload) VALUES (?1 || '-' || ?2, 'key-' || ?2 % 5, 'Happened', 'x')";
        app.execute(sql, (name, n)).unwrap();
    }
}

/// The connection goes, and leaves what it wrote in the `-wal`, as a process that is killed does.
fn leave(connection: Connection) {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    drop(connection);
}

/// A whole file, with a `-wal` beside it, that nobody has open.
fn scene(inside: &str, keys: &str, rows: i64) -> Scene {
    let scene = Scene::new(&config(inside, keys));
    let app = open(&scene.path("app.db"));
    fill(&app, rows);
    leave(app);
    assert!(fs::metadata(scene.path("app.db-wal")).unwrap().len() > 0);
    scene
}

/// Everything that the application has in the file, with the numbers of the rows; or why it cannot be read. Looked at in a copy.
fn holds(path: &Path) -> Result<String, String> {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("copy.db");
    for end in ["", "-wal", "-journal"] {
        let from = PathBuf::from(format!("{}{end}", path.display()));
        if from.exists() {
            fs::copy(from, format!("{}{end}", copy.display())).unwrap();
        }
    }
    let copy = Connection::open(&copy).unwrap();
    let ask =
        |sql: &str| copy.query_row(sql, [], |row| row.get::<_, String>(0)).map_err(|error| format!("{sql}: {error}"));
    let whole = ask("PRAGMA integrity_check")?;
    if whole != "ok" {
        return Err(whole);
    }
    let all = [
        "SELECT count(*) || ' ' || sum(n * unicode(hex(b))) FROM big",
        "SELECT group_concat(n || a) || (SELECT group_concat(name || seq) FROM sqlite_sequence WHERE name IN ('counted', 'outbox')) FROM counted",
        "SELECT group_concat(rowid || ':' || a) FROM unnamed",
        "SELECT group_concat(position || id || stream_id || payload) FROM outbox",
        "SELECT user_version || ' ' || application_id || ' ' || page_size || ' ' || encoding FROM pragma_user_version, pragma_application_id, pragma_page_size, pragma_encoding",
        "SELECT group_concat(name || coalesce(sql, '')) FROM (SELECT * FROM sqlite_schema ORDER BY name) WHERE name NOT LIKE '%outboxd%'",
        "PRAGMA journal_mode",
    ];
    all.into_iter().map(ask).collect::<Result<Vec<_>, _>>().map(|all| all.join("\n"))
}

/// Names in the folder that begin so.
fn lying(scene: &Scene, start: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).collect()
}

fn number(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_file_is_written_anew_and_holds_what_it_held() {
    let _machine = shared_machine();
    for inside in ["", INSIDE] {
        let scene = Scene::new(&config(inside, "make_incremental = true"));
        let path = scene.path("app.db");
        let app = open(&path);
        app.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 8192; VACUUM; PRAGMA journal_mode = WAL")
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fill(&app, 1_500);
        let mut daemon = scene.daemon();
        daemon.until_settled("to_lines", 5, PATIENCE);
        leave(app);
        // The daemon has it open, and says when it runs: never by itself.
        let said = ended_with(&run(&scene), 75);
        assert!(said.contains("it takes its file alone") && said.contains("stop the daemon"), "{said}");
        let jobs: Value = serde_json::from_str(&told(&scene.outboxd(&["job", "list", "--json"]))).unwrap();
        let job = &jobs["jobs"][0];
        assert_eq!((&job["schedule"], &job["next"], &job["last"]), (&"by hand".into(), &Value::Null, &Value::Null));
        assert_eq!(daemon.stop(PATIENCE).0, Some(0));
        let (before, meta) = (holds(&path).unwrap(), fs::metadata(&path).unwrap());
        let dry = told(&scene.outboxd(&["job", "run", "shrink", "--dry-run"]));
        assert!(dry.contains("would give back ") && !dry.contains("it cannot"), "{dry}");
        assert_eq!((holds(&path).unwrap(), lying(&scene, "app.db.").len()), (before.clone(), 0));
        let said = told(&run(&scene));
        assert!(said.contains(" pages given back") && said.contains("the file of before is kept as"), "{said}");
        assert_eq!(holds(&path).unwrap(), before, "{inside:?}");
        let after = fs::metadata(&path).unwrap();
        assert_ne!(after.ino(), meta.ino());
        assert_eq!((after.mode(), after.uid(), after.gid()), (meta.mode(), meta.uid(), meta.gid()));
        assert!(after.len() < meta.len() / 2, "{} of {}", after.len(), meta.len());
        assert_eq!((number(&path, "PRAGMA freelist_count"), number(&path, "PRAGMA auto_vacuum")), (0, 2));
        // The old one is whole, and under its own name alone.
        let kept = lying(&scene, "app.db.");
        assert!(kept.len() == 1 && kept[0].to_string_lossy().contains("app.db.replaced-"), "{kept:?}");
        assert_eq!((holds(&kept[0]).unwrap(), fs::metadata(&kept[0]).unwrap().ino()), (before, meta.ino()));
        // It is recorded, and nothing is left to do.
        let jobs: Value = serde_json::from_str(&told(&scene.outboxd(&["job", "list", "--json"]))).unwrap();
        assert_eq!(jobs["jobs"][0]["last"]["result"], "done");
        assert!(told(&run(&scene)).contains("nothing to do: "));
        // The relay goes on where it was.
        let mut daemon = scene.daemon();
        let app = open(&path);
        add(&app, "next", 3);
        daemon.until_settled("to_lines", 8, PATIENCE);
        let mut arrived: Vec<String> =
            readers::lines(&scene.path("lines.ndjson")).into_iter().map(|line| line.id).collect();
        arrived.sort();
        let wanted: Vec<String> =
            (0..5).map(|n| format!("late-{n}")).chain((0..3).map(|n| format!("next-{n}"))).collect();
        assert_eq!(arrived, wanted, "each once");
    }
}

#[test]
fn a_file_that_somebody_has_open_is_not_written_anew() {
    let _machine = shared_machine();
    let scene = scene("", "", 600);
    let path = scene.path("app.db");
    let (before, inode) = (holds(&path).unwrap(), fs::metadata(&path).unwrap().ino());
    let is_untouched = || {
        assert_eq!((holds(&path).unwrap(), fs::metadata(&path).unwrap().ino()), (before.clone(), inode));
        assert!(lying(&scene, "app.db.").is_empty(), "{:?}", lying(&scene, "app.db."));
    };
    let own = format!("process {}", std::process::id());
    // By its lock, and by its descriptor alone: one that has read nothing.
    for has_read in [true, false] {
        let app = Connection::open(&path).unwrap();
        if has_read {
            app.query_row("SELECT count(*) FROM big", [], |_| Ok(())).unwrap();
        }
        let said = ended_with(&run(&scene), 75);
        assert!(said.contains(&own) && said.contains("stop it first"), "{said}");
        let dry = told(&scene.outboxd(&["job", "run", "shrink", "--dry-run"]));
        assert!(dry.contains(&format!("it cannot while {own}")), "{dry}");
        leave(app);
        is_untouched();
    }
    // A daemon whose door is gone.
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 5, PATIENCE);
    fs::remove_file(scene.path("outboxd.sock")).unwrap();
    assert_eq!(run(&scene).status.code(), Some(75));
    daemon.kill();
    is_untouched();
    // Another name, which would go on leading to the file of before.
    fs::hard_link(&path, scene.path("other.db")).unwrap();
    assert!(refused(&run(&scene)).contains("has 2 names"));
    fs::remove_file(scene.path("other.db")).unwrap();
    is_untouched();
    told(&run(&scene));
    assert_eq!(holds(&path).unwrap(), before);
}

/// Who has the file open goes on with the old one: what it commits stands in no file that anybody will read.
#[test]
fn control_without_the_look_for_holders_what_an_application_writes_is_lost() {
    let scene = scene("", "", 60);
    let path = scene.path("app.db");
    let app = open(&path);
    let said = ended_with(&scene.outboxd_with(&["job", "run", "shrink"], &without("InUse")), 75);
    assert!(
        said.contains("opened the file of before") && said.contains("END IT"),
        "what shows afterwards is still told: {said}"
    );
    add(&app, "lost", 10);
    assert_eq!(number(&path, "SELECT count(*) FROM outbox WHERE id LIKE 'lost-%'"), 0);
}

#[test]
fn a_crash_anywhere_leaves_the_old_file_or_the_one_written_anew() {
    let _machine = shared_machine();
    let mut seams = BTreeMap::<String, u64>::new();
    for inside in ["", INSIDE] {
        let prepared = scene(inside, "", 300);
        let before = holds(&prepared.path("app.db")).unwrap();
        for step in 1.. {
            let scene = Scene::without_a_file("");
            let copied = Command::new("cp").arg("-a").arg(prepared.path(".")).arg(scene.path(".")).status().unwrap();
            assert!(copied.success());
            let path = scene.path("app.db");
            let inode = fs::metadata(&path).unwrap().ino();
            let crashed = scene.outboxd_with(&["job", "run", "shrink"], &[("CRASH_AT", &step.to_string())]);
            assert_eq!(holds(&path), Ok(before.clone()), "after step {step}");
            let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
            let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
                told(&crashed);
                break;
            };
            *seams.entry(seam.to_owned()).or_default() += 1;
            // And it goes through the next time; the file of before is there, and nothing that is half.
            told(&run(&scene));
            assert_eq!(holds(&path), Ok(before.clone()), "after step {step} and another run");
            assert!(
                number(&path, "PRAGMA freelist_count") < 2 && fs::metadata(&path).unwrap().ino() != inode,
                "step {step}"
            );
            let lying = lying(&scene, "app.db.");
            let is_half =
                |path: &PathBuf| [".partial", ".swap"].iter().any(|end| path.to_string_lossy().ends_with(end));
            assert!(!lying.iter().any(is_half), "step {step}: {lying:?}");
            let is_old =
                |path: &PathBuf| fs::metadata(path).unwrap().ino() == inode && holds(path).as_ref() == Ok(&before);
            assert!(lying.iter().any(is_old), "step {step}: the old file is gone: {lying:?}");
        }
    }
    assert!(seams["Vacuum"] == 6 && seams["Restore"] >= 6 && seams["JobRun"] >= 4, "{seams:?}");
    Proof::of("crash ladder, files written anew").tried("crashes", seams.values().sum()).found("lost or half", 0);
}

/// Killed at any instant, also in the middle of the copy.
#[test]
fn a_kill_at_any_instant_leaves_one_of_the_two() {
    let _machine = shared_machine();
    let scene = scene("", "min_free = \"0 %\"", 3_000);
    let path = scene.path("app.db");
    let mut dice = Dice::thrown("kills of a vacuum into another file");
    let (mut killed, mut ended) = (0, 0);
    for _ in 0..8 {
        let app = open(&path);
        app.execute_batch(
            "INSERT OR REPLACE INTO big SELECT n - 1000, b FROM big WHERE n > 2000; DELETE FROM big WHERE n <= 2000",
        )
        .unwrap();
        leave(app);
        let before = holds(&path).unwrap();
        let after = dice.between(Duration::from_millis(1), Duration::from_millis(250));
        match scene.killed(&["job", "run", "shrink"], after) {
            true => killed += 1,
            false => ended += 1,
        }
        assert_eq!(holds(&path), Ok(before), "seed {}", dice.seed);
        lying(&scene, "app.db.replaced-").iter().for_each(|kept| fs::remove_file(kept).unwrap());
    }
    told(&run(&scene));
    Proof::of("kills of a vacuum into another file")
        .tried("killed", killed)
        .tried("ended before that", ended)
        .found("files that held something else", 0);
}

#[test]
fn a_disk_without_room_leaves_the_file_as_it_was() {
    // A file that cannot be written to its end: as much as a disk that fills up meanwhile.
    let small = scene("", "", 3_000);
    let path = small.path("app.db");
    let before = holds(&path).unwrap();
    let limited = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; exec prlimit --fsize=1000000 \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_outboxd"),
            "job",
            "run",
            "shrink",
        ])
        .current_dir(small.path("."))
        .output()
        .unwrap();
    let said = ended_with(&limited, 69);
    assert!(said.contains("cannot be copied to"), "{said}");
    assert_eq!((holds(&path).unwrap(), lying(&small, "app.db.").len()), (before, 0));
    // One that is known to be too small.
    let proof = Proof::of("a full disk under a file that is written anew");
    let disk = match SmallDisk::new(14_000) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let scene = Scene::without_a_file("");
    for end in ["", "-wal"] {
        fs::copy(format!("{}{end}", path.display()), disk.path(&format!("app.db{end}"))).unwrap();
    }
    let on_disk = format!("path = \"{}\"\nstate = \"state.db\"", disk.path("app.db").display());
    scene.configure(&config("", "").replace("path = \"app.db\"", &on_disk));
    let before = holds(&disk.path("app.db")).unwrap();
    let said = ended_with(&run(&scene), 69);
    assert!(said.contains("bytes free, and a copy and a -wal of it may need"), "{said}");
    assert_eq!(holds(&disk.path("app.db")).unwrap(), before);
    disk.grow(60_000);
    told(&run(&scene));
    assert_eq!(holds(&disk.path("app.db")).unwrap(), before);
    proof.tried("full", 2).found("files that were changed", 0);
}
