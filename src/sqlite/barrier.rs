//! Makes what was committed durable, without writing.
//!
//! An application at `synchronous=NORMAL` commits into a `-wal` that a power cut may still lose. Before anything that was read
//! from it is sent, the `-wal` is synced from here, read-only. Only the `-wal` may be opened beside SQLite: its locks live in
//! `-shm`, so closing this descriptor drops none.
//!
//! A sync that failed once is final: the kernel may have dropped the dirty pages, so a later success proves nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Barrier {
    wal: PathBuf,
    folder: PathBuf,
    /// The `-wal` whose directory entry is already durable.
    known_inode: Option<u64>,
    failed: Option<String>,
}

impl Barrier {
    pub fn new(database: &Path) -> Self {
        let (wal, folder) = places(database);
        Self { wal, folder, known_inode: None, failed: None }
    }

    /// The database's real path became known, or is another one now.
    pub fn follow(&mut self, database: &Path) {
        let (wal, folder) = places(database);
        if (&self.wal, &self.folder) != (&wal, &folder) {
            (self.wal, self.folder, self.known_inode) = (wal, folder, None);
        }
    }

    /// Everything that was committed before this call is durable when it returns `Ok`.
    /// The error is the same at every later call.
    pub fn raise(&mut self) -> Result<(), String> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.sync().map_err(|error| {
            let text = format!("syncing {} failed: {error}", self.wal.display());
            self.failed = Some(text.clone());
            text
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        let wal = match File::open(&self.wal) {
            Ok(wal) => wal,
            // No `-wal`: everything was checkpointed into the database file, which SQLite synced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        wal.sync_data()?;
        let inode = wal.metadata()?.ino();
        if self.known_inode != Some(inode) {
            File::open(&self.folder)?.sync_all()?;
            self.known_inode = Some(inode);
        }
        Ok(())
    }
}

/// The `-wal`, and the folder.
fn places(database: &Path) -> (PathBuf, PathBuf) {
    let mut wal = database.as_os_str().to_owned();
    wal.push("-wal");
    let folder = database.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (wal.into(), folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wal_there_is_nothing_to_sync() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Barrier::new(&folder.path().join("a.db")).raise(), Ok(()));
    }

    #[test]
    fn a_failure_is_final() {
        let folder = tempfile::tempdir().unwrap();
        let wal = folder.path().join("a.db-wal");
        // A symbolic link that leads to itself cannot be opened.
        std::os::unix::fs::symlink("a.db-wal", &wal).unwrap();
        let mut barrier = Barrier::new(&folder.path().join("a.db"));
        let first = barrier.raise().unwrap_err();
        std::fs::remove_file(&wal).unwrap();
        assert_eq!(barrier.raise(), Err(first));
    }
}
