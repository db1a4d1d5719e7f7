//! Events as they travel from a source to a sink: many rows in one allocation, read through borrowed views.
//!
//! A [`Batch`] is filled once by a reader and never changed. Its columns lie one behind the other in one buffer, so that a
//! batch of a thousand events costs a handful of allocations and a sink borrows what it sends.
//!
//! This room imports nothing of ours. What it does not do: decide anything about an event.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde_json::value::RawValue;

/// An event's place in its source. Opaque outside `source/`: larger is later, nothing else may be read from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an application's own table names a row: the value of its declared unique column.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RowKey {
    Integer(i64),
    /// SQLite takes any bytes for text.
    Text(Box<[u8]>),
    Blob(Box<[u8]>),
}

impl RowKey {
    /// `None`: such a value names no row.
    pub fn of(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Integer(n) => Some(RowKey::Integer(n)),
            ValueRef::Text(text) => Some(RowKey::Text(text.into())),
            ValueRef::Blob(bytes) => Some(RowKey::Blob(bytes.into())),
            ValueRef::Null | ValueRef::Real(_) => None,
        }
    }
}

impl ToSql for RowKey {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            RowKey::Integer(n) => ValueRef::Integer(*n),
            RowKey::Text(text) => ValueRef::Text(text),
            RowKey::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowKey::Integer(n) => n.fmt(f),
            RowKey::Text(bytes) | RowKey::Blob(bytes) => String::from_utf8_lossy(bytes).fmt(f),
        }
    }
}

/// Why one event cannot be delivered: a closed set that metrics and dead letters name, and a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    pub reason: Reason,
    pub detail: String,
}

impl Rejection {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The reasons for which an event is rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Larger than the sink, or `event_bytes_max`, admits.
    TooLarge,
    /// The broker found no queue, topic or exchange for it.
    Unroutable,
    /// A column or the payload is not what the mapping says.
    Undecodable,
    /// The sink looked at it and said no.
    Refused,
    /// The row was deleted from the source while the event waited behind another one.
    SourceRowGone,
    /// A statement of a projection failed on it.
    ProjectionError,
}

impl Reason {
    pub const ALL: [Reason; 6] = [
        Reason::TooLarge,
        Reason::Unroutable,
        Reason::Undecodable,
        Reason::Refused,
        Reason::SourceRowGone,
        Reason::ProjectionError,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::TooLarge => "too_large",
            Reason::Unroutable => "unroutable",
            Reason::Undecodable => "undecodable",
            Reason::Refused => "refused",
            Reason::SourceRowGone => "source_row_gone",
            Reason::ProjectionError => "projection_error",
        }
    }

    pub fn parse(text: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// Where an event was to go, as its sink calls that.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Destination {
    /// The sink has no name for it, or the event does not tell.
    #[default]
    Unknown,
    Topic(String),
    Exchange {
        exchange: String,
        routing_key: String,
    },
}

/// How an event became a dead letter: what goes beside a copy of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    pub consumer: String,
    pub reason: String,
    pub detail: String,
    pub attempts: u32,
    /// ISO 8601, UTC.
    pub at: String,
    /// Where it could not be delivered.
    pub destination: Destination,
}

/// One event's columns, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub position: Position,
    /// The event's stable id, which every message carries.
    pub id: &'a str,
    /// What order is kept by; an event without one is a key of its own.
    pub key: Option<&'a [u8]>,
    pub stream_id: Option<&'a str>,
    pub stream_type: Option<&'a str>,
    pub version: Option<i64>,
    pub kind: &'a str,
    pub payload: Option<&'a [u8]>,
    /// A JSON object in text, as the source holds it.
    pub headers: Option<&'a str>,
    /// As the source holds it.
    pub time: Option<&'a str>,
    /// Microseconds since 1970 UTC, when `time` could be read.
    pub time_micros: Option<i64>,
    /// Only of a copy for the dead-letter sink.
    pub death: Option<&'a Death>,
}

impl<'a> Event<'a> {
    /// The key under which the event is held: its own key, or one that no other event has.
    pub fn hold_key(&self) -> Cow<'a, [u8]> {
        hold_key(self.key, self.id.as_bytes(), self.position)
    }

    /// One of the event's own headers, when `headers` is a JSON object that has it as a string or a number.
    pub fn header(&self, name: &str) -> Option<String> {
        let map: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(self.headers?).ok()?;
        let value = map.get(name)?.get();
        match value.as_bytes().first()? {
            b'"' => serde_json::from_str(value).ok(),
            b'-' | b'0'..=b'9' => Some(serde_json::from_str::<serde_json::Number>(value).ok()?.to_string()),
            _ => None,
        }
    }
}

/// What order is kept by: the key; an event without one is a key of its own, by its position where it has no id either.
pub fn hold_key<'a>(key: Option<&'a [u8]>, id: &[u8], position: Position) -> Cow<'a, [u8]> {
    match key {
        Some(key) => Cow::Borrowed(key),
        None if id.is_empty() => Cow::Owned(format!("\0at:{position}").into_bytes()),
        None => Cow::Owned([b"\0id:", id].concat()),
    }
}

/// What a reader hands to [`BatchBuilder::push`]: the same columns, before they are copied into the batch.
pub type Columns<'a> = Event<'a>;

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const ABSENT: Span = Span { start: u32::MAX, len: 0 };

    fn of(start: usize, len: usize) -> Span {
        assert!(start + len < u32::MAX as usize, "a batch is bounded far below 4 GiB by its reader");
        Span { start: start as u32, len: len as u32 }
    }

    fn range(self) -> Option<Range<usize>> {
        (self.start != u32::MAX).then(|| self.start as usize..(self.start + self.len) as usize)
    }
}

#[derive(Debug)]
struct Row {
    position: Position,
    id: Span,
    key: Span,
    stream_id: Span,
    stream_type: Span,
    kind: Span,
    payload: Span,
    headers: Span,
    time: Span,
    version: Option<i64>,
    time_micros: Option<i64>,
}

/// A bounded run of events in the source's order.
#[derive(Debug, Default)]
pub struct Batch {
    /// Columns that are text: looked at once, when they are pushed.
    text: String,
    /// Keys and payloads.
    bytes: Vec<u8>,
    rows: Vec<Row>,
    /// For sources read by row: one key a row; empty otherwise.
    row_keys: Vec<RowKey>,
    /// Events that cannot be sent as they are, in ascending order of index.
    defects: Vec<(u32, Rejection)>,
    /// Events that may have been sent before, in ascending order of index.
    again: Vec<u32>,
    /// For copies of dead letters: one an event; empty otherwise.
    deaths: Vec<Death>,
    /// The position up to which the source was read; at or behind the last event (filtered events lie in between).
    pub end: Position,
    /// The id of the event at `end`; empty for sources read by row.
    pub end_id: String,
    /// When the batch was read, microseconds since 1970 UTC.
    pub read_micros: i64,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The bytes that the batch holds in memory for its columns.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.bytes.len()
    }

    pub fn event(&self, index: usize) -> Event<'_> {
        let row = &self.rows[index];
        Event {
            position: row.position,
            id: self.text(row.id).unwrap_or_default(),
            key: self.slice(row.key),
            stream_id: self.text(row.stream_id),
            stream_type: self.text(row.stream_type),
            version: row.version,
            kind: self.text(row.kind).unwrap_or_default(),
            payload: self.slice(row.payload),
            headers: self.text(row.headers),
            time: self.text(row.time),
            time_micros: row.time_micros,
            death: self.deaths.get(index),
        }
    }

    pub fn events(&self) -> impl Iterator<Item = Event<'_>> {
        (0..self.len()).map(|index| self.event(index))
    }

    pub fn position(&self, index: usize) -> Position {
        self.rows[index].position
    }

    pub fn row_key(&self, index: usize) -> Option<&RowKey> {
        self.row_keys.get(index)
    }

    /// The columns' bytes of one event, for the in-flight bounds.
    pub fn event_bytes(&self, index: usize) -> usize {
        let row = &self.rows[index];
        (row.id.len + row.key.len + row.payload.len + row.headers.len + row.kind.len) as usize
    }

    /// Why the event cannot be sent at all, if it cannot.
    pub fn defect(&self, index: usize) -> Option<&Rejection> {
        let at = self.defects.binary_search_by_key(&(index as u32), |d| d.0).ok()?;
        Some(&self.defects[at].1)
    }

    /// Gives the events other keys than their source says.
    pub fn rekey(&mut self, key: impl Fn(&Event<'_>) -> Option<Vec<u8>>) {
        for index in 0..self.len() {
            let key = key(&self.event(index));
            self.rows[index].key = bytes_span(&mut self.bytes, key.as_deref());
        }
    }

    /// Leaves out what stands behind a position.
    pub fn truncate(&mut self, until: Position) {
        if self.end <= until {
            return;
        }
        let left = self.rows.partition_point(|row| row.position <= until);
        self.rows.truncate(left);
        self.defects.retain(|(index, _)| (*index as usize) < left);
        self.end = until;
        self.end_id = match left.checked_sub(1).map(|last| self.event(last)) {
            Some(last) if last.position == until => last.id.to_owned(),
            _ => String::new(),
        };
    }

    /// Notes which events may have been sent before.
    pub fn note_again(&mut self, may_be: impl Fn(&Event<'_>) -> bool) {
        self.again = (0..self.len()).filter(|index| may_be(&self.event(*index))).map(|index| index as u32).collect();
    }

    pub fn is_again(&self, index: usize) -> bool {
        !self.again.is_empty() && self.again.binary_search(&(index as u32)).is_ok()
    }

    pub fn has_defects(&self) -> bool {
        !self.defects.is_empty()
    }

    fn slice(&self, span: Span) -> Option<&[u8]> {
        span.range().map(|range| &self.bytes[range])
    }

    fn text(&self, span: Span) -> Option<&str> {
        span.range().map(|range| &self.text[range])
    }
}

/// Fills a [`Batch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    batch: Batch,
}

impl BatchBuilder {
    pub fn with_capacity(events: usize, bytes: usize) -> Self {
        let (text, bytes) = (String::with_capacity(bytes / 2), Vec::with_capacity(bytes));
        Self { batch: Batch { text, bytes, rows: Vec::with_capacity(events), ..Batch::default() } }
    }

    pub fn len(&self) -> usize {
        self.batch.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.batch.rows.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Where the last event stands, and its id.
    pub fn end(&self) -> Option<(Position, String)> {
        let event = self.batch.event(self.len().checked_sub(1)?);
        Some((event.position, event.id.to_owned()))
    }

    pub fn push(&mut self, event: Columns<'_>) {
        let row = Row {
            position: event.position,
            id: self.text_span(Some(event.id)),
            key: bytes_span(&mut self.batch.bytes, event.key),
            stream_id: self.text_span(event.stream_id),
            stream_type: self.text_span(event.stream_type),
            kind: self.text_span(Some(event.kind)),
            payload: bytes_span(&mut self.batch.bytes, event.payload),
            headers: self.text_span(event.headers),
            time: self.text_span(event.time),
            version: event.version,
            time_micros: event.time_micros,
        };
        self.batch.rows.push(row);
    }

    /// Says how the application's table names the row pushed last (sources read by row push one key a row).
    pub fn row_key(&mut self, key: RowKey) {
        self.batch.row_keys.push(key);
    }

    /// Says how the event pushed last became a dead letter (a batch of copies says it of each).
    pub fn death(&mut self, death: Death) {
        self.batch.deaths.push(death);
    }

    /// Says that the row pushed last cannot be sent.
    pub fn defect(&mut self, rejection: Rejection) {
        let index = self.batch.rows.len() as u32 - 1;
        self.batch.defects.push((index, rejection));
    }

    pub fn finish(mut self, end: Position, read_micros: i64) -> Batch {
        self.batch.end = end;
        self.batch.read_micros = read_micros;
        self.batch
    }

    fn text_span(&mut self, text: Option<&str>) -> Span {
        let Some(text) = text else { return Span::ABSENT };
        let span = Span::of(self.batch.text.len(), text.len());
        self.batch.text.push_str(text);
        span
    }
}

fn bytes_span(arena: &mut Vec<u8>, bytes: Option<&[u8]>) -> Span {
    let Some(bytes) = bytes else { return Span::ABSENT };
    let span = Span::of(arena.len(), bytes.len());
    arena.extend_from_slice(bytes);
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns<'a>(id: &'a str, key: Option<&'a [u8]>) -> Columns<'a> {
        Event {
            position: Position(7),
            id,
            key,
            stream_id: None,
            stream_type: Some("Order"),
            version: Some(3),
            kind: "OrderPlaced",
            payload: Some(b"{}"),
            headers: Some(r#"{"tenant":"a","n":7,"o":{}}"#),
            time: None,
            time_micros: None,
            death: None,
        }
    }

    #[test]
    fn a_batch_gives_back_what_was_pushed() {
        let mut builder = BatchBuilder::with_capacity(2, 64);
        builder.push(columns("a", Some(b"k")));
        builder.push(columns("b", None));
        builder.defect(Rejection::new(Reason::Undecodable, "no"));
        let batch = builder.finish(Position(9), 1);
        assert_eq!(batch.len(), 2);
        let event = batch.event(0);
        assert_eq!((event.id, event.key, event.stream_id, event.version), ("a", Some(&b"k"[..]), None, Some(3)));
        assert_eq!(batch.event(1).hold_key().as_ref(), b"\0id:b");
        assert_eq!(batch.defect(0), None);
        assert_eq!(batch.defect(1).map(|d| d.reason), Some(Reason::Undecodable));
        assert_eq!(event.header("tenant").as_deref(), Some("a"));
        assert_eq!(event.header("n").as_deref(), Some("7"));
        assert_eq!(event.header("o"), None);
    }

    #[test]
    fn a_header_beside_a_deep_one_is_found() {
        let deep = format!(r#"{{"deep":{}{},"tenant":"a"}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(Event { headers: Some(&deep), ..columns("a", None) }.header("tenant").as_deref(), Some("a"));
    }

    #[test]
    fn what_has_neither_key_nor_id_is_a_key_of_its_own() {
        let first = columns("", None);
        let second = Event { position: Position(8), ..first };
        assert_ne!(first.hold_key(), second.hold_key());
    }
}
