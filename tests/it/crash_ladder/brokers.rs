//! The shorter ladder of the sinks that have a broker: the real daemon ends itself once at every seam it comes by, run after run on the
//! same files and the same destination, so that each crash falls into what the one before left.

use std::time::{Duration, Instant};

use outboxd::controls::Seam;

use crate::sink_contract::rig::unique;
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers::{self, Message};
use crate::support::referee::{Judgement, judge};
use crate::support::relays::{amqp, kafka, relay};
use crate::support::topology;
use crate::support::wait::until;

/// Each event that is not refused is sent at once, the refused one is tried twice: its key is held, and released in between.
const SEAMS: [Seam; 12] = [
    Seam::Start,
    Seam::Migrate,
    Seam::Read,
    Seam::Barrier,
    Seam::Send,
    Seam::Acknowledged,
    Seam::Landed,
    Seam::Settle,
    Seam::Hold,
    Seam::Commit,
    Seam::Release,
    Seam::DeadLetter,
];
const EVENTS: usize = 30;
const SMALL: &str = "properties = { \"batch.num.messages\" = \"5\" }";

/// `bad` makes the event that the broker will not have.
fn climb(what: &str, config: &str, bad: impl Fn(&str) -> Row, read: impl FnOnce() -> Vec<Message>) -> Judgement {
    let began = Instant::now();
    let scene = Scene::new(&[SHOP, config].concat());
    let mut application = Application::open(&scene.path("app.db"), 7);
    let mut refused = Vec::new();
    for seam in SEAMS {
        application.write(EVENTS);
        refused.extend(application.commit(&[bad(&format!("bad at {seam:?}"))]));
        let mut daemon = scene.daemon_with(&[("CRASH_AT", &format!("{seam:?}"))]);
        until(&format!("it ends at {seam:?}"), Duration::from_secs(30), || daemon.ended());
        assert!(daemon.log().contains(&format!("crashed at {seam:?}")), "{seam:?}: {}", daemon.log_tail());
    }
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(30));
    daemon.until("to_bus", "out of attempts", Duration::from_secs(30), |status| {
        status["dead_letters"].as_u64() == Some(refused.len() as u64)
    });
    let held: Vec<String> =
        daemon.dead_letters().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    let judgement = judge(&application.ledger, &held, &readers::arrivals(read()));
    println!("{what}: {} in {:?}", judgement.summary(), began.elapsed());
    assert!(judgement.is_clean_in_the_end(), "{}", judgement.summary());
    // What is unsettled is sent again: at most all that was written since the first crash, each time.
    assert!(judgement.duplicates <= (EVENTS + 1) * SEAMS.len() * (SEAMS.len() + 1) / 2, "{}", judgement.summary());
    Proof::of(&format!("crash ladder, {what}"))
        .tried("crashes", SEAMS.len() as u64)
        .found("at", SEAMS.map(|seam| format!("{seam:?}")).join(" "))
        .found("lost, phantom or out of order in the end", 0)
        .found("out of order", judgement.out_of_order.len())
        .found("duplicates", judgement.duplicates);
    judgement
}

/// Kafka refuses a request as a whole, with the innocents in it, and takes the next one, which was in flight behind it: so what overtook them is
/// sent once more behind them, and comes last. With one event of a key in flight there is nothing that could overtake. Requests are small, so
/// that there are several at any time.
#[test]
fn nor_with_kafka() {
    for (what, bound) in [("Kafka", ""), ("Kafka, one in flight per key", "in_flight_per_key = 1\n")] {
        let _machine = shared_machine();
        let (broker, name) = (Broker::kafka(), unique("ladder"));
        broker.topic(&name, 3, &["max.message.bytes=2000"]);
        let sink = kafka("bus", &broker.text("bootstrap"), &name, SMALL);
        let config = [sink, relay("bus", &format!("attempts_max = 2\n{bound}"))].concat();
        let judgement = climb(what, &config, |key| Row::of(key).heavy(5000), || readers::kafka(broker, &name));
        // The order is absolute exactly where that is promised.
        assert_eq!(judgement.is_clean(), !bound.is_empty(), "{what}: {}", judgement.summary());
    }
}

#[test]
fn nor_with_rabbitmq() {
    let _machine = shared_machine();
    let (broker, name) = (Broker::rabbitmq(), unique("ladder"));
    topology::declare(broker, &name, "order.#");
    let sink = amqp("bus", &broker.text("uri"), &name, "{stream_type}.{type}", "");
    let config = [sink, relay("bus", "attempts_max = 2")].concat();
    let judgement = climb("RabbitMQ", &config, |key| Row::of(key).to("nowhere"), || readers::rabbitmq(broker, &name));
    assert!(judgement.is_clean(), "{}", judgement.summary());
}
