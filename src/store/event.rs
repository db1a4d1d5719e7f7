//! What is appended, and what is read.

use std::collections::HashSet;

use super::fault::{AppendError, AppendsError};
use crate::clock;

/// Of an id, a stream, a type, a key.
const NAME_BYTES_MAX: usize = 1_024;
/// Of one call: it holds the write lock while they are written.
pub const EVENTS_MAX: usize = 10_000;
pub const BYTES_MAX: usize = 64 << 20;

/// What an append takes a stream to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Any,
    NoStream,
    StreamExists,
    /// The version of its newest event; 0 is one that is not there.
    Exact(i64),
}

/// An event that is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEvent {
    /// What it is recognised by when it is appended again, and downstream.
    pub id: String,
    pub kind: String,
    /// JSON; stored byte for byte.
    pub data: String,
    /// A JSON object.
    pub metadata: Option<String>,
    /// ISO 8601; `None` is when it is written.
    pub time: Option<String>,
}

/// A row for the outbox, written in the same transaction. Its stream is that of the append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub id: String,
    pub kind: String,
    /// `None`: the stream.
    pub key: Option<String>,
    pub payload: Option<String>,
    /// A JSON object.
    pub headers: Option<String>,
}

/// Events for one stream: all of them or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    pub stream: String,
    pub stream_type: String,
    pub expected: Expected,
    pub events: Vec<NewEvent>,
    pub outbox: Vec<Message>,
}

/// Where the events of an append stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub first_version: i64,
    pub last_version: i64,
    pub first_position: i64,
    pub last_position: i64,
    /// They had been appended before, and nothing was written now.
    pub is_repeat: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEvent {
    pub position: i64,
    pub id: String,
    pub stream: String,
    pub stream_type: String,
    pub version: i64,
    pub kind: String,
    pub data: String,
    pub metadata: Option<String>,
    pub time: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    pub version: i64,
    pub state: String,
    pub reducer_hash: String,
    pub time: String,
}

/// What a stream's state is folded from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub stream: String,
    pub stream_type: String,
    /// Of the newest event.
    pub version: i64,
    pub snapshot: Option<Snapshot>,
    /// Behind the snapshot; without one, all.
    pub events: Vec<StoredEvent>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stream {
    pub stream: String,
    pub stream_type: String,
    pub version: i64,
    pub snapshot_version: Option<i64>,
}

impl NewEvent {
    /// With an id of its own (UUID, version 7).
    pub fn new(kind: impl Into<String>, data: impl Into<String>) -> Self {
        Self { id: new_id(), kind: kind.into(), data: data.into(), metadata: None, time: None }
    }

    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.metadata.as_ref().map_or(0, String::len)
    }
}

/// Grows with time, so that the index over ids is written at its end.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

impl Message {
    /// An event as a message, under the same id.
    pub fn of(event: &NewEvent) -> Self {
        Self {
            id: event.id.clone(),
            kind: event.kind.clone(),
            key: None,
            payload: Some(event.data.clone()),
            headers: event.metadata.clone(),
        }
    }

    fn bytes(&self) -> usize {
        [&self.payload, &self.headers].into_iter().flatten().map(String::len).sum()
    }
}

impl Append {
    pub fn new(
        stream: impl Into<String>,
        stream_type: impl Into<String>,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Self {
        Self { stream: stream.into(), stream_type: stream_type.into(), expected, events, outbox: Vec::new() }
    }
}

/// What can be seen without looking into the file. Whether JSON is valid is seen there, once.
pub(super) fn validate(appends: &[Append], event_bytes_max: usize) -> Result<(), AppendsError> {
    let mut ids = HashSet::new();
    let (mut events, mut bytes) = (0, 0);
    for (index, append) in appends.iter().enumerate() {
        let at = |error| AppendsError { index, error };
        append.validate(event_bytes_max).map_err(at)?;
        events += append.events.len().max(append.outbox.len());
        bytes += append.bytes();
        if events > EVENTS_MAX || bytes > BYTES_MAX {
            return Err(at(AppendError::TooMuch));
        }
        // One alone is its own first.
        if appends.len() > 1 || append.events.len() > 1 {
            let twice = append.events.iter().find(|event| !ids.insert(&event.id));
            if let Some(event) = twice {
                return Err(at(AppendError::IdTwice { id: event.id.clone() }));
            }
        }
    }
    Ok(())
}

impl Append {
    /// What is written of it, into the log and into the outbox.
    pub(super) fn bytes(&self) -> usize {
        let events = self.events.iter().map(NewEvent::bytes);
        events.chain(self.outbox.iter().map(Message::bytes)).sum()
    }

    fn validate(&self, event_bytes_max: usize) -> Result<(), AppendError> {
        name("stream", &self.stream)?;
        name("stream type", &self.stream_type)?;
        if self.events.is_empty() {
            return Err(AppendError::Empty);
        }
        if let Expected::Exact(version) = self.expected
            && version < 0
        {
            return Err(AppendError::Name { field: "expected version", what: format!("is {version}, below 0") });
        }
        for event in &self.events {
            name("id", &event.id)?;
            name("type", &event.kind)?;
            if event.bytes() > event_bytes_max {
                let (id, bytes) = (event.id.clone(), event.bytes());
                return Err(AppendError::TooLarge { id, bytes, most: event_bytes_max });
            }
            if let Some(time) = &event.time
                && clock::parse_micros(time).is_none()
            {
                return Err(AppendError::Name { field: "time", what: format!("is no ISO 8601 time: {time:?}") });
            }
        }
        for message in &self.outbox {
            name("outbox id", &message.id)?;
            name("outbox type", &message.kind)?;
            if message.bytes() > event_bytes_max {
                let (id, bytes) = (message.id.clone(), message.bytes());
                return Err(AppendError::TooLarge { id, bytes, most: event_bytes_max });
            }
        }
        Ok(())
    }
}

fn name(field: &'static str, text: &str) -> Result<(), AppendError> {
    let what = match text {
        "" => "is empty".to_owned(),
        text if text.len() > NAME_BYTES_MAX => format!("has {} bytes, at most {NAME_BYTES_MAX} are taken", text.len()),
        text if text.contains('\0') => "has a NUL character in it".to_owned(),
        _ => return Ok(()),
    };
    Err(AppendError::Name { field, what })
}
