//! Backups: each is a state that was committed, opened and checked before it bears its name; whatever ends a run, or is wrong with the source, the
//! folder or an archive, the ones before stay; and what is restored is used by the real daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::application::Application;
use crate::support::disk::SmallDisk;
use crate::support::process::{SHOP, Scene, ended_with, shared_machine, told};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{file, relay};
use crate::support::rig::open;
use crate::support::trial::Writing;

/// How many backups are made of a file that is being written.
const BACKUPS: u64 = 50;

fn nightly(files: &str, more: &str) -> String {
    format!(
        "[jobs.nightly]\ntype = \"backup\"\nfiles = [{files}]\ntarget = \"kept\"\nschedule = \"0 3 * * *\"\n{more}\n"
    )
}

fn listed(scene: &Scene) -> Vec<Value> {
    let answer: Value = serde_json::from_str(&told(&scene.outboxd(&["backup", "list", "--json"]))).unwrap();
    answer["backups"].as_array().unwrap().clone()
}

fn names(scene: &Scene) -> Vec<String> {
    listed(scene).iter().map(|backup| backup["name"].as_str().unwrap().to_owned()).collect()
}

/// Everything that lies in the folder.
fn lying(scene: &Scene) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(scene.path("kept"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn unpacked(scene: &Scene, backup: &str, name: &str) -> PathBuf {
    let to = scene.path(&format!("{backup}.{name}"));
    let packed = fs::File::open(scene.path("kept").join(backup).join(format!("{name}.zst"))).unwrap();
    // By the compression's own library: nothing of ours is needed to get at a backup.
    zstd::stream::copy_decode(packed, fs::File::create(&to).unwrap()).unwrap();
    to
}

fn number(file: &Path, sql: &str) -> i64 {
    Connection::open(file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_backup_under_load_is_what_was_committed_up_to_a_moment() {
    let _machine = shared_machine();
    let keep = "keep = { daily = 1000, yearly = 1 }";
    let config =
        [SHOP, &file("lines"), &relay("lines", ""), &nightly("\"app.db\", \"app.db-outboxd.db\"", keep)].concat();
    let scene = Scene::new(&config);
    let application = Application::open(&scene.path("app.db"), 50);
    let mut daemon = scene.daemon();
    // Its state is there.
    daemon.until_state("to_lines", "running", Duration::from_secs(30));
    let writing = Writing::start(application, 1_000, 50, 200);
    let mut heads = Vec::new();
    for _ in 0..BACKUPS {
        let before = writing.committed();
        told(&scene.outboxd(&["backup", "now"]));
        let name = listed(&scene).last().unwrap()["name"].as_str().unwrap().to_owned();
        let after = writing.committed();
        let [source, state] = ["app.db", "app.db-outboxd.db"].map(|file| unpacked(&scene, &name, file));
        let rows = number(&source, "SELECT count(*) FROM outbox") as u64;
        // One transaction may be under way that is committed and not yet counted.
        assert!((before..=after + 1_000).contains(&rows), "{before} <= {rows} <= {after}");
        let wrong = "SELECT count(*) FROM outbox WHERE id != 'event-' || (position - 1)";
        assert_eq!((number(&source, wrong), number(&source, "SELECT max(position) FROM outbox")), (0, rows as i64));
        let position = number(&state, "SELECT coalesce(max(position), 0) FROM outboxd_checkpoint");
        assert!(position <= rows as i64, "no checkpoint is ahead of its source: {position} > {rows}");
        heads.push(rows);
        [source, state].iter().for_each(|path| fs::remove_file(path).unwrap());
        // All of the day but the newest are gone by the calendar, which is as good a moment as any to look at it.
        assert_eq!(names(&scene), [name]);
    }
    let application = writing.stop();
    assert!(heads.is_sorted() && heads[0] < heads[heads.len() - 1], "{heads:?}");
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    told(&scene.outboxd(&["backup", "verify"]));
    Proof::of("backups under load").tried("backups", BACKUPS).found("not a prefix of what was committed", 0);
}

#[test]
fn whatever_ends_a_run_leaves_old_backups_and_new_ones_and_nothing_half() {
    let scene = Scene::new(&[SHOP, &nightly("\"app.db\"", "keep = { daily = 0 }")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut crashes = 0;
    for step in 1.. {
        application.write(20);
        let before = names_if_any(&scene);
        let crashed = scene.outboxd_with(&["backup", "now"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        crashes += 1;
        let after = names_if_any(&scene);
        let is_new = |name: &&String| !before.contains(name);
        assert!(after.iter().filter(is_new).count() <= 1, "after step {step}, {seam}: {before:?} {after:?}");
        let went = before.iter().filter(|name| !after.contains(name)).count();
        assert!(went == 0 || after.iter().any(|name| !before.contains(name)), "one goes only behind a new one: {seam}");
        if !after.is_empty() {
            told(&scene.outboxd(&["backup", "verify"]));
        }
        told(&scene.outboxd(&["backup", "now"]));
        assert_eq!(lying(&scene), names(&scene), "nothing half is left behind step {step}, {seam}");
        assert_eq!(names(&scene).len(), 1);
    }
    assert!(crashes >= 8, "the ladder has rungs: {crashes}");
    Proof::of("crash ladder, backups").tried("crashes", crashes).found("lost or half", 0);
}

fn names_if_any(scene: &Scene) -> Vec<String> {
    if scene.path("kept").exists() { names(scene) } else { Vec::new() }
}

#[test]
fn a_run_that_fails_removes_nothing() {
    let scene = Scene::new(&[SHOP, &nightly("\"app.db\"", "keep = { daily = 0 }")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(2_000);
    told(&scene.outboxd(&["backup", "now"]));
    let before = names(&scene);
    // An index that does not say what the table says: a copy of it is as wrong.
    let app = open(&scene.path("app.db"));
    app.execute_batch(
        "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 2), (3, 4); CREATE INDEX stale ON t (a); PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX stale ON t (b)' WHERE name = 'stale'; PRAGMA writable_schema = RESET",
    )
    .unwrap();
    let stale = ended_with(&scene.outboxd(&["backup", "now"]), 65);
    assert!(stale.contains("stale") && stale.contains("REINDEX"), "{stale}");
    app.execute_batch("REINDEX").unwrap();
    told(&scene.outboxd(&["backup", "now"]));
    assert_ne!(names(&scene), before);
    // A page that is none.
    let before = names(&scene);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop((app, application));
    let bytes = fs::read(scene.path("app.db")).unwrap();
    let mut damaged = bytes.clone();
    let middle = bytes.len() / 4096 / 2 * 4096;
    damaged[middle..middle + 4096].fill(0xa5);
    fs::write(scene.path("app.db"), &damaged).unwrap();
    let said = ended_with(&scene.outboxd(&["backup", "now"]), 65);
    assert!(said.contains("damaged") || said.contains("not sound"), "{said}");
    let said = ended_with(&scene.outboxd(&["backup", "verify", &scene.path("app.db").to_string_lossy()]), 65);
    assert!(said.contains("not sound"), "{said}");
    assert_eq!(names(&scene), before);
    assert_eq!(lying(&scene), before);
    told(&scene.outboxd(&["backup", "verify"]));
}

#[test]
fn a_folder_that_others_could_write_and_links_are_refused() {
    let scene = Scene::new(&[SHOP, &nightly("\"app.db\"", "")].concat());
    fs::create_dir(scene.path("elsewhere")).unwrap();
    symlink(scene.path("elsewhere"), scene.path("kept")).unwrap();
    assert!(ended_with(&scene.outboxd(&["backup", "now"]), 65).contains("is a symbolic link"));
    fs::remove_file(scene.path("kept")).unwrap();
    fs::create_dir(scene.path("kept")).unwrap();
    fs::set_permissions(scene.path("kept"), fs::Permissions::from_mode(0o777)).unwrap();
    let said = ended_with(&scene.outboxd(&["backup", "now"]), 65);
    assert!(said.contains("chmod go-w"), "{said}");
    fs::set_permissions(scene.path("kept"), fs::Permissions::from_mode(0o750)).unwrap();
    told(&scene.outboxd(&["backup", "now"]));
    let [name] = &names(&scene)[..] else { panic!("there is one") };
    let backup = scene.path("kept").join(name);
    assert_eq!(fs::metadata(&backup).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(backup.join("app.db.zst")).unwrap().mode() & 0o777, 0o600);
    // Neither a link that bears the name of a backup, nor one inside of it.
    symlink(&backup, scene.path("kept/nightly-20200101T000000.000Z")).unwrap();
    assert_eq!(&names(&scene), &[name.as_str()]);
    fs::rename(backup.join("app.db.zst"), scene.path("elsewhere/app.db.zst")).unwrap();
    symlink(scene.path("elsewhere/app.db.zst"), backup.join("app.db.zst")).unwrap();
    ended_with(&scene.outboxd(&["backup", "verify"]), 65);
    ended_with(&scene.outboxd(&["restore", "--to", "new.db"]), 65);
    assert!(!scene.path("new.db").exists());
}

#[test]
fn an_archive_that_is_not_what_was_put_in_is_refused_and_nothing_comes_out() {
    let scene = Scene::new(&[SHOP, &nightly("\"app.db\"", "")].concat());
    Application::open(&scene.path("app.db"), 5).write(500);
    told(&scene.outboxd(&["backup", "now"]));
    let backup = scene.path("kept").join(&names(&scene)[0]);
    let (packed, manifest) = (backup.join("app.db.zst"), backup.join("manifest.json"));
    let (good, text) = (fs::read(&packed).unwrap(), fs::read_to_string(&manifest).unwrap());
    let said: Value = serde_json::from_str(&text).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut changed = said.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        changed.to_string()
    };
    let bomb = zstd::encode_all(&vec![0_u8; 300 << 20][..], 19).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let length = |bytes: &[u8]| Value::from(bytes.len());
    let trials: [(&str, Vec<u8>, String, &str); 9] = [
        ("a bit", flipped, text.clone(), ""),
        ("cut short", good[..good.len() - 9].to_vec(), text.clone(), "the manifest says"),
        (
            "more behind it",
            [&good[..], b"more"].concat(),
            with("/files/0/compressed_bytes", (good.len() + 4).into()),
            "",
        ),
        ("a bomb", bomb.clone(), with("/files/0/compressed_bytes", length(&bomb)), "more than the"),
        ("another hash", good.clone(), with("/files/0/sha256", "00".into()), "SHA-256"),
        ("other rows", good.clone(), with("/files/0/found/tables/outbox", 7.into()), "its rows are not those"),
        ("a name that leads away", good.clone(), with("/files/0/name", "../app.db".into()), "no plain name"),
        ("of the future", good.clone(), with("/format", 2.into()), "of format 2"),
        ("no manifest", good.clone(), text[..text.len() / 2].to_owned(), "it is no manifest"),
    ];
    for (what, bytes, text, says) in trials {
        fs::write(&packed, bytes).unwrap();
        fs::write(&manifest, text).unwrap();
        let said = ended_with(&scene.outboxd(&["backup", "verify"]), 65);
        assert!(said.contains(says), "{what}: {said}");
        ended_with(&scene.outboxd(&["restore", "--to", "new.db"]), 65);
        let left: Vec<_> = fs::read_dir(scene.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("new.db")), "{what}: {left:?}");
        assert_eq!(lying(&scene).len(), 1, "{what}: {:?}", lying(&scene));
    }
    fs::write(&packed, good).unwrap();
    fs::write(&manifest, text).unwrap();
    told(&scene.outboxd(&["restore", "--to", "new.db"]));
    assert_eq!(number(&scene.path("new.db"), "SELECT count(*) FROM outbox"), 500);
    Proof::of("hostile archives").tried("kinds", 9).found("taken", 0);
}

#[test]
fn a_full_disk_costs_a_run_and_no_backup() {
    let proof = Proof::of("a full disk under backups");
    let disk = match SmallDisk::new(80_000) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let target = disk.path("kept").to_string_lossy().into_owned();
    let config =
        [SHOP, &nightly("\"app.db\"", "keep = { daily = 0 }")].concat().replace("\"kept\"", &format!("\"{target}\""));
    let scene = Scene::new(&config);
    Application::open(&scene.path("app.db"), 5).write(2_000);
    told(&scene.outboxd(&["backup", "now"]));
    let before = names(&scene);
    disk.fill();
    let said = ended_with(&scene.outboxd(&["backup", "now"]), 69);
    assert!(said.contains("bytes free, and a backup may need") && said.contains("Remedy"), "{said}");
    assert_eq!(names(&scene), before);
    disk.free();
    told(&scene.outboxd(&["backup", "now"]));
    assert_ne!(names(&scene), before);
    proof.tried("full", 1).found("backups lost", 0);
}

#[test]
fn a_restored_file_is_used_and_the_relay_goes_on() {
    let inside = SHOP.replace("[sources.shop]", "[sources.shop]\nstate = \"inside\"");
    let scene =
        Scene::new(&[inside.as_str(), &file("lines"), &relay("lines", ""), &nightly("\"app.db\"", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    fs::set_permissions(scene.path("app.db"), fs::Permissions::from_mode(0o640)).unwrap();
    application.write(300);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    told(&scene.outboxd(&["backup", "now"]));
    let ledger_then = application.ledger.len();
    application.write(200);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    let name = names(&scene).pop().unwrap();

    ended_with(&scene.outboxd(&["restore", "--at", "2020-01-01T00:00:00Z"]), 65);
    ended_with(&scene.outboxd(&["restore", "--to", "app.db"]), 65);
    let said = told(&scene.outboxd(&["restore"]));
    assert!(said.contains(&name) && said.contains("to_lines goes on behind position 300"), "{said}");
    let restored = scene.path("app.db.restored");
    assert_eq!(fs::metadata(&restored).unwrap().mode() & 0o7777, 0o640);
    assert!(!scene.path("app.db.restored-wal").exists());

    let book: Vec<_> = application.ledger[..ledger_then].to_vec();
    drop(application);
    for end in ["", "-wal", "-shm"] {
        let path = scene.path(&format!("app.db{end}"));
        if path.exists() {
            fs::rename(&path, scene.path(&format!("old.db{end}"))).unwrap();
        }
    }
    fs::rename(restored, scene.path("app.db")).unwrap();
    assert_eq!(
        open(&scene.path("app.db")).query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(),
        "wal"
    );
    let app = open(&scene.path("app.db"));
    app.execute("INSERT INTO outbox (id, stream_id, type, payload) VALUES ('after', 'key-1', 'Happened', 'x')", [])
        .unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 301, Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    let mut arrivals = readers::lines(&scene.path("lines.ndjson"));
    let known: Vec<String> = book.iter().map(|entry| entry.id.clone()).collect();
    assert!(arrivals.iter().any(|arrival| arrival.id == "after"));
    arrivals.retain(|arrival| known.contains(&arrival.id));
    let judgement = judge(&book, &[], &arrivals);
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

#[test]
fn what_is_wrong_in_the_section_is_told_with_its_place() {
    let trials = [
        ("files = []", "files", "it names no file"),
        ("files = [\"app.db\", \"x/app.db\"]", "files", "by which it could stand in the backup"),
        ("target = \"ftp://bucket/x\"", "target", "knows no ftp://"),
        ("target = \"s3://bucket/x\"", "folder", "made and checked on this host"),
        ("target = \"file://kept\"", "target", "three slashes"),
        ("keep = { daily = 99999 }", "keep.daily", "out of bounds"),
        ("keep = { hourly = 1 }", "keep.hourly", "no such key"),
    ];
    for (line, place, says) in trials {
        let key = line.split(' ').next().unwrap();
        let section = nightly("\"app.db\"", "keep = {}");
        let section: String =
            section.lines().map(|old| if old.starts_with(key) { line } else { old }).collect::<Vec<_>>().join("\n");
        let scene = Scene::without_a_file(&format!("{SHOP}{section}\n"));
        let said = ended_with(&scene.outboxd(&["config", "show"]), 78);
        assert!(said.contains(&format!("jobs.nightly.{place}")) && said.contains(says), "{line}: {said}");
    }
}
