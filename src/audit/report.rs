//! What an audit found: figures, examples, and what could not be known.

use serde::Serialize;

use super::EXAMPLES_MAX;
use super::judge::Verdict;
use crate::consumer;
use crate::event::Event;

/// An event by its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    pub id: String,
    /// Of events that the source has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Example {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let key = event.key.map(|key| String::from_utf8_lossy(key).into_owned());
        Self { id: event.id.into(), position: Some(event.position.0), key }
    }
}

/// How many, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    pub count: u64,
    pub examples: Vec<Example>,
}

impl Found {
    pub(super) fn add(&mut self, id: &str) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX && !self.examples.iter().any(|example| example.id == id) {
            self.examples.push(Example { id: id.into(), position: None, key: None });
        }
    }
}

/// Counts are events where they are not called messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub consumer: String,
    pub source: String,
    /// What was read back.
    pub sink: String,
    /// Nothing is lost, phantom, reordered or altered, as far as can be known.
    pub clean: bool,

    /// Acknowledged, by what the relay has recorded: these have to be there.
    pub settled: u64,
    /// Dead letters, and what waits behind them.
    pub held: u64,
    pub discarded: u64,
    /// A moved position left them out.
    pub skipped: u64,
    /// Of a type that the relay does not carry.
    pub not_asked_for: u64,
    pub not_settled: u64,

    pub messages: u64,
    pub arrived: u64,
    /// Without an id of ours.
    pub foreign_messages: u64,

    /// Settled, and not there.
    pub lost: Found,
    /// There, and never in the source.
    pub phantom: Found,
    /// Their last copy stands behind that of a later event of their key, or before that of an earlier one.
    pub reordered: Found,
    /// Messages with other bytes than the relay sends for that event.
    pub altered: Found,

    /// Messages more than events: at-least-once. No fault.
    pub duplicate_messages: u64,
    /// Came before an earlier one of their key that did not get through at once, and again behind it. No fault.
    pub overtaken: u64,
    /// Their events stand on several partitions, between which there is no order.
    pub scattered_keys: u64,
    /// Settled and not there, of which it cannot be known whether they ever were.
    pub cannot_tell: u64,
    /// Messages that the source does not know, of which it cannot be known whether it ever did.
    pub unknown: Found,
    /// What limits the verdict.
    pub notes: Vec<String>,
}

impl Report {
    pub(super) fn new(relay: &consumer::Settings, sink: String) -> Self {
        Self { consumer: relay.name.clone(), source: relay.source.clone(), sink, ..Self::default() }
    }

    pub(super) fn cannot_tell(&mut self, events: u64, why: &str) {
        if events > 0 {
            self.cannot_tell += events;
            self.notes.push(format!("{events} events are missing, of which nothing can be said: {why}"));
        }
    }

    /// Are messages that the source does not know phantoms? `strangers` are their ids.
    pub(super) fn strangers(&mut self, verdict: &Verdict, strangers: u64, rows_gone: Option<u64>, is_shared: bool) {
        if verdict.unknown == 0 {
            return;
        }
        let why = match (is_shared, rows_gone) {
            (true, _) => "others send to the same place".to_owned(),
            (false, None) => "rows of a table read by row may be deleted".to_owned(),
            (false, Some(gone)) if gone >= strangers => format!("{gone} rows are no longer in the source"),
            (false, Some(gone)) => {
                self.phantom = std::mem::take(&mut self.unknown);
                self.phantom.count = strangers - gone;
                if gone > 0 {
                    self.notes.push(format!(
                        "{gone} more that the source does not know may be of its {gone} rows that are gone"
                    ));
                }
                return;
            }
        };
        self.unknown.count = verdict.unknown;
        self.notes.push(format!("{} messages are of events that the source does not know: {why}", verdict.unknown));
    }

    pub(super) fn conclude(&mut self, verdict: &Verdict, lost: u64) {
        self.messages = verdict.arrivals + self.foreign_messages;
        self.arrived = verdict.arrived;
        self.settled = verdict.due;
        let accounted_for = self.held + self.discarded + self.not_asked_for + self.skipped;
        self.not_settled = verdict.open.saturating_sub(accounted_for);
        self.lost.count = lost;
        self.reordered.count = verdict.out_of_order_in_the_end.len() as u64;
        self.duplicate_messages = verdict.duplicates;
        self.overtaken = (verdict.out_of_order.len() as u64).saturating_sub(self.reordered.count);
        self.scattered_keys = verdict.scattered.len() as u64;
        if self.foreign_messages > 0 {
            self.notes
                .push(format!("{} messages bear no id of outboxd: they are somebody else's", self.foreign_messages));
        }
        if self.scattered_keys > 0 {
            let keys = self.scattered_keys;
            self.notes.push(format!(
                "{keys} keys stand on several partitions (were partitions added?): their order was not judged"
            ));
        }
        let faults = [&self.lost, &self.phantom, &self.reordered, &self.altered];
        self.clean = faults.iter().all(|found| found.count == 0);
    }
}
