//! A table of an application's own, described as a person would, and what is read from it.

use std::path::Path;
use std::time::Duration;

use outboxd::config;
use outboxd::event::{Batch, Position};
use outboxd::source::Settings;
use outboxd::source::reader::{Halt, Look, Mark, ReadNews, ReadRequest, Reader, RowsUpdate};
use rusqlite::Connection;

use super::rig::open;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// An application's file with a source `app` that is described in TOML.
pub struct Table {
    pub folder: tempfile::TempDir,
    pub app: Connection,
    pub source: Settings,
}

impl Table {
    /// Made with this SQL, described by these keys.
    pub fn new(sql: &str, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let app = open(&database);
        app.execute_batch(sql).unwrap();
        let source = described(folder.path(), keys).unwrap();
        Self { folder, app, source }
    }

    /// What a preset reads of a file that was written elsewhere.
    pub fn of_file(file: &Path, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        std::fs::copy(file, &database).unwrap();
        let app = open(&database);
        let source = described(folder.path(), keys).unwrap();
        Self { folder, app, source }
    }

    pub fn described(&self, keys: &str) -> Result<Settings, String> {
        described(self.folder.path(), keys)
    }

    /// Everything behind a position, up to a number of events.
    pub async fn read(&self, after: i64, most: usize) -> Result<Batch, Halt> {
        read(&self.source, after, most).await
    }

    pub async fn look(&self) -> Result<Look, Halt> {
        look(&self.source).await
    }
}

/// The source that these keys describe, or what is wrong with them.
pub fn described(folder: &Path, keys: &str) -> Result<Settings, String> {
    let file = folder.join("outboxd.toml");
    let text = format!(
        "[sources.app]\npath = \"app.db\"\n{keys}\n[sinks.out]\ntype = \"stdout\"\n[relays.r]\nsource = \"app\"\nsink = \"out\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let loaded = config::load_with(&file, Vec::new()).map_err(|error| error.to_string())?;
    Ok(loaded.config.sources["app"].clone())
}

pub async fn look(source: &Settings) -> Result<Look, Halt> {
    let reader = Reader::start(source.clone()).unwrap();
    tokio::time::timeout(PATIENCE, reader.look()).await.expect("a look is answered")
}

pub async fn read(source: &Settings, after: i64, most: usize) -> Result<Batch, Halt> {
    let reader = Reader::start(source.clone()).unwrap();
    tokio::time::timeout(PATIENCE, reader.look()).await.expect("a look is answered")?;
    let (reply, mut news) = tokio::sync::mpsc::unbounded_channel();
    reader.read(ReadRequest {
        after: Position(after),
        mark: Mark::default(),
        update: RowsUpdate::anew(),
        events_max: most,
        bytes_max: 1 << 20,
        event_bytes_max: 1 << 16,
        filter: Default::default(),
        reply,
    });
    match tokio::time::timeout(PATIENCE, news.recv()).await.expect("a read is answered") {
        Some(ReadNews::Batch(batch)) => Ok(batch),
        Some(ReadNews::Halted(halt)) => Err(halt),
        other => panic!("neither a batch nor a halt: {other:?}"),
    }
}
