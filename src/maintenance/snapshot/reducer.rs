//! How a stream's state follows from its events: a pure function of the state so far and one event.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::patch::Node;
use crate::sqlite::authorizer;
use crate::sqlite::open::TimeLimit;

/// A larger state is refused.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// For one event.
const EXPRESSION_TIME_MAX: Duration = Duration::from_secs(1);
/// The event type that stands for all others.
const ANY: &str = "*";
const PARAMETERS: [&str; 10] =
    [":state", ":position", ":id", ":stream_id", ":stream_type", ":version", ":type", ":data", ":metadata", ":time"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reducer {
    /// RFC 7396: each event's data is a patch. These fields of it are left out.
    MergePatch { without: &'static [&'static str] },
    /// An expression an event type.
    Sql(BTreeMap<String, String>),
    /// The state is the list of the events themselves.
    Events,
}

/// One event, as far as reducers are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Folded<'a> {
    pub position: Option<i64>,
    pub id: &'a str,
    pub stream_id: &'a str,
    pub stream_type: &'a str,
    pub version: i64,
    pub kind: &'a str,
    pub data: &'a str,
    pub metadata: Option<&'a str>,
    pub time: &'a str,
}

impl Reducer {
    /// Two reducers of one hash come to the same states.
    pub fn hash(&self) -> String {
        let text = match self {
            Reducer::MergePatch { without } => format!("merge-patch {without:?}"),
            Reducer::Sql(expressions) => serde_json::to_string(expressions).expect("text is always JSON"),
            Reducer::Events => "events".to_owned(),
        };
        let digest = Sha256::digest(text);
        digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Folds events by SQL, on a connection that can do nothing but calculate.
#[derive(Debug)]
pub struct Calculator {
    connection: Connection,
    limit: TimeLimit,
}

impl Calculator {
    pub fn new() -> rusqlite::Result<Self> {
        let (connection, limit) = authorizer::calculator(EXPRESSION_TIME_MAX, STATE_BYTES_MAX as i32)?;
        Ok(Self { connection, limit })
    }

    /// Whether this is one expression over what there is to be known.
    pub fn check(&self, expression: &str) -> Result<(), String> {
        let sql = statement(expression);
        let mut batch = rusqlite::Batch::new(&self.connection, &sql);
        let told = |error: rusqlite::Error| match error {
            rusqlite::Error::SqlInputError { msg, .. } => msg,
            other => other.to_string(),
        };
        let found = batch.next().map_err(told)?.ok_or("it is empty")?;
        for n in 1..=found.parameter_count() {
            let name = found.parameter_name(n).unwrap_or("?");
            if !PARAMETERS.contains(&name) {
                return Err(format!("there is no {name}; known are {}", PARAMETERS.join(", ")));
            }
        }
        if found.column_count() != 1 {
            return Err("it is more than one expression".to_owned());
        }
        match batch.next() {
            Ok(None) => Ok(()),
            _ => Err("it is more than one statement".to_owned()),
        }
    }

    fn evaluate(&self, expression: &str, state: &str, event: &Folded<'_>) -> Result<String, String> {
        let told = |error: rusqlite::Error| error.to_string();
        let mut found = self.connection.prepare_cached(&statement(expression)).map_err(told)?;
        for n in 1..=found.parameter_count() {
            let name = found.parameter_name(n).unwrap_or_default().to_owned();
            let bound = match name.as_str() {
                ":state" => found.raw_bind_parameter(n, state),
                ":position" => found.raw_bind_parameter(n, event.position),
                ":id" => found.raw_bind_parameter(n, event.id),
                ":stream_id" => found.raw_bind_parameter(n, event.stream_id),
                ":stream_type" => found.raw_bind_parameter(n, event.stream_type),
                ":version" => found.raw_bind_parameter(n, event.version),
                ":type" => found.raw_bind_parameter(n, event.kind),
                ":data" => found.raw_bind_parameter(n, event.data),
                ":metadata" => found.raw_bind_parameter(n, event.metadata),
                _ => found.raw_bind_parameter(n, event.time),
            };
            bound.map_err(told)?;
        }
        self.limit.begin();
        let mut rows = found.raw_query();
        let row = rows.next().map_err(told)?.ok_or("it gives nothing")?;
        match row.get_ref(0).map_err(told)? {
            ValueRef::Text(text) => {
                String::from_utf8(text.to_vec()).map_err(|_| "it gives text that is not UTF-8".into())
            }
            ValueRef::Integer(number) => Ok(number.to_string()),
            ValueRef::Real(number) => Ok(number.to_string()),
            ValueRef::Null => Err("it gives NULL".into()),
            ValueRef::Blob(_) => Err("it gives a BLOB: put json() around it".into()),
        }
    }
}

/// A comment at its end ends with its line.
fn statement(expression: &str) -> String {
    format!("SELECT (\n{expression}\n)")
}

/// A state that is being folded.
#[derive(Debug)]
pub enum State {
    /// And how many bytes of patches came since its size was last known.
    Patched(Node, usize),
    Calculated(String),
    /// Without the closing bracket.
    Listed(String),
}

impl State {
    /// Of a stream without events.
    pub fn first(reducer: &Reducer) -> Self {
        match reducer {
            Reducer::MergePatch { .. } => State::Patched(Node::empty(), 0),
            Reducer::Sql(_) => State::Calculated("{}".to_owned()),
            Reducer::Events => State::Listed("[".to_owned()),
        }
    }

    /// What a snapshot of this version holds; `None` where it cannot be gone on from, and has to be made anew.
    pub fn of_snapshot(reducer: &Reducer, text: &str, version: i64) -> Result<Option<Self>, String> {
        Ok(Some(match reducer {
            Reducer::MergePatch { .. } => State::Patched(Node::parse(text)?, 0),
            Reducer::Sql(_) => {
                serde_json::from_str::<&RawValue>(text).map_err(|error| error.to_string())?;
                State::Calculated(text.to_owned())
            }
            Reducer::Events => return Ok(listed(text, version)?.map(State::Listed)),
        }))
    }

    pub fn apply(&mut self, reducer: &Reducer, calculator: &Calculator, event: &Folded<'_>) -> Result<(), String> {
        match (self, reducer) {
            (State::Patched(node, unknown), Reducer::MergePatch { without }) => {
                let mut patch = Node::parse(event.data).map_err(|error| format!("its data is no JSON: {error}"))?;
                without.iter().for_each(|name| patch.remove(name));
                node.merge(patch);
                *unknown += event.data.len();
                if *unknown > STATE_BYTES_MAX {
                    fits(node.text().len())?;
                    *unknown = 0;
                }
            }
            (State::Calculated(state), Reducer::Sql(expressions)) => {
                let expression = expressions.get(event.kind).or_else(|| expressions.get(ANY));
                let none = || format!("no expression is said for events of type {:?}, and none for \"*\"", event.kind);
                let next = calculator.evaluate(expression.ok_or_else(none)?, state, event);
                *state = next.map_err(|error| format!("the expression for {:?}: {error}", event.kind))?;
            }
            (State::Listed(list), Reducer::Events) => {
                let raw = |what, text| {
                    serde_json::from_str::<&RawValue>(text).map_err(|error| format!("its {what} is no JSON: {error}"))
                };
                let (data, metadata) = (raw("data", event.data)?, raw("metadata", event.metadata.unwrap_or("null"))?);
                if list.len() > 1 {
                    list.push(',');
                }
                let text = |text: &str| serde_json::to_string(text).expect("text is always JSON");
                list.push_str(&format!(
                    r#"{{"Id":{},"StreamId":{},"Version":{},"EventType":{},"Data":{},"Metadata":{}}}"#,
                    text(event.id),
                    text(event.stream_id),
                    event.version,
                    text(event.kind),
                    data.get(),
                    metadata.get()
                ));
                fits(list.len())?;
            }
            _ => unreachable!("a state is folded by the reducer that it began with"),
        }
        Ok(())
    }

    /// As it is stored.
    pub fn finish(self) -> Result<String, String> {
        let text = match self {
            State::Patched(node, _) => node.text(),
            State::Calculated(text) => {
                let json = serde_json::from_str::<&RawValue>(&text);
                json.map_err(|error| format!("the state that the expressions come to is no JSON: {error}"))?;
                text
            }
            State::Listed(list) => list + "]",
        };
        fits(text.len())?;
        Ok(text)
    }
}

/// Looked at while it grows: what is larger is not folded on.
fn fits(bytes: usize) -> Result<(), String> {
    match bytes {
        0..=STATE_BYTES_MAX => Ok(()),
        bytes => Err(format!("its state has {bytes} bytes, and {STATE_BYTES_MAX} are the most")),
    }
}

/// A list of all events up to a version, without its closing bracket; `None` when it is another: FlightDeck, which lists the events that are in
/// its table, loses those that it has archived.
fn listed(text: &str, version: i64) -> Result<Option<String>, String> {
    #[derive(serde::Deserialize)]
    struct Element {
        #[serde(rename = "Version")]
        version: i64,
    }
    let elements: Vec<Element> =
        serde_json::from_str(text).map_err(|error| format!("it is no list of events: {error}"))?;
    let versions = elements.iter().map(|element| element.version);
    if !versions.eq(1..=version) {
        return Ok(None);
    }
    let text = text.trim_ascii_end();
    Ok(Some(text[..text.len() - 1].trim_ascii_end().to_owned()))
}
