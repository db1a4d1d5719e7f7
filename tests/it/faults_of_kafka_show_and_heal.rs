//! What can be wrong with Kafka, met under 2,000 events a second: it is shown as what it is within 2 s, makes no dead letter, disturbs no
//! other relay, and heals by itself.

use std::time::Duration;

use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{file, kafka, relay};
use crate::support::trial::{Fault, Trial, the_rest_arrived};
use crate::support::wait::until;

const EVENTS_A_SECOND: u32 = 2000;
const REPLICATED: [&str; 6] = ["--partitions", "3", "--replicas", "3", "--config", "min.insync.replicas=2"];

#[test]
fn a_cluster_that_loses_its_leader_or_its_replicas_is_waited_for() {
    let _machine = shared_machine();
    let nodes = Broker::cluster(3);
    nodes[0].run("topic", &[&["shop"], &REPLICATED[..]].concat());
    let servers: Vec<String> = nodes.iter().map(|node| node.text("bootstrap")).collect();
    // What was taken before too few were in sync is given back soon, and told why when it is sent again.
    let patience = "properties = { \"request.timeout.ms\" = 3000 }";
    let bus = kafka("bus", &servers.join("\", \""), "shop", patience);
    let mut trial = Trial::new("faults of a Kafka cluster of three", &bus, "", EVENTS_A_SECOND);

    let leader = nodes[0].run("leader", &["shop"])["node"].as_u64().unwrap() as usize - 1;
    let [second, third] = [1, 2].map(|step| &nodes[(leader + step) % 3]);
    nodes[leader].run("kill", &[]);
    let stalled = trial.heals("leader killed", Duration::from_secs(15));
    trial.note("leader killed", &format!("everything acknowledged again after {:.1} s", stalled.as_secs_f64()));
    nodes[leader].restart();

    // With all three asked for, one that goes leaves too few in sync, and yet a majority of controllers, which says so.
    second.run("alter-topic-config", &["shop", "--config", "min.insync.replicas=3"]);
    let in_sync = trial.heals("all three in sync", Duration::from_secs(20));
    println!("all three in sync after {in_sync:?}");
    let refused = || log_of(second).contains("NotEnoughReplicas") || log_of(third).contains("NotEnoughReplicas");
    trial.suffers(
        &Fault::unavailable("fewer replicas in sync than min.insync.replicas", "no answer")
            .heals_within(Duration::from_secs(20)),
        || drop(nodes[leader].run("kill", &[])),
        || {
            until("NOT_ENOUGH_REPLICAS is answered", Duration::from_secs(10), || refused().then_some(()));
            nodes[leader].restart();
        },
    );
    second.run("alter-topic-config", &["shop", "--config", "min.insync.replicas=2"]);

    // And now there is no majority of controllers either.
    trial.suffers(
        &Fault::unavailable("two nodes of three killed", "").heals_within(Duration::from_secs(40)),
        || {
            nodes[leader].run("kill", &[]);
            second.run("kill", &[]);
        },
        || {
            std::thread::scope(|scope| {
                scope.spawn(|| nodes[leader].restart());
                scope.spawn(|| second.restart());
            });
        },
    );
    let (ledger, mut proof) = trial.end();
    let judgement = judge(&ledger, &[], &readers::arrivals(readers::kafka(third, "shop")));
    println!("{}", judgement.summary());
    assert!(judgement.is_clean(), "{}", judgement.summary());
    proof = proof.tried("events", ledger.len() as u64);
    drop(proof.found("lost", 0).found("out of order", 0).found("duplicates", judgement.duplicates));
}

fn log_of(node: &Broker) -> String {
    std::fs::read_to_string(node.text("log")).unwrap_or_default()
}

#[test]
fn rights_password_and_topic_are_taken_away_at_kafka_and_given_back() {
    let _machine = shared_machine();
    let broker = Broker::start("kafka", &["--acl"]);
    broker.topic("shop", 3, &[]);
    let sasl = "sasl = { mechanism = \"SCRAM-SHA-512\", username = \"alice\", password_file = \"password\" }\nallow_plaintext = true";
    let bus = kafka("bus", &broker.text("sasl_bootstrap"), "shop", sasl);
    let scene = Scene::without_a_file(&[SHOP, &bus, &relay("bus", ""), &file("lines"), &relay("lines", "")].concat());
    scene.write("password", "secret");
    scene.init();
    let mut trial = Trial::of("rights, password and topic at Kafka", scene, EVENTS_A_SECOND);

    // It may see the topic, so that a probe finds nothing wrong.
    trial.suffers(
        &Fault::halted("the right to write missing", "uthoriz"),
        || drop(broker.run("allow", &["alice", "--topic", "shop", "--operation", "describe"])),
        || drop(broker.run("allow", &["alice", "--topic", "shop", "--operation", "write"])),
    );
    trial.suffers(
        &Fault::halted("the right to write denied", "uthoriz"),
        || drop(broker.run("deny", &["alice", "--topic", "shop", "--operation", "write"])),
        || drop(broker.run("clear-acls", &["--topic", "shop"])),
    );
    trial.suffers(
        // Those who are inside are not asked again: it is met on the way back in, which may begin 3 s after the broker is there.
        &Fault::halted("another password at the broker", "uthenti").seen_within(Duration::from_secs(5)),
        || {
            broker.run("password", &["alice", "another"]);
            broker.run("kill", &[]);
            broker.restart();
        },
        || drop(broker.run("password", &["alice", "secret"])),
    );
    let before = readers::arrivals(readers::kafka(&broker, "shop"));

    trial.suffers(
        &Fault::halted("topic deleted under the relay", "there is no topic shop"),
        || drop(broker.run("delete-topic", &["shop"])),
        || broker.topic("shop", 3, &[]),
    );
    let (ledger, proof) = trial.end();
    assert!(!before.is_empty());
    the_rest_arrived(&ledger, &readers::arrivals(readers::kafka(&broker, "shop")));
    drop(proof.tried("events", ledger.len() as u64).found("lost", 0).found("out of order", 0));
}
