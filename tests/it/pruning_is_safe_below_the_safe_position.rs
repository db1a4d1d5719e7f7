//! An application that prunes what `outboxd_safe_position` allows loses nothing; one that prunes more is told.

use std::time::Duration;

use crate::support::rig::{Rig, by_id, check_last_deliveries, eventually, poison};

fn prune(rig: &Rig) -> usize {
    let safe: i64 = rig.recorded("SELECT position FROM outboxd_safe_position WHERE source = 'shop'");
    rig.app.execute("DELETE FROM outbox WHERE position <= ?1", [safe]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_by_the_view_loses_nothing_while_events_are_held() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.reject(poison(&["e11"]));
    rig.place(10, 3);
    rig.start();
    rig.is_done().await;
    assert_eq!(prune(&rig), 10, "all that is settled may go");
    rig.place(30, 3);
    eventually("e11 is dead", || rig.status().dead == 1 && rig.status().position == 40).await;
    assert_eq!(prune(&rig), 3, "the copy of e11 is kept; the first that waits is e14");
    for _ in 0..20 {
        rig.place(10, 3);
        tokio::time::sleep(Duration::from_millis(5)).await;
        prune(&rig);
    }
    rig.far_side.mend();
    rig.retry(by_id("e11")).await;
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    check_last_deliveries(&arrivals, "k2");
    let missing = (1..=240).filter(|n| !arrivals.iter().any(|arrival| arrival.id == format!("e{n}"))).count();
    assert_eq!(missing, 0);
    let e11 = arrivals.iter().find(|arrival| arrival.id == "e11").unwrap();
    assert_eq!(e11.body, b"e11", "sent from the copy");
    prune(&rig);
    assert_eq!(rig.app.query_row("SELECT count(*) FROM outbox", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_event_pruned_against_the_rule_becomes_a_dead_letter_that_says_so() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.reject(poison(&["e1"]));
    rig.place(4, 1);
    rig.start();
    eventually("e1 is dead", || rig.status().dead == 1).await;
    rig.app.execute("DELETE FROM outbox WHERE id IN ('e1', 'e3')", []).unwrap();
    rig.far_side.mend();
    rig.retry(by_id("e1")).await;
    eventually("e3 is dead", || rig.held().first().is_some_and(|row| row.1 == "e3" && row.2 == "dead")).await;
    let reason: String = rig.recorded("SELECT reason FROM outboxd_held WHERE event_id = 'e3'");
    assert_eq!(reason, "source_row_gone");
    assert_eq!(rig.held_ids(), ["e3", "e4"]);
    rig.discard(by_id("e3"), "pruned too early").await.unwrap();
    eventually("the key goes on", || rig.status().held_keys == 0).await;
    let delivered = rig.delivered();
    let last = |id: &str| delivered.iter().rposition(|delivered| delivered == id).unwrap();
    assert!(last("e1") < last("e2") && last("e2") < last("e4"), "{delivered:?}");
}
