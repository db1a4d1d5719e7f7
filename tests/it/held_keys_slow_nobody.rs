//! Held keys, however many, slow nobody.

use std::time::{Duration, Instant};

use outboxd::event::{Reason, Rejection};

use crate::support::rig::{Rig, eventually, insert};

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_held_keys_let_the_others_flow() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 1;
    rig.far_side.reject(|event| event.id.starts_with("bad").then(|| Rejection::new(Reason::Refused, "poison")));
    let transaction = rig.app.unchecked_transaction().unwrap();
    for n in 0..10_000 {
        insert(&transaction, &format!("bad{n}"), &format!("bad{n}"));
    }
    transaction.commit().unwrap();
    rig.start();
    eventually("10,000 keys are held", || rig.status().held_keys == 10_000).await;

    // A source full of events that have to wait, and behind them some that need not.
    let transaction = rig.app.unchecked_transaction().unwrap();
    for n in 0..20_000 {
        insert(&transaction, &format!("later{n}"), &format!("bad{}", n % 10_000));
    }
    transaction.commit().unwrap();
    let began = Instant::now();
    rig.place(5_000, 50);
    eventually("the others arrive", || rig.far_side.arrivals().len() >= 5_000).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(rig.delivered().iter().all(|id| id.starts_with('e')));
    eventually("what waits is recorded", || rig.status().position == 35_000).await;

    // And all of them at once are retried, while others flow on.
    rig.far_side.mend();
    rig.retry(Default::default()).await;
    let began = Instant::now();
    rig.place(1_000, 50);
    rig.arrives("e6000").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    eventually("all keys are released", || rig.status().held_keys == 0).await;
    assert_eq!(rig.far_side.arrivals().len(), 36_000);
}
