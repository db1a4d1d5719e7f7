//! How fast the sinks are beside the bare clients, in the same process and run, with the same keys, payloads and headers.
//!
//! Not a promise, a measurement: `cargo test --test it -- --ignored --nocapture --test-threads 1 sink_speed`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use outboxd::event::Batch;
use outboxd::sink::amqp::Amqp;
use outboxd::sink::file::File;
use outboxd::sink::format::Format;
use outboxd::sink::kafka::Kafka;
use outboxd::sink::{Flight, News, Pick, Sink};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use crate::sink_contract::{amqp, kafka};
use crate::support::broker::Broker;
use crate::support::flights::{Draft, Tower, batch};

const BATCH: usize = 1000;
const BATCHES_IN_FLIGHT: usize = 10;

fn batches(count: usize) -> Vec<Arc<Batch>> {
    let draft = |n: usize| Draft {
        id: format!("0195f3a2-7b1c-7000-8000-{n:012}"),
        key: format!("order-{}", n % 1000),
        stream_type: "good".into(),
        payload: vec![b'x'; 256],
    };
    (0..count).map(|b| batch(&(0..BATCH).map(|n| draft(b * BATCH + n)).collect::<Vec<_>>())).collect()
}

/// Sends all batches through the sink in a window, and returns events a second.
async fn drain(sink: &mut dyn Sink, tower: &mut Tower, batches: &[Arc<Batch>]) -> f64 {
    let start = Instant::now();
    let (mut sent, mut landed) = (0, 0);
    while landed < batches.len() {
        while sent < batches.len() && sent - landed < BATCHES_IN_FLIGHT {
            let picks = (0..BATCH as u32).map(Pick::first).collect();
            sink.send(Flight::new(sent as u64, batches[sent].clone(), picks, tower.port.news.clone()));
            sent += 1;
        }
        match tower.inbox.recv().await {
            Some(News::Landed(flight)) => {
                assert!(flight.take_notes().is_empty(), "everything is delivered");
                landed += 1;
            }
            other => println!("{other:?}"),
        }
    }
    (batches.len() * BATCH) as f64 / start.elapsed().as_secs_f64()
}

/// One event every 1/600 s for some seconds: the time from `send` to the landing, at p50 and p99.
async fn latency(sink: &mut dyn Sink, tower: &mut Tower) -> (Duration, Duration) {
    let one = batches(1).remove(0);
    let mut ticks = tokio::time::interval(Duration::from_micros(1667));
    let mut times = Vec::new();
    let mut sent = 0;
    while times.len() < 1800 {
        tokio::select! {
            _ = ticks.tick(), if sent < 1800 => {
                sink.send(Flight::new(sent, one.clone(), vec![Pick::first((sent % 1000) as u32)], tower.port.news.clone()));
                sent += 1;
            }
            news = tower.inbox.recv() => if let Some(News::Landed(flight)) = news {
                times.push(flight.sent_at.elapsed());
            }
        }
    }
    times.drain(..300);
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn report(what: &str, rate: f64, cpu_seconds: f64, events: usize) {
    println!("{what:<28} {:>7.1} k/s  {:>5.2} us CPU an event", rate / 1e3, cpu_seconds * 1e6 / events as f64);
}

struct Count(Arc<AtomicUsize>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, _: usize) {
        assert!(result.is_ok());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn bare_kafka(bootstrap: &str, linger: &str, batches: &[Arc<Batch>]) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("partitioner", "murmur2_random");
    config.set("linger.ms", linger);
    let producer: ThreadedProducer<Count> = config.create_with_context(Count(done.clone())).unwrap();
    let send = |batch: &Batch| {
        for (n, event) in batch.events().enumerate() {
            let headers = OwnedHeaders::new_with_capacity(4)
                .insert(Header { key: "id", value: Some(event.id) })
                .insert(Header { key: "type", value: Some(event.kind) })
                .insert(Header { key: "traceparent", value: event.header("traceparent").as_deref() });
            let mut record = BaseRecord::with_opaque_to("bench", n).headers(headers);
            record.key = event.key;
            record.payload = event.payload;
            while let Err((_, back)) = producer.send(record) {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    send(&batches[0]);
    let wait = async |target: usize| {
        while done.load(Ordering::Relaxed) < target {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    wait(BATCH).await;
    let start = Instant::now();
    batches.iter().for_each(|batch| send(batch));
    wait(BATCH * (batches.len() + 1)).await;
    (batches.len() * BATCH) as f64 / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn kafka_beside_the_bare_client() {
    let broker = Broker::start("kafka", &["--c2"]);
    broker.topic("bench", 6, &[]);
    let bootstrap = broker.text("bootstrap");
    let batches = batches(300);
    let events = batches.len() * BATCH;
    bare_kafka(&bootstrap, "5", &batches).await;
    for linger in ["0", "1", "5"] {
        for _ in 0..2 {
            let before = cpu();
            let rate = bare_kafka(&bootstrap, linger, &batches).await;
            report(&format!("bare, linger {linger}"), rate, cpu() - before, events);
            let mut tower = Tower::new("bench");
            let mut settings = kafka::settings(bootstrap.clone(), "bench");
            settings.properties.insert("linger.ms".into(), linger.into());
            let mut sink: Box<dyn Sink> = Box::new(Kafka::new(settings, tower.port.clone()));
            sink.check(Duration::from_secs(10)).await.unwrap();
            drain(&mut *sink, &mut tower, &batches[..1]).await;
            let before = cpu();
            let rate = drain(&mut *sink, &mut tower, &batches).await;
            report(&format!("sink, linger {linger}"), rate, cpu() - before, events);
            let (p50, p99) = latency(&mut *sink, &mut tower).await;
            println!("sink, linger {linger}: at 600/s p50 {p50:?} p99 {p99:?}");
            sink.close().await;
        }
    }
}

async fn bare_amqp(uri: &str, batches: &[Arc<Batch>]) -> f64 {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let start = Instant::now();
    let mut window = std::collections::VecDeque::new();
    for batch in batches {
        for half in 0..4 {
            let publishes = (half * BATCH / 4..(half + 1) * BATCH / 4).map(|n| {
                let event = batch.event(n);
                let mut headers = FieldTable::default();
                let traceparent = event.header("traceparent").unwrap();
                headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
                let properties = BasicProperties::default()
                    .with_headers(headers)
                    .with_content_type("application/octet-stream".into())
                    .with_timestamp(1_795_168_800)
                    .with_message_id(event.id.into())
                    .with_type(event.kind.into())
                    .with_delivery_mode(2);
                channel.basic_publish("".into(), "bench".into(), options, event.payload.unwrap(), properties)
            });
            window.push_back(join_all(publishes).await);
            if window.len() > 8 {
                for confirm in window.pop_front().unwrap() {
                    assert!(confirm.unwrap().await.unwrap().is_ack());
                }
            }
        }
    }
    for confirm in window.into_iter().flatten() {
        assert!(confirm.unwrap().await.unwrap().is_ack());
    }
    let rate = (batches.len() * BATCH) as f64 / start.elapsed().as_secs_f64();
    connection.close(200, "done".into()).await.unwrap();
    rate
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn amqp_beside_the_bare_client() {
    let broker = Broker::start("rabbitmq", &[]);
    let uri = broker.text("uri");
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare("bench".into(), durable, FieldTable::default()).await.unwrap();
    let batches = batches(60);
    let events = batches.len() * BATCH;
    for _ in 0..3 {
        let before = cpu();
        let rate = bare_amqp(&uri, &batches).await;
        report("bare, one channel", rate, cpu() - before, events);
        channel.queue_purge("bench".into(), Default::default()).await.unwrap();
        let mut tower = Tower::new("bench");
        let settings = amqp::settings(&uri, "", "bench");
        let mut sink: Box<dyn Sink> = Box::new(Amqp::new(settings, tower.port.clone()));
        sink.check(Duration::from_secs(10)).await.unwrap();
        let before = cpu();
        let rate = drain(&mut *sink, &mut tower, &batches).await;
        report("sink", rate, cpu() - before, events);
        channel.queue_purge("bench".into(), Default::default()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (p50, p99) = latency(&mut *sink, &mut tower).await;
        println!("sink: at 600/s p50 {p50:?} p99 {p99:?}");
        channel.queue_purge("bench".into(), Default::default()).await.unwrap();
        sink.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let batches = batches(300);
    let mut tower = Tower::new("bench");
    let path = Some(folder.path().join("events.ndjson"));
    for format in [Format::Envelope, Format::Plain] {
        let settings = outboxd::sink::file::Settings { path: path.clone(), format };
        let mut sink: Box<dyn Sink> = Box::new(File::new(settings, tower.port.clone()));
        sink.check(Duration::from_secs(10)).await.unwrap();
        let before = cpu();
        let rate = drain(&mut *sink, &mut tower, &batches).await;
        report(&format!("file, {}", format.as_str()), rate, cpu() - before, batches.len() * BATCH);
        let (p50, p99) = latency(&mut *sink, &mut tower).await;
        println!("file: at 600/s p50 {p50:?} p99 {p99:?}");
        sink.close().await;
    }
}
