//! Attempts are spent, the event is a dead letter, and an operator decides: nothing is lost, nothing reordered.

use std::time::{Duration, Instant};

use outboxd::consumer::OnReject;
use outboxd::consumer::control::Operation;
use outboxd::consumer::status::State;
use outboxd::state::held::Selection;

use crate::support::rig::{DEADLINE, Rig, by_id, check, check_last_deliveries, eventually, poison};

/// e2 and e5 are dead, of keys k2 and k1 (of four); 20 events in all.
async fn two_dead() -> Rig {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.reject(poison(&["e2", "e5"]));
    rig.place(20, 4);
    rig.start();
    eventually("both are dead", || rig.status().dead == 2 && rig.status().position == 20).await;
    rig
}

fn by_key(key: &str) -> Selection {
    Selection { key: Some(key.into()), ..Selection::default() }
}

fn list(selection: Selection) -> Operation {
    Operation::List { selection, most: 10 }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_listed_and_shown_by_id_key_and_age() {
    let rig = two_dead().await;
    let ids = async |operation: Operation| -> Vec<String> {
        let listed = rig.ask(operation).await.unwrap();
        listed["dead_letters"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let heads = Selection { heads_only: true, ..Selection::default() };
    assert_eq!(ids(list(heads.clone())).await.len(), 2);
    assert_eq!(ids(list(by_id("e5"))).await, ["e5"]);
    assert_eq!(ids(list(by_key("k2"))).await, ["e2", "e6", "e10", "e14", "e18"]);
    let old = Selection { older_than_micros: Some(3_600_000_000), ..heads.clone() };
    assert_eq!(ids(list(old)).await.len(), 0, "none is an hour old");
    let older = Selection { older_than_micros: Some(1_000), ..heads };
    let deadline = Instant::now() + DEADLINE;
    while ids(list(older.clone())).await.len() < 2 {
        assert!(Instant::now() < deadline, "both are a millisecond old at last");
    }
    let shown = rig.ask(Operation::Show(by_id("e2"))).await.unwrap();
    let row = &shown["dead_letters"][0];
    assert_eq!(
        (row["state"].as_str(), row["attempts"].as_u64(), row["reason"].as_str()),
        (Some("dead"), Some(2), Some("refused"))
    );
    assert_eq!(row["event"]["id"], "e2", "the whole event is there to look at");
    let listed = rig.ask(list(by_id("e2"))).await.unwrap();
    assert!(row["event"]["type"].is_string());
    assert_eq!(listed["dead_letters"][0]["event"], serde_json::json!({ "type": row["event"]["type"] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_the_order_of_its_key_and_leaves_other_keys_alone() {
    let mut rig = two_dead().await;
    rig.far_side.mend();
    assert_eq!(rig.retry(by_key("k2")).await, 1);
    eventually("k2 is free", || rig.status().held_keys == 1).await;
    assert_eq!(rig.held()[0].1, "e5", "nobody retried k1");
    rig.place(4, 4);
    rig.arrives("e22").await;
    rig.retry(by_id("e5")).await;
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    check_last_deliveries(&arrivals, "k1");
    check_last_deliveries(&arrivals, "k2");
    rig.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_refused_again_counts_its_attempts_anew() {
    let rig = two_dead().await;
    let before = rig.far_side.refused().len();
    rig.retry(by_id("e2")).await;
    eventually("two more attempts", || rig.far_side.refused().len() == before + 2).await;
    eventually("it is dead again", || rig.status().dead == 2).await;
    assert_eq!(rig.held().iter().find(|row| row.1 == "e2").map(|row| (row.2.as_str(), row.3)), Some(("dead", 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_wants_a_reason_records_it_and_lets_the_key_go_on() {
    let rig = two_dead().await;
    let refused = rig.discard(by_id("e2"), "  ").await.unwrap_err();
    assert!(refused.contains("reason"), "{refused}");
    assert_eq!(rig.held().iter().filter(|row| row.2 == "dead").count(), 2);
    assert_eq!(rig.discard(by_id("e2"), "it was a test order").await.unwrap(), 1);
    eventually("k2 goes on", || rig.status().held_keys == 1).await;
    assert!(!rig.delivered().contains(&"e2".to_owned()));
    check_last_deliveries(&rig.far_side.arrivals(), "k2");
    let row: (String, String, String, String) = rig
        .state()
        .query_row("SELECT action, event_id, reason, detail FROM outboxd_resolution", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    assert_eq!((row.0.as_str(), row.1.as_str(), row.2.as_str()), ("discard", "e2", "it was a test order"));
    assert!(row.3.contains("\"payload\"") || row.3.contains("e2"), "what was discarded can be read: {}", row.3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_crashes_loses_and_reorders_nothing() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 1;
    rig.far_side.reject(poison(&["e1"]));
    rig.place(1500, 1);
    rig.start();
    eventually("all waits behind e1", || rig.held().len() == 1500).await;
    rig.far_side.mend();
    rig.far_side.delay(Duration::from_millis(2));
    rig.retry(by_id("e1")).await;
    for round in 1..=8 {
        let goal = round * 150;
        eventually("it goes on", || rig.held().len() <= 1500 - goal).await;
        rig.crash().await;
        rig.start();
    }
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    check(&arrivals[arrivals.iter().position(|arrival| arrival.id == "e1").unwrap()..], 1500);
    check_last_deliveries(&arrivals, "k0");
    let after_e1 = arrivals.iter().skip_while(|arrival| arrival.id != "e1").count();
    assert!(after_e1 <= 1500 + 8 * 100, "a crash repeats one flight at most: {after_e1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_and_retries_while_the_key_is_released_lose_nothing() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 1000;
    rig.relay.bounds.retry_min = Duration::from_millis(1);
    rig.far_side.reject(poison(&["e1", "e301"]));
    rig.place(300, 1);
    rig.start();
    eventually("all waits behind e1", || rig.held().len() == 300).await;
    for _ in 0..20 {
        rig.retry(by_id("e1")).await;
    }
    rig.place(10, 1);
    assert_eq!(rig.discard(by_id("e1"), "poison").await.unwrap(), 1);
    eventually("it goes on to the next poison", || rig.held_ids().first().is_some_and(|id| id == "e301")).await;
    rig.discard(by_id("e301"), "poison").await.unwrap();
    rig.is_done().await;
    check_last_deliveries(&rig.far_side.arrivals(), "k0");
    let delivered = rig.delivered();
    let missing = (1..=310).filter(|n| !delivered.contains(&format!("e{n}"))).collect::<Vec<_>>();
    assert_eq!(missing, [1, 301]);
}

#[tokio::test(flavor = "multi_thread")]
async fn skip_holds_the_key_while_attempts_last_and_then_lets_it_go_on() {
    let mut rig = Rig::new().await;
    rig.relay.on_reject = OnReject::Skip;
    rig.relay.bounds.attempts_max = 3;
    rig.far_side.reject(poison(&["e1"]));
    rig.place(6, 2);
    rig.start();
    eventually("e1 is skipped", || rig.held().iter().any(|row| row.2 == "skipped")).await;
    eventually("its key went on", || rig.held().len() == 1 && rig.status().held_keys == 0).await;
    rig.place(2, 2);
    rig.arrives("e7").await;
    assert_eq!(rig.far_side.refused().len(), 3);
    rig.crash().await;
    rig.start();
    rig.is(State::Running).await;
    rig.far_side.mend();
    let done = rig.ask(Operation::Retry(by_id("e1"))).await.unwrap();
    assert_eq!(
        (done["retried"].as_u64(), done["out_of_order"].as_u64()),
        (Some(1), Some(1)),
        "it says that it is out of order"
    );
    rig.arrives("e1").await;
    rig.is_done().await;
    assert_eq!(rig.held(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn skip_with_a_single_attempt_holds_nothing() {
    let mut rig = Rig::new().await;
    rig.relay.on_reject = OnReject::Skip;
    rig.relay.bounds.attempts_max = 1;
    rig.far_side.reject(poison(&["e1"]));
    rig.place(6, 2);
    rig.start();
    rig.is_done().await;
    assert_eq!(rig.delivered(), ["e2", "e3", "e4", "e5", "e6"]);
    assert_eq!(rig.held()[0].2, "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn halt_halts_survives_a_restart_and_goes_on_when_it_is_decided() {
    let mut rig = Rig::new().await;
    rig.relay.on_reject = OnReject::Halt;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.reject(poison(&["e2"]));
    rig.place(6, 2);
    rig.start();
    let status = rig.is(State::Halted).await;
    assert!(status.detail.contains("e2") && status.detail.contains("Remedy"), "{}", status.detail);
    rig.crash().await;
    rig.start();
    rig.is(State::Halted).await;
    rig.resume().await;
    rig.is(State::Halted).await;
    rig.place(2, 2);
    rig.far_side.mend();
    rig.retry(by_id("e2")).await;
    rig.resume().await;
    rig.is_done().await;
    check_last_deliveries(&rig.far_side.arrivals(), "k0");

    rig.far_side.reject(poison(&["e9"]));
    rig.place(4, 2);
    rig.is(State::Halted).await;
    rig.discard(by_id("e9"), "poison").await.unwrap();
    rig.resume().await;
    rig.is_done().await;
    assert!(!rig.delivered().contains(&"e9".to_owned()));
}
