//! `[sinks.X]`: what all types share. Each type's own rules stand in `kafka`, `amqp` and `http`.

use std::path::PathBuf;
use std::time::Duration;

use super::{Bytes, Checker, Nanos, amqp, http, kafka};
use crate::config::problem::KeyPath;
use crate::config::value::{FilePath, Size, Span};
use crate::config::{file, read};
use crate::sink::Settings;
use crate::sink::file::{self as file_sink, Rotation};
use crate::sink::format::Format;

const ROTATE_BYTES_MIN: Size = Size(1 << 10);
const ROTATE_BYTES_MAX: Size = Size(1 << 40);
const ROTATE_EVERY_MIN: Span = Span(Duration::from_secs(1));
const ROTATE_EVERY_MAX: Span = Span(Duration::from_hours(366 * 24));

pub(super) fn resolve(name: &str, raw: &read::Sink, checker: &mut Checker<'_>) -> Option<Settings> {
    let key = |part: &str| KeyPath::of(["sinks", name, part]);
    match raw {
        read::Sink::Kafka(raw) => kafka::resolve(name, raw, checker),
        read::Sink::Amqp(raw) => amqp::resolve(name, raw, checker),
        read::Sink::Http(raw) => http::resolve(name, raw, checker),
        read::Sink::File(raw) => {
            let path = checker.require(&key("path"), raw.path.as_ref());
            let format = line_format(&key("format"), raw.format.as_ref(), checker);
            let rotation = rotation(name, raw, checker);
            let path = line_file(&key("path"), &path?, checker);
            Some(Settings::File(file_sink::Settings { path: Some(path), format, rotation }))
        }
        read::Sink::Stdout(raw) => {
            let format = line_format(&key("format"), raw.format.as_ref(), checker);
            Some(Settings::File(file_sink::Settings { path: None, format, ..Default::default() }))
        }
        read::Sink::Unreadable => None,
    }
}

/// The wire form of a sink, whatever its type.
pub(super) fn format_of(settings: &Settings) -> Format {
    match settings {
        #[cfg(feature = "kafka")]
        Settings::Kafka(settings) => settings.format,
        #[cfg(feature = "amqp")]
        Settings::Amqp(settings) => settings.format,
        #[cfg(feature = "http")]
        Settings::Http(settings) => settings.format,
        Settings::File(settings) => settings.format,
        Settings::Custom(_) => unreachable!("a config names no such sink"),
    }
}

/// The settings for one relay's own sink.
pub(super) fn for_relay(settings: &Settings, ack_timeout: Duration) -> Settings {
    let mut settings = settings.clone();
    match &mut settings {
        #[cfg(feature = "kafka")]
        Settings::Kafka(settings) => settings.ack_timeout = ack_timeout,
        #[cfg(feature = "amqp")]
        Settings::Amqp(settings) => settings.ack_timeout = ack_timeout,
        #[cfg(feature = "http")]
        Settings::Http(settings) => settings.ack_timeout = ack_timeout,
        // A file acknowledges as soon as it is synced: there is nothing to wait for.
        Settings::File(_) | Settings::Custom(_) => _ = ack_timeout,
    }
    settings
}

fn rotation(name: &str, raw: &file::File, checker: &mut Checker<'_>) -> Rotation {
    let key = |part: &str| KeyPath::of(["sinks", name, part]);
    if let Some(bytes) = raw.rotate_bytes {
        checker.within(&key("rotate_bytes"), Bytes(bytes), Bytes(ROTATE_BYTES_MIN), Bytes(ROTATE_BYTES_MAX));
    }
    if let Some(every) = raw.rotate_every {
        checker.within(&key("rotate_every"), Nanos(every), Nanos(ROTATE_EVERY_MIN), Nanos(ROTATE_EVERY_MAX));
    }
    Rotation { bytes: raw.rotate_bytes.map(|size| size.0), every: raw.rotate_every.map(|span| span.0) }
}

fn line_file(key: &KeyPath, path: &FilePath, checker: &mut Checker<'_>) -> PathBuf {
    if path.0.trim().is_empty() {
        checker.refuse(key.clone(), "the path is empty", "name the file that is to be written");
    }
    checker.path(path)
}

/// A payload may hold a line break, so only the envelope keeps one event on one line.
fn line_format(key: &KeyPath, word: Option<&String>, checker: &mut Checker<'_>) -> Format {
    match word.map(String::as_str) {
        None | Some("envelope") => Format::Envelope,
        Some("plain" | "eventsource-py") => {
            let reason = "a payload as it is may hold a line break, and its line would then be two";
            checker.refuse(key.clone(), reason, "leave `format` out, or write format = \"envelope\"");
            Format::Envelope
        }
        Some(word) => checker.choose(key, word, &[("envelope", Format::Envelope)]),
    }
}

/// Refuses a sink whose client was left out of this build.
#[cfg(not(all(feature = "kafka", feature = "amqp", feature = "http")))]
pub(super) fn refuse_missing_feature(sink: &str, feature: &str, checker: &mut Checker<'_>) {
    checker.refuse(
        KeyPath::of(["sinks", sink, "type"]),
        format!("this build of outboxd cannot do {feature}: it was built without the feature `{feature}`"),
        format!("build it with `cargo build --release --features {feature}`, or use a release"),
    );
}
