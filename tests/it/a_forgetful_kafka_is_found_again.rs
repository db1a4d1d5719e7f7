//! A cluster says once that it has no brokers, as a single node does for an instant while it shuts down: librdkafka forgets all that it knew,
//! and never connects again by itself.

use std::time::{Duration, Instant};

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::forgetful::Forgetful;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{kafka, relay};
use crate::support::wait::until;

/// As after any outage.
pub const FOUND_AGAIN: Duration = Duration::from_secs(5);

/// Whether librdkafka recovers by itself is a matter of which of its threads is first: so often, and until so many clients were given up.
const ROUNDS: usize = 150;
const GIVEN_UP: usize = 3;

/// Says how long it took at most, from the answer without brokers on, until everything was settled; `None` = longer than `most`.
pub fn a_kafka_that_named_no_brokers_is_found_again(environment: &[(&str, &str)], most: Duration) -> Option<Duration> {
    let _machine = shared_machine();
    let way = Forgetful::new();
    let broker = Broker::start("kafka", &["--behind-proxy", &way.port.to_string()]);
    way.lead_to(broker.number("behind_proxy_port"));
    broker.topic("shop", 1, &[]);
    // It asks often, so that the test need not wait for the one instant; and it has much to say, which leaves the wrong thread behind more often.
    let asks = "properties = { \"topic.metadata.refresh.interval.ms\" = 200, debug = \"all\" }";
    let bus = kafka("bus", &format!("127.0.0.1:{}", way.port), "shop", asks);
    let scene = Scene::new(&[SHOP, &bus, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut daemon = scene.daemon_with(environment);
    let mut slowest = Duration::ZERO;
    let (mut rounds, mut given_up) = (0, 0);
    while rounds < ROUNDS && given_up < GIVEN_UP {
        rounds += 1;
        application.write(100);
        daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
        let before = way.forgotten();
        way.forget(true);
        until("it is told that there are no brokers", Duration::from_secs(10), || {
            (way.forgotten() > before).then_some(())
        });
        way.forget(false);
        let start = Instant::now();
        application.write(100);
        if !scene.settles("to_bus", application.head(), most) {
            daemon.kill();
            return None;
        }
        slowest = slowest.max(start.elapsed());
        given_up = daemon.log().matches("kafka_client_replaced").count();
    }
    println!("{rounds} answers without brokers, {given_up} clients given up, settled again after at most {slowest:?}");
    assert!(given_up > 0, "no client had to be given up in {rounds} rounds: nothing was tried");
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::kafka(&broker, "shop")));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    drop(
        Proof::of("a Kafka that named no brokers")
            .tried("answers without brokers", rounds as u64)
            .found("clients given up", given_up)
            .found("settled again after at most", format!("{:.1} s", slowest.as_secs_f64()))
            .found("lost", judgement.lost.len())
            .found("out of order", judgement.out_of_order.len())
            .found("duplicates", judgement.duplicates),
    );
    Some(slowest)
}

#[test]
fn a_kafka_client_that_forgot_all_brokers_is_given_up() {
    let took = a_kafka_that_named_no_brokers_is_found_again(&[], Duration::from_secs(30)).expect("it is found again");
    assert!(took <= FOUND_AGAIN, "{took:?}");
}
