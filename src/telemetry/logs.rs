//! Logs: one line an event, with a stable `event` name; logfmt by default, JSON on request. Never a payload, never a secret.
//!
//! An error that repeats is counted, not repeated: [`Repeats`] lets the first of its kind through, then one a minute with the count.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, reload};

use super::visible::{visible, visible_json};
use crate::clock;

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Logfmt,
    Json,
}

/// Sets what is logged while it is being logged.
pub struct Level(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Level {
    pub fn set(&self, level: &str) -> Result<(), String> {
        (self.0)(filter(level)?).map_err(|error| error.to_string())
    }
}

/// Starts logging to stderr. `level` is a level or a list of `target=level`.
pub fn install(format: Format, level: &str) -> Result<Level, String> {
    // A log that cannot be written (a full disk, a closed pipe) must stop nobody: the library's word about it goes to stderr too,
    // where it would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    let (level, begun) = match format {
        Format::Logfmt => {
            let builder = builder.event_format(Logfmt).with_filter_reloading();
            let handle = builder.reload_handle();
            (Level(Box::new(move |filter| handle.reload(filter))), builder.try_init())
        }
        Format::Json => {
            let builder =
                builder.json().flatten_event(true).with_target(false).with_writer(|| JsonLines).with_filter_reloading();
            let handle = builder.reload_handle();
            (Level(Box::new(move |filter| handle.reload(filter))), builder.try_init())
        }
    };
    begun.map(|()| level).map_err(|error| error.to_string())
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    // lapin prints whole payloads of returned messages, and each refusal anew: what it has to say, the sink says, once.
    let quiet = "lapin=off".parse().expect("a constant directive");
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log level {level:?}: {error}"))?;
    Ok(filter.add_directive(quiet))
}

/// Lines of JSON in which controls and marks of direction are escaped too: somebody will look at them in a terminal.
struct JsonLines;

impl Write for JsonLines {
    /// Takes a whole record.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(visible_json(&String::from_utf8_lossy(record)).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = event.metadata().level().as_str().to_lowercase();
        write!(writer, "time={} level={level}", clock::iso(clock::now_micros()))?;
        let mut pairs = Pairs { writer: &mut writer, result: Ok(()) };
        event.record(&mut pairs);
        pairs.result?;
        writeln!(writer)
    }
}

struct Pairs<'a, 'w> {
    writer: &'a mut Writer<'w>,
    result: fmt::Result,
}

impl Pairs<'_, '_> {
    fn pair(&mut self, field: &Field, value: &str) {
        if self.result.is_ok() {
            self.result = write_pair(self.writer, field.name(), value);
        }
    }
}

impl Visit for Pairs<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.pair(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.pair(field, &format!("{value:?}"));
    }
}

/// Writes ` name=value`, quoted where needed; control characters are escaped, so that one record stays one line.
fn write_pair(out: &mut impl fmt::Write, name: &str, value: &str) -> fmt::Result {
    let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\');
    if plain {
        write!(out, " {name}={value}")
    } else {
        write!(out, " {name}=\"{}\"", visible(&value.escape_debug().to_string()))
    }
}

/// Lets a repeated message through now and then.
#[derive(Debug, Default)]
pub struct Repeats {
    seen: HashMap<String, (Instant, u64)>,
}

impl Repeats {
    const EVERY: Duration = Duration::from_secs(60);
    const KINDS_MAX: usize = 256;

    /// `Some(n)`: say it now; `n` were swallowed since it was said last.
    pub fn admit(&mut self, kind: &str) -> Option<u64> {
        let now = Instant::now();
        if let Some((last, swallowed)) = self.seen.get_mut(kind) {
            if now.duration_since(*last) < Self::EVERY {
                *swallowed += 1;
                return None;
            }
            *last = now;
            return Some(std::mem::take(swallowed));
        }
        if self.seen.len() >= Self::KINDS_MAX {
            self.seen.clear();
        }
        self.seen.insert(kind.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_one_line() {
        let mut out = String::new();
        write_pair(&mut out, "detail", "a \"b\"\n\u{1b}[31m").unwrap();
        assert_eq!(out, r#" detail="a \"b\"\n\u{1b}[31m""#);
        out.clear();
        write_pair(&mut out, "event", "sink_up").unwrap();
        assert_eq!(out, " event=sink_up");
    }

    #[test]
    fn what_repeats_is_counted() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.admit("a"), Some(0));
        assert_eq!(repeats.admit("a"), None);
        assert_eq!(repeats.admit("b"), Some(0));
    }
}
