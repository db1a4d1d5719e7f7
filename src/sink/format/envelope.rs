//! The envelope: one JSON object with every column of an event.
//!
//! `{"id", "type", "key", "stream_id", "stream_type", "version", "source", "position", "time", "headers", "data" | "data_base64"}`;
//! what is absent is left out. A key that is not text stands as `key_base64`, headers that are no JSON object as a string (in the copy
//! of a dead letter as the header `outboxd-headers`, beside what is said of its end).
//!
//! Two ways to write it: [`write`] makes one line, for files and messages: line breaks between the payload's JSON tokens become
//! spaces (inside JSON strings there can be none). [`keep`] changes no byte of the payload: it is what a held event is kept
//! as, and what [`read`] gives back exactly (`what_is_kept_comes_back`).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::headers::{put_death, put_marks};
use super::{Format, Value, Wire};
use crate::event::{Columns, Event, Position};
use crate::sink::Pick;

/// Appends the envelope as one line, without a line break at its end.
pub fn write(event: &Event<'_>, source: &str, out: &mut Vec<u8>) {
    write_as(event, source, None, Shape::Line, out);
}

/// The same, with the marks of a repetition among the headers.
pub fn write_marked(event: &Event<'_>, source: &str, pick: Pick, out: &mut Vec<u8>) {
    write_as(event, source, Some(pick), Shape::Line, out);
}

/// Appends the envelope from which [`read`] restores every column byte for byte.
pub fn keep(event: &Event<'_>, source: &str, out: &mut Vec<u8>) {
    write_as(event, source, None, Shape::Exact, out);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Line,
    Exact,
}

fn write_as(event: &Event<'_>, source: &str, pick: Option<Pick>, shape: Shape, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"id\":");
    string(event.id, out);
    field("type", event.kind, out);
    match event.key.map(std::str::from_utf8) {
        Some(Ok(key)) => field("key", key, out),
        Some(Err(_)) => base64_field("key_base64", event.key.unwrap_or_default(), out),
        None => {}
    }
    let texts = [("stream_id", event.stream_id), ("stream_type", event.stream_type)];
    texts.into_iter().filter_map(|(name, text)| Some((name, text?))).for_each(|(name, text)| field(name, text, out));
    if let Some(version) = event.version {
        number("version", version, out);
    }
    field("source", source, out);
    number("position", event.position.0, out);
    if let Some(time) = event.time {
        field("time", time, out);
    }
    headers(event, source, pick, shape, out);
    match event.payload {
        Some(payload) if is_json(payload, shape) => {
            name("data", out);
            raw(payload, shape, out);
        }
        Some(payload) => base64_field("data_base64", payload, out),
        None => {}
    }
    out.push(b'}');
}

fn headers(event: &Event<'_>, source: &str, pick: Option<Pick>, shape: Shape, out: &mut Vec<u8>) {
    let text = event.headers;
    let mut marks: Vec<u8> = Vec::new();
    if let Some(pick) = pick {
        let mut put = |mark: &str, value: Value<'_>| field(mark, &value.to_string(), &mut marks);
        put_death(event, source, Format::Envelope, Wire::Http, &mut put);
        put_marks(pick, &mut put);
    }
    let own = text.filter(|text| text.trim_start().starts_with('{') && is_json(text.as_bytes(), shape));
    match (own, text) {
        (Some(own), _) => {
            name("headers", out);
            raw(own.trim_ascii_end().as_bytes(), shape, out);
            if !marks.is_empty() {
                out.pop();
                // Each mark brings its comma along, which an object without members must not have.
                let is_empty = own.trim_ascii().trim_start_matches('{').trim_ascii_start().starts_with('}');
                out.extend_from_slice(&marks[usize::from(is_empty)..]);
                out.push(b'}');
            }
        }
        (None, Some(text)) if event.death.is_none() => field("headers", text, out),
        (None, None) if marks.is_empty() => {}
        (None, text) => {
            if let Some(text) = text {
                field("outboxd-headers", text, &mut marks);
            }
            name("headers", out);
            out.push(b'{');
            out.extend_from_slice(&marks[1..]);
            out.push(b'}');
        }
    }
}

/// The line without the marks of a repetition, and without headers where none are left: by it, two deliveries of one event are equal.
pub fn unmarked(line: &[u8]) -> Cow<'_, [u8]> {
    #[derive(Deserialize)]
    struct Headers<'a> {
        #[serde(borrow)]
        headers: Option<&'a RawValue>,
    }
    let Ok(Headers { headers: Some(headers) }) = serde_json::from_slice(line) else { return Cow::Borrowed(line) };
    let Some(own) = headers.get().strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        return Cow::Borrowed(line);
    };
    let start = headers.get().as_ptr() as usize - line.as_ptr() as usize;
    let (before, behind) = (&line[..start], &line[start + headers.get().len()..]);
    match without_marks(own) {
        "" => {
            let before = before.strip_suffix(b",\"headers\":").unwrap_or(before);
            [before, behind].concat().into()
        }
        left if left.len() == own.len() => Cow::Borrowed(line),
        left => [before, b"{", left.as_bytes(), b"}", behind].concat().into(),
    }
}

/// The members of an object, without those that [`put_marks`] wrote at its end.
fn without_marks(mut members: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    while let Some(rest) = members.strip_suffix('"') {
        let Some((rest, value)) = rest.rsplit_once("\":\"") else { break };
        let Some((rest, mark)) = rest.rsplit_once('"') else { break };
        let is_mark = match mark {
            "outboxd-attempt" => is_number(value),
            "outboxd-redelivery" | "outboxd-replay" => value == "true",
            _ => false,
        };
        if !is_mark {
            break;
        }
        members = rest.strip_suffix(',').unwrap_or(rest);
    }
    members
}

fn is_json(bytes: &[u8], shape: Shape) -> bool {
    // A reader of the envelope does not see whitespace around a value, so what must come back exactly cannot have any.
    let is_bare = || bytes.trim_ascii().len() == bytes.len();
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
        && (shape == Shape::Line || is_bare())
}

fn raw(json: &[u8], shape: Shape, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(json);
    if shape == Shape::Line {
        out[start..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    }
}

fn name(name: &str, out: &mut Vec<u8>) {
    out.push(b',');
    string(name, out);
    out.push(b':');
}

fn field(label: &str, text: &str, out: &mut Vec<u8>) {
    name(label, out);
    string(text, out);
}

fn number(label: &str, value: i64, out: &mut Vec<u8>) {
    name(label, out);
    out.extend_from_slice(value.to_string().as_bytes());
}

fn base64_field(label: &str, bytes: &[u8], out: &mut Vec<u8>) {
    field(label, &STANDARD.encode(bytes), out);
}

fn string(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("text can be written as JSON into memory");
}

/// An event read back from its envelope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    pub id: String,
    pub kind: String,
    pub key: Option<Vec<u8>>,
    pub stream_id: Option<String>,
    pub stream_type: Option<String>,
    pub version: Option<i64>,
    pub source: String,
    pub position: Position,
    pub time: Option<String>,
    pub headers: Option<String>,
    pub payload: Option<Vec<u8>>,
}

impl Kept {
    /// The columns, for [`crate::event::BatchBuilder::push`].
    pub fn columns(&self) -> Columns<'_> {
        Event {
            position: self.position,
            id: &self.id,
            key: self.key.as_deref(),
            stream_id: self.stream_id.as_deref(),
            stream_type: self.stream_type.as_deref(),
            version: self.version,
            kind: &self.kind,
            payload: self.payload.as_deref(),
            headers: self.headers.as_deref(),
            time: self.time.as_deref(),
            time_micros: self.time.as_deref().and_then(micros),
            death: None,
        }
    }
}

/// Why bytes are not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("not an envelope")]
    Json(#[from] serde_json::Error),
    #[error("`{0}` in the envelope is not base64")]
    Base64(&'static str),
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_base64: Option<Cow<'a, str>>,
    stream_id: Option<String>,
    stream_type: Option<String>,
    version: Option<i64>,
    source: String,
    position: i64,
    time: Option<String>,
    #[serde(borrow, default)]
    headers: Option<&'a RawValue>,
    // `null` is a payload, and not its absence.
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads what [`write`] or [`keep`] wrote.
pub fn read(line: &[u8]) -> Result<Kept, ReadError> {
    let raw: Raw<'_> = serde_json::from_slice(line)?;
    let key = match (raw.key, raw.key_base64) {
        (Some(key), _) => Some(key.into_owned().into_bytes()),
        (None, Some(text)) => Some(decode("key_base64", &text)?),
        (None, None) => None,
    };
    let payload = match (raw.data, raw.data_base64) {
        (Some(data), _) => Some(data.get().as_bytes().to_vec()),
        (None, Some(text)) => Some(decode("data_base64", &text)?),
        (None, None) => None,
    };
    let headers = match raw.headers.map(RawValue::get) {
        Some(text) if text.starts_with('"') => Some(serde_json::from_str(text)?),
        other => other.map(str::to_owned),
    };
    Ok(Kept {
        id: raw.id.into_owned(),
        kind: raw.kind.into_owned(),
        key,
        stream_id: raw.stream_id,
        stream_type: raw.stream_type,
        version: raw.version,
        source: raw.source,
        position: Position(raw.position),
        time: raw.time,
        headers,
        payload,
    })
}

fn decode(label: &'static str, text: &str) -> Result<Vec<u8>, ReadError> {
    STANDARD.decode(text).map_err(|_| ReadError::Base64(label))
}

/// Microseconds since 1970 of a time with an offset, or of SQLite's own `YYYY-MM-DD HH:MM:SS`, which is UTC.
pub(crate) fn micros(time: &str) -> Option<i64> {
    if let Ok(timestamp) = time.parse::<jiff::Timestamp>() {
        return Some(timestamp.as_microsecond());
    }
    let civil = time.parse::<jiff::civil::DateTime>().ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> Event<'static> {
        Event {
            position: Position(7),
            id: "e\"1",
            key: Some(b"k"),
            stream_id: Some("order-1"),
            stream_type: Some("Order"),
            version: Some(3),
            kind: "OrderPlaced",
            payload: Some(b"{\n  \"a\": 1.00\r\n}"),
            headers: Some(r#"{ "tenant":"blue" }"#),
            time: Some("2026-11-20T10:00:00Z"),
            time_micros: Some(1_795_168_800_000_000),
            death: None,
        }
    }

    fn line(event: &Event<'_>) -> String {
        let mut out = Vec::new();
        write(event, "shop", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn it_looks_as_documented() {
        assert_eq!(
            line(&event()),
            r#"{"id":"e\"1","type":"OrderPlaced","key":"k","stream_id":"order-1","stream_type":"Order","version":3,"source":"shop","position":7,"time":"2026-11-20T10:00:00Z","headers":{ "tenant":"blue" },"data":{   "a": 1.00  }}"#
        );
        let bare = Event {
            key: Some(b"\xff"),
            stream_id: None,
            stream_type: None,
            version: None,
            time: None,
            headers: Some("no"),
            payload: Some(b"\x00"),
            ..event()
        };
        assert_eq!(
            line(&bare),
            r#"{"id":"e\"1","type":"OrderPlaced","key_base64":"/w==","source":"shop","position":7,"headers":"no","data_base64":"AA=="}"#
        );
    }

    #[test]
    fn marks_stand_among_the_headers() {
        let pick = Pick { index: 0, attempt: 2, redelivery: true, replay: false };
        let marks = r#""outboxd-attempt":"2","outboxd-redelivery":"true"}"#;
        let own = [
            (Some(r#"{"a":1}"#), format!(r#""headers":{{"a":1,{marks}"#)),
            (Some(" { } "), format!(r#""headers": {{ {marks}"#)),
            (None, format!(r#""headers":{{{marks}"#)),
        ];
        for (headers, expected) in own {
            let mut out = Vec::new();
            write_marked(&Event { headers, ..event() }, "shop", pick, &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(&expected), "{text}");
            assert!(read(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_said_of_a_death_stands_beside_headers_that_are_no_object() {
        let death = crate::event::Death {
            consumer: "to_bus".into(),
            reason: "undecodable".into(),
            detail: "no".into(),
            attempts: 1,
            at: "2026-11-21T08:00:00Z".into(),
            destination: crate::event::Destination::Unknown,
        };
        let event = Event { headers: Some("tenant=blue"), death: Some(&death), ..event() };
        let mut out = Vec::new();
        write_marked(&event, "shop", Pick::first(0), &mut out);
        let copy: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let headers = &copy["headers"];
        assert_eq!(
            (&headers["outboxd-reason"], &headers["outboxd-headers"]),
            (&"undecodable".into(), &"tenant=blue".into())
        );
    }

    #[test]
    fn without_its_marks_a_repetition_is_what_was_sent_first() {
        let forged = r#"{"a":"outboxd-redelivery\":\"true"}"#;
        for headers in [None, Some("{}"), Some(" { } "), Some(r#"{"a":1}"#), Some("no"), Some(forged)] {
            let event = Event { headers, payload: Some(br#"{"outboxd-redelivery":"true"}"#), ..event() };
            let first = line(&event);
            for (attempt, redelivery, replay) in [(1, true, false), (2, false, false), (12, true, true)] {
                let mut again = Vec::new();
                write_marked(&event, "shop", Pick { index: 0, attempt, redelivery, replay }, &mut again);
                // Headers that are no object have no room for a mark.
                assert!(first.as_bytes() != again || headers == Some("no"));
                assert_eq!(unmarked(first.as_bytes()), unmarked(&again), "{headers:?}");
            }
        }
        let other = Event { headers: Some(r#"{"a":2}"#), ..event() };
        assert_ne!(unmarked(line(&event()).as_bytes()), unmarked(line(&other).as_bytes()));
    }

    #[test]
    fn null_is_a_payload_and_absence_is_not() {
        for payload in [None, Some(&b"null"[..]), Some(b""), Some(b" 1"), Some(b"\"a\\ud800\"")] {
            let event = Event { payload, ..event() };
            let mut out = Vec::new();
            keep(&event, "shop", &mut out);
            assert_eq!(read(&out).unwrap().payload.as_deref(), payload);
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(micros("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(micros("1970-01-01 00:00:01"), Some(1_000_000));
        assert_eq!(micros("1970-01-01T01:00:01+01:00"), Some(1_000_000));
        assert_eq!(micros("yesterday"), None);
    }

    fn payloads() -> impl Strategy<Value = Option<Vec<u8>>> {
        let json = prop_oneof![
            Just("{\"a\":[1,\n 2.50, null]}".to_owned()),
            "\\PC{0,10}".prop_map(|text| serde_json::to_string(&text).unwrap()),
            "[ \\n]{0,2}(1|true|\"x\")[ \\n]{0,2}",
        ];
        proptest::option::of(prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..16),
            json.prop_map(String::into_bytes)
        ])
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            payload in payloads(),
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..6)),
            texts in proptest::collection::vec(proptest::option::of("\\PC{0,8}"), 3),
            headers in proptest::option::of(prop_oneof!["\\PC{0,12}", Just("{\"a\":\n\"b\"}".to_owned()), Just("\"s\"".to_owned())]),
            version in any::<Option<i64>>(),
            position in any::<i64>(),
        ) {
            let event = Event {
                position: Position(position),
                key: key.as_deref(),
                stream_id: texts[0].as_deref(),
                stream_type: texts[1].as_deref(),
                time: texts[2].as_deref(),
                headers: headers.as_deref(),
                payload: payload.as_deref(),
                version,
                time_micros: None,
                death: None,
                ..event()
            };
            let mut out = Vec::new();
            keep(&event, "shop", &mut out);
            let kept = read(&out).unwrap();
            prop_assert_eq!(kept.source.as_str(), "shop");
            let columns = Event { time_micros: None, ..kept.columns() };
            prop_assert_eq!(format!("{columns:?}"), format!("{event:?}"));

            let text = line(&event);
            prop_assert!(!text.contains('\n') && !text.contains('\r'));
            prop_assert!(read(text.as_bytes()).is_ok());
        }
    }
}
