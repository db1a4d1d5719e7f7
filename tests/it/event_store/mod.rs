//! The event store: what was answered is there, what was refused is not, and what is archived is read as if it had not moved.

mod appends;
mod archive;
mod commands;
mod document;
mod input;
mod model;
mod processes;
mod relayed;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use outboxd::store::event::{Append, Appended, Expected, NewEvent};
use outboxd::store::fault::AppendError;
use outboxd::store::{self, EventStore, Options};
use rusqlite::Connection;

use crate::support::rig::open;

pub const WITHIN: Duration = Duration::from_secs(20);

/// A file with our tables, its store, and an application's connection to it.
pub struct Shop {
    pub folder: tempfile::TempDir,
    pub file: PathBuf,
    pub app: Connection,
    pub store: EventStore,
}

impl Shop {
    pub async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.db");
        store::init(&file).await.unwrap();
        let store = EventStore::open(&file, Options::default()).await.unwrap();
        Self { app: open(&file), folder, file, store }
    }

    pub async fn append(
        &self,
        stream: &str,
        expected: Expected,
        events: Vec<NewEvent>,
    ) -> Result<Appended, AppendError> {
        self.store.append(Append::new(stream, "Order", expected, events), WITHIN).await
    }

    /// So many events, each of a data of its own.
    pub async fn filled(&self, stream: &str, count: usize) {
        let events = (0..count).map(|n| NewEvent::new("Placed", format!("{{\"n\":{n}}}"))).collect();
        self.append(stream, Expected::Any, events).await.unwrap();
    }

    /// Ends the application's transaction when all that was appended before waits for it. Appends come in order: one that is told that its turn did
    /// not come has the others before it.
    pub async fn let_go_when_all_wait(&self) {
        let hasty = Append::new("hasty", "Order", Expected::Any, vec![event("hasty", "{}")]);
        assert_eq!(self.store.append(hasty, Duration::from_millis(1)).await, Err(AppendError::Locked));
        self.app.execute_batch("COMMIT").unwrap();
    }

    pub fn count(&self, table: &str) -> i64 {
        self.app.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    /// As an archiver does: in one transaction, and never the newest.
    pub fn archive(&self, stream: &str, up_to: i64) {
        archive(&self.app, stream, up_to);
    }

    pub async fn versions(&self, stream: &str) -> Vec<i64> {
        self.store.load(stream, 1).await.unwrap().iter().map(|event| event.version).collect()
    }
}

pub fn archive(app: &Connection, stream: &str, up_to: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    let sql = "INSERT INTO archived_events SELECT * FROM events WHERE stream_id = ?1 AND version <= ?2";
    transaction.execute(sql, (stream, up_to)).unwrap();
    transaction.execute("DELETE FROM events WHERE stream_id = ?1 AND version <= ?2", (stream, up_to)).unwrap();
    transaction.commit().unwrap();
}

/// An event with this id.
pub fn event(id: &str, data: &str) -> NewEvent {
    NewEvent::new("Placed", data).with_id(id)
}
