//! Start, stop, and the neighbours of a daemon: locks, files that come later, signals, the service manager.

use std::time::{Duration, Instant};

use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::Dice;
use crate::support::manager::Manager;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::referee::{Arrival, judge};
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::throughout;
use crate::support::{readers, topology};

fn with_daemon_keys(keys: &str) -> String {
    SHOP.replace("[daemon]", &format!("[daemon]\n{keys}"))
}

fn to_lines() -> String {
    [file("lines"), relay("lines", "")].concat()
}

#[test]
fn a_second_daemon_waits_and_takes_over() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &to_lines()].concat());
    scene.write(
        "second.toml",
        &[with_daemon_keys("control = \"unix:second.sock\"").as_str(), to_lines().as_str()].concat(),
    );
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut first = scene.daemon();
    application.write(100);
    first.until_settled("to_lines", application.head(), Duration::from_secs(10));
    let mut second = scene.daemon_of("second.toml");
    let status = second.until_state("to_lines", "waiting", Duration::from_secs(5));
    assert!(status["detail"].as_str().unwrap().contains(&format!("process {}", first.pid())), "{status}");
    throughout("the second waits while the first works", Duration::from_secs(2), || {
        application.write(10);
        second.status("to_lines").unwrap()["state"] == "waiting"
    });
    first.until_settled("to_lines", application.head(), Duration::from_secs(10));
    // However the first ends, the kernel lets go of its lock.
    first.kill();
    application.write(100);
    second.until_settled("to_lines", application.head(), Duration::from_secs(5));
    let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path("lines.ndjson")));
    assert!(judgement.is_clean(), "{}", judgement.summary());
}

#[test]
fn a_second_daemon_refuses_when_it_is_told_to() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &to_lines()].concat());
    let keys = "control = \"unix:second.sock\"\nwhen_locked = \"refuse\"";
    scene.write("second.toml", &[with_daemon_keys(keys).as_str(), to_lines().as_str()].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut first = scene.daemon();
    application.write(100);
    first.until_settled("to_lines", application.head(), Duration::from_secs(10));
    let mut second = scene.daemon_of("second.toml");
    assert_eq!(second.wait(Duration::from_secs(5)).0, Some(75));
    let log = second.log();
    assert!(log.contains(&format!("process {}", first.pid())) && log.contains("Remedy"), "{log}");
    // The first has not noticed.
    application.write(100);
    first.until_settled("to_lines", application.head(), Duration::from_secs(10));
}

#[test]
fn a_file_and_then_a_table_that_come_later_are_waited_for() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&[SHOP, &to_lines()].concat());
    let mut daemon = scene.daemon();
    let status = daemon.until_state("to_lines", "waiting", Duration::from_secs(5));
    assert!(status["detail"].as_str().unwrap().contains("app.db"), "{status}");
    let waits = || {
        daemon.status("to_lines").is_some_and(|status| status["state"] == "waiting") && !scene.path("app.db").exists()
    };
    throughout("it waits, and makes no file", Duration::from_secs(5), waits);
    let connection = rusqlite::Connection::open(scene.path("app.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY)").unwrap();
    throughout("the table is waited for too", Duration::from_secs(2), || {
        daemon.status("to_lines").is_some_and(|status| status["state"] == "waiting")
    });
    connection.execute_batch(include_str!("../../migrations/0001_event_tables.sql")).unwrap();
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(100);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(5));
    daemon.until_state("to_lines", "running", Duration::from_secs(1));
    let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path("lines.ndjson")));
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

/// Stopped again and again while the application writes: each time at once, and nothing comes twice.
fn stops_are_clean(far_side: &str, consumer: &str, config: &str, read: impl FnOnce(&Scene) -> Vec<Arrival>) {
    let scene = Scene::new(config);
    let mut dice = Dice::thrown(consumer);
    let application = Application::open(&scene.path("app.db"), 100);
    let flow = application.flow(60_000, 6_000.0, Dice::of(dice.next()));
    let (mut slowest, mut stops) = (Duration::ZERO, 0);
    let seed = dice.seed;
    let mut daemon = scene.daemon();
    while !flow.is_finished() {
        let is_at_work =
            |status: &serde_json::Value| status["delivered_total"].as_u64() > Some(0) || flow.is_finished();
        daemon.until(consumer, "at work", Duration::from_secs(10), is_at_work);
        std::thread::sleep(dice.between(Duration::ZERO, Duration::from_millis(1500)));
        let (code, took) = daemon.stop(Duration::from_secs(10));
        assert_eq!(code, Some(0));
        assert!(!scene.path("outboxd.sock").exists(), "the socket goes with it");
        slowest = slowest.max(took);
        stops += 1;
        daemon = scene.daemon();
    }
    let application = flow.join().unwrap();
    daemon.until_settled(consumer, application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    let judgement = judge(&application.ledger, &[], &read(&scene));
    println!("{consumer}: the slowest stop took {slowest:?}; {}", judgement.summary());
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
    assert!(slowest <= Duration::from_secs(2), "{slowest:?}");
    Proof::of(&format!("SIGTERM under load, {far_side}"))
        .seed(seed)
        .tried("stops", stops)
        .found("lost, out of order, twice", 0)
        .found("slowest stop", format!("{} ms", slowest.as_millis()));
}

#[test]
fn a_stop_under_load_is_clean_with_kafka() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("stops");
    broker.topic(&name, 3, &[]);
    let config = [SHOP, &kafka("bus", &broker.text("bootstrap"), &name, ""), &relay("bus", "")].concat();
    stops_are_clean("Kafka", "to_bus", &config, |_| readers::arrivals(readers::kafka(broker, &name)));
}

#[test]
fn a_stop_under_load_is_clean_with_rabbitmq() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("stops");
    topology::declare(broker, &name, "#");
    let config = [SHOP, &amqp("bus", &broker.text("uri"), &name, "{type}", ""), &relay("bus", "")].concat();
    stops_are_clean("RabbitMQ", "to_bus", &config, |_| readers::arrivals(readers::rabbitmq(broker, &name)));
}

#[test]
fn a_stop_under_load_is_clean_with_a_file() {
    let _machine = shared_machine();
    let config = [SHOP, &to_lines()].concat();
    stops_are_clean("file", "to_lines", &config, |scene| readers::lines(&scene.path("lines.ndjson")));
}

/// With a broker that takes what is sent and never answers, a stop waits for `drain_timeout` and no longer.
#[test]
fn a_stop_with_a_dead_broker_ends_in_time() {
    let _machine = shared_machine();
    let daemon_keys = with_daemon_keys("drain_timeout = \"2s\"");
    for (kind, death) in [("kafka", "kill"), ("kafka", "pause"), ("rabbitmq", "kill"), ("rabbitmq", "pause")] {
        let broker = Broker::start(kind, &[]);
        let sink = if kind == "kafka" {
            broker.topic("shop", 3, &[]);
            kafka("bus", &broker.text("bootstrap"), "shop", "")
        } else {
            topology::declare(&broker, "shop", "#");
            amqp("bus", &broker.text("uri"), "shop", "{type}", "")
        };
        let scene = Scene::new(&[daemon_keys.as_str(), &sink, &relay("bus", "")].concat());
        let mut application = Application::open(&scene.path("app.db"), 50);
        let mut daemon = scene.daemon();
        application.write(200);
        daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
        broker.run(death, &[]);
        application.write(200);
        daemon
            .until("to_bus", "sending", Duration::from_secs(5), |status| status["in_flight_events"].as_u64() > Some(0));
        let (code, took) = daemon.stop(Duration::from_secs(20));
        println!("{kind}, {death}: {took:?}");
        assert_eq!(code, Some(0));
        assert!(took <= Duration::from_secs(2) + Duration::from_millis(1500), "{kind}, {death}: {took:?}");

        if death == "kill" {
            broker.restart()
        } else {
            drop(broker.run("unpause", &[]))
        }
        let mut daemon = scene.daemon();
        daemon.until_settled("to_bus", application.head(), Duration::from_secs(30));
        assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
        let messages =
            if kind == "kafka" { readers::kafka(&broker, "shop") } else { readers::rabbitmq(&broker, "shop") };
        let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
        assert!(judgement.is_clean(), "{kind}, {death}: {}", judgement.summary());
    }
    Proof::of("SIGTERM with a dead broker")
        .tried("brokers killed or stopped", 4)
        .found("lost, out of order", 0)
        .found("ended", "within drain_timeout + 1.5 s");
}

#[test]
fn the_service_manager_is_told_and_ready_does_not_wait_for_brokers() {
    let _machine = shared_machine();
    let config = [
        SHOP,
        &kafka("kafka", "127.0.0.1:9", "shop", ""),
        &relay("kafka", ""),
        &amqp("rabbit", "amqp://127.0.0.1:9", "shop", "{type}", ""),
        &relay("rabbit", ""),
    ]
    .concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let path = scene.path("notify");
    let mut manager = Manager::at(&path);
    let start = Instant::now();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "1500000")];
    let mut daemon = scene.daemon_with(&environment);
    manager.listen(Duration::from_secs(5));
    let ready =
        manager.heard.iter().find(|(_, line)| line == "READY=1").unwrap_or_else(|| panic!("{:?}", manager.heard));
    assert!(ready.0 - start < Duration::from_secs(2), "{:?}", ready.0 - start);
    assert!(manager.count("WATCHDOG=1") >= 6, "every third of 1.5 s, outage or not: {:?}", manager.heard);
    assert!(
        manager.heard.iter().any(|(_, line)| line.starts_with("STATUS=0 of 2 consumers running")),
        "{:?}",
        manager.heard
    );
    assert_eq!(manager.count("STOPPING=1"), 0);
    daemon.terminate();
    manager.listen(Duration::from_secs(1));
    assert_eq!(manager.count("STOPPING=1"), 1, "{:?}", manager.heard);
    assert_eq!(daemon.wait(Duration::from_secs(5)).0, Some(0));
}
