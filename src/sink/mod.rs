//! Sinks: where a relay ends.
//!
//! The port is [`Sink`]: `check`, `send`, `close`, and `survey` for the doctor. A sink takes a [`Flight`] of events, and writes one [`Outcome`] into each of
//! its slots as the far side answers, in any order; when the last slot is filled the flight comes back to the engine
//! as [`News::Landed`]. There is no future, lock or channel message per event.
//!
//! Invariants, each owned by the conformance suite in `tests/it/sink_contract.rs`:
//! 1. `Delivered` is written only after the far side acknowledged durably, and not returned, that very event.
//! 2. Every slot of every flight is filled in the end, or the sink is closed first; nothing is filled twice.
//! 3. A failure shared by several events is `Suspect` for each of them; `Rejected` names an event that the error itself names,
//!    or that was alone in its flight's exchange with the far side.
//! 4. Events of one key are handed to the far side in the order in which they were sent.
//!
//! A sink does not retry, back off, or remember: that is the engine's. Each type of sink is a room here, with its own keys (`config`), and a
//! line in `registry`. Where to start reading: [`Flight`], then `file`.

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod file;
pub mod format;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg_attr(
    not(all(feature = "kafka", feature = "amqp", feature = "http")),
    allow(dead_code, unused_imports, unused_macros, reason = "fewer sinks have fewer keys")
)]
mod keys;
mod registry;
pub mod survey;
pub mod template;
pub mod tls;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use registry::{Keys, Settings, Told, Type, is_left_out, open, types};
use survey::Sample;

use crate::remark::Remark;
use tokio::sync::mpsc::UnboundedSender;

use crate::controls::{self, Seam};
use crate::event::{Batch, Event, Rejection};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place that takes events and acknowledges them.
pub trait Sink: Send {
    /// Connects where that is needed and proves that the destination is there: exchange, topic, folder, rights.
    /// Ends within `timeout`. Called at start, after every outage, and as the probe while halted.
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>>;

    /// Takes a flight and returns at once; its slots are filled later. Without a connection the slots are filled with
    /// [`Outcome::Unavailable`].
    fn send(&mut self, flight: Arc<Flight>);

    /// Looks at the far side with the eyes of a doctor: what of it would refuse, hold up or lose events like these. Sends nothing, changes
    /// nothing, and ends within `timeout` or says what it did not see. Called behind a [`Sink::check`], whatever that said.
    fn survey<'a>(&'a mut self, _: &'a Sample<'a>, _timeout: Duration) -> BoxFuture<'a, Vec<Remark>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Lets go of the far side. What is still in flight stays unanswered and is forgotten.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// The far side as a whole has a fault: no event is to blame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub class: FaultClass,
    /// What happened, with the remedy where there is one. Never holds a secret.
    pub detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultClass {
    /// Away, locked, blocked, timed out: wait, for ever if need be.
    Unavailable,
    /// Credentials, rights, a constant destination that is missing: a person has to act; probed all the same.
    Fatal,
}

impl Fault {
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { class: FaultClass::Unavailable, detail: detail.into() }
    }

    pub fn fatal(detail: impl Into<String>) -> Self {
        Self { class: FaultClass::Fatal, detail: detail.into() }
    }
}

/// What became of one event in one flight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Delivered,
    /// This event is refused: the error named it, or it was alone.
    Rejected(Rejection),
    /// It failed together with others: nobody is convicted.
    Suspect(Rejection),
    /// Nothing is known of it: the far side is away. It may have been written.
    Unavailable(Fault),
    /// Not tried: an earlier event of its key was refused in the same flight. Only projections can know that in time.
    Behind,
}

/// What a sink tells the engine of its own accord.
#[derive(Debug)]
pub enum News {
    /// Every slot of the flight is filled.
    Landed(Arc<Flight>),
    /// The far side has a fault although no slot was filled with it (messages just wait).
    Trouble(Fault),
    /// The far side asked us to stop sending (`Some(why)`), or to go on (`None`).
    Blocked(Option<String>),
}

/// One event of a flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pick {
    /// Its index in the flight's batch.
    pub index: u32,
    /// 1 for a first attempt.
    pub attempt: u32,
    /// It may have been delivered before.
    pub redelivery: bool,
    pub replay: bool,
}

impl Pick {
    pub fn first(index: u32) -> Self {
        Self { index, attempt: 1, redelivery: false, replay: false }
    }
}

const UNANSWERED: u8 = 0;
const DELIVERED: u8 = 1;
const NOTED: u8 = 2;

/// Some events of a batch on their way to a sink, with a slot for each outcome.
#[derive(Debug)]
pub struct Flight {
    /// The engine's number for it.
    pub id: u64,
    pub batch: Arc<Batch>,
    pub picks: Vec<Pick>,
    pub sent_at: Instant,
    slots: Box<[AtomicU8]>,
    open: AtomicUsize,
    // The lock is taken only for outcomes other than `Delivered`, which are rare, and once more by the engine after landing.
    notes: Mutex<Vec<(u32, Outcome)>>,
    news: UnboundedSender<News>,
}

impl Flight {
    /// # Panics
    /// With no picks: an empty flight could never land.
    pub fn new(id: u64, batch: Arc<Batch>, picks: Vec<Pick>, news: UnboundedSender<News>) -> Arc<Self> {
        assert!(!picks.is_empty(), "a flight carries at least one event");
        let slots = picks.iter().map(|_| AtomicU8::new(UNANSWERED)).collect();
        let open = AtomicUsize::new(picks.len());
        Arc::new(Self { id, batch, picks, sent_at: Instant::now(), slots, open, notes: Mutex::default(), news })
    }

    pub fn len(&self) -> usize {
        self.picks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    pub fn event(&self, slot: usize) -> Event<'_> {
        self.batch.event(self.picks[slot].index as usize)
    }

    /// Writes what became of the event in `slot`. The first outcome stands; the last slot to be filled lands the flight.
    pub fn fill(self: &Arc<Self>, slot: usize, outcome: Outcome) {
        let code = if outcome == Outcome::Delivered { DELIVERED } else { NOTED };
        if self.slots[slot].compare_exchange(UNANSWERED, code, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        if code == DELIVERED {
            controls::reach(Seam::Acknowledged);
        } else {
            self.notes.lock().expect("no panic happens under this lock").push((slot as u32, outcome));
        }
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The engine that waited for it may be gone: then nobody needs to know.
            let _ = self.news.send(News::Landed(self.clone()));
        }
    }

    /// Fills every slot that is still open.
    pub fn fill_rest(self: &Arc<Self>, outcome: &Outcome) {
        for slot in 0..self.len() {
            if self.slots[slot].load(Ordering::Acquire) == UNANSWERED {
                self.fill(slot, outcome.clone());
            }
        }
    }

    pub fn is_landed(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// How many slots are filled.
    pub fn answered(&self) -> usize {
        self.len() - self.open.load(Ordering::Acquire)
    }

    pub fn is_delivered(&self, slot: usize) -> bool {
        self.slots[slot].load(Ordering::Acquire) == DELIVERED
    }

    /// After landing: every outcome other than `Delivered`, by slot.
    pub fn take_notes(&self) -> Vec<(u32, Outcome)> {
        let mut notes = std::mem::take(&mut *self.notes.lock().expect("no panic happens under this lock"));
        notes.sort_by_key(|note| note.0);
        notes
    }
}

/// Where a sink reports, and what it needs to know of its relay.
#[derive(Clone, Debug)]
pub struct Port {
    pub news: UnboundedSender<News>,
    /// The relay's name, for client ids and connection names.
    pub consumer: String,
    /// The source's name, for headers and envelopes.
    pub source: String,
}

/// Makes a sink for a relay.
#[derive(Clone)]
pub struct Maker(pub Arc<dyn Fn(Port) -> Box<dyn Sink> + Send + Sync>);

impl PartialEq for Maker {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maker")
    }
}
