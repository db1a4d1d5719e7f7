//! The types of sinks: a line for each room.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::value::Value;
use serde::Deserialize;

use super::format::Format;
use super::{Maker, Port, Sink};
use crate::event::{Destination, Event};
use crate::setting::Checker;
use crate::setting::key::Section;

macro_rules! sinks {
    ($($(#[$gate:meta])* $variant:ident: $room:ident, $types:tt;)*) => {
        /// A resolved `[sinks.X]` section.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "there are a handful of them, made once, at start")]
        pub enum Settings {
            $($(#[$gate])* $variant(super::$room::Settings),)*
            /// A sink of somebody else's making; it has to keep the invariants of this room.
            Custom(Maker),
        }

        impl Settings {
            fn told(&self) -> &dyn Told {
                match self {
                    $($(#[$gate])* Settings::$variant(settings) => settings,)*
                    Settings::Custom(maker) => maker,
                }
            }

            fn told_mut(&mut self) -> &mut dyn Told {
                match self {
                    $($(#[$gate])* Settings::$variant(settings) => settings,)*
                    Settings::Custom(maker) => maker,
                }
            }
        }

        static TYPES: &[&[Type]] = &[$($(#[$gate])* types_of!($room $types)),*];
        const NAMES: &[&[&str]] = &[$(names_of!($types)),*];
    };
}

macro_rules! types_of {
    ($room:ident [$($name:literal: $keys:ident),*]) => {
        &[$(Type {
            name: $name,
            section: super::$room::config::$keys::SECTION,
            read: read::<super::$room::config::$keys>,
        }),*]
    };
}

macro_rules! names_of {
    ([$($name:literal: $keys:ident),*]) => { &[$($name),*] };
}

// What is settled, the room, and in it what `type` may say with the keys of each.
sinks! {
    #[cfg(feature = "kafka")] Kafka: kafka, ["kafka": Kafka];
    #[cfg(feature = "amqp")] Amqp: amqp, ["amqp": Amqp];
    #[cfg(feature = "http")] Http: http, ["http": Http];
    File: file, ["file": File, "stdout": Stdout];
}

/// A value of `sinks.X.type`.
pub struct Type {
    pub name: &'static str,
    /// Its keys.
    pub section: Section,
    pub read: Read,
}

/// Reads a type's keys.
pub type Read = fn(&Value) -> Result<Box<dyn Keys>, Box<figment::Error>>;

/// What a section says, not yet checked.
pub trait Keys: Debug {
    /// Checks it, and notes everything that is wrong.
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<Settings>;
}

/// What a resolved section tells.
pub trait Told {
    /// Makes the sink; connects nothing.
    fn open(&self, port: Port) -> Box<dyn Sink>;

    /// The wire form of its messages.
    fn format(&self) -> Format;

    /// The files that the sink reads by itself, each time it connects: certificates.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The file that the sink writes, if it writes one.
    fn destination_file(&self) -> Option<&Path> {
        None
    }

    /// Where the event is to go, as far as that has a name.
    fn destination(&self, _: &Event<'_>, _source: &str) -> Destination {
        Destination::Unknown
    }

    /// The relay's. What acknowledges at once has nothing to wait for.
    fn set_ack_timeout(&mut self, _: Duration) {}
}

impl Settings {
    /// The settings for one relay's own sink.
    pub fn for_relay(&self, ack_timeout: Duration) -> Self {
        let mut settings = self.clone();
        settings.told_mut().set_ack_timeout(ack_timeout);
        settings
    }

    pub fn format(&self) -> Format {
        self.told().format()
    }

    /// See [`Told::files`].
    pub fn files(&self) -> Vec<PathBuf> {
        self.told().files()
    }

    /// See [`Told::destination`].
    pub fn destination(&self, event: &Event<'_>, source: &str) -> Destination {
        self.told().destination(event, source)
    }

    /// See [`Told::destination_file`].
    pub fn destination_file(&self) -> Option<&Path> {
        self.told().destination_file()
    }
}

impl Told for Maker {
    fn open(&self, port: Port) -> Box<dyn Sink> {
        (self.0)(port)
    }

    fn format(&self) -> Format {
        Format::Plain
    }
}

/// Makes the sink; connects nothing.
pub fn open(settings: &Settings, port: Port) -> Box<dyn Sink> {
    settings.told().open(port)
}

/// Those of this build.
pub fn types() -> impl Iterator<Item = &'static Type> + Clone {
    TYPES.iter().copied().flatten()
}

/// Whether there is such a type, and this build does not have it. Its feature has its name.
pub fn is_left_out(name: &str) -> bool {
    NAMES.iter().copied().flatten().any(|known| *known == name) && !types().any(|known| known.name == name)
}

fn read<K: Keys + Default + for<'de> Deserialize<'de> + 'static>(
    value: &Value,
) -> Result<Box<dyn Keys>, Box<figment::Error>> {
    Ok(Box::new(K::deserialize(value)?))
}
