//! What every sink promises (`src/sink/mod.rs`), asked of each of them, the fake one included, against the real far side.

pub mod amqp;
mod fake;
mod file;
mod http;
pub mod kafka;
pub mod rig;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outboxd::event::Reason;
use outboxd::sink::{FaultClass, News, Outcome, Pick};

use crate::support::flights::{Draft, Tower, recover};
use rig::{Case, Rig};

const PROBE: Duration = Duration::from_secs(10);

/// Makes the promises' tests for one rig.
#[macro_export]
macro_rules! sink_contract {
    ($rig:ty) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn delivers_in_order_and_unchanged() {
            $crate::sink_contract::delivers_in_order_and_unchanged::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn marks_what_is_sent_again() {
            $crate::sink_contract::marks_what_is_sent_again::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn names_the_unroutable_one_and_delivers_the_rest() {
            $crate::sink_contract::names_the_unroutable_one_and_delivers_the_rest::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn convicts_the_oversize_one_only_by_name_or_alone() {
            $crate::sink_contract::convicts_the_oversize_one_only_by_name_or_alone::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn a_missing_constant_destination_is_fatal() {
            $crate::sink_contract::a_missing_constant_destination_is_fatal::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn without_a_connection_everything_is_unavailable() {
            $crate::sink_contract::without_a_connection_everything_is_unavailable::<$rig>().await;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn an_outage_is_unavailable_and_passes_and_closing_never_waits() {
            $crate::sink_contract::an_outage_is_unavailable_and_passes_and_closing_never_waits::<$rig>().await;
        }
    };
}

async fn delivers_in_order_and_unchanged<R: Rig>() {
    let rig = R::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Ordinary);
    sink.check(PROBE).await.unwrap();
    let drafts: Vec<_> = (0..3000).map(|n| Draft::nth("a", n)).collect();
    let flights: Vec<_> = drafts.chunks(700).map(|some| tower.flight(some)).collect();
    flights.iter().for_each(|flight| sink.send(flight.clone()));
    for flight in &flights {
        let outcomes = tower.land(flight, Duration::from_secs(20)).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered), "{outcomes:?}");
    }
    let arrived = rig.arrived(drafts.len()).await;
    assert_eq!(arrived.len(), drafts.len());
    let mut keys: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for message in &arrived {
        keys.entry(&message.key).or_default().push(&message.id);
    }
    for (key, ids) in keys {
        let sent: Vec<_> = drafts.iter().filter(|draft| draft.key == key).map(|draft| draft.id.as_str()).collect();
        assert_eq!(ids, sent, "the order of {key}");
    }
    for message in &arrived {
        let draft = drafts.iter().find(|draft| draft.id == message.id).unwrap();
        assert_eq!(message.body, draft.payload);
        assert_eq!(message.kind, "Happened");
        assert!(message.headers["traceparent"].starts_with("00-0af7651916cd43dd8448eb211c80319c"));
        assert!(!message.headers.keys().any(|name| name.starts_with("outboxd-")), "{:?}", message.headers);
        assert!(rig.shows_own_headers() || !message.headers.contains_key("CC"));
    }
    sink.close().await;
}

async fn marks_what_is_sent_again<R: Rig>() {
    let rig = R::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Ordinary);
    sink.check(PROBE).await.unwrap();
    let pick = Pick { index: 0, attempt: 3, redelivery: true, replay: true };
    let flight = tower.flight_with(&[Draft::nth("again", 0)], vec![pick]);
    sink.send(flight.clone());
    assert_eq!(tower.land(&flight, PROBE).await.unwrap(), [Outcome::Delivered]);
    let arrived = rig.arrived(1).await;
    let marks: Vec<_> = arrived[0].headers.iter().filter(|header| header.0.starts_with("outboxd-")).collect();
    let expected = [("outboxd-attempt", "3"), ("outboxd-redelivery", "true"), ("outboxd-replay", "true")];
    assert_eq!(marks.iter().map(|mark| (mark.0.as_str(), mark.1.as_str())).collect::<Vec<_>>(), expected);
    sink.close().await;
}

async fn names_the_unroutable_one_and_delivers_the_rest<R: Rig>() {
    let rig = R::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Routing);
    sink.check(PROBE).await.unwrap();
    let mut drafts: Vec<_> = (0..400).map(|n| Draft::nth("u", n)).collect();
    let guilty: Vec<usize> = (0..400).filter(|n| n % 37 == 5).collect();
    guilty.iter().for_each(|n| rig.make_unroutable(&mut drafts[*n]));
    let outcomes = tower.send(&mut *sink, &drafts).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Rejected(rejection) => {
                assert!(guilty.contains(&n), "{n} is innocent: {rejection:?}");
                assert!(matches!(rejection.reason, Reason::Unroutable | Reason::Refused), "{rejection:?}");
            }
            Outcome::Delivered => assert!(!guilty.contains(&n), "{n} cannot have been delivered"),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(rig.arrived(drafts.len() - guilty.len()).await.len(), drafts.len() - guilty.len());
    sink.close().await;
}

async fn convicts_the_oversize_one_only_by_name_or_alone<R: Rig>() {
    let rig = R::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Small);
    sink.check(PROBE).await.unwrap();
    let mut drafts: Vec<_> = (0..3).map(|n| Draft { key: "k".into(), ..Draft::nth("o", n) }).collect();
    if !rig.make_oversize(&mut drafts[1]) {
        return;
    }
    let together = tower.send(&mut *sink, &drafts).await;
    assert!(matches!(&together[1], Outcome::Rejected(_) | Outcome::Suspect(_)), "{together:?}");
    for innocent in [0, 2] {
        assert!(matches!(&together[innocent], Outcome::Delivered | Outcome::Suspect(_)), "{together:?}");
    }
    let alone = tower.send(&mut *sink, &drafts[1..2]).await;
    assert!(matches!(&alone[0], Outcome::Rejected(rejection) if rejection.reason == Reason::TooLarge), "{alone:?}");
    assert_eq!(tower.send(&mut *sink, &drafts[..1]).await, [Outcome::Delivered]);
    sink.close().await;
}

async fn a_missing_constant_destination_is_fatal<R: Rig>() {
    let rig = R::new().await;
    let tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Nowhere);
    let fault = sink.check(PROBE).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Fatal, "{fault:?}");
    sink.close().await;
}

async fn without_a_connection_everything_is_unavailable<R: Rig>() {
    let rig = R::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Ordinary);
    let outcomes = tower.send(&mut *sink, &[Draft::nth("n", 0), Draft::nth("n", 1)]).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unavailable(_))), "{outcomes:?}");
    sink.close().await;
}

async fn an_outage_is_unavailable_and_passes_and_closing_never_waits<R: Rig>() {
    let rig = R::alone().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.open(tower.port.clone(), Case::Ordinary);
    recover(&mut *sink, Duration::from_secs(20)).await;
    let drafts: Vec<_> = (0..500).map(|n| Draft::nth("d", n)).collect();
    let before = tower.send(&mut *sink, &drafts[..100]).await;
    assert!(before.iter().all(|outcome| *outcome == Outcome::Delivered), "{before:?}");

    rig.stop().await;
    let during = tower.flight(&drafts[100..300]);
    sink.send(during.clone());
    // A sink either answers that it is unavailable, or keeps the messages and says that it has trouble.
    let answered = tower.land(&during, Duration::from_secs(5)).await;
    match &answered {
        Ok(outcomes) => {
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unavailable(_))), "{outcomes:?}");
        }
        Err(_) => {
            let is_trouble =
                |news: &News| matches!(news, News::Trouble(fault) if fault.class == FaultClass::Unavailable);
            tower.hear(Duration::from_secs(5), is_trouble).await;
        }
    }
    let fault = sink.check(Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(fault.class, R::AWAY, "{fault:?}");

    rig.start().await;
    recover(&mut *sink, Duration::from_secs(40)).await;
    let outcomes = match answered {
        Ok(outcomes) => outcomes,
        Err(_) => tower.land(&during, Duration::from_secs(40)).await.unwrap(),
    };
    let again: Vec<_> =
        (0..200).filter(|n| outcomes[*n] != Outcome::Delivered).map(|n| drafts[100 + n].clone()).collect();
    if !again.is_empty() {
        let outcomes = tower.send(&mut *sink, &again).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered), "{outcomes:?}");
    }
    let after = tower.send(&mut *sink, &drafts[300..]).await;
    assert!(after.iter().all(|outcome| *outcome == Outcome::Delivered), "{after:?}");
    let arrived = rig.arrived(drafts.len()).await;
    for draft in &drafts {
        assert!(arrived.iter().any(|message| message.id == draft.id), "{} is lost", draft.id);
    }

    rig.pause().await;
    let flight = tower.flight(&drafts[..50]);
    sink.send(flight);
    let start = Instant::now();
    sink.close().await;
    assert!(start.elapsed() < Duration::from_secs(4), "closing took {:?}", start.elapsed());
}
