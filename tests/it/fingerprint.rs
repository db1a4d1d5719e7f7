//! A checkpoint fits its table, or the consumer halts with the remedy; another consumer goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use outboxd::consumer::control::{Operation, Target};
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;
use outboxd::event::Position;
use outboxd::source::StatePlace;

use crate::support::fake_sink::FarSide;
use crate::support::rig::{Rig, Running, check, eventually, insert, open, relay_to, source_of};

/// A copy as a backup tool makes it.
fn copy(from: &Path, to: &Path) {
    open(from).execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

/// The application lets go of its file, and another one takes its place.
fn replace(rig: &mut Rig, with: &Path) {
    rig.app = rusqlite::Connection::open_in_memory().unwrap();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", rig.database.display()));
    }
    std::fs::rename(with, &rig.database).unwrap();
    rig.app = open(&rig.database);
}

/// Starts the rig's relay, and another over a file of its own; returns the other's far side and application.
async fn start_beside_another(rig: &mut Rig) -> (FarSide, rusqlite::Connection) {
    let path = rig.folder.path().join("other.db");
    outboxd::store::init(&path).await.unwrap();
    let far_side = FarSide::default();
    let sources =
        BTreeMap::from([("shop".to_owned(), rig.source.clone()), ("other".to_owned(), source_of("other", &path))]);
    let relays = vec![rig.relay.clone(), relay_to("other", "other", &far_side)];
    rig.running = Some(Running::start(&sources, relays, WhenLocked::Wait));
    (far_side, open(&path))
}

/// The relay is halted and says why and what to do; the other one still carries.
async fn halts_alone(rig: &Rig, other: &(FarSide, rusqlite::Connection), why: &str) {
    eventually(why, || rig.status().state == State::Halted && rig.status().detail.contains(why)).await;
    assert!(rig.status().detail.contains("Remedy"), "{}", rig.status().detail);
    let before = other.0.arrivals().len();
    insert(&other.1, &format!("e{}", before + 1), "k");
    eventually("the other one flows on", || other.0.arrivals().len() == before + 1).await;
    assert_eq!(rig.running().status("other").state, State::Running);
}

async fn restored(place: StatePlace) -> (Rig, (FarSide, rusqlite::Connection)) {
    let mut rig = Rig::new().await;
    rig.source.state = place;
    let older = rig.folder.path().join("older.db");
    rig.place(100, 5);
    rig.start();
    rig.is_done().await;
    rig.drain().await;
    copy(&rig.database, &older);
    rig.start();
    rig.place(100, 5);
    rig.is_done().await;
    rig.drain().await;
    replace(&mut rig, &older);
    let other = start_beside_another(&mut rig).await;
    (rig, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_older_file_with_the_state_beside_it_halts_until_a_position_is_set() {
    let (mut rig, other) = restored(StatePlace::Beside).await;
    halts_alone(&rig, &other, "went back").await;
    rig.resume().await;
    halts_alone(&rig, &other, "position set").await;
    rig.place(10, 5);
    assert_eq!(rig.delivered().len(), 200, "nothing was sent from it");
    let to = Target::Position(Position(100));
    rig.ask(Operation::SetPosition { to, reason: "restored".into() }).await.unwrap();
    rig.is_done().await;
    assert_eq!(&rig.delivered()[200..], (201..=210).map(|n| format!("e{n}")).collect::<Vec<_>>());
    let recorded: String = rig.recorded("SELECT action || ' ' || reason FROM outboxd_resolution");
    assert_eq!(recorded, "position restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_older_file_that_has_grown_past_the_checkpoint_is_known_by_its_witnesses() {
    let mut rig = Rig::new().await;
    let older = rig.folder.path().join("older.db");
    rig.place(100, 5);
    copy(&rig.database, &older);
    rig.start();
    rig.place(100, 5);
    rig.is_done().await;
    rig.drain().await;
    replace(&mut rig, &older);
    // Other events at the same positions; the one at the checkpoint was pruned.
    for n in 0..200 {
        insert(&rig.app, &format!("new{n}"), "k");
    }
    rig.app.execute("DELETE FROM outbox WHERE position BETWEEN 195 AND 205", []).unwrap();
    rig.start();
    let status = rig.is(State::Halted).await;
    assert!(status.detail.contains("not the one that was read"), "{}", status.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_older_file_with_the_state_inside_resumes_from_its_own_checkpoint() {
    let (mut rig, _other) = restored(StatePlace::Inside).await;
    rig.app.execute("UPDATE sqlite_sequence SET seq = 200 WHERE name = 'outbox'", []).unwrap();
    rig.place(50, 5);
    rig.is_done().await;
    assert_eq!(rig.status().state, State::Running);
    check(&rig.far_side.arrivals(), 250);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_reused_while_it_runs_halt() {
    let mut rig = Rig::new().await;
    let other = start_beside_another(&mut rig).await;
    rig.place(20, 5);
    rig.is_done().await;
    let rebuild = "BEGIN IMMEDIATE; DELETE FROM outbox; DELETE FROM sqlite_sequence WHERE name = 'outbox'; COMMIT";
    rig.app.execute_batch(rebuild).unwrap();
    halts_alone(&rig, &other, "went back").await;
    for n in 0..30 {
        insert(&rig.app, &format!("new{n}"), "k");
    }
    rig.resume().await;
    halts_alone(&rig, &other, "not the one that was read").await;
    assert_eq!(rig.delivered().len(), 20);
    rig.ask(Operation::SetPosition { to: Target::First, reason: "rebuilt".into() }).await.unwrap();
    rig.is_done().await;
    assert_eq!(rig.delivered().len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_under_the_same_name_halts_while_it_runs() {
    let mut rig = Rig::new().await;
    let other = start_beside_another(&mut rig).await;
    rig.place(20, 5);
    rig.is_done().await;
    let newer = rig.folder.path().join("newer.db");
    copy(&rig.database, &newer);
    replace(&mut rig, &newer);
    halts_alone(&rig, &other, "replaced by another file").await;
    rig.place(20, 5);
    rig.resume().await;
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 40), 0, "it was the same table, so nothing is repeated");
}

/// What was open would be written into the old one, where nobody looks.
#[tokio::test(flavor = "multi_thread")]
async fn another_file_under_the_same_name_with_the_state_inside_wants_a_restart() {
    let mut rig = Rig::new().await;
    rig.source.state = StatePlace::Inside;
    let other = start_beside_another(&mut rig).await;
    rig.place(20, 5);
    rig.is_done().await;
    let newer = rig.folder.path().join("newer.db");
    copy(&rig.database, &newer);
    replace(&mut rig, &newer);
    halts_alone(&rig, &other, "replaced by another file while it was read").await;
    rig.place(20, 5);
    rig.resume().await;
    halts_alone(&rig, &other, "then restart outboxd").await;
    assert_eq!(rig.delivered().len(), 20);
    rig.drain().await;
    rig.start();
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 40), 0, "its own checkpoint came with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_or_table_that_goes_while_it_runs_halts() {
    let mut rig = Rig::new().await;
    let other = start_beside_another(&mut rig).await;
    rig.place(5, 5);
    rig.is_done().await;
    rig.app.execute_batch("ALTER TABLE outbox RENAME TO elsewhere").unwrap();
    halts_alone(&rig, &other, "outbox").await;
    rig.app.execute_batch("ALTER TABLE elsewhere RENAME TO outbox").unwrap();
    rig.resume().await;
    rig.is_done().await;
    let away = rig.folder.path().join("away.db");
    std::fs::rename(&rig.database, &away).unwrap();
    halts_alone(&rig, &other, "is gone").await;
    rig.resume().await;
    rig.is(State::Waiting).await;
    std::fs::rename(&away, &rig.database).unwrap();
    rig.is_done().await;
    rig.app.execute_batch("DROP TABLE outbox").unwrap();
    halts_alone(&rig, &other, "table outbox is gone").await;
    rig.resume().await;
    rig.is(State::Waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_autoincrement_halts() {
    let mut rig = Rig::new().await;
    rig.app
        .execute_batch("DROP TABLE outbox; CREATE TABLE outbox (position INTEGER PRIMARY KEY, id TEXT, stream_id TEXT, stream_type TEXT, type TEXT, key TEXT, payload TEXT, headers TEXT, time TEXT)")
        .unwrap();
    let other = start_beside_another(&mut rig).await;
    halts_alone(&rig, &other, "AUTOINCREMENT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_in_wal_mode_halts_and_cannot_leave_it_while_it_is_read() {
    let mut rig = Rig::new().await;
    rig.app.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    let other = start_beside_another(&mut rig).await;
    halts_alone(&rig, &other, "journal_mode = WAL").await;
    let _ = rig.app.execute_batch("PRAGMA journal_mode = WAL");
    rig.resume().await;
    rig.place(5, 5);
    rig.is_done().await;
    rig.app.busy_timeout(Duration::from_millis(200)).unwrap();
    let left: rusqlite::Result<String> = rig.app.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0));
    assert!(
        left.is_err() || left.is_ok_and(|mode| mode == "wal"),
        "documented: leaving WAL fails while we are connected"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_halts() {
    let mut rig = Rig::new().await;
    rig.app = rusqlite::Connection::open_in_memory().unwrap();
    std::fs::write(&rig.database, vec![b'x'; 8192]).unwrap();
    let other = start_beside_another(&mut rig).await;
    halts_alone(&rig, &other, "not a database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_state_tables_halt() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.is(State::Running).await;
    rig.drain().await;
    rig.state().execute("UPDATE outboxd_meta SET value = '99' WHERE name = 'schema_version'", []).unwrap();
    let other = start_beside_another(&mut rig).await;
    halts_alone(&rig, &other, "version 99").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mapping_halts_until_it_is_accepted() {
    let mut rig = Rig::new().await;
    rig.place(5, 5);
    rig.start();
    rig.is_done().await;
    rig.drain().await;
    rig.state().execute("UPDATE outboxd_checkpoint SET definition = 'another', source = 'formerly'", []).unwrap();
    let other = start_beside_another(&mut rig).await;
    halts_alone(&rig, &other, "consumer accept relay").await;
    rig.place(5, 5);
    rig.ask(Operation::Accept { reason: "the same".into() }).await.unwrap();
    rig.is_done().await;
    assert_eq!(check(&rig.far_side.arrivals(), 10), 0);
}
