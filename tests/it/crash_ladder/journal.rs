//! A sink that writes what arrives to a journal, which outlives the process.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outboxd::event::{Reason, Rejection};
use outboxd::sink::{BoxFuture, Fault, Flight, Maker, Outcome, Sink};

use super::course::{Course, Trouble, number};

/// Flights, counted from 1 in each process, in which something goes wrong.
const DROPS: u64 = 2;
const GOES_AWAY: u64 = 3;

pub struct Journal {
    course: &'static Course,
    folder: PathBuf,
    file: File,
    /// So many more probes fail.
    away: u32,
}

pub fn maker(course: &'static Course, folder: &Path) -> Maker {
    let folder = folder.to_owned();
    Maker(Arc::new(move |_| {
        let file = OpenOptions::new().create(true).append(true).open(folder.join("journal")).unwrap();
        Box::new(Journal { course, folder: folder.clone(), file, away: 0 })
    }))
}

/// A sink to which nothing happens, for copies of dead letters.
pub fn copies(folder: &Path) -> Maker {
    let folder = folder.to_owned();
    Maker(Arc::new(move |_| {
        Box::new(Copies(OpenOptions::new().create(true).append(true).open(folder.join("copies")).unwrap()))
    }))
}

struct Copies(File);

impl Sink for Copies {
    fn check(&mut self, _timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async { Ok(()) })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        for slot in 0..flight.len() {
            let event = flight.event(slot);
            let reason = &event.death.expect("a copy says why").reason;
            self.0.write_all(format!("{} {reason}\n", event.id).as_bytes()).unwrap();
            flight.fill(slot, Outcome::Delivered);
        }
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Journal {
    fn is_poison(&self, n: usize, attempt: u32) -> bool {
        self.course.poison().contains(&n)
            && match self.course.trouble {
                Trouble::Refusals => attempt < 2,
                Trouble::DeadLetters => !self.folder.join("mended").exists(),
                Trouble::None | Trouble::Away | Trouble::DeadForGood | Trouble::Replay => false,
            }
    }

    fn judge(&mut self, flight: &Flight, slot: usize) -> Outcome {
        let (n, pick) = (number(flight.event(slot).id), flight.picks[slot]);
        if self.is_poison(n, pick.attempt) {
            return Outcome::Rejected(Rejection::new(Reason::Refused, "poison"));
        }
        let is_convicted = pick.attempt > 1 && !self.course.poison().contains(&n);
        let again = if pick.redelivery { "again" } else { "first" };
        let again = if pick.replay { "replayed" } else { again };
        self.write(flight, slot, if is_convicted { "convicted" } else { again });
        Outcome::Delivered
    }

    /// In one piece, so that a crash tears no line.
    fn write(&mut self, flight: &Flight, slot: usize, what: &str) {
        self.file.write_all(format!("{} {what}\n", flight.event(slot).id).as_bytes()).unwrap();
    }
}

impl Sink for Journal {
    fn check(&mut self, _timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        let is_away = self.away > 0;
        self.away = self.away.saturating_sub(1);
        Box::pin(async move { if is_away { Err(Fault::unavailable("away")) } else { Ok(()) } })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let trouble = self.course.trouble;
        // Something in the middle of a flight does not get through, and nobody knows whose fault it was.
        let drops = trouble == Trouble::Refusals && flight.id == DROPS && flight.len() > 3;
        let leaves = trouble == Trouble::Away && flight.id == GOES_AWAY;
        for slot in 0..flight.len() {
            let outcome = if drops && slot == 2 {
                self.write(&flight, slot, "dropped");
                Outcome::Suspect(Rejection::new(Reason::Refused, "somebody's fault"))
            } else if leaves && slot > 0 {
                self.away = 2;
                // The last of them arrives, and nobody is told.
                if slot + 1 == flight.len() {
                    self.judge(&flight, slot);
                } else {
                    self.write(&flight, slot, "dropped");
                }
                Outcome::Unavailable(Fault::unavailable("away"))
            } else {
                self.judge(&flight, slot)
            };
            flight.fill(slot, outcome);
        }
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}
