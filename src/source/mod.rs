//! Sources: ordered sets of events that an application owns in a SQLite file.
//!
//! Invariants, each named by a test in `tests/it`:
//! 1. An application's table is read in bounded batches, on a read-only connection, and never with a statement left open.
//! 2. What is handed out is durable first ([`reader`], G4).
//! 3. A table that is read by its feed is read only while the feed is whole ([`feed`]).
//! 4. A table read by checkpoint is never written ([`checkpointed`]); one read by row is marked by the file's writer alone ([`rows`]).
//!
//! How it fails: not there yet → waits; seen and gone, or another one → halts with the remedy. Where to start reading: [`reader`].

pub mod archive_file;
mod checkpointed;
pub mod declared;
mod decode;
pub mod feed;
pub mod filter;
pub mod fit;
pub mod inspection;
pub mod json_path;
mod listing;
pub mod mapping;
pub mod marking;
pub mod plan;
pub mod reader;
mod rows;
pub mod scan;
pub mod wake;

use std::path::PathBuf;
use std::sync::Arc;

use declared::Declared;

/// A resolved `[sources.X]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: String,
    pub path: PathBuf,
    /// Whose tables these are, when that is known by name.
    pub preset: Option<String>,
    /// How they are read: of several declarations the first that fits the file. Never empty.
    pub tables: Arc<[Declared]>,
    pub durability: Durability,
    pub state: StatePlace,
    /// The file, and the state, may lie where SQLite's locks do not hold between machines.
    pub allow_network_filesystem: bool,
}

/// Whether what was read is made durable before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Strict,
    Fast,
}

/// Where checkpoints and held events stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    /// `<file>-outboxd.db`.
    Beside,
    /// In the application's own file.
    Inside,
    At(PathBuf),
    /// In the file of a projection's tables.
    ReadModel(PathBuf),
}

impl Settings {
    /// Progress is written into the rows themselves, in the application's file.
    pub fn is_by_row(&self) -> bool {
        self.tables.iter().any(|table| table.rows.is_some())
    }

    /// Events are looked for in an archive, too.
    pub fn reads_archive(&self) -> bool {
        self.tables.iter().any(|table| table.archive().is_some())
    }

    /// The file that checkpoints and held events stand in.
    pub fn state_path(&self) -> PathBuf {
        match &self.state {
            StatePlace::Inside => self.path.clone(),
            StatePlace::At(path) | StatePlace::ReadModel(path) => path.clone(),
            StatePlace::Beside => {
                let mut path = self.path.clone().into_os_string();
                path.push("-outboxd.db");
                path.into()
            }
        }
    }
}
