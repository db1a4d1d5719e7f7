//! Appends: expectations, conflicts, repeats, batches, locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use outboxd::sqlite::open::Durable;
use outboxd::store::event::{Append, Expected, Message, NewEvent};
use outboxd::store::fault::AppendError;
use outboxd::store::{EventStore, Options};
use tokio::task::unconstrained;

use super::{Shop, WITHIN, event};
use crate::support::rig::{eventually, open};
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_answered_with_its_versions_and_positions() {
    let shop = Shop::open().await;
    let first = shop.append("a", Expected::NoStream, vec![event("1", "{}"), event("2", "[1]")]).await.unwrap();
    assert_eq!((first.first_version, first.last_version, first.is_repeat), (1, 2, false));
    let other = shop.append("b", Expected::Any, vec![event("3", "7")]).await.unwrap();
    let second = shop.append("a", Expected::Exact(2), vec![event("4", "null")]).await.unwrap();
    assert_eq!((second.first_version, second.last_version), (3, 3));
    assert!(first.last_position < other.first_position && other.last_position < second.first_position);
    let read = shop.store.read_all(0, 100).await.unwrap();
    let told: Vec<_> = read.iter().map(|e| (e.position, e.id.as_str(), e.stream.as_str(), e.version)).collect();
    let [p1, p2] = [first.first_position, first.last_position];
    let [p3, p4] = [other.first_position, second.first_position];
    assert_eq!(told, [(p1, "1", "a", 1), (p2, "2", "a", 2), (p3, "3", "b", 1), (p4, "4", "a", 3)]);
    assert_eq!(
        (read[1].data.as_str(), read[1].kind.as_str(), read[1].stream_type.as_str()),
        ("[1]", "Placed", "Order")
    );
    assert!(outboxd::clock::parse_micros(&read[1].time).is_some());
    assert_eq!(shop.store.read_all(p2, 1).await.unwrap()[0].id, "3");
    assert_eq!(shop.store.load("a", 3).await.unwrap().len(), 1);
    assert!(shop.store.load("nobody", 1).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_carries_both_versions() {
    let shop = Shop::open().await;
    let ask = async |stream: &str, expected| {
        let asked = shop.append(stream, expected, vec![NewEvent::new("Placed", "{}")]).await;
        match asked {
            Ok(done) => Ok(done.last_version),
            Err(AppendError::Conflict { expected: told, actual, .. }) => {
                assert_eq!(told, expected);
                Err(actual)
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(ask("a", Expected::StreamExists).await, Err(None));
    assert_eq!(ask("a", Expected::Exact(1)).await, Err(None));
    assert_eq!(ask("a", Expected::Exact(0)).await, Ok(1));
    assert_eq!(ask("a", Expected::NoStream).await, Err(Some(1)));
    assert_eq!(ask("a", Expected::Exact(0)).await, Err(Some(1)));
    assert_eq!(ask("a", Expected::StreamExists).await, Ok(2));
    assert_eq!(ask("a", Expected::Exact(i64::MAX)).await, Err(Some(2)));
    assert_eq!(ask("a", Expected::Any).await, Ok(3));
    let told = shop.append("a", Expected::Exact(2), vec![event("x", "{}")]).await.unwrap_err().to_string();
    assert_eq!(told, "stream a is at version 3, where version 2 was expected");
    assert_eq!(shop.count("events"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_again_are_answered_as_before() {
    let shop = Shop::open().await;
    let events = || vec![event("1", "{\"a\":1}"), event("2", "{\"a\":2}"), event("3", "{}")];
    let first = shop.append("a", Expected::NoStream, events()).await.unwrap();
    shop.filled("a", 2).await;
    // Whatever was expected, and wherever they are by now.
    for archived in [0, 1, 3] {
        shop.archive("a", archived);
        for expected in [Expected::NoStream, Expected::Any, Expected::Exact(0), Expected::StreamExists] {
            let again = shop.append("a", expected, events()).await.unwrap();
            assert_eq!(again, outboxd::store::event::Appended { is_repeat: true, ..first });
        }
        let other = |events, stream: &str| Append::new(stream, "Order", Expected::Any, events);
        let refused = async |append| shop.store.append(append, WITHIN).await.unwrap_err().to_string();
        let data = refused(other(vec![event("2", "{\"a\": 2}")], "a")).await;
        assert_eq!(data, "event 2 is there already, with another data (stream a, version 2)");
        let stream = refused(other(vec![event("2", "{\"a\":2}")], "b")).await;
        assert_eq!(stream, "event 2 is there already, with another stream (stream a, version 2)");
        let kind = NewEvent { kind: "Other".into(), ..event("3", "{}") };
        assert!(refused(other(vec![kind], "a")).await.contains("another type"));
        let skipped = refused(other(vec![event("1", "{\"a\":1}"), event("3", "{}")], "a")).await;
        assert!(skipped.contains("another version"), "{skipped}");
        let partly = refused(other(vec![event("3", "{}"), event("new", "{}")], "a")).await;
        assert!(partly.starts_with("event 3 is there already, and new of the same append is not"), "{partly}");
        let partly = refused(other(vec![event("new", "{}"), event("3", "{}")], "a")).await;
        assert!(partly.starts_with("event 3 is there already, and new of the same append is not"), "{partly}");
    }
    let twice = shop.append("c", Expected::Any, vec![event("9", "{}"), event("9", "{}")]).await.unwrap_err();
    assert_eq!(twice, AppendError::IdTwice { id: "9".into() });
    assert_eq!(shop.versions("a").await, [1, 2, 3, 4, 5]);
    assert_eq!(shop.count("streams"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_takes_nobody_with_it() {
    let shop = Shop::open().await;
    // While the file is locked they all queue, and so share a transaction.
    shop.app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let appends = (0..60).map(|n| {
        let stream = format!("s{}", n % 7);
        // Every third fails at its second event, when its first one is written.
        let second = if n % 3 == 0 { "{" } else { "{}" };
        let events = vec![event(&format!("{n}-1"), "{}"), event(&format!("{n}-2"), second)];
        let append = Append::new(stream, "Order", Expected::Any, events);
        let store = shop.store.clone();
        async move { store.append(append, WITHIN).await }
    });
    let (answers, ()) = tokio::join!(unconstrained(join_all(appends)), shop.let_go_when_all_wait());
    let mut last = 0;
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            // In the order of arrival.
            Ok(done) => {
                assert!(n % 3 != 0 && done.first_position > last, "{n}: {done:?}");
                last = done.last_position;
            }
            Err(error) => {
                assert_eq!(error, AppendError::NotJson { id: format!("{n}-2"), field: "data" });
                assert_eq!(n % 3, 0);
            }
        }
    }
    assert_eq!(shop.count("events"), 80);
    for stream in 0..7 {
        shop.versions(&format!("s{stream}")).await;
    }
}

/// A trigger of the application's own that says RAISE(ROLLBACK) takes the whole transaction: the others are done again, whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_ends_the_transaction_takes_nobody_with_it() {
    let shop = Shop::open().await;
    shop.app
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON events WHEN NEW.type = 'Forbidden' BEGIN SELECT RAISE(ROLLBACK, 'not that'); END;
             BEGIN IMMEDIATE",
        )
        .unwrap();
    let appends = (0..40).map(|n| {
        let kind = if n % 10 == 5 { "Forbidden" } else { "Placed" };
        // Behind what ended the transaction, half of an append would stay.
        let data = if n % 10 == 7 { "{" } else { "{}" };
        let second = NewEvent { kind: kind.into(), ..event(&format!("{n}-2"), data) };
        let append = Append::new(format!("s{n}"), "Order", Expected::Any, vec![event(&format!("{n}-1"), "{}"), second]);
        let store = shop.store.clone();
        async move { store.append(append, WITHIN).await }
    });
    let (answers, ()) = tokio::join!(unconstrained(join_all(appends)), shop.let_go_when_all_wait());
    for (n, answer) in answers.into_iter().enumerate() {
        match (n % 10, answer) {
            (5, Err(AppendError::Sqlite { text, .. })) => assert!(text.contains("not that"), "{n}: {text}"),
            (7, Err(AppendError::NotJson { .. })) => {}
            (0..=4 | 6 | 8 | 9, Ok(done)) => assert_eq!(done.last_version, 2),
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!((shop.count("events"), shop.count("streams")), (64, 32));
}

/// The file is free, and others are served all the while: to wait for one's turn is to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_waited_for_as_long_as_was_said() {
    let shop = Shop::open().await;
    let many = (0..10_000).map(|n| event(&format!("many-{n}"), "{}")).collect();
    let large = shop.store.append(Append::new("large", "Order", Expected::Any, many), WITHIN);
    let hasty = Append::new("hasty", "Order", Expected::Any, vec![event("hasty", "{}")]);
    let patient = Append::new("patient", "Order", Expected::Any, vec![event("patient", "{}")]);
    let (large, hasty, patient) =
        tokio::join!(large, shop.store.append(hasty, Duration::from_millis(1)), shop.store.append(patient, WITHIN));
    assert_eq!(
        (large.unwrap().last_version, hasty, patient.unwrap().last_version),
        (10_000, Err(AppendError::Locked), 1)
    );
    assert_eq!(shop.count("events"), 10_001);
}

/// Calls that never cease leave the lock to others in between: one with SQLite's own busy handler has it in time, each time.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_never_cease_leave_the_lock_to_others() {
    let shop = Shop::open().await;
    let (stop, calls) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
    let callers = (0..64).map(|caller| {
        let (shop, stop, calls) = (&shop, &stop, &calls);
        async move {
            while !stop.load(Relaxed) {
                let events = (0..50).map(|_| NewEvent::new("Placed", "{\"some\": \"data\"}")).collect();
                shop.append(&format!("s{caller}"), Expected::Any, events).await.unwrap();
                calls.fetch_add(1, Relaxed);
            }
        }
    });
    let (file, seen) = (shop.file.clone(), calls.clone());
    let other = tokio::task::spawn_blocking(move || {
        let app = open(&file);
        app.busy_timeout(Duration::from_secs(5)).unwrap();
        let waits = (0..10).map(|_| {
            // Not in the pause in which it had the lock the last time.
            let before = seen.load(Relaxed);
            until("calls go on", WITHIN, || (seen.load(Relaxed) >= before + 40).then_some(()));
            let began = Instant::now();
            app.execute_batch("BEGIN IMMEDIATE; COMMIT").map(|()| began.elapsed())
        });
        waits.collect::<Result<Vec<_>, _>>()
    });
    let (_, waits) = tokio::join!(join_all(callers), async {
        let waits = other.await;
        stop.store(true, Relaxed);
        waits.unwrap()
    });
    let mut waits = waits.expect("the lock is not to be had");
    waits.sort_unstable();
    println!(
        "{} calls beside; the lock was waited for {:?} at the median, {:?} at most",
        calls.load(Relaxed),
        waits[5],
        waits[9]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_streams_are_appended_to_in_one_transaction_or_none() {
    let shop = Shop::open().await;
    let to = |stream: &str, expected, id: &str| Append::new(stream, "Order", expected, vec![event(id, "{}")]);
    let all =
        vec![to("a", Expected::NoStream, "1"), to("b", Expected::NoStream, "2"), to("a", Expected::Exact(1), "3")];
    let done = shop.store.append_all(all.clone(), WITHIN).await.unwrap();
    assert_eq!(done.iter().map(|done| done.last_version).collect::<Vec<_>>(), [1, 1, 2]);
    // Repeated as a whole, and with an append that fails behind others that were written.
    let again = shop.store.append_all(all, WITHIN).await.unwrap();
    assert!(again.iter().all(|done| done.is_repeat));
    let failing = vec![to("c", Expected::Any, "4"), to("b", Expected::Exact(0), "5")];
    let error = shop.store.append_all(failing, WITHIN).await.unwrap_err();
    let AppendError::Conflict { actual: Some(1), .. } = error.error else { panic!("{error}") };
    assert_eq!((error.index, shop.count("events"), shop.count("streams")), (1, 3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_waited_for_as_long_as_was_said() {
    let shop = Shop::open().await;
    shop.app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let append = |id: &str| Append::new("a", "Order", Expected::Any, vec![event(id, "{}")]);
    let patient = tokio::spawn({
        let (store, append) = (shop.store.clone(), append("patient"));
        async move { store.append(append, WITHIN).await }
    });
    // One whose caller goes away before its turn.
    let gone = shop.store.append(append("gone"), WITHIN);
    assert!(tokio::time::timeout(Duration::from_millis(20), gone).await.is_err());
    let began = Instant::now();
    let hasty = shop.store.append(append("hasty"), Duration::from_millis(100)).await;
    assert_eq!(hasty, Err(AppendError::Locked));
    assert!(began.elapsed() >= Duration::from_millis(100) && began.elapsed() < WITHIN / 2, "{:?}", began.elapsed());
    shop.app.execute_batch("COMMIT").unwrap();
    assert_eq!(patient.await.unwrap().unwrap().last_version, 1);
    let read = shop.store.read_all(0, 10).await.unwrap();
    assert_eq!(read.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(), ["patient"]);
    // Who would not wait at all, and need not.
    assert_eq!(shop.store.append(append("now"), Duration::ZERO).await.map(|done| done.last_version), Ok(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_rows_come_with_their_events_or_not_at_all() {
    let shop = Shop::open().await;
    let append = |id: &str, payload: &str| {
        let events = vec![event(id, payload)];
        let outbox = events.iter().map(Message::of).collect();
        Append { outbox, ..Append::new("a", "Order", Expected::Any, events) }
    };
    for _ in 0..2 {
        shop.store.append(append("1", "{\"n\":1}"), WITHIN).await.unwrap();
    }
    let row = shop.app.query_row("SELECT id, stream_id, stream_type, type, payload FROM outbox", [], |row| {
        Ok([row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
    });
    assert_eq!(row.unwrap(), ["1", "a", "Order", "Placed", "{\"n\":1}"]);
    shop.app.execute("INSERT INTO outbox (id, type) VALUES ('2', 'Taken')", []).unwrap();
    let taken = shop.store.append(append("2", "{}"), WITHIN).await.unwrap_err();
    assert_eq!(taken, AppendError::OutboxIdTaken { id: "2".into() });
    assert!(shop.store.append(append("3", "{"), WITHIN).await.is_err());
    assert_eq!((shop.count("events"), shop.count("outbox")), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_appends_what_is_queued_and_leaves_the_file_free() {
    let shop = Shop::open().await;
    let full = Options { durable: Durable::Full, ..Options::default() };
    let store = EventStore::open(&shop.file, full).await.unwrap();
    shop.app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let queued = tokio::spawn({
        let store = store.clone();
        async move { store.append(Append::new("a", "Order", Expected::Any, vec![event("1", "{}")]), WITHIN).await }
    });
    let clone = store.clone();
    let closed = tokio::spawn(store.close());
    assert!(shop.store.load("a", 1).await.unwrap().is_empty(), "another store of the file");
    assert!(clone.load("a", 1).await.unwrap().is_empty(), "a clone reads until it goes");
    assert!(!closed.is_finished());
    drop(clone);
    shop.app.execute_batch("COMMIT").unwrap();
    tokio::time::timeout(WITHIN, closed).await.expect("it closes").unwrap();
    assert_eq!(queued.await.unwrap().unwrap().last_version, 1);
    let file = shop.file.clone();
    let folder = shop.folder;
    drop(shop.app);
    tokio::time::timeout(WITHIN, shop.store.close()).await.expect("it closes");
    eventually("the last connection can switch the mode", || {
        open(&file)
            .query_row("PRAGMA journal_mode = DELETE", [], |row| row.get::<_, String>(0))
            .is_ok_and(|mode| mode == "delete")
    })
    .await;
    drop(folder);
}
