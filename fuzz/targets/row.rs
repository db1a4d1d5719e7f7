//! Rows: any values in any columns become an event or a defect, by every mapping's decoder, and its envelope can be read again.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use outboxd::event::{BatchBuilder, Position};
use outboxd::sink::format::envelope;
use outboxd::source::filter::Filter;
use outboxd::source::preset;
use outboxd::source::{Preset, Read};
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
struct Input<'a> {
    by_row: bool,
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
             CREATE TABLE event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, status, unused)",
        )
        .unwrap();
        file
    };
}

fuzz_target!(|input: Input<'_>| FILE.with(|file| carry(file, &input)));

fn carry(file: &Connection, input: &Input<'_>) {
    let [a, b, c, d, e, f, g, h] = &input.cells;
    file.execute_batch("DELETE FROM outbox; DELETE FROM event_outbox").unwrap();
    let (preset, sql) = match input.by_row {
        false => (Preset::Outboxd, "INSERT INTO outbox VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"),
        true => (
            Preset::EventsourcePy,
            "INSERT INTO event_outbox (rowid, id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, unused)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        ),
    };
    file.prepare_cached(sql).unwrap().execute((input.position, a, b, c, d, e, f, g, h)).unwrap();
    let mapping = preset::mapping(file, preset, Read::Outbox).unwrap().unwrap();
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
