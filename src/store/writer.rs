//! The one task that appends to a file: calls queue, and those that wait together share a transaction.
//!
//! Each call has its own answer, when it is committed or refused; one that fails takes nobody with it. Order is arrival. The lock is
//! waited for as long as the callers said, each for itself, and so is its turn. A disk that fails is told at once to all whose transaction it was.
//!
//! While calls wait, transactions follow each other. Others who want the lock look for it now and then, and would meet it free for moments only:
//! it is left to them for [`PAUSE`] behind every [`STRETCH_MAX`].
//!
//! rusqlite on a thread, and not sqlx: a hand-over between threads for every event costs more than the event (docs/BENCHMARKS.md).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout_at;

use super::apply::{self, Care, Outcome};
use super::event::{Append, Appended, BYTES_MAX};
use super::fault::{AppendError, AppendsError};
use crate::controls::{self, Seam};
use crate::retry::Pace;
use crate::source::archive_file;
use crate::sqlite::fault::{Kind, classify};

/// Calls that wait; further ones wait for room.
const CALLS_MAX: usize = 1_024;
/// And so many bytes of them.
const WAITING_BYTES_MAX: usize = 2 * BYTES_MAX;
/// Of one transaction with its COMMIT, as long as others wait: the lock is given back in between.
const HOLD_MAX: Duration = Duration::from_millis(10);
/// Transactions that follow each other take no longer without a pause.
const STRETCH_MAX: Duration = Duration::from_millis(100);
/// SQLite's own busy handler looks at least so often in its first tenth of a second.
const PAUSE: Duration = Duration::from_millis(25);

type Answer = Result<Vec<Appended>, AppendsError>;

struct Job {
    appends: Vec<Append>,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
    _room: OwnedSemaphorePermit,
}

/// A handle to the thread; it ends when the last handle is dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    /// In bytes; what bounds the queue.
    room: Arc<Semaphore>,
    ended: watch::Receiver<()>,
}

impl Writer {
    pub fn start(connection: Connection, path: &Path) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (alive, ended) = watch::channel(());
        let desk = Desk {
            connection,
            path: path.to_owned(),
            queue,
            waiting: VecDeque::new(),
            commit_took: Duration::ZERO,
            stretch: Duration::ZERO,
            _alive: alive,
        };
        thread::Builder::new()
            .name("appender".into())
            .spawn(move || desk.run())
            .expect("a thread can be started when a store is opened");
        Self { jobs, room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)), ended }
    }

    pub async fn append(&self, appends: Vec<Append>, deadline: Instant) -> Answer {
        let whole = |error| AppendsError { index: 0, error };
        let bytes: usize = appends.iter().map(Append::bytes).sum();
        let bytes = bytes.clamp(WAITING_BYTES_MAX / CALLS_MAX, WAITING_BYTES_MAX);
        let room = self.room.clone().acquire_many_owned(bytes as u32);
        let Ok(room) = timeout_at(deadline.into(), room).await else { return Err(whole(AppendError::Locked)) };
        let (reply, answer) = oneshot::channel();
        let _room = room.expect("nobody closes it");
        if self.jobs.send(Job { appends, deadline, reply, _room }).is_err() {
            return Err(whole(AppendError::Ended));
        }
        answer.await.unwrap_or(Err(whole(AppendError::Ended)))
    }

    /// Waits until the thread has ended, which it does when the other handles are gone, too.
    pub async fn ended(self) {
        let Self { jobs, mut ended, .. } = self;
        drop(jobs);
        // An error is what it is waited for: the sender has gone.
        while ended.changed().await.is_ok() {}
    }
}

struct Desk {
    connection: Connection,
    /// The file's.
    path: PathBuf,
    queue: mpsc::UnboundedReceiver<Job>,
    /// Taken from the queue, in order.
    waiting: VecDeque<Job>,
    /// The last one.
    commit_took: Duration,
    /// For so long the lock was held, with no more than moments in between.
    stretch: Duration,
    // Dropped last: who waits for the end finds the file closed.
    _alive: watch::Sender<()>,
}

/// What came of an attempt that met no error of the file's.
enum Filled {
    /// Of the first calls that wait: committed.
    Answers(Vec<Answer>),
    /// One failed when something of it was written; all of it was rolled back.
    Again,
    /// This one ended the transaction, with all that was in it.
    Ended(usize, AppendsError),
}

/// An error that all of a transaction share.
enum Fault {
    /// Nothing was committed, and all of them wait still.
    Undone(rusqlite::Error),
    /// Of so many calls it is not known whether they were committed: what was written may be found there after a crash, or not.
    Unknown(usize, rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Undone(error)
    }
}

impl Desk {
    fn run(mut self) {
        loop {
            let idle = Instant::now();
            let Some(job) = self.queue.blocking_recv() else { return };
            if idle.elapsed() >= PAUSE {
                self.stretch = Duration::ZERO;
            }
            self.waiting.push_back(job);
            let mut pace = Pace::new(Duration::from_millis(1), Duration::from_millis(10));
            while !self.waiting.is_empty() {
                match self.transact() {
                    Ok(held) => {
                        pace.succeeded();
                        self.stretch += held;
                        self.take();
                        if self.stretch >= STRETCH_MAX && !self.waiting.is_empty() {
                            self.rest(PAUSE);
                        }
                    }
                    Err(Fault::Undone(error)) if classify(&error).0 == Kind::Busy => self.rest(pace.delay()),
                    Err(Fault::Undone(error)) => self.fail(self.waiting.len(), apply::sqlite_refused(&error)),
                    Err(Fault::Unknown(count, error)) => {
                        let (text, code) = (error.to_string(), classify(&error).1);
                        self.fail(count, AppendError::Unknown { text, code });
                    }
                }
            }
        }
    }

    fn fail(&mut self, count: usize, error: AppendError) {
        for job in self.waiting.drain(..count) {
            let _ = job.reply.send(Err(AppendsError { index: 0, error: error.clone() }));
        }
    }

    /// Leaves the lock to others for so long, or until a call would not wait any longer.
    fn rest(&mut self, most: Duration) {
        let next = self.waiting.iter().map(|job| job.deadline).min();
        let left = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        thread::sleep(most.min(left));
        if left >= most {
            self.stretch = Duration::ZERO;
        }
        self.take();
    }

    /// All that have come, but for those that would not wait any longer, and those whose callers have gone.
    fn take(&mut self) {
        while let Ok(job) = self.queue.try_recv() {
            self.waiting.push_back(job);
        }
        let now = Instant::now();
        let (over, waiting) = self.waiting.drain(..).partition(|job| job.deadline <= now || job.reply.is_closed());
        self.waiting = waiting;
        for job in Vec::from(over) {
            let _ = job.reply.send(Err(AppendsError { index: 0, error: AppendError::Locked }));
        }
    }

    /// One transaction, of what waits and of what comes meanwhile. Says how long the lock was held.
    fn transact(&mut self) -> Result<Duration, Fault> {
        let (mut care, began) = (Care::Quick, Instant::now());
        loop {
            match self.attempt(care)? {
                Filled::Answers(answers) => {
                    for (job, answer) in self.waiting.drain(..answers.len()).zip(answers) {
                        // A caller that has gone is not told.
                        let _ = job.reply.send(answer);
                    }
                    return Ok(began.elapsed());
                }
                Filled::Again => {
                    assert_eq!(care, Care::Quick, "with care, what fails leaves nothing behind");
                    care = Care::Guarded;
                }
                // The others are done again without it.
                Filled::Ended(index, error) => {
                    let job = self.waiting.remove(index).expect("it is one of those that wait");
                    let _ = job.reply.send(Err(error));
                    if self.waiting.is_empty() {
                        return Ok(began.elapsed());
                    }
                }
            }
        }
    }

    fn attempt(&mut self, care: Care) -> Result<Filled, Fault> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        if !archive_file::is_current(&self.connection)? {
            // The first event was archived in another file meanwhile.
            self.connection.execute_batch("ROLLBACK")?;
            self.find_archive()?;
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        }
        let done = self.fill(care).map_err(Fault::from).and_then(|filled| {
            if let Filled::Answers(answers) = &filled {
                controls::reach(Seam::Commit);
                let began = Instant::now();
                let committed = self.connection.prepare_cached("COMMIT")?.execute([]);
                self.commit_took = began.elapsed();
                committed.map_err(|error| match classify(&error).1 & 0xff {
                    ffi::SQLITE_IOERR => Fault::Unknown(answers.len(), error),
                    _ => Fault::Undone(error),
                })?;
                controls::reach(Seam::Committed);
            }
            Ok(filled)
        });
        // SQLite may have rolled back by itself: behind an error (disk full, I/O error), or because a trigger says so.
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        done
    }

    fn find_archive(&self) -> rusqlite::Result<()> {
        match archive_file::attach_anew(&self.connection, &self.path) {
            Ok(()) => archive_file::guard_ids(&self.connection),
            Err(archive_file::Fault::Sqlite(error)) => Err(error),
            Err(archive_file::Fault::Unfit(what)) => {
                Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ERROR), Some(what)))
            }
        }
    }

    /// The answers of as many as there is time for, from the first on.
    fn fill(&mut self, care: Care) -> rusqlite::Result<Filled> {
        let began = Instant::now();
        let mut answers = Vec::new();
        while answers.len() < self.waiting.len() {
            let job = &self.waiting[answers.len()];
            // Nobody waits for it, and nothing was done yet.
            let is_wanted = !job.reply.is_closed();
            answers.push(match is_wanted.then(|| apply::all(&self.connection, &job.appends, care)).transpose()? {
                None => Ok(Vec::new()),
                Some(Outcome::Done(done)) => Ok(done),
                Some(Outcome::Refused(error)) => Err(error),
                Some(Outcome::Again) => return Ok(Filled::Again),
                Some(Outcome::Ended(error)) => return Ok(Filled::Ended(answers.len(), error)),
            });
            if began.elapsed() + self.commit_took >= HOLD_MAX {
                break;
            }
            if answers.len() == self.waiting.len()
                && let Ok(job) = self.queue.try_recv()
            {
                self.waiting.push_back(job);
            }
        }
        Ok(Filled::Answers(answers))
    }
}
