//! The folder that backups stand in: `<job>-<time>`, each a folder that appears by one rename, when it is whole.
//!
//! What is being made, or being removed, begins with a dot: whatever ends the process leaves only such, and [`Shelf::tidy`] removes it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDateTime, Utc};
use rustix::fs::FlockOperation;

use super::manifest::{self, Manifest};
use crate::sqlite::place;

const PARTIAL: &str = ".partial";
const SCRATCH: &str = ".scratch";
const REMOVED: &str = ".removed";
const BROUGHT: &str = ".brought";
/// What ends so is no backup.
const ENDS: [&str; 4] = [PARTIAL, SCRATCH, REMOVED, BROUGHT];
const STAMP: &str = "%Y%m%dT%H%M%S%.3fZ";

/// A job's backups.
#[derive(Clone, Debug)]
pub struct Shelf {
    pub folder: PathBuf,
    pub job: String,
}

/// A folder that bears the name of a backup.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub path: PathBuf,
    /// By its name, in microseconds since 1970 UTC.
    pub time: i64,
    /// What it says of itself, or what is wrong with that.
    pub manifest: Result<Manifest, String>,
    pub lies: Lies,
}

/// Where a backup lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lies {
    Here,
    /// At the target alone.
    There,
    Both,
}

impl Shelf {
    /// Makes the folder where it is not there, and refuses one that others could put something into. The text has place and remedy.
    pub fn prepare(&self) -> Result<(), String> {
        let folder = self.folder.display();
        match fs::symlink_metadata(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
                made.map_err(|error| format!("{folder} cannot be made: {error}"))?;
                Ok(())
            }
            Err(error) => Err(format!("{folder}: {error}")),
            Ok(meta) if meta.is_symlink() => {
                Err(format!("{folder} is a symbolic link. Remedy: write the folder itself as `target`"))
            }
            Ok(meta) if !meta.is_dir() => Err(format!("{folder} is no folder. Remedy: name another `target`")),
            Ok(meta) if meta.mode() & 0o022 != 0 => Err(format!(
                "{folder} may be written by others (mode {:o}), who could put something into a backup. Remedy: chmod go-w {folder}",
                meta.mode() & 0o7777
            )),
            Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => Err(format!(
                "{folder} belongs to user {}, and outboxd runs as user {}. Remedy: chown the folder, or name another `target`",
                meta.uid(),
                rustix::process::geteuid().as_raw()
            )),
            Ok(_) => Ok(()),
        }
    }

    /// The folder that a new backup is made in; nobody else looks into it.
    pub fn begin(&self, time: i64) -> io::Result<Making> {
        self.make(time, PARTIAL)
    }

    /// A folder to unpack a backup in.
    pub fn scratch(&self, time: i64) -> io::Result<Making> {
        self.make(time, SCRATCH)
    }

    /// A folder for what is brought here from a target.
    pub fn brought(&self, time: i64) -> io::Result<Making> {
        self.make(time, BROUGHT)
    }

    /// When a backup of ours was begun that bears this name.
    pub fn time_in(&self, name: &str) -> Option<i64> {
        name.strip_prefix(&format!("{}-", self.job)).and_then(time_of)
    }

    /// Refuses what is another job's.
    pub fn own(&self, manifest: Manifest) -> Result<Manifest, String> {
        match manifest.job == self.job {
            true => Ok(manifest),
            false => Err(format!("it is a backup of the job {:?}", manifest.job)),
        }
    }

    fn make(&self, time: i64, end: &str) -> io::Result<Making> {
        let name = format!("{}-{}", self.job, stamp(time));
        let partial = self.folder.join(format!(".{name}{end}"));
        DirBuilder::new().mode(0o700).create(&partial)?;
        let held = File::open(&partial)?;
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Making { partial, whole: self.folder.join(&name), name, _held: held })
    }

    /// The job's backups, the oldest first.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for found in read_dir(&self.folder)? {
            let Some(name) = found?.file_name().to_str().map(str::to_owned) else { continue };
            let Some(time) = self.time_in(&name) else { continue };
            let path = self.folder.join(&name);
            if !fs::symlink_metadata(&path)?.is_dir() {
                continue;
            }
            let manifest = read_manifest(&path).and_then(|manifest| self.own(manifest));
            entries.push(Entry { name, path, time, manifest, lies: Lies::Here });
        }
        entries.sort_by_key(|entry| entry.time);
        Ok(entries)
    }

    /// Removes a backup: from one moment to the next it is none any more.
    pub fn remove(&self, entry: &Entry) -> io::Result<()> {
        let removed = self.folder.join(format!(".{}{REMOVED}", entry.name));
        fs::rename(&entry.path, &removed)?;
        sync(&self.folder)?;
        fs::remove_dir_all(removed)
    }

    /// Removes what was never whole and what was being removed.
    pub fn tidy(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        if !self.folder.exists() {
            return Ok(removed);
        }
        for found in read_dir(&self.folder)? {
            let Some(name) = found?.file_name().to_str().map(str::to_owned) else { continue };
            let own = name.strip_prefix(&format!(".{}-", self.job));
            let own = own.and_then(|rest| ENDS.iter().find_map(|end| rest.strip_suffix(end)));
            let path = self.folder.join(&name);
            let is_own = own.and_then(time_of).is_some() && fs::symlink_metadata(&path)?.is_dir();
            // Whoever works in it holds it.
            if is_own && rustix::fs::flock(File::open(&path)?, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_dir_all(&path)?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// How many bytes may still be written there.
    pub fn free_bytes(&self) -> io::Result<u64> {
        place::free_bytes(&self.folder)
    }
}

/// A backup that is being made.
#[derive(Debug)]
pub struct Making {
    pub name: String,
    pub partial: PathBuf,
    whole: PathBuf,
    _held: File,
}

impl Making {
    /// Everything in it is written and synced: from now on it is a backup.
    pub fn finish(self) -> io::Result<String> {
        sync(&self.partial)?;
        fs::rename(&self.partial, &self.whole)?;
        sync(self.whole.parent().expect("it stands in the shelf's folder"))?;
        Ok(self.name)
    }

    pub fn give_up(self) -> io::Result<()> {
        fs::remove_dir_all(&self.partial)
    }
}

/// What a backup's folder says of itself.
pub fn read_manifest(folder: &Path) -> Result<Manifest, String> {
    let path = folder.join(manifest::NAME);
    let mut text = String::new();
    let file = open_plain(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let read = file.take(manifest::BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    Manifest::parse(&text).map_err(|what| format!("{}: {what}", path.display()))
}

/// Opens what is a plain file; a link is not followed.
pub fn open_plain(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file")),
    }
}

fn read_dir(folder: &Path) -> io::Result<fs::ReadDir> {
    fs::read_dir(folder).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

pub fn stamp(time: i64) -> String {
    DateTime::<Utc>::from_timestamp_micros(time).unwrap_or_default().format(STAMP).to_string()
}

fn time_of(stamp: &str) -> Option<i64> {
    NaiveDateTime::parse_from_str(stamp, STAMP).ok().map(|time| time.and_utc().timestamp_micros())
}
