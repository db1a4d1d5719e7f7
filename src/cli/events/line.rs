//! A line of JSON: what it says of events, and how one is told.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::{Exit, Failure};
use crate::store::event::{Append, Appended, Expected, Message, NewEvent, StoredEvent, Stream, new_id};

/// As it is written. Data and metadata keep every byte.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    stream_id: Option<String>,
    stream_type: Option<String>,
    expected: Option<Value>,
    events: Option<Vec<EventWords>>,
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "said")]
    data: Option<Box<RawValue>>,
    data_text: Option<String>,
    metadata: Option<Box<RawValue>>,
    metadata_text: Option<String>,
    time: Option<String>,
    /// That it must get: so what `show` and `tail` print can be appended elsewhere.
    version: Option<i64>,
    /// Of where it was copied from; it gets another one.
    #[serde(rename = "position")]
    _position: Option<i64>,
}

/// `null` is JSON like any other.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventWords {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    data: Box<RawValue>,
    data_text: Option<String>,
    metadata: Option<Box<RawValue>>,
    metadata_text: Option<String>,
    time: Option<String>,
}

/// What the command line says for every line.
#[derive(Clone, Copy, Debug)]
pub struct Defaults<'a> {
    pub stream: Option<&'a str>,
    pub stream_type: Option<&'a str>,
    pub outbox: bool,
}

/// What is to be appended by this line, or what is wrong with it.
pub fn parse(bytes: &[u8], defaults: Defaults<'_>) -> Result<Append, String> {
    let line: Line = serde_json::from_slice(bytes.trim_ascii_end()).map_err(|error| in_a_line(&error))?;
    let missing = |what: &str| format!("it has no \"{what}\"");
    let stream = match (line.stream_id, defaults.stream) {
        (Some(named), Some(stream)) if named != stream => {
            return Err(format!("its stream_id is not the {stream:?} of --stream"));
        }
        (named, stream) => named.or(stream.map(str::to_owned)).ok_or_else(|| missing("stream_id"))?,
    };
    let stream_type = line.stream_type.or(defaults.stream_type.map(str::to_owned));
    let stream_type = stream_type.ok_or_else(|| missing("stream_type"))?;
    let expected = match (line.expected, line.version) {
        (Some(_), Some(_)) => return Err("it has \"expected\" and \"version\": one says the other".into()),
        (None, Some(version)) if version >= 1 => Expected::Exact(version - 1),
        (None, Some(_)) => return Err("its \"version\" is below 1".into()),
        (Some(value), None) => match &value {
            Value::String(word) => expected(word)?,
            value => value.as_i64().map(Expected::Exact).ok_or_else(|| expected_words(value))?,
        },
        (None, None) => Expected::Any,
    };
    let words = match (line.events, line.kind, line.data) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err("it has \"events\" and an event of its own: write one of them".into());
        }
        (Some(events), None, None) => events,
        (None, None, _) => return Err(missing("type")),
        (None, _, None) => return Err(missing("data")),
        (None, Some(kind), Some(data)) => {
            let (data_text, metadata_text) = (line.data_text, line.metadata_text);
            vec![EventWords {
                id: line.id,
                kind,
                data,
                data_text,
                metadata: line.metadata,
                metadata_text,
                time: line.time,
            }]
        }
    };
    let events = words.into_iter().map(EventWords::event).collect::<Result<Vec<NewEvent>, String>>()?;
    let outbox = if defaults.outbox { events.iter().map(Message::of).collect() } else { Vec::new() };
    Ok(Append { stream, stream_type, expected, events, outbox })
}

impl EventWords {
    fn event(self) -> Result<NewEvent, String> {
        let metadata = self.metadata.filter(|raw| raw.get() != "null");
        if metadata.is_none() && self.metadata_text.is_some() {
            return Err("it has \"metadata_text\" and no \"metadata\"".into());
        }
        Ok(NewEvent {
            id: self.id.unwrap_or_else(new_id),
            kind: self.kind,
            data: exact("data", self.data, self.data_text)?,
            metadata: metadata.map(|raw| exact("metadata", raw, self.metadata_text)).transpose()?,
            time: self.time,
        })
    }
}

/// JSON in one line, and how it stands in the file where that is not the same, as `show` and `tail` print it.
fn exact(field: &str, raw: Box<RawValue>, text: Option<String>) -> Result<String, String> {
    let Some(text) = text else { return Ok(Box::<str>::from(raw).into_string()) };
    let json = serde_json::from_str::<&RawValue>(&text);
    match json.is_ok_and(|json| in_one_line(json.get()) == raw.get()) {
        true => Ok(text),
        false => Err(format!("its \"{field}\" and \"{field}_text\" are not the same")),
    }
}

/// Outside of strings a line's end means nothing, and in strings of JSON there is none.
fn in_one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// `any`, `none`, `exists` or a version.
pub fn expected(word: &str) -> Result<Expected, String> {
    match word {
        "any" => Ok(Expected::Any),
        "none" => Ok(Expected::NoStream),
        "exists" => Ok(Expected::StreamExists),
        _ => match word.parse() {
            Ok(version) if version >= 0 => Ok(Expected::Exact(version)),
            _ => Err(expected_words(&word.into())),
        },
    }
}

fn expected_words(given: &Value) -> String {
    format!("expected is \"any\", \"none\", \"exists\" or a version from 0 to {}, not {given}", i64::MAX)
}

/// It is one line for serde, whatever its number is for us.
fn in_a_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

/// What became of a line.
pub fn appended(number: usize, stream: &str, done: Appended) -> String {
    let told = serde_json::json!({
        "line": number,
        "stream_id": stream,
        "first_version": done.first_version,
        "last_version": done.last_version,
        "first_position": done.first_position,
        "last_position": done.last_position,
        "repeat": done.is_repeat,
    });
    told.to_string()
}

pub fn stream(stream: &Stream) -> String {
    let told = serde_json::json!({
        "stream_id": stream.stream,
        "stream_type": stream.stream_type,
        "version": stream.version,
        "snapshot_version": stream.snapshot_version,
    });
    told.to_string()
}

/// An event as it is printed.
#[derive(Serialize)]
pub struct EventLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<i64>,
    id: &'a str,
    stream_id: &'a str,
    stream_type: &'a str,
    version: i64,
    #[serde(rename = "type")]
    kind: &'a str,
    data: &'a RawValue,
    /// As it stands in the file, where that is not what one line can hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_text: Option<&'a str>,
    time: &'a str,
}

impl<'a> EventLine<'a> {
    pub fn of(event: &'a StoredEvent) -> Result<Self, Failure> {
        let json = |field: &str, text: &'a str| -> Result<&'a RawValue, Failure> {
            serde_json::from_str(text).map_err(|error| {
                let reason =
                    format!("the {field} of event {} at position {} is no JSON: {error}", event.id, event.position);
                Failure::new(Exit::Data, reason, "mend the row, or look at it without --json")
            })
        };
        let (data, metadata) =
            (json("data", &event.data)?, event.metadata.as_deref().map(|text| json("metadata", text)).transpose()?);
        let text = |json: Option<&RawValue>, text: Option<&'a str>| {
            text.filter(|text| json.is_some_and(|json| json.get() != *text || text.contains(['\n', '\r'])))
        };
        Ok(Self {
            // Other schemas than ours may have none.
            position: (event.position != 0).then_some(event.position),
            id: &event.id,
            stream_id: &event.stream,
            stream_type: &event.stream_type,
            version: event.version,
            kind: &event.kind,
            data,
            data_text: text(Some(data), Some(&event.data)),
            metadata,
            metadata_text: text(metadata, event.metadata.as_deref()),
            time: &event.time,
        })
    }
}

impl fmt::Display for EventLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&in_one_line(&text))
    }
}
