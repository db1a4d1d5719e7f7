//! How a row becomes an event: one SQL expression a field, and how its value is to be understood.
//!
//! A mapping is what [`super::fit`] makes of a declaration, be it a preset's or a person's, for a file as it is.

use rusqlite::types::ValueRef;

use super::decode::{self, Field};
use super::feed::Feed;
use crate::clock;
use crate::controls::{self, Protection};
use crate::event::{BatchBuilder, Columns, Position, Reason, Rejection, RowKey};

/// What names an event or says when it happened is read only up to this size.
const NAME_BYTES_MAX: usize = 64 << 10;

/// SQL expressions over `from`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    /// The table that the positions, or the marked rows, belong to.
    pub table: String,
    /// `FROM` clause: the table, with joins, or a query of a person's own.
    pub from: String,
    /// What names a row: the position of a table read by checkpoint, the unique column of one read by row.
    pub row: String,
    /// What [`Columns::position`] is.
    pub position: String,
    pub id: Field,
    pub key: Field,
    pub stream_id: Field,
    pub stream_type: Field,
    pub version: Field,
    pub kind: Field,
    pub payload: Field,
    pub headers: Field,
    pub time: Field,
    /// Further columns, which a payload or headers are built from.
    pub extra: Vec<String>,
    /// How many bytes the row has in the columns that may be long.
    pub size: String,
    /// A payload may be `NULL`.
    pub tombstones: bool,
    /// The greatest position that is there, where SQLite may give one out again; otherwise `sqlite_sequence` knows it.
    pub newest: Option<String>,
    /// Several rows with one position are possible: a query may join what it likes.
    pub is_joined: bool,
    /// Of a table read by its feed: rows that are only in the feed.
    pub gone: Option<Gone>,
    pub feed: Option<Feed>,
    /// Of a table read by checkpoint: where its rows are moved to. `from` is both.
    pub archive: Option<String>,
    /// What a checkpoint depends on: with another one, its positions and keys would mean something else.
    pub definition: String,
    /// Field by field, for people.
    pub told: Vec<(String, String)>,
    /// For a table read by row.
    pub rows: Option<RowMapping>,
}

/// Which rows are gone, and what is said of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    pub sql: String,
    pub detail: String,
}

/// Which rows are pending, in which order, and how what became of them is written. The statements know `:row`, `:now` (ISO),
/// `:error` and change nothing that the application changed meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowMapping {
    pub pending: String,
    /// SQL expressions, `NULL` last; ties are in order of insertion.
    pub order: Vec<String>,
    /// One of them that an index may bring in order: a column that is never `NULL`.
    pub walk: Option<String>,
    /// Columns of the table that `pending` compares, and that are not `NULL` in a pending row.
    pub tested: Vec<String>,
    /// Which were delivered, as far as the table says; `None`: they have left it.
    pub delivered: Option<String>,
    pub on_delivered: Vec<String>,
    /// The same for a row that was dead before.
    pub on_released: Vec<String>,
    pub on_retry: Vec<String>,
    /// Empty: a dead row stays as it is.
    pub on_rejected: Vec<String>,
    /// Runs behind them, where a relay wants it.
    pub on_dead_letter: Option<String>,
    /// The index that finds pending rows in order; none where that cannot be seen, or cannot be.
    pub index: Option<Index>,
    /// `pending` is SQL of a person's own.
    pub is_own_sql: bool,
}

/// An index that could be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub columns: Vec<String>,
    /// Which rows it has.
    pub only: Option<String>,
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
    pub const SIZE: usize = 8;
    pub const PAYLOAD: usize = 9;
    pub const HEADERS: usize = 10;
    pub const TIME: usize = 11;
    pub const TOO_LARGE: usize = 12;
    pub const GONE: usize = 13;
}

impl Mapping {
    /// `SELECT ... FROM ... WHERE filter tail`; sizes are asked first, and what is too large is not read: payload, headers and what paths
    /// lead into of more than `event_bytes_max`, anything else of more than [`NAME_BYTES_MAX`].
    pub fn select(&self, event_bytes_max: usize, filter: &str, tail: &str) -> String {
        let whole = |sql: &str| match sql {
            "NULL" => "NULL".to_owned(),
            sql => format!("CASE WHEN {size} <= {event_bytes_max} THEN {sql} END", size = self.size),
        };
        let named = [
            ("id", &self.id, NAME_BYTES_MAX),
            ("key", &self.key, NAME_BYTES_MAX),
            ("stream_id", &self.stream_id, NAME_BYTES_MAX),
            ("stream_type", &self.stream_type, NAME_BYTES_MAX),
            ("version", &self.version, NAME_BYTES_MAX),
            ("type", &self.kind, NAME_BYTES_MAX),
            ("headers", &self.headers, event_bytes_max),
            ("time", &self.time, NAME_BYTES_MAX),
        ];
        let whens: Vec<String> = named
            .iter()
            .filter(|(_, field, _)| field.path.is_none() && field.size != "0")
            .map(|(name, field, most)| {
                format!("WHEN {} > {most} THEN 'the column for {name} has more than {most} bytes'", field.size)
            })
            .collect();
        let too_large = if whens.is_empty() { "NULL".to_owned() } else { format!("CASE {} END", whens.join(" ")) };
        let [id, key, stream_id, stream_type, version, kind, headers, time] =
            named.map(|(_, field, most)| if field.path.is_some() { whole(&field.sql) } else { bounded(field, most) });
        let mut extra = String::new();
        for column in &self.extra {
            extra.push_str(", ");
            extra.push_str(&whole(column));
        }
        format!(
            "SELECT {row}, {position}, {id}, {key}, {stream_id}, {stream_type}, {version}, {kind}, {size}, {payload}, {headers}, \
             {time}, {too_large}, {gone}{extra} FROM {from} WHERE {filter} {tail}",
            row = self.row_bounded(),
            position = self.position,
            size = self.size,
            payload = whole(&self.payload.sql),
            gone = self.gone.as_ref().map_or("0", |gone| &gone.sql),
            from = self.from,
        )
    }

    /// Leaves out rows that are only in the feed.
    pub fn and_there(&self) -> String {
        self.gone.as_ref().map_or(String::new(), |gone| format!(" AND NOT ({})", gone.sql))
    }

    /// The row's name as it is read; `NULL` where it has none, or too long a one.
    pub fn row_bounded(&self) -> String {
        match self.rows {
            Some(_) => format!("CASE WHEN octet_length({row}) <= {NAME_BYTES_MAX} THEN {row} END", row = self.row),
            None => self.row.clone(),
        }
    }

    /// The id as it is read.
    pub fn id_bounded(&self) -> String {
        bounded(&self.id, NAME_BYTES_MAX)
    }

    /// The key as it is read.
    pub fn key_bounded(&self) -> String {
        bounded(&self.key, NAME_BYTES_MAX)
    }

    /// The type as it is read.
    pub fn kind_bounded(&self) -> String {
        bounded(&self.kind, NAME_BYTES_MAX)
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
        let gone = match &self.gone {
            Some(gone) if row.get(column::GONE)? => Some(Rejection::new(Reason::SourceRowGone, gone.detail.clone())),
            _ => None,
        };
        if gone.is_some() && controls::is_off(Protection::Gone) {
            return Ok(Pushed::PassedOver { position, id: String::new() });
        }
        let mut defect = match row.get_ref(column::TOO_LARGE)? {
            ValueRef::Text(detail) => Some(Rejection::new(Reason::TooLarge, String::from_utf8_lossy(detail))),
            _ => gone,
        };
        let bytes = match row.get_ref(column::SIZE)? {
            ValueRef::Integer(bytes) => bytes.max(0) as usize,
            _ => 0,
        };
        if bytes > event_bytes_max {
            let detail = format!("the payload has {bytes} bytes, event_bytes_max is {event_bytes_max}");
            defect.get_or_insert(Rejection::new(Reason::TooLarge, detail));
        }
        let mut unreadable = None;
        let kind = self.kind.text(row.get_ref(column::KIND)?, "type", &mut unreadable);
        // One whose type cannot be told may be wanted.
        let is_wanted = unreadable.is_some() || kind.as_deref().is_none_or(admits);
        defect = defect.or(unreadable);
        let id = self.id.text(row.get_ref(column::ID)?, "id", &mut defect).unwrap_or_default();
        if !is_wanted {
            return Ok(Pushed::PassedOver { position, id: id.into_owned() });
        }
        if id.is_empty() {
            self.id.complain(&mut defect, "id", "is NULL or empty");
        }
        if kind.is_none() {
            self.kind.complain(&mut defect, "type", "is NULL");
        }
        let kind = kind.unwrap_or_default();
        let payload = match self.payload.members.as_slice() {
            members @ [_, ..] if bytes <= event_bytes_max => {
                Some(decode::object(members, row, &mut defect)?.into_bytes().into())
            }
            _ => self.payload.bytes(row.get_ref(column::PAYLOAD)?, "payload", &mut defect),
        };
        if payload.is_none() && !self.tombstones {
            let what = match &self.payload.path {
                Some(path) => format!("has nothing at {path}"),
                None => "is NULL".to_owned(),
            };
            self.payload.complain(&mut defect, "payload", &what);
        }
        // What could not be understood is kept for whoever looks at the dead letter.
        let payload = match (payload, row.get_ref(column::PAYLOAD)?) {
            (None, ValueRef::Text(bytes) | ValueRef::Blob(bytes)) if defect.is_some() => Some(bytes.into()),
            (payload, _) => payload,
        };
        let headers = match self.headers.members.as_slice() {
            members @ [_, ..] if bytes <= event_bytes_max => Some(decode::object(members, row, &mut defect)?.into()),
            _ => self.headers.text(row.get_ref(column::HEADERS)?, "headers", &mut defect),
        };
        let key = self.key.bytes(row.get_ref(column::KEY)?, "key", &mut defect);
        let stream_id = self.stream_id.text(row.get_ref(column::STREAM_ID)?, "stream_id", &mut defect);
        let stream_type = self.stream_type.text(row.get_ref(column::STREAM_TYPE)?, "stream_type", &mut defect);
        let version = self.version.integer(row.get_ref(column::VERSION)?, "version", &mut defect);
        let time = self.time.text(row.get_ref(column::TIME)?, "time", &mut defect);
        batch.push(Columns {
            position,
            id: &id,
            key: key.as_deref(),
            stream_id: stream_id.as_deref(),
            stream_type: stream_type.as_deref(),
            version,
            kind: &kind,
            payload: payload.as_deref(),
            headers: headers.as_deref(),
            time: time.as_deref(),
            time_micros: time.as_deref().and_then(clock::parse_micros),
            death: None,
        });
        if let Some(defect) = defect {
            batch.defect(defect);
        }
        Ok(Pushed::Taken)
    }

    /// The row's position, which has to come after the last one.
    pub fn position_behind(&self, row: &rusqlite::Row<'_>, last: i64) -> Result<i64, String> {
        let table = &self.table;
        match row.get_ref(column::POSITION) {
            Ok(ValueRef::Integer(position)) if position > last => Ok(position),
            Ok(ValueRef::Integer(position)) => Err(format!(
                "positions in {table} are not unique and growing: {position} comes behind {last}. Nothing of the batch was sent. Remedy: \
                 name a position that is unique; with a query, join so that each comes once"
            )),
            Ok(other) => Err(format!(
                "a position in {table} behind {last} is no integer but {:?}. Nothing of the batch was sent. Remedy: mend that row, or name \
                 another column as the position",
                other.data_type()
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the row is the one before once more: it stands in the table and in its archive, both times under this position and id. `before` is
    /// that of the row at `last`.
    pub fn is_copy(
        &self,
        row: &rusqlite::Row<'_>,
        last: i64,
        before: impl FnOnce() -> Option<String>,
    ) -> rusqlite::Result<bool> {
        if self.archive.is_none() || row.get_ref(column::POSITION)? != ValueRef::Integer(last) {
            return Ok(false);
        }
        let id = self.id.text(row.get_ref(column::ID)?, "id", &mut None);
        Ok(before().is_some_and(|before| id.is_some_and(|id| id == before)))
    }

    /// The id as it is handed on; the statement's first column is the id's expression.
    pub fn id_of(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<String> {
        Ok(self.id.text(row.get_ref(0)?, "id", &mut None).unwrap_or_default().into_owned())
    }

    /// How the row names itself, for tables read by row.
    pub fn row_key(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<RowKey>> {
        Ok(RowKey::of(row.get_ref(column::ROW)?))
    }
}

/// The index of the first of the columns that a payload or headers are built from.
pub const EXTRA: usize = 14;

impl RowMapping {
    /// Every statement that marks a row.
    pub fn statements(&self) -> impl Iterator<Item = &String> {
        [&self.on_delivered, &self.on_released, &self.on_retry, &self.on_rejected].into_iter().flatten()
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

/// The value of a field, or `NULL` where it is longer. SQLite knows a column's size without reading it.
fn bounded(field: &Field, most: usize) -> String {
    match field.size.as_str() {
        "0" => field.sql.clone(),
        size => format!("CASE WHEN {size} <= {most} THEN {} END", field.sql),
    }
}
