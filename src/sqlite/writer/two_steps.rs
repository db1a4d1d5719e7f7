//! Transactions in two steps: what the first did is told at once, and committed only together with what follows from it.
//!
//! Between the two the lock is held; whoever was told answers within microseconds, and when he cannot any more, all is undone. Entries that wait
//! together share the transaction: one commit for all of them. When one of them fails, the others are undone with it, and told so.

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use super::{
    Desk, Entered, Entry, HOLD_MAX, JobError, LOCK_PACE_MAX, Owner, Second, Task, WAITING_SHOWN_AFTER, WriterState,
};
use crate::controls::{self, Seam};
use crate::retry::Pace;
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::open::{self, Durable};
use crate::telemetry::metric;

/// In a file of our own: for so long further entries are let in.
const JOIN_MAX: Duration = Duration::from_millis(50);

/// Tells one that it is done, or why it was undone.
type Tell = Box<dyn FnOnce(Option<&str>)>;

impl Desk {
    /// Returns how long the lock was held.
    pub(super) fn transact_in_two(&mut self, mut entry: Box<dyn Entry>, second: Receiver<Second>) -> Duration {
        let began = loop {
            let entered = self.begin().and_then(|began| Ok((began, entry.enter(&self.connection)?)));
            match entered {
                Ok((began, Entered::Open)) => break began,
                Ok((began, Entered::Nothing)) => {
                    self.roll_back();
                    return began.elapsed();
                }
                Ok((_, Entered::Again)) => self.roll_back(),
                Err(error) => {
                    self.roll_back();
                    self.count_failure(&error);
                    entry.fail(&error);
                    return Duration::ZERO;
                }
            }
        };
        let mut open = vec![second];
        self.let_others_in(&mut open, began);
        // It knows of what ends it: kept here, nobody would hear that the other side has gone.
        drop(entry);
        self.finish(&open);
        metric::lock_held(&self.file, began.elapsed());
        began.elapsed()
    }

    /// Others that have the lock are waited for, but not for long: what waits is shown by whoever is told.
    fn begin(&self) -> rusqlite::Result<Instant> {
        if self.owner == Owner::Application {
            open::synchronous(&self.connection, Durable::Normal)?;
        }
        let (asked, mut pace) = (Instant::now(), Pace::new(Duration::from_millis(1), LOCK_PACE_MAX));
        loop {
            match self.connection.execute_batch("BEGIN IMMEDIATE") {
                Ok(()) => {
                    metric::lock_wait(&self.file, asked.elapsed());
                    return Ok(Instant::now());
                }
                Err(error) if fault::classify(&error).0 == Kind::Busy && asked.elapsed() < WAITING_SHOWN_AFTER => {
                    metric::busy(&self.file, fault::classify(&error).1);
                    thread::sleep(pace.delay());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn let_others_in(&mut self, open: &mut Vec<Receiver<Second>>, began: Instant) {
        let most = if self.owner == Owner::Application { HOLD_MAX } else { JOIN_MAX };
        while self.carried.is_none() && began.elapsed() < most && !self.connection.is_autocommit() {
            let Ok(task) = self.queue.try_recv() else { return };
            let Task::Entry(mut entry, second) = task else {
                self.carried = Some(task);
                return;
            };
            let entered = self.connection.execute_batch("SAVEPOINT entry").and_then(|()| entry.enter(&self.connection));
            if let Ok(Entered::Open) = entered {
                open.push(second);
                continue;
            }
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK TO entry; RELEASE entry");
            }
            if !matches!(entered, Ok(Entered::Nothing)) {
                // It has its turn alone.
                self.carried = Some(Task::Entry(entry, second));
            }
        }
    }

    /// All of it is committed, or nothing.
    fn finish(&self, open: &[Receiver<Second>]) {
        let seconds: Vec<Option<Second>> = open.iter().map(|second| second.recv().ok()).collect();
        let mut undone = match self.connection.is_autocommit() {
            true => Some("another projection's SQL ended the transaction".to_owned()),
            false => None,
        };
        let mut tell: Vec<Tell> = Vec::new();
        for second in seconds {
            let Some(Second { apply, done }) = second else {
                undone.get_or_insert_with(|| "a projection in the same transaction was stopped".to_owned());
                continue;
            };
            let applied = if undone.is_none() { apply(&self.connection) } else { Ok(()) };
            match applied {
                Ok(()) => tell.push(Box::new(move |undone| match undone {
                    None => done(Ok(())),
                    Some(why) => done(Err(JobError::Undone(why.to_owned()))),
                })),
                Err(JobError::Sqlite(error)) if is_passing(&error) => {
                    self.count_failure(&error);
                    let why = undone.insert(error.to_string()).clone();
                    tell.push(Box::new(move |_| done(Err(JobError::Undone(why)))));
                }
                Err(error) => {
                    undone = Some(error.to_string());
                    tell.push(Box::new(move |_| done(Err(error))));
                }
            }
        }
        if undone.is_none() {
            controls::reach(Seam::Commit);
            undone = self.connection.execute_batch("COMMIT").err().map(|error| {
                self.count_failure(&error);
                error.to_string()
            });
        }
        self.roll_back();
        if undone.is_none() {
            controls::reach(Seam::Committed);
            metric::transaction(&self.file, metric::TransactionResult::Committed);
            self.state.send_if_modified(|state| std::mem::replace(state, WriterState::Ready) != WriterState::Ready);
        }
        tell.into_iter().for_each(|tell| tell(undone.as_deref()));
    }

    fn count_failure(&self, error: &rusqlite::Error) {
        metric::busy(&self.file, fault::classify(error).1);
        metric::transaction(&self.file, metric::TransactionResult::Retried);
    }

    /// SQLite may have done so by itself.
    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(fault::classify(error).0, Kind::Busy | Kind::Storage | Kind::CannotOpen)
}
