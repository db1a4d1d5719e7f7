//! Hostile rows to real brokers, read back by clients of somebody else: bodies byte for byte, ids and positions beside them.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::oracle::{Event, Fate, Table, judge, obeyed};
use super::rows::{Cell, Row, Taste};
use super::{insert, loose, peak_mib};
use crate::sink_contract::rig::unique;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::relays::{amqp, kafka, relay};
use crate::support::{readers, topology};

const EVENT_BYTES_MAX: usize = 4 << 20;
/// AMQP's limit for what stands in a message's properties.
const SHORT_BYTES_MAX: usize = 255;
/// What the headers of one message may come to is less than this, and more than a third of it (a frame has 128 KiB).
const HEADERS_BYTES: usize = 150_000;

/// What a broker takes, beyond what the row itself says.
fn fate(row: &Row, at: Far) -> Fate {
    let Fate::Delivered(event) = judge(Table::Outbox, row, EVENT_BYTES_MAX) else {
        return judge(Table::Outbox, row, EVENT_BYTES_MAX);
    };
    let refused = |reason| Fate::Dead([reason].into());
    let headers = event.headers.as_ref().map_or(0, String::len);
    match at {
        Far::Kafka if event.payload.as_ref().is_some_and(|payload| payload.len() > 1_000_000) => refused("too_large"),
        Far::RabbitMq if event.id.len() > SHORT_BYTES_MAX || event.kind.len() > SHORT_BYTES_MAX => {
            refused("undecodable")
        }
        Far::RabbitMq if headers > HEADERS_BYTES => refused("too_large"),
        _ => Fate::Delivered(event),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Far {
    Kafka,
    RabbitMq,
}

/// A message, as somebody else's client saw it.
pub struct Message {
    pub position: i64,
    pub id: String,
    pub kind: String,
    /// Kafka has one.
    pub key: Option<Vec<u8>>,
    pub body: Option<Vec<u8>>,
}

fn bytes(line: &Value, name: &str, encoded: &str) -> Option<Vec<u8>> {
    match (line[name].as_str(), line[encoded].as_str()) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, Some(text)) => Some(STANDARD.decode(text).unwrap()),
        (None, None) => None,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

pub fn of_kafka(line: &Value) -> Message {
    Message {
        position: text(&line["headers"]["position"]).parse().unwrap(),
        id: text(&line["headers"]["id"]),
        kind: text(&line["headers"]["type"]),
        key: bytes(line, "key", "key_b64"),
        body: bytes(line, "value", "value_b64"),
    }
}

pub fn of_rabbitmq(line: &Value) -> Message {
    Message {
        position: line["headers"]["position"].as_i64().unwrap_or_else(|| panic!("{line:.500}")),
        id: text(&line["message_id"]),
        kind: line["type"].as_str().unwrap_or_default().to_owned(),
        key: None,
        body: bytes(line, "body", "body_b64"),
    }
}

pub fn is_the_same(message: &Message, event: &Event, at: Far) -> bool {
    // AMQP has no message without a body.
    let body =
        if at == Far::RabbitMq { Some(event.payload.clone().unwrap_or_default()) } else { event.payload.clone() };
    let key = if at == Far::Kafka { event.key.clone() } else { None };
    (&message.id, &message.kind) == (&event.id, &event.kind) && message.body == body && message.key == key
}

fn row(seed: u64, position: i64) -> Row {
    let mut dice = Dice::of(seed ^ (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    dice.next();
    let mut row = Row::thrown(&mut dice, position, Taste { heavy_every: 300, heavy_bytes: 300 << 10, wrapped: false });
    match position % 2_000 {
        17 => row.payload = Cell::Blob(vec![b'x'; 1_200_000]),
        18 => row.headers = Cell::Text(format!(r#"{{"a":"{}"}}"#, "h".repeat(2 * HEADERS_BYTES)).into_bytes()),
        19 => row.headers = Cell::Text(format!(r#"{{"a":"{}"}}"#, "h".repeat(HEADERS_BYTES / 3)).into_bytes()),
        _ => {}
    }
    row
}

#[test]
fn hostile_rows_to_brokers_are_delivered_byte_for_byte_or_become_dead_letters() {
    let _machine = shared_machine();
    let dice = Dice::thrown("hostile rows to brokers");
    let count = number("OUTBOXD_TEST_HOSTILE_ROWS_BROKERS").unwrap_or(10_000) as i64;
    let (kafka_broker, rabbit) = (Broker::kafka(), Broker::rabbitmq());
    let name = unique("hostile");
    kafka_broker.topic(&name, 4, &[]);
    topology::declare(rabbit, &name, "#");
    let with_headers = "headers = [\"position\", \"event\"]";
    let relays = |sink: &str| {
        relay(sink, &format!("attempts_max = 1\non_reject = \"skip\"\nevent_bytes_max = \"{EVENT_BYTES_MAX}B\""))
    };
    let scene = Scene::without_a_file(
        &[
            "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"outbox\"\n",
            &kafka("kafka", &kafka_broker.text("bootstrap"), &name, with_headers),
            &amqp("rabbit", &rabbit.text("uri"), &name, "all", with_headers),
            &relays("kafka"),
            &relays("rabbit"),
        ]
        .concat(),
    );
    let application = loose(&scene.path("app.db"), Table::Outbox);
    for first in (1..=count).step_by(500) {
        let transaction = application.unchecked_transaction().unwrap();
        (first..=count.min(first + 499)).for_each(|at| insert(&transaction, Table::Outbox, &row(dice.seed, at)));
        transaction.commit().unwrap();
    }
    let mut daemon = scene.daemon();
    for consumer in ["to_kafka", "to_rabbit"] {
        daemon.until_settled(consumer, count, Duration::from_secs(60 + count as u64 / 100));
    }
    let peak = peak_mib(&daemon);
    assert_eq!(daemon.stop(Duration::from_secs(30)).0, Some(0));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log_tail());
    assert_eq!(obeyed(daemon.log().as_bytes()), None);

    let (bootstrap, uri) = (kafka_broker.text("bootstrap"), rabbit.text("uri"));
    let from_kafka = readers::read("read_kafka.py", &[&bootstrap, &name, "--from-beginning", "--until-end"]);
    let from_rabbit = readers::read("read_amqp.py", &[&uri, &name, "--until-idle", "2", "--timeout", "300"]);
    let state = rusqlite::Connection::open(scene.path("app.db-outboxd.db")).unwrap();
    let mut proof =
        Proof::of("hostile rows to brokers").seed(dice.seed).tried("hostile rows to each broker", count as u64);
    for (at, consumer, messages) in [
        (Far::Kafka, "to_kafka", from_kafka.iter().map(of_kafka).collect::<Vec<_>>()),
        (Far::RabbitMq, "to_rabbit", from_rabbit.iter().map(of_rabbitmq).collect()),
    ] {
        let mut seen: HashMap<i64, u32> = HashMap::new();
        for message in &messages {
            let row = row(dice.seed, message.position);
            let Fate::Delivered(event) = fate(&row, at) else { panic!("{at:?} has {}: {row:.500?}", message.position) };
            let same = is_the_same(message, &event, at);
            assert!(same, "{at:?} {}: {} {:?} is not {event:.500?}", message.position, message.id, message.key);
            *seen.entry(message.position).or_default() += 1;
        }
        // What stood in a flight with one that closed its channel may come again.
        let delivered = seen.len();
        let again = messages.len() - delivered;
        let sql = "SELECT position, state, reason, detail FROM outboxd_held WHERE consumer = ?1";
        let mut held = state.prepare(sql).unwrap();
        let mut held = held.query([consumer]).unwrap();
        while let Some(letter) = held.next().unwrap() {
            let (position, state): (i64, String) = (letter.get(0).unwrap(), letter.get(1).unwrap());
            let (reason, detail): (String, String) = (letter.get(2).unwrap(), letter.get(3).unwrap());
            let fate = fate(&row(dice.seed, position), at);
            let is_right = matches!(&fate, Fate::Dead(reasons) if reasons.contains(reason.as_str()));
            assert!(is_right && state == "skipped", "{at:?} {position}: {state} {reason} {detail}: {fate:.500?}");
            assert!(!seen.contains_key(&position), "{at:?} has {position}, and it is a dead letter");
            seen.insert(position, 1);
        }
        let missing: Vec<i64> = (1..=count).filter(|position| !seen.contains_key(position)).collect();
        assert!(missing.is_empty(), "{at:?}: {} are missing: {missing:.200?}", missing.len());
        proof = proof
            .found(&format!("{at:?}: delivered byte for byte"), delivered)
            .found(&format!("{at:?}: dead letters, with the right reason"), seen.len() - delivered)
            .found(&format!("{at:?}: duplicates"), again);
    }
    proof.found("missing, altered, panics, stalls", 0).found("most memory", format!("{peak} MiB"));
}
