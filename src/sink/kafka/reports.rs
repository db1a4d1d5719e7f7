//! What the client library reports on its polling thread: deliveries one by one, and faults of the whole.
//!
//! A delivery allocates nothing and sends no message: the number that travelled with the record leads to its flight and slot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::aloft::{Aloft, Seat};
use super::verdict::{self, Circumstances};
use crate::sink::{Fault, FaultClass, News, Outcome};

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
}

/// The client library's handle on [`Reports`].
pub(super) struct Context(pub Arc<Reports>);

impl ClientContext for Context {
    /// What it has to say the sink says, once: its own lines come with every attempt to connect.
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(event = "kafka_client", ?level, fac, detail = message);
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
