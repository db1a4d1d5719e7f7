//! `preset = "eventsource-py"`: every generation of its tables is told apart, read in the right order, and sent byte for byte.

use std::path::{Path, PathBuf};

use crate::support::fleet::Read;
use outboxd::consumer::status::State;
use outboxd::sink::file;
use outboxd::sink::format::Format;
use rusqlite::Connection;

use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived, until};

const WRITABLE: [&str; 3] = ["g1a", "g1b", "g3"];
const EVERY: [&str; 6] = ["g1a", "g1b", "g2_0_3_0", "g2_0_5_0", "g3", "g4"];

fn sink_file(folder: &Path, format: Format) -> (PathBuf, outboxd::sink::Settings) {
    let path = folder.join("out.ndjson");
    (
        path.clone(),
        outboxd::sink::Settings::File(file::Settings { path: Some(path), format, ..file::Settings::default() }),
    )
}

async fn lines(path: &Path, count: usize) -> Vec<String> {
    until("lines in the file", || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count && text.ends_with('\n') {
            Ok(lines)
        } else {
            Err(format!("{} of {count}", lines.len()))
        }
    })
    .await
}

/// The bodies that the library's own buses would send, cut out of the outbox by hand.
fn payloads(application: &Connection, order: &str) -> Vec<String> {
    let sql = format!("SELECT event_data FROM event_outbox ORDER BY {order}");
    let mut statement = application.prepare(&sql).unwrap();
    let data = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    data.map(|data| {
        let data = data.unwrap();
        let from = data.find("\"payload\":").unwrap() + "\"payload\":".len();
        data[from..data.len() - 1].trim().to_owned()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_of_every_release_that_could_write_one_is_relayed_and_marked() {
    for generation in WRITABLE {
        for format in [Format::Plain, Format::EventsourcePy] {
            let folder = tempfile::tempdir().unwrap();
            let database = folder.path().join("app.db");
            let application = eventsource::make(&database, generation);
            let (out, sink) = sink_file(folder.path(), format);
            let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), sink);
            assert_eq!(lines(&out, 6).await, payloads(&application, "rowid"), "{generation} {format:?}");
            relays.reaches("r", |status| status.backlog == 0 && status.delivered == 6).await;
            assert_eq!(
                eventsource::count(&application, "event_outbox WHERE status = 'published' AND retry_count = 0"),
                6
            );
            let published: String =
                application.query_row("SELECT published_at FROM event_outbox", [], |row| row.get(0)).unwrap();
            assert!(
                published.ends_with("+00:00") && published.as_bytes()[10] == b'T',
                "not the library's format: {published}"
            );
            assert!(outboxd::clock::parse_micros(&published).is_some());
            relays.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_every_release_is_relayed() {
    for generation in EVERY {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let application = eventsource::make(&database, generation);
        if generation == "g4" {
            application.execute_batch(&rows_of_the_same_tables()).unwrap();
        }
        let (out, sink) = sink_file(folder.path(), Format::Plain);
        let relays = Relays::one(fleet::source("log", &database, Read::Events), sink);
        let mut statement = application.prepare("SELECT payload FROM events ORDER BY 1 = 0, rowid").unwrap();
        let expected: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(expected.len(), 6);
        assert_eq!(lines(&out, 6).await, expected, "{generation}");
        relays.stop().await;
    }
}

fn rows_of_the_same_tables() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/eventsource_generations/g3.rows.sql");
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envelope_says_what_the_columns_say() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    application.execute_batch(&rows_of_the_same_tables()).unwrap();
    let (out, sink) = sink_file(folder.path(), Format::Envelope);
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), sink);
    let first: serde_json::Value = serde_json::from_str(&lines(&out, 6).await[0]).unwrap();
    let (id, aggregate): (String, String) = application
        .query_row("SELECT event_id, aggregate_id FROM event_outbox ORDER BY rowid", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(first["id"], id);
    assert_eq!(first["key"], aggregate);
    assert_eq!(first["stream_id"], aggregate);
    assert_eq!(first["stream_type"], "Order");
    assert_eq!(first["type"], "OrderPlaced");
    assert_eq!(first["version"], 1);
    assert_eq!(first["source"], "outbox");
    assert_eq!(first["data"]["event_id"], id);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_its_release_cannot_write_is_refused_in_words() {
    for generation in ["g2_0_3_0", "g2_0_5_0"] {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let application = eventsource::make(&database, generation);
        let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&FarSide::default()));
        let status = relays.reaches("r", |status| status.state == State::Halted).await;
        for part in ["event_outbox", "0.3 to 0.5", "datatype mismatch", "read = \"events\"", "drop the empty table"] {
            assert!(status.detail.contains(part), "{generation}: {:?} is not said in {}", part, status.detail);
        }
        assert_eq!(
            eventsource::count(&application, "sqlite_schema WHERE name LIKE 'outboxd%'"),
            0,
            "nothing was made in it"
        );
        relays.stop().await;
    }
}

/// Its rows are older: made by 0.2, before the library was upgraded.
#[tokio::test(flavor = "multi_thread")]
async fn an_unwritable_outbox_with_rows_of_an_older_release_is_drained() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g2_0_5_0");
    application
        .execute_batch(
            "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data)
             VALUES (7, 'e-7', 'T', 'a', 'A', '{\"payload\":{\"n\":7}}')",
        )
        .unwrap();
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    assert_eq!(arrived(&far_side, 1).await[0].body, b"{\"n\":7}");
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_out_in_the_order_of_the_log_and_then_of_their_making() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    let row = |id: &str, event: &str, created: &str| {
        let sql =
            "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
                   VALUES (?1, ?2, 'T', 'a', 'A', '{\"payload\":{}}', ?3)";
        application.execute(sql, [id, event, created]).unwrap();
    };
    for (position, event) in [(1, "first"), (2, "second"), (3, "third")] {
        let sql = "INSERT INTO events (global_position, event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                   VALUES (?1, ?2, 'a', 'A', 'T', ?1, '2026-11-21T03:00:00+00:00', '{}')";
        application.execute(sql, rusqlite::params![position, event]).unwrap();
    }
    // Not in the log: behind the others, by time, then as they were made; ids are random. Three formats of time.
    row("z", "late", "2026-11-21T04:00:00+00:00");
    row("y", "early-2", "2026-11-21T03:00:00.000001+00:00");
    row("x", "early-1", "2026-11-21T03:00:00+00:00");
    row("b", "same-1", "2026-11-21T03:30:00.5Z");
    row("a", "same-2", "2026-11-21T03:30:00.5Z");
    row("0", "space", "2026-11-21 03:10:00");
    // In the log: its order, whatever the clock said.
    row("1", "third", "2026-11-21T01:00:00+00:00");
    row("2", "first", "2026-11-21T05:00:00+00:00");
    row("3", "second", "2026-11-21T02:00:00+00:00");
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    let order: Vec<String> = arrived(&far_side, 9).await.into_iter().map(|arrival| arrival.id).collect();
    assert_eq!(order, ["first", "second", "third", "early-1", "early-2", "space", "same-1", "same-2", "late"]);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_payload_is_a_raw_slice() {
    let bodies = [
        r#"{"big":9007199254740993,"small":1e-7,"one":1.0,"b":1,"a":2,"a":3}"#,
        r#"{ "spaced" :  [ 1 ,2 ]   }"#,
        r#""\u00e9 and é""#,
        "null",
        "0.10",
    ];
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    for (n, body) in bodies.iter().enumerate() {
        let sql = "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data)
                   VALUES (?1, 'e' || ?1, 'T', 'a', 'A', ?2)";
        let data = format!(r#"{{"event_id": "x", "payload" : {body}  , "later": {{"payload": 1}}}}"#);
        application.execute(sql, rusqlite::params![n.to_string(), data]).unwrap();
    }
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    let sent: Vec<String> =
        arrived(&far_side, bodies.len()).await.into_iter().map(|a| String::from_utf8(a.body).unwrap()).collect();
    assert_eq!(sent, bodies);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_enqueued_twice_is_sent_twice_and_both_rows_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    for row in ["one", "two"] {
        let sql = "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data)
                   VALUES (?1, 'e', 'T', 'a', 'A', '{\"payload\":{}}')";
        application.execute(sql, [row]).unwrap();
    }
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    relays.reaches("r", |status| status.delivered == 2).await;
    assert_eq!(far_side.arrivals().iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["e", "e"]);
    assert_eq!(eventsource::count(&application, "event_outbox WHERE status = 'published'"), 2);
    relays.stop().await;
}
