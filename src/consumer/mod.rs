//! Consumers: each carries one source to one end.

pub mod control;
pub mod copies;
pub mod courier;
pub mod delivery;
pub mod engine;
pub mod fleet;
pub mod holds;
pub mod order;
pub mod rebuild;
pub mod replay;
pub mod session;
pub mod status;
pub mod verdict;
pub mod window;

use std::sync::Arc;
use std::time::Duration;

use crate::event::Position;
use crate::projection::Definition;
use crate::source::mapping::Mapping;
use crate::source::{self, StatePlace};
use crate::sqlite::place;

/// A resolved `[relays.X]` or `[projections.X]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: String,
    /// The source's name.
    pub source: String,
    pub destination: Destination,
    /// Patterns with `*`; empty = every type.
    pub types: Vec<String>,
    /// What to do where events stand already and there is no checkpoint; `None` = not said.
    pub start: Option<Start>,
    pub on_reject: OnReject,
    /// Gets a copy of each dead letter: the sink's name and settings.
    pub dead_letter_sink: Option<(String, crate::sink::Settings)>,
    /// Each dead letter is written into the application's own table as well.
    pub dead_letter_row: bool,
    pub bounds: Bounds,
    /// Starts paused until `outboxd resume`.
    pub paused: bool,
    /// Goes no further than this.
    pub until: Option<Position>,
}

/// Where a consumer ends.
#[expect(clippy::large_enum_variant, reason = "there is one a consumer, and it is passed on by reference")]
#[derive(Clone, Debug, PartialEq)]
pub enum Destination {
    Sink {
        /// The section's.
        name: String,
        settings: crate::sink::Settings,
    },
    Tables(Arc<Definition>),
}

impl Destination {
    pub fn kind(&self) -> &'static str {
        match self {
            Destination::Sink { .. } => "relay",
            Destination::Tables(_) => "projection",
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Destination::Sink { name, .. } => name.clone(),
            Destination::Tables(definition) => definition.path.display().to_string(),
        }
    }

    pub fn sink(&self) -> Option<&crate::sink::Settings> {
        match self {
            Destination::Sink { settings, .. } => Some(settings),
            Destination::Tables(_) => None,
        }
    }

    pub fn tables(&self) -> Option<&Arc<Definition>> {
        match self {
            Destination::Sink { .. } => None,
            Destination::Tables(definition) => Some(definition),
        }
    }
}

impl Settings {
    /// Its own sink, and the one that gets copies of its dead letters, by name.
    pub fn sinks(&self) -> Vec<(&str, &crate::sink::Settings)> {
        let own = match &self.destination {
            Destination::Sink { name, settings } => Some((name.as_str(), settings)),
            Destination::Tables(_) => None,
        };
        let copies = self.dead_letter_sink.as_ref().map(|(name, settings)| (name.as_str(), settings));
        own.into_iter().chain(copies).collect()
    }

    /// The source, with the place of this consumer's state: a projection's stands where its tables are.
    pub fn placed(&self, source: &source::Settings) -> source::Settings {
        let state = match &self.destination {
            Destination::Sink { .. } => return source.clone(),
            Destination::Tables(definition) if place::is_same(&definition.path, &source.path) => StatePlace::Inside,
            Destination::Tables(definition) => StatePlace::ReadModel(definition.path.clone()),
        };
        source::Settings { state, ..source.clone() }
    }

    /// What a checkpoint is tied to: under another one it may mean something else.
    pub fn definition(&self, mapping: &Mapping) -> String {
        match &self.destination {
            Destination::Sink { .. } => mapping.definition.clone(),
            Destination::Tables(definition) => format!("{}; projection {}", mapping.definition, definition.hash()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    First,
    Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReject {
    Hold,
    Skip,
    Halt,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub attempts_max: u32,
    pub ack_timeout: Duration,
    /// `None` = bounded by the window alone.
    pub in_flight_per_key: Option<u32>,
    pub window_events: usize,
    pub window_bytes: usize,
    pub batch_events: usize,
    pub batch_bytes: usize,
    pub event_bytes_max: usize,
    /// How long after its first refusal an event is tried again; four times as long after each further one.
    pub retry_min: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            ack_timeout: Duration::from_secs(30),
            in_flight_per_key: None,
            window_events: 10_000,
            window_bytes: 32 << 20,
            batch_events: 1_000,
            batch_bytes: 4 << 20,
            event_bytes_max: 16 << 20,
            retry_min: Duration::from_secs(1),
        }
    }
}
