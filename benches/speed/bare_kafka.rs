//! The bare rdkafka loop: the same producer class as the relay's, fed from memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outboxd::event::Event;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use crate::load;
use crate::meter::{Beat, Drain, Meter, Pace, monotonic_nanos};

/// The best for throughput, and librdkafka's own default.
const DRAIN_LINGER_MS: &str = "5";
/// As the relay's sink has it: at a low rate it is a floor for every time.
const PACE_LINGER_MS: &str = "1";

/// Counts what was acknowledged; a record whose opaque is a time notes how long it took.
#[derive(Default)]
struct Acks {
    count: AtomicUsize,
    took_nanos: Mutex<Vec<i64>>,
}

struct Context(Arc<Acks>);

impl ClientContext for Context {}

impl ProducerContext for Context {
    /// When it was sent, or 0: nobody asks.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sent_nanos: usize) {
        assert!(result.is_ok(), "the broker takes everything");
        if sent_nanos != 0 {
            let took = monotonic_nanos() - sent_nanos as i64;
            self.0.took_nanos.lock().expect("no panic happens under this lock").push(took);
        }
        self.0.count.fetch_add(1, Ordering::Release);
    }
}

struct Client {
    producer: ThreadedProducer<Context>,
    topic: String,
    acks: Arc<Acks>,
}

impl Client {
    fn new(bootstrap: &str, topic: &str, linger_ms: &str) -> Self {
        let acks = Arc::new(Acks::default());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("linger.ms", linger_ms);
        config.set("enable.idempotence", "true").set("acks", "all").set("partitioner", "murmur2_random");
        let producer = config.create_with_context(Context(acks.clone())).expect("the properties are known");
        Self { producer, topic: topic.to_owned(), acks }
    }

    fn send(&self, event: &Event<'_>, opaque: usize) {
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: "id", value: Some(event.id) })
            .insert(Header { key: "type", value: Some(event.kind) });
        let mut record = BaseRecord::with_opaque_to(&self.topic, opaque).headers(headers);
        record.key = event.key;
        record.payload = event.payload;
        while let Err((_, back)) = self.producer.send(record) {
            // Its queue is full.
            record = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    async fn wait(&self, count: usize) {
        while self.acks.count.load(Ordering::Acquire) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub async fn drain(bootstrap: &str, topic: &str, bytes: usize, events: usize) -> Drain {
    let batches = load::batches(events, bytes);
    let (warm, rest) = batches.split_at(batches.len() / 50 + 1);
    let client = Client::new(bootstrap, topic, DRAIN_LINGER_MS);
    warm.iter().flat_map(|batch| batch.events()).for_each(|event| client.send(&event, 0));
    let before = warm.iter().map(|batch| batch.len()).sum();
    client.wait(before).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let meter = Meter::start();
    rest.iter().flat_map(|batch| batch.events()).for_each(|event| client.send(&event, 0));
    client.wait(events).await;
    meter.read(events - before)
}

pub fn pace(bootstrap: &str, topic: &str, events: usize, per_second: usize) -> Pace {
    let batches = load::batches(events, 256);
    let client = Client::new(bootstrap, topic, PACE_LINGER_MS);
    let first = batches[0].event(0);
    client.send(&first, 0);
    while client.acks.count.load(Ordering::Acquire) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let beat = Beat::new(per_second);
    for (n, event) in batches.iter().flat_map(|batch| batch.events()).enumerate() {
        std::thread::sleep(beat.wait(n));
        client.send(&event, monotonic_nanos() as usize);
    }
    while client.acks.count.load(Ordering::Acquire) < events + 1 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = client.acks.took_nanos.lock().expect("no panic happens under this lock").clone();
    Pace::of(took)
}
