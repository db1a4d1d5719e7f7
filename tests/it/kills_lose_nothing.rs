//! G1, G2, G3 against real brokers: the daemon and the broker are killed while events flow, at random instants.
//!
//! Sizes: `OUTBOXD_TEST_EVENTS`, `OUTBOXD_TEST_DAEMON_KILLS`, `OUTBOXD_TEST_BROKER_KILLS`; the seed: `OUTBOXD_TEST_SEED`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{SHOP, Scene, whole_machine};
use crate::support::proof::Proof;
use crate::support::referee::{Arrival, Entry, judge};
use crate::support::{readers, topology};

const KEYS: usize = 1000;
const WINDOW: usize = 10_000;
/// A quarter stands there at the start, so that the window is full from the first moment.
const BACKLOG_PART: usize = 4;

struct Storm {
    events: usize,
    daemon_kills: u32,
    broker_kills: u32,
    dice: Dice,
}

/// What the storm left.
struct Aftermath {
    seed: u64,
    ledger: Vec<Entry>,
    /// When each run of the daemon began, in milliseconds since 1970.
    began_millis: Vec<i64>,
    held: Vec<String>,
    took: Duration,
}

impl Storm {
    fn brewing(what: &str) -> Self {
        Self {
            events: number("OUTBOXD_TEST_EVENTS").unwrap_or(200_000) as usize,
            daemon_kills: number("OUTBOXD_TEST_DAEMON_KILLS").unwrap_or(30) as u32,
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
        let gap_max = Duration::from_millis(4500);
        let blowing = gap_max / 2 * self.daemon_kills;
        let left = self.events - application.ledger.len();
        let flow = application.flow(left, left as f64 / blowing.as_secs_f64(), Dice::of(self.dice.next()));
        let mut began_millis = Vec::new();
        let mut spawn = || {
            let variables = mark(began_millis.len());
            began_millis.push(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64);
            scene.daemon_with(&variables.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
        };
        let mut daemon = spawn();
        std::thread::scope(|scope| {
            let mut dice = Dice::of(self.dice.next());
            let share = blowing / (self.broker_kills + 1);
            let strikes = self.broker_kills;
            scope.spawn(move || {
                for strike in 1..=strikes {
                    let due = share * strike + dice.between(Duration::ZERO, share / 2);
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    if strike % 2 == 1 {
                        wait_for_the_thick_of_it(scene);
                    }
                    broker.run("kill", &[]);
                    std::thread::sleep(dice.between(Duration::ZERO, Duration::from_secs(1)));
                    broker.restart();
                }
            });
            for kill in 0..self.daemon_kills {
                std::thread::sleep(self.dice.between(Duration::from_millis(20), gap_max));
                if kill % 2 == 1 {
                    wait_for_the_thick_of_it(scene);
                    std::thread::sleep(self.dice.between(Duration::ZERO, Duration::from_millis(20)));
                }
                daemon.kill();
                daemon = spawn();
            }
        });
        let application = flow.join().unwrap();
        daemon.until_settled("shop_to_bus", application.head(), Duration::from_secs(120));
        let held = daemon.dead_letters().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
        let (code, _) = daemon.stop(Duration::from_secs(10));
        assert_eq!(code, Some(0));
        Aftermath { seed: self.dice.seed, ledger: application.ledger, began_millis, held, took: start.elapsed() }
    }
}

/// Until many events are in flight; not for long, because daemon or broker may be away.
fn wait_for_the_thick_of_it(scene: &Scene) {
    let deadline = Instant::now() + Duration::from_secs(2);
    let is_busy = || scene.status("shop_to_bus").is_some_and(|status| status["in_flight_events"].as_u64() > Some(500));
    while !is_busy() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Aftermath {
    fn run_at(&self, millis: i64) -> u32 {
        self.began_millis.partition_point(|began| *began <= millis) as u32 - 1
    }

    fn judge(&self, what: &str, arrivals: &[Arrival], broker_kills: u32) {
        let judgement = judge(&self.ledger, &self.held, arrivals);
        let (events, kills) = (self.ledger.len(), self.began_millis.len() - 1);
        println!("{what}: {events} events, {kills} kills of the daemon, {broker_kills} of the broker, {:?}", self.took);
        println!("{what}: {}", judgement.summary());
        assert!(judgement.is_clean(), "{}", judgement.summary());
        assert_eq!(self.held, Vec::<String>::new(), "an outage dead-letters nothing");
        for repeated in judgement.repeated_by_run.values() {
            assert!(*repeated <= WINDOW, "{}", judgement.summary());
        }
        let within: usize = judgement.repeated_within_run.values().sum();
        assert!(within <= WINDOW * broker_kills as usize, "{}", judgement.summary());
        let most = judgement.repeated_by_run.values().max().copied().unwrap_or_default();
        Proof::of(&format!("kill -9 of daemon and broker, {what}"))
            .seed(self.seed)
            .tried("events", events as u64)
            .tried("kills of the daemon", kills as u64)
            .tried("kills of the broker", u64::from(broker_kills))
            .found("lost", judgement.lost.len())
            .found("phantom", judgement.phantom.len())
            .found("out of order", judgement.out_of_order.len())
            .found("duplicates", judgement.duplicates)
            .found("most duplicates of a restart", most);
    }
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
    let storm = Storm::brewing("kafka");
    let broker_kills = storm.broker_kills;
    let aftermath = storm.over(&scene, &broker, |_| vec![]);
    let reading = Instant::now();
    let messages = readers::kafka(&broker, "shop");
    println!("kafka: {} messages read in {:?}", messages.len(), reading.elapsed());
    let arrivals: Vec<_> = messages
        .into_iter()
        .map(|message| Arrival { id: message.id, lane: message.lane, run: aftermath.run_at(message.at_millis) })
        .collect();
    aftermath.judge("kafka", &arrivals, broker_kills);
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
    let storm = Storm::brewing("rabbitmq");
    let broker_kills = storm.broker_kills;
    // Each run marks what it sends by the routing key.
    let mark = |run: usize| vec![("OUTBOXD_SINKS__BUS__ROUTING_KEY", format!("{run}.{{type}}"))];
    let aftermath = storm.over(&scene, &broker, mark);
    let reading = Instant::now();
    let messages = readers::rabbitmq(&broker, "shop");
    println!("rabbitmq: {} messages read in {:?}", messages.len(), reading.elapsed());
    let run = |key: &str| key.split('.').next().unwrap().parse().unwrap();
    let arrivals: Vec<_> = messages
        .into_iter()
        .map(|message| Arrival { run: run(&message.routing_key), id: message.id, lane: message.lane })
        .collect();
    aftermath.judge("rabbitmq", &arrivals, broker_kills);
}
