//! The doctor at the far side: faults that are planted in a real Kafka and a real RabbitMQ are found, and nothing else; the remedies that it prints
//! mend them; nothing is sent, and nothing is made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene};
use crate::support::readers;
use crate::support::relays::{self, relay};
use crate::support::rig::open;
use crate::support::wait::within;

/// A scene in whose folder `bin` the brokers' own tools lie, each of which asks the broker.
struct Ward {
    scene: Scene,
}

impl Ward {
    fn new(config: &str, broker: &Broker) -> Self {
        let scene = Scene::new(&[SHOP, config].concat());
        fs::create_dir(scene.path("bin")).unwrap();
        let ward = Self { scene };
        let (root, dir) = (env!("CARGO_MANIFEST_DIR"), broker.text("dir"));
        let script = format!("{root}/scripts/broker");
        ward.tool(
            "kafka-configs.sh",
            &format!("exec java -cp '{root}/.tools/kafka/libs/*' kafka.admin.ConfigCommand \"$@\""),
        );
        // This one tool is not among Kafka's jars.
        let create = "[ \"$3\" = --create ] && [ \"$4\" = --topic ] && [ \"$8\" = --replication-factor ]";
        ward.tool(
            "kafka-topics.sh",
            &format!("{create} && exec {script} kafka topic {dir} \"$5\" --partitions \"$7\" --replicas \"$9\""),
        );
        ward.tool("rabbitmqctl", &format!("exec {script} rabbitmq ctl {dir} \"$@\""));
        if let Some(management) = broker.facts["management"].as_str() {
            let (_, port) = management.rsplit_once(':').unwrap();
            ward.scene.write(".rabbitmqadmin.conf", &format!("[default]\nhostname = 127.0.0.1\nport = {port}\n"));
        }
        ward
    }

    fn tool(&self, name: &str, line: &str) {
        let path = self.scene.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{line}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn app(&self) -> Connection {
        open(&self.scene.path("app.db"))
    }

    /// What it finds of sinks, and its exit code.
    fn sinks(&self) -> (Vec<Value>, i32) {
        let output = self.scene.outboxd(&["doctor", "--json"]);
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let found = answer["findings"].as_array().unwrap().iter();
        let sinks = found.filter(|found| ["sink", "events"].contains(&found["check"].as_str().unwrap()));
        (sinks.cloned().collect(), output.status.code().unwrap())
    }

    /// What is not ok.
    fn wrong(&self) -> Vec<Value> {
        self.sinks().0.into_iter().filter(|found| found["verdict"] != "ok").collect()
    }

    /// Exactly these, each by its verdict and some of its words.
    fn finds(&self, expected: &[(&str, &str)]) -> Vec<Value> {
        let wrong = self.wrong();
        let of = |(verdict, words): &(&str, &str)| {
            let is_it = |found: &&Value| found["verdict"] == *verdict && evidence(found).contains(words);
            wrong.iter().find(is_it).unwrap_or_else(|| panic!("{words:?} is not found in {wrong:#?}")).clone()
        };
        let found: Vec<Value> = expected.iter().map(of).collect();
        let others: Vec<&Value> = wrong.iter().filter(|wrong| !found.contains(wrong)).collect();
        assert!(others.is_empty(), "nothing else is wrong: {others:#?}");
        found
    }

    /// Carries the remedies out, as they are printed.
    fn mend(&self, found: &[Value]) {
        let path = format!("{}:{}", self.scene.path("bin").display(), std::env::var("PATH").unwrap());
        for command in found.iter().flat_map(|found| found["commands"].as_array().unwrap()) {
            let command = command.as_str().unwrap();
            let mut shell = Command::new("sh");
            shell
                .args(["-c", command])
                .current_dir(self.scene.path(""))
                .env("PATH", &path)
                .env("HOME", self.scene.path(""));
            let output = shell.output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&said));
        }
    }
}

fn evidence(found: &Value) -> &str {
    found["evidence"].as_str().unwrap()
}

fn place(app: &Connection, kind: &str, bytes: usize) {
    place_as(app, kind, kind, bytes);
}

fn place_as(app: &Connection, id: &str, kind: &str, bytes: usize) {
    let payload = format!("\"{}\"", "x".repeat(bytes));
    let sql = "INSERT INTO outbox (id, stream_id, type, payload) VALUES (?1, 'o', ?2, ?3)";
    app.execute(sql, [id, kind, &payload]).unwrap();
}

fn kafka(broker: &Broker, topic: &str) -> String {
    relays::kafka("bus", &broker.text("bootstrap"), topic, "") + &relay("bus", "")
}

fn amqp(uri: &str, name: &str, exchange: &str, more: &str) -> String {
    relays::amqp(name, uri, exchange, "{type}", more)
}

#[test]
fn what_is_wrong_with_topics_is_found_and_mended() {
    let broker = Broker::kafka();
    let ward = Ward::new(&kafka(broker, "sick.{type}"), broker);
    let app = ward.app();
    broker.topic("sick.Fine", 3, &[]);
    broker.topic("sick.Large", 1, &["max.message.bytes=2000"]);
    broker.topic("sick.Strict", 1, &["min.insync.replicas=2"]);
    broker.topic("sick.Compact", 1, &["cleanup.policy=compact"]);
    broker.topic("sick.Unclean", 1, &["unclean.leader.election.enable=true"]);
    place(&app, "Large", 5_000);
    for kind in ["Strict", "Compact", "Unclean", "Missing"] {
        place(&app, kind, 10);
    }
    // The large one is none of the newest.
    for n in 0..100 {
        place_as(&app, &format!("f{n}"), "Fine", n);
    }
    let found = ward.finds(&[("danger", "event Large would have")]);
    assert!(evidence(&found[0]).contains("and topic sick.Large takes 2000 (max.message.bytes)"), "{found:#?}");
    app.execute("DELETE FROM outbox WHERE type = 'Fine' AND position % 2 = 0", []).unwrap();

    let found = ward.finds(&[
        ("danger", "topic sick.Missing is not there, and the cluster makes none by itself"),
        ("danger", "event Large would have"),
        ("danger", "topic sick.Strict has 1 replicas and min.insync.replicas 2: nothing is ever acknowledged"),
        ("advice", "topic sick.Compact is compacted"),
        ("advice", "topic sick.Unclean: unclean.leader.election.enable"),
    ]);
    let (all, code) = ward.sinks();
    assert!(code == 69 || code == 65, "a danger, and no other than at the sink unless this machine has one: {code}");
    let routed = all.iter().find(|found| evidence(found).starts_with("the last 55 events would go to")).unwrap();
    assert!(evidence(routed).contains("topic sick.Fine (50)") && evidence(routed).contains("topic sick.Missing (1)"));
    ward.mend(&found);
    let healthy = within(Duration::from_secs(20), || Some(()).filter(|()| ward.wrong().is_empty()));
    assert!(healthy.is_some(), "all is mended: {:#?}", ward.wrong());
}

#[test]
fn no_topic_is_made_by_looking_at_it() {
    let broker = Broker::start("kafka", &["--prop", "auto.create.topics.enable=true", "--prop", "num.partitions=5"]);
    let ward = Ward::new(&kafka(&broker, "{type}"), &broker);
    place(&ward.app(), "New", 10);
    let found = ward.finds(&[("advice", "topic New is not there; the cluster makes topics by itself")]);
    assert!(
        evidence(&found[0]).ends_with("this one with 5 partitions, 1 replicas and min.insync.replicas 1"),
        "{found:#?}"
    );
    assert_eq!(broker.run("topics", &[]), serde_json::json!({}));
}

/// What the doctor says of a size the broker does.
#[test]
fn an_event_weighs_what_the_broker_says() {
    let broker = Broker::kafka();
    let more = "headers = [\"stream_id\", \"position\"]";
    let config = relays::kafka("bus", &broker.text("bootstrap"), "weigh.{type}", more) + &relay("bus", "");
    let ward = Ward::new(&config, broker);
    for name in ["Whole", "Short"] {
        broker.topic(&format!("weigh.{name}"), 1, &["max.message.bytes=100"]);
        let payload = format!("\"{}\"", "x".repeat(3_000));
        let sql = "INSERT INTO outbox (id, stream_id, type, payload) VALUES (?1, ?1, ?1, ?2)";
        ward.app().execute(sql, [name, &payload]).unwrap();
    }
    let found = ward.finds(&[("danger", "event Whole would have"), ("danger", "event Short would have")]);
    let weight = |found: &Value| evidence(found).split(' ').nth(4).unwrap().parse::<usize>().unwrap();
    let weights = [weight(&found[0]), weight(&found[1])];
    assert_eq!(weights[0], weights[1]);
    for (name, most) in [("weigh.Whole", weights[0]), ("weigh.Short", weights[0] - 1)] {
        broker.run("alter-topic-config", &[name, "--config", &format!("max.message.bytes={most}")]);
    }
    let expected = [("advice", "topic weigh.Whole takes"), ("danger", "event Short would have")];
    let changed =
        within(Duration::from_secs(20), || (ward.wrong()[0]["verdict"] != ward.wrong()[1]["verdict"]).then_some(()));
    assert!(changed.is_some(), "{:#?}", ward.wrong());
    ward.finds(&expected);
    let mut daemon = ward.scene.daemon();
    daemon.until_settled("to_bus", 2, Duration::from_secs(20));
    assert_eq!(ward.scene.status("to_bus").unwrap()["held_keys"], 1);
    daemon.stop(Duration::from_secs(10));
    assert_eq!((readers::kafka(broker, "weigh.Whole").len(), readers::kafka(broker, "weigh.Short").len()), (1, 0));
}

#[test]
fn what_is_wrong_with_replicas_is_found_and_mended() {
    let cluster = Broker::cluster(3);
    let ward = Ward::new(&kafka(&cluster[0], "{type}"), &cluster[0]);
    let app = ward.app();
    for (name, replicas, least) in [("Safe", "3", "2"), ("Single", "1", "1"), ("Lax", "3", "1"), ("Brittle", "3", "3")]
    {
        let least = format!("min.insync.replicas={least}");
        cluster[0].run("topic", &[name, "--replicas", replicas, "--config", &least]);
        place(&app, name, 10);
    }
    let found = ward.finds(&[
        ("advice", "topic Single has one replica, on a cluster of 3 brokers"),
        ("advice", "topic Lax has 3 replicas and min.insync.replicas 1"),
        (
            "advice",
            "topic Brittle has 3 replicas and min.insync.replicas 3: with one broker away nothing is acknowledged",
        ),
    ]);
    app.execute("DELETE FROM outbox WHERE type = 'Single'", []).unwrap();
    ward.mend(&found[1..]);
    let wait = Duration::from_secs(30);
    assert!(within(wait, || ward.wrong().is_empty().then_some(())).is_some(), "{:#?}", ward.wrong());
    cluster[0].run("alter-topic-config", &["Brittle", "--config", "min.insync.replicas=3"]);
    cluster[2].run("kill", &[]);
    let halted = || {
        let words =
            "topic Brittle: partitions 0 have fewer replicas in sync than min.insync.replicas 3, and take nothing";
        ward.wrong().iter().any(|found| found["verdict"] == "danger" && evidence(found) == words).then_some(())
    };
    assert!(within(wait, halted).is_some(), "{:#?}", ward.wrong());
}

#[test]
fn what_may_not_be_seen_of_a_topic_is_said() {
    let broker = Broker::start("kafka", &["--acl"]);
    let mut users = broker.facts["users"].as_object().unwrap().iter();
    let (name, password) = users.find(|(name, _)| *name != "admin").unwrap();
    let sasl = format!("sasl = {{ mechanism = \"PLAIN\", username = {name:?}, password = {password} }}");
    let config = relays::kafka("bus", &broker.text("sasl_bootstrap"), "shop", &sasl) + &relay("bus", "");
    let ward = Ward::new(&config, &broker);
    broker.topic("shop", 1, &[]);
    place(&ward.app(), "Placed", 10);
    ward.finds(&[]);
    broker.run("allow", &[name, "--topic", "shop", "--operation", "write"]);
    broker.run("deny", &[name, "--topic", "shop", "--operation", "describe-configs"]);
    let denied =
        || ward.wrong().into_iter().find(|found| evidence(found).starts_with("how topic shop is set may not be seen"));
    let found = within(Duration::from_secs(20), denied).unwrap_or_else(|| panic!("{:#?}", ward.sinks()));
    assert_eq!((&found["verdict"], ward.wrong().len()), (&Value::from("advice"), 1), "{:#?}", ward.wrong());
    assert!(found["commands"][0].as_str().unwrap().ends_with("--operation DescribeConfigs --topic shop"), "{found:#}");
    broker.run("clear-acls", &["--topic", "shop"]);
    let seen = within(Duration::from_secs(20), || ward.wrong().is_empty().then_some(()));
    assert!(seen.is_some(), "{:#?}", ward.wrong());
}

fn declare(ward: &Ward, what: &str) {
    ward.mend(&[serde_json::json!({ "commands": [format!("rabbitmqadmin declare {what}")] })]);
}

#[test]
fn what_loses_events_behind_an_exchange_is_found_and_mended() {
    let broker = Broker::start("rabbitmq", &["--management"]);
    let (uri, management) = (broker.text("uri"), format!("management = \"{}\"", broker.text("management")));
    let config = [
        amqp(&uri, "shop", "shop", &management),
        relay("shop", ""),
        amqp(&uri, "plain", "", &format!("{management}\nmandatory = false")),
        relay("plain", "types = [\"Direct\"]"),
    ];
    let ward = Ward::new(&config.concat(), &broker);
    let app = ward.app();
    for kind in ["Kept", "Gone", "Direct", "Short", "Brief", "Around"] {
        place(&app, kind, 10);
    }
    let bind = |exchange: &str, queue: &str, key: &str| {
        declare(
            &ward,
            &format!("binding source={exchange} destination={queue} destination_type=queue routing_key='{key}'"),
        );
    };
    declare(&ward, "exchange name=shop type=topic durable=false");
    declare(&ward, "exchange name=around type=fanout");
    declare(&ward, "binding source=shop destination=around destination_type=exchange routing_key='Around.#'");
    for (queue, exchange, key, arguments) in [
        ("kept", "shop", "Kept", r#"durable=true arguments='{"x-queue-type":"quorum"}'"#),
        ("gone", "shop", "Gone", "durable=false"),
        ("short", "shop", "Short", r#"durable=true arguments='{"x-max-length":9}'"#),
        ("brief", "shop", "Brief", "durable=true"),
        ("around", "around", "", "durable=true"),
    ] {
        declare(&ward, &format!("queue name={queue} {arguments}"));
        bind(exchange, queue, key);
    }
    declare(&ward, r#"policy name=brief pattern='^brief$' definition='{"message-ttl":1000}' apply-to=queues"#);

    let expected = [
        ("advice", "exchange shop is not durable"),
        (
            "danger",
            "no queue takes what exchange shop is given by routing key \"Direct\": 1 of these events would be returned",
        ),
        ("danger", "queue gone is not durable"),
        ("advice", "queue short holds at most 9 (max-length), and then drops the oldest"),
        ("advice", "queue brief drops events that nobody took within 1000 ms"),
        ("danger", "queue Direct is not there"),
    ];
    let found = within(Duration::from_secs(20), || Some(ward.wrong()).filter(|wrong| wrong.len() == expected.len()));
    assert!(found.is_some(), "{:#?}", ward.wrong());
    let found = ward.finds(&expected);
    assert!(evidence(&found[5]).ends_with("dropped silently (mandatory = false)"), "{found:#?}");
    let (all, _) = ward.sinks();
    assert!(all.iter().any(|found| evidence(found).ends_with("around (classic), kept (quorum)")), "{all:#?}");
    ward.mend(&found);
    let healthy = within(Duration::from_secs(20), || ward.wrong().is_empty().then_some(()));
    assert!(healthy.is_some(), "all is mended: {:#?}", ward.wrong());
    let queues = broker.run("ctl", &["list_queues", "--no-table-headers", "name", "durable", "messages"]).to_string();
    assert!(queues.contains("gone\\ttrue\\t0") && queues.contains("Direct\\ttrue\\t0"), "nothing was sent: {queues}");
}

#[test]
fn a_user_whom_the_management_api_does_not_let_in_is_told() {
    let broker = Broker::start("rabbitmq", &["--management"]);
    broker.run("ctl", &["add_user", "relay", "word"]);
    broker.run("ctl", &["set_permissions", "relay", ".*", ".*", ".*"]);
    let uri = broker.text("uri").replace("guest:guest", "relay:word");
    let config = |more: &str| amqp(&uri, "shop", "amq.topic", more) + &relay("shop", "");
    let ward = Ward::new(&config(""), &broker);
    place(&ward.app(), "Placed", 10);
    ward.finds(&[]);
    let (all, _) = ward.sinks();
    assert!(
        all.iter().any(|found| evidence(found).starts_with("AMQP does not tell whether a queue takes")),
        "{all:#?}"
    );
    let management = broker.text("management");
    ward.scene.configure(&[SHOP, &config(&format!("management = \"{management}\""))].concat());
    let found = ward.finds(&[("advice", "the management API does not let the user relay in")]);
    assert!(!found[0].to_string().contains("word"), "no password is told: {found:#?}");
    ward.mend(&found);
    ward.finds(&[("danger", "no queue takes what exchange amq.topic is given by routing key \"Placed\"")]);
    broker.run("ctl", &["stop_app"]);
    ward.finds(&[("danger", "connecting to RabbitMQ")]);
}
