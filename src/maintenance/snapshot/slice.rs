//! Some of a stream's events, taken out of the file before they are folded: no read transaction lasts for as long as folding takes, and none of
//! them is read that is larger than may be.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use super::reducer::{Folded, STATE_BYTES_MAX};
use super::tables::Stream;

/// Events read by one statement.
pub const EVENTS_MAX: i64 = 1_000;
/// No further event is read behind so many bytes.
const BYTES_MAX: usize = 4 << 20;
/// What is read of an event, in this order.
const NAMES: [&str; 5] = ["id", "type", "data", "metadata", "time"];

#[derive(Debug, Default)]
pub struct Slice {
    /// One after the other.
    text: String,
    rows: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    position: Option<i64>,
    version: i64,
    start: usize,
    ends: [usize; NAMES.len()],
    has_metadata: bool,
}

/// The columns of an event with these expressions in [`NAMES`]' order, and how many bytes they have; what is larger than the largest state is
/// not read, and NULL.
pub fn columns(position: &str, expressions: [&str; NAMES.len()]) -> String {
    let named = expressions.iter().zip(NAMES);
    let read =
        named.map(|(sql, name)| format!("CASE WHEN octet_length({sql}) <= {STATE_BYTES_MAX} THEN {sql} END AS {name}"));
    let sizes = expressions.map(|sql| format!("coalesce(octet_length({sql}), 0)"));
    format!("version, {position} AS position, {} AS bytes, {}", sizes.join(" + "), read.collect::<Vec<_>>().join(", "))
}

impl Slice {
    /// The next events of a stream behind a version (`after`) up to one; the inner error is about one of them.
    pub fn read(
        connection: &Connection,
        sql: &str,
        stream: &Stream,
        (after, upto): (i64, i64),
    ) -> rusqlite::Result<Result<Self, String>> {
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![stream.id, stream.kind, after, upto])?;
        let mut slice = Slice::default();
        while let Some(row) = rows.next()? {
            if let Err(what) = slice.take(row)? {
                return Ok(Err(what));
            }
            if slice.text.len() >= BYTES_MAX {
                break;
            }
        }
        Ok(Ok(slice))
    }

    fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<Result<(), String>> {
        let version = match row.get_ref(0)? {
            ValueRef::Integer(version) => version,
            other => {
                return Ok(Err(format!("the version of one of its events is of kind {}. {MEND}", other.data_type())));
            }
        };
        let bytes: i64 = row.get(2)?;
        if bytes > STATE_BYTES_MAX as i64 {
            return Ok(Err(format!("version {version} has {bytes} bytes, and {STATE_BYTES_MAX} are the most. {MEND}")));
        }
        let (start, mut ends, mut has_metadata) = (self.text.len(), [0; NAMES.len()], false);
        for (n, name) in NAMES.iter().enumerate() {
            let value = row.get_ref(3 + n)?;
            match value.as_str_or_null() {
                Ok(text) => {
                    has_metadata |= *name == "metadata" && text.is_some();
                    self.text.push_str(text.unwrap_or_default());
                }
                Err(_) => {
                    let kind = value.data_type();
                    return Ok(Err(format!(
                        "version {version}: its {name} cannot be read as text (it is {kind}). {MEND}"
                    )));
                }
            }
            ends[n] = self.text.len();
        }
        self.rows.push(Place { position: row.get(1)?, version, start, ends, has_metadata });
        Ok(Ok(()))
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn events<'a>(&'a self, stream: &'a Stream) -> impl Iterator<Item = Folded<'a>> {
        self.rows.iter().map(|row| {
            let field = |n: usize| &self.text[if n == 0 { row.start } else { row.ends[n - 1] }..row.ends[n]];
            Folded {
                position: row.position,
                id: field(0),
                stream_id: &stream.id,
                stream_type: &stream.kind,
                version: row.version,
                kind: field(1),
                data: field(2),
                metadata: row.has_metadata.then(|| field(3)),
                time: field(4),
            }
        })
    }
}

const MEND: &str = "Remedy: mend that row, or leave the stream's type out (\"none\")";
