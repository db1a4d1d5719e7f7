//! Bad input, by name: what an application or an operator can get wrong, one test for each. It is delivered as it is, or becomes a dead
//! letter that says what and where; a config is refused with the place and the remedy. Nothing stalls, nothing is lost.
//!
//! One daemon carries all of it once, to a file, Kafka and RabbitMQ, among rows that are in order; each test looks at what became of its own.
//! Columns described by hand have their own list (`every_wrong_value_is_named`), HTTP its own (`statuses_are_told_apart` and beside it).

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::hostile_rows::brokers::{Far, is_the_same, of_kafka, of_rabbitmq};
use crate::hostile_rows::oracle::{self, Table, judge, position_of, says};
use crate::hostile_rows::rows::{Cell, Row};
use crate::hostile_rows::{insert, loose, peak_mib};
use crate::sink_contract::rig::unique;
use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::rig::open;
use crate::support::{readers, topology};

const EVENT_BYTES_MAX: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Fate {
    AsItIs,
    /// The reason, and what its detail says.
    Dead(&'static str, &'static str),
}
use Fate::{AsItIs, Dead};

/// What becomes of an item at each relay of its stand.
struct Expected {
    fates: Vec<Fate>,
    /// Of what arrived at a relay's end: a place in what the reader printed, and what stands there (`null`: nothing).
    seen: Vec<(&'static str, &'static str, Value)>,
}

fn everywhere(fate: Fate) -> Expected {
    at(&[fate; 3])
}

fn at(fates: &[Fate]) -> Expected {
    Expected { fates: fates.to_vec(), seen: Vec::new() }
}

impl Expected {
    fn seen(mut self, relay: &'static str, pointer: &'static str, value: Value) -> Self {
        self.seen.push((relay, pointer, value));
        self
    }

    /// The header at both brokers.
    fn header(self, pointer: &'static str, value: Value) -> Self {
        self.seen("to_kafka", pointer, value.clone()).seen("to_rabbit", pointer, value)
    }
}

struct Item {
    name: &'static str,
    make: fn(&mut Row),
    expected: fn() -> Expected,
}

/// A table of items, and a test for each.
macro_rules! items {
    ($stand:ident: $($name:ident: $make:expr => $expected:expr;)*) => {
        mod $stand {
            use super::*;

            pub const ITEMS: &[Item] =
                &[$(Item { name: stringify!($name), make: $make, expected: || $expected },)*];

            $(
                #[test]
                fn $name() {
                    TOLD.examine(stringify!($stand), stringify!($name));
                }
            )*
        }
    };
}

const NOT_UTF8: [u8; 3] = [b'a', 0xff, 0xfe];

fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into().into_bytes())
}

fn blob() -> Cell {
    Cell::Blob(NOT_UTF8.to_vec())
}

fn not_utf8() -> Cell {
    Cell::Text(NOT_UTF8.to_vec())
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

// At: a file, Kafka, RabbitMQ.
items! { values:
    null_id: |row| row.id = Cell::Null => everywhere(Dead("undecodable", "column for id (id) is NULL or empty"));
    empty_id: |row| row.id = text("") => everywhere(Dead("undecodable", "column for id (id) is NULL or empty"));
    blob_id: |row| row.id = blob() => everywhere(Dead("undecodable", "column for id (id) is not UTF-8"));
    integer_id: |row| row.id = Cell::Integer(-7) => everywhere(AsItIs);
    real_id: |row| row.id = Cell::Real(1.5) => everywhere(AsItIs);
    invalid_utf8_in_id: |row| row.id = not_utf8() => everywhere(Dead("undecodable", "column for id (id) is not UTF-8"));
    nul_in_id: |row| row.id = text("a\0b") => everywhere(AsItIs);
    id_of_256_bytes: |row| row.id = text("i".repeat(256)) => at(&[AsItIs, AsItIs, Dead("undecodable", "a id of 256 bytes: AMQP takes 255")]);
    id_of_64_kib: |row| row.id = text("i".repeat(64 << 10)) => at(&[AsItIs, AsItIs, Dead("undecodable", "a id of 65536 bytes")]);
    duplicate_id_first: |row| row.id = text("twice") => everywhere(AsItIs);
    duplicate_id_second: |row| row.id = text("twice") => everywhere(AsItIs);

    null_type: |row| row.kind = Cell::Null => everywhere(Dead("undecodable", "column for type (type) is NULL"));
    blob_type: |row| row.kind = blob() => everywhere(Dead("undecodable", "column for type (type) is not UTF-8"));
    integer_type: |row| row.kind = Cell::Integer(i64::MIN) => everywhere(AsItIs);
    real_type: |row| row.kind = Cell::Real(-0.5) => everywhere(AsItIs);
    invalid_utf8_in_type: |row| row.kind = not_utf8() => everywhere(Dead("undecodable", "column for type (type) is not UTF-8"));
    nul_in_type: |row| row.kind = text("\0") => everywhere(AsItIs);
    type_of_256_bytes: |row| row.kind = text("t".repeat(256)) => at(&[AsItIs, AsItIs, Dead("undecodable", "a type of 256 bytes: AMQP takes 255")]);
    a_type_nobody_asked_for: |row| row.kind = text("Nobody") => everywhere(AsItIs);
    a_type_somebody_asked_for: |row| row.kind = text("Wanted") => everywhere(AsItIs);

    null_key: |row| { row.key = Cell::Null; row.stream_id = Cell::Null } => everywhere(AsItIs);
    blob_key: |row| row.key = blob() => everywhere(AsItIs);
    integer_key: |row| row.key = Cell::Integer(0) => everywhere(AsItIs);
    real_key: |row| row.key = Cell::Real(f64::INFINITY) => everywhere(AsItIs);
    invalid_utf8_in_key: |row| row.key = not_utf8() => everywhere(AsItIs);
    empty_key: |row| row.key = text("") => everywhere(AsItIs);
    nul_in_key: |row| row.key = text("k\0k") => everywhere(AsItIs);
    key_of_64_kib: |row| row.key = text("k".repeat(64 << 10)) => everywhere(AsItIs);
    key_of_more_than_64_kib: |row| row.key = text("k".repeat((64 << 10) + 1)) => everywhere(Dead("too_large", "for key"));

    null_stream_id: |row| row.stream_id = Cell::Null => everywhere(AsItIs);
    blob_stream_id: |row| row.stream_id = blob() => everywhere(Dead("undecodable", "column for stream_id (stream_id) is not UTF-8"));
    integer_stream_id: |row| row.stream_id = Cell::Integer(3) => everywhere(AsItIs);
    real_stream_id: |row| row.stream_id = Cell::Real(3.5) => everywhere(AsItIs);
    invalid_utf8_in_stream_id: |row| row.stream_id = not_utf8() => everywhere(Dead("undecodable", "column for stream_id (stream_id) is not UTF-8"));
    nul_in_stream_id: |row| row.stream_id = text("s\0s") => everywhere(AsItIs);
    null_stream_type: |row| row.stream_type = Cell::Null => everywhere(AsItIs);
    blob_stream_type: |row| row.stream_type = blob() => everywhere(Dead("undecodable", "column for stream_type (stream_type) is not UTF-8"));
    integer_stream_type: |row| row.stream_type = Cell::Integer(3) => everywhere(AsItIs);
    real_stream_type: |row| row.stream_type = Cell::Real(3.5) => everywhere(AsItIs);

    null_payload: |row| row.payload = Cell::Null => everywhere(AsItIs).seen("to_kafka", "/value", Value::Null);
    empty_payload: |row| row.payload = text("") => everywhere(AsItIs).seen("to_kafka", "/value", json!(""));
    empty_blob_payload: |row| row.payload = Cell::Blob(vec![]) => everywhere(AsItIs).seen("to_kafka", "/value", json!(""));
    blob_payload: |row| row.payload = blob() => everywhere(AsItIs);
    integer_payload: |row| row.payload = Cell::Integer(i64::MAX) => everywhere(AsItIs);
    real_payload: |row| row.payload = Cell::Real(1e300) => everywhere(AsItIs);
    invalid_utf8_in_payload: |row| row.payload = not_utf8() => everywhere(AsItIs);
    nul_in_payload: |row| row.payload = text("{\"a\":\"\0\"}") => everywhere(AsItIs);
    line_breaks_in_payload: |row| row.payload = text("{\r\n\"a\": 1\n}\n") => everywhere(AsItIs);
    json_10000_deep_in_payload: |row| row.payload = text(nested(10_000)) => everywhere(AsItIs);
    payload_of_1200_kb: |row| row.payload = Cell::Blob(vec![b'x'; 1_200_000]) => at(&[AsItIs, Dead("too_large", "larger than"), AsItIs]);
    payload_of_100_mb: |row| row.payload = Cell::Blob(vec![b'x'; 100 << 20]) => everywhere(Dead("too_large", "the payload has 104857600 bytes"));

    null_headers: |row| row.headers = Cell::Null => everywhere(AsItIs);
    blob_headers: |row| row.headers = blob() => everywhere(Dead("undecodable", "column for headers"));
    integer_headers: |row| row.headers = Cell::Integer(7) => everywhere(Dead("undecodable", "column for headers (headers) is an INTEGER, where JSON is wanted"));
    real_headers: |row| row.headers = Cell::Real(7.5) => everywhere(Dead("undecodable", "column for headers"));
    empty_headers: |row| row.headers = text("") => everywhere(AsItIs);
    headers_that_are_json_null: |row| row.headers = text(" null ") => everywhere(AsItIs);
    invalid_utf8_in_headers: |row| row.headers = not_utf8() => everywhere(Dead("undecodable", "column for headers (headers)"));
    headers_that_are_no_json: |row| row.headers = text("tenant=blue") => everywhere(Dead("undecodable", "column for headers (headers) is no JSON: "));
    headers_that_are_a_list: |row| row.headers = text("[1]") => everywhere(Dead("undecodable", "column for headers (headers) is no JSON object"));
    json_10000_deep_in_headers: |row| row.headers = text(format!(r#"{{"deep":{},"tenant":"blue"}}"#, nested(10_000)))
        => everywhere(AsItIs).header("/headers/tenant", json!("blue")).header("/headers/deep", json!(nested(10_000)));
    header_that_is_an_object: |row| row.headers = text(r#"{"o":{"a": [1]},"tenant":"blue"}"#)
        => everywhere(AsItIs).header("/headers/o", json!(r#"{"a": [1]}"#)).header("/headers/tenant", json!("blue"));
    header_that_is_true: |row| row.headers = text(r#"{"yes":true}"#) => everywhere(AsItIs).header("/headers/yes", json!("true"));
    header_that_is_null: |row| row.headers = text(r#"{"no":null}"#) => everywhere(AsItIs).header("/headers/no", Value::Null);
    header_with_line_breaks: |row| row.headers = text(r#"{"h":"a\r\nX-Evil: 1"}"#)
        => everywhere(AsItIs).header("/headers/h", json!("a\r\nX-Evil: 1"));
    header_named_cc: |row| row.headers = text(r#"{"CC":["q"],"Cc":"q","tenant":"blue"}"#)
        => everywhere(AsItIs).header("/headers/CC", Value::Null).header("/headers/Cc", Value::Null).header("/headers/tenant", json!("blue"));
    header_named_bcc: |row| row.headers = text(r#"{"BCC":["q"]}"#) => everywhere(AsItIs).header("/headers/BCC", Value::Null);
    header_named_x: |row| row.headers = text(r#"{"x-delay":5000,"X-Match":"any"}"#)
        => everywhere(AsItIs).header("/headers/x-delay", Value::Null).header("/headers/X-Match", Value::Null);
    header_that_is_one_of_ours: |row| row.headers = text(r#"{"id":"other","outboxd-replay":"true"}"#)
        => everywhere(AsItIs).header("/headers/outboxd-replay", Value::Null).seen("to_kafka", "/headers/id", json!("header_that_is_one_of_ours"));
    headers_of_200_kb: |row| row.headers = text(format!(r#"{{"a":"{}"}}"#, "h".repeat(200_000)))
        => at(&[AsItIs, AsItIs, Dead("too_large", "do not fit into one frame")]);

    null_time: |row| row.time = Cell::Null => everywhere(AsItIs).seen("to_rabbit", "/timestamp", Value::Null);
    blob_time: |row| row.time = blob() => everywhere(Dead("undecodable", "column for time (time) is not UTF-8"));
    integer_time: |row| row.time = Cell::Integer(1) => everywhere(AsItIs).seen("to_rabbit", "/timestamp", Value::Null);
    real_time: |row| row.time = Cell::Real(1.5) => everywhere(AsItIs).seen("to_rabbit", "/timestamp", Value::Null);
    invalid_utf8_in_time: |row| row.time = not_utf8() => everywhere(Dead("undecodable", "column for time (time) is not UTF-8"));
    time_in_1970: |row| row.time = text("1970-01-01T00:00:00Z") => everywhere(AsItIs).seen("to_rabbit", "/timestamp", json!(0));
    time_in_1969: |row| row.time = text("1969-12-31T23:59:59Z") => everywhere(AsItIs);
    time_in_2999: |row| row.time = text("2999-12-31T23:59:59Z") => everywhere(AsItIs).seen("to_rabbit", "/timestamp", json!(32_503_679_999_u64));
    garbage_time: |row| row.time = text("half past nine") => everywhere(AsItIs).seen("to_rabbit", "/timestamp", Value::Null);
    time_on_a_day_that_is_none: |row| row.time = text("2026-02-30T25:61:61Z") => everywhere(AsItIs).seen("to_rabbit", "/timestamp", Value::Null);

    negative_position: |row| row.position = -5 => everywhere(AsItIs);
    position_0: |row| row.position = 0 => everywhere(AsItIs);
    position_i64_max: |row| row.position = i64::MAX => everywhere(AsItIs);
}

// At: Kafka, whose topic is "PREFIX.{stream_type}", and RabbitMQ, whose routing key is "{header.route}".
items! { places:
    a_place_that_is_there: |_| () => at(&[AsItIs, AsItIs]);
    topic_with_illegal_characters: |row| row.stream_type = text("no topic/ü") => at(&[Dead("unroutable", "has characters other than"), AsItIs]);
    topic_of_250_bytes: |row| row.stream_type = text("t".repeat(250)) => at(&[Dead("unroutable", "249 is the most"), AsItIs]);
    topic_that_is_not_there: |row| row.stream_type = text("missing") => at(&[Dead("unroutable", "there is no topic"), AsItIs]);
    field_of_the_topic_that_is_null: |row| row.stream_type = Cell::Null
        => at(&[Dead("unroutable", "the event has no stream_type, which"), AsItIs]);
    routing_key_of_255_bytes: |row| row.headers = route(&format!("good.{}", "r".repeat(250))) => at(&[AsItIs, AsItIs]);
    routing_key_of_256_bytes: |row| row.headers = route(&format!("good.{}", "r".repeat(251)))
        => at(&[AsItIs, Dead("unroutable", "a routing key of 256 bytes: AMQP takes 255")]);
    header_of_the_routing_key_that_is_missing: |row| row.headers = Cell::Null
        => at(&[AsItIs, Dead("unroutable", "the event has no header `route`, which `{header.route}` needs")]);
    header_of_the_routing_key_that_is_an_object: |row| row.headers = text(r#"{"route":{}}"#)
        => at(&[AsItIs, Dead("unroutable", "the event has no header `route`")]);
    a_type_nobody_routes: |row| row.headers = route("bad.Nobody") => at(&[AsItIs, Dead("unroutable", "no queue is bound to exchange")]);
}

fn route(to: &str) -> Cell {
    text(json!({ "route": to }).to_string())
}

/// The row of an item, among a table's.
fn row_of(stand: &str, item: &Item, index: usize) -> Row {
    let mut row = Row {
        position: index as i64 + 1,
        name: Cell::Null,
        id: text(item.name),
        key: text(item.name),
        stream_id: text(format!("stream of {}", item.name)),
        stream_type: text("good"),
        kind: text("Happened"),
        version: Cell::Null,
        payload: text(json!({ "name": item.name }).to_string()),
        headers: if stand == "places" { route("good.way") } else { Cell::Null },
        time: text("2026-11-21T02:43:00Z"),
    };
    (item.make)(&mut row);
    row
}

/// The items of a stand, and its relays.
fn stand(name: &str) -> (&'static [Item], &'static [&'static str]) {
    match name {
        "values" => (values::ITEMS, &["to_lines", "to_kafka", "to_rabbit"]),
        _ => (places::ITEMS, &["kafka_places", "rabbit_places"]),
    }
}

struct Arrival {
    position: i64,
    /// As the reader printed it.
    line: String,
}

/// What became of everything.
struct Told {
    arrivals: HashMap<&'static str, Vec<Arrival>>,
    /// By relay and position: state, reason and detail.
    letters: HashMap<(String, i64), (String, String, String)>,
    /// Bodies and keys at Kafka, and lines in the file, of a table whose payloads are NULL.
    tombstones: (Vec<Value>, String),
    /// What a relay got that asks for one type.
    wanted: String,
    /// Payloads found beside, and at, something deep.
    deep: String,
    peak_mib: u64,
    log: String,
}

static TOLD: LazyLock<Told> = LazyLock::new(carry);

fn carry() -> Told {
    let _machine = shared_machine();
    let (kafka_broker, rabbit) = (Broker::kafka(), Broker::rabbitmq());
    let (name, place, tombs) = (unique("bad"), unique("place"), unique("tombs"));
    kafka_broker.topic(&name, 1, &[]);
    kafka_broker.topic(&format!("{place}.good"), 1, &[]);
    kafka_broker.topic(&tombs, 1, &[]);
    topology::declare(rabbit, &name, "#");
    topology::declare(rabbit, &place, "good.#");
    let (bootstrap, uri) = (kafka_broker.text("bootstrap"), rabbit.text("uri"));
    let with_headers = "headers = [\"position\", \"event\"]";
    let bounds = "attempts_max = 1\non_reject = \"skip\"";
    let other = |name: &str, source: &str, sink: &str| {
        format!("\n[relays.{name}]\nsource = \"{source}\"\nsink = \"{sink}\"\nstart = \"first\"\n{bounds}\n")
    };
    let by_hand = |name: &str, table: &str, more: &str| {
        format!(
            "\n[sources.{name}]\npath = \"hand.db\"\ntable = \"{table}\"\nposition = \"n\"\nid = \"id\"\ntype = \"kind\"\n{more}\n"
        )
    };
    let scene = Scene::without_a_file(
        &[
            SHOP,
            &[&file("lines"), &file("wanted"), &file("unasked"), &file("deep")].map(String::as_str).concat(),
            &kafka("kafka", &bootstrap, &name, with_headers),
            &amqp("rabbit", &uri, &name, "all", with_headers),
            &["lines", "kafka", "rabbit"].map(|sink| relay(sink, bounds)).concat(),
            &relay("wanted", "types = [\"Wanted*\"]"),
            "\n[sources.places]\npath = \"places.db\"\npreset = \"outboxd\"\nread = \"outbox\"\n",
            &kafka("topics", &bootstrap, &format!("{place}.{{stream_type}}"), with_headers),
            &amqp("routes", &uri, &place, "{header.route}", with_headers),
            &other("kafka_places", "places", "topics"),
            &other("rabbit_places", "places", "routes"),
            &by_hand("unasked", "tombs", "payload = \"data\""),
            &by_hand("asked", "tombs", "payload = \"data\"\ntombstones = true\nkey = \"id\""),
            &by_hand("deep", "deep", "payload = { column = \"data\", path = \"$.p\" }"),
            &kafka("tombs", &bootstrap, &tombs, ""),
            &other("unasked", "unasked", "unasked"),
            &other("asked", "asked", "tombs"),
            &other("deep", "deep", "deep"),
        ]
        .concat(),
    );
    for (file, name) in [("app.db", "values"), ("places.db", "places")] {
        let application = loose(&scene.path(file), Table::Outbox);
        for (index, item) in stand(name).0.iter().enumerate() {
            insert(&application, Table::Outbox, &row_of(name, item, index));
        }
    }
    let hand = open(&scene.path("hand.db"));
    let tables = ["tombs", "deep"].map(|table| {
        format!("CREATE TABLE {table} (n INTEGER PRIMARY KEY AUTOINCREMENT, id NOT NULL, kind NOT NULL, data);")
    });
    hand.execute_batch(&tables.concat()).unwrap();
    hand.execute_batch("INSERT INTO tombs (id, kind, data) VALUES ('gone', 'K', NULL), ('here', 'K', '1')").unwrap();
    let deep = nested(10_000);
    let insert = "INSERT INTO deep (id, kind, data) VALUES ('beside', 'K', ?1), ('at', 'K', ?2)";
    hand.execute(insert, [format!("{{\"x\":{deep},\"p\":7}}"), format!("{{\"p\":{deep}}}")]).unwrap();
    let mut daemon = scene.daemon();
    let (places_head, hand_head) = (places::ITEMS.len() as i64, 2);
    for (consumer, head) in [
        ("to_lines", i64::MAX),
        ("to_kafka", i64::MAX),
        ("to_rabbit", i64::MAX),
        ("to_wanted", i64::MAX),
        ("kafka_places", places_head),
        ("rabbit_places", places_head),
        ("unasked", hand_head),
        ("asked", hand_head),
        ("deep", hand_head),
    ] {
        daemon.until_settled(consumer, head, PATIENCE);
    }
    let peak_mib = peak_mib(&daemon);
    assert_eq!(daemon.stop(Duration::from_secs(30)).0, Some(0));
    let mut letters = HashMap::new();
    for file in ["app.db", "places.db", "hand.db"] {
        let state = Connection::open(scene.path(&format!("{file}-outboxd.db"))).unwrap();
        let mut held = state.prepare("SELECT consumer, position, state, reason, detail FROM outboxd_held").unwrap();
        let mut held = held.query([]).unwrap();
        while let Some(row) = held.next().unwrap() {
            let letter = (row.get(2).unwrap(), row.get(3).unwrap(), row.get(4).unwrap());
            letters.insert((row.get(0).unwrap(), row.get(1).unwrap()), letter);
        }
    }
    let topic = |topic: &str| readers::read("read_kafka.py", &[&bootstrap, topic, "--from-beginning", "--until-end"]);
    let queue = |queue: &str| readers::read("read_amqp.py", &[&uri, queue, "--until-idle", "1", "--timeout", "60"]);
    let of = |lines: Vec<Value>, position: fn(&Value) -> i64| -> Vec<Arrival> {
        lines.into_iter().map(|line| Arrival { position: position(&line), line: line.to_string() }).collect()
    };
    let text = |sink: &str| std::fs::read_to_string(scene.path(&format!("{sink}.ndjson"))).unwrap_or_default();
    let lines = text("lines").lines().map(|line| Arrival { position: position_of(line), line: line.into() }).collect();
    Told {
        arrivals: HashMap::from([
            ("to_lines", lines),
            ("to_kafka", of(topic(&name), |line| of_kafka(line).position)),
            ("to_rabbit", of(queue(&name), |line| of_rabbitmq(line).position)),
            ("kafka_places", of(topic(&format!("{place}.good")), |line| of_kafka(line).position)),
            ("rabbit_places", of(queue(&place), |line| of_rabbitmq(line).position)),
        ]),
        letters,
        tombstones: (topic(&tombs), text("unasked")),
        wanted: text("wanted"),
        deep: text("deep"),
        peak_mib,
        log: daemon.log(),
    }
}

impl Told {
    /// What became of one item, at each relay.
    fn examine(&self, name: &str, item: &str) {
        let (items, relays) = stand(name);
        let index = items.iter().position(|known| known.name == item).unwrap();
        let (row, expected) = (row_of(name, &items[index], index), (items[index].expected)());
        assert_eq!(expected.fates.len(), relays.len());
        let event = match judge(Table::Outbox, &row, EVENT_BYTES_MAX) {
            oracle::Fate::Delivered(event) => Some(event),
            oracle::Fate::Dead(_) => None,
        };
        for (relay, fate) in relays.iter().zip(expected.fates) {
            let arrived: Vec<_> =
                self.arrivals[relay].iter().filter(|arrival| arrival.position == row.position).collect();
            let letter = self.letters.get(&((*relay).to_owned(), row.position));
            match fate {
                Dead(reason, words) => {
                    let (state, told, detail) = letter.unwrap_or_else(|| panic!("{relay}: no dead letter"));
                    assert_eq!((state.as_str(), told.as_str()), ("skipped", reason), "{relay}: {detail}");
                    assert!(detail.contains(words), "{relay}: {words:?} is not said in {detail:?}");
                    assert!(arrived.is_empty(), "{relay}: a dead letter has arrived");
                }
                AsItIs => {
                    assert!(letter.is_none() && !arrived.is_empty(), "{relay}: {letter:?}, {} arrived", arrived.len());
                    let event = event.as_ref().expect("the row alone says that it can be delivered");
                    for Arrival { line, .. } in arrived {
                        let is_same = match *relay {
                            "to_lines" => says(line, event),
                            relay => {
                                let line: Value = serde_json::from_str(line).unwrap();
                                match relay.contains("kafka") {
                                    true => is_the_same(&of_kafka(&line), event, Far::Kafka),
                                    false => is_the_same(&of_rabbitmq(&line), event, Far::RabbitMq),
                                }
                            }
                        };
                        assert!(is_same, "{relay}: {line:.500} is not {event:.500?}");
                    }
                }
            }
        }
        for (relay, pointer, value) in expected.seen {
            let arrival = self.arrivals[relay].iter().find(|arrival| arrival.position == row.position).unwrap();
            let line: Value = serde_json::from_str(&arrival.line).unwrap();
            assert_eq!(line.pointer(pointer).unwrap_or(&Value::Null), &value, "{relay}: {pointer} of {line:.500}");
        }
    }
}

#[test]
fn nothing_panics_and_what_is_too_large_is_never_read() {
    assert!(!TOLD.log.contains("panicked"));
    assert!(TOLD.peak_mib < 100, "{} MiB: something large was read", TOLD.peak_mib);
    let items = values::ITEMS.len() * 3 + places::ITEMS.len() * 2;
    let arrived: std::collections::HashSet<_> =
        TOLD.arrivals.iter().flat_map(|(relay, all)| all.iter().map(move |one| (*relay, one.position))).collect();
    let others = ["unasked", "to_wanted"];
    let letters = TOLD.letters.keys().filter(|(relay, _)| !others.contains(&relay.as_str())).count();
    assert_eq!(arrived.len() + letters, items, "each is in one place");
}

#[test]
fn tombstones_only_when_asked() {
    let (asked, unasked) = &TOLD.tombstones;
    let said: Vec<_> = asked.iter().map(|line| (line["key"].clone(), line["value"].clone())).collect();
    assert_eq!(said, [(json!("gone"), Value::Null), (json!("here"), json!("1"))]);
    assert_eq!(unasked.lines().count(), 1);
    let (_, reason, detail) = &TOLD.letters[&("unasked".to_owned(), 1)];
    assert!(reason == "undecodable" && detail.contains("column for payload (data) is NULL"), "{detail}");
}

#[test]
fn a_type_that_is_not_asked_for_is_passed_over() {
    let lines: Vec<&str> = TOLD.wanted.lines().collect();
    assert!(matches!(lines[..], [line] if line.contains("a_type_somebody_asked_for")), "{lines:?}");
    // One whose type cannot be told may be the one that is asked for.
    let letters = TOLD.letters.iter().filter(|((relay, _), _)| relay == "to_wanted");
    let details: Vec<&String> = letters.map(|(_, (_, _, detail))| detail).collect();
    assert!(details.len() == 3 && details.iter().all(|detail| detail.contains("for type")), "{details:?}");
}

#[test]
fn json_10000_deep_beside_and_at_a_path() {
    let found: Vec<&str> =
        TOLD.deep.lines().map(|line| line.split_once("\"data\":").unwrap().1.trim_end_matches('}')).collect();
    assert_eq!(found, ["7", &nested(10_000)]);
}

/// The daemon ends with 78, and says where and what to do.
fn refused(prepare: impl FnOnce(&Scene), config: &str, words: &[&str]) {
    let scene = Scene::without_a_file(config);
    prepare(&scene);
    let output = scene.outboxd(&["run"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for word in words.iter().chain(&["fix: "]) {
        assert!(said.contains(word), "{word:?} is not said in {said}");
    }
}

fn shop_to(sink: &str) -> String {
    format!("{SHOP}\n[sinks.x]\n{sink}\n{}", relay("x", ""))
}

#[test]
fn config_with_a_wrong_type() {
    let config = shop_to("type = \"file\"\npath = 7") + "attempts_max = \"five\"\n";
    refused(|_| (), &config, &["sinks.x.path", "line 12", "relays.to_x.attempts_max", "line 19", "a whole number"]);
}

#[test]
fn config_with_an_unknown_key() {
    let config = shop_to("type = \"file\"\npath = \"x\"\nrotate_byte = \"1MiB\"");
    refused(|_| (), &config, &["sinks.x.rotate_byte", "line 13", "did you mean `rotate_bytes`?"]);
}

#[test]
fn config_with_a_secret_that_is_missing() {
    let sink = "type = \"amqp\"\nuri_file = \"nowhere\"\nexchange = \"x\"\nrouting_key = \"x\"";
    refused(|_| (), &shop_to(sink), &["sinks.x.uri_file", "line 12", "nowhere cannot be read"]);
}

#[test]
fn config_with_an_unknown_template_field() {
    let sink = "type = \"amqp\"\nuri = \"amqp://127.0.0.1\"\nexchange = \"x\"\nrouting_key = \"{streamtype}\"";
    let words = ["sinks.x.routing_key", "line 14", "unknown field {streamtype} at character 1", "write {stream_type}"];
    refused(|_| (), &shop_to(sink), &words);
}

#[test]
fn config_whose_sink_writes_into_its_source() {
    for path in ["app.db", "app.db-wal", "app.db-outboxd.db", "./app.db"] {
        let sink = format!("type = \"file\"\npath = \"{path}\"");
        refused(|_| (), &shop_to(&sink), &["sinks.x.path", "line 12", "belongs to [sources.shop]"]);
    }
}

#[test]
fn config_that_leads_to_itself() {
    let prepare = |scene: &Scene| {
        std::fs::create_dir(scene.path("conf.d")).unwrap();
        symlink("loop.toml", scene.path("conf.d/loop.toml")).unwrap();
    };
    refused(prepare, &shop_to("type = \"stdout\""), &["loop.toml", "cannot be read"]);
}

#[test]
fn config_with_two_relays_on_one_source_by_row() {
    let config = shop_to("type = \"stdout\"").replace("preset = \"outboxd\"", "preset = \"eventsource-py\"");
    let config = config.replace("start = \"first\"\n", "");
    let config = format!("{config}\n[sinks.y]\ntype = \"stdout\"\n[relays.y]\nsource = \"shop\"\nsink = \"y\"\n");
    refused(|_| (), &config, &["relays.y.source", "reads the same table"]);
}
