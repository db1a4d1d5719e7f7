//! Rows such as no application would write, made from a seed.

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use crate::support::dice::Dice;

/// What names an event is read up to this size.
pub const NAME_BYTES_MAX: usize = 64 << 10;

/// A value as SQLite holds it, whatever the column's type says.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    /// SQLite takes any bytes for text.
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Cell::Null => ValueRef::Null,
            Cell::Integer(n) => ValueRef::Integer(*n),
            Cell::Real(n) => ValueRef::Real(*n),
            Cell::Text(bytes) => ValueRef::Text(bytes),
            Cell::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Cell {
    fn text(text: impl Into<String>) -> Self {
        Cell::Text(text.into().into_bytes())
    }

    /// Text and blobs as they are, numbers in decimal.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Cell::Null => None,
            Cell::Integer(n) => Some(n.to_string().into_bytes()),
            Cell::Real(n) => Some(n.to_string().into_bytes()),
            Cell::Text(bytes) | Cell::Blob(bytes) => Some(bytes.clone()),
        }
    }
}

/// One row, for whichever table.
#[derive(Clone, Debug)]
pub struct Row {
    pub position: i64,
    /// What an outbox that is read by row calls it.
    pub name: Cell,
    pub id: Cell,
    pub key: Cell,
    pub stream_id: Cell,
    pub stream_type: Cell,
    pub kind: Cell,
    pub version: Cell,
    pub payload: Cell,
    pub headers: Cell,
    pub time: Cell,
}

/// What the rows may be like.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// One row in so many has a large payload, of at most `heavy_bytes`.
    pub heavy_every: u64,
    pub heavy_bytes: u64,
    /// The payload column holds `{"payload": ...}`.
    pub wrapped: bool,
}

/// What a terminal obeys, what breaks lines, ends strings, turns the direction, or is no text at all.
const NASTY: [&[u8]; 24] = [
    b"",
    b" ",
    b"\0",
    b"a\0b",
    b"\x1b[2J\x1b[1;1H\x1b[31m",
    b"\x1b]0;owned\x07",
    b"\r\n",
    b"\"\\',;{}[]$(id)`",
    b"'; DROP TABLE outbox; --",
    b"../../../etc/passwd",
    b"%s%n%d",
    b"{type}{{header.x}}",
    b"\x7f\x08\x08",
    "\u{202e}gnp.exe\u{202c}".as_bytes(),
    "\u{2066}\u{200b}\u{feff}\u{ad}".as_bytes(),
    "\u{9b}31m\u{85}\u{2028}".as_bytes(),
    "Zwölf 日本 🦀 e\u{301}".as_bytes(),
    "\u{10ffff}\u{fffd}\u{e0001}".as_bytes(),
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"ok\xe2\x82",
    b"null",
    b"-0",
];

const TIMES: [&[u8]; 14] = [
    b"2026-11-21T02:43:00.123456Z",
    b"2026-11-21 02:43:00",
    b"1970-01-01T00:00:00Z",
    b"1969-12-31T23:59:59.999999Z",
    b"2999-12-31T23:59:59Z",
    b"9999-12-31T23:59:59.999999999+23:59",
    b"0000-00-00T00:00:00Z",
    b"2026-02-30T25:61:61Z",
    b"-4713-11-24T12:00:00Z",
    b"tomorrow",
    b"2026-11-21T02:43:00+99:99",
    b"\xf0\x9f\x95\x9b",
    b"2026-11-21T02:43:00[Europe/Zurich]",
    b"1e400",
];

/// JSON that is JSON, and hard to read.
fn odd_json(dice: &mut Dice) -> String {
    let deep = |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
    let depth = [30, 300, 3_000][dice.below(3) as usize];
    match dice.below(10) {
        0 => deep("[", "]", depth),
        1 => deep("{\"a\":", "}", depth),
        2 => "1e999".into(),
        3 => "-0.000000000000000000000000000000000000000000001".into(),
        4 => r#""\ud800 \u0000 \u001b[31m""#.into(),
        5 => r#"{"a":1,"a":2,"":null}"#.into(),
        6 => "\n{ \"a\" :\r\n\t[1.00, 2e0]\n}\n".into(),
        7 => "null".into(),
        8 => "123456789012345678901234567890".into(),
        _ => format!(r#"{{"n":{},"text":"{}"}}"#, dice.next(), "x".repeat(dice.below(300) as usize)),
    }
}

fn noise(dice: &mut Dice, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|_| dice.next() as u8).collect()
}

/// Whatever fits into a column without a type.
fn any_cell(dice: &mut Dice) -> Cell {
    let nasty = NASTY[dice.below(NASTY.len() as u64) as usize].to_vec();
    match dice.below(14) {
        0 => Cell::Null,
        1 => Cell::Integer(dice.next() as i64),
        2 => Cell::Integer([0, -1, i64::MAX, i64::MIN][dice.below(4) as usize]),
        3 => Cell::Real([0.0, -0.5, 1e300, f64::INFINITY, f64::MIN_POSITIVE][dice.below(5) as usize]),
        4 => Cell::Blob(nasty),
        5 => Cell::Blob(noise(dice, 24)),
        6 => Cell::Text(noise(dice, 24)),
        7 => Cell::text("n".repeat(dice.below(400) as usize)),
        _ => Cell::Text(nasty),
    }
}

/// At and beyond the limit for names.
fn huge_cell(dice: &mut Dice) -> Cell {
    let bytes = NAME_BYTES_MAX - 1 + dice.below(3) as usize;
    let fill = vec![b'a' + dice.below(26) as u8; bytes];
    if dice.below(2) == 0 { Cell::Text(fill) } else { Cell::Blob(fill) }
}

impl Row {
    /// Most columns of most rows are in order, so that what is wrong with one does not hide what is wrong with the other.
    pub fn thrown(dice: &mut Dice, position: i64, taste: Taste) -> Self {
        let key = Cell::text(format!("key-{}", dice.below(500)));
        let mut row = Self {
            position,
            name: Cell::text(format!("row-{position}")),
            id: Cell::text(format!("id-{position}")),
            stream_id: key.clone(),
            key,
            stream_type: Cell::text("order"),
            kind: Cell::text("Happened"),
            version: Cell::Integer(position),
            payload: payload(dice, taste),
            headers: headers(dice),
            time: Cell::Text(TIMES[dice.below(2) as usize].to_vec()),
        };
        for _ in 0..[0, 1, 1, 2, 4][dice.below(5) as usize] {
            let cell = if dice.below(200) == 0 { huge_cell(dice) } else { any_cell(dice) };
            match dice.below(8) {
                // An id that came before, or one that is only odd.
                0 if dice.below(8) == 0 => row.id = Cell::text(format!("id-{}", dice.below(50))),
                0 => row.id = cell,
                1 => row.key = cell,
                2 => row.stream_id = cell,
                3 => row.stream_type = cell,
                4 => row.kind = cell,
                5 => row.version = cell,
                6 => row.time = Cell::Text(TIMES[dice.below(TIMES.len() as u64) as usize].to_vec()),
                _ => row.time = cell,
            }
        }
        row.name = match dice.below(20) {
            0 => Cell::Blob(format!("\u{0}row-{position}\u{0}").into_bytes()),
            1 => Cell::Integer(-position),
            2 => Cell::Text([format!("row-{position}").as_bytes(), b"\xff\x1b[2J\xc0"].concat()),
            3 => Cell::Text([format!("row-{position}\0").as_bytes(), &vec![b'r'; NAME_BYTES_MAX - 100]].concat()),
            _ => row.name,
        };
        row
    }
}

fn payload(dice: &mut Dice, taste: Taste) -> Cell {
    if dice.below(taste.heavy_every) == 0 {
        let bytes = dice.below(taste.heavy_bytes);
        return Cell::Blob(noise(dice, bytes));
    }
    if taste.wrapped && dice.below(10) > 0 {
        let space = [" ", "\n", ""][dice.below(3) as usize];
        return Cell::text(format!("{{\"x\":[{{}}],{space}\"payload\":{space}{}{space}}}", odd_json(dice)));
    }
    match dice.below(8) {
        0 => Cell::Null,
        1 => Cell::Text(Vec::new()),
        2 => Cell::Blob(Vec::new()),
        3..=5 => Cell::text(odd_json(dice)),
        _ => any_cell(dice),
    }
}

fn headers(dice: &mut Dice) -> Cell {
    match dice.below(12) {
        0 => Cell::text(odd_json(dice)),
        1 => any_cell(dice),
        2 => Cell::text(format!(r#"{{"deep":{},"tenant":"a"}}"#, odd_json(dice).replace(['\n', '\r'], " "))),
        3 => {
            Cell::text(r#"{"traceparent":"00-ab-cd-01","x-Delay":"1","CC":"q","":"","a\u0000b":"c","n":-7,"\ud800":1}"#)
        }
        4 => Cell::text(r#"{"tenant":"\u001b[2J\u202e"}"#),
        5 => Cell::text(format!(r#"{{"{}":"long name"}}"#, "h".repeat(300))),
        _ => Cell::Null,
    }
}
