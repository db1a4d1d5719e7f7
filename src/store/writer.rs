//! The one task that appends to a file: calls queue, and those that wait together share a transaction.
//!
//! Each call has its own answer, when it is committed or refused; one that fails takes nobody with it. Order is arrival. The lock is
//! waited for as long as the callers said, each for itself. A disk that fails is told at once to all whose transaction it was.
//!
//! rusqlite on a thread, and not sqlx: a hand-over between threads for every event costs more than the event (docs/BENCHMARKS.md).

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout_at;

use super::apply::{self, Care, Outcome};
use super::event::{Append, Appended};
use super::fault::{AppendError, AppendsError};
use crate::controls::{self, Seam};
use crate::retry::Pace;
use crate::sqlite::fault::{Kind, classify};

/// Calls that wait in the queue; further ones wait for a place in it.
const QUEUE: usize = 1_024;
/// Of one transaction, as long as others wait: the lock is given back in between.
const HOLD_MAX: Duration = Duration::from_millis(10);

type Answer = Result<Vec<Appended>, AppendsError>;

struct Job {
    appends: Vec<Append>,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

/// A handle to the thread; it ends when the last handle is dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
    ended: watch::Receiver<()>,
}

impl Writer {
    pub fn start(connection: Connection) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (alive, ended) = watch::channel(());
        let desk = Desk { connection, queue, waiting: VecDeque::new(), _alive: alive };
        thread::Builder::new()
            .name("appender".into())
            .spawn(move || desk.run())
            .expect("a thread can be started when a store is opened");
        Self { jobs, ended }
    }

    pub async fn append(&self, appends: Vec<Append>, deadline: Instant) -> Answer {
        let whole = |error| AppendsError { index: 0, error };
        let (reply, answer) = oneshot::channel();
        match timeout_at(deadline.into(), self.jobs.reserve()).await {
            Ok(Ok(place)) => place.send(Job { appends, deadline, reply }),
            Ok(Err(_)) => return Err(whole(AppendError::Ended)),
            Err(_) => return Err(whole(AppendError::Locked)),
        }
        answer.await.unwrap_or(Err(whole(AppendError::Ended)))
    }

    /// Waits until the thread has ended, which it does when the other handles are gone, too.
    pub async fn ended(self) {
        let Self { jobs, mut ended } = self;
        drop(jobs);
        // An error is what it is waited for: the sender has gone.
        while ended.changed().await.is_ok() {}
    }
}

struct Desk {
    connection: Connection,
    queue: mpsc::Receiver<Job>,
    /// Taken from the queue, in order.
    waiting: VecDeque<Job>,
    // Dropped last: who waits for the end finds the file closed.
    _alive: watch::Sender<()>,
}

impl Desk {
    fn run(mut self) {
        while let Some(job) = self.queue.blocking_recv() {
            self.waiting.push_back(job);
            let mut pace = Pace::new(Duration::from_millis(1), Duration::from_millis(10));
            while !self.waiting.is_empty() {
                match self.transact() {
                    Ok(()) => pace.succeeded(),
                    Err(error) if classify(&error).0 == Kind::Busy => {
                        let next = self.waiting.iter().map(|job| job.deadline).min();
                        let left = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
                        thread::sleep(pace.delay().min(left));
                        self.take();
                        self.expire();
                    }
                    Err(error) => {
                        let error = apply::sqlite_refused(&error);
                        for job in self.waiting.drain(..) {
                            let _ = job.reply.send(Err(AppendsError { index: 0, error: error.clone() }));
                        }
                    }
                }
            }
        }
    }

    /// All that have come: each has a deadline of its own.
    fn take(&mut self) {
        while let Ok(job) = self.queue.try_recv() {
            self.waiting.push_back(job);
        }
    }

    /// Those that would not wait any longer.
    fn expire(&mut self) {
        let now = Instant::now();
        let (over, waiting) = self.waiting.drain(..).partition(|job| job.deadline <= now);
        self.waiting = waiting;
        for job in Vec::from(over) {
            let _ = job.reply.send(Err(AppendsError { index: 0, error: AppendError::Locked }));
        }
    }

    /// One transaction, of what waits and of what comes meanwhile. An error means that nothing was committed, and all of them wait still.
    fn transact(&mut self) -> rusqlite::Result<()> {
        let answers = match self.attempt(Care::Quick)? {
            Some(answers) => answers,
            None => self.attempt(Care::Guarded)?.expect("with care, what fails leaves nothing behind"),
        };
        for (job, answer) in self.waiting.drain(..answers.len()).zip(answers) {
            // A caller that has gone is not told.
            let _ = job.reply.send(answer);
        }
        Ok(())
    }

    /// `None`: one failed when something of it was written, and all of it was rolled back.
    fn attempt(&mut self, care: Care) -> rusqlite::Result<Option<Vec<Answer>>> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let filled = self.fill(care).and_then(|answers| {
            if answers.is_some() {
                controls::reach(Seam::Commit);
                self.connection.prepare_cached("COMMIT")?.execute([])?;
                controls::reach(Seam::Committed);
            }
            Ok(answers)
        });
        // After an error SQLite may have rolled back by itself (disk full, I/O error).
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        filled
    }

    /// The answers of as many as there is time for, from the first on.
    fn fill(&mut self, care: Care) -> rusqlite::Result<Option<Vec<Answer>>> {
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
                Some(Outcome::Again) => return Ok(None),
            });
            if began.elapsed() >= HOLD_MAX {
                break;
            }
            if answers.len() == self.waiting.len()
                && let Ok(job) = self.queue.try_recv()
            {
                self.waiting.push_back(job);
            }
        }
        Ok(Some(answers))
    }
}
