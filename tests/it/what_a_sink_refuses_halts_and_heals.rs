//! What a person must mend halts that relay alone, says so, is probed, and goes on by itself where the far side was mended.

use std::time::Duration;

use serde_json::Value;

use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::throughout;
use crate::support::{readers, topology};

/// `to_bus` is halted by the sink and says `word`; `to_lines`, of the same source, flows.
fn halted_alone(daemon: &mut Daemon, application: &mut Application, word: &str) -> Value {
    let status = daemon.until_state("to_bus", "halted", Duration::from_secs(15));
    println!("{}", status["detail"]);
    assert!(status["detail"].as_str().unwrap().contains(word), "{status}");
    application.write(50);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    throughout("it stays halted, and nothing is held", Duration::from_secs(2), || {
        let status = daemon.status("to_bus").unwrap();
        status["state"] == "halted" && status["held_keys"] == 0 && status["sink_up"] == false
    });
    status
}

fn everything_arrived(application: &Application, messages: Vec<readers::Message>) {
    let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

#[test]
fn a_missing_topic_halts_and_heals() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let name = unique("absent");
    let sink = kafka("bus", &broker.text("bootstrap"), &name, "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", ""), &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    halted_alone(&mut daemon, &mut application, &name);
    broker.topic(&name, 3, &[]);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(35));
    daemon.until_state("to_bus", "running", Duration::from_secs(1));
    everything_arrived(&application, readers::kafka(broker, &name));
}

#[test]
fn a_missing_exchange_halts_and_heals() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("absent");
    let sink = amqp("bus", &broker.text("uri"), &name, "{type}", "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", ""), &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    halted_alone(&mut daemon, &mut application, &name);
    topology::declare(broker, &name, "#");
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(35));
    daemon.until_state("to_bus", "running", Duration::from_secs(1));
    let mut messages = readers::rabbitmq(broker, &name);

    // And when it goes away under a relay that runs.
    topology::delete_exchange(broker, &name);
    application.write(50);
    halted_alone(&mut daemon, &mut application, &name);
    topology::declare(broker, &name, "#");
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(35));
    messages.extend(readers::rabbitmq(broker, &name));
    everything_arrived(&application, messages);
}

#[test]
fn a_wrong_password_halts_that_relay_alone_at_kafka() {
    let _machine = shared_machine();
    let broker = Broker::start("kafka", &["--sasl-tls"]);
    broker.topic("shop", 3, &[]);
    let security = format!(
        "tls = {{ ca_file = \"{}\" }}\nsasl = {{ mechanism = \"SCRAM-SHA-512\", username = \"alice\", password_file = \"password\" }}",
        broker.tls_file("ca").display()
    );
    let sink = kafka("bus", &broker.text("sasl_tls_bootstrap"), "shop", &security);
    let scene = Scene::without_a_file(&[SHOP, &sink, &relay("bus", ""), &file("lines"), &relay("lines", "")].concat());
    scene.write("password", "wrong");
    scene.init();
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    halted_alone(&mut daemon, &mut application, "uthenti");
    assert_eq!(daemon.get("/readyz").0, 200);
    assert_eq!(daemon.get("/readyz?consumers").0, 503);
    scene.write("password", "secret");
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
    everything_arrived(&application, readers::kafka(&broker, "shop"));
}

#[test]
fn a_wrong_password_halts_that_relay_alone_at_rabbitmq() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("guarded");
    topology::declare(broker, &name, "#");
    let wrong = broker.text("uri").replace("guest:guest", "guest:wrong");
    let config = |uri: &str| {
        [SHOP, &amqp("bus", uri, &name, "{type}", ""), &relay("bus", ""), &file("lines"), &relay("lines", "")].concat()
    };
    let scene = Scene::new(&config(&wrong));
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    halted_alone(&mut daemon, &mut application, "ACCESS");
    scene.configure(&config(&broker.text("uri")));
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
    everything_arrived(&application, readers::rabbitmq(broker, &name));
}

#[test]
fn a_password_that_is_mended_at_rabbitmq_is_found_by_the_probe() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("later");
    topology::declare(broker, &name, "#");
    let uri = broker.text("uri").replace("guest:guest", &format!("{name}:secret"));
    let scene = Scene::new(
        &[SHOP, &amqp("bus", &uri, &name, "{type}", ""), &relay("bus", ""), &file("lines"), &relay("lines", "")]
            .concat(),
    );
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    halted_alone(&mut daemon, &mut application, "ACCESS");
    broker.run("ctl", &["add_user", &name, "secret"]);
    broker.run("ctl", &["set_permissions", &name, ".*", ".*", ".*"]);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(35));
    everything_arrived(&application, readers::rabbitmq(broker, &name));
}
