//! What is not there yet is waited for; what is locked costs lag.

use std::time::{Duration, Instant};

use outboxd::consumer::status::State;
use outboxd::source::StatePlace;

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

async fn locked_for_seconds(begin: &str, place: StatePlace) {
    let mut rig = Rig::new().await;
    rig.source.state = place;
    rig.place(50, 5);
    rig.start();
    rig.is_done().await;
    rig.app.execute_batch(begin).unwrap();
    for n in 51..=100 {
        crate::support::rig::insert(&rig.app, &format!("e{n}"), "k");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.delivered().len(), 50, "what is not committed is not seen");
    rig.app.execute_batch("COMMIT").unwrap();
    eventually("all is settled", || rig.status().position == 100).await;
    // And once more, while settlements are under way.
    rig.far_side.delay(Duration::from_millis(300));
    crate::support::rig::insert(&rig.app, "e101", "k");
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.app.execute_batch(begin).unwrap();
    rig.arrives("e101").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.app.execute_batch("COMMIT").unwrap();
    eventually("that too is settled", || rig.status().position == 101).await;
    assert_eq!(check(&rig.far_side.arrivals(), 101), 0);
    rig.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_transaction_costs_lag_only() {
    locked_for_seconds("BEGIN EXCLUSIVE", StatePlace::Beside).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_transaction_costs_lag_only_with_the_state_inside() {
    locked_for_seconds("BEGIN IMMEDIATE", StatePlace::Inside).await;
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
