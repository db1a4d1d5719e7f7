//! What a consumer says of itself: one value, published in a `watch`; metrics follow from it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Settings;
use crate::clock;

/// The state a consumer is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    /// For a file, a table or a lock that is not there yet.
    Waiting,
    Running,
    /// The sink is away; nothing is lost, nothing is counted.
    Unavailable,
    /// A person has to act (or the sink has to heal, which is probed).
    Halted,
    Paused,
    Stopped,
}

impl State {
    pub const ALL: [&'static str; 7] = ["starting", "waiting", "running", "unavailable", "halted", "paused", "stopped"];

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize]
    }
}

/// A consumer as seen from outside. Counts are events.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    pub consumer: String,
    pub source: String,
    /// `relay` or `projection`.
    pub kind: &'static str,
    /// The sink's name, or the read model's file.
    pub sink: String,
    pub state: State,
    /// Why it is in that state, with the remedy where there is one.
    pub detail: String,
    /// It is halted because its position is not one of the database that is there.
    pub position_is_ahead: bool,
    /// What is wrong with its source and does not keep it from running, each with its remedy.
    pub warnings: Vec<String>,
    /// How its transactions fare in the application's file, where that is worth a word.
    pub strain: Option<String>,
    pub position: i64,
    pub head: Option<i64>,
    /// An upper bound where it comes from positions.
    pub backlog: u64,
    pub in_flight: u64,
    pub delivered: u64,
    pub redelivered: u64,
    /// By our own check: always 0.
    pub order_violations: u64,
    pub held_keys: u64,
    pub retrying: u64,
    pub dead: u64,
    pub sink_up: bool,
    /// All that there is to be read is settled.
    pub is_at_end: bool,
    pub blocked: Option<String>,
    /// Microseconds since 1970 UTC.
    pub oldest_unsettled_micros: Option<i64>,
    pub held_since_micros: Option<i64>,
    /// The newest replay.
    pub replay: Option<Replaying>,
    /// Copies of dead letters; `None` without a dead-letter sink.
    pub copies: Option<Copies>,
    /// Of a projection: events of types that nothing handles, in this run.
    pub unhandled: BTreeMap<String, u64>,
    /// When the loop last turned, by the steady clock.
    pub beat_micros: i64,
}

/// A replay as seen from outside. Places are positions, or rowids of a table read by row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Replaying {
    pub number: i64,
    /// `running`, `stopped`, `cancelled` or `done`.
    pub state: String,
    pub sent: u64,
    /// Events that fitted and are held, or were given up.
    pub left_out: u64,
    pub first: i64,
    pub place: i64,
    pub upto: i64,
    /// Why it was stopped, or what it waits for.
    pub detail: String,
    pub updated_at: String,
}

/// How the copies of dead letters do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Copies {
    pub waiting: u64,
    /// In this run.
    pub copied: u64,
    /// What is in the way.
    pub detail: String,
}

impl Status {
    /// What is not as it should be, and keeps nothing from running.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter().chain(&self.strain)
    }

    pub fn new(settings: &Settings) -> Self {
        Self {
            consumer: settings.name.clone(),
            source: settings.source.clone(),
            kind: settings.destination.kind(),
            sink: settings.destination.name(),
            state: State::Starting,
            detail: String::new(),
            position_is_ahead: false,
            warnings: Vec::new(),
            strain: None,
            position: 0,
            head: None,
            backlog: 0,
            in_flight: 0,
            delivered: 0,
            redelivered: 0,
            order_violations: 0,
            held_keys: 0,
            retrying: 0,
            dead: 0,
            sink_up: false,
            is_at_end: false,
            blocked: None,
            oldest_unsettled_micros: None,
            held_since_micros: None,
            replay: None,
            copies: None,
            unhandled: BTreeMap::new(),
            beat_micros: clock::steady_micros(),
        }
    }

    /// Seconds since the oldest unsettled event; computed when asked, so that a loop that has stopped does not look caught up.
    pub fn lag_seconds(&self) -> f64 {
        age_seconds(self.oldest_unsettled_micros)
    }

    pub fn held_oldest_seconds(&self) -> f64 {
        age_seconds(self.held_since_micros)
    }
}

fn age_seconds(micros: Option<i64>) -> f64 {
    micros.map_or(0.0, |micros| (clock::now_micros() - micros).max(0) as f64 / 1e6)
}
