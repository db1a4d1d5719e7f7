//! What a consumer is made from, and what a new configuration changes: pure, but for the look at certificates.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use serde::Serialize;

use crate::consumer::{Destination, Settings};
use crate::sink;
use crate::source;
use crate::sqlite::place;

/// All that a consumer is made from: while it stays the same, so does the consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    pub settings: Settings,
    pub source: source::Settings,
    /// The files that its sink reads by itself, and a number for what stands in each; `None` = it cannot be read.
    files: Vec<(PathBuf, Option<u64>)>,
}

/// What a reload does, by the consumers' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    pub started: Vec<String>,
    pub stopped: Vec<String>,
    pub restarted: Vec<Restarted>,
    pub unchanged: Vec<String>,
}

/// A consumer that goes on with other settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restarted {
    pub consumer: String,
    /// What is new of it: `relay` (or whatever it is), `source`, `sink`, `projection`, `certificates`.
    pub changed: Vec<&'static str>,
}

impl Blueprint {
    pub fn new(settings: Settings, source: &source::Settings) -> Self {
        let source = settings.placed(source);
        let print = |path: PathBuf| {
            let mut hasher = DefaultHasher::new();
            let read = std::fs::read(&path).ok();
            let print = read.map(|bytes| {
                bytes.hash(&mut hasher);
                hasher.finish()
            });
            (path, print)
        };
        let sinks = [settings.destination.sink(), settings.dead_letter_sink.as_ref().map(|(_, sink)| sink)];
        let files = sinks.into_iter().flatten().flat_map(sink::Settings::files).map(print).collect();
        Self { settings, source, files }
    }

    /// What of it is not as in `before`; empty when all is.
    pub fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let apart_from_the_sink = |settings: &Settings| Settings {
            destination: Destination::Sink {
                name: String::new(),
                settings: sink::Settings::File(sink::file::Settings::default()),
            },
            ..settings.clone()
        };
        let relay = apart_from_the_sink(&self.settings) != apart_from_the_sink(&before.settings);
        let is_relay = self.settings.destination.sink().is_some() || before.settings.destination.sink().is_some();
        let ends = self.settings.destination != before.settings.destination;
        [
            ("relay", relay),
            ("source", self.source != before.source),
            ("sink", ends && is_relay),
            ("projection", ends && !is_relay),
            ("certificates", self.files != before.files),
        ]
        .into_iter()
        .filter_map(|(part, is_new)| is_new.then_some(part))
        .collect()
    }

    /// Whether it may start only when `other` has ended: they share what only one may have.
    pub fn waits_for(&self, other: &Self) -> bool {
        let files = |of: &Self| {
            let files = of.settings.sinks().into_iter().filter_map(|(_, sink)| sink.destination_file());
            files.map(PathBuf::from).collect::<Vec<_>>()
        };
        let same_rows = self.source.is_by_row()
            && other.source.is_by_row()
            && place::is_same(&self.source.path, &other.source.path);
        let same_file = files(self).iter().any(|file| files(other).contains(file));
        self.settings.name == other.settings.name || same_rows || same_file
    }
}
