//! Transactions in two steps: what the first did is told at once, and committed only together with what follows from it.
//!
//! Between the two the lock is held; whoever was told answers within microseconds, and when he cannot any more, or does not, all is undone. Entries that wait
//! together share the transaction: one commit for all of them. When one of them fails, the others are undone with it, and told so.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
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
/// Whoever does not answer for so long hangs: the lock is not held for his sake.
const SECOND_MAX: Duration = Duration::from_secs(10);

/// Tells one that it is done, or why it was undone.
type Tell = Box<dyn FnOnce(Option<&str>)>;

impl Desk {
    /// Returns how long the lock was held.
    pub(super) fn transact_in_two(&mut self, mut entry: Box<dyn Entry>, second: Receiver<Second>) -> Duration {
        let began = loop {
            let began = match self.begin() {
                Ok(began) => began,
                Err(error) => {
                    self.give_up(&mut *entry, &error);
                    return Duration::ZERO;
                }
            };
            match entry.enter(&self.connection) {
                Ok(Entered::Open) => break began,
                Ok(Entered::Nothing) => {
                    self.roll_back();
                    return began.elapsed();
                }
                Ok(Entered::Again) => {
                    self.roll_back();
                    // Others have their turn, as behind every hold.
                    self.pause(began.elapsed());
                }
                Err(error) => {
                    self.roll_back();
                    self.give_up(&mut *entry, &error);
                    return began.elapsed();
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

    fn give_up(&self, entry: &mut dyn Entry, error: &rusqlite::Error) {
        self.count_failure(error);
        entry.fail(error);
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
                    self.waited(asked.elapsed());
                    return Ok(Instant::now());
                }
                Err(error) if fault::classify(&error).0 == Kind::Busy && asked.elapsed() < WAITING_SHOWN_AFTER => {
                    metric::busy(&self.file, fault::classify(&error).1);
                    thread::sleep(pace.delay());
                }
                Err(error) => {
                    // Given up is waited, too.
                    self.waited(asked.elapsed());
                    return Err(error);
                }
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
        let until = Instant::now() + SECOND_MAX;
        let left = || until.saturating_duration_since(Instant::now());
        let seconds: Vec<Result<Second, RecvTimeoutError>> =
            open.iter().map(|second| second.recv_timeout(left())).collect();
        let mut undone = match self.connection.is_autocommit() {
            true => Some("another projection's SQL ended the transaction".to_owned()),
            false => None,
        };
        let mut tell: Vec<Tell> = Vec::new();
        for second in seconds {
            let Second { apply, done } = match second {
                Ok(second) => second,
                Err(error) => {
                    undone.get_or_insert_with(|| match error {
                        RecvTimeoutError::Disconnected => "a projection in the same transaction was stopped".to_owned(),
                        RecvTimeoutError::Timeout => {
                            format!(
                                "a projection in the same transaction did not say for {SECOND_MAX:?} what to record"
                            )
                        }
                    });
                    continue;
                }
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::lockfile::LockFile;
    use crate::sqlite::writer::Writer;

    fn writer(folder: &tempfile::TempDir, owner: Owner) -> Writer {
        let path: PathBuf = folder.path().join("a.db");
        let connection = open::state_file(&path).unwrap();
        connection.execute_batch("CREATE TABLE a (n)").unwrap();
        Writer::start(connection, &path, owner, LockFile::take(&path).unwrap()).unwrap()
    }

    async fn rows(writer: &Writer) -> i64 {
        let count = |c: &Connection| Ok(c.query_row("SELECT count(*) FROM a", [], |row| row.get(0))?);
        writer.perform(count).await.unwrap()
    }

    struct Opens;

    impl Entry for Opens {
        fn enter(&mut self, connection: &Connection) -> rusqlite::Result<Entered> {
            connection.execute("INSERT INTO a VALUES (1)", [])?;
            Ok(Entered::Open)
        }

        fn fail(&mut self, error: &rusqlite::Error) {
            panic!("{error}");
        }
    }

    #[tokio::test]
    async fn whoever_does_not_answer_is_undone_and_the_next_has_his_turn() {
        let folder = tempfile::tempdir().unwrap();
        let writer = writer(&folder, Owner::Ourselves);
        let (tell, told) = std::sync::mpsc::channel();
        let (go, gate) = std::sync::mpsc::channel::<()>();
        writer.submit(move |_| gate.recv().map_err(|_| JobError::Ended), |_| ());
        let silent = writer.enter(Box::new(Opens));
        // It shares the transaction, and is told why it is undone.
        let neighbour = writer.enter(Box::new(Opens));
        let done = Box::new(move |result: Result<(), JobError>| tell.send(result).unwrap());
        neighbour.send(Second { apply: Box::new(|_| Ok(())), done }).unwrap_or_else(|_| panic!("it is waited for"));
        // Now both are there.
        go.send(()).unwrap();
        assert_eq!(rows(&writer).await, 0);
        assert!(silent.send(Second { apply: Box::new(|_| Ok(())), done: Box::new(|_| ()) }).is_err(), "too late");
        let Ok(Err(JobError::Undone(why))) = told.recv() else { panic!("it is undone") };
        assert!(why.contains("did not say for 10s"), "{why}");
    }

    /// The transaction is gone three times, each time after a while.
    struct Repeats(Arc<Mutex<Vec<Instant>>>);

    const WORK: Duration = Duration::from_millis(20);

    impl Entry for Repeats {
        fn enter(&mut self, _: &Connection) -> rusqlite::Result<Entered> {
            let mut begun = self.0.lock().unwrap();
            begun.push(Instant::now());
            thread::sleep(WORK);
            Ok(if begun.len() < 4 { Entered::Again } else { Entered::Nothing })
        }

        fn fail(&mut self, error: &rusqlite::Error) {
            panic!("{error}");
        }
    }

    #[tokio::test]
    async fn an_application_has_its_turn_between_two_attempts() {
        let folder = tempfile::tempdir().unwrap();
        let writer = writer(&folder, Owner::Application);
        let begun = Arc::new(Mutex::new(Vec::new()));
        let _second = writer.enter(Box::new(Repeats(begun.clone())));
        assert_eq!(rows(&writer).await, 0);
        let begun = begun.lock().unwrap();
        assert_eq!(begun.len(), 4);
        assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= 7 * WORK), "{begun:?}");
    }
}
