//! A sink around a sink that notes when each event was acknowledged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::sink::{self, BoxFuture, Fault, Flight, Maker, News, Outcome, Port, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::meter::monotonic_nanos;

/// Position, and nanoseconds of the clock that all processes share, of every acknowledgement.
#[derive(Clone, Default)]
pub struct Stamps(Arc<Mutex<Vec<(i64, i64)>>>);

impl Stamps {
    pub fn take(&self) -> Vec<(i64, i64)> {
        std::mem::take(&mut self.0.lock().expect("no panic happens under this lock"))
    }

    fn put(&self, flight: &Flight) {
        let now = monotonic_nanos();
        let mut stamps = self.0.lock().expect("no panic happens under this lock");
        stamps.extend((0..flight.len()).map(|slot| (flight.event(slot).position.0, now)));
    }
}

pub fn stamping(settings: sink::Settings) -> (sink::Settings, Stamps) {
    let stamps = Stamps::default();
    let noted = stamps.clone();
    let make = move |port: Port| Box::new(Stamping::new(&settings, port, noted.clone())) as Box<dyn Sink>;
    (sink::Settings::Custom(Maker(Arc::new(make))), stamps)
}

type Outer = Arc<Mutex<HashMap<u64, Arc<Flight>>>>;

struct Stamping {
    inner: Box<dyn Sink>,
    news: UnboundedSender<News>,
    /// The engine's flights whose copies are under way.
    outer: Outer,
}

impl Stamping {
    fn new(settings: &sink::Settings, port: Port, stamps: Stamps) -> Self {
        let (news, inbox) = unbounded_channel();
        let outer = Outer::default();
        let inner = sink::open(settings, Port { news: news.clone(), ..port.clone() });
        let flights = outer.clone();
        std::thread::spawn(move || hand_on(inbox, &port, &flights, &stamps));
        Self { inner, news, outer }
    }
}

/// On a thread of its own, so that a stamp waits for no task.
fn hand_on(mut inbox: UnboundedReceiver<News>, port: &Port, outer: &Outer, stamps: &Stamps) {
    while let Some(news) = inbox.blocking_recv() {
        let News::Landed(flight) = news else {
            let _ = port.news.send(news);
            continue;
        };
        stamps.put(&flight);
        let notes = flight.take_notes();
        assert!(notes.is_empty(), "everything is delivered: {notes:?}");
        let landed = outer.lock().expect("no panic happens under this lock").remove(&flight.id);
        landed.expect("it was sent").fill_rest(&Outcome::Delivered);
    }
}

impl Sink for Stamping {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.inner.check(timeout)
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let copy = Flight::new(flight.id, flight.batch.clone(), flight.picks.clone(), self.news.clone());
        self.outer.lock().expect("no panic happens under this lock").insert(flight.id, flight);
        self.inner.send(copy);
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}
