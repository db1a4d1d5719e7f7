//! The Kafka sink: an idempotent producer of librdkafka, which retries inside, in order and for ever.
//!
//! Invariants (the conformance suite `tests/it/sink_contract.rs`, and `verdict`'s own tests):
//! 1. `Delivered` only on the client's own report, with `acks=all`.
//! 2. Order per key: one idempotent producer, one partition a key; after a fatal error or when reports stay away although the
//!    broker answers, the producer is purged and a new one is made, so that nothing is left behind that could overtake.
//! 3. `send` never blocks: what the client's queue does not take is unavailable, and so is the rest of the flight.
//!
//! It does not create topics. How it fails: see `verdict` for messages, and `reports` for the client as a whole; purged
//! messages may have been written (duplicates behind an outage). Start reading at [`Kafka::send`](Sink::send).

mod aloft;
pub mod config;
mod reports;
mod settings;
mod survey;
mod topic;
mod verdict;

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::{oneshot, watch};

use super::format::{Dress, Value, Wire};
use super::survey::Sample;
use super::{BoxFuture, Fault, FaultClass, Flight, Outcome, Port, Sink};
use crate::controls::{self, Protection};
use crate::event::{Reason, Rejection};
use crate::remark::Remark;
use aloft::Aloft;
use reports::{Context, Reports};
pub use settings::{Mechanism, OWNED, Sasl, Security, Settings, check_property, check_topic, partition_of};

/// How long a probe that was answered waits for overdue reports to come, before the producer is given up.
const OVERDUE_WAIT: Duration = Duration::from_secs(5);
/// How long a probe goes on after the client reported a fault: another broker may still answer it.
const FAULT_WAIT: Duration = Duration::from_millis(500);
/// How long a new client may take to find Kafka where one that has been there does not. librdkafka clings to a connection whose peer is gone
/// for half a minute and more; and it can forget all brokers when the last one says, while it shuts down, that there are none.
const FRESH_WAIT: Duration = Duration::from_secs(2);
/// How long `close` waits for the client's threads.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

type Client = ThreadedProducer<Context>;

pub struct Kafka {
    settings: Settings,
    port: Port,
    dress: Dress,
    live: Option<Live>,
    text: Text,
}

struct Live {
    client: Client,
    reports: Arc<Reports>,
}

/// Buffers that every event reuses.
#[derive(Default)]
struct Text {
    topic: String,
    key: String,
    body: Vec<u8>,
    number: String,
}

impl Kafka {
    pub fn new(settings: Settings, port: Port) -> Self {
        let dress = Dress {
            format: settings.format,
            wire: Wire::Kafka,
            headers: settings.headers.clone(),
            source: port.source.clone(),
        };
        Self { settings, port, dress, live: None, text: Text::default() }
    }

    async fn probe(&mut self, timeout: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + timeout;
        if self.live.as_ref().is_some_and(Live::is_spoilt) {
            self.let_go("it is past help");
        }
        let live = match &mut self.live {
            Some(live) => live,
            none => none.insert(Live::build(&self.settings, &self.port).await?),
        };
        let topic = self.settings.topic.constant().map(str::to_owned);
        let partition = self.settings.partition.as_ref().and_then(|template| partition_of(template.constant()?));
        let is_known = live.reports.has_answered.load(Ordering::Acquire);
        let patience = if is_known { timeout.saturating_sub(FRESH_WAIT.min(timeout / 4)) } else { timeout };
        let asked = live.ask(topic.clone(), partition, patience).await;
        match asked {
            Ok(()) if self.is_moving(deadline).await => Ok(()),
            Ok(()) => {
                let fresh = Live::build(&self.settings, &self.port).await?;
                self.replace(fresh, "Kafka answers, but its reports are overdue");
                Ok(())
            }
            Err(fault)
                if is_known && fault.class == FaultClass::Unavailable && !controls::is_off(Protection::FreshClient) =>
            {
                let fresh = Live::build(&self.settings, &self.port).await?;
                let found = fresh.ask(topic, partition, deadline.saturating_duration_since(Instant::now())).await;
                if found.is_ok() || self.live.as_ref().is_some_and(Live::is_spoilt) {
                    self.replace(fresh, "it does not find Kafka any more");
                } else {
                    fresh.reports.closed.store(true, Ordering::Release);
                    drop_apart(fresh.client);
                }
                found.map_err(|_| fault)
            }
            Err(fault) => Err(fault),
        }
    }

    fn replace(&mut self, fresh: Live, why: &str) {
        self.let_go(why);
        self.live = Some(fresh);
    }

    /// Whether no report is overdue, or reports are coming again.
    async fn is_moving(&mut self, deadline: Instant) -> bool {
        let Some(live) = self.live.as_ref().filter(|live| live.aloft().is_overdue(self.settings.ack_timeout)) else {
            return true;
        };
        let before = live.reports.reported.load(Ordering::Acquire);
        let until = deadline.min(Instant::now() + OVERDUE_WAIT);
        while Instant::now() < until {
            if live.reports.reported.load(Ordering::Acquire) != before {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Ends the producer; whatever it had in hand is reported as unavailable.
    fn let_go(&mut self, why: &str) {
        tracing::warn!(event = "kafka_client_replaced", consumer = self.port.consumer, detail = why);
        if let Some(live) = self.live.take() {
            live.client.purge(PurgeConfig::default().queue().inflight());
            drop_apart(live.client);
        }
    }
}

impl Sink for Kafka {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(self.probe(timeout))
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let Some(live) = self.live.as_ref().filter(|live| !live.is_spoilt()) else {
            return flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("there is no connection to Kafka")));
        };
        let is_alone = flight.len() == 1 && live.reports.is_nothing_in_flight();
        let first = live.aloft().board(&flight, is_alone);
        live.reports.sent.fetch_add(flight.len() as u64, Ordering::AcqRel);
        let sender = Sender { live, settings: &self.settings, dress: &self.dress };
        for slot in 0..flight.len() {
            let Err(outcome) = sender.send(&flight, slot, first.wrapping_add(slot), &mut self.text) else { continue };
            let rest = if matches!(outcome, Outcome::Unavailable(_)) { flight.len() - slot } else { 1 };
            live.reports.sent.fetch_sub(rest as u64, Ordering::AcqRel);
            for refused in slot..slot + rest {
                flight.fill(refused, outcome.clone());
            }
            if rest > 1 {
                break;
            }
        }
        if live.reports.closed.load(Ordering::Acquire) {
            // It was given up meanwhile, and reports nothing any more.
            flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("the Kafka producer was given up")));
        }
    }

    fn survey<'a>(&'a mut self, sample: &'a Sample<'a>, timeout: Duration) -> BoxFuture<'a, Vec<Remark>> {
        Box::pin(survey::survey(&self.settings, &self.dress, sample, timeout))
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(live) = self.live.take() else { return };
            live.reports.closed.store(true, Ordering::Release);
            live.client.purge(PurgeConfig::default().queue().inflight());
            let _ = tokio::time::timeout(CLOSE_WAIT, drop_apart(live.client)).await;
        })
    }
}

/// Joining the client's threads blocks, so it is done on a thread of its own, which no runtime waits for.
fn drop_apart(client: Client) -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        drop(client);
        let _ = end.send(());
    });
    ended
}

impl Live {
    async fn build(settings: &Settings, port: &Port) -> Result<Self, Fault> {
        let config = settings.client(&port.consumer);
        let is_partition_said = settings.partition.as_ref().is_some_and(|template| template.constant().is_none());
        let reports = Reports::new(port.news.clone(), settings.topic.constant().is_some(), is_partition_said);
        let context = Context(reports.clone());
        let client = tokio::task::spawn_blocking(move || Client::from_config_and_context(&config, context))
            .await
            .map_err(|error| Fault::unavailable(format!("the Kafka client could not be made: {error}")))?
            .map_err(|error| Settings::cannot_build(&error))?;
        Ok(Self { client, reports })
    }

    fn aloft(&self) -> MutexGuard<'_, Aloft> {
        self.reports.aloft.lock().expect("no panic happens under this lock")
    }

    fn is_spoilt(&self) -> bool {
        self.reports.spoilt.load(Ordering::Acquire)
    }

    /// Resolves when waiting on leads nowhere.
    async fn is_past_help(&self, fault: &mut watch::Receiver<Option<Fault>>) {
        let is_fatal = |fault: &Option<Fault>| fault.as_ref().is_some_and(|fault| fault.class == FaultClass::Fatal);
        loop {
            if fault.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if is_fatal(&fault.borrow_and_update()) || self.is_spoilt() {
                return;
            }
        }
    }

    /// Asks the cluster for the constant topic and partition, or for itself.
    async fn ask(&self, topic: Option<String>, partition: Option<i32>, timeout: Duration) -> Result<(), Fault> {
        let mut fault = self.reports.fault.subscribe();
        let client = self.client.clone();
        let name = topic.clone();
        let _asked = Asked::of(&self.reports);
        let mut asking = tokio::task::spawn_blocking(move || {
            let answer = client.client().fetch_metadata(name.as_deref(), timeout);
            (answer, client.client().fatal_error())
        });
        let answer = tokio::select! {
            answer = &mut asking => Some(answer),
            () = self.is_past_help(&mut fault) => tokio::time::timeout(FAULT_WAIT, asking).await.ok(),
        };
        let (metadata, fatal) = match answer {
            Some(answer) => answer.map_err(|error| Fault::unavailable(format!("Kafka was not asked: {error}")))?,
            None => (Err(KafkaError::MetadataFetch(Code::OperationTimedOut)), None),
        };
        if let Some((_, reason)) = fatal {
            self.reports.spoil(&reason);
            return Err(Fault::unavailable(format!("the Kafka producer must be made anew: {reason}")));
        }
        let metadata = metadata.map_err(|error| {
            // The answer that did not come is explained by what the client reported meanwhile.
            let known = self.reports.fault.borrow().clone();
            known.unwrap_or_else(|| {
                verdict::fault(error.rdkafka_error_code().unwrap_or(Code::Unknown), "no answer from Kafka")
            })
        })?;
        self.reports.clear();
        topic.map_or(Ok(()), |topic| is_there(&metadata, &topic, partition))
    }
}

/// While a probe waits, its client has something to do.
struct Asked<'a>(&'a Reports);

impl<'a> Asked<'a> {
    fn of(reports: &'a Reports) -> Self {
        reports.asked.store(true, Ordering::Release);
        Self(reports)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.asked.store(false, Ordering::Release);
    }
}

fn is_there(metadata: &Metadata, topic: &str, partition: Option<i32>) -> Result<(), Fault> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| found.error().map(Code::from)) {
        Some(None) => {
            let count = found.map_or(0, |found| found.partitions().len());
            let Some(missing) = partition.filter(|partition| *partition as usize >= count) else { return Ok(()) };
            Err(Fault::fatal(format!(
                "topic {topic} has {count} partitions, and `partition` says {missing} (the first is 0): add partitions, or say another"
            )))
        }
        Some(Some(code @ (Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::InvalidTopic))) => {
            Err(verdict::missing_topic(topic, code))
        }
        Some(Some(code)) => Err(verdict::fault(code, &format!("topic {topic}"))),
        None => Err(verdict::missing_topic(topic, Code::UnknownTopic)),
    }
}

/// What sending one event needs.
struct Sender<'a> {
    live: &'a Live,
    settings: &'a Settings,
    dress: &'a Dress,
}

impl Sender<'_> {
    /// Hands one event to the client. `Unavailable` says that it takes no more at present.
    fn send(&self, flight: &Flight, slot: usize, ticket: usize, text: &mut Text) -> Result<(), Outcome> {
        let event = flight.event(slot);
        let Text { topic, key, body, number } = text;
        let source = &self.dress.source;
        let topic = self.settings.topic_of(&event, source, topic).map_err(Outcome::Rejected)?;
        let mut headers = Some(OwnedHeaders::new_with_capacity(4));
        let dressed = self.dress.each(&event, flight.picks[slot], |name, value| {
            let value = match value {
                Value::Text(text) | Value::Json(text) => text,
                Value::Integer(_) => {
                    number.clear();
                    let _ = std::fmt::Write::write_fmt(number, format_args!("{value}"));
                    number.as_str()
                }
            };
            headers = headers.take().map(|headers| headers.insert(Header { key: name, value: Some(value) }));
        });
        dressed.map_err(Outcome::Rejected)?;
        let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, ticket);
        record.headers = headers.filter(|headers| !is_empty(headers));
        record.payload = self.settings.format.body(&event, source, body);
        record.key = self.settings.key_of(&event, source, key).map_err(Outcome::Rejected)?;
        record.partition = self.settings.partition_for(&event, source, number).map_err(Outcome::Rejected)?;
        self.live.client.send(record).map_err(|(error, record)| self.refusal(&error, record.topic, record.partition))
    }

    /// What the client says at once is about this very message, or about the client as a whole.
    fn refusal(&self, error: &KafkaError, topic: &str, partition: Option<i32>) -> Outcome {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        match code {
            Code::MessageSizeTooLarge => Outcome::Rejected(Rejection::new(
                Reason::TooLarge,
                "larger than the client's message.max.bytes admits; raise it in `properties` and at the broker",
            )),
            Code::QueueFull => Outcome::Unavailable(Fault::unavailable("the Kafka client's queue is full")),
            code => {
                if verdict::spoils_producer(code) {
                    self.live.reports.spoil(&error.to_string());
                }
                let is_topic_constant = self.settings.topic.constant().is_some();
                let said = self.settings.partition.as_ref().is_some_and(|template| template.constant().is_none());
                let (partition, was_alone) = (partition.filter(|_| said), true);
                verdict::outcome(code, verdict::Circumstances { topic, is_topic_constant, partition, was_alone })
            }
        }
    }
}

fn is_empty(headers: &OwnedHeaders) -> bool {
    use rdkafka::message::Headers;
    headers.count() == 0
}
