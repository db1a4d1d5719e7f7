//! The one writer of a file: a thread on which everyone queues.
//!
//! Jobs that wait together share a transaction, each in a savepoint of its own, so that one that is refused takes nobody with
//! it. The lock is held for at most [`HOLD_MAX`] of work; in an application's file a pause follows that leaves it at least
//! 85 % of the time. A job's transaction that fails for the disk's or a lock's sake is tried again, with backoff, for ever:
//! nobody is told of a settlement that is not committed.
//!
//! An [`Entry`] has a transaction that stays open between its two steps: what it did is told, and committed only together with what follows
//! from it. Entries that wait together share a transaction, too.

mod two_steps;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::fault::{self, Kind};
use super::guard::Guard;
use super::holders;
use super::litestream;
use super::lockfile::LockFile;
use super::log::{DUE_PAGES, Log};
use super::open::{self, Durable};
use super::strain::Strain;
use crate::controls::{self, Seam};
use crate::retry::Pace;
use crate::telemetry::metric;

/// The work that is put into one transaction.
const HOLD_MAX: Duration = Duration::from_millis(2);
/// A lock that is lost to others for less is not worth a word.
const WAITING_SHOWN_AFTER: Duration = Duration::from_secs(1);
/// An application that commits without a pause, and syncs each time, leaves the lock free for moments only: whoever asks once a second
/// may not meet one for minutes. Asking costs some microseconds.
const LOCK_PACE_MAX: Duration = Duration::from_millis(10);
/// In an application's file: the pause after a hold, as a multiple of it. 1 / (1 + 6) is below 15 %.
const PAUSE_FACTOR: u32 = 6;

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job itself found that it must not go on.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The writer's thread has ended.
    #[error("the writer of this file has ended")]
    Ended,
    /// Nothing of it is in the file, nor of what it follows from: both have to be done anew.
    #[error("what was done was undone: {0}")]
    Undone(String),
}

type Apply = Box<dyn FnMut(&Connection) -> Result<(), JobError> + Send>;
type Done = Box<dyn FnOnce(Result<(), JobError>) + Send>;

/// Something to do in a transaction. `apply` may be called several times, each time on a clean slate.
struct Job {
    apply: Apply,
    done: Done,
    durable: Durable,
}

/// A job that has a value, told when it is committed.
fn leaving_a_value<T: Send + 'static>(
    mut apply: impl FnMut(&Connection) -> Result<T, JobError> + Send + 'static,
) -> (Apply, impl FnOnce() -> T) {
    let left = Arc::new(Mutex::new(None));
    let slot = left.clone();
    let apply = move |connection: &Connection| {
        *slot.lock().expect("no panic happens under this lock") = Some(apply(connection)?);
        Ok(())
    };
    let value = move || left.lock().expect("no panic happens under this lock").take();
    (Box::new(apply), move || value().expect("a committed job has left its value"))
}

/// The first step of a transaction in two.
pub trait Entry: Send {
    /// Does it, and tells whom it concerns. An error means that nothing was done, and nothing told.
    fn enter(&mut self, connection: &Connection) -> rusqlite::Result<Entered>;
    /// It could not be done, and is given up.
    fn fail(&mut self, error: &rusqlite::Error);
}

/// What became of the first step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// The second step is waited for.
    Open,
    /// There is nothing to commit.
    Nothing,
    /// The transaction is gone with everything in it; once more, in a new one.
    Again,
}

/// The second step; without one the first is undone.
pub struct Second {
    pub apply: ApplyOnce,
    pub done: Done,
}

type ApplyOnce = Box<dyn FnOnce(&Connection) -> Result<(), JobError> + Send>;

enum Task {
    Job(Job),
    Entry(Box<dyn Entry>, Receiver<Second>),
}

/// What the file lets the writer do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriterState {
    Ready,
    /// Since when, and what is in the way.
    Waiting(String),
}

/// A handle to the thread; it ends when the last handle is dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Writer {
    tasks: Sender<Task>,
    pub state: watch::Receiver<WriterState>,
    pub path: PathBuf,
    pub owner: Owner,
    /// For SQL of a person's own.
    pub guard: Guard,
    /// Of an application's file; of others nothing is noted.
    pub strain: Strain,
}

/// Whose file it is decides how politely it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Application,
    Ourselves,
}

impl Writer {
    /// Starts the thread on an open connection. The lock is let go when the thread has ended and the connection is closed: what is
    /// still queued is written before another daemon may.
    pub fn start(connection: Connection, path: &Path, owner: Owner, lock: LockFile) -> rusqlite::Result<Self> {
        let guard = Guard::install(&connection)?;
        let (tasks, queue) = mpsc::channel();
        let (state_tx, state) = watch::channel(WriterState::Ready);
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        metric::file_is_written(&name);
        if owner == Owner::Application {
            metric::checkpoint_backlog(&name, 0);
        }
        let strain = Strain::new(Instant::now());
        let desk = Desk {
            strain: strain.clone(),
            connection,
            queue,
            state: state_tx,
            owner,
            file: name,
            path: path.to_owned(),
            carried: None,
            _lock: lock,
        };
        thread::Builder::new()
            .name("writer".into())
            .spawn(move || desk.run())
            .expect("a thread can be started at start-up");
        Ok(Self { tasks, state, path: path.to_owned(), owner, guard, strain })
    }

    /// Queues the first step of a transaction in two; the second is handed in by what is returned.
    pub fn enter(&self, entry: Box<dyn Entry>) -> Sender<Second> {
        let (sender, second) = mpsc::channel();
        // A writer that has ended drops it: whoever waits for what it tells is told by the closed channel.
        let _ = self.tasks.send(Task::Entry(entry, second));
        sender
    }

    /// Queues a settlement: committed as the file's durability says.
    pub fn submit(
        &self,
        apply: impl FnMut(&Connection) -> Result<(), JobError> + Send + 'static,
        done: impl FnOnce(Result<(), JobError>) + Send + 'static,
    ) {
        self.queue(Job { apply: Box::new(apply), done: Box::new(done), durable: Durable::Normal });
    }

    /// Does what an operator asked for, durably, and waits for it.
    pub async fn perform<T: Send + 'static>(
        &self,
        apply: impl FnMut(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (apply, value) = leaving_a_value(apply);
        self.queue(Job { apply, done: Box::new(move |result| drop(reply.send(result))), durable: Durable::Full });
        answer.await.map_err(|_| JobError::Ended)??;
        Ok(value())
    }

    /// Does a slice of work, committed as the file's durability says. The calling thread waits, and so must be none of the runtime's.
    pub fn work<T: Send + 'static>(
        &self,
        apply: impl FnMut(&Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let (apply, value) = leaving_a_value(apply);
        self.queue(Job { apply, done: Box::new(move |result| drop(reply.try_send(result))), durable: Durable::Normal });
        answer.recv().unwrap_or(Err(JobError::Ended))?;
        Ok(value())
    }

    fn queue(&self, job: Job) {
        if let Err(mpsc::SendError(Task::Job(job))) = self.tasks.send(Task::Job(job)) {
            (job.done)(Err(JobError::Ended));
        }
    }
}

/// What came of an attempt that met no error of the file's.
enum Attempt {
    /// Each job's result, and how long the lock was held.
    Committed(Vec<Result<(), JobError>>, Duration),
    /// This job's SQL ended the transaction, with all that was in it: a trigger of the application's own says `RAISE(ROLLBACK)`.
    Ended(usize, JobError),
}

/// The same before COMMIT.
enum Filled {
    Results(Vec<Result<(), JobError>>),
    Ended(usize, JobError),
}

fn ended() -> JobError {
    JobError::Refused("what it did ended the transaction (a trigger with RAISE(ROLLBACK))".into())
}

struct Desk {
    connection: Connection,
    queue: Receiver<Task>,
    owner: Owner,
    file: String,
    path: PathBuf,
    strain: Strain,
    /// Taken from the queue, and left for the next transaction.
    carried: Option<Task>,
    // Dropped behind the connection.
    _lock: LockFile,
    // Dropped last: whoever waits for its end finds the lock free.
    state: watch::Sender<WriterState>,
}

impl Desk {
    fn run(mut self) {
        loop {
            let first = match self.carried.take() {
                Some(task) => task,
                None => match self.queue.recv() {
                    Ok(task) => task,
                    Err(mpsc::RecvError) => return,
                },
            };
            let held = match first {
                Task::Job(job) => self.transact(job),
                Task::Entry(entry, second) => self.transact_in_two(entry, second),
            };
            self.pause(held);
            if self.owner == Owner::Application {
                self.checkpoint();
            }
        }
    }

    fn pause(&self, held: Duration) {
        if self.owner == Owner::Application {
            thread::sleep(held * PAUSE_FACTOR);
        }
    }

    /// For the lock.
    fn waited(&self, waited: Duration) {
        metric::lock_wait(&self.file, waited);
        if self.owner == Owner::Application {
            self.strain.note(Instant::now(), waited);
        }
    }

    /// Runs one transaction, again and again until it is committed or every job in it was refused. Returns how long the lock was held.
    fn transact(&mut self, first: Job) -> Duration {
        let mut jobs = vec![first];
        let mut disk_pace = Pace::new(Duration::from_millis(5), Duration::from_secs(1));
        let mut lock_pace = Pace::new(Duration::from_millis(1), LOCK_PACE_MAX);
        let first_asked = Instant::now();
        // Since when it waits for nothing but the lock.
        let mut asked = first_asked;
        let mut told = None;
        loop {
            let attempt = self.attempt(&mut jobs);
            match attempt {
                // The others are done again without it.
                Ok(Attempt::Ended(index, error)) => {
                    metric::transaction(&self.file, metric::TransactionResult::Failed);
                    (jobs.remove(index).done)(Err(error));
                    if jobs.is_empty() {
                        return Duration::ZERO;
                    }
                    asked = Instant::now();
                }
                Ok(Attempt::Committed(results, held)) => {
                    self.waited(asked.elapsed().saturating_sub(held));
                    metric::lock_held(&self.file, held);
                    metric::transaction(&self.file, metric::TransactionResult::Committed);
                    self.state
                        .send_if_modified(|state| std::mem::replace(state, WriterState::Ready) != WriterState::Ready);
                    for (job, result) in jobs.into_iter().zip(results) {
                        (job.done)(result);
                    }
                    return held;
                }
                Err(error) => {
                    let (kind, code) = fault::classify(&error);
                    metric::busy(&self.file, code);
                    metric::transaction(&self.file, metric::TransactionResult::Retried);
                    if !kind.passes() {
                        metric::transaction(&self.file, metric::TransactionResult::Failed);
                        let text = error.to_string();
                        for job in jobs {
                            (job.done)(Err(JobError::Refused(text.clone())));
                        }
                        return Duration::ZERO;
                    }
                    let is_told = told.is_some_and(|at: Instant| at.elapsed() < WAITING_SHOWN_AFTER);
                    if kind != Kind::Busy || first_asked.elapsed() >= WAITING_SHOWN_AFTER && !is_told {
                        told = Some(Instant::now());
                        let holder = Some(kind)
                            .filter(|kind| *kind == Kind::Busy)
                            .and_then(|_| holders::of_write_lock(&self.path));
                        let holder =
                            holder.map_or(String::new(), |pid| format!("; process {pid} holds the write lock"));
                        let why = format!("{}: {error} (SQLite code {code}){holder}", self.file);
                        self.state.send_replace(WriterState::Waiting(why));
                    }
                    if kind == Kind::Busy {
                        thread::sleep(lock_pace.delay());
                    } else {
                        thread::sleep(disk_pace.delay());
                        asked = Instant::now();
                    }
                }
            }
        }
    }

    /// In an application's file SQLite's own checkpoint is off: it would run inside our COMMIT, behind which others seem to wait.
    /// PASSIVE takes no lock that a writer or reader wants, and what it leaves is done at the next commit, ours or another's. Where Litestream is at
    /// work, the checkpoints are its own.
    fn checkpoint(&self) {
        let looked = Log::of(&self.connection);
        if let Ok(log) = looked {
            metric::checkpoint_backlog(&self.file, log.backlog());
        }
        let due = looked.is_ok_and(|log| log.is_due(DUE_PAGES))
            && !litestream::is_there(&self.connection, &self.path).unwrap_or(true);
        let passive = || self.connection.prepare_cached("PRAGMA wal_checkpoint = PASSIVE")?.query_row([], |_| Ok(()));
        if due && let Err(error) = passive() {
            metric::busy(&self.file, fault::classify(&error).1);
        }
    }

    /// One attempt; further jobs are taken from the queue while there is time. An error means that nothing was committed.
    fn attempt(&mut self, jobs: &mut Vec<Job>) -> rusqlite::Result<Attempt> {
        let durable = if jobs.iter().any(|job| job.durable == Durable::Full) { Durable::Full } else { Durable::Normal };
        if self.owner == Owner::Application {
            open::synchronous(&self.connection, durable)?;
        }
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let began = Instant::now();
        let outcome = self.fill(jobs, began).and_then(|filled| match filled {
            Filled::Results(results) => {
                controls::reach(Seam::Commit);
                self.connection.execute_batch("COMMIT")?;
                controls::reach(Seam::Committed);
                Ok(Attempt::Committed(results, began.elapsed()))
            }
            Filled::Ended(index, error) => Ok(Attempt::Ended(index, error)),
        });
        match outcome {
            Ok(attempt) => Ok(attempt),
            Err(error) => {
                // SQLite may have rolled back by itself (disk full, I/O error).
                if !self.connection.is_autocommit() {
                    let _ = self.connection.execute_batch("ROLLBACK");
                }
                Err(error)
            }
        }
    }

    fn fill(&mut self, jobs: &mut Vec<Job>, began: Instant) -> rusqlite::Result<Filled> {
        let mut results = Vec::with_capacity(jobs.len());
        let mut next = 0;
        loop {
            if next == jobs.len() {
                // An attempt before this one may have taken something that has to wait.
                if began.elapsed() >= HOLD_MAX || self.carried.is_some() {
                    return Ok(Filled::Results(results));
                }
                match self.queue.recv_timeout(Duration::ZERO) {
                    Ok(Task::Job(job)) if job.durable == Durable::Normal || jobs[0].durable == Durable::Full => {
                        jobs.push(job);
                    }
                    Ok(task) => {
                        self.carried = Some(task);
                        return Ok(Filled::Results(results));
                    }
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        return Ok(Filled::Results(results));
                    }
                }
            }
            let result = Self::apply_in_savepoint(&self.connection, &mut jobs[next])?;
            if self.connection.is_autocommit() {
                return Ok(Filled::Ended(next, result.err().unwrap_or_else(ended)));
            }
            results.push(result);
            next += 1;
        }
    }

    /// The outer error concerns the whole transaction, the inner one this job alone.
    fn apply_in_savepoint(connection: &Connection, job: &mut Job) -> rusqlite::Result<Result<(), JobError>> {
        connection.prepare_cached("SAVEPOINT job")?.execute([])?;
        match (job.apply)(connection) {
            Err(JobError::Sqlite(error)) if fault::classify(&error).0.passes() => Err(error),
            // Gone with the transaction.
            result if connection.is_autocommit() => Ok(result),
            Ok(()) => {
                connection.prepare_cached("RELEASE job")?.execute([])?;
                Ok(Ok(()))
            }
            Err(error) => {
                connection.execute_batch("ROLLBACK TO job; RELEASE job")?;
                Ok(Err(error))
            }
        }
    }
}
