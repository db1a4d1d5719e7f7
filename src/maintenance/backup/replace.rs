//! A file taken out of a backup, or written anew, and put in the place of the one that stands there, which is kept.
//!
//! Invariants, named by tests in `tests/it/restores_in_place.rs`:
//! 1. A file that any other process has open is not replaced (`a_file_that_somebody_has_open_is_not_replaced`).
//! 2. Whatever ends the process, the old file stands there with all of its commits, or the new one, and beside that nothing that lay beside the
//!    old one (`a_crash_anywhere_leaves_the_old_file_or_the_restored_one`). Its `-wal` is written into it first, which SQLite does so that it bears
//!    being ended; then the two files change names, in one step.
//! 3. What was replaced is kept, under a name that nothing else had (the same test).
//! 4. What is made of the old file itself holds what it held: nobody else has had it in between (`tests/it/files_are_written_anew.rs`).
//!
//! Several files are all unpacked and proven before the first is replaced; consumers' files are replaced before those of sources, so that a run
//! that is ended in between leaves no checkpoint ahead of its source.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};

use super::{restore, shelf};
use crate::controls::{self, Protection, Seam};
use crate::maintenance::Failure;
use crate::sqlite::holders::{self, Holder};
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::place::{self, beside, folder_of};
use crate::sqlite::sole::{Sole, SoleError};

/// What SQLite keeps beside a file, and would take for that of another one of the same name.
const ENDS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Of the new file, shortly before it gets its name, and of the replaced one, shortly after.
const SWAP: &str = ".swap";

/// Whoever holds a file is looked for so often, and so long apart.
const LOOKS: u32 = 5;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A file that is whole and checked, beside the one that it is to replace.
#[derive(Debug)]
pub struct Ready {
    /// The file itself, behind links.
    pub place: PathBuf,
    owner: Owner,
    partial: PathBuf,
    /// Where nobody else may have the file from the beginning on.
    alone: Option<(Option<Sole>, bool)>,
    /// No daemon and no other command writes the file from here on.
    lock: LockFile,
}

/// Whom the file has to belong to, so that its application can open it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// What was done.
#[derive(Debug)]
pub struct Replaced {
    pub place: PathBuf,
    /// Where the file of before is now; `None`: there was none.
    pub kept: Option<PathBuf>,
    /// It is all there is of it: nothing lies in a `-wal` beside it that SQLite could not read.
    pub is_whole: bool,
    /// Found where a change of names was ended, and kept.
    pub left: Option<PathBuf>,
    /// Who has opened the old file in the moment in which it was replaced.
    pub late: Vec<Holder>,
    lock: LockFile,
}

impl Replaced {
    /// Others may write the file again.
    pub fn let_go(self) {
        self.lock.remove();
    }
}

/// Makes sure that the file may be replaced, and has that made which is to replace it: beside it, checked, and with its owner where that may be.
pub fn prepare(
    path: &Path,
    owner: Owner,
    make: impl FnOnce(&Path) -> Result<PathBuf, Failure>,
) -> Result<Ready, Failure> {
    let (place, lock) = take(path)?;
    let made = has_one_name(&place).and_then(|()| is_free(&place)).and_then(|()| make(&place));
    ready(place, lock, owner, None, made)
}

/// The same of what is made of the file itself: from before it is read until it is replaced nobody else has it.
pub fn prepare_of_itself(
    path: &Path,
    owner: Owner,
    make: impl FnOnce(&Path, Option<&Sole>) -> Result<PathBuf, Failure>,
) -> Result<Ready, Failure> {
    let (place, lock) = take(path)?;
    let alone = has_one_name(&place).and_then(|()| is_free(&place)).and_then(|()| alone(&place));
    let made = match &alone {
        Ok((_, false)) => Err(Failure::Data(format!(
            "{} is damaged: SQLite cannot read what lies in its -wal. Nothing was changed. Remedy: restore the last backup",
            place.display()
        ))),
        Ok((sole, true)) => make(&place, sole.as_ref()),
        Err(failure) => Err(failure.clone()),
    };
    ready(place, lock, owner, alone.ok(), made)
}

/// What somebody has left who was ended, unless somebody is at it: what was made and never got its name is removed, and what lies there because names
/// were being changed is kept under another one. Says the names.
pub fn tidy(path: &Path, time: i64) -> Result<Vec<PathBuf>, Failure> {
    let place = place::real(path);
    let is_there = |end: &str| fs::symlink_metadata(beside(&place, end)).is_ok();
    if !is_there(restore::PARTIAL) && !is_there(SWAP) {
        return Ok(Vec::new());
    }
    let Ok((place, lock)) = take(path) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    if is_there(restore::PARTIAL) {
        found.push(beside(&place, restore::PARTIAL));
        restore::give_up(&found[0]);
    }
    let left = left_by_another(&place, time);
    lock.remove();
    found.extend(left?);
    Ok(found)
}

fn take(path: &Path) -> Result<(PathBuf, LockFile), Failure> {
    let place = place::real(path);
    match LockFile::take(&place) {
        Ok(lock) => Ok((place, lock)),
        Err(error @ LockError::Held { .. }) => Err(Failure::Locked(format!("{error}. Remedy: stop it first"))),
        Err(error @ LockError::Io { .. }) => Err(Failure::Unavailable(error.to_string())),
    }
}

fn ready(
    place: PathBuf,
    lock: LockFile,
    owner: Owner,
    alone: Option<(Option<Sole>, bool)>,
    made: Result<PathBuf, Failure>,
) -> Result<Ready, Failure> {
    let partial = match made {
        Ok(partial) => partial,
        Err(failure) => {
            lock.remove();
            return Err(failure);
        }
    };
    let ready = Ready { place, owner, partial, alone, lock };
    match ready.belongs() {
        Ok(()) => Ok(ready),
        Err(failure) => {
            ready.give_up();
            Err(failure)
        }
    }
}

impl Ready {
    pub fn give_up(self) {
        restore::give_up(&self.partial);
        self.lock.remove();
    }

    /// Its application must be able to open it.
    fn belongs(&self) -> Result<(), Failure> {
        let meta = fs::metadata(&self.partial).map_err(|error| undone(&self.partial, &error))?;
        let Owner { uid, gid } = self.owner;
        if (meta.uid(), meta.gid()) == (uid, gid) {
            return Ok(());
        }
        Err(Failure::Data(format!(
            "{} belongs to user {uid} and group {gid}, and this command cannot give the new file to them: its application might not be able to open it. \
             Nothing was changed. Remedy: run this as root or as that user; a backup can be restored to another place (restore --to), and put there by hand",
            self.place.display()
        )))
    }

    /// Puts it there. `time` goes into the name under which the file of before is kept.
    pub fn put_in_place(mut self, time: i64) -> Result<Replaced, Failure> {
        match self.put(time) {
            Ok((kept, is_whole, left)) => {
                controls::reach(Seam::Restore);
                let late = kept.as_deref().map(holders::of).unwrap_or_default();
                let Ready { place, lock, .. } = self;
                Ok(Replaced { place, kept, is_whole, left, late, lock })
            }
            Err(failure) => {
                self.give_up();
                Err(failure)
            }
        }
    }

    fn put(&mut self, time: i64) -> Result<(Option<PathBuf>, bool, Option<PathBuf>), Failure> {
        let before = self.alone.take();
        let place = &self.place;
        let folder = folder_of(place);
        let failed = |error: io::Error| undone(place, &error);
        let left = left_by_another(place, time)?;
        let kept = free_name(place, ".replaced-", time)?;
        has_one_name(place)?;
        is_free(place)?;
        let (sole, is_whole) = match before {
            Some(before) => before,
            None if !place.exists() => (None, true),
            None => alone(place)?,
        };
        let mut moved = Vec::new();
        for end in ENDS {
            let old = beside(place, end);
            let Ok(meta) = fs::symlink_metadata(&old) else { continue };
            if controls::is_off(Protection::OldWal) {
                continue;
            }
            // Of a file that is whole, these tell nothing.
            if is_whole && (meta.len() == 0 || end == "-shm") {
                fs::remove_file(&old).map_err(failed)?;
            } else {
                rename(&old, &beside(&kept, end), RenameFlags::NOREPLACE).map_err(failed)?;
                moved.push(end);
            }
            controls::reach(Seam::Restore);
        }
        sync(&folder).map_err(failed)?;
        let swap = beside(place, SWAP);
        rename(&self.partial, &swap, RenameFlags::NOREPLACE).map_err(failed)?;
        controls::reach(Seam::Restore);
        let was_there = place.exists();
        // In one step; where nothing is, something may have come meanwhile.
        let how = if was_there { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        if let Err(error) = rename(&swap, place, how) {
            for end in &moved {
                drop(rename(&beside(&kept, end), &beside(place, end), RenameFlags::NOREPLACE));
            }
            drop(rename(&swap, &self.partial, RenameFlags::NOREPLACE));
            return Err(Failure::Unavailable(format!(
                "{} and the new file cannot change their names ({error}), as some file systems cannot. Nothing was changed. Remedy: move the \
                 database to one that can (ext4, xfs, btrfs); a backup can be restored to another place (restore --to), and put there by hand",
                place.display()
            )));
        }
        controls::reach(Seam::Restore);
        sync(&folder).map_err(failed)?;
        if was_there {
            let unnamed = |error: io::Error| {
                let (place, swap) = (place.display(), swap.display());
                Failure::Unavailable(format!(
                    "{place} is the new file, and the one of before lies at {swap}: it cannot be given another name: {error}"
                ))
            };
            rename(&swap, &kept, RenameFlags::NOREPLACE).map_err(unnamed)?;
            sync(&folder).map_err(failed)?;
        }
        drop(sole);
        Ok(((was_there || !moved.is_empty()).then_some(kept), is_whole, left))
    }
}

/// Somebody was ended in the moment of the change of names: it is the file of before, or the new one of then.
fn left_by_another(place: &Path, time: i64) -> Result<Option<PathBuf>, Failure> {
    let swap = beside(place, SWAP);
    if fs::symlink_metadata(&swap).is_err() {
        return Ok(None);
    }
    let name = free_name(place, ".left-", time)?;
    rename(&swap, &name, RenameFlags::NOREPLACE).map_err(|error| undone(&swap, &error))?;
    Ok(Some(name))
}

/// Nobody else has the file from here on, and what stands in its `-wal` stands in itself.
fn alone(place: &Path) -> Result<(Option<Sole>, bool), Failure> {
    if controls::is_off(Protection::InUse) {
        return Ok((None, true));
    }
    let told = |error: SoleError| match error {
        SoleError::Held => in_use(place, &holders::of(place)),
        error => Failure::Unavailable(format!("{} cannot be locked: {error}", place.display())),
    };
    let sole = Sole::take(place).map_err(told)?;
    let is_whole = controls::is_off(Protection::OldWal) || sole.fold().map_err(told)?;
    Ok((Some(sole), is_whole))
}

fn free_name(place: &Path, middle: &str, time: i64) -> Result<PathBuf, Failure> {
    let name = beside(place, &format!("{middle}{}", shelf::stamp(time)));
    let taken = [""].iter().chain(&ENDS).map(|end| beside(&name, end)).find(|path| fs::symlink_metadata(path).is_ok());
    match taken {
        None => Ok(name),
        Some(taken) => Err(Failure::Data(format!(
            "{} is there, and nothing that was kept is overwritten. Remedy: move it away",
            taken.display()
        ))),
    }
}

/// Another name would go on leading to the file of before.
fn has_one_name(place: &Path) -> Result<(), Failure> {
    match fs::metadata(place) {
        Ok(meta) if !meta.is_file() => {
            Err(Failure::Data(format!("{} is no file. Remedy: move it away", place.display())))
        }
        Ok(meta) if meta.nlink() > 1 => Err(Failure::Data(format!(
            "{} has {} names (hard links), and the others would go on leading to the file of before. Remedy: `find -samefile` tells them; remove them",
            place.display(),
            meta.nlink()
        ))),
        _ => Ok(()),
    }
}

/// Who is about to let go of it is waited for, for a moment.
fn is_free(place: &Path) -> Result<(), Failure> {
    if controls::is_off(Protection::InUse) {
        return Ok(());
    }
    let mut holders = holders::of(place);
    for _ in 0..LOOKS {
        if holders.is_empty() {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
        holders = holders::of(place);
    }
    if holders.is_empty() { Ok(()) } else { Err(in_use(place, &holders)) }
}

fn in_use(place: &Path, holders: &[Holder]) -> Failure {
    let who = match holders {
        [] => "a process that cannot be seen from here (in another container, or another user's)".to_owned(),
        some => some.iter().map(Holder::to_string).collect::<Vec<_>>().join(", "),
    };
    Failure::Locked(format!(
        "{} is open in {who}: it would go on with the file of before, and what it writes there would be lost. Nothing was changed. Remedy: stop it first",
        place.display()
    ))
}

fn rename(from: &Path, to: &Path, how: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, how)?)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn undone(path: &Path, error: &io::Error) -> Failure {
    Failure::Unavailable(format!("{} cannot be replaced: {error}", path.display()))
}
