//! What several did together convicts nobody: they are sent again in smaller groups, until one stands alone.

use outboxd::event::{Reason, Rejection};

use crate::support::rig::{Rig, by_id, check_last_deliveries, eventually};

fn too_large(
    ids: &'static [&'static str],
) -> impl Fn(&outboxd::event::Event<'_>) -> Option<Rejection> + Send + 'static {
    move |event| ids.contains(&event.id).then(|| Rejection::new(Reason::TooLarge, "too large"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_oversize_event_among_a_thousand_in_flight_is_convicted_alone() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.suspect(too_large(&["e500"]));
    rig.place(1000, 50);
    rig.start();
    eventually("it is dead, and all else is settled", || rig.status().dead == 1 && rig.status().position == 1000).await;
    let held = rig.held();
    assert_eq!((held[0].1.as_str(), held[0].3), ("e500", 2));
    assert!(held.iter().all(|row| row.0 == "k0"), "no other key is held");
    assert_eq!(rig.far_side.refused().iter().filter(|(id, attempt)| id != "e500" && *attempt > 1).count(), 0);
    rig.far_side.mend();
    rig.retry(by_id("e500")).await;
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    for key in 0..50 {
        check_last_deliveries(&arrivals, &format!("k{key}"));
    }
    let missing = (1..=1000).filter(|n| !arrivals.iter().any(|arrival| arrival.id == format!("e{n}"))).count();
    assert_eq!(missing, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn suspects_in_many_batches_and_under_a_steady_flow_are_all_found() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 3;
    rig.relay.bounds.batch_events = 100;
    rig.far_side.suspect(too_large(&["e50", "e51", "e999", "e1001", "e1500"]));
    rig.place(1000, 40);
    rig.start();
    for _ in 0..50 {
        rig.place(20, 40);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // e999, e1001 and e51 are of keys k39, k1 and k11; e50 of k10, e1500 of k20.
    eventually("five dead letters", || rig.status().dead == 5 && rig.status().position == 2000).await;
    let mut dead: Vec<String> = rig.held().into_iter().filter(|row| row.2 == "dead").map(|row| row.1).collect();
    dead.sort();
    assert_eq!(dead, ["e1001", "e1500", "e50", "e51", "e999"]);
    rig.far_side.mend();
    rig.retry(Default::default()).await;
    rig.is_done().await;
    for key in 0..40 {
        check_last_deliveries(&rig.far_side.arrivals(), &format!("k{key}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_conviction_at_the_end_of_the_source_held_keys_are_released_all_the_same() {
    let mut rig = Rig::new().await;
    rig.far_side.suspect(too_large(&["e10"]));
    rig.place(10, 5);
    rig.start();
    eventually("it is held", || rig.held_ids() == ["e10"]).await;
    rig.far_side.mend();
    // Nothing new comes; suspicion must end by itself.
    rig.is_done().await;
    assert!(rig.delivered().contains(&"e10".to_owned()));
}
