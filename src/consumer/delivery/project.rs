//! Effect in tables: a flight is applied in a transaction that stays open until its settlement is recorded in it.
//!
//! Invariants (tests in `tests/it/projections.rs`, `tests/it/crash_ladder`):
//! 1. Effect, held events and checkpoint are one transaction: a crash leaves all of it or nothing.
//! 2. A settlement that does not cover exactly what was applied is refused, and what was applied undone.
//! 3. One flight is in the air at a time ([`Session::is_busy`](crate::consumer::session)): the next is applied when the last is recorded.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::{Cargo, Delivery, Done, Ledger};
use crate::consumer::status::Status;
use crate::controls::{self, Protection};
use crate::projection::apply::{Applied, Applier, Care, Stopped, Waits};
use crate::projection::{Definition, statement};
use crate::sink::{BoxFuture, Fault, Flight, Outcome};
use crate::sqlite::writer::{Entered, Entry, JobError, Owner, Second, Writer};
use crate::state::settlement::Settlement;

/// What one flight may take: in a file of our own, and in an application's, where it holds up whoever writes there.
const OWN_MAX: Duration = Duration::from_millis(50);
const SHARED_MAX: Duration = Duration::from_millis(2);
/// Before it is known how long they take.
const OWN_FIRST: usize = 256;
const SHARED_FIRST: usize = 8;
/// Types that nothing handles are shown up to so many.
const UNHANDLED_SHOWN: usize = 50;

/// The end of a projection.
pub struct Project {
    definition: Arc<Definition>,
    applier: Arc<Applier>,
    writer: Writer,
    open: Arc<Open>,
    /// A refused event's key is held.
    announces: bool,
    status: watch::Sender<Status>,
}

/// What was applied and is not recorded yet: known to the delivery, which starts it, and to the ledger, which ends it.
#[derive(Debug)]
struct Open {
    /// Events.
    applied: AtomicU64,
    // Of the engine's task alone, which has the two in two boxes: never contended.
    second: Mutex<Option<Sender<Second>>>,
    /// As many events as may be applied in the time that there is.
    most: AtomicUsize,
}

/// Records settlements in the transaction of what they settle.
pub struct ProjectLedger {
    writer: Writer,
    open: Arc<Open>,
}

impl Project {
    pub fn new(
        definition: Arc<Definition>,
        writer: Writer,
        announces: bool,
        status: watch::Sender<Status>,
    ) -> (Self, ProjectLedger) {
        let first = if writer.owner == Owner::Application { SHARED_FIRST } else { OWN_FIRST };
        let (applied, second, most) = (AtomicU64::new(0), Mutex::new(None), AtomicUsize::new(first));
        let open = Arc::new(Open { applied, second, most });
        let ledger = ProjectLedger { writer: writer.clone(), open: open.clone() };
        let applier = Arc::new(Applier::new(definition.clone()));
        (Self { definition, applier, writer, open, announces, status }, ledger)
    }
}

impl Delivery for Project {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        let (definition, guard) = (self.definition.clone(), self.writer.guard.clone());
        Box::pin(async move {
            let path = self.definition.path.display();
            let away = |text: String| Fault::unavailable(format!("{path}: {text}"));
            let proven = self.writer.perform(move |connection| Ok(statement::prove(connection, &guard, &definition)?));
            match tokio::time::timeout(timeout, proven).await {
                Err(_) => Err(away("it is locked".into())),
                Ok(Err(error)) => Err(away(error.to_string())),
                Ok(Ok(misfits)) if misfits.is_empty() => Ok(()),
                Ok(Ok(misfits)) => {
                    let told: Vec<String> = misfits.iter().map(ToString::to_string).collect();
                    Err(Fault::fatal(format!(
                        "{} does not fit the tables in {path}: {}. Remedy: change its section, or bring the tables back",
                        self.definition.name,
                        told.join("; ")
                    )))
                }
            }
        })
    }

    fn send(&mut self, flight: Arc<Flight>, cargo: Cargo) {
        let entry = Apply {
            applier: self.applier.clone(),
            writer: self.writer.clone(),
            flight,
            waits: match cargo {
                Cargo::Held => Waits::All,
                Cargo::Live if self.announces => Waits::OfItsKey,
                Cargo::Live => Waits::None,
            },
            care: Care::Quick,
            open: self.open.clone(),
            status: self.status.clone(),
        };
        let second = self.writer.enter(Box::new(entry));
        *self.open.second.lock().expect("no panic happens under this lock") = Some(second);
    }

    fn most(&self) -> usize {
        self.open.most.load(SeqCst)
    }

    fn reopen(&mut self) -> BoxFuture<'_, ()> {
        // What is open is undone when its second step is dropped.
        *self.open.second.lock().expect("no panic happens under this lock") = None;
        self.open.applied.store(0, SeqCst);
        Box::pin(async {})
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Ledger for ProjectLedger {
    fn record(&self, settlement: Settlement, done: Done) {
        let applied = self.open.applied.swap(0, SeqCst);
        let second = self.open.second.lock().expect("no panic happens under this lock").take();
        if controls::is_off(Protection::Together) || (applied, settlement.delivered) == (0, 0) {
            return self.writer.submit(move |connection| settlement.apply(connection, None), done);
        }
        if applied != settlement.delivered {
            let text = format!(
                "{applied} events were applied, and {} are to be settled: a bug of outboxd; please report it. Nothing of it is in the file",
                settlement.delivered
            );
            return done(Err(JobError::Refused(text)));
        }
        let apply = Box::new(move |connection: &Connection| settlement.apply(connection, None));
        let sent = second.map(|sender| sender.send(Second { apply, done }));
        if let Some(Err(unsent)) = sent {
            // The writer has waited for it no longer, or has ended.
            (unsent.0.done)(Err(JobError::Undone("what was to be recorded with it came too late".to_owned())));
        }
    }
}

/// The first step, on the writer's thread.
struct Apply {
    applier: Arc<Applier>,
    writer: Writer,
    flight: Arc<Flight>,
    waits: Waits,
    care: Care,
    open: Arc<Open>,
    status: watch::Sender<Status>,
}

impl Entry for Apply {
    fn enter(&mut self, connection: &Connection) -> rusqlite::Result<Entered> {
        let began = Instant::now();
        match self.applier.apply(connection, &self.writer.guard, &self.flight, &self.care, self.waits) {
            Ok(applied) => {
                self.learn(began.elapsed());
                if controls::is_off(Protection::Together) {
                    connection.execute_batch("COMMIT")?;
                }
                Ok(self.tell(applied))
            }
            Err(Stopped::Sqlite(error)) => Err(error),
            Err(Stopped::Misfit(fault)) => {
                self.flight.fill_rest(&Outcome::Unavailable(fault));
                Ok(Entered::Nothing)
            }
            Err(Stopped::Half) => {
                self.care = Care::Guarded(HashMap::new());
                Ok(Entered::Again)
            }
            Err(Stopped::Ended(slot, rejection)) => {
                match &mut self.care {
                    Care::Guarded(ended) => drop(ended.insert(slot, rejection)),
                    Care::Quick => self.care = Care::Guarded([(slot, rejection)].into()),
                }
                Ok(Entered::Again)
            }
        }
    }

    fn fail(&mut self, error: &rusqlite::Error) {
        let text = format!("the read model cannot be written at present: {error}");
        self.flight.fill_rest(&Outcome::Unavailable(Fault::unavailable(text)));
    }
}

impl Apply {
    fn learn(&self, took: Duration) {
        let most = if self.writer.owner == Owner::Application { SHARED_MAX } else { OWN_MAX };
        let fits = self.flight.len() as f64 * most.as_secs_f64() / took.as_secs_f64().max(1e-6);
        let grown = self.open.most.load(SeqCst).saturating_mul(2);
        self.open.most.store((fits as usize).clamp(1, grown), SeqCst);
    }

    fn tell(&self, applied: Applied) -> Entered {
        if !applied.unhandled.is_empty() {
            self.status.send_modify(|status| count(&mut status.unhandled, applied.unhandled));
        }
        let delivered = applied.outcomes.iter().filter(|outcome| **outcome == Outcome::Delivered).count();
        // Before the flight lands: the engine settles at once.
        self.open.applied.store(delivered as u64, SeqCst);
        for (slot, outcome) in applied.outcomes.into_iter().enumerate() {
            self.flight.fill(slot, outcome);
        }
        match delivered {
            0 => Entered::Nothing,
            _ if controls::is_off(Protection::Together) => Entered::Nothing,
            _ => Entered::Open,
        }
    }
}

fn count(all: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (kind, events) in more {
        let is_shown = all.len() < UNHANDLED_SHOWN || all.contains_key(&kind);
        *all.entry(if is_shown { kind } else { "(others)".to_owned() }).or_default() += events;
    }
}
