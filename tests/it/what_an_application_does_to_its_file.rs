//! What an application does to its own file while it is relayed, for a table read by checkpoint and for one read by row: docs/FAILURES.md
//! says what follows from each.

use std::path::PathBuf;

use outboxd::consumer::control::Command;
use outboxd::consumer::status::State;
use outboxd::source;
use rusqlite::Connection;

use crate::support::eventsource::{self, enqueue};
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Read, Relays, until};
use crate::support::proof::Proof;
use crate::support::rig;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Checkpoint,
    Row,
}

const WAYS: [Way; 2] = [Way::Checkpoint, Way::Row];

/// Each was asked of all that had arrived ([`Stage::has_arrived`]).
fn nothing_was_lost_or_repeated(what: &str) {
    Proof::of(&format!("the application {what}")).tried("ways of progress", 2).found("lost", 0).found("repeated", 0);
}

/// An application and a relay `r` of its outbox.
struct Stage {
    _folder: tempfile::TempDir,
    way: Way,
    database: PathBuf,
    app: Option<Connection>,
    far_side: FarSide,
    relays: Option<Relays>,
    placed: usize,
}

impl Stage {
    async fn new(way: Way) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let app = match way {
            Way::Checkpoint => {
                outboxd::store::init(&database).await.unwrap();
                rig::open(&database)
            }
            Way::Row => eventsource::make(&database, "g4"),
        };
        let far_side = FarSide::default();
        let mut stage = Self { _folder: folder, way, database, app: Some(app), far_side, relays: None, placed: 0 };
        stage.start();
        stage.place(20);
        stage.has_arrived().await;
        stage
    }

    fn table(&self) -> &'static str {
        if self.way == Way::Row { "event_outbox" } else { "outbox" }
    }

    fn settings(&self) -> source::Settings {
        match self.way {
            Way::Checkpoint => rig::source_of("s", &self.database),
            Way::Row => fleet::source("s", &self.database, Read::Outbox),
        }
    }

    fn start(&mut self) {
        self.relays = Some(Relays::one(self.settings(), fleet::fake(&self.far_side)));
    }

    /// Until the file is the application's alone, which is when it can leave WAL mode.
    async fn stop(&mut self) {
        self.relays.take().unwrap().stop().await;
        if self.app.is_some() {
            until("nobody else has it open", || self.switch("DELETE").map_err(|error| error.to_string())).await;
            self.switch("WAL").unwrap();
        }
    }

    fn switch(&self, mode: &str) -> rusqlite::Result<String> {
        self.app().query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))
    }

    fn app(&self) -> &Connection {
        self.app.as_ref().unwrap()
    }

    fn relays(&self) -> &Relays {
        self.relays.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.app = Some(rig::open(&self.database));
    }

    fn place(&mut self, count: usize) {
        let ids: Vec<String> = (self.placed..self.placed + count).map(|n| n.to_string()).collect();
        self.placed += count;
        match self.way {
            Way::Checkpoint => {
                let transaction = self.app().unchecked_transaction().unwrap();
                ids.iter().for_each(|id| rig::insert(&transaction, id, "k"));
                transaction.commit().unwrap();
            }
            Way::Row => enqueue(self.app(), &ids.iter().map(|id| (id.as_str(), "k")).collect::<Vec<_>>()),
        }
    }

    /// All that was placed has arrived, each once and in order, and it is running.
    async fn has_arrived(&self) {
        let what = format!("{:?}: everything arrives", self.way);
        until(&what, || match self.far_side.arrivals().len() {
            seen if seen >= self.placed => Ok(()),
            seen => Err(format!("{seen} of {}: {:?}", self.placed, self.relays().status("r"))),
        })
        .await;
        self.relays().reaches("r", |status| status.state == State::Running && status.in_flight == 0).await;
        let ids: Vec<String> = self.far_side.arrivals().into_iter().map(|arrival| arrival.id).collect();
        let placed: Vec<String> =
            (0..self.placed).map(|n| if self.way == Way::Row { format!("e-{n}") } else { n.to_string() }).collect();
        assert!(ids == placed, "{:?}: {ids:?}", self.way);
    }

    /// It halts and says so.
    async fn halts(&self, words: &[&str]) {
        let status = self.relays().reaches("r", |status| status.state == State::Halted).await;
        for word in words {
            assert!(status.detail.contains(word), "{:?}: {word:?} in {}", self.way, status.detail);
        }
    }

    async fn resume(&self) {
        self.relays().handle("r").ask(Command::Resume).await.unwrap();
    }

    fn wal_bytes(&self) -> Option<u64> {
        std::fs::metadata(self.database.with_file_name("app.db-wal")).ok().map(|meta| meta.len())
    }

    /// Whether others were in the way.
    fn truncates(&self) -> bool {
        let busy: i64 = self.app().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        busy == 0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_the_application_is_never_in_our_way_nor_we_in_its() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        for _ in 0..30 {
            stage.place(20);
            assert!(stage.truncates(), "{way:?}: the checkpoint met a reader for seconds");
        }
        stage.has_arrived().await;
        assert!(stage.truncates());
        assert_eq!(stage.wal_bytes(), Some(0), "{way:?}: an idle relay pins nothing");
    }
    nothing_was_lost_or_repeated("checkpoints (TRUNCATE)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_pins_the_wal_costs_disk_only() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        let reader = rig::open(&stage.database);
        reader.execute_batch("BEGIN").unwrap();
        let _: i64 =
            reader.query_row(&format!("SELECT count(*) FROM {}", stage.table()), [], |row| row.get(0)).unwrap();
        for _ in 0..100 {
            stage.place(50);
        }
        stage.has_arrived().await;
        let pinned = stage.wal_bytes().unwrap();
        reader.execute_batch("COMMIT").unwrap();
        assert!(stage.truncates(), "{way:?}");
        assert_eq!(stage.wal_bytes(), Some(0));
        println!("{way:?}: the -wal had grown to {pinned} bytes");
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("keeps a reader open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_repeats_and_loses_nothing() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        stage.app().execute_batch(&format!("DELETE FROM {} WHERE rowid % 2", stage.table())).unwrap();
        stage.app().execute_batch("VACUUM").unwrap();
        stage.place(20);
        stage.app().execute_batch("VACUUM").unwrap();
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("runs VACUUM");
}

/// Rebuilds the table as SQLite's documentation says: a new one, filled, renamed.
fn rebuild(stage: &Stage) {
    let table = stage.table();
    let sql: String = stage
        .app()
        .query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1", [table], |row| row.get(0))
        .unwrap();
    let renamed = sql.replacen(table, "rebuilt", 1);
    stage
        .app()
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; {renamed}; INSERT INTO rebuilt SELECT * FROM {table}; DROP TABLE {table};
             ALTER TABLE rebuilt RENAME TO {table}; COMMIT"
        ))
        .unwrap();
}

/// By row it also loses its indexes with this: rows are then found by looking through the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_rebuilt_with_its_rows_is_read_on() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        rebuild(&stage);
        stage.place(20);
        stage.has_arrived().await;
        rebuild(&stage);
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("rebuilds the table");
}

/// The numbers that were given out are forgotten with the rows: they would be given out again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_rebuilt_without_its_newest_rows_halts() {
    let stage = Stage::new(Way::Checkpoint).await;
    stage.app().execute_batch("DELETE FROM outbox WHERE position > 15").unwrap();
    rebuild(&stage);
    stage.halts(&["went back", "position set"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_column_changes_nothing() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        stage.app().execute_batch(&format!("ALTER TABLE {} ADD COLUMN note TEXT", stage.table())).unwrap();
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("adds a column");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_column_that_goes_halts_until_it_is_back() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        let (column, back, insert) = match way {
            Way::Checkpoint => ("payload", "payload ANY", "INSERT INTO outbox (id, key, type) VALUES ('20', 'k', 'T')"),
            Way::Row => (
                "event_data",
                "event_data TEXT NOT NULL DEFAULT '{\"payload\": null}'",
                "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, created_at)
                 VALUES ('20', 'e-20', 'T', 'k', 'A', '2026-11-21T03:15:20.378836+00:00')",
            ),
        };
        stage.app().execute_batch(&format!("ALTER TABLE {} DROP COLUMN {column}", stage.table())).unwrap();
        stage.app().execute_batch(insert).unwrap();
        stage.placed += 1;
        stage.halts(&["there is no column", column, "outboxd resume"]).await;
        stage.app().execute_batch(&format!("ALTER TABLE {} ADD COLUMN {back}", stage.table())).unwrap();
        stage.resume().await;
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("drops a mapped column");
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_mode_cannot_be_left_while_we_read_and_is_asked_for_when_it_was() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        stage.app().busy_timeout(std::time::Duration::ZERO).unwrap();
        let refused = stage.switch("DELETE").unwrap_err();
        assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{way:?}");
        stage.app().busy_timeout(std::time::Duration::from_secs(5)).unwrap();
        stage.place(20);
        stage.has_arrived().await;
        stage.stop().await;
        assert_eq!(stage.switch("DELETE").unwrap(), "delete");
        stage.place(20);
        stage.start();
        stage.halts(&["journal mode delete", "PRAGMA journal_mode = WAL", "outboxd resume"]).await;
        assert_eq!(stage.switch("WAL").unwrap(), "wal");
        stage.resume().await;
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("leaves WAL mode");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_lock_for_good_cannot_be_had_while_we_read() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        let other = rig::open(&stage.database);
        other.busy_timeout(std::time::Duration::ZERO).unwrap();
        other.execute_batch("PRAGMA locking_mode = EXCLUSIVE").unwrap();
        let refused = other.execute_batch("BEGIN IMMEDIATE; CREATE TABLE t (x); COMMIT").unwrap_err();
        drop(other);
        assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{way:?}");
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("wants the file for itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_closes_last_may_take_the_wal_away() {
    for way in WAYS {
        let mut stage = Stage::new(way).await;
        // We are still there: the `-wal` stays, and the application comes back to it.
        stage.place(20);
        stage.app = None;
        stage.has_arrived().await;
        assert!(stage.wal_bytes().is_some(), "{way:?}: it was taken away under a reader");
        stage.reopen();
        stage.place(20);
        stage.has_arrived().await;
        // We go first: the application takes the `-wal` with it, and is not there when we come back.
        stage.stop().await;
        stage.place(20);
        stage.app = None;
        assert_eq!(stage.wal_bytes(), None, "{way:?}");
        stage.start();
        stage.has_arrived().await;
        stage.reopen();
        stage.place(20);
        stage.has_arrived().await;
        // The application goes first, and we leave the `-wal` to it.
        stage.place(20);
        stage.has_arrived().await;
        stage.app = None;
        stage.stop().await;
        stage.reopen();
        let rows: i64 =
            stage.app().query_row(&format!("SELECT count(*) FROM {}", stage.table()), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, stage.placed as i64, "{way:?}");
        stage.start();
        stage.place(20);
        stage.has_arrived().await;
    }
    nothing_was_lost_or_repeated("closes last");
}
