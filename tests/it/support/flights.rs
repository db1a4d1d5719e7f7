//! Flights made by hand, and what came of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::event::{Batch, BatchBuilder, Event, Position};
use outboxd::sink::{Fault, Flight, News, Outcome, Pick, Port, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// An event in the making.
#[derive(Clone, Debug)]
pub struct Draft {
    pub id: String,
    pub key: String,
    /// Rigs route by it.
    pub stream_type: String,
    pub payload: Vec<u8>,
}

impl Draft {
    /// The `n`th event of a run: its key is one of ten, its payload says its number.
    pub fn nth(run: &str, n: usize) -> Self {
        let payload = format!("{{\"n\": {n}, \"text\": \"größe\\u0000\"}}").into_bytes();
        Self { id: format!("{run}-{n}"), key: format!("key-{}", n % 10), stream_type: "good".into(), payload }
    }

    pub fn event(&self) -> Event<'_> {
        Event {
            position: Position(1),
            id: &self.id,
            key: Some(self.key.as_bytes()),
            stream_id: Some(&self.key),
            stream_type: Some(&self.stream_type),
            version: Some(1),
            kind: "Happened",
            payload: Some(&self.payload),
            headers: Some(r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","CC":"never"}"#),
            time: Some("2026-11-20T10:00:00Z"),
            time_micros: None,
            death: None,
        }
    }
}

pub fn batch(drafts: &[Draft]) -> Arc<Batch> {
    let mut builder = BatchBuilder::default();
    for (n, draft) in drafts.iter().enumerate() {
        builder.push(Event { position: Position(n as i64 + 1), ..draft.event() });
    }
    Arc::new(builder.finish(Position(drafts.len() as i64), 0))
}

/// The engine's end of a sink, played by a test.
pub struct Tower {
    pub port: Port,
    pub inbox: UnboundedReceiver<News>,
    news: UnboundedSender<News>,
    next: u64,
    /// News other than landings, in the order in which they came.
    pub told: Vec<News>,
}

impl Tower {
    pub fn new(consumer: &str) -> Self {
        let (news, inbox) = unbounded_channel();
        let port = Port { news: news.clone(), consumer: consumer.into(), source: "shop".into() };
        Self { port, inbox, news, next: 0, told: Vec::new() }
    }

    pub fn flight(&mut self, drafts: &[Draft]) -> Arc<Flight> {
        let picks = (0..drafts.len() as u32).map(Pick::first).collect();
        self.flight_with(drafts, picks)
    }

    pub fn flight_with(&mut self, drafts: &[Draft], picks: Vec<Pick>) -> Arc<Flight> {
        self.next += 1;
        Flight::new(self.next, batch(drafts), picks, self.news.clone())
    }

    /// Waits until the flight lands; what else is told meanwhile is kept.
    pub async fn land(&mut self, flight: &Arc<Flight>, within: Duration) -> Result<Vec<Outcome>, &'static str> {
        let deadline = Instant::now() + within;
        while !flight.is_landed() {
            match tokio::time::timeout_at(deadline.into(), self.inbox.recv()).await {
                Ok(Some(News::Landed(_))) => {}
                Ok(Some(news)) => self.told.push(news),
                Ok(None) | Err(_) => return Err("the flight did not land in time"),
            }
        }
        let mut outcomes = vec![Outcome::Delivered; flight.len()];
        for (slot, outcome) in flight.take_notes() {
            outcomes[slot as usize] = outcome;
        }
        Ok(outcomes)
    }

    /// Waits for news that `is` what the test looks for.
    pub async fn hear(&mut self, within: Duration, is: impl Fn(&News) -> bool) {
        let deadline = Instant::now() + within;
        while !self.told.iter().any(&is) {
            match tokio::time::timeout_at(deadline.into(), self.inbox.recv()).await {
                Ok(Some(news)) => self.told.push(news),
                Ok(None) | Err(_) => panic!("not told within {within:?}; told were {:?}", self.told),
            }
        }
    }

    pub async fn send(&mut self, sink: &mut dyn Sink, drafts: &[Draft]) -> Vec<Outcome> {
        let flight = self.flight(drafts);
        sink.send(flight.clone());
        self.land(&flight, Duration::from_secs(20)).await.unwrap()
    }
}

/// Probes until the sink is well, as the engine does. Says what was wrong with it.
pub async fn recover(sink: &mut dyn Sink, within: Duration) -> Vec<Fault> {
    let deadline = Instant::now() + within;
    let mut faults = Vec::new();
    while let Err(fault) = sink.check(Duration::from_secs(5)).await {
        faults.push(fault);
        assert!(Instant::now() < deadline, "the sink did not recover within {within:?}: {:?}", faults.last());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    faults
}
