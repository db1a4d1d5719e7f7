//! A crash at any step leaves a projection's tables, its refused events and its checkpoint as one transaction left them: all of it or nothing.
//!
//! As in `crash_ladder`, the daemon's heart runs in a process of its own, which ends itself at the n-th step; n goes up until a run is untouched.
//! After every crash, and at the end, each event is looked for: it counts once, at its place in its stream, or stands among the held, or is still
//! to come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outboxd::config;
use outboxd::consumer::Settings;
use outboxd::consumer::control::{Command, Operation};
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;
use outboxd::controls::{self, Seam};
use outboxd::state::held::Selection;
use rusqlite::Connection;
use serde_json::json;

use crate::support::events::{EVENTS, Shop};
use crate::support::proof::Proof;
use crate::support::rig::{Running, open};

const FOLDER: &str = "OUTBOXD_TEST_FOLDER";
const EVENTS_COUNT: usize = 9;
const STREAMS: usize = 3;
/// These are refused until `mended` has a row: the first is then retried, the second discarded.
const HARD: [usize; 2] = [4, 8];
const PATIENCE: Duration = Duration::from_secs(20);
const AT_ONCE: usize = 2;

/// What one run is made of.
#[derive(Clone, Copy, Debug)]
struct Course {
    name: &'static str,
    file: &'static str,
    keys: &'static str,
}

const COURSES: [Course; 3] = [
    Course { name: "projection, in its own file", file: "read.db", keys: "attempts_max = 2" },
    Course { name: "projection, in the source's file", file: "app.db", keys: "attempts_max = 1" },
    Course { name: "projection that skips", file: "read.db", keys: "attempts_max = 1\non_reject = \"skip\"" },
];

impl Course {
    fn config(&self) -> String {
        format!(
            "{EVENTS}
[projections.seen]
source = \"shop\"
path = \"{}\"
batch_events = 5
{}
tables = [\"seen\", \"streams_seen\"]
reads = [\"mended\"]
schema = '''
CREATE TABLE seen (number INTEGER PRIMARY KEY, stream_id TEXT NOT NULL, version INTEGER NOT NULL, UNIQUE (stream_id, version)) STRICT;
CREATE TABLE streams_seen (stream_id TEXT PRIMARY KEY, events INTEGER NOT NULL) STRICT;
'''
[projections.seen.on]
\"*\" = [
    '''INSERT INTO seen (stream_id, version) VALUES (:stream_id, :version)''',
    '''INSERT INTO streams_seen VALUES (:stream_id, 1) ON CONFLICT DO UPDATE SET events = events + 1''',
]
Hard = [
    '''INSERT INTO streams_seen VALUES (:stream_id, 100) ON CONFLICT DO UPDATE SET events = events + 100''',
    '''UPDATE streams_seen SET events = events - (SELECT 100 FROM mended) WHERE stream_id = :stream_id''',
]
",
            self.file, self.keys
        )
    }

    fn place(&self, folder: &Path) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(outboxd::store::init(&folder.join("app.db"))).unwrap();
        fs::write(folder.join("outboxd.toml"), self.config()).unwrap();
        open(&folder.join(self.file)).execute_batch("CREATE TABLE mended (a INTEGER)").unwrap();
        let shop = Shop::open(&folder.join("app.db"));
        for n in 0..EVENTS_COUNT {
            let kind = if HARD.contains(&n) { "Hard" } else { "Counted" };
            shop.happens(&format!("s{}", n % STREAMS), kind, &json!({}));
        }
    }

    fn skips(&self) -> bool {
        self.keys.contains("skip")
    }

    /// What the file tells must be the work of whole transactions.
    fn stands(&self, folder: &Path, is_end: bool) -> Result<(), String> {
        let file = open(&folder.join(self.file));
        let made: i64 = one(&file, "SELECT count(*) FROM sqlite_schema WHERE name IN ('seen', 'outboxd_checkpoint')");
        let tables: i64 = one(&file, "SELECT count(*) FROM sqlite_schema WHERE name = 'seen'");
        if made < 2 || tables == 0 {
            return if is_end { Err("nothing was made".into()) } else { Ok(()) };
        }
        let position: i64 = one(&file, "SELECT coalesce((SELECT position FROM outboxd_checkpoint), -1)");
        if position < 0 {
            return Err("the tables are there, and no checkpoint".into());
        }
        let seen = pairs(&file, "SELECT stream_id, version FROM seen ORDER BY number");
        let held = ids(&file, "SELECT event_id FROM outboxd_held");
        let discarded = ids(&file, "SELECT event_id FROM outboxd_resolution WHERE action = 'discard'");
        for n in 0..EVENTS_COUNT {
            let (stream, version) = (format!("s{}", n % STREAMS), (n / STREAMS + 1) as i64);
            let id = format!("{stream}-{version}");
            let counted = seen.iter().filter(|pair| **pair == (stream.clone(), version)).count();
            let stands = counted + usize::from(held.contains(&id)) + usize::from(discarded.contains(&id));
            let wanted = usize::from((n as i64) < position);
            if stands != wanted {
                return Err(format!("{id} stands {stands} times at checkpoint {position}: {seen:?}, held {held:?}"));
            }
        }
        let differs = "SELECT count(*) FROM streams_seen s WHERE events <> (SELECT count(*) FROM seen WHERE stream_id = s.stream_id)";
        if one(&file, differs) != 0 {
            return Err("an event's statements took effect in part".into());
        }
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for (stream, version) in &seen {
            let before = last.insert(stream, *version).unwrap_or(0);
            if before > *version && !self.skips() {
                return Err(format!("{stream}: {version} came behind {before}"));
            }
        }
        if is_end && (position != EVENTS_COUNT as i64 || !held.is_empty() || seen.len() != EVENTS_COUNT - 1) {
            return Err(format!("not at its end: {position}, held {held:?}, {} seen", seen.len()));
        }
        Ok(())
    }
}

fn one(file: &Connection, sql: &str) -> i64 {
    file.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn ids(file: &Connection, sql: &str) -> Vec<String> {
    file.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn pairs(file: &Connection, sql: &str) -> Vec<(String, i64)> {
    let mut statement = file.prepare(sql).unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

/// The other process. Not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn child() {
    let folder = std::env::var(FOLDER).expect("the others say it");
    let folder = Path::new(&folder);
    controls::obey_environment();
    let config = config::load_with(&folder.join("outboxd.toml"), Vec::new()).unwrap().config;
    let file = config.projections[0].destination.tables().unwrap().path.clone();
    let mut consumers: Vec<Settings> = config.consumers().cloned().collect();
    consumers[0].bounds.retry_min = Duration::from_millis(1);
    let running = Running::start(&config.sources, consumers, WhenLocked::Wait);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = running.status("seen");
        let over = status.position == EVENTS_COUNT as i64 && operate(&running, &file).await;
        assert!(status.state != State::Halted, "{}", status.detail);
        assert!(Instant::now() < deadline, "{status:?}");
        if over {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.drain().await;
    let reached = Seam::ALL.iter().filter(|seam| controls::reached(**seam) > 0).map(|seam| format!("{seam:?}"));
    fs::write(folder.join("reached"), reached.collect::<Vec<_>>().join(" ")).unwrap();
}

/// When both are dead letters, what they want is brought; then the first is retried and the second discarded. Says whether all is done.
async fn operate(running: &Running, file: &Path) -> bool {
    let state = open(file);
    let dead = ids(&state, "SELECT event_id FROM outboxd_held WHERE state IN ('dead', 'skipped')");
    if dead.len() == HARD.len() && one(&state, "SELECT count(*) FROM mended") == 0 {
        state.execute_batch("INSERT INTO mended VALUES (1)").unwrap();
    }
    if one(&state, "SELECT count(*) FROM mended") == 0 {
        return false;
    }
    for id in dead {
        let is_first = id == format!("s{}-{}", HARD[0] % STREAMS, HARD[0] / STREAMS + 1);
        let selection = Selection { id: Some(id), ..Selection::default() };
        let reason = "the ladder's".to_owned();
        let operation = if is_first { Operation::Retry(selection) } else { Operation::Discard { selection, reason } };
        running.handle("seen").ask(|reply| Command::Operate(operation, reply)).await.unwrap();
    }
    one(&state, "SELECT count(*) FROM outboxd_held") == 0
}

fn run(folder: &Path, variables: &[(&str, String)]) -> bool {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args(["--exact", "projection_ladder::child", "--ignored", "--quiet", "--nocapture"]);
    process.env(FOLDER, folder).envs(variables.iter().cloned());
    process.stdout(Stdio::null()).stderr(fs::File::create(folder.join("said")).unwrap());
    process.status().unwrap().success()
}

/// The seam at which it crashed; of an untouched run, those that it came by.
fn rung(course: &Course, step: usize) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    course.place(folder);
    let said = || fs::read_to_string(folder.join("said")).unwrap();
    let mut seam = None;
    if !run(folder, &[("CRASH_AT", step.to_string())]) {
        let crashed = said().lines().find_map(|line| line.strip_prefix("crashed at ").map(str::to_owned));
        let crashed = crashed.unwrap_or_else(|| panic!("{course:?}, step {step}: it ended by itself: {}", said()));
        course.stands(folder, false).unwrap_or_else(|wrong| panic!("{course:?}, step {step}, {crashed}: {wrong}"));
        assert!(run(folder, &[]), "{course:?}, step {step}, {crashed}: the run after it fails: {}", said());
        seam = Some(crashed);
    }
    course.stands(folder, true).unwrap_or_else(|wrong| panic!("{course:?}, step {step}, {seam:?}: {wrong}"));
    seam.ok_or_else(|| fs::read_to_string(folder.join("reached")).unwrap())
}

fn climb(course: &Course) {
    let (next, top) = (AtomicUsize::new(1), AtomicUsize::new(usize::MAX));
    let climber = || {
        let (mut seams, mut reached) = (Vec::new(), String::new());
        loop {
            let step = next.fetch_add(1, Ordering::SeqCst);
            if step > top.load(Ordering::SeqCst) {
                return (seams, reached);
            }
            match rung(course, step) {
                Ok(seam) => seams.push(seam),
                Err(all) => {
                    top.fetch_min(step, Ordering::SeqCst);
                    reached = all;
                }
            }
        }
    };
    let climbed: Vec<(Vec<String>, String)> = std::thread::scope(|scope| {
        let climbers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(climber)).collect();
        climbers.into_iter().map(|climber| climber.join().expect("a rung failed: see above")).collect()
    });
    let kinds: BTreeSet<&str> = climbed.iter().flat_map(|(_, reached)| reached.split_whitespace()).collect();
    let crashes: usize = climbed.iter().map(|(seams, _)| seams.len()).sum();
    for seam in ["Define", "Apply", "Commit", "Committed", "Advance", "Hold", "DeadLetter", "Release", "Unhold"] {
        assert!(kinds.contains(seam), "{course:?} does not come by {seam}: {kinds:?}");
    }
    Proof::of(&format!("crash ladder, {}", course.name))
        .tried("crashes", crashes as u64)
        .found("at", kinds.into_iter().collect::<Vec<_>>().join(" "))
        .found("counted twice, not at all, in part or out of order", 0);
}

#[test]
fn a_crash_at_any_step_leaves_a_projection_whole() {
    climb(&COURSES[0]);
}

#[test]
fn nor_does_one_in_the_sources_own_file() {
    climb(&COURSES[1]);
}

#[test]
fn nor_one_that_skips() {
    climb(&COURSES[2]);
}
