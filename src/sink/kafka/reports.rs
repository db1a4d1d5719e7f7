//! What the client library reports on its polling thread: deliveries one by one, and faults of the whole.
//!
//! A delivery allocates nothing and sends no message: the number that travelled with the record leads to its flight and slot.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::aloft::{Aloft, Seat};
use super::verdict::{self, Circumstances};
use crate::controls::{self, Protection};
use crate::sink::{Fault, FaultClass, News, Outcome};

/// How often the client says how it does, in milliseconds.
pub(super) const STATISTICS_MILLIS: &str = "500";
/// So many times in a row it said that it looks for no broker although it has something to do, and it is given up.
const IDLE_MAX: u32 = 4;

/// One producer's reports. A rebuilt producer has its own.
pub(super) struct Reports {
    news: UnboundedSender<News>,
    is_topic_constant: bool,
    /// Events say their partition themselves.
    is_partition_said: bool,
    /// Messages handed to the client, and messages reported by it.
    pub sent: AtomicU64,
    pub reported: AtomicU64,
    /// Nobody listens any more.
    pub closed: AtomicBool,
    /// This producer is past help.
    pub spoilt: AtomicBool,
    /// A probe has succeeded once.
    pub has_answered: AtomicBool,
    /// A probe waits for its answer.
    pub asked: AtomicBool,
    /// How many times in a row it said that it looks for no broker although it has something to do.
    idle: AtomicU32,
    /// The last fault of the whole, until a probe succeeds.
    pub fault: watch::Sender<Option<Fault>>,
    // Only ever taken when the client reports a fault of the whole, and by a probe.
    told: Mutex<Option<FaultClass>>,
    // Taken by the one polling thread at each report, and by the engine's task once a flight: all but never contended.
    pub aloft: Mutex<Aloft>,
}

impl Reports {
    pub fn new(news: UnboundedSender<News>, is_topic_constant: bool, is_partition_said: bool) -> Arc<Self> {
        Arc::new(Self {
            news,
            is_topic_constant,
            is_partition_said,
            sent: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            spoilt: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            idle: AtomicU32::new(0),
            fault: watch::Sender::new(None),
            told: Mutex::new(None),
            aloft: Mutex::default(),
        })
    }

    pub fn is_nothing_in_flight(&self) -> bool {
        self.sent.load(Ordering::Acquire) == self.reported.load(Ordering::Acquire)
    }

    /// A probe succeeded: what was told before holds no longer.
    pub fn clear(&self) {
        self.has_answered.store(true, Ordering::Release);
        self.fault.send_replace(None);
        *self.told.lock().expect("no panic happens under this lock") = None;
    }

    /// Notes a fault of the whole, and tells the engine when it is not the one told last.
    pub fn trouble(&self, fault: Fault) {
        // A refused connection is followed by "all brokers are down": the first says more.
        let is_milder = fault.class == FaultClass::Unavailable
            && self.fault.borrow().as_ref().is_some_and(|known| known.class == FaultClass::Fatal);
        if is_milder || self.closed.load(Ordering::Acquire) {
            return;
        }
        self.fault.send_replace(Some(fault.clone()));
        let before = self.told.lock().expect("no panic happens under this lock").replace(fault.class);
        if before != Some(fault.class) {
            let _ = self.news.send(News::Trouble(fault));
        }
    }

    pub fn spoil(&self, reason: &str) {
        if !self.spoilt.swap(true, Ordering::AcqRel) {
            self.trouble(Fault::unavailable(format!("the Kafka producer must be made anew: {reason}")));
        }
    }

    /// Looks at what the client says of itself. When a cluster says that it has no brokers, as a single node does for an instant while it shuts
    /// down, librdkafka forgets all that it knew, those of `bootstrap.servers` as well, and never connects again (its 2.12.1).
    fn look_at(&self, statistics: &Statistics<'_>) {
        let is_awaited = self.asked.load(Ordering::Acquire) || !self.is_nothing_in_flight();
        if !is_awaited || statistics.looks_for_a_broker() || controls::is_off(Protection::WatchedClient) {
            self.idle.store(0, Ordering::Release);
        } else if self.idle.fetch_add(1, Ordering::AcqRel) + 1 >= IDLE_MAX {
            self.give_up("it does not look for brokers any more");
        }
    }

    /// Everything in flight is given back; what the client still reports of it is heard no more.
    fn give_up(&self, reason: &str) {
        self.spoil(reason);
        self.closed.store(true, Ordering::Release);
        let fault = Fault::unavailable(format!("the Kafka producer must be made anew: {reason}"));
        self.aloft.lock().expect("no panic happens under this lock").give_back(&Outcome::Unavailable(fault));
    }
}

/// What we read of the client's statistics.
#[derive(Deserialize)]
struct Statistics<'a> {
    #[serde(borrow)]
    brokers: HashMap<Cow<'a, str>, Broker<'a>>,
}

#[derive(Deserialize)]
struct Broker<'a> {
    source: Cow<'a, str>,
    state: Cow<'a, str>,
}

impl Statistics<'_> {
    /// Whether there is a broker that it is connected to, or tries to reach. Between two attempts the state is `TRY_CONNECT`.
    fn looks_for_a_broker(&self) -> bool {
        let mut brokers = self.brokers.values().filter(|broker| matches!(&*broker.source, "configured" | "learned"));
        brokers.any(|broker| !matches!(&*broker.state, "INIT" | "DOWN"))
    }
}

/// The client library's handle on [`Reports`].
pub(super) struct Context(pub Arc<Reports>);

impl ClientContext for Context {
    /// What it has to say the sink says, once: its own lines come with every attempt to connect.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(event = "kafka_client", ?level, fac, detail = message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice(statistics) {
            Ok(statistics) => self.0.look_at(&statistics),
            Err(error) => tracing::error!(%error, "the Kafka client's statistics cannot be read: a bug of outboxd"),
        }
    }

    /// Called twice for each error by rdkafka 0.39; [`Reports::trouble`] tells it once.
    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        match code {
            Code::Fatal => self.0.spoil(reason),
            Code::AllBrokersDown | Code::Resolve => self.0.trouble(Fault::unavailable(format!("Kafka: {reason}"))),
            Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL | Code::UnsupportedSASLMechanism => {
                self.0.trouble(Fault::fatal(format!("Kafka: {reason}")));
            }
            Code::BrokerTransportFailure if is_untrusted(reason) => {
                self.0.trouble(Fault::fatal(format!("Kafka: {reason}")));
            }
            // One broker of several: the client goes on with the others, and says so when none is left.
            code => tracing::debug!(%code, reason, "Kafka client"),
        }
    }
}

/// A broker that refuses our certificate says so after the handshake: the client knows only that the connection ended, and
/// repeats the alert's words.
fn is_untrusted(reason: &str) -> bool {
    reason.contains("SSL routines") && (reason.contains("certificate") || reason.contains("alert"))
}

impl ProducerContext for Context {
    /// The message's number in [`Aloft`].
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let reports = &*self.0;
        let reported = reports.reported.fetch_add(1, Ordering::AcqRel) + 1;
        if reports.closed.load(Ordering::Acquire) {
            return;
        }
        let aloft = reports.aloft.lock().expect("no panic happens under this lock");
        let Some(Seat { flight, slot, is_alone }) = aloft.seat(number) else { return };
        let outcome = match result {
            Ok(_) => Outcome::Delivered,
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
                if verdict::spoils_producer(code) {
                    reports.spoil(&error.to_string());
                }
                let was_alone = is_alone && reports.sent.load(Ordering::Acquire) == reported;
                let is_topic_constant = reports.is_topic_constant;
                let partition = reports.is_partition_said.then(|| message.partition());
                verdict::outcome(
                    code,
                    Circumstances { topic: message.topic(), is_topic_constant, partition, was_alone },
                )
            }
        };
        flight.fill(slot, outcome);
    }
}
