//! What is not there yet is waited for; what is locked costs lag.
//!
//! `OUTBOXD_TEST_LOCK_SECONDS`: how long an application keeps its lock (default 60).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outboxd::consumer::status::State;
use outboxd::source::StatePlace;

use crate::support::daemon::{Daemon, lines, one_relay};
use crate::support::dice::number;
use crate::support::eventsource::{self, count, enqueue, enqueue_many};
use crate::support::fleet::until;
use crate::support::proof::Proof;
use crate::support::rig::{DEADLINE, Rig, check, eventually, open};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_and_a_table_that_appear_later_are_waited_for() {
    let mut rig = Rig::new().await;
    rig.database = rig.folder.path().join("late.db");
    rig.source.path = rig.database.clone();
    rig.relay.start = None;
    rig.start();
    let status = rig.is(State::Waiting).await;
    assert!(status.detail.contains("late.db"), "{}", status.detail);
    rig.app = open(&rig.database);
    rig.app.execute_batch("CREATE TABLE orders (id)").unwrap();
    eventually("it waits for the table", || rig.status().detail.contains("no table outbox")).await;
    outboxd::store::init(&rig.database).await.unwrap();
    rig.is(State::Running).await;
    rig.place(10, 2);
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 10), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_a_relay_that_waits() {
    let mut rig = Rig::new().await;
    rig.source.path = rig.folder.path().join("never.db");
    rig.start();
    rig.is(State::Waiting).await;
    let began = Instant::now();
    rig.drain().await;
    assert!(began.elapsed() < Duration::from_secs(2));
}

fn lock_time() -> Duration {
    Duration::from_secs(number("OUTBOXD_TEST_LOCK_SECONDS").unwrap_or(60))
}

async fn locked(begin: &str, place: StatePlace) {
    let mut rig = Rig::new().await;
    rig.source.state = place;
    rig.place(50, 5);
    rig.start();
    rig.is_done().await;
    rig.app.execute_batch(begin).unwrap();
    for n in 51..=100 {
        crate::support::rig::insert(&rig.app, &format!("e{n}"), "k");
    }
    tokio::time::sleep(lock_time()).await;
    assert_eq!(rig.delivered().len(), 50, "what is not committed is not seen");
    assert_eq!(rig.status().state, State::Running);
    rig.app.execute_batch("COMMIT").unwrap();
    let unlocked = Instant::now();
    eventually("all is settled", || rig.status().position == 100).await;
    assert!(unlocked.elapsed() < Duration::from_secs(5), "{:?} after the lock was let go", unlocked.elapsed());
    // And once more, while settlements are under way.
    rig.far_side.delay(Duration::from_millis(300));
    crate::support::rig::insert(&rig.app, "e101", "k");
    eventually("it is on its way", || rig.status().in_flight == 1).await;
    rig.app.execute_batch(begin).unwrap();
    rig.arrives("e101").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.app.execute_batch("COMMIT").unwrap();
    eventually("that too is settled", || rig.status().position == 101).await;
    assert_eq!(check(&rig.far_side.arrivals(), 101), 0);
    rig.drain().await;
}

/// By row every settlement needs the lock: its time passes with what was sent unsettled.
async fn locked_where_rows_are_marked() -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    let mut daemon = Daemon::new(folder.path(), &one_relay("app.db", "outbox"));
    daemon.start();
    let published = |least: i64| {
        let published = count(&application, "event_outbox WHERE status = 'published'");
        if published == least { Ok(()) } else { Err(format!("{published} of {least}")) }
    };
    enqueue(&application, &[("first", "a")]);
    until("the first is published", || published(1)).await;
    enqueue_many(&application, 100, 1);
    let lock = eventsource::open(&database);
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ticks = daemon.ticks();
    tokio::time::sleep(lock_time()).await;
    let used = Duration::from_millis((daemon.ticks() - ticks) * 10);
    lock.execute_batch("ROLLBACK").unwrap();
    let unlocked = Instant::now();
    until("everything is published", || published(101)).await;
    assert!(unlocked.elapsed() < Duration::from_secs(5), "{:?} after the lock was let go", unlocked.elapsed());
    let lines = lines(&folder.path().join("out.ndjson"));
    assert_eq!(lines.len(), 101, "nothing was sent twice");
    used
}

/// All ways of progress at once, because it takes a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_held_for_a_minute_costs_lag_and_hardly_any_processor_time() {
    let ((), (), used) = tokio::join!(
        locked("BEGIN EXCLUSIVE", StatePlace::Beside),
        locked("BEGIN IMMEDIATE", StatePlace::Inside),
        locked_where_rows_are_marked(),
    );
    println!("locked out for {:?}: {used:?} of processor time", lock_time());
    assert!(used < lock_time() / 50, "{used:?} of processor time in {:?} of waiting", lock_time());
    Proof::of("locks: the application keeps its write lock")
        .tried("seconds", lock_time().as_secs())
        .tried("ways of progress", 3)
        .found("lost", 0)
        .found("sent twice", 0)
        .found("processor time meanwhile, by row", format!("{used:?}"));
}

/// It leaves the lock free for half a millisecond at a time.
#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_commits_without_pause_starves_nobody() {
    let mut rig = Rig::new().await;
    rig.source.state = StatePlace::Inside;
    rig.place(100, 5);
    let over = Arc::new(AtomicBool::new(false));
    let (stopped, database) = (over.clone(), rig.database.clone());
    let busy = std::thread::spawn(move || {
        let connection = open(&database);
        while !stopped.load(Ordering::Relaxed) {
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            std::thread::sleep(Duration::from_millis(10));
            connection.execute_batch("COMMIT").unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    rig.start();
    let began = Instant::now();
    eventually("all is settled", || rig.status().position == 100).await;
    println!("settled after {:?}", began.elapsed());
    over.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    rig.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_locked_at_the_start_is_waited_for_and_keeps_no_drain() {
    let mut rig = Rig::new().await;
    rig.source.state = StatePlace::Inside;
    rig.place(10, 2);
    rig.app.execute_batch("BEGIN IMMEDIATE").unwrap();
    rig.start();
    rig.is(State::Waiting).await;
    let began = Instant::now();
    rig.drain().await;
    assert!(began.elapsed() < Duration::from_secs(2));
    rig.app.execute_batch("COMMIT").unwrap();
    rig.start();
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 10), 0);

    // Locked while it drains: it ends by its deadline all the same.
    rig.app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let began = Instant::now();
    rig.drain().await;
    assert!(began.elapsed() < DEADLINE / 2);
}
