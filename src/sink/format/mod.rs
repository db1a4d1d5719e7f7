//! The wire form of an event: the bytes of its body, and the headers beside it.
//!
//! Invariants:
//! 1. `plain` and `eventsource-py` hand on the payload's bytes unchanged, borrowed from the batch.
//! 2. No header that an event brings along can route a message or pass for one of ours (`headers::tests`).
//! 3. What [`envelope::keep`] wrote, [`envelope::read`] gives back, byte for byte (`envelope::tests`).
//!
//! It does not know any client library: sinks turn [`Value`]s into their own types. Start reading at [`Dress`].

pub mod envelope;
pub mod eventsource_py;
mod headers;

pub use headers::{Dress, HeaderField, Value, Wire};

use std::borrow::Cow;

use crate::event::Event;

/// How an event becomes a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// The payload's bytes as they are.
    #[default]
    Plain,
    /// The payload as it is, with the headers of eventsource-py's own publishers.
    EventsourcePy,
    /// One JSON object with every column.
    Envelope,
}

impl Format {
    pub const ALL: [(&'static str, Format); 3] =
        [("plain", Format::Plain), ("eventsource-py", Format::EventsourcePy), ("envelope", Format::Envelope)];

    pub fn as_str(self) -> &'static str {
        Format::ALL.into_iter().find(|known| known.1 == self).map_or("", |known| known.0)
    }

    pub fn parse(text: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|known| known.0 == text).map(|known| known.1)
    }

    /// The message's body; `None` where the event has no payload. `scratch` is used only by formats that build one.
    pub fn body<'a>(self, event: &Event<'a>, source: &str, scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        match self {
            Format::Plain | Format::EventsourcePy => event.payload,
            Format::Envelope => {
                scratch.clear();
                envelope::write(event, source, scratch);
                Some(scratch)
            }
        }
    }

    /// The same for sinks that hold many bodies at a time.
    pub fn body_owned<'a>(self, event: &Event<'a>, source: &str) -> Option<Cow<'a, [u8]>> {
        match self {
            Format::Plain | Format::EventsourcePy => event.payload.map(Cow::Borrowed),
            Format::Envelope => {
                let mut body = Vec::new();
                envelope::write(event, source, &mut body);
                Some(Cow::Owned(body))
            }
        }
    }

    /// When the event happened, in seconds since 1970, for brokers that have a property for it.
    pub fn seconds(self, event: &Event<'_>) -> Option<u64> {
        let own = || (self == Format::EventsourcePy).then(|| eventsource_py::occurred_micros(event)).flatten();
        let micros = own().or(event.time_micros).or_else(|| event.time.and_then(envelope::micros))?;
        u64::try_from(micros / 1_000_000).ok()
    }
}

/// Whether the bytes look like a JSON object or array: cheap, for content types only.
pub fn looks_like_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}
