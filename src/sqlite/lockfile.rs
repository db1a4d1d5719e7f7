//! One daemon a file: an advisory lock that the kernel releases when its holder dies, on a file of its own.
//!
//! Never a lock on the database itself: that would be the application's to fear.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::place;
use crate::controls::{self, Protection};

/// Held until dropped.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
    pub path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path} is held by {holder}")]
    Held { path: PathBuf, holder: String },
    #[error("cannot use the lock file {path}")]
    Io { path: PathBuf, source: io::Error },
}

impl LockFile {
    /// Takes the lock that stands for writing `database`; does not wait.
    pub fn take(database: &Path) -> Result<Self, LockError> {
        // Beside the file itself, whatever it is called: two names must not make two locks.
        let mut path = place::real(database).into_os_string();
        path.push("-outboxd.lock");
        let path = PathBuf::from(path);
        let fail = |source| LockError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o660);
        let mut file = loop {
            let mut file = options.open(&path).map_err(fail)?;
            if controls::is_off(Protection::Lock) {
                return Ok(Self { _file: file, path });
            }
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => break file,
                // Its last holder has removed it meanwhile: whoever comes next would lock another one.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.trim();
                    let holder = if holder.is_empty() { "another process".into() } else { holder.to_owned() };
                    return Err(LockError::Held { path, holder });
                }
                Err(TryLockError::Error(error)) => return Err(fail(error)),
            }
        };
        // Who holds it, for people; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| file.rewind()).map_err(fail)?;
        writeln!(file, "process {}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file, path })
    }

    /// Lets go of it, and leaves no file.
    pub fn remove(self) {
        // Whoever has opened it looks whether it is still there once he has the lock.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let inode = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    let here = inode(file.metadata());
    here.is_some() && here == inode(fs::metadata(path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread;

    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a.db");
        let first = LockFile::take(&database).unwrap();
        let refused = LockFile::take(&database).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        LockFile::take(&database).unwrap();
    }

    /// Each holder removes the file; whoever had opened it before must not believe to hold what the next one holds.
    #[test]
    fn a_lock_file_that_is_removed_is_never_held_by_two() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a.db");
        let (holders, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let Ok(lock) = LockFile::take(&database) else { continue };
                        most.fetch_max(holders.fetch_add(1, SeqCst) + 1, SeqCst);
                        thread::yield_now();
                        holders.fetch_sub(1, SeqCst);
                        lock.remove();
                    }
                });
            }
        });
        assert_eq!(most.load(SeqCst), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_name_of_the_file_makes_no_other_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (database, link) = (folder.path().join("a.db"), folder.path().join("link.db"));
        std::os::unix::fs::symlink("a.db", &link).unwrap();
        for _ in 0..2 {
            let _first = LockFile::take(&database).unwrap();
            assert!(matches!(LockFile::take(&link), Err(LockError::Held { .. })));
            fs::write(&database, "").unwrap();
        }
    }
}
