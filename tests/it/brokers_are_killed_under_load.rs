//! Each broker is killed and restarted again and again while 2,000 events a second flow to both: nothing is lost or out of order, an
//! outage makes no dead letter, the daemon knocks no more than once a second and is back within 5 s of the port's opening.
//!
//! `OUTBOXD_TEST_RESTARTS` sets how often (10), `OUTBOXD_TEST_SEED` the instants.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{SHOP, Scene, whole_machine};
use crate::support::proof::Proof;
use crate::support::proxy::Proxy;
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::trial::Writing;
use crate::support::wait::until;
use crate::support::{readers, topology};

const EVENTS_A_SECOND: u32 = 2000;
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// A broker, the way to it, and how it is ended and started.
struct Target<'a> {
    broker: &'a Broker,
    proxy: &'a Proxy,
    /// The real port, behind the proxy.
    port: u16,
    relay: &'static str,
    /// What takes it away in turns: commands of scripts/broker, each with the one that brings it back.
    ways: [(&'static str, &'static str); 2],
}

/// What one outage showed.
struct Outage {
    away: Duration,
    knocks: usize,
    /// From the port's opening to the first connection, and to the first acknowledgement.
    connected: Duration,
    acknowledged: Duration,
}

impl Target<'_> {
    fn strike(&self, scene: &Scene, way: (&str, &str), away_least: Duration) -> Outage {
        let knocked = self.proxy.attempts().len();
        let struck = Instant::now();
        self.broker.run(way.0, &[]);
        std::thread::sleep(away_least);
        let position = || scene.status(self.relay).and_then(|status| status["position"].as_i64());
        let before = until("the status is told", Duration::from_secs(5), position);
        let (opened, connected, acknowledged) = std::thread::scope(|scope| {
            let starting = scope.spawn(|| self.broker.run(way.1, &[]));
            let opened = self.opened(&starting);
            let connected = until("it has connected", Duration::from_secs(60), || {
                // The first behind the last in vain: while a broker goes down, one may still get in.
                let attempts = &self.proxy.attempts()[knocked..];
                let from = attempts.iter().rposition(|attempt| !attempt.reached).map_or(0, |last| last + 1);
                attempts.get(from).map(|attempt| attempt.at)
            });
            until("it is acknowledged", Duration::from_secs(60), || position().filter(|now| *now > before));
            let acknowledged = Instant::now();
            starting.join().unwrap();
            (opened, connected, acknowledged)
        });
        let attempts = self.proxy.attempts();
        Outage {
            away: opened - struck,
            knocks: attempts[knocked..].iter().filter(|attempt| !attempt.reached).count(),
            connected: connected.saturating_duration_since(opened),
            acknowledged: acknowledged.saturating_duration_since(opened),
        }
    }

    /// Since when the port is open. It may have been so for a moment before: somebody else looked for a free one.
    fn opened(&self, starting: &std::thread::ScopedJoinHandle<'_, serde_json::Value>) -> Instant {
        let mut opened = None;
        until("the port opens", Duration::from_secs(120), || {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(_) => drop(opened.get_or_insert_with(Instant::now)),
                Err(_) => opened = None,
            }
            opened.filter(|_| starting.is_finished())
        })
    }

    fn strikes(&self, scene: &Scene, restarts: u64, mut dice: Dice) -> Vec<Outage> {
        let strike = |n: u64| {
            std::thread::sleep(dice.between(Duration::from_millis(300), Duration::from_millis(1500)));
            let outage =
                self.strike(scene, self.ways[(n % 2) as usize], dice.between(Duration::ZERO, Duration::from_secs(1)));
            println!(
                "{} {:?}: away {:?}, {} knocks, connected after {:?}, acknowledged after {:?}",
                self.relay,
                self.ways[(n % 2) as usize],
                outage.away,
                outage.knocks,
                outage.connected,
                outage.acknowledged
            );
            outage
        };
        (0..restarts).map(strike).collect()
    }
}

fn judge_outages(what: &str, outages: &[Outage], proof: Proof) -> Proof {
    let most = |of: fn(&Outage) -> Duration| outages.iter().map(of).max().unwrap_or_default();
    let away: f64 = outages.iter().map(|outage| outage.away.as_secs_f64()).sum();
    let knocks: usize = outages.iter().map(|outage| outage.knocks).sum();
    let late: Vec<Duration> =
        outages.iter().map(|outage| outage.connected).filter(|time| *time > BACK_WITHIN).collect();
    assert!(late.is_empty(), "{what}: connected so long after the port opened: {late:?}");
    for outage in outages {
        // The pace grows from the first attempt on, which comes at once.
        let bound = outage.away.as_secs_f64() + 2.0;
        assert!(outage.knocks as f64 <= bound, "{what}: {} attempts in {:?}", outage.knocks, outage.away);
    }
    proof
        .tried(&format!("kills and restarts of {what}"), outages.len() as u64)
        .found(
            &format!("{what}: reconnected at most"),
            format!("{:.1} s after the port opened", most(|o| o.connected).as_secs_f64()),
        )
        .found(
            &format!("{what}: acknowledged at most"),
            format!("{:.1} s after it", most(|o| o.acknowledged).as_secs_f64()),
        )
        .found(&format!("{what}: attempts a second while away"), format!("{:.2}", knocks as f64 / away))
}

#[test]
fn ten_kills_and_restarts_of_each_broker_under_load_lose_nothing() {
    let _machine = whole_machine();
    let mut dice = Dice::thrown("brokers killed under load");
    let restarts = number("OUTBOXD_TEST_RESTARTS").unwrap_or(10);
    let (to_kafka, to_rabbitmq) = (Proxy::new(Dice::of(dice.next())), Proxy::new(Dice::of(dice.next())));
    let kafka_node = Broker::start("kafka", &["--behind-proxy", &to_kafka.port.to_string()]);
    let rabbitmq = Broker::start("rabbitmq", &[]);
    to_kafka.lead_to(kafka_node.number("behind_proxy_port"));
    to_rabbitmq.lead_to(rabbitmq.number("port"));
    kafka_node.topic("shop", 6, &[]);
    topology::declare(&rabbitmq, "shop", "#");
    let uri = format!("amqp://guest:guest@127.0.0.1:{}/%2f", to_rabbitmq.port);
    let config = [
        SHOP.to_owned(),
        kafka("kafka", &format!("127.0.0.1:{}", to_kafka.port), "shop", "") + &relay("kafka", ""),
        amqp("rabbitmq", &uri, "shop", "{type}", "") + &relay("rabbitmq", ""),
        file("lines") + &relay("lines", ""),
    ];
    let scene = Scene::new(&config.concat());
    let application = Application::open(&scene.path("app.db"), 1000);
    let mut daemon = scene.daemon();
    let writing = Writing::start(application, EVENTS_A_SECOND, 1000, 200);
    let flows = |status: &serde_json::Value| status["state"] == "running" && status["position"].as_i64() > Some(0);
    for relay in ["to_kafka", "to_rabbitmq", "to_lines"] {
        daemon.until(relay, "flowing", Duration::from_secs(20), flows);
    }
    let settled = || scene.status("to_lines").unwrap()["position"].as_i64().unwrap();
    let rate = |since: Instant, from: i64| (settled() - from) as f64 / since.elapsed().as_secs_f64();
    let (start, from) = (Instant::now(), settled());
    let enough = from + 3 * i64::from(EVENTS_A_SECOND);
    until("it has flowed undisturbed", Duration::from_secs(30), || (settled() >= enough).then_some(()));
    let before = rate(start, from);
    let (start, from) = (Instant::now(), settled());
    let targets = [
        Target {
            broker: &kafka_node,
            proxy: &to_kafka,
            port: kafka_node.number("behind_proxy_port"),
            relay: "to_kafka",
            ways: [("kill", "start"), ("stop", "start")],
        },
        Target {
            broker: &rabbitmq,
            proxy: &to_rabbitmq,
            port: rabbitmq.number("port"),
            relay: "to_rabbitmq",
            ways: [("kill", "start"), ("stop-app", "start-app")],
        },
    ];
    let [of_kafka, of_rabbitmq] = std::thread::scope(|scope| {
        let striking = targets.each_ref().map(|target| {
            let (scene, dice) = (&scene, Dice::of(dice.next()));
            scope.spawn(move || target.strikes(scene, restarts, dice))
        });
        striking.map(|strikes| strikes.join().unwrap())
    });
    let share = rate(start, from) / before;
    let took = start.elapsed();
    let application = writing.stop();
    for relay in ["to_kafka", "to_rabbitmq", "to_lines"] {
        daemon.until_settled(relay, application.head(), Duration::from_secs(60));
    }
    assert_eq!(daemon.dead_letters(), Vec::<serde_json::Value>::new());
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    let mut proof = Proof::of("brokers killed under load")
        .seed(dice.seed)
        .tried("events", application.ledger.len() as u64)
        .found("the file relay's rate meanwhile", format!("{:.0} %", share * 100.0));
    let given_up = daemon.log().matches("kafka_client_replaced").count();
    proof = judge_outages("Kafka", &of_kafka, proof).found("Kafka: clients given up", given_up);
    proof = judge_outages("RabbitMQ", &of_rabbitmq, proof);
    println!("{} events in {took:?}; the file relay at {:.0} %", application.ledger.len(), share * 100.0);
    assert!(share >= 0.9, "the file relay flows at {:.0} % of its rate", share * 100.0);
    let arrived = [("Kafka", readers::kafka(&kafka_node, "shop")), ("RabbitMQ", readers::rabbitmq(&rabbitmq, "shop"))];
    for (what, messages) in arrived {
        let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
        println!("{what}: {}", judgement.summary());
        assert!(judgement.is_clean(), "{what}: {}", judgement.summary());
        proof = proof
            .found(&format!("{what}: lost"), judgement.lost.len())
            .found(&format!("{what}: out of order"), judgement.out_of_order.len())
            .found(&format!("{what}: duplicates"), judgement.duplicates);
    }
}
