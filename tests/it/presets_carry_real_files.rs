//! Every preset carries what the real library wrote (tests/fixtures/libraries), each event once, with what its columns say.

use std::path::PathBuf;

use outboxd::config::preset;
use outboxd::source::feed;

use crate::cli::{code, outboxd, printed, told};
use crate::config::Folder;
use crate::support::by_hand::Table;
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived};
use crate::support::rig::{self, open};
use crate::tables_are_read_by_feed::FLIGHTDECK;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/libraries").join(name)
}

/// What arrived, as text: key and body.
async fn carried(table: &Table, count: usize) -> Vec<(String, String)> {
    let far_side = FarSide::default();
    let relays = Relays::one(table.source.clone(), fleet::fake(&far_side));
    arrived(&far_side, count).await;
    relays.reaches("r", |status| status.delivered == count as u64).await;
    relays.stop().await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    far_side.arrivals().iter().map(|arrival| (text(&arrival.key), text(&arrival.body))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn emmett() {
    let table = Table::of_file(&file("emmett.db"), "preset = \"emmett\"");
    let batch = table.read(0, 10).await.unwrap();
    let first = batch.event(0);
    assert_eq!((first.position.0, first.kind, first.version), (1, "ProductItemAdded", Some(1)));
    assert_eq!(first.header("tenant").as_deref(), Some("blue"));
    assert!(first.time_micros.is_some() && batch.defect(0).is_none());
    let sent = carried(&table, 4).await;
    let [one, two] = ["shopping_cart-1", "shopping_cart-2"];
    assert_eq!(
        sent,
        [
            (one, r#"{"productId":"p1","quantity":2,"note":"café"}"#),
            (one, r#"{"percent":10}"#),
            (two, r#"{"productId":"p2","quantity":1}"#),
            (one, "{}")
        ]
        .map(|(key, body)| (key.to_owned(), body.to_owned()))
    );
    assert_eq!(table.look().await.unwrap().plan.warnings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn eventsourcing() {
    let table = Table::of_file(&file("eventsourcing.db"), "preset = \"eventsourcing\"");
    let batch = table.read(0, 10).await.unwrap();
    let stored: Vec<(String, i64, String, String)> = table
        .app
        .prepare(
            "SELECT originator_id, originator_version, topic, CAST(state AS TEXT) FROM stored_events ORDER BY rowid",
        )
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (index, (id, version, topic, _)) in stored.iter().enumerate() {
        let event = batch.event(index);
        assert_eq!(
            (event.id, event.version, event.kind),
            (format!("{id}:{version}").as_str(), Some(*version), topic.as_str())
        );
    }
    let expected: Vec<_> = stored.into_iter().map(|(id, _, _, state)| (id, state)).collect();
    assert_eq!(expected.len(), 3);
    assert_eq!(carried(&table, 3).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn django_outbox_pattern() {
    let table = Table::of_file(&file("django_outbox_pattern.db"), "preset = \"django-outbox-pattern\"");
    let batch = table.read(0, 10).await.unwrap();
    assert_eq!(batch.len(), 2, "one was sent before, and one has expired");
    let event = batch.event(0);
    assert_eq!((event.id.len(), event.kind), (36, "orders.placed"));
    assert_eq!(event.header("dop-msg-id").as_deref(), Some(event.id));
    let sent: Vec<String> = carried(&table, 2).await.into_iter().map(|(_, body)| body).collect();
    assert_eq!(sent, [r#"{"order": 1, "name": "caf\u00e9"}"#, r#"{"order": 2}"#]);
    let status = |sql: &str| table.app.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    let all = "SELECT group_concat(destination || '=' || status) FROM (SELECT * FROM published ORDER BY added)";
    assert_eq!(status(all), "orders.placed=2,orders.placed.v1=2,sent=2,expired=1");
}

/// As Debezium's documentation of the outbox event router has it.
#[tokio::test(flavor = "multi_thread")]
async fn debezium() {
    let table = Table::new(
        "CREATE TABLE outboxevent (id TEXT NOT NULL PRIMARY KEY, aggregatetype VARCHAR(255) NOT NULL, aggregateid VARCHAR(255) NOT NULL,
                                   type VARCHAR(255) NOT NULL, payload JSONB);
         INSERT INTO outboxevent VALUES ('406c07f3-26f0-4eea-a50c-109940064b8f', 'Order', '1', 'OrderCreated', '{\"id\":1}'),
                                        ('0', 'Order', '2', 'OrderCreated', '{\"id\":2}'), ('5', 'Order', '1', 'OrderPaid', '{}');",
        "preset = \"debezium\"",
    );
    let event = table.read(0, 10).await.unwrap();
    assert_eq!((event.event(0).stream_type, event.event(0).kind), (Some("Order"), "OrderCreated"));
    let sent = carried(&table, 3).await;
    assert_eq!(
        sent,
        [("1", "{\"id\":1}"), ("2", "{\"id\":2}"), ("1", "{}")].map(|(k, b)| (k.to_owned(), b.to_owned()))
    );
    assert_eq!(table.app.query_row("SELECT count(*) FROM outboxevent", [], |row| row.get::<_, i64>(0)), Ok(0));
}

/// A file as whoever the preset is for has it.
async fn real_file(preset: &str, folder: &Folder) {
    let path = folder.path("app.db");
    match preset {
        "outboxd" => {
            outboxd::store::init(&path).await.unwrap();
            let app = open(&path);
            rig::insert(&app, "e1", "k1");
            let event = "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES ('s', 'Order', 1, 'Placed', '{}')";
            app.execute_batch(event).unwrap();
        }
        "eventsource-py" => {
            let app = eventsource::make(&path, "g4");
            eventsource::enqueue(&app, &[("1", "a")]);
            eventsource::append(&app, 1);
        }
        "debezium" => {
            let sql = "CREATE TABLE outboxevent (id TEXT NOT NULL PRIMARY KEY, aggregatetype VARCHAR(255), aggregateid VARCHAR(255),
                                                 type VARCHAR(255), payload JSONB);
                       INSERT INTO outboxevent VALUES ('1', 'Order', '1', 'OrderCreated', '{}');";
            open(&path).execute_batch(sql).unwrap();
        }
        "flightdeck" => {
            let sql = "INSERT INTO streams VALUES ('c', 'Content', 1, '', '');
                       INSERT INTO events VALUES ('1', 'c', 1, 'ContentCreated', '{}', '{}', '2026-11-21T03:15:20.1234567+00:00');";
            open(&path).execute_batch(&format!("{FLIGHTDECK}{sql}")).unwrap();
            feed::make(&path, "events", Some("archived_events"), feed::Run::Make).unwrap();
        }
        written => {
            std::fs::copy(file(&format!("{}.db", written.replace('-', "_"))), &path).unwrap();
            // It was committed without its `-wal`.
            open(&path);
        }
    }
}

/// What whoever takes a preset is shown first.
#[tokio::test(flavor = "multi_thread")]
async fn check_shows_mapping_plan_and_first_messages_of_every_preset() {
    for &(preset, text) in preset::ALL {
        for read in toml::from_str::<toml::Table>(text).unwrap().keys() {
            let folder = Folder::with(&format!(
                "[sources.app]\npath = \"app.db\"\npreset = \"{preset}\"\nread = \"{read}\"\n[sinks.out]\ntype = \"file\"\n\
                 path = \"out.ndjson\"\n[relays.r]\nsource = \"app\"\nsink = \"out\"\n{}",
                if *read == "events" || preset == "outboxd" { "start = \"first\"\n" } else { "" }
            ));
            real_file(preset, &folder).await;
            let output = outboxd(&folder, &["check", "--json"]);
            assert_eq!(code(&output), 0, "{preset} {read}: {}{}", printed(&output), told(&output));
            let told: serde_json::Value = serde_json::from_str(&printed(&output)).unwrap();
            let findings = told["findings"].as_array().unwrap();
            let of = |subject: &str| -> Vec<(&str, &str)> {
                let found = findings.iter().filter(|finding| finding["subject"] == format!("source app{subject}"));
                found
                    .map(|finding| (finding["verdict"].as_str().unwrap(), finding["detail"].as_str().unwrap()))
                    .collect()
            };
            let wanted = [("", " is read by "), (" mapping", "payload = "), (" plan", "S"), (" message", "id ")];
            for (subject, said) in wanted {
                let found = of(subject);
                // django-outbox-pattern has no index for the order of its rows, and is told so.
                // And the SQLite of whoever wrote the file may be an old one.
                let is_right = |verdict: &str| {
                    verdict == "ok"
                        || (verdict == "slow" && subject == " plan")
                        || (verdict == "warning" && subject.is_empty())
                };
                let is_told = found.first().is_some_and(|(verdict, detail)| *verdict == "ok" && detail.contains(said))
                    && found.iter().all(|(verdict, _)| is_right(verdict));
                assert!(is_told, "{preset} {read}{subject}: {found:?}");
            }
        }
    }
}

/// What a preset says can be said by a person: its text, pasted into a configuration, is the preset.
#[test]
fn a_preset_is_in_the_words_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for &(name, text) in preset::ALL {
        let tables: toml::Table = toml::from_str(text).unwrap();
        for (read, generations) in &tables {
            let pasted = toml::to_string(&generations[0]).unwrap();
            let by_hand = crate::support::by_hand::described(folder.path(), &flat(&pasted))
                .unwrap_or_else(|error| panic!("{name} {read}: {error}"));
            let named = format!("preset = \"{name}\"\nread = \"{read}\"");
            let by_name = crate::support::by_hand::described(folder.path(), &named).unwrap();
            assert_eq!(by_hand.tables[0], by_name.tables[0], "{name} {read}");
        }
    }
}

/// `[x]` of a section that is pasted below another is `[sources.app.x]`.
fn flat(text: &str) -> String {
    text.lines()
        .map(|line| match line.strip_prefix('[') {
            Some(rest) => format!("[sources.app.{rest}\n"),
            None => format!("{line}\n"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_beside_a_preset_goes_before_it() {
    let sql = "CREATE TABLE my_outbox (id TEXT PRIMARY KEY, aggregatetype, aggregateid, type, payload);
               INSERT INTO my_outbox VALUES ('1', 'Order', 'a', 'T', '{\"inner\":7}')";
    let keys = "preset = \"debezium\"\ntable = \"my_outbox\"\npayload = { column = \"payload\", path = \"$.inner\" }";
    let table = Table::new(sql, keys);
    assert_eq!(table.read(0, 1).await.unwrap().event(0).payload, Some(&b"7"[..]));
}
