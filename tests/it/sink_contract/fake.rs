//! The fake sink keeps the promises too, or tests that stand on it would prove nothing.

use std::time::Duration;

use outboxd::event::{Reason, Rejection};
use outboxd::sink::{Fault, Port, Sink};

use super::rig::{Case, Message, Rig};
use crate::support::fake_sink::{FakeSink, FarSide};
use crate::support::flights::Draft;

crate::sink_contract!(FakeRig);

struct FakeRig(FarSide);

impl Rig for FakeRig {
    async fn new() -> Self {
        let far_side = FarSide::default();
        far_side.reject(|event| {
            (event.stream_type == Some("missing")).then(|| Rejection::new(Reason::Unroutable, "no such place"))
        });
        far_side.suspect(|event| {
            (event.payload.unwrap_or_default().len() > 1000).then(|| Rejection::new(Reason::TooLarge, "too large"))
        });
        Self(far_side)
    }

    async fn alone() -> Self {
        Self::new().await
    }

    fn open(&self, port: Port, case: Case) -> Box<dyn Sink> {
        if case == Case::Nowhere {
            self.0.fault(Some(Fault::fatal("no such place")));
        }
        Box::new(FakeSink::new(self.0.clone(), port))
    }

    fn make_unroutable(&self, draft: &mut Draft) {
        draft.stream_type = "missing".into();
    }

    fn make_oversize(&self, draft: &mut Draft) -> bool {
        draft.payload = vec![b'x'; 2000];
        true
    }

    async fn arrived(&self, _least: usize) -> Vec<Message> {
        let arrivals = self.0.arrivals().into_iter();
        arrivals
            .map(|arrival| {
                let mut headers = vec![("traceparent", "00-0af7651916cd43dd8448eb211c80319c".to_owned())];
                if arrival.pick.attempt > 1 {
                    headers.push(("outboxd-attempt", arrival.pick.attempt.to_string()));
                }
                if arrival.pick.redelivery {
                    headers.push(("outboxd-redelivery", "true".into()));
                }
                if arrival.pick.replay {
                    headers.push(("outboxd-replay", "true".into()));
                }
                Message {
                    id: arrival.id,
                    kind: "Happened".into(),
                    key: String::from_utf8(arrival.key).unwrap(),
                    body: arrival.body,
                    headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                }
            })
            .collect()
    }

    async fn stop(&self) {
        self.0.fault(Some(Fault::unavailable("away")));
    }

    async fn start(&self) {
        self.0.fault(None);
    }

    async fn pause(&self) {
        self.0.delay(Duration::from_secs(3600));
    }
}
