//! Backups of files that cross SQLite's lock page, and of files whose application is at work; and what `cp` makes of such a file.
//!
//! `OUTBOXD_TEST_BACKUP_PAIRS` (default 5).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::dice::number;
use crate::support::process::{SHOP, Scene, shared_machine, told, whole_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::the_application_hardly_notices::{ADDED_MAX, Burner, OURS, commits, median};

fn nightly() -> String {
    [SHOP, "\n[jobs.nightly]\ntype = \"backup\"\nfiles = [\"app.db\"]\ntarget = \"kept\"\nschedule = \"0 3 * * *\"\nkeep = { daily = 1 }\n"]
        .concat()
}

fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The byte at which SQLite's locks lie: its page holds nothing.
const LOCK_BYTE: u64 = 1 << 30;

#[test]
fn a_file_that_crosses_the_lock_page_is_backed_up_verified_and_restored() {
    let _machine = shared_machine();
    let proof = Proof::of("a backup of more than 1 GiB");
    let scene = Scene::new(&nightly());
    // The file, its copy, and the file that is restored.
    let stat = rustix::fs::statvfs(scene.path("")).unwrap();
    if stat.f_bavail * stat.f_frsize < 5 << 30 {
        return drop(proof.not_run("the folder for temporary files has less than 5 GiB free"));
    }
    let application = open(&scene.path("app.db"));
    application
        .execute_batch(
            "PRAGMA synchronous = OFF; CREATE TABLE large (n INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1040) INSERT INTO large SELECT n, zeroblob(1 << 20) FROM n;
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20) INSERT INTO large SELECT 2000 + n, randomblob(100000) FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    let sums = "SELECT count(*) || ' ' || sum(length(body)) || ' ' || (SELECT group_concat(hex(substr(body, 50000, 20))) FROM large WHERE n > 2000) FROM large";
    let before = text(&application, sums);
    drop(application);
    let bytes = std::fs::metadata(scene.path("app.db")).unwrap().len();
    assert!(bytes > LOCK_BYTE + (16 << 20), "{bytes}");
    let began = Instant::now();
    told(&scene.outboxd(&["backup", "now"]));
    let backed_up = began.elapsed();
    let said = told(&scene.outboxd(&["backup", "verify"]));
    assert!(said.contains("unpacked, opened and checked"), "{said}");
    let verified = began.elapsed() - backed_up;
    std::fs::remove_file(scene.path("app.db")).unwrap();
    told(&scene.outboxd(&["restore", "--force", "--yes"]));
    let restored = open(&scene.path("app.db"));
    assert_eq!(text(&restored, sums), before);
    println!("{bytes} bytes: {backed_up:?} to back up, {verified:?} to verify, {:?} in all", began.elapsed());
    proof
        .tried("MiB", bytes >> 20)
        .found("backed up in", format!("{:.1} s", backed_up.as_secs_f64()))
        .found("unpacked and checked in", format!("{:.1} s", verified.as_secs_f64()));
}

/// Processor time of a process so far.
fn cpu(child: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    let Some(at) = stat.rfind(')') else { return Duration::ZERO };
    let fields: Vec<&str> = stat[at + 2..].split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

#[test]
fn a_backup_adds_next_to_nothing_to_an_applications_commits() {
    let _machine = whole_machine();
    let scene = Scene::new(&nightly());
    let path = scene.path("app.db");
    let application = open(&path);
    application
        .execute_batch(
            "CREATE TABLE ballast (n INTEGER PRIMARY KEY, body BLOB);
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 64000) INSERT INTO ballast SELECT n, randomblob(1500) FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    let pairs = number("OUTBOXD_TEST_BACKUP_PAIRS").unwrap_or(5);
    let (mut added, mut refused, mut wal_bytes, mut backed_up) = (Vec::new(), 0, 0, Duration::ZERO);
    for pair in 0..pairs {
        let mut backup = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        let backup = backup.args(["backup", "now"]).current_dir(scene.path("")).stdout(Stdio::null());
        let (mut backup, began) = (backup.spawn().unwrap(), Instant::now());
        let (mut used, mut looked) = (Duration::ZERO, began);
        let ours = commits(&path, OURS, || {
            if looked.elapsed() > Duration::from_millis(50) {
                looked = Instant::now();
                used = used.max(cpu(&backup));
            }
            backup.try_wait().unwrap().is_none()
        });
        let time = began.elapsed();
        assert!(backup.wait().unwrap().success());
        assert!(ours.took.len() > 300, "a backup of {time:?} shows nothing");
        let processors = used.as_secs_f64() / time.as_secs_f64();
        let burner = Burner::of(processors);
        let began = Instant::now();
        let theirs = commits(&path, OURS, || began.elapsed() < time);
        drop(burner);
        println!(
            "pair {pair}: {time:?}, {processors:.2} processors; p50 {:?} and {:?}, p99 {:?} and {:?}; -wal {}",
            ours.p(50),
            theirs.p(50),
            ours.p(99),
            theirs.p(99),
            ours.wal_bytes
        );
        added.push(ours.p(99).as_secs_f64() - theirs.p(99).as_secs_f64());
        (refused, wal_bytes, backed_up) = (refused + ours.refused, ours.wal_bytes.max(wal_bytes), backed_up + time);
    }
    let added = median(added);
    assert_eq!(refused, 0, "the application met SQLITE_BUSY");
    assert!(added <= ADDED_MAX.as_secs_f64(), "{} ms were added", added * 1e3);
    Proof::of("good neighbour: commits of the application beside a backup, and beside as much processor time")
        .tried("pairs", pairs)
        .found("added to the p99, median", format!("{:.2} ms", added * 1e3))
        .found("a backup took", format!("{:.1} s", backed_up.as_secs_f64() / pairs as f64))
        .found("SQLITE_BUSY", refused)
        .found("-wal at most", format!("{:.1} MB", wal_bytes as f64 / 1e6));
}

/// So many copies by `cp` at least, and so many at most until one is damaged.
const COPIES: (u64, u64) = (10, 200);

/// An application that changes pages all over its file, with an index, and lets SQLite checkpoint as it does by itself.
fn churn(path: &Path, is_over: &AtomicBool) {
    let connection = open(path);
    let mut change =
        connection.prepare("UPDATE parts SET code = hex(randomblob(20)), body = randomblob(500) WHERE n = ?1").unwrap();
    for n in 0_i64.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        // In no order that the file has.
        change.execute([n.wrapping_mul(7_919) % 40_000]).unwrap();
    }
}

#[test]
fn copies_by_cp_of_a_busy_file_are_damaged_and_the_damage_is_named() {
    let _machine = shared_machine();
    let scene = Scene::new(&nightly());
    let path = scene.path("app.db");
    let application = open(&path);
    application
        .execute_batch(
            "CREATE TABLE parts (n INTEGER PRIMARY KEY, code TEXT, body BLOB); CREATE INDEX parts_by_code ON parts (code);
             WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 39999)
             INSERT INTO parts SELECT n, hex(randomblob(20)), randomblob(500) FROM n; PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    let is_over = AtomicBool::new(false);
    let (mut copies, mut damaged, mut words) = (0, 0, String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&path, &is_over));
        let copied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while copies < COPIES.0 || (damaged == 0 && copies < COPIES.1) {
                let copy: PathBuf = scene.path("copy.db");
                // As it does where the file system shares no blocks.
                let mut cp = Command::new("cp");
                cp.args(["--reflink=never", "app.db", "copy.db"]).current_dir(scene.path(""));
                assert!(cp.status().unwrap().success());
                copies += 1;
                let verified = scene.outboxd(&["backup", "verify", &copy.to_string_lossy()]);
                if !verified.status.success() {
                    assert_eq!(verified.status.code(), Some(65));
                    damaged += 1;
                    words = String::from_utf8_lossy(&verified.stderr).into_owned();
                    assert!(
                        words.contains("copy.db is not sound: ") && words.contains("`outboxd backup now`"),
                        "{words}"
                    );
                }
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        copied.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!("{damaged} of {copies}; the last: {words}");
    assert!(damaged > 0, "of {copies} copies none is damaged");
    // Beside the same load, a backup is sound.
    is_over.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&path, &is_over));
        let made = scene.outboxd(&["backup", "now"]);
        is_over.store(true, Ordering::Relaxed);
        told(&made);
    });
    told(&scene.outboxd(&["backup", "verify"]));
    Proof::of("copies of a busy file by cp").tried("copies", copies).found("damaged", format!("{damaged} of {copies}"));
}
