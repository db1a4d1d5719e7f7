//! `outboxd audit` names what is wrong and nothing else, changes nothing, and says what it cannot know.

use std::path::Path;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rusqlite::Connection;
use serde_json::Value;

use crate::sink_contract::rig::unique;
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::eventsource;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::{readers, topology};

/// The exit code, and the report.
fn audit(scene: &Scene, arguments: &[&str]) -> (i32, Value) {
    let output = scene.outboxd(&[&["audit", "--json"], arguments].concat());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::String(told));
    (output.status.code().unwrap(), report)
}

fn clean(scene: &Scene, arguments: &[&str]) -> Value {
    let (code, report) = audit(scene, arguments);
    assert_eq!((code, &report["clean"]), (0, &true.into()), "{report:#}");
    report
}

/// Lost, phantom, reordered, altered.
fn faulty(scene: &Scene, arguments: &[&str]) -> ([u64; 4], Value) {
    let (code, report) = audit(scene, arguments);
    assert_eq!((code, &report["clean"]), (65, &false.into()), "{report:#}");
    (["lost", "phantom", "reordered", "altered"].map(|kind| report[kind]["count"].as_u64().unwrap()), report)
}

fn refused(scene: &Scene, arguments: &[&str], code: i32, words: &str) {
    let output = scene.outboxd(&[&["audit"], arguments].concat());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(code) && told.contains(words), "{:?}: {told}", output.status);
}

fn id_of(report: &Value, kind: &str) -> String {
    report[kind]["examples"][0]["id"].as_str().unwrap_or_else(|| panic!("{report:#}")).to_owned()
}

/// Carries everything, and ends the daemon.
fn carry(scene: &Scene, consumer: &str, application: &Application) {
    let mut daemon = scene.daemon();
    daemon.until_settled(consumer, application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
}

fn state(scene: &Scene) -> Connection {
    Connection::open(scene.path("app.db-outboxd.db")).unwrap()
}

/// As if the last `count` events had been settled without being sent.
fn pretend_settled(scene: &Scene, application: &Application) {
    let last = application.ledger.last().unwrap().id.clone();
    let moved = state(scene).execute(
        "UPDATE outboxd_checkpoint SET position = ?1, event_id = ?2",
        rusqlite::params![application.head(), last],
    );
    assert_eq!(moved.unwrap(), 1);
}

/// The bytes of every file there, with their names.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // SQLite's shared memory is made anew by every reader of a file that nobody has open.
        .filter(|path| path.is_file() && !path.display().to_string().ends_with("-shm"))
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .filter(|(name, bytes)| !(name.ends_with("-wal") && bytes.is_empty()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_file_that_was_doctored_is_found_out() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(1000);
    application.commit(&[Row { payload: b"\x00\xff not text".to_vec(), ..Row::of("raw") }]);
    carry(&scene, "to_lines", &application);
    let path = scene.path("lines.ndjson");
    let good = std::fs::read_to_string(&path).unwrap();
    let report = clean(&scene, &["to_lines"]);
    assert_eq!(
        (&report["settled"], &report["arrived"], &report["messages"]),
        (&1001.into(), &1001.into(), &1001.into())
    );

    let lines: Vec<&str> = good.lines().collect();
    let doctor = |doctored: Vec<&str>| std::fs::write(&path, doctored.join("\n") + "\n").unwrap();
    doctor([&lines[..500], &lines[501..]].concat());
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, id_of(&report, "lost")), ([1, 0, 0, 0], application.ledger[500].id.clone()));
    assert_eq!(report["lost"]["examples"][0]["key"], application.ledger[500].key.as_str());

    let altered = lines[500].replace("\"total\": 7", "\"total\": 8");
    doctor([&lines[..500], &[&altered], &lines[501..]].concat());
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, id_of(&report, "altered")), ([0, 0, 0, 1], application.ledger[500].id.clone()));

    let phantom = lines[500].replace(&application.ledger[500].id, "nobody");
    doctor([&lines[..], &[&phantom]].concat());
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, id_of(&report, "phantom")), ([0, 1, 0, 0], "nobody".to_owned()));
    assert_eq!(clean(&scene, &["to_lines", "--shared"])["unknown"]["count"], 1);

    // The same key comes every 20 lines.
    doctor([&lines[..500], &lines[520..521], &lines[501..520], &lines[500..501], &lines[521..]].concat());
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, id_of(&report, "reordered")), ([0, 0, 1, 0], application.ledger[520].id.clone()));

    // A second copy, marked as such, is no fault; nor is a line that is being written, or somebody else's.
    let again = lines[1000].replace(r#","data_base64""#, r#","headers":{"outboxd-redelivery":"true"},"data_base64""#);
    assert_ne!(again, lines[1000]);
    std::fs::write(&path, format!("{good}{again}\nsomething else\n{{\"id\":\"torn")).unwrap();
    let report = clean(&scene, &["to_lines"]);
    assert_eq!((&report["duplicate_messages"], &report["foreign_messages"]), (&1.into(), &1.into()));
    let text = scene.outboxd(&["audit", "to_lines"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("duplicates       1") && text.ends_with("nothing is wrong\n"), "{text}");
    // Nobody watches: no progress is shown.
    assert!(scene.outboxd(&["audit", "to_lines"]).stderr.is_empty());
}

#[test]
fn what_is_not_to_be_expected_is_not_missing() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(300);
    // Before its first run nothing is settled.
    let report = clean(&scene, &["to_lines"]);
    assert_eq!((&report["settled"], &report["not_settled"]), (&0.into(), &300.into()));
    carry(&scene, "to_lines", &application);
    application.write(100);
    assert_eq!(clean(&scene, &["to_lines"])["not_settled"], 100);
    // An operator leaves them out: skipped. Nobody does: lost.
    let output = scene.outboxd(&["position", "set", "to_lines", "head", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(clean(&scene, &["to_lines"])["skipped"], 100);
    application.write(5);
    pretend_settled(&scene, &application);
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, &report["settled"]), ([5, 0, 0, 0], &305.into()));
    // What was held, or discarded, may be missing.
    let held = |n: usize| {
        let row = "INSERT INTO outboxd_held VALUES ('to_lines', x'6b', ?1, 1, NULL, ?2, 'dead', 1, NULL, 'refused', '', '', NULL)";
        state(&scene).execute(row, rusqlite::params![n as i64, application.ledger[400 + n].id]).unwrap();
    };
    (0..5).for_each(held);
    assert_eq!(clean(&scene, &["to_lines"])["held"], 5);
    let id = &application.ledger[400].id;
    let output = scene.outboxd(&["dead-letters", "discard", "--id", id, "--reason", "old", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = clean(&scene, &["to_lines"]);
    assert_eq!((&report["held"], &report["discarded"]), (&4.into(), &1.into()));

    // Rows that the application deleted are no phantoms.
    let app = Connection::open(scene.path("app.db")).unwrap();
    app.execute("DELETE FROM outbox WHERE position <= 50", []).unwrap();
    let report = clean(&scene, &["to_lines"]);
    assert_eq!(report["unknown"]["count"], 50);
    assert!(report["notes"][0].as_str().unwrap().contains("50 rows are no longer in the source"), "{report:#}");

    // A file that was renamed away belongs to it.
    std::fs::rename(scene.path("lines.ndjson"), scene.path("lines.1")).unwrap();
    assert_eq!(faulty(&scene, &["to_lines"]).0, [250, 0, 0, 0]);
    clean(&scene, &["to_lines", "--older", "lines.1"]);
}

#[test]
fn an_audit_changes_nothing_and_a_busy_relay_does_not_make_it_err() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 50);
    application.write(2000);
    let mut daemon = scene.daemon();
    let flow = application.flow(20_000, 5_000.0, crate::support::dice::Dice::thrown("audits beside a relay"));
    let mut audits = 0;
    while !flow.is_finished() {
        let report = clean(&scene, &["to_lines"]);
        assert!(report["arrived"].as_u64() >= report["settled"].as_u64(), "{report:#}");
        audits += 1;
    }
    let application = flow.join().unwrap();
    assert!(audits > 2, "{audits} audits beside a relay");
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    daemon.kill();
    let before = contents(scene.path("app.db").parent().unwrap());
    assert_eq!(clean(&scene, &["to_lines"])["arrived"], 22_000);
    assert_eq!(contents(scene.path("app.db").parent().unwrap()), before);
}

#[test]
fn what_cannot_be_compared_is_refused_with_a_remedy() {
    let elsewhere = kafka("bus", "127.0.0.1:1", "shop", "");
    let out = "[sinks.out]\ntype = \"stdout\"\n";
    let rabbit = amqp("rabbit", "amqp://127.0.0.1:1", "events", "x", "");
    let relays = ["bus", "lines", "out", "rabbit"].map(|sink| relay(sink, "")).concat();
    let scene = Scene::new(&[SHOP, &elsewhere, &file("lines"), out, &rabbit, &relays].concat());
    refused(&scene, &["nobody"], 64, "known are to_bus, to_lines, to_out, to_rabbit");
    refused(&scene, &["to_out"], 64, "write to a file");
    refused(&scene, &["to_rabbit"], 64, "name it with --queue");
    refused(&scene, &["to_lines", "--queue", "x"], 64, "--queue is for RabbitMQ");
    refused(&scene, &["to_bus", "--older", "x"], 64, "--older is for files");
    refused(&scene, &["to_bus"], 69, "topic shop");
    refused(&scene, &["to_rabbit", "--queue", "x"], 69, "RabbitMQ");
    std::fs::remove_file(scene.path("app.db")).unwrap();
    refused(&scene, &["to_bus"], 69, "app.db");
}

#[test]
fn a_table_read_by_row_is_compared_by_its_marks() {
    let _machine = shared_machine();
    let config = "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"es.db\"\npreset = \"eventsource-py\"\nread = \"outbox\"\n\
                  [sinks.lines]\ntype = \"file\"\npath = \"lines.ndjson\"\n[relays.to_lines]\nsource = \"shop\"\nsink = \"lines\"\n";
    let scene = Scene::without_a_file(config);
    let app = eventsource::make(&scene.path("es.db"), "g4");
    for n in 0..50 {
        let values = format!("'{n:032}', 'event-{n}', 'Placed', '{n:032}', 'Order', '{{\"payload\": {{\"n\": {n}}}}}'");
        let columns = "id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, status";
        app.execute(&format!("INSERT INTO event_outbox ({columns}) VALUES ({values}, datetime('now'), 'pending')"), [])
            .unwrap();
    }
    let mut daemon = scene.daemon();
    let pending = "SELECT count(*) FROM event_outbox WHERE status = 'pending'";
    crate::support::wait::until("all are marked", Duration::from_secs(20), || {
        (app.query_row(pending, [], |row| row.get::<_, i64>(0)).unwrap() == 0).then_some(())
    });
    daemon.stop(Duration::from_secs(10));
    let report = clean(&scene, &["to_lines"]);
    assert_eq!((&report["settled"], &report["arrived"]), (&50.into(), &50.into()));
    app.execute("UPDATE event_outbox SET status = 'pending' WHERE event_id = 'event-7'", []).unwrap();
    assert_eq!(clean(&scene, &["to_lines"])["not_settled"], 1);
    app.execute("DELETE FROM event_outbox WHERE event_id = 'event-8'", []).unwrap();
    assert_eq!(clean(&scene, &["to_lines"])["unknown"]["count"], 1);
    let lines = std::fs::read_to_string(scene.path("lines.ndjson")).unwrap();
    let without: String =
        lines.lines().filter(|line| !line.contains("event-9\"")).map(|line| format!("{line}\n")).collect();
    std::fs::write(scene.path("lines.ndjson"), without).unwrap();
    let (faults, report) = faulty(&scene, &["to_lines"]);
    assert_eq!((faults, id_of(&report, "lost")), ([1, 0, 0, 0], "event-9".to_owned()));
}

/// Plays somebody else who sends to the topic.
fn send(broker: &Broker, topic: &str, partition: i32, key: &str, id: Option<&str>, payload: &[u8]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker.text("bootstrap")).create().unwrap();
    let mut record = BaseRecord::to(topic).partition(partition).key(key).payload(payload);
    if let Some(id) = id {
        record = record.headers(OwnedHeaders::new().insert(Header { key: "id", value: Some(id) }));
    }
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_topic_is_read_back_and_judged() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let topic = unique("audited");
    broker.topic(&topic, 3, &[]);
    let config =
        [SHOP, &kafka("bus", &broker.text("bootstrap"), &topic, ""), &relay("bus", "attempts_max = 1\n")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(2000);
    application.commit(&[Row::of("large").heavy(3 << 20)]);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(30));
    let report = clean(&scene, &["to_bus"]);
    assert_eq!((&report["settled"], &report["held"], &report["arrived"]), (&2000.into(), &1.into(), &2000.into()));
    daemon.stop(Duration::from_secs(10));
    assert!(report["notes"].as_array().unwrap().is_empty(), "{report:#}");

    let messages = readers::kafka(broker, &topic);
    send(broker, &topic, 0, "else", None, b"without an id");
    assert_eq!(clean(&scene, &["to_bus"])["foreign_messages"], 1);
    application.write(5);
    pretend_settled(&scene, &application);
    let (faults, report) = faulty(&scene, &["to_bus"]);
    assert_eq!((faults, report["lost"]["examples"].as_array().unwrap().len()), ([5, 0, 0, 0], 5));

    let entry = application.ledger[3].clone();
    let lane = messages.iter().find(|message| message.id == entry.id).unwrap().lane as i32;
    send(broker, &topic, lane, &entry.key, Some(&entry.id), b"something else");
    send(broker, &topic, lane, &entry.key, Some("nobody"), b"{}");
    let (faults, report) = faulty(&scene, &["to_bus"]);
    // The copy of an old event stands behind 99 later ones of its key.
    assert_eq!(faults, [5, 1, 99, 1], "{report:#}");
    assert_eq!((id_of(&report, "altered"), id_of(&report, "phantom")), (entry.id.clone(), "nobody".to_owned()));

    // Another relay to the same topic explains the stranger, nothing else.
    let second = "[relays.second]\nsource = \"shop\"\nsink = \"bus\"\nstart = \"head\"\n";
    scene.configure(&format!("{config}{second}"));
    assert_eq!(faulty(&scene, &["to_bus"]).0, [5, 0, 99, 1]);
}

#[test]
fn what_expired_at_the_topic_is_not_called_lost() {
    let _machine = shared_machine();
    let broker = Broker::kafka();
    let topic = unique("expired");
    broker.topic(&topic, 2, &[]);
    let config = [SHOP, &kafka("bus", &broker.text("bootstrap"), &topic, ""), &relay("bus", "")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(1000);
    carry(&scene, "to_bus", &application);
    delete_records(broker, &topic, 100);
    let report = clean(&scene, &["to_bus"]);
    assert_eq!(report["cannot_tell"], 200, "{report:#}");
    assert!(report["notes"][0].as_str().unwrap().contains("expired"), "{report:#}");
    // What is younger than all that expired can still be missed.
    application.write(5);
    pretend_settled(&scene, &application);
    assert_eq!(faulty(&scene, &["to_bus"]).0, [5, 0, 0, 0]);
}

/// As retention does, the first `count` messages of both partitions.
fn delete_records(broker: &Broker, topic: &str, count: i64) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", broker.text("bootstrap")).create().unwrap();
    let mut offsets = TopicPartitionList::new();
    for partition in 0..2 {
        offsets.add_partition_offset(topic, partition, Offset::Offset(count)).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(admin.delete_records(&offsets, &AdminOptions::new())).unwrap();
}

#[test]
fn a_shadow_queue_is_looked_through_and_loses_nothing() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("shadowed");
    let [classic, stream, quorum] = ["classic", "stream", "quorum"].map(|kind| {
        let queue = format!("{name}-{kind}");
        topology::declare_queue(broker, &name, &queue, kind, "#");
        queue
    });
    let config = [SHOP, &amqp("bus", &broker.text("uri"), &name, "{type}", ""), &relay("bus", "")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(3000);
    carry(&scene, "to_bus", &application);
    // More often than the delivery limit that RabbitMQ 4 gives to a quorum queue.
    for _ in 0..22 {
        assert_eq!(clean(&scene, &["to_bus", "--queue", &classic])["arrived"], 3000);
    }
    assert_eq!(clean(&scene, &["to_bus", "--queue", &stream])["arrived"], 3000);
    refused(&scene, &["to_bus", "--queue", &quorum], 64, "delivery limit");
    refused(&scene, &["to_bus", "--queue", "nowhere"], 69, "nowhere");

    application.write(5);
    pretend_settled(&scene, &application);
    for queue in [&classic, &stream] {
        assert_eq!(faulty(&scene, &["to_bus", "--queue", queue]).0, [5, 0, 0, 0]);
    }
    let arrivals = readers::arrivals(readers::rabbitmq(broker, &classic));
    let judgement = judge(&application.ledger[..3000], &[], &arrivals);
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
    let untouched = readers::rabbitmq(broker, &quorum);
    assert_eq!(untouched.len(), 3000);
    // Drained: now all of it is missing.
    assert_eq!(faulty(&scene, &["to_bus", "--queue", &classic]).0, [3005, 0, 0, 0]);
}
