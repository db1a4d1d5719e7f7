//! A file taken out of a backup and made ready to be used: under a new name, which appears when all of it was checked.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, RenameFlags, Uid};

use super::manifest::{Copied, Found};
use super::replace::Owner;
use super::{Entry, copy};
use crate::controls::{self, Seam};
use crate::maintenance::{Failure, Stop};
use crate::sqlite::open;
use crate::sqlite::place::{beside, folder_of};

/// Of a file that is being made, beside the place where it is to be.
pub const PARTIAL: &str = ".partial";

/// Writes the file to a place where nothing is. In WAL mode, as its application had it, with its permissions and, where we may, its owner.
pub fn restore(entry: &Entry, copied: &Copied, to: &Path, stop: &Stop) -> Result<(), Failure> {
    let unwritten = |error: io::Error| Failure::Unavailable(format!("{} cannot be written: {error}", to.display()));
    for there in [to.to_owned(), beside(to, "-wal"), beside(to, "-shm"), beside(to, "-journal")] {
        if fs::symlink_metadata(&there).is_ok() {
            return Err(Failure::Data(format!(
                "{} is there, and nothing is overwritten. Remedy: name another place with --to",
                there.display()
            )));
        }
    }
    let partial = make(entry, copied, to, stop)?;
    controls::reach(Seam::Backup);
    // Somebody may have put something there meanwhile.
    rustix::fs::renameat_with(CWD, &partial, CWD, to, RenameFlags::NOREPLACE)
        .map_err(|error| unwritten(error.into()))?;
    File::open(folder_of(to)).and_then(|folder| folder.sync_all()).map_err(unwritten)
}

/// Unpacks it beside the place where it is to be, and makes sure of it: all but its name.
pub fn make(entry: &Entry, copied: &Copied, to: &Path, stop: &Stop) -> Result<PathBuf, Failure> {
    make_by(to, |partial| {
        copy::out_of_backup(&entry.path, copied, partial, stop)?;
        counted(entry, copied, partial, stop)?;
        dress(copied.mode, Owner { uid: copied.uid, gid: copied.gid }, partial, to)
    })
}

/// Nothing lies there when it begins, and nothing when it fails.
pub fn make_by(to: &Path, make: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<PathBuf, Failure> {
    let partial = beside(to, PARTIAL);
    if fs::symlink_metadata(&partial).is_ok() {
        let unwritten = |error: io::Error| Failure::Unavailable(format!("{} cannot be written: {error}", to.display()));
        fs::remove_file(&partial).map_err(unwritten)?;
    }
    let made = make(&partial);
    if made.is_err() {
        give_up(&partial);
    }
    made.map(|()| partial)
}

/// Nothing is left of what was made.
pub fn give_up(partial: &Path) {
    for left in [partial.to_owned(), beside(partial, "-wal"), beside(partial, "-shm")] {
        drop(fs::remove_file(left));
    }
}

/// Whether it holds what the manifest says that it held.
pub fn counted(entry: &Entry, copied: &Copied, raw: &Path, stop: &Stop) -> Result<(), Failure> {
    let found = copy::inspect(raw, stop)?;
    match found == (Found { elsewhere: Default::default(), ..copied.found.clone() }) {
        true => Ok(()),
        false => {
            let what =
                "its rows are not those that the manifest counts. Remedy: take another backup (`outboxd backup list`)";
            Err(Failure::Data(format!("{}: {what}", entry.path.display())))
        }
    }
}

/// In WAL mode, with its permissions and, where we may, its owner; durable.
pub fn dress(mode: u32, owner: Owner, partial: &Path, to: &Path) -> Result<(), Failure> {
    let unwritten =
        |error: &dyn std::fmt::Display| Failure::Unavailable(format!("{} cannot be written: {error}", to.display()));
    // Closed again at once: the mode stays in the file, and nothing stays beside it.
    drop(open::state_file(partial).map_err(|error| unwritten(&error))?);
    fs::set_permissions(partial, Permissions::from_mode(mode)).map_err(|error| unwritten(&error))?;
    match rustix::fs::chown(partial, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))) {
        // Who is not root restores for himself.
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(unwritten(&error)),
    }
    File::open(partial).and_then(|file| file.sync_all()).map_err(|error| unwritten(&error))
}
