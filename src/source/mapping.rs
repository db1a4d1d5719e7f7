//! How a table's columns become an event: SQL expressions, each for one column of the batch, and their decoding.
//!
//! A mapping is data. [`super::preset`] holds the known ones.

use rusqlite::types::ValueRef;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock;
use crate::event::{BatchBuilder, Columns, Position, Reason, Rejection, RowKey};

/// What names an event or says when it happened is read only up to this size.
const NAME_BYTES_MAX: usize = 64 << 10;

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

/// Which rows are pending, in which order (by number, those without one behind; then by time; then as inserted), and how what became of
/// them is written. The statements know `:row`, `:now` (ISO),
/// `:error` and change nothing that the application changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowMapping {
    pub pending: &'static str,
    /// Grows from commit to commit; `NULL` where there is no such number.
    pub number: &'static str,
    /// Which were delivered, as far as the table says.
    pub delivered: &'static str,
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
    pub const TOO_LARGE: usize = 12;
}

impl Mapping {
    /// `SELECT ... FROM ... WHERE filter tail`; sizes are asked first, and what is too large is not read: payload and headers of more
    /// than `event_bytes_max`, anything else of more than [`NAME_BYTES_MAX`].
    pub fn select(&self, event_bytes_max: usize, filter: &str, tail: &str) -> String {
        let position = self.rows.as_ref().map_or(self.row, |rows| rows.position);
        let named = [
            ("id", self.id, NAME_BYTES_MAX),
            ("key", self.key, NAME_BYTES_MAX),
            ("stream_id", self.stream_id, NAME_BYTES_MAX),
            ("stream_type", self.stream_type, NAME_BYTES_MAX),
            ("type", self.kind, NAME_BYTES_MAX),
            ("headers", self.headers, event_bytes_max),
            ("time", self.time, NAME_BYTES_MAX),
        ];
        let whens = named.iter().filter(|(_, sql, _)| *sql != "NULL").map(|(name, sql, most)| {
            let fits = fits(sql, *most);
            format!("WHEN NOT ({fits}) THEN 'the column for {name} has more than {most} bytes'")
        });
        let too_large = format!("CASE {} END", whens.collect::<Vec<_>>().join(" "));
        let [id, key, stream_id, stream_type, kind, headers, time] = named.map(|(_, sql, most)| bounded(sql, most));
        format!(
            "SELECT {row}, {position}, {id}, {key}, {stream_id}, {stream_type}, {version}, {kind}, octet_length({payload}), \
             {body}, {headers}, {time}, {too_large} FROM {from} WHERE {filter} {tail}",
            row = self.row_bounded(),
            version = self.version,
            payload = self.payload,
            body = bounded(self.payload, event_bytes_max),
            from = self.from,
        )
    }

    /// The row's name as it is read; `NULL` where it has none, or too long a one.
    pub fn row_bounded(&self) -> String {
        if self.rows.is_some() { bounded(self.row, NAME_BYTES_MAX) } else { self.row.to_owned() }
    }

    /// The id as it is read.
    pub fn id_bounded(&self) -> String {
        bounded(self.id, NAME_BYTES_MAX)
    }

    /// The key as it is read.
    pub fn key_bounded(&self) -> String {
        bounded(self.key, NAME_BYTES_MAX)
    }

    /// The type as it is read.
    pub fn kind_bounded(&self) -> String {
        bounded(self.kind, NAME_BYTES_MAX)
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
        let mut defect = match row.get_ref(column::TOO_LARGE)? {
            ValueRef::Text(detail) => Some(Rejection::new(Reason::TooLarge, String::from_utf8_lossy(detail))),
            _ => None,
        };
        let mut scratch = Scratch::default();
        let mut unreadable = None;
        let kind = scratch.kind.text(row.get_ref(column::KIND)?, "type", &mut unreadable);
        let is_wanted =
            unreadable.is_some() || (kind.is_none() && defect.is_some()) || admits(kind.unwrap_or_default());
        let kind = kind.unwrap_or_default();
        defect = defect.or(unreadable);
        let id = scratch.id.text(row.get_ref(column::ID)?, "id", &mut defect).unwrap_or_default();
        if !is_wanted {
            return Ok(Pushed::PassedOver { position, id: id.to_owned() });
        }
        if id.is_empty() {
            defect.get_or_insert_with(|| undecodable("the id is NULL or empty".into()));
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
    pub fn row_key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<RowKey>> {
        Ok(RowKey::of(row.get_ref(column::ROW)?))
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

/// Whether the value of `sql` is at most so long: `column` or `coalesce(column, column)`. SQLite knows a column's size without
/// reading it.
fn fits(sql: &str, most: usize) -> String {
    let columns = sql.strip_prefix("coalesce(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(sql);
    let size =
        columns.rsplit(", ").fold("0".to_owned(), |size, column| format!("ifnull(octet_length({column}), {size})"));
    format!("{size} <= {most}")
}

/// The value of `sql`, or `NULL` where it is longer.
fn bounded(sql: &str, most: usize) -> String {
    if sql == "NULL" { sql.to_owned() } else { format!("CASE WHEN {} THEN {sql} END", fits(sql, most)) }
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
