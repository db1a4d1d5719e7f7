//! Consumers: each carries one source to one end.

pub mod control;
pub mod copies;
pub mod courier;
pub mod delivery;
pub mod engine;
pub mod fleet;
pub mod holds;
pub mod order;
pub mod replay;
pub mod session;
pub mod status;
pub mod verdict;
pub mod window;

use std::time::Duration;

/// A resolved `[relays.X]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: String,
    /// The source's name.
    pub source: String,
    /// The sink's name.
    pub sink_name: String,
    pub sink: crate::sink::Settings,
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
