//! Makes what was committed durable, without writing.
//!
//! An application at `synchronous=NORMAL` commits into a `-wal` that a power cut may still lose. Before anything that was read
//! from it is sent, the `-wal` is synced from here, read-only. Only the `-wal` may be opened beside SQLite: its locks live in
//! `-shm`, so closing this descriptor drops none.
//!
//! A sync that failed once is final: the kernel may have dropped the dirty pages, so a later success proves nothing. That holds for the
//! syncs of others too (an application's checkpoint, say). The kernel tells of an error every descriptor that was open by then, and none that
//! is opened later: so the `-wal` is kept open.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Barrier {
    wal: PathBuf,
    folder: PathBuf,
    open: Option<Wal>,
    failed: Option<String>,
}

#[derive(Debug)]
struct Wal {
    file: File,
    inode: u64,
    is_entry_durable: bool,
}

impl Barrier {
    pub fn new(database: &Path) -> Self {
        let (wal, folder) = places(database);
        Self { wal, folder, open: None, failed: None }
    }

    /// The file is about to be read. Its real path became known, or is another one now.
    pub fn follow(&mut self, database: &Path) {
        let (wal, folder) = places(database);
        if (&self.wal, &self.folder) != (&wal, &folder) {
            (self.wal, self.folder, self.open) = (wal, folder, None);
        }
        // What is wrong here, the first sync will show.
        let _ = self.open();
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
        self.open()?;
        // No `-wal`: everything was checkpointed into the database file, which SQLite synced.
        let Some(wal) = &mut self.open else { return Ok(()) };
        wal.file.sync_data()?;
        if !wal.is_entry_durable {
            File::open(&self.folder)?.sync_all()?;
            wal.is_entry_durable = true;
        }
        Ok(())
    }

    /// Opens the `-wal` that is there, unless it is the one that is open.
    fn open(&mut self) -> io::Result<()> {
        let inode = match fs::metadata(&self.wal) {
            Ok(meta) => Some(meta.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if self.open.as_ref().map(|wal| wal.inode) != inode {
            self.open = None;
            let file = match File::open(&self.wal) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            self.open = Some(Wal { inode: file.metadata()?.ino(), file, is_entry_durable: false });
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
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn without_a_wal_there_is_nothing_to_sync() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Barrier::new(&folder.path().join("a.db")).raise(), Ok(()));
    }

    #[test]
    fn the_wal_is_kept_open_until_it_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let wal = folder.path().join("a.db-wal");
        File::create(&wal).unwrap();
        let mut barrier = Barrier::new(&folder.path().join("a.db"));
        barrier.follow(&folder.path().join("a.db"));
        let descriptor = |barrier: &Barrier| barrier.open.as_ref().map(|wal| (wal.file.as_raw_fd(), wal.inode));
        let first = descriptor(&barrier);
        assert!(first.is_some() && barrier.raise().is_ok() && barrier.raise().is_ok());
        assert_eq!(descriptor(&barrier), first);
        let new = folder.path().join("new");
        File::create(&new).unwrap();
        fs::rename(new, &wal).unwrap();
        assert!(barrier.raise().is_ok() && descriptor(&barrier) != first);
        fs::remove_file(&wal).unwrap();
        assert!(barrier.raise().is_ok() && barrier.open.is_none());
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
