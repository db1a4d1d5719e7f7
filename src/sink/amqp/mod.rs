//! The AMQP sink: RabbitMQ with publisher confirms.
//!
//! One connection, four channels. An event's key chooses its channel, and each channel has one chunk of one flight in flight,
//! which is settled only as a whole: `lane` says why nothing else is safe.
//!
//! Invariants (the conformance suite `tests/it/sink_contract.rs`):
//! 1. `Delivered` only for a message that was confirmed in a chunk all of whose confirms came, and that was not returned.
//! 2. Order per key: one channel a key, one chunk after the other.
//! 3. A broken connection is never mended: everything on it is unavailable until a probe has made a new one.
//!
//! It declares no queues and no bindings, and an exchange only when told to. How it fails: see `fault`. While the broker has
//! publishers blocked, what is in flight waits. Start reading at `lane`.

pub mod config;
mod fault;
mod lane;
mod link;
#[cfg(feature = "http")]
mod management;
mod message;
mod properties;
#[cfg(feature = "http")]
mod queue;
#[cfg(feature = "http")]
mod routes;
mod survey;

/// For fuzzing.
#[cfg(feature = "controls")]
pub use fault::exchange_named;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedSender};

use super::format::{Dress, Format, HeaderField, Wire};
use super::survey::Sample;
use super::template::Template;
use super::tls::Tls;
use super::{BoxFuture, Fault, Flight, Outcome, Port, Sink};
use crate::remark::Remark;
use crate::secret::Secret;
use lane::{Chunk, Lane};
use link::Link;
pub use properties::{Properties, Timestamp};

/// Channels on the connection.
const LANES: usize = 4;
const CHUNK_EVENTS_MAX: usize = 500;
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// RabbitMQ's own default for `max_message_size`.
pub const MESSAGE_BYTES_MAX: usize = 128 << 20;

/// A resolved `[sinks.X]` of type `amqp`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `amqp://` or `amqps://`, with user, password and virtual host.
    pub uri: Secret,
    pub exchange: Template,
    pub routing_key: Template,
    pub format: Format,
    /// Headers beyond those that are always sent.
    pub headers: Vec<HeaderField>,
    pub properties: Properties,
    pub persistent: bool,
    /// The broker returns what no queue would get. Off, such messages are lost in the broker.
    pub mandatory: bool,
    /// Makes the exchange, durable and of type topic, instead of only asking for it.
    pub declare: bool,
    pub tls: Option<Tls>,
    pub heartbeat: Duration,
    pub ack_timeout: Duration,
    /// The broker's `max_message_size`: what is larger is refused before it is sent, because it would close the channel.
    pub message_bytes_max: usize,
    /// Where the management API is, for the doctor alone.
    pub management: Option<String>,
}

pub struct Amqp {
    settings: Settings,
    port: Port,
    dress: Dress,
    live: Option<Live>,
}

/// A connection in use; dropped, also halfway through a probe, it is let go.
struct Live {
    link: Arc<Link>,
    lanes: Vec<UnboundedSender<Chunk>>,
}

/// Connects with a sink's settings, for whoever reads back what was sent.
pub async fn connect(settings: &Settings, name: &str) -> Result<lapin::Connection, Fault> {
    link::dial(settings, name).await.map(|(connection, _)| connection)
}

impl Amqp {
    pub fn new(settings: Settings, port: Port) -> Self {
        let dress = Dress {
            format: settings.format,
            wire: Wire::Amqp,
            headers: settings.headers.clone(),
            source: port.source.clone(),
        };
        Self { settings, port, dress, live: None }
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        drop(self.live.take_if(|live| live.link.broken().is_some()));
        if let Some(live) = &self.live {
            return live.link.prove().await;
        }
        let link = Link::connect(&self.settings, &self.dress, &self.port).await?;
        let mut live = Live { link, lanes: Vec::with_capacity(LANES) };
        live.link.prove().await?;
        for _ in 0..LANES {
            live.open_lane().await?;
        }
        self.live = Some(live);
        Ok(())
    }
}

impl Live {
    async fn open_lane(&mut self) -> Result<(), Fault> {
        let channel = self.link.channel().await?;
        let (sender, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Lane { channel, link: self.link.clone() }.run(inbox));
        self.lanes.push(sender);
        Ok(())
    }

    fn post(&self, lane: usize, chunk: Chunk) {
        if let Err(mpsc::error::SendError(chunk)) = self.lanes[lane].send(chunk) {
            chunk.fill_all(&Outcome::Unavailable(Fault::unavailable("the channel's task has ended")));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.link.let_go();
    }
}

impl Sink for Amqp {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            let Ok(result) = tokio::time::timeout(timeout, self.probe()).await else {
                let fault = Fault::unavailable(format!("RabbitMQ did not answer within {timeout:?}"));
                if let Some(live) = &self.live {
                    live.link.break_with(fault.clone());
                }
                return Err(fault);
            };
            result
        })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let fault = match &self.live {
            None => Some(Fault::unavailable("there is no connection to RabbitMQ")),
            Some(live) => live.link.broken(),
        };
        let Some(live) = self.live.as_ref().filter(|_| fault.is_none()) else {
            return flight.fill_rest(&Outcome::Unavailable(fault.expect("without a connection there is a fault")));
        };
        split(&flight, |lane, slots| live.post(lane, Chunk { flight: flight.clone(), slots }));
    }

    fn survey<'a>(&'a mut self, sample: &'a Sample<'a>, timeout: Duration) -> BoxFuture<'a, Vec<Remark>> {
        Box::pin(async move {
            let known = self.live.as_ref().map(|live| live.link.clone());
            let link = match &known {
                Some(link) => Ok(link.clone()),
                // What was there did not pass: it is asked all the same.
                None => Link::connect(&self.settings, &self.dress, &self.port).await,
            };
            let own = link.as_ref().ok().filter(|_| known.is_none()).cloned();
            let remarks = survey::survey(&self.settings, &self.dress, link, sample, timeout).await;
            own.iter().for_each(Link::let_go);
            remarks
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(live) = self.live {
                live.link.close();
            }
        })
    }
}

/// Deals the flight's slots out to the lanes, in order, in chunks within bounds and without an id twice.
fn split(flight: &Flight, mut post: impl FnMut(usize, Vec<u32>)) {
    #[derive(Default)]
    struct Pile<'a> {
        slots: Vec<u32>,
        bytes: usize,
        ids: HashSet<&'a str>,
    }
    let mut piles: [Pile<'_>; LANES] = Default::default();
    for slot in 0..flight.len() {
        let event = flight.event(slot);
        let bytes = flight.batch.event_bytes(flight.picks[slot].index as usize);
        let lane = lane_of(event.key.unwrap_or(event.id.as_bytes()));
        let pile = &mut piles[lane];
        let is_full = pile.slots.len() >= CHUNK_EVENTS_MAX || pile.bytes + bytes > CHUNK_BYTES_MAX;
        if !pile.slots.is_empty() && (is_full || pile.ids.contains(event.id)) {
            post(lane, std::mem::take(pile).slots);
        }
        let pile = &mut piles[lane];
        pile.slots.push(slot as u32);
        pile.bytes += bytes;
        pile.ids.insert(event.id);
    }
    for (lane, pile) in piles.into_iter().enumerate().filter(|(_, pile)| !pile.slots.is_empty()) {
        post(lane, pile.slots);
    }
}

fn lane_of(key: &[u8]) -> usize {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    (hasher.finish() % LANES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BatchBuilder, Event, Position};
    use crate::sink::Pick;

    fn flight(events: &[(&str, &str)], payload: &[u8]) -> Arc<Flight> {
        let mut builder = BatchBuilder::default();
        for (id, key) in events {
            builder.push(Event {
                position: Position(1),
                id,
                key: Some(key.as_bytes()),
                stream_id: None,
                stream_type: None,
                version: None,
                kind: "T",
                payload: Some(payload),
                headers: None,
                time: None,
                time_micros: None,
                death: None,
            });
        }
        let picks = (0..events.len() as u32).map(Pick::first).collect();
        Flight::new(1, Arc::new(builder.finish(Position(1), 0)), picks, mpsc::unbounded_channel().0)
    }

    fn chunks(flight: &Flight) -> Vec<(usize, Vec<u32>)> {
        let mut chunks = Vec::new();
        split(flight, |lane, slots| chunks.push((lane, slots)));
        chunks
    }

    #[test]
    fn a_key_has_one_lane_and_its_order() {
        let names: Vec<_> = (0..2000).map(|n| (format!("e{n}"), format!("k{}", n % 7))).collect();
        let events: Vec<_> = names.iter().map(|(id, key)| (id.as_str(), key.as_str())).collect();
        let flight = flight(&events, b"");
        let chunks = chunks(&flight);
        assert!(chunks.iter().all(|chunk| chunk.1.len() <= CHUNK_EVENTS_MAX));
        let mut all: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.1.clone()).collect();
        for lane in 0..LANES {
            let slots: Vec<u32> =
                chunks.iter().filter(|chunk| chunk.0 == lane).flat_map(|chunk| chunk.1.clone()).collect();
            assert!(slots.is_sorted());
            assert!(slots.iter().all(|slot| lane_of(events[*slot as usize].1.as_bytes()) == lane));
        }
        all.sort_unstable();
        assert_eq!(all, (0..2000).collect::<Vec<_>>());
    }

    #[test]
    fn no_id_stands_twice_in_a_chunk_and_no_chunk_is_too_large() {
        let twice = flight(&[("a", "k"), ("b", "k"), ("a", "k")], b"");
        assert_eq!(chunks(&twice).into_iter().map(|chunk| chunk.1).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
        let large = flight(&[("a", "k"), ("b", "k")], &vec![0; 3 << 20]);
        assert_eq!(chunks(&large).len(), 2);
    }
}
