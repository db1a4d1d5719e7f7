//! Where a relay begins, what it takes, how much it has in hand, and who may stop it.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd::consumer::Start;
use outboxd::consumer::control::Operation;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;

use crate::support::fake_sink::FarSide;
use crate::support::rig::{Rig, Running, check, eventually, relay_to};

#[tokio::test(flavor = "multi_thread")]
async fn where_to_begin_must_be_said_when_there_are_events_already() {
    let mut rig = Rig::new().await;
    rig.place(10, 2);
    rig.relay.start = None;
    rig.start();
    let status = rig.is(State::Halted).await;
    assert!(status.detail.contains("start = \"first\"") && status.detail.contains("\"head\""), "{}", status.detail);
    rig.drain().await;
    rig.relay.start = Some(Start::Head);
    rig.start();
    rig.is(State::Running).await;
    rig.place(5, 2);
    rig.arrives("e15").await;
    rig.crash().await;
    // It was recorded: what is said now changes nothing.
    rig.relay.start = Some(Start::First);
    rig.start();
    rig.place(5, 2);
    rig.arrives("e20").await;
    let mut delivered = rig.delivered();
    delivered.dedup();
    assert_eq!(delivered[0], "e11");
    assert!(delivered.len() <= 15, "{delivered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_filter_and_the_rest_is_passed_over() {
    let mut rig = Rig::new().await;
    rig.relay.types = vec!["Order*".into()];
    rig.relay.bounds.batch_events = 10;
    for n in 0..200 {
        let kind = if n % 50 == 0 { "OrderPlaced" } else { "Noise" };
        rig.app.execute("INSERT INTO outbox (id, type) VALUES (?1, ?2)", (format!("e{n}"), kind)).unwrap();
    }
    rig.start();
    rig.is_done().await;
    assert_eq!(rig.delivered(), ["e0", "e50", "e100", "e150"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_in_flight_per_key_gives_absolute_order() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.in_flight_per_key = Some(1);
    rig.far_side.suspect(|event| {
        event.id.ends_with('7').then(|| outboxd::event::Rejection::new(outboxd::event::Reason::TooLarge, "once"))
    });
    rig.place(300, 20);
    rig.start();
    rig.is_done_or_held().await;
    rig.far_side.mend();
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 300), 0, "no event overtook another of its key, ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_is_never_exceeded() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.window_events = 64;
    rig.relay.bounds.batch_events = 10;
    rig.far_side.delay(Duration::from_millis(3));
    rig.place(3000, 9);
    rig.start();
    let most = rig.running().status("relay").in_flight;
    let mut most = most.max(0);
    while rig.status().position < 3000 {
        most = most.max(rig.status().in_flight);
        tokio::task::yield_now().await;
    }
    assert!((10..=64).contains(&most), "{most}");
    rig.crash().await;
    assert_eq!(check(&rig.far_side.arrivals(), 3000), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_repeats_no_more_than_the_window_and_marks_it() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.window_events = 100;
    rig.relay.bounds.batch_events = 20;
    rig.far_side.delay(Duration::from_millis(1));
    rig.place(4000, 7);
    let mut crashes = 0;
    rig.start();
    while rig.status().position < 4000 {
        if rig.status().position >= (crashes + 1) * 300 {
            rig.crash().await;
            crashes += 1;
            rig.start();
            rig.is(State::Running).await;
        }
        tokio::task::yield_now().await;
    }
    let arrivals = rig.far_side.arrivals();
    let repeated = check(&arrivals, 4000);
    assert!(repeated as i64 <= crashes * 100, "{repeated} after {crashes} crashes");
    let mut seen = std::collections::HashSet::new();
    let unmarked = arrivals.iter().filter(|arrival| !seen.insert(&arrival.id) && !arrival.pick.redelivery).count();
    assert_eq!(unmarked, 0, "what is repeated says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_repeats_nothing() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.batch_events = 20;
    rig.far_side.delay(Duration::from_millis(1));
    rig.place(1000, 7);
    for _ in 0..5 {
        rig.start();
        rig.is(State::Running).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        rig.drain().await;
    }
    rig.start();
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    assert_eq!(check(&arrivals, 1000), 0);
    assert!(arrivals.iter().all(|arrival| !arrival.pick.redelivery));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_relays_of_one_table_have_their_own_progress_and_trouble() {
    let mut rig = Rig::new().await;
    let (second, third) = (FarSide::default(), FarSide::default());
    second.fault(Some(outboxd::sink::Fault::unavailable("away")));
    third.reject(crate::support::rig::poison(&["e1"]));
    let sources = BTreeMap::from([("shop".to_owned(), rig.source.clone())]);
    let relays = vec![rig.relay.clone(), relay_to("second", "shop", &second), relay_to("third", "shop", &third)];
    rig.running = Some(Running::start(&sources, relays, WhenLocked::Wait));
    rig.place(500, 5);
    rig.is_done().await;
    assert_eq!(rig.running().status("second").state, State::Unavailable);
    eventually("the third holds one key", || rig.running().status("third").held_keys == 1).await;
    eventually("and carries the rest", || third.arrivals().iter().filter(|a| a.key != b"k1").count() == 400).await;
    second.fault(None);
    eventually("the second catches up", || rig.running().status("second").position == 500).await;
    check(&second.arrivals(), 500);
    assert_eq!(check(&rig.far_side.arrivals(), 500), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_a_restart_and_a_resume_ends_it() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.place(10, 2);
    rig.is_done().await;
    rig.pause().await;
    rig.is(State::Paused).await;
    rig.place(10, 2);
    rig.crash().await;
    rig.start();
    rig.is(State::Paused).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.delivered().len(), 10);
    rig.resume().await;
    rig.is_done().await;
    rig.crash().await;
    rig.start();
    rig.is(State::Running).await;
    assert_eq!(check(&rig.far_side.arrivals(), 20), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_consumer_begins_anew() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.place(10, 2);
    rig.is_done().await;
    rig.ask(Operation::Forget { reason: "start over".into() }).await.unwrap();
    eventually("everything comes once more", || rig.delivered().len() == 20).await;
    let recorded: String = rig.recorded("SELECT action || ' ' || reason FROM outboxd_resolution");
    assert_eq!(recorded, "forget start over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_during_a_restart_is_not_missed() {
    for _ in 0..10 {
        let mut rig = Rig::new().await;
        rig.start();
        rig.is(State::Running).await;
        let running = rig.running.take().unwrap();
        let handle = running.handle("relay").clone();
        let target = outboxd::consumer::control::Target::First;
        let asked = tokio::spawn(async move {
            let operation = Operation::SetPosition { to: target, reason: "again".into() };
            handle.ask(|reply| outboxd::consumer::control::Command::Operate(operation, reply)).await
        });
        running.drain().await;
        let _ = asked.await;
    }
}
