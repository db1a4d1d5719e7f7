//! A fault of a broker under load: an application that writes steadily, a relay `to_bus` that meets the fault, and a relay `to_lines`
//! of the same source that must not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::application::{Application, Row};
use super::process::{Daemon, SHOP, Scene};
use super::proof::Proof;
use super::referee::{Arrival, Entry, Ledger};
use super::relays::{file, relay};
use super::wait::throughout;

/// The state has to be seen so long after a fault.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How long the rate of the neighbour is measured, before a fault and during it.
const MEASURED: Duration = Duration::from_millis(2500);
/// A fault that was mended leaves no trace after so long.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);
/// What the neighbour must keep of its rate.
const SHARE_MIN: f64 = 0.9;

/// Goes on writing, so many events a second in even steps, until it is told to stop.
pub struct Writing {
    committed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Application>,
}

impl Writing {
    pub fn start(mut application: Application, per_second: u32, keys: usize, payload: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            const STEP: Duration = Duration::from_millis(25);
            let start = Instant::now();
            let (mut steps, mut written) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                steps += 1;
                let due = (STEP * steps).as_secs_f64() * f64::from(per_second);
                let row = |n: usize| Row { payload: vec![b'7'; payload], ..Row::of(&format!("key-{}", n % keys)) };
                let rows: Vec<_> = (written..due as usize).map(row).collect();
                written += rows.len();
                if !rows.is_empty() {
                    application.commit(&rows);
                    count.store(written as u64, Ordering::Release);
                }
                std::thread::sleep((STEP * steps).saturating_sub(start.elapsed()));
            }
            application
        });
        Self { committed, stop, thread }
    }

    /// Events that COMMIT returned for.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn stop(self) -> Application {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// How a fault has to show.
pub struct Fault {
    name: &'static str,
    /// `unavailable` or `halted`.
    state: &'static str,
    /// A word of the status' detail.
    says: &'static str,
    seen_within: Duration,
    /// It is over so long after it was mended.
    heals_within: Duration,
}

impl Fault {
    pub fn unavailable(name: &'static str, says: &'static str) -> Self {
        Self { name, state: "unavailable", says, seen_within: SEEN_WITHIN, heals_within: Duration::from_secs(10) }
    }

    /// The far side is probed every 30 s, with jitter, at the latest.
    pub fn halted(name: &'static str, says: &'static str) -> Self {
        Self { name, state: "halted", says, seen_within: SEEN_WITHIN, heals_within: Duration::from_secs(35) }
    }

    /// It can be met only so long after it was brought about.
    pub fn seen_within(self, time: Duration) -> Self {
        Self { seen_within: time, ..self }
    }

    pub fn heals_within(self, time: Duration) -> Self {
        Self { heals_within: time, ..self }
    }
}

pub struct Trial {
    #[expect(dead_code, reason = "what is in it goes with it")]
    scene: Scene,
    pub daemon: Daemon,
    per_second: u32,
    writing: Option<Writing>,
    proof: Option<Proof>,
}

impl Trial {
    /// Starts when everything flows. `bus` is the section of the sink `bus`, `more` stands in its relay.
    pub fn new(suite: &str, bus: &str, more: &str, per_second: u32) -> Self {
        let scene = Scene::new(&[SHOP, bus, &relay("bus", more), &file("lines"), &relay("lines", "")].concat());
        Self::of(suite, scene, per_second)
    }

    pub fn of(suite: &str, scene: Scene, per_second: u32) -> Self {
        let application = Application::open(&scene.path("app.db"), 50);
        let mut daemon = scene.daemon();
        let writing = Writing::start(application, per_second, 50, 200);
        for relay in ["to_bus", "to_lines"] {
            daemon.until(relay, "flowing", Duration::from_secs(20), |status| {
                status["state"] == "running" && status["position"].as_i64() > Some(0)
            });
        }
        let proof = Proof::of(suite).tried("events a second", per_second.into());
        Self { scene, daemon, per_second, writing: Some(writing), proof: Some(proof) }
    }

    /// Strikes, sees that the right state is shown in time and stays, that the neighbour flows, and that all is well once it is mended.
    pub fn suffers(&mut self, fault: &Fault, strike: impl FnOnce(), mend: impl FnOnce()) -> Value {
        let name = fault.name;
        let before = self.share(|| std::thread::sleep(MEASURED));
        strike();
        let struck = Instant::now();
        let shown = format!("{} ({})", fault.state, fault.says);
        let status = self.daemon.until("to_bus", &shown, fault.seen_within, |status| {
            status["state"] == fault.state && status["detail"].as_str().unwrap().contains(fault.says)
        });
        let seen = struck.elapsed();
        println!("{name}: {} after {seen:?}: {}", fault.state, status["detail"]);
        let during = self.share(|| {
            throughout(name, MEASURED, || {
                let status = self.daemon.status("to_bus").unwrap();
                let is_as_it_should_be = status["state"] == fault.state && status["sink_up"] == false;
                let holds_nothing = (&status["held_keys"], &status["dead_letters"]) == (&0.into(), &0.into());
                if !is_as_it_should_be || !holds_nothing {
                    println!("{name}: {status}");
                }
                is_as_it_should_be && holds_nothing
            });
        });
        assert_eq!(self.daemon.metric("outboxd_sink_up{consumer=\"to_bus\"}"), Some(0.0), "{name}");
        assert_eq!(self.daemon.metric("outboxd_sink_up{consumer=\"to_lines\"}"), Some(1.0), "{name}");
        let share = during / before;
        assert!(share >= SHARE_MIN, "{name}: the neighbour goes at {:.0} % of its rate", share * 100.0);
        mend();
        let healed = self.heals(name, fault.heals_within);
        let found = format!(
            "{} after {} ms, neighbour at {:.0} %, healed after {:.1} s",
            fault.state,
            seen.as_millis(),
            share * 100.0,
            healed.as_secs_f64()
        );
        self.note(name, &found);
        status
    }

    /// Into the record: what was tried, and how it went.
    pub fn note(&mut self, fault: &str, found: &str) {
        println!("{fault}: {found}");
        self.proof = self.proof.take().map(|proof| proof.tried(fault, 1).found(fault, found));
    }

    /// It is shown as well and acknowledges again, within the time; says when. And it catches up with what stands there now and with the next
    /// quarter of a second: how fast is the broker's matter, and the machine's.
    pub fn heals(&mut self, name: &str, within: Duration) -> Duration {
        let mended = Instant::now();
        let position = |status: &Value| status["position"].as_i64().unwrap();
        let is_well = |status: &Value| status["state"] == "running" && status["sink_up"] == true;
        let before = position(&self.daemon.status("to_bus").unwrap());
        let beyond = self.daemon.status("to_lines").unwrap()["head"].as_i64().unwrap() + i64::from(self.per_second / 4);
        self.daemon.until("to_bus", &format!("well after {name}"), within, |status| {
            is_well(status) && position(status) > before
        });
        let healed = mended.elapsed();
        self.daemon.until("to_bus", &format!("up to date after {name}"), CAUGHT_UP_WITHIN, |status| {
            is_well(status) && position(status) >= beyond
        });
        healed
    }

    /// What has been committed, and what of it `to_lines` has settled.
    fn progress(&self) -> (u64, i64) {
        let committed = self.writing.as_ref().expect("it runs").committed.load(Ordering::Acquire);
        (committed, self.daemon.status("to_lines").unwrap()["position"].as_i64().unwrap())
    }

    /// At which part of the application's rate `to_lines` goes while `meanwhile` takes its time. The application's own pace is no
    /// constant: on a busy machine it is late, and catches up.
    fn share(&self, meanwhile: impl FnOnce()) -> f64 {
        let before = self.progress();
        meanwhile();
        let after = self.progress();
        (after.1 - before.1) as f64 / (after.0 - before.0) as f64
    }

    /// Ends the load, waits for everything, sees that nothing is held; returns the application's book.
    pub fn end(mut self) -> (Ledger, Proof) {
        let application = self.writing.take().expect("it runs until here").stop();
        for relay in ["to_bus", "to_lines"] {
            self.daemon.until_settled(relay, application.head(), CAUGHT_UP_WITHIN);
        }
        assert_eq!(self.daemon.dead_letters(), Vec::<Value>::new());
        assert_eq!(self.daemon.stop(Duration::from_secs(5)).0, Some(0));
        (application.ledger, self.proof.take().expect("it is kept until here"))
    }
}

/// Where a far side has thrown away what came first: of each key, what came is the last part of the book, in order and without a hole.
pub fn the_rest_arrived(ledger: &[Entry], arrivals: &[Arrival]) {
    let book: HashMap<&str, &Entry> = ledger.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    let last = ledger.iter().map(|entry| (entry.key.as_str(), entry.number)).collect::<HashMap<_, _>>();
    let mut came: HashMap<&str, u32> = HashMap::new();
    for arrival in arrivals {
        let entry = book[arrival.id.as_str()];
        let before = came.entry(&entry.key).or_insert(entry.number - 1);
        assert!(entry.number <= *before + 1, "{} came too early: before it came number {before}", entry.id);
        *before = entry.number.max(*before);
    }
    assert_eq!(came, last, "the last of every key has come");
}
