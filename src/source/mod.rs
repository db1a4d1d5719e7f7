//! Sources: ordered sets of events that an application owns in a SQLite file.

use std::path::PathBuf;

/// A resolved `[sources.X]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: String,
    pub path: PathBuf,
    pub preset: Preset,
    pub read: Read,
    pub durability: Durability,
    pub state: StatePlace,
}

/// A known set of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    Outboxd,
    EventsourcePy,
}

impl Preset {
    pub const ALL: [(&'static str, Preset); 2] =
        [("outboxd", Preset::Outboxd), ("eventsource-py", Preset::EventsourcePy)];
}

/// Which of the preset's two tables is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Outbox,
    Events,
}

/// Whether what was read is made durable before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Strict,
    Fast,
}

/// Where checkpoints and held events stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// `<file>-outboxd.db`.
    Beside,
    /// In the application's own file.
    Inside,
    At(PathBuf),
}
