//! How a table's columns become an event: SQL expressions, each for one column of the batch, and their decoding.
//!
//! A mapping is data. [`super::preset`] holds the known ones.

use rusqlite::types::ValueRef;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::event::{BatchBuilder, Columns, Position, Reason, Rejection, RowKey};

/// SQL expressions over `from`; `NULL` where the table has no such column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The table whose presence, and whose `sqlite_sequence`, count.
    pub table: &'static str,
    /// `FROM` clause: the table, with joins where the order needs them.
    pub from: &'static str,
    /// What names a row: the position of a table read by checkpoint, the unique column of one read by row.
    pub row: &'static str,
    pub id: &'static str,
    pub key: &'static str,
    pub stream_id: &'static str,
    pub stream_type: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub payload: &'static str,
    pub headers: &'static str,
    pub time: &'static str,
    /// The payload is the `payload` member of the JSON object in the column, taken as it stands.
    pub payload_member: bool,
    /// For a table read by row.
    pub rows: Option<RowMapping>,
}

/// Which rows are pending, in which order, and how what became of them is written. The statements know `:row`, `:now` (ISO),
/// `:error` and change nothing that the application changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowMapping {
    pub pending: &'static str,
    /// Which were delivered, as far as the table says.
    pub delivered: &'static str,
    pub order: &'static str,
    /// A number that grows in that order, where there is one.
    pub position: &'static str,
    pub on_delivered: &'static str,
    /// The same for a row that was dead before.
    pub on_released: &'static str,
    pub on_retry: &'static str,
    pub on_rejected: &'static str,
}

/// The columns of a statement made by [`Mapping::select`], by index.
mod column {
    pub const ROW: usize = 0;
    pub const POSITION: usize = 1;
    pub const ID: usize = 2;
    pub const KEY: usize = 3;
    pub const STREAM_ID: usize = 4;
    pub const STREAM_TYPE: usize = 5;
    pub const VERSION: usize = 6;
    pub const KIND: usize = 7;
    pub const PAYLOAD_BYTES: usize = 8;
    pub const PAYLOAD: usize = 9;
    pub const HEADERS: usize = 10;
    pub const TIME: usize = 11;
}

impl Mapping {
    /// `SELECT ... FROM ... WHERE filter tail`; the payload is read only when it is at most `event_bytes_max` long.
    pub fn select(&self, event_bytes_max: usize, filter: &str, tail: &str) -> String {
        let position = self.rows.as_ref().map_or(self.row, |rows| rows.position);
        format!(
            "SELECT {row}, {position}, {id}, {key}, {stream_id}, {stream_type}, {version}, {kind}, octet_length({payload}), \
             CASE WHEN octet_length({payload}) <= {event_bytes_max} THEN {payload} END, {headers}, {time} \
             FROM {from} WHERE {filter} {tail}",
            row = self.row,
            id = self.id,
            key = self.key,
            stream_id = self.stream_id,
            stream_type = self.stream_type,
            version = self.version,
            kind = self.kind,
            payload = self.payload,
            headers = self.headers,
            time = self.time,
            from = self.from,
        )
    }

    /// What a checkpoint depends on: with another one, its positions and keys would mean something else.
    pub fn definition(&self) -> String {
        format!("table={} row={} id={} key={} payload={}", self.table, self.row, self.id, self.key, self.payload)
    }

    /// Adds the row to the batch, or only says where it stands when `admits` does not want its type.
    pub fn push(
        &self,
        row: &rusqlite::Row<'_>,
        batch: &mut BatchBuilder,
        event_bytes_max: usize,
        admits: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<Pushed> {
        let position = match row.get_ref(column::POSITION)? {
            ValueRef::Integer(position) => Position(position),
            _ => Position(0),
        };
        let mut defect = None;
        let mut scratch = Scratch::default();
        let id = scratch.id.text(row.get_ref(column::ID)?, "id", &mut defect);
        let id = match id {
            Some(id) if !id.is_empty() => id,
            _ => {
                defect.get_or_insert_with(|| undecodable("the id is NULL or empty".into()));
                ""
            }
        };
        let kind = scratch.kind.text(row.get_ref(column::KIND)?, "type", &mut defect).unwrap_or_default();
        if defect.is_none() && !admits(kind) {
            return Ok(Pushed::PassedOver { position, id: id.to_owned() });
        }
        let time = scratch.time.text(row.get_ref(column::TIME)?, "time", &mut defect);
        let payload_bytes = match row.get_ref(column::PAYLOAD_BYTES)? {
            ValueRef::Integer(bytes) => bytes.max(0) as usize,
            _ => 0,
        };
        if payload_bytes > event_bytes_max {
            let detail = format!("the payload has {payload_bytes} bytes, event_bytes_max is {event_bytes_max}");
            defect.get_or_insert(Rejection::new(Reason::TooLarge, detail));
        }
        let whole = scratch.payload.bytes(row.get_ref(column::PAYLOAD)?);
        let payload = match whole {
            Some(bytes) if self.payload_member => member(bytes, &mut defect),
            other => other,
        };
        let event = Columns {
            position,
            id,
            key: scratch.key.bytes(row.get_ref(column::KEY)?),
            stream_id: scratch.stream_id.text(row.get_ref(column::STREAM_ID)?, "stream_id", &mut defect),
            stream_type: scratch.stream_type.text(row.get_ref(column::STREAM_TYPE)?, "stream_type", &mut defect),
            version: match row.get_ref(column::VERSION)? {
                ValueRef::Integer(version) => Some(version),
                _ => None,
            },
            kind,
            payload,
            headers: scratch.headers.text(row.get_ref(column::HEADERS)?, "headers", &mut defect),
            time,
            time_micros: time.and_then(clock::parse_micros),
        };
        batch.push(event);
        if let Some(defect) = defect {
            batch.defect(defect);
        }
        Ok(Pushed::Taken)
    }

    /// How the row names itself, for tables read by row.
    pub fn row_key(row: &rusqlite::Row<'_>) -> rusqlite::Result<RowKey> {
        Ok(match row.get_ref(column::ROW)? {
            ValueRef::Integer(n) => RowKey::Integer(n),
            ValueRef::Text(text) => RowKey::Text(String::from_utf8_lossy(text).into()),
            _ => RowKey::Text("".into()),
        })
    }
}

/// What became of a row in [`Mapping::push`].
pub enum Pushed {
    /// It is the batch's last event.
    Taken,
    PassedOver {
        position: Position,
        id: String,
    },
}

fn undecodable(detail: String) -> Rejection {
    Rejection::new(Reason::Undecodable, detail)
}

/// `$.payload` of a JSON object, byte for byte.
fn member<'a>(bytes: &'a [u8], defect: &mut Option<Rejection>) -> Option<&'a [u8]> {
    #[derive(Deserialize)]
    struct Wrapper<'a> {
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    match serde_json::from_slice::<Wrapper<'_>>(bytes) {
        Ok(wrapper) => Some(wrapper.payload.get().as_bytes()),
        Err(error) => {
            defect.get_or_insert_with(|| {
                undecodable(format!("the payload column is no JSON object with a payload: {error}"))
            });
            Some(bytes)
        }
    }
}

/// Room for columns whose stored form is not the one that is sent (numbers, mostly).
#[derive(Default)]
struct Scratch {
    id: Cell,
    key: Cell,
    stream_id: Cell,
    stream_type: Cell,
    kind: Cell,
    payload: Cell,
    headers: Cell,
    time: Cell,
}

#[derive(Default)]
struct Cell(String);

impl Cell {
    /// Text as it is, numbers in decimal; a blob is text when it is UTF-8 and a defect when it is not.
    fn text<'a>(&'a mut self, value: ValueRef<'a>, name: &str, defect: &mut Option<Rejection>) -> Option<&'a str> {
        match value {
            ValueRef::Null => None,
            ValueRef::Integer(n) => {
                self.0 = n.to_string();
                Some(&self.0)
            }
            ValueRef::Real(n) => {
                self.0 = n.to_string();
                Some(&self.0)
            }
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Some(text),
                Err(error) => {
                    defect.get_or_insert_with(|| undecodable(format!("the column for {name} is not UTF-8: {error}")));
                    self.0 = String::from_utf8_lossy(bytes).into_owned();
                    Some(&self.0)
                }
            },
        }
    }

    /// Text and blobs byte for byte, numbers in decimal.
    fn bytes<'a>(&'a mut self, value: ValueRef<'a>) -> Option<&'a [u8]> {
        match value {
            ValueRef::Null => None,
            ValueRef::Integer(n) => {
                self.0 = n.to_string();
                Some(self.0.as_bytes())
            }
            ValueRef::Real(n) => {
                self.0 = n.to_string();
                Some(self.0.as_bytes())
            }
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
        }
    }
}
