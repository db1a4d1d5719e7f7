//! A far side that is away, slow, silent or refusing as a whole costs time, never an event and never an attempt.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;
use outboxd::event::{Reason, Rejection};
use outboxd::sink::{Fault, Outcome};

use crate::support::fake_sink::FarSide;
use crate::support::rig::{Rig, Running, check, eventually, poison, relay_to};

#[tokio::test(flavor = "multi_thread")]
async fn away_for_a_while_costs_lag_only() {
    let mut rig = Rig::new().await;
    rig.place(500, 7);
    rig.start();
    rig.is_done().await;
    rig.far_side.fault(Some(Fault::unavailable("away")));
    rig.place(3000, 7);
    rig.is(State::Unavailable).await;
    let (began, before) = (Instant::now(), rig.far_side.checks().len());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = rig.is(State::Unavailable).await;
    let (checks, seconds) = (rig.far_side.checks().len() - before, began.elapsed().as_secs() as usize);
    assert!((1..=seconds + 1).contains(&checks), "{checks} checks in {seconds} s");
    assert!(status.lag_seconds() >= 3.0 && !status.sink_up, "{status:?}");
    assert_eq!((status.held_keys, rig.held().len()), (0, 0));
    rig.far_side.fault(None);
    rig.is_done().await;
    check(&rig.far_side.arrivals(), 3500);
    assert!(rig.far_side.arrivals().iter().all(|arrival| arrival.pick.attempt == 1), "no attempt was counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_in_the_middle_is_sent_again_with_all_behind_it_of_its_key() {
    let mut rig = Rig::new().await;
    rig.place(30, 3);
    let away = || Outcome::Unavailable(Fault::unavailable("gone in the middle"));
    rig.far_side.script((1..=30).map(|n| if n == 4 { away() } else { Outcome::Delivered }));
    rig.start();
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    crate::support::rig::check_last_deliveries(&arrivals, "k1");
    let again: Vec<&str> =
        arrivals.iter().filter(|arrival| arrival.pick.redelivery).map(|arrival| arrival.id.as_str()).collect();
    assert_eq!(
        again,
        ["e4", "e7", "e10", "e13", "e16", "e19", "e22", "e25", "e28"],
        "its key alone, marked as sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_key_whose_release_meets_an_outage_is_released_afterwards() {
    let mut rig = Rig::new().await;
    rig.far_side.reject(poison(&["e1"]));
    rig.relay.bounds.attempts_max = 3;
    rig.relay.bounds.retry_min = Duration::from_millis(300);
    rig.place(4, 2);
    rig.start();
    eventually("e1 is held", || rig.held().len() == 2).await;
    rig.far_side.mend();
    // The next thing that is sent is the held event.
    rig.far_side.script([Outcome::Unavailable(Fault::unavailable("away"))]);
    rig.is_done().await;
    let refused = rig.far_side.refused();
    assert_eq!(refused, [("e1".to_owned(), 1)], "the outage was no attempt");
    let e1 = rig.far_side.arrivals().into_iter().find(|arrival| arrival.id == "e1").unwrap();
    assert_eq!(e1.pick.attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_answers_probes_and_owes_acknowledgements_is_started_anew() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.ack_timeout = Duration::from_millis(400);
    rig.place(50, 5);
    rig.far_side.delay(Duration::from_secs(3600));
    rig.start();
    rig.is(State::Unavailable).await;
    rig.far_side.delay(Duration::ZERO);
    rig.is_done().await;
    check(&rig.far_side.arrivals(), 50);
    assert_eq!(rig.held(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_fault_halts_its_consumer_alone_is_probed_and_heals_by_itself() {
    let mut rig = Rig::new().await;
    let other = FarSide::default();
    let sources = BTreeMap::from([("shop".to_owned(), rig.source.clone())]);
    rig.far_side.fault(Some(Fault::fatal("no such exchange")));
    let relays = vec![rig.relay.clone(), relay_to("other", "shop", &other)];
    rig.running = Some(Running::start(&sources, relays, WhenLocked::Wait));
    rig.place(200, 5);
    let status = rig.is(State::Halted).await;
    assert_eq!(status.detail, "no such exchange");
    eventually("the other one flows on", || other.arrivals().len() == 200).await;
    eventually("it is probed", || rig.far_side.checks().len() >= 2).await;
    rig.far_side.fault(None);
    rig.is_done().await;
    check(&rig.far_side.arrivals(), 200);
    assert_eq!(rig.status().state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_everything_is_unroutable_the_consumer_halts_instead_of_filling_with_dead_letters() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.batch_events = 20;
    rig.relay.bounds.window_events = 20;
    rig.far_side.reject(|_| Some(Rejection::new(Reason::Unroutable, "no queue is bound")));
    rig.place(2000, 2000);
    rig.start();
    let status = rig.is(State::Halted).await;
    assert!(status.detail.contains("in a row"), "{}", status.detail);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(rig.held().len() < 150, "{}", rig.held().len());
    rig.far_side.mend();
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 2000), 0);
}
