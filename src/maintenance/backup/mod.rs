//! `type = "backup"`: copies of database files that were opened, checked and counted before they are called backups.
//!
//! Invariants, named by tests in `tests/it/backups_are_whole.rs`:
//! 1. A folder `<job>-<time>` is whole and verified from the moment in which it bears that name; whatever ends a run leaves only what begins with a
//!    dot, which the next one removes (`whatever_ends_a_run_leaves_old_backups_and_new_ones_and_nothing_half`).
//! 2. A copy is a state that the application committed, although it writes on; a consumer's file is copied before its source's
//!    (`a_backup_under_load_is_what_was_committed_up_to_a_moment`).
//! 3. Nothing is removed by a run that failed, and never the newest (`calendar`, `a_run_that_fails_removes_nothing`).
//!
//! Where to start reading: [`Backups::run`](Job::run), then `copy`.

mod calendar;
pub(super) mod copy;
mod keys;
pub mod manifest;
pub mod restore;
mod shelf;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono_tz::Tz;

use self::calendar::Policy;
pub use self::keys::Backup as Keys;
use self::manifest::{Copied, FORMAT, Manifest};
pub use self::shelf::Entry;
use self::shelf::Shelf;
use super::{Context, Failure, Job, Report, Stop};
use crate::clock;
use crate::controls::{self, Seam};
use crate::sqlite::open;
use crate::sqlite::premises::{self, Finding, Use};

/// Beside what the copies need at most.
const SPARE_BYTES: u64 = 16 << 20;

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Backups {
    /// In the order in which they are copied.
    files: Vec<Database>,
    shelf: Shelf,
    policy: Policy,
    zone: Tz,
}

#[derive(Debug)]
struct Database {
    path: PathBuf,
    is_source: bool,
    allow_network_filesystem: bool,
    /// Files that are not in the backup, in which consumers of this one have their checkpoints.
    states: Vec<PathBuf>,
}

impl Backups {
    fn is_there_room(&self) -> Result<(), Failure> {
        let (mut all, mut largest) = (0, 0);
        for file in &self.files {
            let bytes = open::visitor(&file.path).and_then(|connection| open::size(&connection));
            let bytes = bytes.map_err(|error| Failure::Unavailable(format!("{}: {error}", file.path.display())))?;
            all += bytes;
            largest = largest.max(bytes);
        }
        // A copy, and beside it what it is compressed to; that may be little or nothing less.
        let (needed, free) =
            (all + largest + SPARE_BYTES, self.shelf.free_bytes().map_err(|error| self.unread(&error))?);
        if free < needed {
            return Err(Failure::Unavailable(format!(
                "{} has {free} bytes free, and a backup may need {needed}. Remedy: make room there, keep fewer backups, or name another `target`",
                self.shelf.folder.display()
            )));
        }
        Ok(())
    }

    fn unread(&self, error: &io::Error) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.shelf.folder.display()))
    }

    fn fill(&self, making: &shelf::Making, began: i64, stop: &Stop) -> Result<Manifest, Failure> {
        let mut files: Vec<Copied> = Vec::new();
        for file in &self.files {
            let elsewhere = file.elsewhere()?;
            let mut copied = copy::into_backup(&file.path, &making.partial, stop)?;
            copied.found.elsewhere = elsewhere;
            files.push(copied);
            controls::reach(Seam::Backup);
        }
        let manifest = Manifest {
            format: FORMAT,
            job: self.shelf.job.clone(),
            began: clock::iso(began),
            verified: clock::iso(clock::now_micros()),
            outboxd: env!("CARGO_PKG_VERSION").to_owned(),
            sqlite: rusqlite::version().to_owned(),
            files,
        };
        let path = making.partial.join(manifest::NAME);
        let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest has nothing that JSON does not have");
        text.push(b'\n');
        let write = || {
            let mut file = File::options().write(true).create_new(true).open(&path)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(|error| Failure::Unavailable(format!("{} cannot be written: {error}", path.display())))?;
        controls::reach(Seam::Backup);
        Ok(manifest)
    }

    /// Says how many were removed, and what is no backup although it bears the name of one.
    fn prune(&self) -> Result<(usize, Vec<String>), Failure> {
        let entries = self.entries()?;
        let (whole, broken): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.manifest.is_ok());
        let kept = self.policy.kept(self.zone, whole.iter().map(|entry| entry.time));
        let mut removed = 0;
        for entry in whole.iter().filter(|entry| !kept.contains(&entry.time)) {
            self.shelf.remove(entry).map_err(|error| self.unread(&error))?;
            controls::reach(Seam::Backup);
            removed += 1;
        }
        Ok((removed, broken.into_iter().filter_map(|entry| entry.manifest.err()).collect()))
    }

    /// The oldest first, with those that only bear the name of one.
    pub fn entries(&self) -> Result<Vec<Entry>, Failure> {
        self.shelf.entries().map_err(|error| self.unread(&error))
    }

    /// Unpacks a backup and looks through it, as a restore would.
    pub fn look_through(&self, entry: &Entry, stop: &Stop) -> Result<(), Failure> {
        let manifest = entry.manifest.as_ref().map_err(|what| Failure::Data(what.clone()))?;
        let scratch = self.shelf.scratch(clock::now_micros()).map_err(|error| self.unread(&error))?;
        let mut result = Ok(());
        for copied in &manifest.files {
            let raw = scratch.partial.join(&copied.name);
            result = copy::out_of_backup(&entry.path, copied, &raw, stop)
                .and_then(|()| restore::counted(entry, copied, &raw, stop));
            if result.is_err() {
                break;
            }
            // One at a time.
            std::fs::remove_file(&raw).map_err(|error| self.unread(&error))?;
        }
        scratch.give_up().map_err(|error| self.unread(&error))?;
        result
    }
}

impl Database {
    /// What keeps it from being opened: places, rights, file systems.
    fn refusal(&self) -> Option<Finding> {
        let found = premises::of_file(&self.path, Use::Read, self.allow_network_filesystem);
        found.into_iter().find(Finding::is_refusal)
    }

    /// How far its consumers have come whose checkpoints are not in the backup: asked before it is copied, so that no answer is ahead of the copy.
    fn elsewhere(&self) -> Result<std::collections::BTreeMap<String, manifest::Stands>, Failure> {
        let mut all = std::collections::BTreeMap::new();
        for state in self.states.iter().filter(|state| state.exists()) {
            let told = |what: String| Failure::Unavailable(format!("{}: {what}", state.display()));
            let connection = open::visitor(state).map_err(|error| told(error.to_string()))?;
            all.extend(copy::consumers(&connection).map_err(told)?);
        }
        Ok(all)
    }
}

impl Job for Backups {
    fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        self.shelf.prepare().map_err(Failure::Data)?;
        self.tidy().map_err(|error| self.unread(&error))?;
        if let Some(finding) = self.files.iter().find_map(Database::refusal) {
            return Err(Failure::Data(finding.to_string()));
        }
        self.is_there_room()?;
        let began = clock::now_micros();
        let making = self.shelf.begin(began).map_err(|error| self.unread(&error))?;
        let manifest = match self.fill(&making, began, context.stop()) {
            Ok(manifest) => manifest,
            Err(failure) => {
                // What is left begins with a dot: the next run removes it.
                drop(making.give_up());
                return Err(failure);
            }
        };
        let name = making.finish().map_err(|error| self.unread(&error))?;
        controls::reach(Seam::Backup);
        let (removed, broken) = self.prune()?;
        let mut told = format!(
            "{name}: {} files, {} bytes, {} compressed, opened and checked; {removed} older ones removed",
            manifest.files.len(),
            manifest.bytes(),
            manifest.compressed_bytes()
        );
        for copied in manifest.files.iter().filter(|copied| copied.found.foreign_key_violations > 0) {
            told += &format!(
                "; {} rows of {} refer to rows that are not there",
                copied.found.foreign_key_violations, copied.name
            );
        }
        match broken.first() {
            None => Ok(Report(told)),
            Some(what) => Err(Failure::Data(format!(
                "{told}; but {} folders bear the name of a backup and are none: {what}. Remedy: remove them, or restore what they lost",
                broken.len()
            ))),
        }
    }

    /// Unpacks every backup and looks through it.
    fn verify(&self, stop: &Stop) -> Result<Report, Failure> {
        let entries = self.entries()?;
        let mut wrong = Vec::new();
        for entry in &entries {
            match self.look_through(entry, stop) {
                Ok(()) => {}
                Err(Failure::Data(what)) => wrong.push(format!("{}: {what}", entry.name)),
                Err(failure) => return Err(failure),
            }
        }
        match wrong.len() {
            0 => Ok(Report(format!("{} backups were unpacked, opened and checked", entries.len()))),
            count => {
                Err(Failure::Data(format!("of {} backups {count} are none:\n{}", entries.len(), wrong.join("\n"))))
            }
        }
    }

    fn tidy(&self) -> io::Result<Vec<PathBuf>> {
        self.shelf.tidy()
    }

    fn backups(&self) -> Option<&Backups> {
        Some(self)
    }
}

/// Looks through a database file that lies somewhere, with what stands in a `-wal` beside it.
pub fn look_at_file(path: &Path, stop: &Stop) -> Result<manifest::Found, Failure> {
    copy::look_at(path, stop).map_err(|failure| match failure {
        Failure::Data(what) => Failure::Data(format!(
            "{} is not sound: {what}. A file that was copied while it was written (`cp`, `rsync`) comes out so; `outboxd backup now` makes copies that are",
            path.display()
        )),
        other => other,
    })
}
