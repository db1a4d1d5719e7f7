//! Consumers written with eventsource-py's own RabbitMQ and Kafka buses receive what its store and outbox hold: the real library, both brokers.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::fleet::Read;
use outboxd::sink::format::Format;
use serde_json::Value;

use crate::sink_contract::{amqp, kafka};
use crate::support::broker::Broker;
use crate::support::fleet::{self, Relays};

const AGGREGATES: usize = 8;
const EVENTS: usize = 6;

fn tool(name: &str) -> Command {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
    let mut command = Command::new("python3");
    command.arg(tools.join(name)).stdin(Stdio::null());
    command
}

/// The library's own consumer, when it is ready.
struct Consumer {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
}

impl Consumer {
    fn start(bus: &str, url: &str) -> Self {
        let count = (AGGREGATES * EVENTS).to_string();
        let mut child = tool("eventsource_consume.py")
            .args([bus, url, "--count", &count, "--timeout", "60"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready\n") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "the consumer of {bus} ended: {said}");
        }
        Self { child, errors }
    }

    /// What it received, in order.
    fn received(mut self) -> Vec<Value> {
        let lines: Vec<Value> = BufReader::new(self.child.stdout.take().unwrap())
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        let said: String = self.errors.lines().map_while(Result::ok).collect();
        assert!(self.child.wait().unwrap().success(), "{} received; {said}", lines.len());
        lines
    }
}

/// Everything that consumers see of an event, by aggregate, in order.
fn seen(mut events: Vec<Value>) -> Vec<String> {
    events.sort_by_key(|event| event["aggregate_id"].to_string());
    events
        .iter()
        .map(|event| {
            let whole = match &event["body"] {
                Value::String(body) => serde_json::from_str(body).unwrap(),
                _ => event["event"].clone(),
            };
            format!(
                "{} {} {} {} {whole}",
                event["event_id"], event["event_type"], event["aggregate_id"], event["version"]
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_librarys_own_buses() {
    let (rabbitmq, kafka_broker) = (Broker::rabbitmq(), Broker::kafka());
    kafka_broker.topic("events.stream", 3, &[]);
    let (amqp_uri, bootstrap) = (rabbitmq.text("uri"), kafka_broker.text("bootstrap"));
    let from_rabbitmq = Consumer::start("rabbitmq", &amqp_uri);
    let from_kafka = Consumer::start("kafka", &bootstrap);

    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let mut amqp = amqp::settings(&amqp_uri, "events", "{stream_type}.{type}");
    amqp.format = Format::EventsourcePy;
    let mut kafka = kafka::settings(bootstrap, "events.stream");
    kafka.format = Format::EventsourcePy;
    let relays = Relays::start(
        &[fleet::source("outbox", &database, Read::Outbox), fleet::source("log", &database, Read::Events)],
        vec![
            fleet::relay("to_rabbitmq", "outbox", outboxd::sink::Settings::Amqp(amqp)),
            fleet::relay("to_kafka", "log", outboxd::sink::Settings::Kafka(kafka)),
        ],
    );
    // The file appears, and grows, while they run.
    let written = tool("eventsource_write.py")
        .arg(&database)
        .args([&AGGREGATES.to_string(), &EVENTS.to_string(), "--every", "0.01"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(written.status.success());
    let written: Vec<Value> =
        String::from_utf8(written.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written.len(), AGGREGATES * EVENTS);

    let expected = seen(written);
    for consumer in [from_rabbitmq, from_kafka] {
        let received = tokio::task::spawn_blocking(move || consumer.received()).await.unwrap();
        assert_eq!(seen(received), expected);
    }
    for relay in ["to_rabbitmq", "to_kafka"] {
        relays.reaches(relay, |status| status.delivered == (AGGREGATES * EVENTS) as u64 && status.backlog == 0).await;
    }
    tokio::time::timeout(Duration::from_secs(10), relays.stop()).await.unwrap();
}
