//! One daemon a file: an advisory lock that the kernel releases when its holder dies, on a file of its own.
//!
//! Never a lock on the database itself: that would be the application's to fear.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
        let mut path = database.as_os_str().to_owned();
        path.push("-outboxd.lock");
        let path = PathBuf::from(path);
        let fail = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o660)
            .open(&path)
            .map_err(fail)?;
        if controls::is_off(Protection::Lock) {
            return Ok(Self { _file: file, path });
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process".into() } else { holder.trim().to_owned() };
                return Err(LockError::Held { path, holder });
            }
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
        // Who holds it, for people; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| file.rewind()).map_err(fail)?;
        writeln!(file, "process {}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file, path })
    }
}

#[cfg(test)]
mod tests {
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
}
