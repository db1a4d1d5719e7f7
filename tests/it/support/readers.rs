//! What really stands in a topic or a queue, read by clients that are not ours (tests/tools), as child processes.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::broker::Broker;
use super::referee::{Arrival, Print};

/// A message as the reader printed it.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: String,
    pub lane: u32,
    /// Kafka: when the producer took it, in milliseconds since 1970.
    pub at_millis: i64,
    /// RabbitMQ.
    pub routing_key: String,
    /// It says of itself that it may have been sent before.
    pub says_redelivery: bool,
    /// What its bytes are known by; `None` for a message without a body.
    pub body: Option<Print>,
}

/// Everything in the topic, in order within each partition.
pub fn kafka(broker: &Broker, topic: &str) -> Vec<Message> {
    let bootstrap = broker.text("bootstrap");
    let lines = read("read_kafka.py", &[&bootstrap, topic, "--from-beginning", "--until-end", "--sha256"]);
    let message = |line: Value| Message {
        id: line["headers"]["id"].as_str().unwrap_or_else(|| panic!("no id: {line}")).to_owned(),
        lane: line["partition"].as_u64().unwrap() as u32,
        at_millis: line["timestamp"].as_i64().unwrap(),
        routing_key: String::new(),
        says_redelivery: line["headers"].get("outboxd-redelivery").is_some(),
        body: print_in(&line),
    };
    lines.into_iter().map(message).collect()
}

fn print_in(line: &Value) -> Option<Print> {
    Some(Print::parse(line["sha256"].as_str()?).unwrap())
}

/// Drains the queue.
pub fn rabbitmq(broker: &Broker, queue: &str) -> Vec<Message> {
    let uri = broker.text("uri");
    let lines = read("read_amqp.py", &[&uri, queue, "--until-idle", "2", "--timeout", "300", "--sha256"]);
    let message = |line: Value| Message {
        id: line["message_id"].as_str().unwrap_or_else(|| panic!("no id: {line}")).to_owned(),
        lane: 0,
        at_millis: 0,
        routing_key: line["routing_key"].as_str().unwrap().to_owned(),
        says_redelivery: line["headers"].get("outboxd-redelivery").is_some(),
        body: print_in(&line),
    };
    lines.into_iter().map(message).collect()
}

/// The lines that the tool prints.
pub fn read(tool: &str, arguments: &[&str]) -> Vec<Value> {
    let script = format!("{}/tests/tools/{tool}", env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new(script).args(arguments).output().expect("scripts/setup has made the readers' environment");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {} {told}", output.status);
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[derive(Deserialize)]
struct Line<'a> {
    id: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

/// The lines of an NDJSON file, as what arrived there.
pub fn lines(path: &std::path::Path) -> Vec<Arrival> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let line: Line<'_> = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let bytes = line.data_base64.map(|text| STANDARD.decode(text).unwrap());
            let body = line.data.map(|data| data.get().as_bytes()).or(bytes.as_deref()).map(Print::of);
            Arrival { id: line.id, lane: 0, run: 0, body }
        })
        .collect()
}

/// For the referee, where nobody asks which run sent what.
pub fn arrivals(messages: Vec<Message>) -> Vec<Arrival> {
    messages.into_iter().map(|message| arrival(message, 0)).collect()
}

/// For the referee.
pub fn arrival(message: Message, run: u32) -> Arrival {
    Arrival { id: message.id, lane: message.lane, run, body: message.body }
}
