//! G6, measured: an application's commits beside a daemon that drains a backlog, and beside one that only burns as much processor time;
//! how far its `-wal` grows; and that it never meets a busy file, whatever becomes of the daemon.
//!
//! `OUTBOXD_TEST_PAIRS` (default 5), `OUTBOXD_TEST_PAIR_SECONDS` (default 4), `OUTBOXD_TEST_BACKLOG` (default 1,000,000 events read by
//! checkpoint: a side of a pair ends when they are drained), `OUTBOXD_TEST_PENDING` (default 1,000,000 rows read by row).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::fleet::Read;
use rusqlite::Connection;

use crate::support::dice::number;
use crate::support::disk::SmallDisk;
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays};
use crate::support::process::{Daemon, SHOP, Scene, shared_machine, whole_machine};
use crate::support::proof::Proof;
use crate::support::relays::{file, relay};
use crate::support::{daemon, rig};
use crate::the_controls_fail_without_their_protection::without;

const PER_SECOND: u32 = 500;
pub const ADDED_MAX: Duration = Duration::from_millis(2);
/// SQLite begins to checkpoint at 4 MB (1,000 pages), and again at each commit until it may.
const WAL_MAX: u64 = 16 << 20;
/// Where rows are marked, what we write ourselves comes on top: half a megabyte for a thousand rows.
const WAL_MARKED_MAX: u64 = 64 << 20;

/// What an application went through.
pub struct Commits {
    pub took: Vec<Duration>,
    pub refused: u32,
    pub wal_bytes: u64,
    /// For each time that the `-wal` was begun anew: how many commits had tried to checkpoint (SQLite does from 1,000 pages on).
    pub attempts: Vec<u32>,
}

impl Commits {
    pub fn p(&self, hundredth: usize) -> Duration {
        self.took[self.took.len() * hundredth / 100]
    }
}

fn outbox(path: &Path) -> Connection {
    let connection = rig::open(path);
    connection.busy_timeout(Duration::from_secs(1)).unwrap();
    connection
}

pub const OURS: &str = "INSERT INTO outbox (key, type, payload) VALUES ('k' || ?1 % 50, 'T', '{\"total\": 7}')";
const ROW: &str =
    "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
     VALUES ('n' || ?1, 'e' || ?1, 'T', 'k' || ?1 % 50, 'A', '{\"payload\": {\"n\": 1}}', '2026-11-21T03:15:20+00:00')";

/// Commits one row at a time, as many a second, in transactions that begin IMMEDIATE, as long as `goes_on`.
pub fn commits(path: &Path, sql: &str, mut goes_on: impl FnMut() -> bool) -> Commits {
    let connection = outbox(path);
    let mut insert = connection.prepare(sql).unwrap();
    let wal = PathBuf::from(format!("{}-wal", path.display()));
    let mut length = connection.prepare("PRAGMA wal_checkpoint = NOOP").unwrap();
    let mut commits = Commits { took: Vec::new(), refused: 0, wal_bytes: 0, attempts: Vec::new() };
    let began = Instant::now();
    let (mut n, mut pages_before, mut attempts) = (0, 0, 0);
    while goes_on() {
        std::thread::sleep((began + Duration::from_secs(1) / PER_SECOND * n).saturating_duration_since(Instant::now()));
        n += 1;
        let asked = Instant::now();
        let done = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
            insert.execute([i64::from(n)])?;
            connection.execute_batch("COMMIT")
        });
        match done {
            Ok(()) => commits.took.push(asked.elapsed()),
            Err(_) => commits.refused += 1,
        }
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK").unwrap();
        }
        commits.wal_bytes = commits.wal_bytes.max(std::fs::metadata(&wal).map_or(0, |meta| meta.len()));
        let pages: i64 = length.query_row([], |row| row.get(1)).unwrap();
        if pages < pages_before {
            commits.attempts.push(std::mem::take(&mut attempts));
        }
        attempts += u32::from(pages >= 1_000);
        pages_before = pages;
    }
    commits.took.sort();
    commits
}

/// Processes that burn so much of a processor, in slices of some milliseconds, and touch nothing.
pub struct Burner(Vec<Child>);

impl Burner {
    pub fn of(processors: f64) -> Self {
        let count = processors.ceil().max(1.0);
        let share = processors / count;
        let script = format!(
            "import time\nwhile True:\n    began = time.monotonic()\n    while time.monotonic() - began < 0.005 * {share}: pass\n    \
             time.sleep(0.005 * (1 - {share}))"
        );
        let spawn = |_| Command::new("python3").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        Self((0..count as u32).map(spawn).collect())
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A relay that has so many events to send.
fn with_backlog(backlog: u64) -> Scene {
    let scene = Scene::new(&[SHOP, &file("out"), &relay("out", "")].concat());
    outbox(&scene.path("app.db"))
        .execute_batch(&format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {backlog})
             INSERT INTO outbox (key, type, payload) SELECT 'k' || n % 50, 'T', '{{\"total\": 7}}' FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)"
        ))
        .unwrap();
    scene
}

/// How often the application tried to checkpoint beside a drain until its `-wal` could be begun anew, median.
fn attempts_beside_a_drain(environment: &[(&str, &str)]) -> f64 {
    let _machine = whole_machine();
    let scene = with_backlog(1_000_000);
    let mut daemon = scene.daemon_with(environment);
    daemon.until("to_out", "draining", Duration::from_secs(20), |status| status["position"].as_i64() > Some(0));
    let (mut n, mut drained) = (0, false);
    let commits = commits(&scene.path("app.db"), OURS, || {
        n += 1;
        if n % 50 == 0 {
            drained = daemon.status("to_out").unwrap()["position"].as_i64() >= Some(1_000_000);
        }
        !drained
    });
    println!("{:?} attempts in {} commits", commits.attempts, commits.took.len());
    assert!(commits.attempts.len() >= 2, "a drain beside {} commits shows nothing", commits.took.len());
    median(commits.attempts.iter().map(|attempts| f64::from(*attempts)).collect())
}

#[test]
fn its_checkpoints_come_through_beside_a_drain() {
    let attempts = attempts_beside_a_drain(&[]);
    assert!(attempts <= 2.0, "{attempts}");
}

#[test]
fn control_without_giving_way_its_checkpoints_do_not_come_through() {
    let attempts = attempts_beside_a_drain(&without("GiveWay"));
    assert!(attempts > 2.0, "{attempts}");
}

#[test]
fn a_drain_adds_next_to_nothing_to_its_commits() {
    let _machine = whole_machine();
    let backlog = number("OUTBOXD_TEST_BACKLOG").unwrap_or(1_000_000);
    let scene = with_backlog(backlog);
    let database = scene.path("app.db");
    let time = Duration::from_secs(number("OUTBOXD_TEST_PAIR_SECONDS").unwrap_or(4));
    let (mut beside, mut burnt) = (Vec::new(), Vec::new());
    let (mut refused, mut wal_bytes, mut events) = (0, 0, 0);
    let pairs = number("OUTBOXD_TEST_PAIRS").unwrap_or(5);
    for pair in 0..pairs {
        // From the first event on.
        for name in ["app.db-outboxd.db", "app.db-outboxd.db-wal", "app.db-outboxd.db-shm", "out.ndjson"] {
            let _ = std::fs::remove_file(scene.path(name));
        }
        let mut daemon = scene.daemon();
        daemon.until("to_out", "draining", Duration::from_secs(20), |status| status["position"].as_i64() > Some(0));
        let (began, cpu) = (Instant::now(), daemon.cpu());
        let (mut position, mut looked) = (0, began);
        let ours = commits(&database, OURS, || {
            if looked.elapsed() > Duration::from_millis(100) {
                looked = Instant::now();
                position = daemon.status("to_out").unwrap()["position"].as_i64().unwrap();
            }
            began.elapsed() < time && position < backlog as i64
        });
        let time = began.elapsed();
        let processors = (daemon.cpu() - cpu).as_secs_f64() / time.as_secs_f64();
        daemon.kill();
        assert!(ours.took.len() > 500, "a drain of {time:?} shows nothing");
        let burner = Burner::of(processors);
        let began = Instant::now();
        let theirs = commits(&database, OURS, || began.elapsed() < time);
        drop(burner);
        println!(
            "pair {pair}: {processors:.2} processors, {position} events; p50 {:?} and {:?}, p99 {:?} and {:?}; -wal {}",
            ours.p(50),
            theirs.p(50),
            ours.p(99),
            theirs.p(99),
            ours.wal_bytes
        );
        refused += ours.refused;
        wal_bytes = wal_bytes.max(ours.wal_bytes);
        events += position;
        beside.push(ours.p(99).as_secs_f64());
        burnt.push(theirs.p(99).as_secs_f64());
    }
    let added = median(beside.iter().zip(&burnt).map(|(ours, theirs)| ours - theirs).collect());
    let ratio = median(beside.iter().zip(&burnt).map(|(ours, theirs)| ours / theirs).collect());
    assert_eq!(refused, 0, "the application met SQLITE_BUSY");
    assert!(added <= ADDED_MAX.as_secs_f64(), "{} ms were added: {beside:?} {burnt:?}", added * 1e3);
    assert!(wal_bytes <= WAL_MAX, "the -wal grew to {wal_bytes} bytes");
    Proof::of("good neighbour: commits of the application beside a drain, and beside as much processor time")
        .tried("pairs", pairs)
        .tried("events drained meanwhile", events as u64)
        .found("added to the p99, median", format!("{:.2} ms", added * 1e3))
        .found("ratio of the p99s, median", format!("{ratio:.2}"))
        .found("p99 beside the drain, median", format!("{:.2} ms", median(beside) * 1e3))
        .found("SQLITE_BUSY", refused)
        .found("-wal at most", format!("{:.1} MB", wal_bytes as f64 / 1e6));
}

/// Commits while something happens to the daemon; nothing of it is refused, and the file stays whole.
fn commits_while(database: &Path, sql: &str, wal_max: u64, mut happens: impl FnMut()) -> Commits {
    let over = AtomicBool::new(false);
    let commits = std::thread::scope(|scope| {
        let application = scope.spawn(|| commits(database, sql, || !over.load(Ordering::Relaxed)));
        // Where it fails, the application must end, too.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut happens));
        over.store(true, Ordering::Relaxed);
        let commits = application.join().unwrap();
        happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        commits
    });
    let whole: String = outbox(database).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
    assert_eq!(commits.refused, 0, "the application met SQLITE_BUSY");
    assert!(commits.wal_bytes <= wal_max, "the -wal grew to {} bytes", commits.wal_bytes);
    commits
}

fn pass(daemon: &mut Daemon, consumer: &str) {
    daemon
        .until(consumer, "delivering", Duration::from_secs(20), |status| status["delivered_total"].as_u64() > Some(0));
}

#[test]
fn it_survives_our_kills() {
    let _machine = shared_machine();
    // By row, where we write into its file.
    let scene = Scene::without_a_file(&daemon::one_relay("app.db", "outbox"));
    let database = scene.path("app.db");
    let application = eventsource::make(&database, "g4");
    eventsource::enqueue_many(&application, 50_000, 50);
    application.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let kills = 10;
    let commits = commits_while(&database, ROW, WAL_MARKED_MAX, || {
        for _ in 0..kills {
            let mut daemon = scene.daemon();
            pass(&mut daemon, "r");
            std::thread::sleep(Duration::from_millis(200));
            daemon.kill();
        }
    });
    Proof::of("good neighbour: kill -9 of the daemon while it marks rows")
        .tried("kills", kills)
        .tried("commits of the application", commits.took.len() as u64)
        .found("SQLITE_BUSY", commits.refused)
        .found("-wal at most", format!("{:.1} MB", commits.wal_bytes as f64 / 1e6))
        .found("commit p99", format!("{:.2} ms", commits.p(99).as_secs_f64() * 1e3));
}

#[test]
fn it_survives_our_full_disk() {
    let _machine = shared_machine();
    let proof = Proof::of("good neighbour: the daemon's disk is full");
    let disk = match SmallDisk::new(2048) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let path = |name| disk.path(name).display().to_string();
    let config = [SHOP, &format!("state = \"{}\"\n", path("state.db")), &file("out"), &relay("out", "")].concat();
    let scene = Scene::new(&config.replace("out.ndjson", &path("out.ndjson")));
    let database = scene.path("app.db");
    let mut daemon = scene.daemon();
    let commits = commits_while(&database, OURS, WAL_MAX, || {
        pass(&mut daemon, "to_out");
        disk.fill();
        daemon.until("to_out", "in need of space", Duration::from_secs(20), |status| {
            status["state"] == "waiting" || status["state"] == "unavailable"
        });
        std::thread::sleep(Duration::from_secs(5));
    });
    disk.grow(65_536);
    let head = outbox(&database).query_row("SELECT max(position) FROM outbox", [], |row| row.get(0)).unwrap();
    daemon.until_settled("to_out", head, Duration::from_secs(30));
    proof
        .tried("disks filled", 1)
        .tried("commits of the application", commits.took.len() as u64)
        .found("SQLITE_BUSY", commits.refused)
        .found("-wal at most", format!("{:.1} MB", commits.wal_bytes as f64 / 1e6));
}

/// How long it took, at most, until a commit could be checkpointed: nobody reads longer from before it.
fn longest_look(path: &Path, mut goes_on: impl FnMut() -> bool) -> Duration {
    let connection = outbox(path);
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(())).unwrap();
    connection.execute_batch("CREATE TABLE IF NOT EXISTS beat (n)").unwrap();
    let mut most = Duration::ZERO;
    while goes_on() {
        connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO beat VALUES (1); COMMIT").unwrap();
        let committed = Instant::now();
        let frames = |mode: &str| -> (i64, i64) {
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            connection.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap()
        };
        let (written, _) = frames("NOOP");
        loop {
            let (there, done) = frames("PASSIVE");
            if done >= written || there < written {
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        most = most.max(committed.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_a_million_rows_pins_no_wal() {
    let pending = number("OUTBOXD_TEST_PENDING").unwrap_or(1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    application.execute_batch("PRAGMA synchronous = OFF").unwrap();
    application
        .execute_batch(&format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {pending})
             INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
             SELECT printf('%07d', n), 'e' || n, 'T', 'k' || n % 50, 'A', '{{\"payload\": {{\"n\": 1}}}}', '2026-11-21T03:15:20+00:00' FROM n;
             PRAGMA wal_checkpoint(TRUNCATE)"
        ))
        .unwrap();
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    let wanted = 60_000.min(pending as usize);
    let began = Instant::now();
    // The list is made anew once meanwhile.
    let most = tokio::task::block_in_place(|| {
        longest_look(&database, || far_side.arrivals().len() < wanted && began.elapsed() < Duration::from_secs(120))
    });
    println!("{wanted} of {pending} rows in {:?}; the -wal was pinned for {most:?} at most", began.elapsed());
    assert!(far_side.arrivals().len() >= wanted, "{:?}", relays.status("r"));
    relays.stop().await;
    assert!(most < Duration::from_millis(500), "{most:?}");
    Proof::of("good neighbour: a large backlog read by row")
        .tried("pending rows", pending)
        .found("longest time that the -wal was pinned", format!("{:.0} ms", most.as_secs_f64() * 1e3));
}
