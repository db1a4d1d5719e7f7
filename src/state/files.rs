//! The files that state stands in: each is locked, opened and migrated once, and has one writer that everyone shares.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::migrate;
use crate::source::{self, StatePlace};
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::open::{self, Durable};
use crate::sqlite::writer::{JobError, Owner, Writer};

/// Why there is no writer (yet).
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("cannot make the outboxd tables in {path}: {source}")]
    Migrate { path: PathBuf, source: JobError },
}

impl FileError {
    /// It may cure itself: another daemon may end, a folder appear, a lock be released.
    pub fn is_passing(&self) -> bool {
        match self {
            FileError::Lock(LockError::Held { .. }) => true,
            FileError::Lock(LockError::Io { .. }) => false,
            FileError::Open { source, .. } | FileError::Migrate { source: JobError::Sqlite(source), .. } => {
                matches!(fault::classify(source).0, Kind::Busy | Kind::Storage)
            }
            FileError::Migrate { .. } => false,
        }
    }
}

/// All writers of this process, by path.
#[derive(Clone, Debug, Default)]
pub struct Files {
    // Taken only when a consumer starts, never on the hot path; a file that cannot be opened yet keeps nobody from another one.
    open: Arc<Mutex<HashMap<PathBuf, Place>>>,
}

type Place = Arc<Mutex<Option<Writer>>>;

impl Files {
    /// The writer of the file that the source's state stands in.
    pub async fn writer(&self, source: &source::Settings) -> Result<Writer, FileError> {
        let path = source.state_path();
        let place = self.open.lock().await.entry(path.clone()).or_default().clone();
        let mut writer = place.lock().await;
        match &*writer {
            Some(writer) => Ok(writer.clone()),
            None => Ok(writer.insert(open(source, path).await?).clone()),
        }
    }
}

async fn open(source: &source::Settings, path: PathBuf) -> Result<Writer, FileError> {
    let lock = LockFile::take(&path)?;
    let (connection, owner) = match source.state {
        StatePlace::Inside => (open::writer(&path, Durable::Normal), Owner::Application),
        StatePlace::Beside | StatePlace::At(_) => (open::state_file(&path), Owner::Ourselves),
    };
    let connection = connection.map_err(|source| FileError::Open { path: path.clone(), source })?;
    let writer = Writer::start(connection, &path, owner, lock);
    let migrated = writer.perform(migrate).await;
    migrated.map_err(|source| FileError::Migrate { path, source })?;
    Ok(writer)
}
