//! What was moved to the archive is read as if it had not moved, also while it moves.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use outboxd::store::event::Expected;
use outboxd::store::fault::ReadError;
use outboxd::store::{self, EventStore, Options};
use rusqlite::Connection;

use super::{Shop, WITHIN, archive, event};
use crate::support::rig::open;

/// Moved to the archive and back, in a transaction each, without a pause.
fn move_about(file: &std::path::Path, stop: &AtomicBool) -> u64 {
    let app = open(file);
    let mut moves = 0;
    while !stop.load(SeqCst) {
        archive(&app, "a", 1 + (moves % 49) as i64);
        app.execute_batch(
            "BEGIN IMMEDIATE; CREATE TEMP TABLE back AS SELECT * FROM archived_events; DELETE FROM archived_events;
             INSERT INTO events SELECT * FROM back; DROP TABLE back; COMMIT",
        )
        .unwrap();
        moves += 1;
    }
    moves
}

/// Reads again and again while events move, until it has read so often.
fn while_moving(file: &std::path::Path, times: usize, mut read: impl FnMut()) -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| move_about(file, &stop));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (0..times).for_each(|_| read())));
        stop.store(true, SeqCst);
        let moves = mover.join().unwrap();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        moves
    })
}

#[test]
fn what_moves_while_it_is_read_is_not_missed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let shop = runtime.block_on(Shop::open());
    runtime.block_on(shop.filled("a", 50));
    let sql = "INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES ('a', 10, '{}', 'h')";
    shop.app.execute(sql, []).unwrap();
    let moves = while_moving(&shop.file, 300, || {
        runtime.block_on(async {
            assert_eq!(shop.versions("a").await, (1..=50).collect::<Vec<_>>());
            let all = shop.store.read_all(0, 100).await.unwrap();
            assert!(all.iter().map(|event| event.position).eq(1..=50));
            let middle = shop.store.read_all(20, 10).await.unwrap();
            assert!(middle.iter().map(|event| event.position).eq(21..=30));
            let state = shop.store.state("a").await.unwrap().unwrap();
            assert_eq!((state.version, state.snapshot.unwrap().version), (50, 10));
            assert!(state.events.iter().map(|event| event.version).eq(11..=50));
            assert_eq!(shop.store.reader().head().await.unwrap(), 50);
        });
    });
    println!("{moves} moves meanwhile");
    assert!(moves > 20, "they moved meanwhile: {moves}");
}

/// The same with two reads, the archive first: what moves between them is in neither.
#[test]
fn control_two_reads_miss_what_moves_between_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shop = runtime.block_on(Shop::open());
    runtime.block_on(shop.filled("a", 50));
    let reader = open(&shop.file);
    let count = |reader: &Connection, table: &str| -> i64 {
        reader.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let mut fewest = i64::MAX;
    while_moving(&shop.file, 3_000, || {
        let archived = count(&reader, "archived_events");
        std::thread::yield_now();
        fewest = fewest.min(archived + count(&reader, "events"));
    });
    assert!(fewest < 50, "{fewest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_archived_is_given_out_again() {
    let shop = Shop::open().await;
    shop.append("a", Expected::Any, vec![event("1", "{}"), event("2", "{}"), event("3", "{}")]).await.unwrap();
    shop.archive("a", 2);
    assert_eq!(shop.append("a", Expected::Exact(3), vec![event("4", "{}")]).await.unwrap().first_position, 4);
    // Nor to whoever writes by hand.
    let refused = |sql: &str| shop.app.execute(sql, []).unwrap_err().to_string();
    let by_hand = "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES";
    assert!(
        refused(&format!("{by_hand} ('1', 'b', 'Order', 1, 'T', '{{}}')")).contains("an archived event has this id")
    );
    assert!(
        refused(&format!("{by_hand} ('9', 'a', 'Order', 2, 'T', '{{}}')")).contains("an archived event has this id")
    );
    assert!(refused("DELETE FROM streams").contains("the stream has events"));
    shop.app.execute_batch("DELETE FROM events; DELETE FROM archived_events; DELETE FROM streams").unwrap();
    assert_eq!(shop.count("streams"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_older_outboxd_are_brought_on_by_init() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.db");
    store::init(&file).await.unwrap();
    let app = open(&file);
    // As migration 1 alone left them.
    app.execute_batch(
        "DROP TRIGGER events_are_new; DROP TRIGGER streams_stay; DROP TABLE archived_events;
         CREATE TABLE archived_events (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, stream_id TEXT NOT NULL,
             stream_type TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL, metadata TEXT,
             time TEXT NOT NULL, UNIQUE (stream_id, version)) STRICT;
         DELETE FROM outboxd_migrations WHERE version = 2;
         INSERT INTO events (id, stream_id, stream_type, version, type, data)
             VALUES ('1', 'a', 'Order', 1, 'T', '{}'), ('2', 'a', 'Order', 2, 'T', '{}');",
    )
    .unwrap();
    archive(&app, "a", 1);
    // What the application has put on it stays.
    app.execute_batch(
        "CREATE INDEX mine ON archived_events (type);
         CREATE TABLE notes (event TEXT REFERENCES archived_events (id) ON DELETE CASCADE);
         INSERT INTO notes VALUES ('1');",
    )
    .unwrap();
    let error = EventStore::open(&file, Options::default()).await.unwrap_err().to_string();
    assert!(error.ends_with("has no trigger events_are_new"), "{error}");
    for _ in 0..2 {
        store::init(&file).await.unwrap();
    }
    let store = EventStore::open(&file, Options::default()).await.unwrap();
    let ids: Vec<String> = store.load("a", 1).await.unwrap().into_iter().map(|event| event.id).collect();
    assert_eq!(ids, ["1", "2"]);
    let left = "SELECT (SELECT count(*) FROM notes) + (SELECT count(*) FROM sqlite_schema WHERE name = 'mine')";
    assert_eq!(app.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    let insert = "INSERT INTO archived_events VALUES (9, '9', ?1, 'Order', 9, 'T', ?2, NULL, 't')";
    for (stream, data) in [("nobody", "{}"), ("a", "{")] {
        let refused = app.execute(insert, [stream, data]).unwrap_err().to_string();
        assert!(refused.contains("no event of the log is like this one"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_without_a_hole_or_not_at_all() {
    let shop = Shop::open().await;
    shop.filled("a", 9).await;
    shop.archive("a", 5);
    let put = |sql: &str| shop.app.execute_batch(sql).unwrap();
    put("DELETE FROM archived_events WHERE version = 3");
    let hole = shop.store.load("a", 1).await.unwrap_err();
    assert!(matches!(hole, ReadError::Hole { missing: 3, there: 4, .. }), "{hole}");
    assert_eq!(shop.store.load("a", 4).await.unwrap().len(), 6);
    assert_eq!(shop.store.read_all(0, 100).await.unwrap().len(), 8);
    // A snapshot behind the hole heals it.
    assert!(shop.store.state("a").await.is_err());
    put("INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES ('a', 4, '[1]', 'h')");
    let state = shop.store.state("a").await.unwrap().unwrap();
    assert_eq!((state.snapshot.unwrap().state.as_str(), state.events.len()), ("[1]", 5));
    put("DELETE FROM events WHERE version = 9");
    let hole = shop.store.state("a").await.unwrap_err();
    assert!(matches!(hole, ReadError::Hole { missing: 9, there: 9, .. }), "{hole}");
    // Two with one version, which only somebody who drops the trigger can write.
    put("DROP TRIGGER events_are_new;
         INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('other', 'a', 'Order', 4, 'T', '{}')");
    let doubled = shop.store.load("a", 4).await.unwrap_err();
    assert!(matches!(doubled, ReadError::Doubled { version: 4, .. }), "{doubled}");
    // What is appended still has a version of its own.
    assert_eq!(shop.append("a", Expected::Any, vec![event("n", "{}")]).await.unwrap().last_version, 10);
    put("INSERT INTO snapshots (stream_id, version, state, reducer_hash) VALUES ('a', 11, '{}', 'h')");
    let ahead = shop.store.state("a").await.unwrap_err();
    assert!(matches!(ahead, ReadError::SnapshotAhead { snapshot: 11, version: 10, .. }), "{ahead}");
    put("PRAGMA ignore_check_constraints = ON; UPDATE snapshots SET version = 10, state = '{' WHERE version = 11");
    let corrupt = shop.store.state("a").await.unwrap_err();
    assert!(matches!(corrupt, ReadError::SnapshotCorrupt { version: 10, .. }), "{corrupt}");
    assert!(tokio::time::timeout(WITHIN, shop.store.state("nobody")).await.unwrap().unwrap().is_none());
}
