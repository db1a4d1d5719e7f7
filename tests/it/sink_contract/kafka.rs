//! The Kafka sink's rig, and what only Kafka can do.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use outboxd::event::Reason;
use outboxd::secret::Secret;
use outboxd::sink::format::Format;
use outboxd::sink::kafka::{Kafka, Mechanism, Sasl, Security, Settings};
use outboxd::sink::template::Template;
use outboxd::sink::{FaultClass, News, Outcome, Port, Sink};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::rig::{Case, Message, Rig, unique};
use crate::support::broker::Broker;
use crate::support::flights::{Draft, Tower};
use crate::support::readers;

crate::sink_contract!(KafkaRig);

enum Held {
    Shared(&'static Broker),
    Own(Broker),
}

impl Deref for Held {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        match self {
            Held::Shared(broker) => broker,
            Held::Own(broker) => broker,
        }
    }
}

struct KafkaRig {
    broker: Held,
    prefix: String,
}

const PARTITIONS: i32 = 3;

impl KafkaRig {
    fn with(broker: Held) -> Self {
        let prefix = unique("t");
        broker.topic(&format!("{prefix}.good"), PARTITIONS as u32, &[]);
        broker.topic(&format!("{prefix}.small"), 1, &["max.message.bytes=1500"]);
        Self { broker, prefix }
    }
}

pub fn settings(bootstrap: String, topic: &str) -> Settings {
    Settings {
        bootstrap_servers: vec![bootstrap],
        topic: Template::parse(topic).unwrap(),
        format: Format::Plain,
        headers: vec![],
        key: None,
        partition: None,
        properties: BTreeMap::new(),
        security: Security::default(),
        ack_timeout: Duration::from_secs(10),
    }
}

impl Rig for KafkaRig {
    async fn new() -> Self {
        Self::with(Held::Shared(Broker::kafka()))
    }

    async fn alone() -> Self {
        Self::with(Held::Own(Broker::start("kafka", &[])))
    }

    fn open(&self, port: Port, case: Case) -> Box<dyn Sink> {
        let topic = match case {
            Case::Ordinary => "good",
            Case::Routing => "{stream_type}",
            Case::Small => "small",
            Case::Nowhere => "nowhere",
        };
        let settings = settings(self.broker.text("bootstrap"), &format!("{}.{topic}", self.prefix));
        Box::new(Kafka::new(settings, port))
    }

    fn make_unroutable(&self, draft: &mut Draft) {
        // One topic that is not there, and one that cannot be.
        draft.stream_type = if draft.id.len().is_multiple_of(2) { "missing" } else { "not legal" }.into();
    }

    fn make_oversize(&self, draft: &mut Draft) -> bool {
        draft.payload = vec![b'x'; 3000];
        true
    }

    async fn arrived(&self, least: usize) -> Vec<Message> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.broker.text("bootstrap"))
            .set("group.id", "contract")
            .create()
            .unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(&format!("{}.good", self.prefix), partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let mut messages = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut quiet = Instant::now();
        while Instant::now() < deadline && (messages.len() < least || quiet.elapsed() < Duration::from_millis(300)) {
            let Some(record) = consumer.poll(Duration::from_millis(100)) else { continue };
            let record = record.unwrap();
            quiet = Instant::now();
            let headers: BTreeMap<String, String> = record
                .headers()
                .unwrap()
                .iter()
                .map(|header| (header.key.into(), String::from_utf8(header.value.unwrap().into()).unwrap()))
                .collect();
            messages.push(Message {
                id: headers["id"].clone(),
                kind: headers["type"].clone(),
                key: String::from_utf8(record.key().unwrap().into()).unwrap(),
                body: record.payload().unwrap().into(),
                headers,
            });
        }
        messages
    }

    async fn stop(&self) {
        self.broker.stop();
    }

    async fn start(&self) {
        self.broker.restart();
    }

    async fn pause(&self) {
        self.broker.run("pause", &[]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_missing_rights_are_fatal() {
    let broker = Broker::start("kafka", &["--acl"]);
    broker.topic("guarded", 1, &[]);
    broker.run("allow", &["alice", "--topic", "guarded"]);
    broker.run("deny", &["bob", "--topic", "guarded", "--operation", "write"]);
    let sasl = |username: &str, password: &str| {
        let sasl =
            Sasl { mechanism: Mechanism::ScramSha256, username: username.into(), password: Secret::new(password) };
        let bootstrap = broker.text("sasl_bootstrap");
        Settings { security: Security { tls: None, sasl: Some(sasl) }, ..settings(bootstrap, "guarded") }
    };
    let mut tower = Tower::new("contract");

    let mut wrong = Kafka::new(sasl("alice", "wrong"), tower.port.clone());
    let start = Instant::now();
    let fault = wrong.check(Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Fatal, "{fault:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    tower.hear(Duration::from_secs(5), |news| matches!(news, News::Trouble(f) if f.class == FaultClass::Fatal)).await;

    let mut right: Box<dyn Sink> = Box::new(Kafka::new(sasl("alice", "secret"), tower.port.clone()));
    right.check(Duration::from_secs(10)).await.unwrap();
    assert_eq!(tower.send(&mut *right, &[Draft::nth("s", 0)]).await, [Outcome::Delivered]);

    let mut denied: Box<dyn Sink> = Box::new(Kafka::new(sasl("bob", "secret"), tower.port.clone()));
    let _ = denied.check(Duration::from_secs(10)).await;
    let outcomes = tower.send(&mut *denied, &[Draft::nth("s", 1)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Unavailable(fault)] if fault.class == FaultClass::Fatal), "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_reports_of_a_broker_that_answers_end_the_producer() {
    let broker = Broker::kafka();
    let topic = unique("overdue");
    broker.topic(&topic, 1, &[]);
    let mut tower = Tower::new("contract");
    let mut settings = settings(broker.text("bootstrap"), &topic);
    settings.ack_timeout = Duration::from_secs(1);
    // Whatever it is that keeps them: here the client is told to wait for more.
    settings.properties.insert("linger.ms".into(), "60000".into());
    let mut sink: Box<dyn Sink> = Box::new(Kafka::new(settings, tower.port.clone()));
    sink.check(Duration::from_secs(10)).await.unwrap();
    let drafts: Vec<_> = (0..20).map(|n| Draft::nth("v", n)).collect();
    let flight = tower.flight(&drafts);
    sink.send(flight.clone());
    sink.check(Duration::from_secs(3)).await.unwrap();
    assert!(tower.land(&flight, Duration::from_secs(2)).await.is_err(), "a probe before the time is over ends nothing");
    sink.check(Duration::from_secs(3)).await.unwrap();
    let outcomes = tower.land(&flight, Duration::from_secs(2)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unavailable(_))), "{outcomes:?}");
    let start = Instant::now();
    sink.close().await;
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_said_is_taken_and_one_that_is_not_there_is_a_refusal() {
    let broker = Broker::kafka();
    let topic = unique("parts");
    broker.topic(&topic, PARTITIONS as u32, &[]);
    let mut tower = Tower::new("contract");
    let with = |partition: &str| Settings {
        partition: Some(Template::parse(partition).unwrap()),
        ..settings(broker.text("bootstrap"), &topic)
    };
    let mut sink: Box<dyn Sink> = Box::new(Kafka::new(with("{stream_type}"), tower.port.clone()));
    sink.check(Duration::from_secs(10)).await.unwrap();
    let to = |n: usize, partition: &str| Draft { stream_type: partition.into(), ..Draft::nth("p", n) };
    let drafts: Vec<_> = (0..30).map(|n| to(n, &(n % 3).to_string())).collect();
    // The first are sent before the client knows how many partitions there are.
    let wrong = [to(30, "3"), to(31, "-1"), to(32, "one"), to(33, "2147483647"), to(34, "")];
    let outcomes = tower.send(&mut *sink, &[&wrong[..], &drafts, &wrong].concat()).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        let word = match n {
            5..35 => {
                assert_eq!(*outcome, Outcome::Delivered, "{n}");
                continue;
            }
            n if n % 5 == 0 => "has no partition 3",
            n if n % 5 == 3 => "has no partition 2147483647",
            _ => "is no partition",
        };
        let Outcome::Rejected(rejection) = outcome else { panic!("{n}: {outcome:?}") };
        assert!(rejection.reason == Reason::Unroutable && rejection.detail.contains(word), "{n}: {rejection:?}");
    }
    sink.close().await;
    let mut constant: Box<dyn Sink> = Box::new(Kafka::new(with("1"), tower.port.clone()));
    constant.check(Duration::from_secs(10)).await.unwrap();
    assert_eq!(tower.send(&mut *constant, &[Draft::nth("c", 0)]).await, [Outcome::Delivered]);
    constant.close().await;
    let fault = Kafka::new(with("3"), tower.port.clone()).check(Duration::from_secs(10)).await.unwrap_err();
    assert!(fault.class == FaultClass::Fatal && fault.detail.contains("has 3 partitions"), "{fault:?}");
    let bootstrap = broker.text("bootstrap");
    let lines = readers::read("read_kafka.py", &[&bootstrap, &topic, "--from-beginning", "--until-end"]);
    let found: BTreeMap<String, u64> = lines
        .iter()
        .map(|line| (line["headers"]["id"].as_str().unwrap().to_owned(), line["partition"].as_u64().unwrap()))
        .collect();
    let expected = (0..30).map(|n| (format!("p-{n}"), n % 3)).chain([("c-0".to_owned(), 1)]).collect();
    assert_eq!((found, lines.len()), (expected, 31));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_deleted_under_the_sink_is_fatal() {
    let broker = Broker::kafka();
    let topic = unique("deleted");
    broker.topic(&topic, 1, &[]);
    let mut tower = Tower::new("contract");
    let mut sink: Box<dyn Sink> = Box::new(Kafka::new(settings(broker.text("bootstrap"), &topic), tower.port.clone()));
    sink.check(Duration::from_secs(10)).await.unwrap();
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("x", 0)]).await, [Outcome::Delivered]);
    broker.run("delete-topic", &[&topic]);
    let outcomes = tower.send(&mut *sink, &[Draft::nth("x", 1)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Unavailable(f)] if f.class == FaultClass::Fatal), "{outcomes:?}");
    assert_eq!(sink.check(Duration::from_secs(10)).await.unwrap_err().class, FaultClass::Fatal);
    broker.topic(&topic, 1, &[]);
    crate::support::flights::recover(&mut *sink, Duration::from_secs(10)).await;
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("x", 1)]).await, [Outcome::Delivered]);
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_and_a_stranger_is_fatal() {
    let broker = Broker::start("kafka", &["--sasl-tls"]);
    broker.topic("sealed", 1, &[]);
    let alice =
        || Sasl { mechanism: Mechanism::ScramSha512, username: "alice".into(), password: Secret::new("secret") };
    let with = |bootstrap: &str, tls, sasl| Settings {
        security: Security { tls: Some(tls), sasl },
        ..settings(broker.text(bootstrap), "sealed")
    };
    let mut tower = Tower::new("contract");
    for right in [
        with("sasl_tls_bootstrap", broker.tls("ca", None), Some(alice())),
        with("mtls_bootstrap", broker.tls("ca", Some("client")), None),
    ] {
        let mut sink: Box<dyn Sink> = Box::new(Kafka::new(right, tower.port.clone()));
        sink.check(Duration::from_secs(10)).await.unwrap();
        assert_eq!(tower.send(&mut *sink, &[Draft::nth("s", 0)]).await, [Outcome::Delivered]);
        sink.close().await;
    }
    for wrong in [
        with("sasl_tls_bootstrap", broker.tls("stranger_ca", None), Some(alice())),
        with("mtls_bootstrap", broker.tls("ca", Some("stranger")), None),
    ] {
        let mut sink = Kafka::new(wrong, tower.port.clone());
        let fault = sink.check(Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(fault.class, FaultClass::Fatal, "{fault:?}");
    }
}
