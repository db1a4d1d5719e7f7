//! A replay to a real Kafka and a real RabbitMQ, beside the live flow and over a kill -9; and copies of dead letters to a topic and an exchange: read back by
//! clients that are not ours.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::Dice;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers::read;
use crate::support::referee::{Arrival, Print, judge};
use crate::support::relays::{amqp, kafka, relay};
use crate::support::rig::open;
use crate::support::topology;
use crate::support::wait::until;

const SOON: Duration = Duration::from_secs(30);
const BEFORE: usize = 2_500;
const BESIDE: usize = 4_000;
/// Their rows cannot be decoded.
const DEAD: [usize; 2] = [40, 1_700];
/// What a crash may repeat.
const FLIGHT: usize = 500;

/// A message, with what it says of itself.
struct Message {
    arrival: Arrival,
    headers: Value,
}

fn from_kafka(broker: &Broker, topic: &str) -> Vec<Message> {
    let lines = read("read_kafka.py", &[&broker.text("bootstrap"), topic, "--from-beginning", "--until-end"]);
    let message = |line: Value| Message {
        arrival: Arrival {
            id: line["headers"]["id"].as_str().unwrap().to_owned(),
            lane: line["partition"].as_u64().unwrap() as u32,
            run: 0,
            body: Some(Print::of(line["value"].as_str().unwrap().as_bytes())),
        },
        headers: line["headers"].clone(),
    };
    lines.into_iter().map(message).collect()
}

fn from_rabbitmq(broker: &Broker, queue: &str) -> Vec<Message> {
    let lines = read("read_amqp.py", &[&broker.text("uri"), queue, "--until-idle", "1"]);
    let message = |line: Value| Message {
        arrival: Arrival {
            id: line["message_id"].as_str().unwrap().to_owned(),
            lane: 0,
            run: 0,
            body: Some(Print::of(line["body"].as_str().unwrap().as_bytes())),
        },
        headers: line["headers"].clone(),
    };
    lines.into_iter().map(message).collect()
}

/// `sinks`: `bus`, and `graveyard` for the copies. `destination`: the headers that tell where a dead letter was to go.
fn replayed_and_copied(what: &str, sinks: &str, destination: &[(&str, &str)], read: impl Fn(&str) -> Vec<Message>) {
    let more = "dead_letter_sink = \"graveyard\"\nattempts_max = 1\non_reject = \"skip\"";
    let scene = Scene::new(&[SHOP, sinks, &relay("bus", more)].concat());
    let mut application = Application::open(&scene.path("app.db"), 50);
    application.write(BEFORE);
    let sql = "UPDATE outbox SET stream_type = cast(x'ff' AS TEXT) WHERE position IN (?1, ?2)";
    open(&scene.path("app.db")).execute(sql, DEAD.map(|n| n as i64)).unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), SOON);

    let mut dice = Dice::thrown(what);
    let seed = dice.seed;
    let flow = application.flow(BESIDE, 2_000.0, Dice::of(dice.next()));
    std::thread::scope(|scope| {
        let command = scope.spawn(|| scene.outboxd(&["replay", "to_bus", "--all", "--rate", "2000"]));
        let sent = || scene.status("to_bus").and_then(|status| status["replay"]["sent"].as_u64());
        until("some of the replay is sent", SOON, || sent().filter(|sent| *sent >= 600));
        daemon.kill();
        assert_ne!(command.join().unwrap().status.code(), Some(0), "the command says that it did not see the end");
    });
    let mut daemon = scene.daemon();
    let replay = daemon.until("to_bus", "replayed", SOON, |status| status["replay"]["state"] == "done");
    let application = flow.join().unwrap();
    daemon.until_settled("to_bus", application.head(), SOON);
    let status = daemon.until("to_bus", "copied", SOON, |status| status["dead_letter_copies"]["waiting"] == 0);
    assert_eq!(status["order_violations_total"], 0, "{status}");
    assert_eq!(daemon.stop(SOON).0, Some(0));

    let dead: Vec<String> = DEAD.iter().map(|n| application.ledger[n - 1].id.clone()).collect();
    let (again, live): (Vec<_>, Vec<_>) =
        read("bus").into_iter().partition(|message| message.headers.get("outboxd-replay").is_some());
    // The live flow: nothing lost, and nothing doubled that does not say so.
    let mut seen = HashSet::new();
    let doubled = |message: &&Message| {
        !seen.insert(message.arrival.id.clone()) && message.headers.get("outboxd-redelivery").is_none()
    };
    let silently: Vec<_> = live.iter().filter(doubled).map(|message| &message.arrival.id).collect();
    assert!(silently.is_empty(), "doubled: {silently:?}");
    let arrivals = |messages: Vec<Message>| messages.into_iter().map(|message| message.arrival).collect::<Vec<_>>();
    let judgement = judge(&application.ledger, &dead, &arrivals(live));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    // The replay: what was settled when it began, in order; of it at most a flight twice.
    let upto = replay["replay"]["upto"].as_u64().unwrap() as usize;
    assert!(upto >= BEFORE, "{replay}");
    let judged = judge(&application.ledger[..upto], &dead, &arrivals(again));
    assert!(judged.is_clean() && judged.duplicates <= FLIGHT, "{}", judged.summary());
    assert_eq!(replay["replay"]["sent"], upto - dead.len());

    let copies = read("graveyard");
    let mut ids: Vec<_> = copies.iter().map(|copy| copy.arrival.id.clone()).collect();
    ids.dedup();
    assert_eq!(ids, dead, "in the order of dying");
    for (copy, n) in copies.iter().zip(DEAD) {
        let said = |name: &str| match &copy.headers[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        // What could not be decoded has no body that could be trusted.
        assert_eq!(copy.arrival.body, Some(Print::of(b"")));
        assert_eq!((said("outboxd-dead-letter"), said("outboxd-source")), ("to_bus".into(), "shop".into()));
        assert_eq!((said("outboxd-position"), said("outboxd-attempts")), (n.to_string(), "1".into()));
        assert_eq!(said("outboxd-reason"), "undecodable");
        assert!(said("outboxd-detail").contains("stream_type") && said("outboxd-failed-at").starts_with("20"));
        for (name, value) in destination {
            assert_eq!(said(name), *value, "{}", copy.headers);
        }
    }
    Proof::of(&format!("replay beside the live flow, {what}"))
        .seed(seed)
        .tried("kills of the daemon", 1)
        .tried("events replayed", upto as u64)
        .found("lost, phantom or out of order", 0)
        .found("replayed twice", judged.duplicates);
}

#[test]
fn a_replay_and_copies_to_kafka() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let (live, dead) = ("replayed", "replayed.dead");
    broker.topic(live, 3, &[]);
    broker.topic(dead, 1, &[]);
    let bootstrap = broker.text("bootstrap");
    let sinks = kafka("bus", &bootstrap, live, "") + &kafka("graveyard", &bootstrap, dead, "");
    let read = |sink: &str| from_kafka(broker, if sink == "bus" { live } else { dead });
    replayed_and_copied("Kafka", &sinks, &[("outboxd-topic", live)], read);
}

#[test]
fn a_replay_and_copies_to_rabbitmq() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let (live, dead) = ("replayed", "replayed.dead");
    topology::declare(broker, live, "#");
    topology::declare(broker, dead, "#");
    let uri = broker.text("uri");
    let sinks = amqp("bus", &uri, live, "way", "") + &amqp("graveyard", &uri, dead, "dead", "");
    let read = |sink: &str| from_rabbitmq(broker, if sink == "bus" { live } else { dead });
    let destination = [("outboxd-exchange", live), ("outboxd-routing-key", "way")];
    replayed_and_copied("RabbitMQ", &sinks, &destination, read);
}
