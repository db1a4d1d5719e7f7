//! Maintenance: work that is done on a schedule or when it is asked for. Each type of job is a file here, and a line in `registry`.
//!
//! The port is [`Job`]: which files it works on, and the work itself. Everything else is the [`crew`]'s: when it is due ([`schedule`]), that it runs
//! once at a time and takes turns with others of the same file, that each run is recorded before it begins and when it has ended
//! (`outboxd_job_run`), that a stop ends it, that one which was killed is told. Invariants, named by tests in `tests/it/jobs_run_on_schedule.rs`:
//! 1. A run that was missed is caught up once; two runs of a job never overlap (`a_missed_run_is_caught_up_once`, `two_runs_never_overlap`).
//! 2. Whatever ends the process, the next start tells of the run that was killed, and removes what it left
//!    (`a_killed_run_leaves_nothing_and_is_told`).
//! 3. While no job is due, nothing is written (`jobs_that_wait_write_nothing`).
//!
//! What a job does must bear being ended anywhere: a stop waits a second, and then lets go. Where to start reading: [`Job`], then `runner`.

mod archive;
pub mod backup;
pub mod crew;
mod faults;
mod integrity;
pub mod keys;
mod optimize;
mod readers;
mod registry;
mod retention;
mod runner;
pub mod schedule;
mod snapshot;
pub mod status;
#[cfg(feature = "controls")]
mod trial;
mod vacuum;
pub mod work;

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use tokio::runtime::Handle;

pub use registry::{Keys, Sources, Type, is_planned, types};
pub use snapshot::look_at;

use self::backup::Backups;
use crate::source;
use crate::sqlite::lockfile::LockError;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::files::{FileError, Files};
use crate::store::event::StoredEvent;
use schedule::Schedule;

/// Something to be done now and then.
pub trait Job: Debug + Send + Sync {
    /// The files that it works on: they have to be there first, and jobs of one file take turns.
    fn files(&self) -> Vec<PathBuf>;

    /// Does it, on a thread of its own. It asks [`Context::go_on`] several times a second, and may be killed anywhere.
    fn run(&self, context: &Context) -> Result<Report, Failure>;

    /// Works out anew what its runs have made, and compares; changes nothing.
    fn verify(&self, _: &Stop) -> Result<Report, Failure> {
        Err(Failure::Unavailable("a job of this type makes nothing that could be compared".into()))
    }

    /// Says what a run would do now; changes nothing.
    fn dry_run(&self, _: &Stop) -> Result<Report, Failure> {
        Err(Failure::Unavailable("a job of this type cannot say beforehand what it would do".into()))
    }

    /// What a stream's state is made of, and what it comes to; changes nothing. `None`: a job of this type folds nothing.
    fn look(&self, _: &str) -> Option<Result<Vec<Look>, Failure>> {
        None
    }

    /// Removes what a run that was killed has left, and says what that was.
    fn tidy(&self) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    /// The backups that it makes, where it makes some.
    fn backups(&self) -> Option<&Backups> {
        None
    }
}

/// A stream as somebody sees it who reads its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    pub stream: String,
    pub kind: String,
    /// Of the newest event.
    pub version: i64,
    /// Its version and its state.
    pub snapshot: Option<(i64, String)>,
    /// Behind the snapshot; without one, all. Positions are 0 where the schema has none.
    pub events: Vec<StoredEvent>,
    /// `None`: nothing says how events of this type are folded.
    pub state: Option<String>,
    /// It was folded from the first event on: there is no snapshot, or another reducer has made it.
    pub is_anew: bool,
}

/// What a run says of itself when it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report(pub String);

/// Why a run was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    #[error("it was told to end")]
    Aborted,
    /// What it found is not what it must be. The text has place and remedy.
    #[error("{0}")]
    Data(String),
    /// Something is away or in the way.
    #[error("{0}")]
    Unavailable(String),
    /// Another process holds a file.
    #[error("{0}")]
    Locked(String),
    #[error("a bug in outboxd: {0}")]
    Bug(String),
}

/// A resolved `[jobs.X]` section. Two are the same when they say the same.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    /// The value of `type`.
    pub kind: &'static str,
    pub schedule: Schedule,
    /// The source whose state its runs are recorded in.
    pub home: source::Settings,
    pub job: Arc<dyn Job>,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// What a run works with.
#[derive(Debug)]
pub struct Context {
    stop: Stop,
    files: Files,
    home: source::Settings,
    runtime: Handle,
}

/// Tells a run to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Context {
    /// An error when the run has to end.
    pub fn go_on(&self) -> Result<(), Failure> {
        if self.stop.is_asked() { Err(Failure::Aborted) } else { Ok(()) }
    }

    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Does something in the state, durably.
    pub fn state<T: Send + 'static>(
        &self,
        apply: impl FnMut(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.runtime.block_on(async {
            let writer = self.files.writer(&self.home).await?;
            writer.perform(apply).await.map_err(|error| Failure::Unavailable(error.to_string()))
        })
    }

    /// The one writer of the file in which runs are recorded.
    fn home(&self) -> Result<Writer, Failure> {
        Ok(self.runtime.block_on(self.files.writer(&self.home))?)
    }

    /// The one writer of an application's file.
    pub fn application(&self, source: &source::Settings) -> Result<Writer, Failure> {
        Ok(self.runtime.block_on(self.files.application(source))?)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::Lock(LockError::Held { .. }) => Failure::Locked(error.to_string()),
            _ if error.is_passing() => Failure::Unavailable(error.to_string()),
            _ => Failure::Data(error.to_string()),
        }
    }
}
