//! Rows: any values in any columns become an event or a defect, by presets and by every decoder of a table described by hand, and its
//! envelope can be read again.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use outboxd::config::preset;
use outboxd::event::{BatchBuilder, Position};
use outboxd::sink::format::envelope;
use outboxd::source::declared::{Declared, FORMS, From, Take};
use outboxd::source::filter::Filter;
use outboxd::source::fit;
use outboxd::source::json_path::JsonPath;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql};

#[derive(Arbitrary, Debug)]
enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
}

impl ToSql for Cell<'_> {
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

#[derive(Arbitrary, Debug)]
enum Table<'a> {
    Outboxd,
    EventsourcePy,
    /// How the columns are understood, and the path to the payload.
    ByHand([Option<u8>; 8], Option<&'a str>),
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    table: Table<'a>,
    position: i64,
    cells: [Cell<'a>; 8],
    wanted: &'a str,
    event_bytes_max: u8,
}

thread_local! {
    static FILE: Connection = {
        let file = Connection::open_in_memory().unwrap();
        file.execute_batch(
            "CREATE TABLE outbox (position INTEGER PRIMARY KEY AUTOINCREMENT, id, stream_id, stream_type, type, key, payload, headers, time);
             CREATE TABLE event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, status, unused);
             CREATE TABLE by_hand (n INTEGER PRIMARY KEY AUTOINCREMENT, a, b, c, d, e, f, g, h)",
        )
        .unwrap();
        file
    };
}

fuzz_target!(|input: Input<'_>| FILE.with(|file| carry(file, &input)));

fn by_hand(forms: &[Option<u8>; 8], path: Option<&str>) -> Declared {
    let path = path.and_then(|path| JsonPath::parse(path).ok());
    let column = |index: usize, path: Option<JsonPath>| Take::Column {
        name: "abcdefgh"[index..=index].to_owned(),
        path,
        form: forms[index].map(|form| FORMS[usize::from(form) % FORMS.len()].1),
    };
    Declared {
        from: From::Table { name: "by_hand".into(), join: None },
        position: Some(Take::column("n")),
        allow_reused_positions: false,
        id: column(0, None),
        key: Some(column(1, None)),
        stream_id: Some(column(2, None)),
        stream_type: Some(column(3, path.clone())),
        version: Some(column(4, None)),
        kind: column(4, None),
        payload: column(5, path),
        headers: Some(column(6, None)),
        time: Some(column(7, None)),
        tombstones: forms[5].is_none(),
        rows: None,
        refuse: None,
    }
}

fn carry(file: &Connection, input: &Input<'_>) {
    let [a, b, c, d, e, f, g, h] = &input.cells;
    file.execute_batch("DELETE FROM outbox; DELETE FROM event_outbox; DELETE FROM by_hand").unwrap();
    let (declared, sql) = match &input.table {
        Table::Outboxd => {
            (preset::tables("outboxd", "outbox").unwrap(), "INSERT INTO outbox VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")
        }
        Table::EventsourcePy => (
            preset::tables("eventsource-py", "outbox").unwrap(),
            "INSERT INTO event_outbox (rowid, id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, unused)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        ),
        Table::ByHand(forms, path) => {
            ([by_hand(forms, *path)].into(), "INSERT INTO by_hand VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")
        }
    };
    file.prepare_cached(sql).unwrap().execute((input.position, a, b, c, d, e, f, g, h)).unwrap();
    // Which words go with which field is decided where a configuration is read; here any may stand anywhere.
    let Ok(mapping) = fit::mapping(file, &declared).unwrap() else { return };
    let filter = Filter::new(&[input.wanted.to_owned()]);
    let mut batch = BatchBuilder::default();
    let most = usize::from(input.event_bytes_max);
    let mut statement = file.prepare(&mapping.select(most, "true", "")).unwrap();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        mapping.push(row, &mut batch, most, |kind| filter.admits(kind)).unwrap();
    }
    let batch = batch.finish(Position(input.position), 0);
    for (index, event) in batch.events().enumerate() {
        assert!(event.payload.is_none_or(|payload| payload.len() <= most));
        assert!(batch.defect(index).is_some() || !event.id.is_empty());
        let mut out = Vec::new();
        envelope::keep(&event, "shop", &mut out);
        let kept = envelope::read(&out).expect("what is kept can be read");
        assert_eq!((kept.id.as_str(), kept.payload.as_deref()), (event.id, event.payload));
    }
}
