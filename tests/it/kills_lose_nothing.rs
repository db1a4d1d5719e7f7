//! G1, G2, G3 against real brokers: the daemon and the broker are killed while events flow, at random instants.
//!
//! Sizes: `OUTBOXD_TEST_EVENTS`, `OUTBOXD_TEST_DAEMON_KILLS`, `OUTBOXD_TEST_BROKER_KILLS`; the seed: `OUTBOXD_TEST_SEED`. With more
//! kills there should be as many more events: they flow for as long as it storms.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{Daemon, SHOP, Scene, whole_machine};
use crate::support::proof::Proof;
use crate::support::referee::{Arrival, Entry, Judgement, Ledger, judge};
use crate::support::{readers, topology};

const KEYS: usize = 1000;
const WINDOW: usize = 10_000;
/// A sixth stands there at the start, so that the window is full from the first moment.
const BACKLOG_PART: usize = 6;
/// How long a daemon lives at most. A new idempotent Kafka producer alone takes 0.5 to 1.7 s.
const LIFE_MAX: Duration = Duration::from_millis(4000);
/// What a restart may cost while the broker is up.
const FIRST_READ_MAX: Duration = Duration::from_secs(1);
const FIRST_ACKNOWLEDGEMENT_MAX: Duration = Duration::from_secs(3);

struct Storm {
    events: usize,
    daemon_kills: u32,
    broker_kills: u32,
    dice: Dice,
}

/// One run of the daemon, from its start to its kill; in milliseconds since 1970.
#[derive(Debug)]
struct Run {
    began: i64,
    /// Events stood there from the beginning; without, there is nothing to be quick about until one is committed.
    had_work: bool,
    ended: i64,
    first_read: Option<i64>,
    first_acknowledgement: Option<i64>,
}

/// What the storm left.
struct Aftermath {
    seed: u64,
    ledger: Vec<Entry>,
    runs: Vec<Run>,
    committed_millis: Vec<i64>,
    /// From the kill of the broker until it takes events again.
    broker_away: Vec<(i64, i64)>,
    held: Vec<String>,
    took: Duration,
}

fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

impl Run {
    fn end(daemon: &Daemon, (began, had_work): (i64, bool)) -> Self {
        let log = daemon.log();
        let at = |event: &str| {
            let line = log.lines().find(|line| line.contains(event))?;
            let time = line.strip_prefix("time=")?.split_once(' ')?.0;
            Some(outboxd::clock::parse_micros(time).unwrap_or_else(|| panic!("{line}")) / 1000)
        };
        let (first_read, first_acknowledgement) = (at("event=first_read"), at("event=first_acknowledgement"));
        Self { began, had_work, ended: now_millis(), first_read, first_acknowledgement }
    }
}

impl Storm {
    fn brewing(what: &str) -> Self {
        Self {
            events: number("OUTBOXD_TEST_EVENTS").unwrap_or(210_000) as usize,
            daemon_kills: number("OUTBOXD_TEST_DAEMON_KILLS").unwrap_or(40) as u32,
            broker_kills: number("OUTBOXD_TEST_BROKER_KILLS").unwrap_or(5) as u32,
            dice: Dice::thrown(what),
        }
    }

    /// Lets it rage. `mark` makes the environment of a run from its number.
    fn over(
        mut self,
        scene: &Scene,
        broker: &Broker,
        mark: impl Fn(usize) -> Vec<(&'static str, String)>,
    ) -> Aftermath {
        let start = Instant::now();
        let mut application = Application::open(&scene.path("app.db"), KEYS);
        application.write(self.events / BACKLOG_PART);
        let blowing = LIFE_MAX / 2 * self.daemon_kills;
        let left = self.events - application.ledger.len();
        let flow = application.flow(left, left as f64 / blowing.as_secs_f64(), Dice::of(self.dice.next()));
        let mut runs = Vec::new();
        let spawn = |run: usize| {
            let variables = mark(run);
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            ((now_millis(), is_work_there(scene)), scene.daemon_with(&variables))
        };
        let (mut beginning, mut daemon) = spawn(0);
        let broker_away = std::thread::scope(|scope| {
            let mut dice = Dice::of(self.dice.next());
            let share = blowing / (self.broker_kills + 1);
            let strikes = self.broker_kills;
            let striker = scope.spawn(move || {
                let mut away = Vec::new();
                for strike in 1..=strikes {
                    let due = share * strike + dice.between(Duration::ZERO, share / 2);
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    if strike % 2 == 1 {
                        wait_for_the_thick_of_it(scene);
                    }
                    let killed = now_millis();
                    broker.run("kill", &[]);
                    std::thread::sleep(dice.between(Duration::ZERO, Duration::from_secs(1)));
                    broker.restart();
                    away.push((killed, now_millis()));
                }
                away
            });
            for kill in 0..self.daemon_kills {
                std::thread::sleep(self.dice.between(Duration::from_millis(20), LIFE_MAX));
                if kill % 2 == 1 {
                    wait_for_the_thick_of_it(scene);
                    std::thread::sleep(self.dice.between(Duration::ZERO, Duration::from_millis(20)));
                }
                daemon.kill();
                runs.push(Run::end(&daemon, beginning));
                (beginning, daemon) = spawn(runs.len());
            }
            striker.join().unwrap()
        });
        let application = flow.join().unwrap();
        daemon.until_settled("shop_to_bus", application.head(), Duration::from_secs(120));
        let held = daemon.dead_letters().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
        runs.push(Run::end(&daemon, beginning));
        let (code, _) = daemon.stop(Duration::from_secs(10));
        assert_eq!(code, Some(0));
        // The application has gone; what it wrote down is what counts.
        let committed_millis = application.committed_millis;
        let ledger = Ledger::read(&Ledger::path_of(&scene.path("app.db")));
        assert_eq!(ledger.len(), self.events);
        Aftermath { seed: self.dice.seed, ledger, committed_millis, runs, broker_away, held, took: start.elapsed() }
    }
}

/// Whether events stand behind the checkpoint.
fn is_work_there(scene: &Scene) -> bool {
    let number = |file: &str, sql: &str| {
        let connection = Connection::open_with_flags(scene.path(file), OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).ok()
    };
    number("app.db", "SELECT max(position) FROM outbox")
        > number("app.db-outboxd.db", "SELECT position FROM outboxd_checkpoint")
}

/// Until many events are in flight; not for long, because daemon or broker may be away.
fn wait_for_the_thick_of_it(scene: &Scene) {
    let deadline = Instant::now() + Duration::from_secs(2);
    let is_busy = || scene.status("shop_to_bus").is_some_and(|status| status["in_flight_events"].as_u64() > Some(500));
    while !is_busy() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Figures in ascending order.
struct Spread(Vec<u64>);

impl Spread {
    fn of(figures: impl Iterator<Item = u64>) -> Self {
        let mut figures: Vec<_> = figures.collect();
        figures.sort_unstable();
        Self(figures)
    }

    fn at(&self, part: f64) -> u64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * part).ceil() as usize).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (least, median, p90, p99, most) = (self.at(0.0), self.at(0.5), self.at(0.9), self.at(0.99), self.at(1.0));
        write!(f, "min {least}, median {median}, p90 {p90}, p99 {p99}, max {most}")
    }
}

impl Aftermath {
    fn run_at(&self, millis: i64) -> u32 {
        self.runs.partition_point(|run| run.began <= millis) as u32 - 1
    }

    /// From when on a run had something to do.
    fn work_since(&self, run: &Run) -> Option<i64> {
        let next = self.committed_millis.partition_point(|committed| *committed < run.began);
        if run.had_work { Some(run.began) } else { self.committed_millis.get(next).copied() }
    }

    /// How long the runs took that had the broker all the time until then. One that was killed before shows nothing,
    /// unless it had lived too long already.
    fn restarts(&self, most: Duration, reached: impl Fn(&Run) -> Option<i64>) -> Spread {
        let took = |run: &Run| {
            let until = reached(run).unwrap_or(run.ended);
            let is_disturbed = self.broker_away.iter().any(|away| away.0 < until && run.began < away.1);
            let took = (until - self.work_since(run)?).max(0) as u64;
            (!is_disturbed && (reached(run).is_some() || u128::from(took) > most.as_millis())).then_some(took)
        };
        Spread::of(self.runs.iter().filter_map(took))
    }

    fn judge(&self, what: &str, arrivals: &[Arrival]) {
        let judgement = judge(&self.ledger, &self.held, arrivals);
        let (events, kills, broker_kills) = (self.ledger.len(), self.runs.len() - 1, self.broker_away.len());
        println!("{what}: {events} events, {kills} kills of the daemon, {broker_kills} of the broker, {:?}", self.took);
        println!("{what}: {}", judgement.summary());
        let reads = self.restarts(FIRST_READ_MAX, |run| run.first_read);
        let acknowledgements = self.restarts(FIRST_ACKNOWLEDGEMENT_MAX, |run| run.first_acknowledgement);
        println!("{what}: ms to the first read, {} restarts: {reads}", reads.0.len());
        println!("{what}: ms to the first acknowledgement, {} restarts: {acknowledgements}", acknowledgements.0.len());
        self.check(&judgement);
        let repeated = duplicates_of_kills(&judgement, kills);
        println!("{what}: duplicates of a kill: {repeated}");
        assert!(acknowledgements.0.len() >= kills / 10, "{} restarts show what they cost", acknowledgements.0.len());
        assert!(u128::from(reads.at(0.99)) < FIRST_READ_MAX.as_millis(), "{reads}: {:?}", self.runs);
        let most = FIRST_ACKNOWLEDGEMENT_MAX.as_millis();
        assert!(u128::from(acknowledgements.at(0.99)) < most, "{acknowledgements}: {:?}", self.runs);
        let within = judgement.repeated_within_run.values().sum::<usize>();
        Proof::of(&format!("kill -9 of daemon and broker, {what}"))
            .seed(self.seed)
            .tried("events", events as u64)
            .tried("kills of the daemon", kills as u64)
            .tried("kills of the broker", broker_kills as u64)
            .found("lost", judgement.lost.len())
            .found("phantom", judgement.phantom.len())
            .found("altered", judgement.altered.len())
            .found("out of order", judgement.out_of_order.len())
            .found("duplicates", judgement.duplicates)
            .found("duplicates of a kill of the daemon", &repeated)
            .found("duplicates of all kills of the broker", within)
            .found("ms from restart to first read", format!("{reads} ({} restarts)", reads.0.len()))
            .found(
                "ms from restart to first acknowledgement",
                format!("{acknowledgements} ({} restarts)", acknowledgements.0.len()),
            );
    }

    fn check(&self, judgement: &Judgement) {
        assert!(judgement.is_clean(), "{}", judgement.summary());
        assert_eq!(self.held, Vec::<String>::new(), "an outage dead-letters nothing");
        for repeated in judgement.repeated_by_run.values() {
            assert!(*repeated <= WINDOW, "{}", judgement.summary());
        }
        let within: usize = judgement.repeated_within_run.values().sum();
        assert!(within <= WINDOW * self.broker_away.len(), "{}", judgement.summary());
    }
}

/// One figure a kill: what the run after it sent although it had arrived.
fn duplicates_of_kills(judgement: &Judgement, kills: usize) -> Spread {
    let of = |run: u32| judgement.repeated_by_run.get(&run).copied().unwrap_or_default() as u64;
    Spread::of((1..=kills as u32).map(of))
}

#[test]
fn kafka_and_the_daemon_are_killed_while_events_flow() {
    let _machine = whole_machine();
    let broker = Broker::start("kafka", &[]);
    broker.topic("shop", 6, &[]);
    let sink = format!(
        "[sinks.bus]\ntype = \"kafka\"\nbootstrap_servers = [\"{}\"]\ntopic = \"shop\"\n",
        broker.text("bootstrap")
    );
    let scene = Scene::new(&format!(
        "{SHOP}{sink}[relays.shop_to_bus]\nsource = \"shop\"\nsink = \"bus\"\nstart = \"first\"\n"
    ));
    let aftermath = Storm::brewing("kafka").over(&scene, &broker, |_| vec![]);
    let reading = Instant::now();
    let messages = readers::kafka(&broker, "shop");
    println!("kafka: {} messages read in {:?}", messages.len(), reading.elapsed());
    let arrivals: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let run = aftermath.run_at(message.at_millis);
            readers::arrival(message, run)
        })
        .collect();
    aftermath.judge("kafka", &arrivals);
}

#[test]
fn rabbitmq_and_the_daemon_are_killed_while_events_flow() {
    let _machine = whole_machine();
    let broker = Broker::start("rabbitmq", &[]);
    topology::declare(&broker, "shop", "#");
    let sink = format!(
        "[sinks.bus]\ntype = \"amqp\"\nuri = \"{}\"\nexchange = \"shop\"\nrouting_key = \"0.{{type}}\"\n",
        broker.text("uri")
    );
    let scene = Scene::new(&format!(
        "{SHOP}{sink}[relays.shop_to_bus]\nsource = \"shop\"\nsink = \"bus\"\nstart = \"first\"\n"
    ));
    // Each run marks what it sends by the routing key.
    let mark = |run: usize| vec![("OUTBOXD_SINKS__BUS__ROUTING_KEY", format!("{run}.{{type}}"))];
    let aftermath = Storm::brewing("rabbitmq").over(&scene, &broker, mark);
    let reading = Instant::now();
    let messages = readers::rabbitmq(&broker, "shop");
    println!("rabbitmq: {} messages read in {:?}", messages.len(), reading.elapsed());
    let run = |key: &str| key.split('.').next().unwrap().parse().unwrap();
    let arrivals: Vec<_> = messages
        .into_iter()
        .map(|message| {
            let run = run(&message.routing_key);
            readers::arrival(message, run)
        })
        .collect();
    aftermath.judge("rabbitmq", &arrivals);
}
