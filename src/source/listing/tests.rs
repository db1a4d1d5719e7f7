use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::functions::FunctionFlags;

use super::*;
use crate::source::declared::{Declared, DeclaredRows, From, Mark, Pending, Take};
use crate::source::fit;

const ROWS: usize = 7_000;
const TABLES: &str = include_str!("../../../tests/tools/eventsource_generations/g4.sql");

/// A table with ties, both ways of writing a time, rows without an event, and rows that are not pending; inserted in disorder.
fn table(folder: &tempfile::TempDir) -> Connection {
    let connection = Connection::open(folder.path().join("app.db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
    connection.execute_batch(TABLES).unwrap();
    let transaction = connection.unchecked_transaction().unwrap();
    for n in (0..ROWS).map(|n| n * 4_999 % ROWS) {
        let separator = if n % 2 == 0 { ' ' } else { 'T' };
        insert(&transaction, n, &format!("2026-11-21{separator}03:15:{:02}", n * 31 % 3));
        if n % 3 > 0 {
            let event =
                "INSERT INTO events (event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload)
                         VALUES ('e' || ?1, 'k', 'A', 'T', ?1, '', '{}')";
            transaction.prepare_cached(event).unwrap().execute([n as i64]).unwrap();
        }
    }
    transaction.execute("UPDATE event_outbox SET status = 'published' WHERE rowid % 11 = 0", []).unwrap();
    transaction.commit().unwrap();
    connection
}

fn insert(connection: &Connection, n: usize, time: &str) {
    let row =
        "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
               VALUES ('r' || ?1, 'e' || ?1, 'T', 'k', 'A', '{}', ?2)";
    connection.prepare_cached(row).unwrap().execute(rusqlite::params![n as i64, time]).unwrap();
}

fn mapping(connection: &Connection) -> Mapping {
    let column = |name: &str| Take::column(name);
    let declared = Declared {
        from: From::Table {
            name: "event_outbox".into(),
            join: Some("LEFT JOIN events e ON e.event_id = o.event_id".into()),
            archive: None,
        },
        position: Some(Take::First(vec!["e.global_position".into(), "rowid".into()])),
        allow_reused_positions: false,
        id: column("o.event_id"),
        key: Some(column("o.aggregate_id")),
        stream_id: None,
        stream_type: None,
        version: None,
        kind: column("o.event_type"),
        payload: column("o.event_data"),
        headers: None,
        time: Some(column("o.created_at")),
        tombstones: false,
        rows: Some(DeclaredRows {
            row: "o.id".into(),
            pending: Pending::Sql("o.status = 'pending'".into()),
            order: vec!["e.global_position".into(), "o.created_at".into()],
            on_delivered: Mark::Delete,
            on_retry: None,
            on_rejected: None,
            on_dead_letter: None,
        }),
        refuse: None,
        sql_time_max: std::time::Duration::from_secs(10),
    };
    fit::mapping(connection, &[declared]).unwrap().unwrap()
}

fn rows(rows: usize) -> Most {
    Most { rows, bytes: usize::MAX }
}

fn sorted(connection: &Connection, condition: &str, most: usize) -> VecDeque<RowKey> {
    let sql = format!(
        "SELECT o.id FROM event_outbox o LEFT JOIN events e ON e.event_id = o.event_id WHERE o.status = 'pending' AND {condition}
         ORDER BY e.global_position IS NULL, e.global_position, replace(o.created_at, ' ', 'T'), o.rowid LIMIT {most}"
    );
    let mut statement = connection.prepare(&sql).unwrap();
    let rows = statement.query_map([], Mapping::row_key).unwrap();
    rows.map(|key| key.unwrap().unwrap()).collect()
}

#[test]
fn slices_list_what_one_statement_would() {
    let folder = tempfile::tempdir().unwrap();
    let connection = table(&folder);
    let mapping = mapping(&connection);
    let free = "CASE WHEN o.status = 'pending' THEN o.rowid % 7 > 0 END";
    let lists_all = || {
        for most in [1, 3_000, 100_000] {
            let listing = list(&connection, &mapping, free, Scope::Pending, rows(most), &TimeLimit::none()).unwrap();
            assert_eq!(listing.rows, sorted(&connection, "o.rowid % 7 > 0", most));
            assert_eq!(listing.pending, sorted(&connection, "true", ROWS).len() as u64);
        }
        let listing =
            list(&connection, &mapping, free, Scope::NewerThan(2_500), rows(4_000), &TimeLimit::none()).unwrap();
        assert_eq!(listing.rows, sorted(&connection, "o.rowid % 7 > 0 AND o.rowid > 2500", 4_000));
    };
    lists_all();
    connection
        .execute_batch(
            "DROP INDEX idx_outbox_status_created; DROP INDEX idx_outbox_pending; DROP INDEX idx_outbox_event_id",
        )
        .unwrap();
    lists_all();
}

/// Long names are listed in several lists, each the next part of the same order.
#[test]
fn a_list_is_cut_by_bytes_and_nothing_is_overtaken() {
    let folder = tempfile::tempdir().unwrap();
    let connection = table(&folder);
    connection.execute("UPDATE event_outbox SET id = id || hex(zeroblob(500 * (rowid % 5)))", []).unwrap();
    let mapping = mapping(&connection);
    let free = "CASE WHEN o.status = 'pending' THEN true END";
    let all = sorted(&connection, "true", ROWS);
    let most = Most { rows: ROWS, bytes: 1 << 20 };
    let listing = list(&connection, &mapping, free, Scope::Pending, most, &TimeLimit::none()).unwrap();
    assert!(listing.is_cut && (200..2_000).contains(&listing.rows.len()), "{}", listing.rows.len());
    assert!(listing.rows.iter().eq(all.iter().take(listing.rows.len())));
    let one = Most { rows: ROWS, bytes: 1 };
    let listing = list(&connection, &mapping, free, Scope::Pending, one, &TimeLimit::none()).unwrap();
    assert_eq!((listing.is_cut, listing.rows.len(), listing.rows.front()), (true, 1, all.front()));
}

/// Whatever stands behind the look or before it.
#[test]
fn what_is_committed_meanwhile_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let connection = table(&folder);
    let before = sorted(&connection, "true", ROWS);
    let other = Connection::open(folder.path().join("app.db")).unwrap();
    let asked = AtomicU32::new(0);
    connection
        .create_scalar_function("meanwhile", 0, FunctionFlags::SQLITE_UTF8, move |_| {
            match asked.fetch_add(1, Ordering::Relaxed) {
                2_500 => insert(&other, ROWS, "2026-11-21T03:15:00"),
                2_600 => insert(&other, ROWS + 1, "2026-11-21T03:15:09"),
                _ => {}
            }
            Ok(true)
        })
        .unwrap();
    let mapping = mapping(&connection);
    let listing =
        list(&connection, &mapping, "meanwhile()", Scope::Pending, rows(100_000), &TimeLimit::none()).unwrap();
    assert_eq!(sorted(&connection, "true", 100_000).len(), before.len() + 2);
    assert_eq!(listing.rows, before);
}

#[test]
fn rows_that_are_renumbered_meanwhile_are_listed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let connection = table(&folder);
    let other = Connection::open(folder.path().join("app.db")).unwrap();
    let asked = AtomicU32::new(0);
    connection
        .create_scalar_function("meanwhile", 0, FunctionFlags::SQLITE_UTF8, move |_| {
            if asked.fetch_add(1, Ordering::Relaxed) == 2_500 {
                other.execute_batch("DELETE FROM event_outbox WHERE rowid < 1000; VACUUM").unwrap();
            }
            Ok(true)
        })
        .unwrap();
    let mapping = mapping(&connection);
    let listing =
        list(&connection, &mapping, "meanwhile()", Scope::Pending, rows(100_000), &TimeLimit::none()).unwrap();
    assert_eq!(listing.rows, sorted(&connection, "true", 100_000));
}
