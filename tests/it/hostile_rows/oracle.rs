//! What must become of a row, worked out from the row alone.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::rows::{Cell, NAME_BYTES_MAX, Row};

/// Which columns a table has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Our own outbox.
    Outbox,
    /// eventsource-py's log.
    Log,
    /// eventsource-py's outbox, read by row.
    ByRow,
}

/// The event as it has to arrive.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    pub id: String,
    pub kind: String,
    pub key: Option<Vec<u8>>,
    pub stream_id: Option<String>,
    pub stream_type: Option<String>,
    pub version: Option<i64>,
    pub time: Option<String>,
    pub headers: Option<String>,
    pub payload: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    Delivered(Event),
    /// For one of these reasons.
    Dead(BTreeSet<&'static str>),
}

/// `event_bytes_max` is the relay's.
pub fn judge(table: Table, row: &Row, event_bytes_max: usize) -> Fate {
    let mut wrong = BTreeSet::new();
    let mut text = |cell: &Cell, most: usize| -> Option<String> {
        let bytes = cell.bytes()?;
        if bytes.len() > most {
            wrong.insert("too_large");
            return None;
        }
        String::from_utf8(bytes).map_err(|_| wrong.insert("undecodable")).ok()
    };
    let mut event = Event {
        id: text(&row.id, NAME_BYTES_MAX).unwrap_or_default(),
        kind: text(&row.kind, NAME_BYTES_MAX).unwrap_or_default(),
        stream_id: text(&row.stream_id, NAME_BYTES_MAX),
        stream_type: text(&row.stream_type, NAME_BYTES_MAX),
        time: text(&row.time, NAME_BYTES_MAX),
        headers: if table == Table::Outbox { text(&row.headers, event_bytes_max) } else { None },
        ..Event::default()
    };
    if let Some(headers) = &event.headers {
        let is_none = matches!(headers.trim_ascii(), "" | "null");
        if matches!(row.headers, Cell::Integer(_) | Cell::Real(_))
            || !(is_none || headers.trim_ascii_start().starts_with('{') && is_json(headers))
        {
            wrong.insert("undecodable");
        }
        event.headers = event.headers.filter(|_| !is_none);
    }
    event.version = match (table, &row.version) {
        // eventsource-py's outbox takes it from the log, where the event is not.
        (Table::Outbox | Table::ByRow, _) | (_, Cell::Null) => None,
        (Table::Log, Cell::Integer(version)) => Some(*version),
        (Table::Log, other) => {
            let number = other.bytes().and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
            if number.is_none() {
                let is_large = other.bytes().is_some_and(|bytes| bytes.len() > NAME_BYTES_MAX);
                wrong.insert(if is_large { "too_large" } else { "undecodable" });
            }
            number
        }
    };
    event.key = row.stream_id.bytes();
    if table == Table::Outbox {
        event.key = row.key.bytes().or(event.key);
    }
    if event.id.is_empty() || row.kind == Cell::Null {
        wrong.insert("undecodable");
    }
    if event.key.as_ref().is_some_and(|key| key.len() > NAME_BYTES_MAX) {
        wrong.insert("too_large");
    }
    event.payload = row.payload.bytes();
    if event.payload.as_ref().is_some_and(|payload| payload.len() > event_bytes_max) {
        wrong.insert("too_large");
    } else if table == Table::ByRow
        && let Some(column) = event.payload.take()
    {
        match member(&column) {
            Some(payload) => event.payload = Some(payload),
            None => drop(wrong.insert("undecodable")),
        }
    }
    // Only our own outbox is asked for tombstones.
    if table != Table::Outbox && event.payload.is_none() {
        wrong.insert("undecodable");
    }
    if wrong.is_empty() { Fate::Delivered(event) } else { Fate::Dead(wrong) }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// `payload` in a JSON object, as it stands there.
fn member(column: &[u8]) -> Option<Vec<u8>> {
    let object: BTreeMap<String, &RawValue> = serde_json::from_slice(column).ok()?;
    Some(object.get("payload")?.get().as_bytes().to_vec())
}

/// A line of a file sink.
#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    key: Option<String>,
    key_base64: Option<String>,
    stream_id: Option<String>,
    stream_type: Option<String>,
    version: Option<i64>,
    position: i64,
    time: Option<String>,
    headers: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

/// `null` is there too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    <Box<RawValue>>::deserialize(deserializer).map(Some)
}

/// Line breaks between JSON's words become spaces in a line; around a value nothing counts.
fn on_a_line(json: &[u8]) -> Vec<u8> {
    json.trim_ascii().iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect()
}

/// The position that the line names; panics when the event in it is not the one that was meant.
pub fn position_of(line: &str) -> i64 {
    let parsed: Line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.300}"));
    parsed.position
}

/// Whether the line says the event, byte for byte.
pub fn says(line: &str, event: &Event) -> bool {
    let line: Line = serde_json::from_str(line).unwrap();
    let key = line.key.map(String::into_bytes).or(line.key_base64.map(|text| STANDARD.decode(text).unwrap()));
    let payload = match (&line.data, &line.data_base64) {
        (Some(data), None) => event.payload.as_ref().is_some_and(|payload| on_a_line(payload) == data.get().as_bytes()),
        (None, Some(text)) => event.payload.as_ref() == Some(&STANDARD.decode(text).unwrap()),
        (None, None) => event.payload.is_none(),
        (Some(_), Some(_)) => false,
    };
    let headers = match line.headers.as_ref().map(|headers| headers.get()) {
        Some(text) if text.starts_with('"') => event.headers == serde_json::from_str(text).ok(),
        Some(text) => event.headers.as_ref().is_some_and(|own| on_a_line(own.as_bytes()) == text.as_bytes()),
        None => event.headers.is_none(),
    };
    payload
        && headers
        && (line.id, line.kind, key) == (event.id.clone(), event.kind.clone(), event.key.clone())
        && (line.stream_id, line.stream_type) == (event.stream_id.clone(), event.stream_type.clone())
        && (line.version, line.time) == (event.version, event.time.clone())
}

/// Where in the text a terminal would obey, if anywhere: controls, marks of direction, what has no width.
pub fn obeyed(text: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(text) else { return Some("not UTF-8".into()) };
    let is_obeyed = |c: char| {
        (c.is_control() && c != '\n')
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{2028}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
            || matches!(c, '\u{ad}' | '\u{feff}' | '\u{e0001}')
    };
    let (at, c) = text.char_indices().find(|(_, c)| is_obeyed(*c))?;
    let around: String = text[..at].chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
    Some(format!("{c:?} after {around:?}"))
}
