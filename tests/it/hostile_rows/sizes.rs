//! What is too large is refused by its size alone: it is never read into memory.

use std::time::Duration;

use super::oracle::Table;
use super::{loose, peak_mib};
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_too_large_is_never_read() {
    let _machine = shared_machine();
    let relay = |name: &str, preset: &str, read: &str, start: &str| {
        format!(
            "\n[sources.{name}]\npath = \"{name}.db\"\npreset = \"{preset}\"\nread = \"{read}\"\n\
             [sinks.{name}]\ntype = \"file\"\npath = \"{name}.ndjson\"\n\
             [relays.{name}]\nsource = \"{name}\"\nsink = \"{name}\"\nattempts_max = 1\non_reject = \"hold\"\n{start}\n"
        )
    };
    let scene = Scene::without_a_file(
        &[relay("outbox", "outboxd", "outbox", "start = \"first\""), relay("rows", "eventsource-py", "outbox", "")]
            .concat(),
    );
    let outbox = loose(&scene.path("outbox.db"), Table::Outbox);
    let rows = loose(&scene.path("rows.db"), Table::ByRow);
    // The payload of 100 MB that the promise names, and every other column with a good deal less.
    let mut tried = 0;
    let mut bytes = 0;
    for (column, size) in [
        ("payload", 100 * MIB),
        ("payload", 16 * MIB + 1),
        ("id", 40 * MIB),
        ("key", 100 * MIB),
        ("stream_id", 40 * MIB),
        ("stream_type", 40 * MIB),
        ("type", 40 * MIB),
        ("headers", 40 * MIB),
        ("time", 40 * MIB),
    ] {
        let others = [("id", "hex(randomblob(8))"), ("type", "'T'"), ("key", "'k' || random()")];
        let others: Vec<_> = others.into_iter().filter(|(name, _)| *name != column).collect();
        let names: String = others.iter().map(|(name, _)| format!(", {name}")).collect();
        let values: String = others.iter().map(|(_, value)| format!(", {value}")).collect();
        let sql = format!("INSERT INTO outbox ({column}{names}) VALUES (CAST(zeroblob({size}) AS TEXT){values})");
        outbox.execute_batch(&sql).unwrap();
        outbox.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        tried += 1;
        bytes += size;
    }
    outbox.execute_batch("INSERT INTO outbox (id, type, payload) VALUES ('last', 'T', '1')").unwrap();
    let mut daemon = scene.daemon();
    daemon.until("outbox", "through", Duration::from_secs(60), |status| {
        status["position"] == 10 && status["in_flight_events"] == 0
    });
    let peak = peak_mib(&daemon);
    // To mark a row, SQLite writes it anew as a whole: this costs the application's own size, and is not a read of ours.
    for (column, size) in [("event_data", 17 * MIB), ("aggregate_id", MIB), ("created_at", MIB)] {
        let sql = format!(
            "INSERT INTO event_outbox (id, event_id, event_type, {column}) VALUES (hex(randomblob(8)), hex(randomblob(8)), 'T', zeroblob({size}))"
        );
        rows.execute_batch(&sql).unwrap();
        tried += 1;
        bytes += size;
    }
    daemon.until("rows", "through", Duration::from_secs(60), |status| status["dead_letters"] == 3);
    let letters = daemon.dead_letters();
    assert_eq!(letters.len(), tried);
    assert!(
        letters.iter().all(|letter| letter["reason"] == "too_large" && letter["state"] == "dead"),
        "{letters:.2000?}"
    );
    let details: Vec<_> = letters.iter().map(|letter| letter["detail"].as_str().unwrap()).collect();
    for word in [
        "the payload has",
        "for id has",
        "for key",
        "for stream_id",
        "for stream_type",
        "for type",
        "for headers",
        "for time",
    ] {
        assert!(details.iter().any(|detail| detail.contains(word)), "{word}: {details:?}");
    }
    assert!(peak < 80, "{peak} MiB: something large was read");
    Proof::of("rows of up to 100 MiB")
        .tried("columns that are too large", tried as u64)
        .tried("MiB in them", bytes / MIB)
        .found("read", 0)
        .found("most memory", format!("{peak} MiB"));
}
