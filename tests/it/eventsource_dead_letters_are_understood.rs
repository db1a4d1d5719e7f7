//! What becomes a dead letter of eventsource-py's tables is listed, told and sent again by that library's own commands (0.8.1 from PyPI): a row of its
//! `dead_letter_queue`, a message of its RabbitMQ queue, one of its Kafka topic.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::process::{Scene, shared_machine};
use crate::support::readers::read;
use crate::support::rig::open;

const SOON: Duration = Duration::from_secs(30);
const NAME: &str = "dead_letters";

fn config(amqp: &str, bootstrap: &str) -> String {
    let source =
        |read: &str| format!("[sources.{read}]\npath = \"app.db\"\npreset = \"eventsource-py\"\nread = \"{read}\"\n");
    let rabbit = |name: &str, more: &str| {
        format!("[sinks.{name}]\ntype = \"amqp\"\nuri = \"{amqp}\"\nformat = \"eventsource-py\"\n{more}\n")
    };
    let kafka = |name: &str, topic: &str| {
        format!(
            "[sinks.{name}]\ntype = \"kafka\"\nbootstrap_servers = [\"{bootstrap}\"]\nformat = \"eventsource-py\"\ntopic = \"{topic}\"\n"
        )
    };
    let relay = |sink: &str, source: &str, more: &str| {
        format!(
            "[relays.to_{sink}]\nsource = \"{source}\"\nsink = \"{sink}\"\ndead_letter_sink = \"{sink}_dlq\"\nattempts_max = 1\n\
             on_reject = \"skip\"\n{more}\n"
        )
    };
    [
        "[daemon]\nadmin = \"127.0.0.1:0\"\n".to_owned(),
        source("outbox"),
        source("events"),
        rabbit(
            "rabbit",
            &format!("exchange = \"{NAME}\"\nrouting_key = \"{{stream_type}}.{{type}}\"\nmessage_bytes_max = \"2KiB\""),
        ),
        rabbit("rabbit_dlq", &format!("exchange = \"{NAME}_dlq\"\nrouting_key = \"{NAME}.default\"")),
        kafka("kafka", &format!("{NAME}.stream")),
        kafka("kafka_dlq", &format!("{NAME}.stream.dlq")),
        relay("rabbit", "outbox", "dead_letter_row = true"),
        relay("kafka", "events", "start = \"first\""),
    ]
    .concat()
}

#[test]
fn with_the_librarys_own_commands() {
    let _machine = shared_machine();
    let (rabbitmq, kafka) = (Broker::rabbitmq(), Broker::kafka());
    let (amqp, bootstrap) = (rabbitmq.text("uri"), kafka.text("bootstrap"));
    kafka.topic(&format!("{NAME}.stream"), 3, &["max.message.bytes=2000"]);
    kafka.topic(&format!("{NAME}.stream.dlq"), 1, &[]);
    let dead_in_rabbitmq = || read("eventsource_dlq.py", &["rabbitmq", &amqp, NAME]);
    assert_eq!(dead_in_rabbitmq(), Vec::<Value>::new(), "the library has made its exchanges and queues");

    let scene = Scene::without_a_file(&config(&amqp, &bootstrap));
    let database = scene.path("app.db").display().to_string();
    let written = read("eventsource_write.py", &[&database, "4", "3"]);
    let id = written[1]["event_id"].as_str().unwrap();
    assert_eq!(written[1]["event_type"], "OrderPlaced");
    // It is too large for both brokers, and a later one for Kafka: with one alone the library's list would never end.
    let application = open(&scene.path("app.db"));
    let in_log = "UPDATE events SET payload = json_set(payload, '$.note', hex(zeroblob(3000))) WHERE event_id = ?1";
    let in_outbox = "UPDATE event_outbox SET event_data = json_set(event_data, '$.payload.note', hex(zeroblob(3000))) WHERE event_id = ?1";
    for (sql, id) in [(in_log, id), (in_outbox, id), (in_log, written[5]["event_id"].as_str().unwrap())] {
        assert_eq!(application.execute(sql, [id]).unwrap(), 1);
    }
    let mut daemon = scene.daemon();
    for (relay, dead) in [("to_rabbit", 1), ("to_kafka", 2)] {
        daemon.until(relay, "done but for what is too large", SOON, |status| {
            status["dead_letter_copies"]["copied"] == dead && status["delivered_total"] == 12 - dead
        });
    }

    // A row of its table.
    let told = read("eventsource_dlq.py", &["sqlite", &database, "relay:to_rabbit", "--resolve"]);
    let [entry, stats] = told.as_slice() else { panic!("{told:?}") };
    let said = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((said("event_id").as_str(), said("event_type").as_str()), (id, "OrderPlaced"));
    assert_eq!((said("projection_name").as_str(), said("status").as_str()), ("relay:to_rabbit", "failed"));
    assert_eq!((&entry["retry_count"], &entry["event_data"]["event_id"]), (&json!(1), &json!(id)));
    assert!(said("error_message").starts_with("too_large: ") && said("first_failed_at").starts_with("20"), "{entry}");
    assert_eq!((&stats["stats"]["total_failed"], &stats["stats"]["affected_projections"]), (&json!(1), &json!(1)));
    let told = read("eventsource_dlq.py", &["sqlite", &database, "relay:to_rabbit"]);
    assert!(told.len() == 1 && told[0]["stats"]["total_failed"] == 0, "resolved by the library: {told:?}");

    // A message of its topic: the library knows where it was to go.
    let told = read("eventsource_dlq.py", &["kafka", &bootstrap, NAME]);
    let [message] = told.as_slice() else { panic!("{told:?}") };
    let said = |name: &str| message["headers"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!((said("event_id").as_str(), &message["payload"]["event_id"]), (id, &json!(id)));
    assert_eq!((said("dlq_error_type").as_str(), said("dlq_retry_count").as_str()), ("too_large", "1"));
    assert_eq!(
        (said("dlq_original_topic"), said("dlq_consumer_group")),
        (format!("{NAME}.stream"), "relay:to_kafka".into())
    );
    assert_eq!((said("outboxd-source").as_str(), said("outboxd-position").as_str()), ("events", "2"));

    // A message of its queue, which the library sends to where it was to go.
    let told = dead_in_rabbitmq();
    let [message] = told.as_slice() else { panic!("{told:?}") };
    let said = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((said("message_id").as_str(), said("event_type").as_str()), (id, "OrderPlaced"));
    assert_eq!((said("dlq_error_type").as_str(), &message["dlq_retry_count"]), ("too_large", &json!(1)));
    assert_eq!(said("original_routing_key"), "Order.OrderPlaced");
    read("eventsource_dlq.py", &["rabbitmq", &amqp, NAME, "--replay", id]);
    assert_eq!(dead_in_rabbitmq(), Vec::<Value>::new());
    let consumed = read("eventsource_consume.py", &["rabbitmq", &amqp, "--exchange", NAME, "--count", "12"]);
    let ids = |lines: &[Value]| {
        let mut ids: Vec<_> = lines.iter().map(|line| line["event_id"].to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&consumed), ids(&written));
    assert_eq!(daemon.stop(SOON).0, Some(0));
}
