//! *Guilty only alone*, end to end: among good events in flight, the refused one is named and its key held; the others flow.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sink_contract::rig::unique;
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::referee::{Arrival, Judgement, judge};
use crate::support::relays::{amqp, kafka, relay};
use crate::support::{readers, topology};

/// Events of 20 keys; the fifth event of `key-7` is made by `spoil`. Returns its id.
fn write_with_one_bad(application: &mut Application, spoil: impl Fn(Row) -> Row) -> String {
    let row = |n: usize| Row::of(&format!("key-{}", n % 20));
    let bad = 4 * 20 + 7;
    let rows: Vec<_> = (0..1000).map(|n| if n == bad { spoil(row(n)) } else { row(n) }).collect();
    application.commit(&rows)[bad].clone()
}

/// The one dead letter is `bad`, for `reason`, and 45 events of its key wait behind it.
fn one_is_held(daemon: &Daemon, bad: &str, reason: &str) -> Vec<String> {
    let held = daemon.dead_letters();
    let dead: Vec<_> = held.iter().filter(|letter| letter["state"] != "waiting").collect();
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!((&dead[0]["id"], &dead[0]["reason"]), (&bad.into(), &reason.into()), "{}", dead[0]);
    assert!(held.iter().all(|letter| letter["key"] == "key-7"), "{held:?}");
    assert_eq!(held.len(), 46, "those behind it wait");
    println!("{}", dead[0]["detail"]);
    held.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
}

fn until_one_is_held(daemon: &mut Daemon, consumer: &str, head: i64) -> Value {
    let start = Instant::now();
    let status = daemon.until(consumer, "settled, one key held", Duration::from_secs(40), |status| {
        status["position"].as_i64() >= Some(head) && status["in_flight_events"] == 0 && status["dead_letters"] == 1
    });
    assert_eq!((&status["state"], &status["held_keys"]), (&"running".into(), &1.into()), "{status}");
    println!("found and tried again within {:?}", start.elapsed());
    status
}

/// Nothing is missing, and the only event that may stand behind a later one of its key is the refused one itself.
fn in_order(application: &Application, held: &[String], arrivals: &[Arrival]) -> Judgement {
    let judgement = judge(&application.ledger, held, arrivals);
    println!("{}", judgement.summary());
    assert!(judgement.is_clean_in_the_end() && judgement.out_of_order.len() <= 1, "{}", judgement.summary());
    judgement
}

/// An event that no queue gets, among good ones; then its way is made, and it is retried.
fn unroutable_at_rabbitmq(more: &str) -> Judgement {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("unroutable");
    topology::declare(broker, &name, "order.#");
    let sink = amqp("bus", &broker.text("uri"), &name, "{stream_type}.{type}", "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", &format!("attempts_max = 2\n{more}"))].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    let bad = write_with_one_bad(&mut application, |row| row.to("nowhere"));
    let mut daemon = scene.daemon();
    until_one_is_held(&mut daemon, "to_bus", application.head());
    let held = one_is_held(&daemon, &bad, "unroutable");
    let mut messages = readers::rabbitmq(broker, &name);
    in_order(&application, &held, &readers::arrivals(messages.clone()));

    topology::declare(broker, &name, "nowhere.#");
    assert!(scene.outboxd(&["dead-letters", "retry", "--id", &bad, "--yes"]).status.success());
    daemon.until("to_bus", "free", Duration::from_secs(20), |status| status["held_keys"] == 0);
    let behind = readers::rabbitmq(broker, &name);
    assert!(behind.iter().all(|message| message.says_redelivery), "what comes again says so");
    messages.extend(behind);
    in_order(&application, &[], &readers::arrivals(messages))
}

#[test]
fn an_unroutable_event_is_refused_alone_at_rabbitmq() {
    unroutable_at_rabbitmq("");
}

#[test]
fn with_one_in_flight_a_key_nothing_overtakes_a_refused_event() {
    let judgement = unroutable_at_rabbitmq("in_flight_per_key = 1");
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

/// The control: without `mandatory` the broker drops it, and the relay counts it as delivered.
#[test]
fn without_mandatory_an_unroutable_event_is_lost() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("dropped");
    topology::declare(broker, &name, "order.#");
    let sink = amqp("bus", &broker.text("uri"), &name, "{stream_type}.{type}", "mandatory = false");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    let bad = write_with_one_bad(&mut application, |row| row.to("nowhere"));
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::rabbitmq(broker, &name)));
    assert_eq!(judgement.lost, [bad]);
}

#[test]
fn an_event_for_a_missing_topic_of_a_template_is_refused_alone() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("routed");
    broker.topic(&format!("{name}.order"), 3, &[]);
    let sink = kafka("bus", &broker.text("bootstrap"), &format!("{name}.{{stream_type}}"), "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 2")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    let bad = write_with_one_bad(&mut application, |row| row.to("nowhere"));
    let mut daemon = scene.daemon();
    until_one_is_held(&mut daemon, "to_bus", application.head());
    let held = one_is_held(&daemon, &bad, "unroutable");
    let order = format!("{name}.order");
    in_order(&application, &held, &readers::arrivals(readers::kafka(broker, &order)));

    broker.topic(&format!("{name}.nowhere"), 1, &[]);
    assert!(scene.outboxd(&["dead-letters", "retry", "--key", "key-7", "--yes"]).status.success());
    daemon.until("to_bus", "free", Duration::from_secs(20), |status| status["held_keys"] == 0);
    let arrived = readers::arrivals(readers::kafka(broker, &order));
    in_order(&application, std::slice::from_ref(&bad), &arrived);
    assert_eq!(readers::kafka(broker, &format!("{name}.nowhere"))[0].id, bad);
}

#[test]
fn an_oversize_event_is_refused_alone_at_kafka() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("small");
    // The limit is asked of whole batches: good events that travel with a large one are refused together with it.
    broker.topic(&name, 3, &["max.message.bytes=20000"]);
    let sink =
        kafka("bus", &broker.text("bootstrap"), &name, "properties = { \"linger.ms\" = 20, \"batch.size\" = 15000 }");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 2")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    let mut daemon = scene.daemon();
    application.commit(&[Row::of("key-0")]);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));

    // Alone.
    let alone = application.commit(&[Row::of("lonely").heavy(30_000)]).remove(0);
    daemon.until("to_bus", "one dead", Duration::from_secs(20), |status| status["dead_letters"] == 1);
    let letter = daemon.dead_letters().remove(0);
    assert_eq!((&letter["id"], &letter["reason"]), (&alone.as_str().into(), &"too_large".into()), "{letter}");
    assert_eq!(letter["attempts"], 2, "{letter}");
    let discard = ["dead-letters", "discard", "--id", &alone, "--reason", "the test is done with it", "--yes"];
    assert!(scene.outboxd(&discard).status.success());

    // Among good ones.
    let bad = write_with_one_bad(&mut application, |row| row.heavy(30_000));
    until_one_is_held(&mut daemon, "to_bus", application.head());
    let mut held = one_is_held(&daemon, &bad, "too_large");
    held.push(alone);
    in_order(&application, &held, &readers::arrivals(readers::kafka(broker, &name)));
}

/// Batches of the client that are larger than the topic admits although each message is small enough: nobody is guilty.
#[test]
fn a_batch_that_is_too_large_as_a_whole_convicts_nobody() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("whole");
    broker.topic(&name, 1, &["max.message.bytes=2000"]);
    let sink = kafka("bus", &broker.text("bootstrap"), &name, "properties = { \"linger.ms\" = 50 }");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(300);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(60));
    assert_eq!(daemon.dead_letters(), Vec::<Value>::new());
    in_order(&application, &[], &readers::arrivals(readers::kafka(broker, &name)));
}

#[test]
fn an_oversize_event_is_refused_alone_at_rabbitmq() {
    let _machine = shared_machine();
    // The broker's own limit, which closes the channel; and ours, which knows it beforehand.
    let broker = Broker::start("rabbitmq", &["--conf", "max_message_size = 20000"]);
    for (more, reason) in [("message_bytes_max = \"20kB\"", "too_large"), ("", "refused")] {
        let name = unique("large");
        topology::declare(&broker, &name, "#");
        let sink = amqp("bus", &broker.text("uri"), &name, "{type}", more);
        let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 2")].concat());
        let mut application = Application::open(&scene.path("app.db"), 20);
        let bad = write_with_one_bad(&mut application, |row| row.heavy(30_000));
        let mut daemon = scene.daemon();
        until_one_is_held(&mut daemon, "to_bus", application.head());
        let held = one_is_held(&daemon, &bad, reason);
        in_order(&application, &held, &readers::arrivals(readers::rabbitmq(&broker, &name)));

        let alone = application.commit(&[Row::of("lonely").heavy(30_000)]).remove(0);
        daemon.until("to_bus", "two dead", Duration::from_secs(20), |status| status["dead_letters"] == 2);
        assert!(daemon.dead_letters().iter().any(|letter| letter["id"] == alone.as_str()));
    }
}
