//! Each promise that is tested with the whole daemon has a control: with its protection turned off, the same referee finds the fault.

use std::collections::HashSet;
use std::time::Duration;

use crate::a_bad_network_loses_nothing::{CLIENT_REPLACED, a_lost_peer_of_kafka_is_left};
use crate::a_forgetful_kafka_is_found_again::{FOUND_AGAIN, a_kafka_that_named_no_brokers_is_found_again};
use crate::sink_contract::amqp::AmqpRig;
use crate::sink_contract::rig::{Rig, unique};
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::until;
use crate::support::{readers, topology};

pub fn without(protection: &str) -> [(&str, &str); 1] {
    [("TURNED_OFF", protection)]
}

/// Settled before it is acknowledged: what the broker had not taken when the daemon was killed is lost.
#[test]
fn without_waiting_for_acknowledgements_a_kill_loses_events() {
    let _machine = shared_machine();
    let broker = Broker::start("rabbitmq", &[]);
    topology::declare(&broker, "shop", "#");
    let sink = amqp("bus", &broker.text("uri"), "shop", "{type}", "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 100);
    let mut daemon = scene.daemon_with(&without("Acknowledgement"));
    application.write(100);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
    broker.run("pause", &[]);
    application.write(5000);
    daemon.until("to_bus", "sure of it", Duration::from_secs(10), |status| status["position"].as_i64() > Some(2000));
    daemon.kill();
    broker.run("kill", &[]);
    broker.restart();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(30));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::rabbitmq(&broker, "shop")));
    println!("{}", judgement.summary());
    assert!(!judgement.lost.is_empty());
}

/// The client clings to a connection that nobody answers on.
#[test]
fn without_a_fresh_client_kafka_stays_away_longer() {
    assert!(!a_lost_peer_of_kafka_is_left(&without("FreshClient"), CLIENT_REPLACED));
}

/// The client waits for ever, and so does everything that was handed to it.
#[test]
fn without_a_watch_on_the_client_a_forgetful_kafka_is_not_found_again() {
    let off = without("WatchedClient");
    assert_eq!(a_kafka_that_named_no_brokers_is_found_again(&off, FOUND_AGAIN * 2), None);
}

/// What comes behind a refused event does not wait for it, and is not sent again behind it: the wrong order stays.
#[test]
fn without_holding_its_key_a_refused_event_comes_too_late() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("behind");
    topology::declare(broker, &name, "order.#");
    let sink = amqp("bus", &broker.text("uri"), &name, "{stream_type}.{type}", "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 1")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    let rows: Vec<_> = (0..20).map(|n| if n == 5 { Row::of("k").to("nowhere") } else { Row::of("k") }).collect();
    application.commit(&rows);
    let mut daemon = scene.daemon_with(&without("Hold"));
    daemon.until("to_bus", "settled", Duration::from_secs(20), |status| status["position"].as_i64() == Some(20));
    daemon.kill();
    let mut messages = readers::rabbitmq(broker, &name);
    topology::declare(broker, &name, "nowhere.#");
    let mut daemon = scene.daemon();
    daemon.until("to_bus", "there", Duration::from_secs(10), |status| status["sink_up"] == true);
    scene.outboxd(&["dead-letters", "retry", "--key", "k", "--yes"]);
    daemon.until("to_bus", "free", Duration::from_secs(20), |status| status["held_keys"] == 0);
    messages.extend(readers::rabbitmq(broker, &name));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
    println!("{}", judgement.summary());
    assert!(!judgement.is_clean_in_the_end());
}

/// A produce batch is refused as a whole: whoever was in it is taken for guilty.
#[test]
fn without_guilty_only_alone_the_innocent_are_convicted() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("innocent");
    broker.topic(&name, 1, &["max.message.bytes=2000"]);
    let sink = kafka("bus", &broker.text("bootstrap"), &name, "properties = { \"linger.ms\" = 50 }");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 1")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(300);
    let mut daemon = scene.daemon_with(&without("GuiltyAlone"));
    daemon.until("to_bus", "unjust", Duration::from_secs(30), |status| status["dead_letters"].as_u64() > Some(0));
}

/// Two daemons work on one file at the same time: everything comes twice.
#[test]
fn without_the_lock_two_daemons_send_everything() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("twice");
    broker.topic(&name, 1, &[]);
    let sink = kafka("bus", &broker.text("bootstrap"), &name, "");
    let config = [SHOP, &sink, &relay("bus", "")].concat();
    let scene = Scene::new(&config);
    scene.write("second.toml", &config.replace("[daemon]", "[daemon]\ncontrol = \"unix:second.sock\""));
    let mut application = Application::open(&scene.path("app.db"), 20);
    let mut first = scene.daemon_with(&without("Lock"));
    let mut second = scene.daemon_of_with("second.toml", &without("Lock"));
    for daemon in [&mut first, &mut second] {
        daemon.until("to_bus", "running", Duration::from_secs(10), |status| status["sink_up"] == true);
    }
    application.write(300);
    let count = || readers::kafka(broker, &name).len();
    until("more arrives than was written", Duration::from_secs(15), || (count() > 300).then_some(()));
}

/// Each confirm is believed by itself, with the returned message that the client library attached to it: now and then a message that
/// no queue got counts as delivered, and its neighbour as refused.
#[test]
fn without_the_protocol_for_returned_messages_an_unroutable_event_is_lost() {
    let _machine = shared_machine();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // A classic queue: many acknowledgements at a time bring it about.
    let rig = runtime.block_on(AmqpRig::new());
    let mut lost = 0;
    for round in 0..10 {
        let uri = Broker::rabbitmq().text("uri");
        let sink = amqp("bus", &uri, &rig.exchange, "{stream_type}.{type}", "persistent = false");
        let scene = Scene::new(&[SHOP, &sink, &relay("bus", "attempts_max = 1")].concat());
        let mut application = Application::open(&scene.path("app.db"), 20);
        let is_guilty = |n: usize| n * 2_654_435_761 % 97 < 30;
        let row = |n: usize| Row::of(&format!("{round}-{n}")).to(if is_guilty(n) { "nowhere" } else { "good" });
        let ids = application.commit(&(0..3000).map(row).collect::<Vec<_>>());
        let guilty: HashSet<&String> =
            ids.iter().enumerate().filter(|(n, _)| is_guilty(*n)).map(|(_, id)| id).collect();
        let mut daemon = scene.daemon_with(&without("Returned"));
        daemon.until_settled("to_bus", application.head(), Duration::from_secs(30));
        let held = daemon.dead_letters();
        let held: HashSet<&str> = held.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
        // Neither in a queue nor held: nobody has it.
        lost += guilty.iter().filter(|id| !held.contains(id.as_str())).count();
        if lost > 0 {
            break;
        }
    }
    println!("{lost} lost");
    assert!(lost > 0, "nothing was taken for its neighbour in ten rounds");
}

/// The counterpart of a clean stop: ended in the thick of it, events come twice (and say so).
#[test]
fn without_a_drain_events_come_twice() {
    let _machine = shared_machine();
    let config = [SHOP, &file("lines"), &relay("lines", "")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 20);
    let lines = scene.path("lines.ndjson");
    let mut duplicates = 0;
    for _ in 0..20 {
        let before = std::fs::metadata(&lines).map_or(0, |meta| meta.len());
        let mut daemon = scene.daemon_with(&without("Drain"));
        daemon.until("to_lines", "up", Duration::from_secs(10), |status| status["sink_up"] == true);
        application.write(3000);
        until("lines are written", Duration::from_secs(10), || {
            std::fs::metadata(&lines).is_ok_and(|meta| meta.len() > before).then_some(())
        });
        assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
        let mut daemon = scene.daemon();
        daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
        daemon.kill();
        let judgement = judge(&application.ledger, &[], &readers::lines(&lines));
        assert!(judgement.is_clean(), "{}", judgement.summary());
        duplicates = judgement.duplicates;
        if duplicates > 0 {
            break;
        }
    }
    assert!(duplicates > 0, "a stop that repeats nothing, twenty times");
}
