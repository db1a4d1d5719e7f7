//! Two daemons on one file: the second waits, or refuses; it takes over at once when the first is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;

use crate::support::rig::{DEADLINE, Rig, Running, check};

#[tokio::test(flavor = "multi_thread")]
async fn the_second_waits_and_takes_over_at_once() {
    for by_crash in [false, true] {
        let mut rig = Rig::new().await;
        rig.place(100, 5);
        rig.start();
        rig.is_done().await;
        let sources = BTreeMap::from([("shop".to_owned(), rig.source.clone())]);
        let second = Running::start(&sources, vec![rig.relay.clone()], WhenLocked::Wait);
        let status = second.is("relay", State::Waiting).await;
        assert!(status.detail.contains("is held by process"), "{}", status.detail);
        rig.place(100, 5);
        rig.is_done().await;
        if by_crash {
            rig.crash().await
        } else {
            rig.drain().await
        }
        let began = Instant::now();
        second.is("relay", State::Running).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        rig.running = Some(second);
        rig.place(100, 5);
        rig.is_done().await;
        assert_eq!(check(&rig.far_side.arrivals(), 300), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_refuses_when_it_is_told_to() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.is(State::Running).await;
    let sources = BTreeMap::from([("shop".to_owned(), rig.source.clone())]);
    let mut second = Running::start(&sources, vec![rig.relay.clone()], WhenLocked::Refuse);
    let ended = tokio::time::timeout(DEADLINE, second.fleet.ended()).await.unwrap();
    assert!(ended.unwrap_err().0.contains("Remedy"));
    assert_eq!(rig.status().state, State::Running);
}
