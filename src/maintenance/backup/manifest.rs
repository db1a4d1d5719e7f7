//! What a backup says of itself: `manifest.json` beside its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A manifest that says another number is not read.
pub const FORMAT: u32 = 1;
pub const NAME: &str = "manifest.json";
/// No manifest of ours is larger; another is not read.
pub const BYTES_MAX: u64 = 16 << 20;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub job: String,
    /// When its first file was begun, in ISO 8601. What was committed before stands in it.
    pub began: String,
    /// When the last of its files had been opened, checked and counted.
    pub verified: String,
    pub outboxd: String,
    pub sqlite: String,
    /// In the order in which they were copied: a consumer's file before its source's.
    pub files: Vec<Copied>,
}

/// One database file of the backup.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Copied {
    /// Its name without a folder; in the backup with `.zst` behind it.
    pub name: String,
    /// Where it stood.
    pub path: PathBuf,
    pub bytes: u64,
    /// Of the database file itself.
    pub sha256: String,
    pub compressed_bytes: u64,
    /// Of the file in the backup.
    pub compressed_sha256: String,
    /// The permissions of the file that was copied.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub found: Found,
}

/// What was found in a copy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// Rows by table.
    pub tables: BTreeMap<String, u64>,
    /// Rows whose foreign key leads nowhere.
    pub foreign_key_violations: u64,
    /// The last number that each AUTOINCREMENT table has given out.
    pub sequences: BTreeMap<String, i64>,
    /// Consumers whose checkpoints stand in this file.
    pub consumers: BTreeMap<String, Stands>,
    /// Consumers of this file whose checkpoints stand elsewhere: how far they had come when it was copied.
    #[serde(default)]
    pub elsewhere: BTreeMap<String, Stands>,
}

/// How far a consumer had come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stands {
    pub source: String,
    pub position: i64,
    pub event_id: String,
}

impl Manifest {
    /// Reads one, and looks whether it is whole. The text says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = serde_json::from_str(text).map_err(|error| format!("it is no manifest: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("it is of format {}, and this outboxd reads format {FORMAT}", manifest.format));
        }
        let is_flat = |name: &str| Path::new(name).file_name().is_some_and(|last| last == name);
        if let Some(file) = manifest.files.iter().find(|file| !is_flat(&file.name)) {
            return Err(format!("it names the file {:?}, which is no plain name", file.name));
        }
        let names: std::collections::BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        if manifest.files.is_empty() || names.len() != manifest.files.len() {
            return Err("it names no file, or one twice".to_owned());
        }
        Ok(manifest)
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub fn compressed_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.compressed_bytes).sum()
    }
}

impl Copied {
    /// Its name in the backup.
    pub fn artefact(&self) -> String {
        format!("{}.zst", self.name)
    }
}
