//! From a column's value to an event's field: text as it is, or what the mapping says that the column holds.
//!
//! A value that is not what it should be is a [`Rejection`] that names the field, the column and what stands there; the event
//! becomes a dead letter, and nothing stops.

use std::borrow::Cow;

use rusqlite::types::ValueRef;
use serde::de::IgnoredAny;

use super::json_path::JsonPath;
use crate::clock;
use crate::event::{Reason, Rejection};

/// One field: where it comes from, and how it is to be understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// An SQL expression; `NULL` where the table has nothing of the kind.
    pub sql: String,
    /// How many bytes that has, in SQL that does not read them; `0` where it is short.
    pub size: String,
    /// The columns in it, for people.
    pub label: String,
    pub path: Option<JsonPath>,
    pub form: Form,
    /// It is an object of these, which are further columns of the statement; none: it is not.
    pub members: Vec<Member>,
}

/// How a column's value is to be understood (`as = ...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text and blobs as they are, numbers in decimal.
    Plain,
    Text,
    Integer,
    Blob,
    Uuid,
    /// A blob whose first three groups stand in reverse byte order, as .NET writes them.
    UuidMixed,
    Hex,
    Json,
    /// What headers are.
    JsonObject,
    /// SQL has made JSON text of it, or left the blob where it is none.
    Jsonb,
    Iso,
    /// An integer, of which so many are a second.
    Epoch(i64),
}

/// Those that can be said.
pub const FORMS: [(&str, Form); 12] = [
    ("text", Form::Text),
    ("integer", Form::Integer),
    ("blob", Form::Blob),
    ("uuid", Form::Uuid),
    ("uuid_mixed", Form::UuidMixed),
    ("hex", Form::Hex),
    ("json", Form::Json),
    ("jsonb", Form::Jsonb),
    ("iso", Form::Iso),
    ("epoch_s", Form::Epoch(1)),
    ("epoch_ms", Form::Epoch(1_000)),
    ("epoch_us", Form::Epoch(1_000_000)),
];

impl Form {
    pub fn word(self) -> &'static str {
        FORMS.into_iter().find(|(_, form)| *form == self).map_or("", |(word, _)| word)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub name: String,
    pub index: usize,
    pub field: Field,
}

impl Field {
    pub fn absent() -> Self {
        Self {
            sql: "NULL".into(),
            size: "0".into(),
            label: String::new(),
            path: None,
            form: Form::Plain,
            members: Vec::new(),
        }
    }
}

impl Field {
    /// The field as text. Bytes that are no text are told, and kept as far as they can be.
    pub fn text<'a>(&self, value: ValueRef<'a>, name: &str, defect: &mut Option<Rejection>) -> Option<Cow<'a, str>> {
        match self.bytes(value, name, defect)? {
            Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Some(Cow::Borrowed(text)),
                Err(error) => {
                    self.complain(defect, name, &format!("is not UTF-8: {error}"));
                    Some(Cow::Owned(String::from_utf8_lossy(bytes).into_owned()))
                }
            },
            Cow::Owned(bytes) => Some(Cow::Owned(match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => {
                    self.complain(defect, name, &format!("is not UTF-8: {error}"));
                    String::from_utf8_lossy(error.as_bytes()).into_owned()
                }
            })),
        }
    }

    /// The field byte for byte, in the form that is sent.
    pub fn bytes<'a>(&self, value: ValueRef<'a>, name: &str, defect: &mut Option<Rejection>) -> Option<Cow<'a, [u8]>> {
        let decoded = match (value, &self.form, &self.path) {
            (ValueRef::Text(bytes) | ValueRef::Blob(bytes), Form::Plain, None) => return Some(Cow::Borrowed(bytes)),
            (ValueRef::Null, ..) => return None,
            (value, form, None) => form.decode(value),
            (ValueRef::Text(bytes) | ValueRef::Blob(bytes), form, Some(path)) => at_path(bytes, path, form),
            (other, _, Some(path)) => Err(format!("is {}, where JSON with {path} is wanted", class(other))),
        };
        match decoded {
            Ok(bytes) => bytes,
            Err(what) => {
                self.complain(defect, name, &what);
                None
            }
        }
    }

    /// A whole number, or text of one.
    pub fn integer(&self, value: ValueRef<'_>, name: &str, defect: &mut Option<Rejection>) -> Option<i64> {
        match (value, &self.path) {
            (ValueRef::Integer(number), None) => return Some(number),
            (ValueRef::Null, _) => return None,
            _ => {}
        }
        let text = self.text(value, name, defect)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.complain(defect, name, "is no whole number");
        }
        number
    }

    /// The field as a piece of JSON: `None` where it is `NULL`.
    fn json(&self, value: ValueRef<'_>, name: &str, defect: &mut Option<Rejection>) -> Option<String> {
        let quoted = |text: &str| serde_json::to_string(text).expect("text is always JSON");
        match (value, &self.form, &self.path) {
            (ValueRef::Integer(number), Form::Plain, None) => Some(number.to_string()),
            (ValueRef::Real(number), Form::Plain, None) if number.is_finite() => {
                Some(serde_json::Value::from(number).to_string())
            }
            (ValueRef::Blob(_), Form::Plain, None) => {
                self.complain(defect, name, "is a BLOB, which JSON cannot hold; say what it is with `as`");
                None
            }
            (value, Form::Json | Form::JsonObject | Form::Jsonb | Form::Integer, _) | (value, Form::Plain, Some(_)) => {
                self.text(value, name, defect).map(Cow::into_owned)
            }
            (value, ..) => self.text(value, name, defect).map(|text| quoted(&text)),
        }
    }

    pub fn complain(&self, defect: &mut Option<Rejection>, name: &str, what: &str) {
        defect.get_or_insert_with(|| {
            Rejection::new(Reason::Undecodable, format!("the column for {name} ({}) {what}", self.label))
        });
    }
}

/// An object of other columns of the row. What is `NULL` is left out.
pub fn object(members: &[Member], row: &rusqlite::Row<'_>, defect: &mut Option<Rejection>) -> rusqlite::Result<String> {
    let mut json = String::from("{");
    for member in members {
        let Some(value) = member.field.json(row.get_ref(member.index)?, &member.name, defect) else { continue };
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&serde_json::to_string(&member.name).expect("text is always JSON"));
        json.push(':');
        json.push_str(&value);
    }
    json.push('}');
    Ok(json)
}

/// The scalar or the slice at a path: for a payload as it stands, for anything else what a JSON string says.
fn at_path<'a>(bytes: &'a [u8], path: &JsonPath, form: &Form) -> Result<Option<Cow<'a, [u8]>>, String> {
    let found = path.find(bytes).map_err(|error| format!("holds no JSON that {path} could be found in: {error}"))?;
    let Some(slice) = found else { return Ok(None) };
    match form {
        Form::Plain | Form::Json | Form::JsonObject | Form::Jsonb => {
            if *form == Form::JsonObject && slice != "null" && !slice.starts_with('{') {
                return Err(format!("holds no object at {path}"));
            }
            Ok((*form != Form::JsonObject || slice != "null").then_some(Cow::Borrowed(slice.as_bytes())))
        }
        _ if slice == "null" => Ok(None),
        form => {
            let scalar = match serde_json::from_str::<String>(slice) {
                Ok(text) => text,
                Err(_) => slice.to_owned(),
            };
            let value = match scalar.parse() {
                Ok(number) if matches!(form, Form::Integer | Form::Epoch(_)) => ValueRef::Integer(number),
                _ => ValueRef::Text(scalar.as_bytes()),
            };
            Ok(form.decode(value)?.map(|bytes| Cow::Owned(bytes.into_owned())))
        }
    }
}

impl Form {
    /// A value that is not `NULL`.
    fn decode<'a>(&self, value: ValueRef<'a>) -> Result<Option<Cow<'a, [u8]>>, String> {
        let owned = |text: String| Ok(Some(Cow::Owned(text.into_bytes())));
        let wanted = |what: &str| Err(format!("is {}, where {what} is wanted", class(value)));
        match (self, value) {
            (_, ValueRef::Null) => Ok(None),
            (Form::Plain, ValueRef::Integer(number)) => owned(number.to_string()),
            (Form::Plain, ValueRef::Real(number)) => owned(number.to_string()),
            (Form::Plain | Form::Blob, ValueRef::Blob(bytes)) | (Form::Plain | Form::Text, ValueRef::Text(bytes)) => {
                Ok(Some(Cow::Borrowed(bytes)))
            }
            (Form::Text, _) => wanted("text"),
            (Form::Blob, _) => wanted("a BLOB"),
            (Form::Integer, ValueRef::Integer(number)) => owned(number.to_string()),
            (Form::Integer, _) => wanted("a whole number"),
            (Form::Hex, ValueRef::Blob(bytes)) => owned(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            (Form::Hex, _) => wanted("a BLOB"),
            (Form::Uuid | Form::UuidMixed, ValueRef::Blob(bytes)) => match <[u8; 16]>::try_from(bytes) {
                Ok(bytes) if *self == Form::UuidMixed => owned(uuid::Uuid::from_bytes_le(bytes).to_string()),
                Ok(bytes) => owned(uuid::Uuid::from_bytes(bytes).to_string()),
                Err(_) => Err(format!("is a BLOB of {} bytes, where a UUID is wanted", bytes.len())),
            },
            (Form::Uuid | Form::UuidMixed, ValueRef::Text(bytes)) => match uuid::Uuid::try_parse_ascii(bytes) {
                Ok(uuid) => owned(uuid.to_string()),
                Err(error) => Err(format!("is no UUID: {error}")),
            },
            (Form::Uuid | Form::UuidMixed, _) => wanted("a UUID"),
            (Form::Jsonb, ValueRef::Blob(_)) => Err("is no JSONB that SQLite can read".into()),
            (Form::Json | Form::JsonObject | Form::Jsonb, ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => {
                // No headers, as many write it.
                if *self == Form::JsonObject && matches!(bytes.trim_ascii(), b"" | b"null") {
                    return Ok(None);
                }
                serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| format!("is no JSON: {error}"))?;
                if *self == Form::JsonObject && bytes.trim_ascii_start().first() != Some(&b'{') {
                    return Err("is no JSON object".into());
                }
                Ok(Some(Cow::Borrowed(bytes)))
            }
            (Form::Json | Form::JsonObject | Form::Jsonb, _) => wanted("JSON"),
            (Form::Iso, ValueRef::Text(bytes)) => match std::str::from_utf8(bytes).ok().and_then(clock::parse_micros) {
                Some(_) => Ok(Some(Cow::Borrowed(bytes))),
                None => Err("is no time that can be read: wanted is 2026-11-21T03:15:20Z or the like".into()),
            },
            (Form::Iso, _) => wanted("a time in text"),
            (Form::Epoch(a_second), ValueRef::Integer(number)) => {
                let micros = number.checked_mul(1_000_000 / a_second).filter(|micros| clock::is_a_time(*micros));
                match micros {
                    Some(micros) => owned(clock::iso(micros)),
                    None => Err(format!("is {number}, which is no time in such a count")),
                }
            }
            (Form::Epoch(_), _) => wanted("a whole number"),
        }
    }
}

/// A value's storage class, in words.
fn class(value: ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Null => "NULL",
        ValueRef::Integer(_) => "an INTEGER",
        ValueRef::Real(_) => "a REAL",
        ValueRef::Text(_) => "TEXT",
        ValueRef::Blob(_) => "a BLOB",
    }
}
