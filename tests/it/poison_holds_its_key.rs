//! A refused event holds its key from the first refusal on, and nobody else's.

use std::time::Duration;

use outboxd::consumer::status::State;
use outboxd::state::held::Selection;

use crate::support::rig::{Rig, by_id, check, check_last_deliveries, eventually, insert, poison};

#[tokio::test(flavor = "multi_thread")]
async fn other_keys_flow_and_the_key_follows_in_order_when_it_is_mended() {
    let mut rig = Rig::new().await;
    rig.far_side.reject(poison(&["e4"]));
    rig.relay.bounds.attempts_max = 1000;
    let ids = rig.place(30, 3);
    rig.start();
    eventually("the others of all keys are settled", || rig.status().position == 30).await;
    let held = rig.held();
    assert_eq!(held[0].1, "e4");
    assert!(held[0].2 == "retrying" && held[0].3 >= 1, "{held:?}");
    let behind: Vec<&str> = held[1..].iter().map(|row| row.1.as_str()).collect();
    assert_eq!(behind, ["e7", "e10", "e13", "e16", "e19", "e22", "e25", "e28"], "all that is behind it waits");
    assert!(held[1..].iter().all(|row| row.2 == "waiting" && row.3 == 0));
    let others = || rig.delivered().iter().filter(|id| ids.contains(id)).count();
    assert!(others() >= 21);

    rig.place(6, 3);
    rig.arrives("e36").await;
    rig.arrives("e35").await;
    eventually("e31 and e34 wait too", || rig.held_ids().ends_with(&["e31".into(), "e34".into()])).await;
    assert!(!rig.delivered().contains(&"e31".to_owned()), "nothing of a held key is sent");

    rig.far_side.mend();
    rig.is_done().await;
    let arrivals = rig.far_side.arrivals();
    check_last_deliveries(&arrivals, "k1");
    let again = |id: &str| arrivals.iter().filter(|arrival| arrival.id == id).count();
    assert_eq!(
        (again("e4"), again("e7"), again("e31"), again("e5")),
        (1, 2, 1, 1),
        "what was in flight behind it comes twice"
    );
    assert_eq!(rig.held(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_key_is_sent_once_a_refusal_is_known_although_it_cannot_be_settled_yet() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.batch_events = 2;
    rig.relay.bounds.window_events = 4;
    rig.relay.bounds.in_flight_per_key = Some(1);
    rig.far_side.reject(poison(&["e1", "e3", "e5"]));
    rig.relay.bounds.attempts_max = 4;
    rig.place(40, 4);
    rig.start();
    eventually("two dead letters", || rig.status().dead == 2).await;
    eventually("all is settled", || rig.status().position == 40).await;
    // With one in flight per key order is absolute: no event of k1 or k3 passed a refused one.
    let delivered = rig.delivered();
    let of = |key: usize| delivered.iter().filter(|id| crate::support::rig::number(id) % 4 == key).count();
    assert_eq!((of(0), of(1), of(2), of(3)), (10, 0, 10, 0), "{delivered:?}");
    rig.far_side.mend();
    assert_eq!(rig.retry(Selection::default()).await, 2, "e5 waits behind e1");
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 40), 0, "no duplicate, absolute order");
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_their_times_survive_a_crash() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.retry_min = Duration::from_secs(2);
    rig.far_side.reject(poison(&["e1"]));
    rig.place(3, 3);
    rig.start();
    eventually("e1 is held", || !rig.held().is_empty()).await;
    let due = |rig: &Rig| -> i64 {
        rig.state().query_row("SELECT next_attempt_at FROM outboxd_held", [], |row| row.get(0)).unwrap()
    };
    let (first_due, began) = (due(&rig), std::time::Instant::now());
    rig.crash().await;
    rig.start();
    rig.is(State::Running).await;
    assert_eq!((due(&rig), rig.held()[0].3), (first_due, 1), "the restart changed nothing");
    eventually("it is tried a second time", || rig.held()[0].3 == 2).await;
    assert!(began.elapsed() >= Duration::from_millis(1500), "not before its time");
    assert_eq!(rig.far_side.refused(), [("e1".to_owned(), 1), ("e1".to_owned(), 2)]);
    assert!(due(&rig) - first_due >= 8_000_000, "the next pause is four times as long");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_row_is_written_with_the_checkpoint_that_passes_it() {
    let mut rig = Rig::new().await;
    rig.far_side.reject(poison(&["e2"]));
    rig.place(2, 2);
    rig.start();
    eventually("the checkpoint passed e2", || {
        let state = rig.state();
        let sql = "SELECT (SELECT position FROM outboxd_checkpoint), (SELECT count(*) FROM outboxd_held)";
        let seen: rusqlite::Result<(Option<i64>, i64)> = state.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
        let Ok((position, held)) = seen else { return false };
        assert!(position.unwrap_or(0) < 2 || held == 1, "never one without the other");
        position == Some(2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_key_holds_itself_alone() {
    let mut rig = Rig::new().await;
    rig.far_side.reject(poison(&["a1"]));
    rig.relay.bounds.attempts_max = 1;
    for id in ["a1", "a2", "a3"] {
        rig.app.execute("INSERT INTO outbox (id, type) VALUES (?1, 'T')", [id]).unwrap();
    }
    rig.start();
    eventually("one is dead", || rig.status().dead == 1).await;
    rig.arrives("a3").await;
    assert_eq!(rig.delivered(), ["a2", "a3"]);
    rig.far_side.mend();
    rig.retry(by_id("a1")).await;
    rig.is_done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_whole_is_never_sent_in_part() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.event_bytes_max = 1000;
    rig.relay.bounds.attempts_max = 2;
    rig.far_side.reject(poison(&["e1"]));
    insert(&rig.app, "e1", "k1");
    let sql =
        "INSERT INTO outbox (id, key, type, payload) VALUES ('e2', 'k1', 'T', zeroblob(5000)), ('e3', 'k1', 'T', 'x')";
    rig.app.execute(sql, []).unwrap();
    rig.start();
    eventually("e1 is dead", || rig.status().dead == 1).await;
    rig.far_side.mend();
    rig.retry(by_id("e1")).await;
    rig.arrives("e1").await;
    eventually("then e2, too large, is dead", || {
        rig.held().first().is_some_and(|row| row.1 == "e2" && row.2 == "dead")
    })
    .await;
    // Its row goes, against the rule: what is left of it is no event that could be sent.
    rig.app.execute("DELETE FROM outbox WHERE id = 'e2'", []).unwrap();
    rig.retry(by_id("e2")).await;
    eventually("it is dead for good", || rig.held().first().is_some_and(|row| row.2 == "dead")).await;
    let gone: String =
        rig.state().query_row("SELECT reason FROM outboxd_held WHERE event_id = 'e2'", [], |row| row.get(0)).unwrap();
    assert_eq!(gone, "source_row_gone");
    assert!(!rig.delivered().contains(&"e2".to_owned()));
    rig.discard(by_id("e2"), "too large").await.unwrap();
    rig.is_done().await;
    assert_eq!(rig.delivered(), ["e1", "e3"]);
}
