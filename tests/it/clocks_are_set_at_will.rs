//! The clock on the wall is set while the daemon runs (libfaketime): by an hour, by ten years, to a standstill, through a change of
//! summer time. Retries come when they were due, lag is never negative, nothing spins, and the service manager hears of it all the while.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::application::Application;
use crate::support::manager::Manager;
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::wait;

const CONFIG: &str = "
[daemon]
admin = \"127.0.0.1:0\"
[sources.shop]
path = \"app.db\"
preset = \"outboxd\"
read = \"outbox\"
[sinks.lines]
type = \"file\"
path = \"lines.ndjson\"
[relays.r]
source = \"shop\"
sink = \"lines\"
start = \"first\"
attempts_max = 9
";

/// How the clock is set, as libfaketime reads it, one after the other.
const SETTINGS: [(&str, &str); 6] = [
    ("an hour back", "-3600"),
    ("an hour on", "+3600"),
    ("ten years on", "+10y"),
    ("back again, and it stands still", "2026-11-21 03:00:00"),
    ("summer time ends in five seconds", "@2026-10-25 02:59:55"),
    ("summer time begins in five seconds", "@2027-03-28 01:59:55"),
];

/// A retry that has not come by now waits for the clock: the next thing to come would be an hour away.
const STALLED: Duration = Duration::from_secs(30);
/// Linux's USER_HZ, wherever Rust runs.
const TICKS_PER_SECOND: f64 = 100.0;

pub fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// A daemon whose clock is what stands in a file.
pub struct Clock {
    library: String,
    file: PathBuf,
    pub notify: PathBuf,
    zone: &'static str,
}

impl Clock {
    pub fn of(library: &Path, scene: &Scene, zone: &'static str) -> Self {
        let library = library.to_str().unwrap().to_owned();
        Self { library, file: scene.path("clock"), notify: scene.path("notify"), zone }
    }

    pub fn set(&self, to: &str) {
        // In one step: it is read while it is written.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, format!("{to}\n")).unwrap();
        std::fs::rename(&fresh, &self.file).unwrap();
    }

    pub fn start(&self, scene: &Scene) -> Daemon {
        scene.daemon_with(&[
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("TZ", self.zone),
            ("NOTIFY_SOCKET", self.notify.to_str().unwrap()),
            ("WATCHDOG_USEC", "1500000"),
        ])
    }
}

/// Of one CPU, in seconds.
fn cpu(daemon: &Daemon) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<u64> =
        stat.rsplit(") ").next().unwrap().split(' ').filter_map(|field| field.parse().ok()).collect();
    // The state letter is no number: utime and stime are the 11th and 12th of the rest.
    (fields[10] + fields[11]) as f64 / TICKS_PER_SECOND
}

/// How often the event was tried; `None` while the disk is so busy that nobody answers.
fn attempts(daemon: &Daemon, id: &str) -> Option<u64> {
    let answer = daemon.ask(&json!({ "command": "dead-letters", "action": "list", "limit": 1000 }))?;
    let letters = answer["dead_letters"].as_array()?;
    Some(letters.iter().find(|letter| letter["id"] == id).map_or(0, |letter| letter["attempts"].as_u64().unwrap()))
}

/// What holds at any time.
fn look(daemon: &Daemon) {
    let status = daemon.status("r").expect("it answers");
    for figure in ["lag_seconds", "held_oldest_seconds"] {
        assert!(status[figure].as_f64().unwrap() >= 0.0, "{figure}: {status}");
    }
    assert_eq!(daemon.get("/livez").0, 200, "it lives");
    let lag = daemon.metric("outboxd_lag_seconds{consumer=\"r\"}").unwrap();
    assert!(lag >= 0.0, "{lag}");
}

/// Waits for the attempt, and says how long that took.
fn comes(daemon: &Daemon, id: &str, attempt: u64, within: Duration) -> Duration {
    let began = Instant::now();
    let come = wait::within(within, || {
        look(daemon);
        (attempts(daemon, id) >= Some(attempt)).then(|| began.elapsed())
    });
    come.unwrap_or_else(|| panic!("attempt {attempt} of {id} did not come within {within:?}\n{}", daemon.log_tail()))
}

/// An event that is refused again and again: its stream's type is no text.
fn poison(application: &rusqlite::Connection, id: &str, time: &str) {
    let sql = "INSERT INTO outbox (id, key, stream_type, type, time) VALUES (?1, ?1, CAST(x'ff' AS TEXT), 'T', ?2)";
    application.execute(sql, [id, time]).unwrap();
}

#[test]
fn retries_lag_and_watchdog_go_by_a_clock_that_nobody_sets() {
    let _machine = shared_machine();
    let Some(library) = library() else {
        Proof::of("clocks").not_run("libfaketime is not installed (scripts/setup installs it)");
        return;
    };
    let scene = Scene::new(CONFIG);
    let clock = Clock::of(&library, &scene, "Europe/Zurich");
    let mut manager = Manager::at(&clock.notify);
    clock.set("+0");
    let mut daemon = clock.start(&scene);
    let mut application = Application::open(&scene.path("app.db"), 5);
    let inserts = rusqlite::Connection::open(scene.path("app.db")).unwrap();
    inserts.busy_timeout(Duration::from_secs(5)).unwrap();
    // What the application says about the time is its own affair.
    for (n, time) in ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "half past nine", "", "-1"].iter().enumerate() {
        let sql = "INSERT INTO outbox (id, type, payload, time) VALUES (?1, 'T', '1', ?2)";
        inserts.execute(sql, [&format!("time-{n}"), *time]).unwrap();
    }
    daemon.until("r", "settled", Duration::from_secs(20), |status| status["position"] == 5);
    look(&daemon);
    let (mut delivered, mut hottest, mut latest) = (5, 0.0_f64, Duration::ZERO);
    for (n, (what, to)) in SETTINGS.into_iter().enumerate() {
        let id = format!("poison-{n}");
        poison(&inserts, &id, "2026-11-21T02:43:00Z");
        comes(&daemon, &id, 1, STALLED);
        let first = Instant::now();
        clock.set(to);
        println!("{what}");
        // 1 to 1.25 s after the first attempt, and 4 to 5 s after the second: not sooner, and not an hour later.
        comes(&daemon, &id, 2, STALLED);
        let second = first.elapsed();
        comes(&daemon, &id, 3, STALLED);
        let third = first.elapsed() - second;
        assert!(
            second >= Duration::from_millis(700) && third >= Duration::from_millis(3500),
            "{what}: {second:?}, {third:?}"
        );
        latest = latest
            .max(second.saturating_sub(Duration::from_millis(1000)))
            .max(third.saturating_sub(Duration::from_secs(4)));
        application.write(100);
        delivered += 100;
        let status =
            daemon.until("r", "through", Duration::from_secs(10), |status| status["delivered_total"] == delivered);
        assert_eq!((&status["state"], &status["held_keys"]), (&"running".into(), &(n + 1).into()), "{what}");
        let (before, began) = (cpu(&daemon), Instant::now());
        // What was said before is heard first.
        manager.listen(Duration::from_millis(200));
        let told = manager.count("WATCHDOG=1");
        manager.listen(Duration::from_millis(1700));
        assert!(manager.count("WATCHDOG=1") >= told + 2, "{what}: the watchdog is not fed");
        hottest = hottest.max((cpu(&daemon) - before) / began.elapsed().as_secs_f64());
    }
    assert!(hottest < 0.25, "{hottest} of a CPU while nothing happens");
    // The next start finds times recorded that are hours away: each event waits no longer than its own delay.
    clock.set("+0");
    poison(&inserts, "last", "");
    comes(&daemon, "last", 1, STALLED);
    daemon.kill();
    clock.set("-86400");
    let daemon = clock.start(&scene);
    daemon_answers(&daemon);
    comes(&daemon, "last", 2, STALLED);
    assert!(!daemon.log().contains("panicked"));
    Proof::of("clocks")
        .tried("ways to set the clock", SETTINGS.len() as u64 + 1)
        .found("retries too early, stalled", 0)
        .found("latest retry", format!("{} ms", latest.as_millis()))
        .found("CPU while nothing happens", format!("{:.1} %", hottest * 100.0))
        .found("negative lag, hangs told to the watchdog", 0);
}

fn daemon_answers(daemon: &Daemon) {
    wait::until("it answers", Duration::from_secs(10), || daemon.status("r"));
}
