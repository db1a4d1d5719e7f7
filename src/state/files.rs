//! The files that state stands in: each is locked, opened and migrated once, and has one writer that everyone shares.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};

use super::migrate;
use crate::controls::{self, Protection};
use crate::source::{self, StatePlace, inspection};
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::open::{self, Durable};
use crate::sqlite::place;
use crate::sqlite::premises::Finding;
use crate::sqlite::writer::{JobError, Owner, Writer, WriterState};

/// Why there is no writer (yet).
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What is wrong with the files was found without opening them.
    #[error("{0}")]
    Refused(Finding),
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    /// Others may still hold the writer of the old one, which would go on writing where nobody looks.
    #[error(
        "{path} was replaced by another file, or is gone, and what was open is the old one. Nothing was sent from the new one. Remedy: make sure that \
         the application uses the new file, and that no -wal of the old one lies beside it; then restart outboxd"
    )]
    Replaced { path: PathBuf },
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
            FileError::Refused(_) | FileError::Replaced { .. } | FileError::Migrate { .. } => false,
        }
    }
}

/// All writers of this process.
#[derive(Clone, Debug, Default)]
pub struct Files {
    // Taken only when a consumer starts, never on the hot path; a file that cannot be opened yet keeps nobody from another one.
    open: Arc<Mutex<Known>>,
}

/// By the file itself: whatever it is called, it has one writer. What a name meant when it was asked for first it means until all is let go:
/// a link that leads elsewhere since is a file that was replaced.
#[derive(Debug, Default)]
struct Known {
    names: HashMap<PathBuf, PathBuf>,
    places: HashMap<PathBuf, Place>,
}

impl Known {
    fn real(&mut self, path: &Path) -> PathBuf {
        self.names.entry(path.to_owned()).or_insert_with(|| place::real(path)).clone()
    }

    fn place(&mut self, path: &Path) -> Place {
        let real = self.real(path);
        self.places.entry(real).or_default().clone()
    }
}

type Place = Arc<Mutex<Slot>>;

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Open(Writer, Tables, Inode),
    /// Nobody asks for it any more; its thread ends, and with it the lock, when what was queued is written.
    Closing(watch::Receiver<WriterState>),
}

/// Which file it is, whatever its name; `None` = there is none of that name.
type Inode = Option<(u64, u64)>;

/// Whether our tables are known to stand in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tables {
    There,
    NotAskedFor,
}

impl Files {
    /// The writer of the file that the source's state stands in.
    pub async fn writer(&self, source: &source::Settings) -> Result<Writer, FileError> {
        self.opened(source, Tables::There).await
    }

    /// The writer of the application's own file, in which nothing of ours is made.
    pub async fn application(&self, source: &source::Settings) -> Result<Writer, FileError> {
        let inside = source::Settings { state: StatePlace::Inside, ..source.clone() };
        self.opened(&inside, Tables::NotAskedFor).await
    }

    async fn opened(&self, source: &source::Settings, wanted: Tables) -> Result<Writer, FileError> {
        let path = source.state_path();
        let place = self.open.lock().await.place(&path);
        let mut slot = place.lock().await;
        if let Slot::Closing(state) = &mut *slot {
            while state.changed().await.is_ok() {}
            *slot = Slot::Empty;
        }
        let is_fresh = matches!(*slot, Slot::Empty);
        let (writer, tables, inode) = match &*slot {
            Slot::Open(_, _, opened) if *opened != inode(&path) && !controls::is_off(Protection::Inode) => {
                return Err(FileError::Replaced { path });
            }
            Slot::Open(writer, tables, opened) => (writer.clone(), *tables, *opened),
            _ => (open(source, &path)?, Tables::NotAskedFor, inode(&path)),
        };
        // Whoever asks may be let go of while he waits for the tables: then the file is open all the same, and locked by us.
        *slot = Slot::Open(writer.clone(), tables, inode);
        if (wanted, tables) == (Tables::There, Tables::NotAskedFor) {
            if let Err(source) = writer.perform(migrate).await {
                if is_fresh {
                    *slot = Slot::Closing(writer.state.clone());
                }
                return Err(FileError::Migrate { path, source });
            }
            *slot = Slot::Open(writer.clone(), wanted, inode);
        }
        Ok(writer)
    }

    /// Lets go of all files, and waits until what was queued is written and their locks are free.
    pub async fn close(&self) {
        self.keep(&[]).await;
        for place in self.open.lock().await.places.values() {
            if let Slot::Closing(state) = &mut *place.lock().await {
                while state.changed().await.is_ok() {}
            }
        }
    }

    /// Lets go of all files but these. Nobody may be asking for one of the others.
    pub async fn keep(&self, paths: &[PathBuf]) {
        let mut open = self.open.lock().await;
        let kept: Vec<PathBuf> = paths.iter().map(|path| open.real(path)).collect();
        open.names.retain(|_, real| kept.contains(real));
        for (_, place) in open.places.iter().filter(|(real, _)| !kept.contains(real)) {
            let mut slot = place.lock().await;
            if let Slot::Open(writer, ..) = &*slot {
                *slot = Slot::Closing(writer.state.clone());
            }
        }
    }
}

fn inode(path: &Path) -> Inode {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn open(source: &source::Settings, path: &Path) -> Result<Writer, FileError> {
    if let Some(refusal) = inspection::refusal(source) {
        return Err(FileError::Refused(refusal));
    }
    let lock = LockFile::take(path)?;
    if matches!(source.state, StatePlace::Beside | StatePlace::At(_)) {
        let foreign = super::foreign(path).map_err(|source| FileError::Open { path: path.to_owned(), source })?;
        if let Some(refusal) = foreign {
            return Err(FileError::Refused(refusal));
        }
    }
    let (connection, owner) = match source.state {
        StatePlace::Inside => (open::writer(path, Durable::Normal), Owner::Application),
        StatePlace::Beside | StatePlace::At(_) | StatePlace::ReadModel(_) => (open::state_file(path), Owner::Ourselves),
    };
    let connection = connection.map_err(|source| FileError::Open { path: path.to_owned(), source })?;
    Writer::start(connection, path, owner, lock).map_err(|source| FileError::Open { path: path.to_owned(), source })
}
