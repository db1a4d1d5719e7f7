//! The reader of one source: a thread with a read-only connection of its own.
//!
//! Invariants:
//! 1. A batch is handed out only when everything in its snapshot is durable (`durability = "strict"`): the barrier is raised after
//!    the snapshot, and left out only when this very snapshot (same `data_version`) was made durable before.
//! 2. No transaction and no statement stays open between two batches.
//! 3. A file or table that is not there yet is waited for; one that was seen and is gone, or is another one, halts.
//!
//! While nothing happens it reads one counter every 250 ms and writes nothing.

mod desk;

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use tokio::sync::{mpsc as channel, oneshot, watch};

use self::desk::Desk;
use super::Settings;
use super::feed::Care;
use super::filter::Filter;
use super::mapping::Mapping;
use super::plan::Plan;
pub use super::rows::RowsUpdate;
use super::wake::{Bell, Wake};
use crate::event::{Batch, Position, RowKey};
use crate::telemetry::metric;

/// A person has to act: what was found, and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Halt {
    pub detail: String,
    /// A new look cannot cure it: only a restart does.
    pub is_final: bool,
    /// The consumer's position is not one of this database: behind its end, or with another event in its place.
    pub position_is_ahead: bool,
}

impl Halt {
    pub fn new(detail: String) -> Self {
        Self { detail, is_final: false, position_is_ahead: false }
    }

    pub fn for_good(detail: String) -> Self {
        Self { is_final: true, ..Self::new(detail) }
    }

    pub fn position_ahead(detail: String) -> Self {
        Self { position_is_ahead: true, ..Self::new(detail) }
    }
}

/// Why a read did not succeed.
#[derive(Debug)]
pub enum ReadFault {
    Halt(Halt),
    Sqlite(rusqlite::Error),
}

impl From<Halt> for ReadFault {
    fn from(halt: Halt) -> Self {
        ReadFault::Halt(halt)
    }
}

impl From<rusqlite::Error> for ReadFault {
    fn from(error: rusqlite::Error) -> Self {
        ReadFault::Sqlite(error)
    }
}

/// What can be seen of the source from outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceState {
    /// What it waits for.
    Waiting(String),
    Ready(Head),
    Halted(Halt),
}

/// Where the source ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// The newest position ever given out.
    Position(Position),
    /// How many rows are pending.
    Pending(u64),
}

/// A first look at a source that is ready.
#[derive(Clone, PartialEq, Debug)]
pub struct Look {
    /// Everything that the table holds comes after it.
    pub before_first: Position,
    pub head: Position,
    pub head_id: String,
    pub has_events: bool,
    pub mapping: Mapping,
    pub plan: Plan,
    /// What is wrong with the file and does not keep it from being read, each with its remedy.
    pub warnings: Vec<String>,
}

/// What stood at a position when it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    pub position: Position,
    pub event_id: String,
}

/// Asks for the next batch; answered when there is one.
#[derive(Debug)]
pub struct ReadRequest {
    pub after: Position,
    /// What was read last, at `after`: must still be true.
    pub mark: Mark,
    pub update: RowsUpdate,
    pub events_max: usize,
    pub bytes_max: usize,
    pub event_bytes_max: usize,
    pub filter: Arc<Filter>,
    pub reply: channel::UnboundedSender<ReadNews>,
}

/// What a reader tells an engine.
#[derive(Debug)]
pub enum ReadNews {
    Batch(Batch),
    /// There is nothing more at present.
    AtHead,
    /// Dead rows that the application made pending again.
    Revived(Vec<RowKey>),
    Halted(Halt),
}

/// Rows asked for by name.
#[derive(Debug)]
pub enum Names {
    Positions(Vec<i64>),
    Rows(Vec<RowKey>),
}

enum Request {
    Look(oneshot::Sender<Result<Look, Halt>>),
    Verify(Vec<Mark>, oneshot::Sender<Result<(), Halt>>),
    Read(ReadRequest),
    /// To whoever asked last with this reply.
    Tell(RowsUpdate, channel::UnboundedSender<ReadNews>),
    Fetch(Names, usize, oneshot::Sender<Result<Batch, Halt>>),
}

impl Request {
    fn refuse(self, halt: &Halt) {
        match self {
            Request::Look(reply) => drop(reply.send(Err(halt.clone()))),
            Request::Verify(_, reply) => drop(reply.send(Err(halt.clone()))),
            Request::Read(request) => drop(request.reply.send(ReadNews::Halted(halt.clone()))),
            // Whoever asked is told when it asks.
            Request::Tell(..) => {}
            Request::Fetch(_, _, reply) => drop(reply.send(Err(halt.clone()))),
        }
    }
}

/// A handle to the thread, which ends with the last handle.
#[derive(Clone)]
pub struct Reader {
    requests: Sender<Request>,
    bell: Arc<LastRing>,
    /// The source is read by row: it has no position.
    pub by_row: bool,
    pub settings: Arc<Settings>,
    pub state: watch::Receiver<SourceState>,
}

/// Rings once more when the last handle goes, so that the thread sees the closed channel.
struct LastRing(Bell);

impl Drop for LastRing {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl Reader {
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        Self::start_with(settings, Care::Whole)
    }

    /// For a look at a source from which nothing is to be sent.
    pub fn glance(settings: Settings) -> std::io::Result<Self> {
        Self::start_with(settings, Care::Newest)
    }

    fn start_with(settings: Settings, care: Care) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::channel();
        let waiting = SourceState::Waiting(format!("{} was not looked at yet", settings.path.display()));
        let (state_tx, state) = watch::channel(waiting);
        let (wake, bell) = Wake::new()?;
        metric::source_ready(&settings.name, false);
        let by_row = settings.is_by_row();
        let kept = Arc::new(settings.clone());
        let desk = Desk::new(settings, queue, wake, state_tx, care);
        thread::Builder::new().name("reader".into()).spawn(move || desk.run())?;
        Ok(Self { requests, bell: Arc::new(LastRing(bell)), by_row, settings: kept, state })
    }

    fn ask(&self, request: Request) {
        if let Err(mpsc::SendError(request)) = self.requests.send(request) {
            request.refuse(&Halt::for_good("the reader of this source has ended".into()));
        }
        self.bell.0.ring();
    }

    /// Waits until the source is there. After a halt it is opened anew.
    pub async fn look(&self) -> Result<Look, Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Look(reply));
        answer.await.unwrap_or_else(|_| Err(Halt::for_good("the reader of this source has ended".into())))
    }

    pub async fn verify(&self, marks: Vec<Mark>) -> Result<(), Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Verify(marks, reply));
        answer.await.unwrap_or_else(|_| Err(Halt::for_good("the reader of this source has ended".into())))
    }

    pub fn read(&self, request: ReadRequest) {
        self.ask(Request::Read(request));
    }

    /// Adds to what the last request with this reply said, and asks for no more: a second one could be answered beside the first.
    pub fn tell(&self, update: RowsUpdate, reply: channel::UnboundedSender<ReadNews>) {
        self.ask(Request::Tell(update, reply));
    }

    /// The named rows that are still there, in that order.
    pub async fn fetch(&self, names: Names, event_bytes_max: usize) -> Result<Batch, Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Fetch(names, event_bytes_max, reply));
        answer.await.unwrap_or_else(|_| Err(Halt::for_good("the reader of this source has ended".into())))
    }
}
