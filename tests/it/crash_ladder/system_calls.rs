//! The real daemon is killed when it is about to make its k-th system call that changes a file or sends to a socket (counted over all its
//! threads: `tests/tools/kill_at.c`), for k = 1, 2, ... until a run is untouched: through its start, one batch of each kind, and its stop.
//! To brokers only some of them, drawn by `OUTBOXD_TEST_SEED`; `OUTBOXD_TEST_CALLS` says how many (default 12).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outboxd::source::Durability;

use super::course::{Course, named};
use super::truth::{count, is_clean_stop, look, stands_after_a_crash, stands_at_the_end};
use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers::{self, Message};
use crate::support::referee::judge;
use crate::support::relays::{amqp, kafka, relay};
use crate::support::topology;
use crate::support::wait::until;

const AT_ONCE: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// Compiled once.
fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tool = root.join("target/kill_at");
        let compiled =
            Command::new("gcc").args(["-O1", "-o"]).arg(&tool).arg(root.join("tests/tools/kill_at.c")).status();
        assert!(compiled.expect("scripts/setup has installed gcc").success());
        tool
    })
}

/// The daemon under the tool; `at` = 0 leaves it alone.
struct Struck {
    child: Child,
    report: PathBuf,
    log: PathBuf,
    /// Where in the log this one began.
    log_began: usize,
}

/// How it ended.
enum Ending {
    /// Before which call, and what that was about.
    Killed(String),
    /// By itself, after so many calls.
    Untouched(usize),
}

impl Struck {
    fn start(folder: &Path, at: usize) -> Self {
        let report = folder.join("report");
        let path = folder.join("daemon.log");
        let log = fs::File::options().create(true).append(true).open(&path).unwrap();
        let log_began = log.metadata().unwrap().len() as usize;
        let child = Command::new(tool())
            .arg(at.to_string())
            .arg(&report)
            .args([env!("CARGO_BIN_EXE_outboxd"), "-c", "outboxd.toml", "run"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, report, log: path, log_began }
    }

    /// Waits until all is done, stops it then, and says how it ended.
    fn end(mut self, mut is_done: impl FnMut() -> bool) -> Ending {
        let mut asked = false;
        let status = until("it was killed, or all is done", PATIENCE, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            // Before it listens to signals it would simply die of one; before its consumer has started, nothing would come of a stop.
            let said = |what| fs::read_to_string(&self.log).unwrap()[self.log_began..].contains(what);
            if !asked && is_done() && said("daemon_started") && said("consumer_started") {
                let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                asked = true;
            }
            None
        });
        let report = fs::read_to_string(&self.report).unwrap_or_default();
        match status.code() {
            Some(0) => Ending::Untouched(report.split(' ').next().unwrap().parse().unwrap()),
            Some(137) => Ending::Killed(report.trim().to_owned()),
            code => panic!("it ended with {code:?}: {report}"),
        }
    }
}

impl Drop for Struck {
    fn drop(&mut self) {
        // What it traces goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(course: &Course) -> String {
    let (preset, read) = if course.is_by_row() { ("eventsource-py", "outbox") } else { ("outboxd", "outbox") };
    let state = if course.source(Path::new("")).state_path() == Path::new("shop.db") { "inside" } else { "beside" };
    let durability = if course.durability == Durability::Fast { "fast" } else { "strict" };
    let start = if course.is_by_row() { "" } else { "start = \"first\"" };
    format!(
        "[sources.shop]\npath = \"shop.db\"\npreset = \"{preset}\"\nread = \"{read}\"\nstate = \"{state}\"\ndurability = \"{durability}\"\n\
         [sinks.lines]\ntype = \"file\"\npath = \"lines\"\n\
         [relays.relay]\nsource = \"shop\"\nsink = \"lines\"\nattempts_max = 1\n{start}\n"
    )
}

/// Whether all is settled, as far as can be seen yet.
fn is_done(course: &Course, folder: &Path) -> bool {
    let state = course.source(folder).state_path();
    if !state.exists() {
        return false;
    }
    let (application, state) = (look(&course.database(folder)), look(&state));
    let ready = "SELECT count(*) FROM sqlite_schema WHERE name = 'outboxd_held'";
    state.query_row(ready, [], |row| row.get::<_, i64>(0)).is_ok_and(|there| there == 1)
        && course.left(&application, &state) == 0
}

/// One k; `None` when nothing was hit.
fn rung(course: &Course, at: usize) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(course.place(folder));
    let file = folder.join("outboxd.toml");
    fs::write(&file, config(course)).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let log = || fs::read_to_string(folder.join("daemon.log")).unwrap();
    let killed = match Struck::start(folder, at).end(|| is_done(course, folder)) {
        Ending::Untouched(_) => None,
        Ending::Killed(call) => Some(call),
    };
    let what = format!("{}, killed at call {at}, {killed:?}", course.name);
    if killed.is_some() {
        stands_after_a_crash(course, folder).unwrap_or_else(|wrong| panic!("{what}: {wrong}\n{}", log()));
        let Ending::Untouched(_) = Struck::start(folder, 0).end(|| is_done(course, folder)) else { panic!("{what}") };
    }
    let found = count(course, folder);
    assert!(found.is_clean(course), "{what}: {found:?}\n{}", log());
    stands_at_the_end(course, folder).unwrap_or_else(|wrong| panic!("{what}: {wrong}\n{}", log()));
    // On a machine that is busy enough, a stop does not wait until the file can be written, and says so.
    assert!(is_clean_stop(course, folder) || log().contains("drain_unclean"), "{what}: {}", log());
    killed.map(|call| {
        let (name, subject) = call.split_once(' ').unwrap_or((&call, ""));
        match Path::new(subject) {
            path if path == folder => format!("{name} the folder"),
            path if path.is_absolute() => format!("{name} {}", path.file_name().unwrap().display()),
            _ if subject.is_empty() => name.to_owned(),
            _ => format!("{name} a socket"),
        }
    })
}

fn go_through(name: &str) {
    let course = named(name);
    let began = Instant::now();
    let (next, top) = (AtomicUsize::new(1), AtomicUsize::new(usize::MAX));
    let worker = || {
        let mut calls = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::SeqCst);
            if at > top.load(Ordering::SeqCst) {
                return calls;
            }
            match rung(course, at) {
                Some(call) => calls.push(call),
                None => drop(top.fetch_min(at, Ordering::SeqCst)),
            }
        }
    };
    let calls: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a kill did harm: see above")).collect()
    });
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    calls.iter().for_each(|call| *kinds.entry(call).or_default() += 1);
    println!("{name}: {} kills in {:?}: {kinds:?}", calls.len(), began.elapsed());
    assert!(calls.len() >= 15, "a batch has that many calls: {kinds:?}");
    assert!(kinds.keys().any(|kind| kind.contains("lines")), "the sink's file is written: {kinds:?}");
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    Proof::of(&format!("killed at the k-th system call, {}", name.trim_start_matches("batch ")))
        .tried("kills", calls.len() as u64)
        .found("at", kinds.join(", "))
        .found("lost, phantom or out of order", 0);
}

#[test]
fn nor_does_a_kill_at_any_system_call() {
    go_through("batch beside");
}

#[test]
fn nor_does_a_kill_at_any_system_call_with_the_state_inside() {
    go_through("batch inside");
}

#[test]
fn nor_does_a_kill_at_any_system_call_by_row() {
    go_through("batch by row");
}

#[test]
fn nor_does_a_kill_at_any_system_call_while_events_become_dead_letters() {
    go_through("batch with dead letters");
}

/// One batch after the other, each with a kill somewhere in it, on the same files and destination.
fn sample(what: &str, sink: &str, read: impl FnOnce() -> Vec<Message>) {
    const EVENTS: usize = 30;
    let began = Instant::now();
    let mut dice = Dice::thrown(what);
    let scene = Scene::new(&[SHOP, sink, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 7);
    let folder = scene.path("");
    let settled = |head: i64| {
        let state = look(&scene.path("app.db-outboxd.db"));
        let sql = "SELECT max(position) FROM outboxd_checkpoint";
        state.query_row(sql, [], |row| row.get::<_, i64>(0)).is_ok_and(|position| position >= head)
    };
    let run = |application: &mut Application, at| {
        application.write(EVENTS);
        let head = application.head();
        Struck::start(&folder, at).end(|| settled(head))
    };
    let mut calls = 0;
    // The first one makes files; the second is as all that follow.
    for _ in 0..2 {
        let Ending::Untouched(count) = run(&mut application, 0) else { panic!("nobody killed it") };
        calls = count;
    }
    let wanted = number("OUTBOXD_TEST_CALLS").unwrap_or(12);
    let mut hits = Vec::new();
    for _ in 0..wanted {
        let at = 1 + dice.below(calls as u64) as usize;
        if let Ending::Killed(call) = run(&mut application, at) {
            hits.push(call.split(' ').next().unwrap().to_owned());
        }
    }
    let Ending::Untouched(_) = run(&mut application, 0) else { panic!("nobody killed it") };
    let judgement = judge(&application.ledger, &[], &readers::arrivals(read()));
    println!("{what}: {} of {wanted} hit, {hits:?}, in {:?}: {}", hits.len(), began.elapsed(), judgement.summary());
    assert!(judgement.is_clean(), "{}", judgement.summary());
    // What is unsettled is sent again: at most all that was written since the first kill, each time.
    assert!(judgement.duplicates <= EVENTS * hits.len() * (hits.len() + 1) / 2, "{}", judgement.summary());
    assert!(hits.len() as u64 * 2 >= wanted, "most of them hit: {hits:?}");
    Proof::of(&format!("killed at the k-th system call, {what}"))
        .seed(dice.seed)
        .tried("kills", hits.len() as u64)
        .found("of so many calls", calls)
        .found("lost, phantom or out of order", 0)
        .found("duplicates", judgement.duplicates);
}

#[test]
fn nor_does_a_kill_at_some_system_calls_with_kafka() {
    let _machine = shared_machine();
    let (broker, name) = (Broker::kafka(), unique("calls"));
    broker.topic(&name, 3, &[]);
    sample("Kafka", &kafka("bus", &broker.text("bootstrap"), &name, ""), || readers::kafka(broker, &name));
}

#[test]
fn nor_does_a_kill_at_some_system_calls_with_rabbitmq() {
    let _machine = shared_machine();
    let (broker, name) = (Broker::rabbitmq(), unique("calls"));
    topology::declare(broker, &name, "#");
    let sink = amqp("bus", &broker.text("uri"), &name, "{type}", "");
    sample("RabbitMQ", &sink, || readers::rabbitmq(broker, &name));
}
