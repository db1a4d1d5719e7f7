//! What is written is what was said, on a real file: the statements of this room, one by one.

use std::time::Duration;

use rusqlite::Connection;

use super::checkpoint::{self, Checkpoint, Sent, Witnesses};
use super::copies;
use super::files::FileError;
use super::held::{self, HeldRow, HeldState, Selection};
use super::resolution::{self, Resolution};
use super::settlement::{Advance, HeldChange, RowMark, Settlement};
use super::{SCHEMA_VERSION, migrate, schema_version};
use crate::clock;
use crate::event::{Position, RowKey};
use crate::source::mapping::RowMapping;
use crate::source::reader::Mark;
use crate::sqlite::lockfile::LockError;
use crate::sqlite::open;
use crate::sqlite::writer::JobError;

fn file() -> (tempfile::TempDir, Connection) {
    let folder = tempfile::tempdir().unwrap();
    let connection = open::state_file(&folder.path().join("state.db")).unwrap();
    migrate(&connection).unwrap();
    (folder, connection)
}

fn mark(position: i64) -> Mark {
    Mark { position: Position(position), event_id: format!("e{position}") }
}

fn checkpoint_at(consumer: &str, position: i64) -> Checkpoint {
    let mut witnesses = Witnesses::default();
    witnesses.advance(&mark(position));
    Checkpoint {
        consumer: consumer.into(),
        source: "shop".into(),
        definition: "table=outbox".into(),
        mark: mark(position),
        witnesses,
        sent: Sent::Window,
        updated_at: String::new(),
    }
}

fn row(key: &str, id: &str, state: HeldState) -> HeldRow {
    HeldRow {
        key: key.as_bytes().into(),
        ordinal: 0,
        position: Position(7),
        row_key: None,
        event_id: id.into(),
        state,
        attempts: 1,
        next_attempt_micros: (state == HeldState::Retrying).then_some(99),
        reason: Some("refused".into()),
        detail: Some("not like this".into()),
        held_at: "2020-02-02T03:15:20.000000Z".into(),
        payload: Some(b"{}".to_vec()),
    }
}

fn rows_of(connection: &Connection, key: &str) -> Vec<(String, i64, HeldState)> {
    let rows = held::of_key(connection, "r", key.as_bytes(), 100).unwrap();
    rows.into_iter().map(|row| (row.event_id, row.ordinal, row.state)).collect()
}

fn of_id(connection: &Connection, id: &str) -> HeldRow {
    let selection = Selection { id: Some(id.into()), ..Selection::default() };
    held::select(connection, "r", &selection, 1).unwrap().remove(0)
}

fn refusal(result: Result<(), JobError>) -> String {
    match result {
        Err(JobError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_tables_are_made_once_and_only_those_that_are_ours_are_used() {
    let (_folder, connection) = file();
    assert_eq!(schema_version(&connection).unwrap(), Some(SCHEMA_VERSION));
    migrate(&connection).unwrap();
    for stamp in ["99", "-1"] {
        connection.execute("UPDATE outboxd_meta SET value = ?1 WHERE name = 'schema_version'", [stamp]).unwrap();
        assert!(refusal(migrate(&connection)).contains(&format!("version {stamp}")));
    }
    connection.execute("DELETE FROM outboxd_meta", []).unwrap();
    assert!(refusal(migrate(&connection)).contains("not ours"));
}

#[test]
fn a_checkpoint_is_read_as_it_was_put() {
    let (_folder, connection) = file();
    assert_eq!(checkpoint::load(&connection, "r").unwrap(), None);
    for (consumer, position) in [("s", 4), ("r", 5), ("r", 6)] {
        checkpoint::put(&connection, &checkpoint_at(consumer, position)).unwrap();
    }
    let found = checkpoint::load(&connection, "r").unwrap().unwrap();
    assert!(clock::parse_micros(&found.updated_at).is_some());
    assert_eq!(found, Checkpoint { updated_at: found.updated_at.clone(), ..checkpoint_at("r", 6) });
    let all: Vec<String> = checkpoint::all(&connection).unwrap().into_iter().map(|c| c.consumer).collect();
    assert_eq!(all, ["r", "s"]);
    let sent = |consumer| checkpoint::load(&connection, consumer).unwrap().unwrap().sent;
    held::delete(&connection, "s", b"k", 0).unwrap();
    assert_eq!((sent("r"), sent("s")), (Sent::Window, Sent::Anything));
    for consumer in ["r", "s"] {
        let there = checkpoint::load(&connection, consumer).unwrap().unwrap();
        checkpoint::begin(&connection, &there, false).unwrap();
    }
    assert_eq!((sent("r"), sent("s")), (Sent::Window, Sent::Anything), "a run that begins has settled nothing yet");
    checkpoint::set_clean(&connection, "s").unwrap();
    held::delete(&connection, "s", b"k", 0).unwrap();
    assert_eq!((sent("r"), sent("s")), (Sent::Window, Sent::Nothing));
    connection.execute("UPDATE outboxd_checkpoint SET witnesses = 'x'", []).unwrap();
    assert!(refusal(checkpoint::load(&connection, "r").map(drop)).contains("damaged"));
}

#[test]
fn a_run_begins_where_it_looked_or_not_at_all() {
    let (_folder, connection) = file();
    let at = |position| checkpoint_at("r", position);
    let standing = || checkpoint::load(&connection, "r").unwrap().map(|found| found.mark);
    assert!(refusal(checkpoint::begin(&connection, &at(5), false)).contains("somebody else moved it"));
    assert_eq!(standing(), None, "it was there before");
    checkpoint::begin(&connection, &at(5), true).unwrap();
    assert_eq!(standing(), Some(mark(5)));
    assert!(refusal(checkpoint::begin(&connection, &at(9), true)).contains("somebody else moved it"));
    assert!(refusal(checkpoint::begin(&connection, &at(9), false)).contains("somebody else moved it"));
    assert_eq!(standing(), Some(mark(5)), "somebody else was the first");
}

#[test]
fn a_checkpoint_moves_only_from_where_it_is() {
    let (_folder, connection) = file();
    checkpoint::put(&connection, &checkpoint_at("r", 5)).unwrap();
    checkpoint::put(&connection, &checkpoint_at("s", 5)).unwrap();
    checkpoint::set_clean(&connection, "r").unwrap();
    let witnesses = checkpoint_at("r", 8).witnesses;
    checkpoint::advance(&connection, "r", Position(5), &mark(8), &witnesses).unwrap();
    let moved = checkpoint::load(&connection, "r").unwrap().unwrap();
    assert_eq!((moved.mark, moved.witnesses, moved.sent), (mark(8), witnesses.clone(), Sent::Window));
    assert_eq!(checkpoint::load(&connection, "s").unwrap().unwrap().mark, mark(5));
    let refused = refusal(checkpoint::advance(&connection, "r", Position(5), &mark(9), &witnesses));
    assert!(refused.contains("somebody else moved it"), "{refused}");
    assert_eq!(checkpoint::load(&connection, "r").unwrap().unwrap().mark, mark(8));
}

#[test]
fn a_pause_is_recorded_for_one_and_forgotten_with_all_that_is_recorded_of_it() {
    let (_folder, connection) = file();
    for consumer in ["r", "s"] {
        checkpoint::put(&connection, &checkpoint_at(consumer, 5)).unwrap();
        held::insert(&connection, consumer, &row("a", "e1", HeldState::Dead)).unwrap();
        checkpoint::set_paused(&connection, consumer, true).unwrap();
    }
    checkpoint::set_paused(&connection, "r", true).unwrap();
    let paused = |consumer| checkpoint::is_paused(&connection, consumer).unwrap();
    assert_eq!((paused("r"), paused("s"), paused("t")), (true, true, false));
    checkpoint::set_paused(&connection, "s", false).unwrap();
    assert_eq!((paused("r"), paused("s")), (true, false));
    checkpoint::forget(&connection, "r").unwrap();
    assert_eq!(checkpoint::load(&connection, "r").unwrap(), None);
    assert_eq!((held::counts(&connection, "r").unwrap(), paused("r")), ([0; 4], false));
    assert_eq!(held::counts(&connection, "s").unwrap(), [0, 1, 0, 0]);
}

#[test]
fn held_rows_stand_in_order_behind_their_key_and_are_read_as_they_were_written() {
    let (_folder, connection) = file();
    let first = row("a", "e1", HeldState::Retrying);
    for row in [&first, &row("a", "e2", HeldState::Waiting), &row("b", "e3", HeldState::Dead)] {
        held::insert(&connection, "r", row).unwrap();
    }
    held::insert(&connection, "s", &row("a", "other", HeldState::Dead)).unwrap();
    held::insert(&connection, "r", &row("c", "e4", HeldState::Skipped)).unwrap();
    assert_eq!(held::of_key(&connection, "r", b"a", 1).unwrap(), [HeldRow { ordinal: 1, ..first.clone() }]);
    assert_eq!(
        rows_of(&connection, "a"),
        [("e1".into(), 1, HeldState::Retrying), ("e2".into(), 2, HeldState::Waiting)]
    );
    assert_eq!(rows_of(&connection, "c"), [], "a skipped one holds nothing");
    assert_eq!(held::counts(&connection, "r").unwrap(), [1, 1, 1, 1]);
    assert_eq!(held::PAYLOAD_BYTES_MAX, 1_048_576);

    let mut keys = held::keys(&connection, "r", Duration::from_secs(1)).unwrap();
    keys.sort_by(|a, b| a.key.cmp(&b.key));
    let heads: Vec<_> = keys.iter().map(|key| (&key.key[..], key.rows, key.head, key.due.is_some())).collect();
    assert_eq!(heads, [(&b"a"[..], 2, HeldState::Retrying, true), (b"b", 1, HeldState::Dead, false)]);
    assert_eq!(Some(keys[0].since_micros), clock::parse_micros(&first.held_at));

    held::delete(&connection, "r", b"a", 1).unwrap();
    assert_eq!(rows_of(&connection, "a"), [("e2".into(), 2, HeldState::Waiting)]);
    let again = HeldRow { ordinal: 2, state: HeldState::Dead, attempts: 4, reason: None, payload: None, ..first };
    held::update(&connection, "r", &again).unwrap();
    let found = held::of_key(&connection, "r", b"a", 9).unwrap().remove(0);
    assert_eq!((found.attempts, found.state, &found.reason), (4, HeldState::Dead, &None));
    assert_eq!(found.payload, Some(b"{}".to_vec()), "a copy that was kept stays");
    assert_eq!(held::payload(&connection, "r", &found).unwrap(), found.payload);
    assert_eq!(held::payload(&connection, "r", &HeldRow { ordinal: 99, ..found }).unwrap(), None);
    let mut ids = held::ids(&connection, "r").unwrap();
    ids.sort();
    assert_eq!(ids, ["e2", "e3", "e4"]);
    assert_eq!(rows_of(&connection, "b"), [("e3".into(), 1, HeldState::Dead)]);
}

#[test]
fn dead_letters_are_found_selected_and_revived() {
    let (_folder, connection) = file();
    assert_eq!(held::first_dead(&connection, "r").unwrap(), None);
    let named = |id: &str, state, row_key| HeldRow { row_key: Some(row_key), ..row(id, id, state) };
    held::insert(&connection, "r", &named("e1", HeldState::Dead, RowKey::Integer(1))).unwrap();
    held::insert(&connection, "r", &named("e2", HeldState::Skipped, RowKey::Text(b"two"[..].into()))).unwrap();
    held::insert(&connection, "r", &named("e3", HeldState::Waiting, RowKey::Integer(3))).unwrap();
    assert_eq!(held::first_dead(&connection, "r").unwrap().unwrap().event_id, "e1");
    assert_eq!(held::first_dead(&connection, "s").unwrap(), None);
    let dead = held::dead_rows(&connection, "r").unwrap();
    assert_eq!(dead, [RowKey::Integer(1), RowKey::Text(b"two"[..].into())]);
    for (row_key, id) in dead.iter().zip(["e1", "e2"]) {
        assert_eq!(held::by_row_key(&connection, "r", row_key).unwrap().unwrap().event_id, id);
    }
    assert_eq!(held::by_row_key(&connection, "s", &dead[0]).unwrap(), None);

    let select = |selection: Selection, most| {
        let rows = held::select(&connection, "r", &selection, most).unwrap();
        rows.into_iter().map(|row| row.event_id).collect::<Vec<_>>()
    };
    let all = Selection::default();
    assert_eq!(select(all.clone(), 9), ["e1", "e2", "e3"]);
    assert_eq!(select(all.clone(), 2), ["e1", "e2"]);
    assert_eq!(select(Selection { heads_only: true, ..all.clone() }, 9), ["e1", "e2"]);
    assert_eq!(select(Selection { id: Some("e2".into()), ..all.clone() }, 9), ["e2"]);
    assert_eq!(select(Selection { key: Some(b"e3".to_vec()), ..all.clone() }, 9), ["e3"]);
    let age = clock::now_micros() - clock::parse_micros("2020-02-02T03:15:20Z").unwrap();
    assert_eq!(select(Selection { older_than_micros: Some(age / 2), ..all.clone() }, 9).len(), 3);
    assert_eq!(select(Selection { older_than_micros: Some(age * 2), ..all.clone() }, 9).len(), 0);
    held::insert(&connection, "r", &named("d", HeldState::Waiting, RowKey::Integer(4))).unwrap();
    assert_eq!(select(all, 9), ["e1", "e2", "d", "e3"], "what waits comes behind what was refused");

    for id in ["e1", "e2", "e3"] {
        let row = of_id(&connection, id);
        held::revive(&connection, "r", &row, 1234).unwrap();
        let now = of_id(&connection, id);
        let revived = (HeldState::Retrying, 0, Some(1234));
        let expected = if id == "e3" { (HeldState::Waiting, 1, None) } else { revived };
        assert_eq!((now.state, now.attempts, now.next_attempt_micros), expected, "{id}");
    }
}

fn marking() -> RowMapping {
    let one = |sql: &str| vec![sql.to_owned()];
    RowMapping {
        pending: "o.status = 'pending'".into(),
        order: Vec::new(),
        walk: None,
        delivered: Some("o.status = 'done'".into()),
        on_delivered: one("UPDATE work SET status = 'done', at = :now WHERE id = :row AND status = 'pending'"),
        on_released: one(
            "UPDATE work SET status = 'late', at = :now WHERE id = :row AND status IN ('pending', 'failed')",
        ),
        on_retry: one("UPDATE work SET tries = tries + 1, error = :error WHERE id = :row AND status = 'pending'"),
        on_rejected: one("UPDATE work SET status = 'failed', error = :error WHERE id = :row AND status = 'pending'"),
        on_dead_letter: None,
        tested: Vec::new(),
        index: None,
        is_own_sql: true,
    }
}

#[test]
fn a_settlement_changes_what_it_says_and_nothing_else() {
    let (_folder, connection) = file();
    checkpoint::put(&connection, &checkpoint_at("r", 5)).unwrap();
    held::insert(&connection, "r", &row("a", "e1", HeldState::Retrying)).unwrap();
    held::insert(&connection, "r", &row("b", "e2", HeldState::Retrying)).unwrap();
    let advance = |from| Advance { from: Position(from), to: mark(9), witnesses: Witnesses::default() };
    let settlement = Settlement {
        consumer: "r".into(),
        advance: Some(advance(5)),
        held: vec![
            HeldChange::Insert(row("c", "e3", HeldState::Dead)),
            HeldChange::Update(HeldRow { ordinal: 1, attempts: 2, ..row("b", "e2", HeldState::Dead) }),
            HeldChange::Delete { key: b"a"[..].into(), ordinal: 1 },
        ],
        rows: vec![],
        delivered: 0,
        copies: true,
    };
    settlement.apply(&connection, None).unwrap();
    let copied: Vec<String> =
        copies::waiting(&connection, "r", 0, 9).unwrap().into_iter().map(|copy| copy.event_id).collect();
    assert_eq!(copied, ["e3", "e2"]);
    assert_eq!(checkpoint::load(&connection, "r").unwrap().unwrap().mark, mark(9));
    assert_eq!(rows_of(&connection, "a"), []);
    assert_eq!(rows_of(&connection, "b"), [("e2".into(), 1, HeldState::Dead)]);
    assert_eq!(rows_of(&connection, "c"), [("e3".into(), 1, HeldState::Dead)]);
    assert!(refusal(settlement.apply(&connection, None)).contains("no longer at position 5"));
}

#[test]
fn only_the_dead_are_copied_and_only_where_copies_are_wanted() {
    let (_folder, connection) = file();
    for (key, state, copies) in [
        ("a", HeldState::Dead, false),
        ("b", HeldState::Retrying, true),
        ("c", HeldState::Waiting, true),
        ("d", HeldState::Skipped, true),
    ] {
        let held = vec![HeldChange::Insert(row(key, key, state))];
        Settlement { consumer: "r".into(), held, copies, ..Settlement::default() }.apply(&connection, None).unwrap();
    }
    let copied: Vec<String> =
        copies::waiting(&connection, "r", 0, 9).unwrap().into_iter().map(|copy| copy.event_id).collect();
    assert_eq!(copied, ["d"]);
}

#[test]
fn rows_are_marked_by_what_became_of_them_and_only_as_they_were_read() {
    let (_folder, connection) = file();
    connection
        .execute_batch(
            "CREATE TABLE work (id ANY PRIMARY KEY, status TEXT, at TEXT, error TEXT, tries INTEGER DEFAULT 0) STRICT;
             INSERT INTO work (id, status) VALUES (1, 'pending'), ('two', 'pending'), (3, 'pending'), (4, 'failed'), (5, 'by hand'), (6, 'pending');",
        )
        .unwrap();
    let rows = vec![
        (RowKey::Integer(1), RowMark::Delivered),
        (RowKey::Text(b"two"[..].into()), RowMark::Rejected("no".into())),
        (RowKey::Integer(3), RowMark::Retry("not yet".into())),
        (RowKey::Integer(4), RowMark::Released),
        (RowKey::Integer(5), RowMark::Delivered),
    ];
    let settlement = Settlement { consumer: "r".into(), rows, ..Settlement::default() };
    settlement.apply(&connection, None).unwrap();
    let state = |id: &dyn rusqlite::ToSql| {
        let sql = "SELECT status, at IS NOT NULL, coalesce(error, ''), tries FROM work WHERE id = ?1";
        let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        connection.query_row(sql, [id], columns).unwrap()
    };
    let is = |status: &str, at: bool, error: &str, tries: i64| (status.to_owned(), at, error.to_owned(), tries);
    assert_eq!(state(&1), is("pending", false, "", 0), "without a mapping there is nothing to mark");
    settlement.apply(&connection, Some(&marking())).unwrap();
    assert_eq!(state(&1), is("done", true, "", 0));
    assert_eq!(state(&"two"), is("failed", false, "no", 0));
    assert_eq!(state(&3), is("pending", false, "not yet", 1));
    assert_eq!(state(&4), is("late", true, "", 0));
    assert_eq!(state(&5), is("by hand", false, "", 0));
    assert_eq!(state(&6), is("pending", false, "", 0));
}

#[test]
fn what_may_cure_itself_is_waited_for_and_nothing_else() {
    let path = || std::path::PathBuf::from("app.db-outboxd.db");
    let sqlite = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
    let open = |code| FileError::Open { path: path(), source: sqlite(code) };
    let migrate = |source| FileError::Migrate { path: path(), source };
    let io = || std::io::Error::other("no");
    for (error, passes) in [
        (FileError::Lock(LockError::Held { path: path(), holder: "pid 1".into() }), true),
        (FileError::Lock(LockError::Io { path: path(), source: io() }), false),
        (open(rusqlite::ffi::SQLITE_BUSY), true),
        (open(rusqlite::ffi::SQLITE_FULL), true),
        (open(rusqlite::ffi::SQLITE_NOTADB), false),
        (migrate(JobError::Sqlite(sqlite(rusqlite::ffi::SQLITE_BUSY))), true),
        (migrate(JobError::Sqlite(sqlite(rusqlite::ffi::SQLITE_CORRUPT))), false),
        (migrate(JobError::Refused("not ours".into())), false),
    ] {
        assert_eq!(error.is_passing(), passes, "{error}");
    }
}

#[test]
fn who_decided_what_is_recorded() {
    let (_folder, connection) = file();
    let discard = Resolution {
        consumer: "r",
        action: "discard",
        event_id: Some("e1"),
        key: Some(b"a"),
        reason: "a test order",
        detail: "{}".into(),
    };
    resolution::record(&connection, &discard).unwrap();
    let sql =
        "SELECT consumer || action || event_id || cast(key AS TEXT) || reason || detail, at FROM outboxd_resolution";
    let (told, at): (String, String) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(told, "rdiscarde1aa test order{}");
    assert!(clock::parse_micros(&at).is_some());
}

#[test]
fn only_a_settlement_that_changes_nothing_is_empty() {
    let empty = || Settlement { consumer: "r".into(), ..Settlement::default() };
    assert!(empty().is_empty());
    let advance = Advance { from: Position(1), to: mark(2), witnesses: Witnesses::default() };
    assert!(!Settlement { advance: Some(advance), ..empty() }.is_empty());
    assert!(!Settlement { rows: vec![(RowKey::Integer(1), RowMark::Delivered)], ..empty() }.is_empty());
    let delete = HeldChange::Delete { key: b"a"[..].into(), ordinal: 1 };
    assert!(!Settlement { held: vec![delete], ..empty() }.is_empty());
}
