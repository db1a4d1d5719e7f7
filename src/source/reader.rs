//! The reader of one source: a thread with a read-only connection of its own.
//!
//! Invariants:
//! 1. A batch is handed out only when everything in its snapshot is durable (`durability = "strict"`): the barrier is raised after
//!    the snapshot, and left out only when this very snapshot (same `data_version`) was made durable before.
//! 2. No transaction and no statement stays open between two batches.
//! 3. A file or table that is not there yet is waited for; one that was seen and is gone, or is another one, halts.
//!
//! While nothing happens it reads one counter every 250 ms and writes nothing.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc as channel, oneshot, watch};

use super::checkpointed::Checkpointed;
use super::filter::Filter;
use super::mapping::Mapping;
use super::preset::{self, Misfit};
use super::rows::{self, Rows};
pub use super::rows::RowsUpdate;
use super::wake::{Bell, Wake};
use super::{Durability, Settings};
use crate::controls::{self, Protection, Seam};
use crate::event::{Batch, Position, RowKey};
use crate::sqlite::barrier::Barrier;
use crate::sqlite::{fault, open};
use crate::telemetry::metric;

/// The poll after activity, doubling to the longest.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(250);
/// How often a file or table that is not there is looked for.
const APPEAR_POLL: Duration = Duration::from_millis(500);
/// The poll after a change notice that came before the commit could be seen: the file is written first, and perhaps synced, and only
/// then is the commit there.
const POLL_HINTED: Duration = Duration::from_micros(500);
/// Pending rows are counted again only after so many times what the last count took.
const COUNT_FACTOR: u32 = 50;

/// A person has to act: what was found, and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Halt {
    pub detail: String,
    /// A new look cannot cure it: only a restart does.
    pub is_final: bool,
}

impl Halt {
    pub fn new(detail: String) -> Self {
        Self { detail, is_final: false }
    }
}

/// Why a read did not succeed.
#[derive(Debug)]
pub enum ReadFault {
    Halt(Halt),
    Sqlite(rusqlite::Error),
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Look {
    pub head: Position,
    pub head_id: String,
    pub has_events: bool,
    pub mapping: Mapping,
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
    Fetch(Names, usize, oneshot::Sender<Result<Batch, Halt>>),
}

impl Request {
    fn refuse(self, halt: &Halt) {
        match self {
            Request::Look(reply) => drop(reply.send(Err(halt.clone()))),
            Request::Verify(_, reply) => drop(reply.send(Err(halt.clone()))),
            Request::Read(request) => drop(request.reply.send(ReadNews::Halted(halt.clone()))),
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
        let (requests, queue) = mpsc::channel();
        let waiting = SourceState::Waiting(format!("{} was not looked at yet", settings.path.display()));
        let (state_tx, state) = watch::channel(waiting);
        let (wake, bell) = Wake::new()?;
        metric::source_ready(&settings.name, false);
        let by_row = settings.is_by_row();
        let desk = Desk {
            barrier: Barrier::new(&settings.path),
            excluded: rows::Shared::default(),
            counted: None,
            settings,
            queue,
            wake,
            state: state_tx,
            open: None,
            seen: false,
            halted: None,
            parked: VecDeque::new(),
            poll: POLL_MIN,
            looked_at_sizes: None,
        };
        thread::Builder::new().name("reader".into()).spawn(move || desk.run())?;
        Ok(Self { requests, bell: Arc::new(LastRing(bell)), by_row, state })
    }

    fn ask(&self, request: Request) {
        if let Err(mpsc::SendError(request)) = self.requests.send(request) {
            request.refuse(&Halt { detail: "the reader of this source has ended".into(), is_final: true });
        }
        self.bell.0.ring();
    }

    /// Waits until the source is there. After a halt it is opened anew.
    pub async fn look(&self) -> Result<Look, Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Look(reply));
        answer.await.unwrap_or_else(|_| Err(Halt { detail: "the reader of this source has ended".into(), is_final: true }))
    }

    pub async fn verify(&self, marks: Vec<Mark>) -> Result<(), Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Verify(marks, reply));
        answer.await.unwrap_or_else(|_| Err(Halt { detail: "the reader of this source has ended".into(), is_final: true }))
    }

    pub fn read(&self, request: ReadRequest) {
        self.ask(Request::Read(request));
    }

    /// The named rows that are still there, in that order.
    pub async fn fetch(&self, names: Names, event_bytes_max: usize) -> Result<Batch, Halt> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Fetch(names, event_bytes_max, reply));
        answer.await.unwrap_or_else(|_| Err(Halt { detail: "the reader of this source has ended".into(), is_final: true }))
    }
}

#[derive(Debug)]
enum Table {
    Checkpointed(Checkpointed),
    Rows(Rows),
}

struct Open {
    connection: Connection,
    table: Table,
    inode: (u64, u64),
    /// The `data_version` of the newest snapshot that the barrier has made durable.
    durable_version: Option<i64>,
    /// The `data_version` at which the parked requests were last answered.
    served_version: Option<i64>,
    /// The `data_version` whose head is published.
    headed_version: Option<i64>,
}

struct Desk {
    settings: Settings,
    queue: Receiver<Request>,
    wake: Wake,
    state: watch::Sender<SourceState>,
    open: Option<Open>,
    /// The table was there once.
    seen: bool,
    halted: Option<Halt>,
    barrier: Barrier,
    /// For a table read by row: what the engine told, which outlives the connection.
    excluded: rows::Shared,
    /// When pending rows were counted, and how long that took.
    counted: Option<(Instant, Duration)>,
    parked: VecDeque<Request>,
    poll: Duration,
    looked_at_sizes: Option<Instant>,
}

impl Desk {
    fn run(mut self) {
        loop {
            let fresh = match self.take_requests() {
                Some(fresh) => fresh,
                None => return,
            };
            let worked = match self.work(fresh) {
                Ok(worked) => worked,
                Err(halt) => {
                    self.halt(halt);
                    false
                }
            };
            let wait = if worked {
                self.poll = POLL_MIN;
                Duration::ZERO
            } else if self.open.is_none() && self.halted.is_none() {
                APPEAR_POLL
            } else {
                let wait = self.poll;
                self.poll = (self.poll * 2).min(POLL_MAX);
                wait
            };
            if !wait.is_zero() && self.wake.wait(wait) {
                self.poll = POLL_HINTED;
            }
        }
    }

    /// Moves what was asked for to the parked; `None` when nobody can ask any more. Says whether there was anything.
    fn take_requests(&mut self) -> Option<bool> {
        let mut fresh = false;
        loop {
            match self.queue.try_recv() {
                Ok(request) => {
                    fresh = true;
                    self.admit(request);
                }
                Err(TryRecvError::Empty) => return Some(fresh),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }

    fn admit(&mut self, mut request: Request) {
        match (&self.halted, &request) {
            (Some(halt), Request::Look(_)) if !halt.is_final => {
                // A person said "resume": look at the file as if for the first time.
                self.halted = None;
                self.open = None;
                self.seen = false;
                self.parked.push_back(request);
            }
            (Some(halt), _) => {
                let halt = halt.clone();
                request.refuse(&halt);
            }
            (None, _) => {
                if let Request::Read(read) = &mut request {
                    self.supersede(read);
                }
                self.parked.push_back(request);
            }
        }
    }

    /// A consumer has one request at a time; a later one takes the place of the one that waits, with what that one had to say.
    fn supersede(&mut self, read: &mut ReadRequest) {
        self.parked.retain_mut(|parked| match parked {
            Request::Read(old) if old.reply.same_channel(&read.reply) => {
                let mut update = std::mem::take(&mut old.update);
                update.append(std::mem::take(&mut read.update));
                read.update = update;
                false
            }
            _ => true,
        });
    }

    fn halt(&mut self, halt: Halt) {
        metric::source_ready(&self.settings.name, false);
        for request in self.parked.drain(..) {
            request.refuse(&halt);
        }
        self.state.send_replace(SourceState::Halted(halt.clone()));
        self.halted = Some(halt);
    }

    fn wait_for(&mut self, what: String) {
        metric::source_ready(&self.settings.name, false);
        self.state.send_if_modified(|state| {
            let waiting = SourceState::Waiting(what);
            let changed = *state != waiting;
            *state = waiting;
            changed
        });
    }

    /// One round: opens where needed, then answers what can be answered. Says whether anything was handed out.
    fn work(&mut self, fresh: bool) -> Result<bool, Halt> {
        if self.halted.is_some() {
            return Ok(false);
        }
        if self.open.is_none() && !self.try_open()? {
            return Ok(false);
        }
        self.check_inode()?;
        match self.serve(fresh) {
            Ok(worked) => Ok(worked),
            Err(ReadFault::Halt(halt)) => Err(halt),
            Err(ReadFault::Sqlite(error)) => {
                let (kind, code) = fault::classify(&error);
                match kind {
                    fault::Kind::Busy | fault::Kind::Storage | fault::Kind::CannotOpen => {
                        metric::busy(&self.file_name(), code);
                        self.wait_for(format!("{}: {error} (SQLite code {code})", self.settings.path.display()));
                        // The connection stays: what a table read by row leaves out is known to it alone.
                        if let Some(open) = &mut self.open {
                            open.served_version = None;
                        }
                        Ok(false)
                    }
                    _ => Err(Halt::new(format!(
                        "reading {} failed: {error} (SQLite code {code}). Remedy: see whether the table was changed or dropped, or the \
                         file is damaged (PRAGMA integrity_check); then `outboxd resume`",
                        self.settings.path.display()
                    ))),
                }
            }
        }
    }

    fn file_name(&self) -> String {
        self.settings.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn check_inode(&self) -> Result<(), Halt> {
        let Some(open) = &self.open else { return Ok(()) };
        if controls::is_off(Protection::Inode) {
            return Ok(());
        }
        let path = self.settings.path.display();
        match fs::metadata(&self.settings.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == open.inode => Ok(()),
            Ok(_) => Err(Halt::new(format!(
                "{path} was replaced by another file while it was read. Nothing was sent from the new one. Remedy: make sure that the \
                 application uses the new file, and that no -wal of the old one lies beside it; then `outboxd resume`"
            ))),
            Err(error) => Err(Halt::new(format!(
                "{path} is gone while it was read ({error}). Remedy: bring the file back, then `outboxd resume`"
            ))),
        }
    }

    /// Opens the file when it and the table are there.
    fn try_open(&mut self) -> Result<bool, Halt> {
        let path = self.settings.path.clone();
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if self.seen => {
                return Err(Halt::new(format!("{} is gone: {error}. Remedy: bring the file back, then `outboxd resume`", path.display())));
            }
            Err(error) => {
                self.wait_for(format!("{} is not there yet ({error})", path.display()));
                return Ok(false);
            }
        };
        match self.open_file(&path, (meta.dev(), meta.ino())) {
            Ok(Ok(open)) => {
                // SQLite follows a symbolic link, and the `-wal` lies beside what it leads to.
                let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                self.wake.watch(&real);
                self.barrier.follow(&real);
                self.seen = true;
                self.open = Some(open);
                metric::source_ready(&self.settings.name, true);
                Ok(true)
            }
            Ok(Err(Misfit::NoTable(what))) if !self.seen => {
                self.wait_for(format!("{}: {what}", path.display()));
                Ok(false)
            }
            Ok(Err(Misfit::NoTable(what) | Misfit::Unusable(what))) => Err(Halt::new(format!("{}: {what}", path.display()))),
            Err(ReadFault::Halt(halt)) => Err(halt),
            Err(ReadFault::Sqlite(error)) => {
                let (kind, code) = fault::classify(&error);
                let what = format!("{}: {error} (SQLite code {code})", path.display());
                match kind {
                    fault::Kind::Busy | fault::Kind::Storage | fault::Kind::CannotOpen => {
                        self.wait_for(what);
                        Ok(false)
                    }
                    fault::Kind::Permission => Err(Halt::new(format!(
                        "{what}. Remedy: run outboxd as the application's user, or make the folder setgid (2770) with a shared group"
                    ))),
                    fault::Kind::Corrupt => Err(Halt::new(format!(
                        "{what}: not a database, or damaged. Nothing was written to it. Remedy: restore it from a backup"
                    ))),
                    fault::Kind::Sql => Err(Halt::new(format!("{what}. Remedy: compare the table with what the preset expects"))),
                }
            }
        }
    }

    fn open_file(&self, path: &Path, inode: (u64, u64)) -> Result<Result<Open, Misfit>, ReadFault> {
        let connection = open::reader(path)?;
        let mapping = match preset::mapping(&connection, self.settings.preset, self.settings.read)? {
            Ok(mapping) => mapping,
            Err(misfit) => return Ok(Err(misfit)),
        };
        check_journal(&connection, path)?;
        let table = match mapping.rows {
            None => Table::Checkpointed(Checkpointed::new(&connection, mapping)?),
            Some(_) => Table::Rows(Rows::new(&connection, mapping, self.excluded.clone())?),
        };
        Ok(Ok(Open { connection, table, inode, durable_version: None, served_version: None, headed_version: None }))
    }

    fn serve(&mut self, fresh: bool) -> Result<bool, ReadFault> {
        let open = self.open.as_mut().expect("serve is called with an open file");
        let version = open::data_version(&open.connection)?;
        let due = matches!(&open.table, Table::Rows(rows) if rows.is_full_pass_due(version));
        let changed = open.served_version != Some(version);
        if changed {
            check_journal(&open.connection, &self.settings.path)?;
        }
        if open.headed_version != Some(version) {
            self.note_head(version)?;
        }
        if !changed && !fresh && !due {
            return Ok(false);
        }
        let mut worked = false;
        for _ in 0..self.parked.len() {
            let request = self.parked.pop_front().expect("counted above");
            match self.answer(request) {
                Ok(None) => worked = true,
                Ok(Some(request)) => self.parked.push_back(request),
                Err((request, fault)) => {
                    self.parked.push_front(request);
                    return Err(fault);
                }
            }
        }
        if !worked && let Some(open) = &mut self.open {
            open.served_version = Some(version);
        }
        Ok(worked)
    }

    /// Publishes where the source ends; counting pending rows is put off where it would cost too much.
    fn note_head(&mut self, version: i64) -> Result<(), ReadFault> {
        let open = self.open.as_mut().expect("called with an open file");
        let head = match &mut open.table {
            Table::Checkpointed(table) => Head::Position(table.head(&open.connection)?),
            Table::Rows(table) => {
                if self.counted.is_some_and(|(ended, took)| ended.elapsed() < took * COUNT_FACTOR) {
                    return Ok(());
                }
                let began = Instant::now();
                let pending = table.pending(&open.connection)?;
                self.counted = Some((Instant::now(), began.elapsed()));
                Head::Pending(pending)
            }
        };
        open.headed_version = Some(version);
        self.state.send_if_modified(|state| {
            let ready = SourceState::Ready(head);
            let changed = *state != ready;
            *state = ready;
            changed
        });
        self.note_sizes();
        Ok(())
    }

    fn note_sizes(&mut self) {
        if self.looked_at_sizes.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.looked_at_sizes = Some(Instant::now());
        let name = self.file_name();
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        metric::file_bytes(&name, "main", size(&self.settings.path));
        let mut wal = self.settings.path.clone().into_os_string();
        wal.push("-wal");
        metric::file_bytes(&name, "wal", size(Path::new(&wal)));
    }

    /// `Ok(None)`: answered; `Ok(Some)`: has to wait for the next commit.
    #[expect(clippy::result_large_err, reason = "the request goes back to the queue")]
    fn answer(&mut self, request: Request) -> Result<Option<Request>, (Request, ReadFault)> {
        let open = self.open.as_mut().expect("answer is called with an open file");
        match request {
            Request::Look(reply) => {
                let look = match &mut open.table {
                    Table::Checkpointed(table) => table.look(&open.connection),
                    Table::Rows(table) => table.look(&open.connection),
                };
                match look {
                    Ok(look) => drop(reply.send(Ok(look))),
                    Err(fault) => return Err((Request::Look(reply), fault)),
                }
                Ok(None)
            }
            Request::Verify(marks, reply) => {
                let verified = match &open.table {
                    Table::Checkpointed(table) => table.verify(&open.connection, &marks),
                    Table::Rows(_) => Ok(()),
                };
                match verified {
                    Ok(()) => drop(reply.send(Ok(()))),
                    // The consumer's checkpoint does not fit; other consumers' may.
                    Err(ReadFault::Halt(halt)) => drop(reply.send(Err(halt))),
                    Err(fault) => return Err((Request::Verify(marks, reply), fault)),
                }
                Ok(None)
            }
            Request::Fetch(names, event_bytes_max, reply) => {
                let fetched = match (&open.table, &names) {
                    (Table::Checkpointed(table), Names::Positions(positions)) => {
                        table.fetch(&open.connection, positions, event_bytes_max)
                    }
                    (Table::Rows(table), Names::Rows(rows)) => table.fetch(&open.connection, rows, event_bytes_max),
                    _ => Ok(Batch::default()),
                };
                match fetched {
                    Ok(batch) => drop(reply.send(Ok(batch))),
                    Err(fault) => return Err((Request::Fetch(names, event_bytes_max, reply), fault)),
                }
                Ok(None)
            }
            Request::Read(request) => self.answer_read(request),
        }
    }

    #[expect(clippy::result_large_err, reason = "the request goes back to the queue")]
    fn answer_read(&mut self, mut request: ReadRequest) -> Result<Option<Request>, (Request, ReadFault)> {
        if request.reply.is_closed() {
            return Ok(None);
        }
        let open = self.open.as_mut().expect("answer is called with an open file");
        if let Table::Rows(table) = &mut open.table {
            table.update(std::mem::take(&mut request.update));
        }
        let (batch, version) = match snapshot_read(open, &request) {
            Ok(read) => read,
            // This consumer's checkpoint does not fit the table; other consumers' may.
            Err(ReadFault::Halt(halt)) => {
                let _ = request.reply.send(ReadNews::Halted(halt));
                return Ok(None);
            }
            Err(fault) => return Err((Request::Read(request), fault)),
        };
        let Some(batch) = batch else {
            let _ = request.reply.send(ReadNews::AtHead);
            return Ok(Some(Request::Read(request)));
        };
        controls::reach(Seam::Read);
        let strict = self.settings.durability == Durability::Strict && !controls::is_off(Protection::Barrier);
        if strict && open.durable_version != Some(version) {
            let began = Instant::now();
            if let Err(detail) = self.barrier.raise() {
                let halt = Halt {
                    detail: format!(
                        "what was read cannot be made durable: {detail}. Nothing of it was sent; a later success would prove nothing. \
                         Remedy: mend the disk, see that the application's data is whole, restart outboxd"
                    ),
                    is_final: true,
                };
                return Err((Request::Read(request), ReadFault::Halt(halt)));
            }
            metric::barrier(&self.settings.name, began.elapsed());
            controls::reach(Seam::Barrier);
            open.durable_version = Some(version);
        }
        if let Table::Rows(table) = &mut open.table {
            table.handed_out(&batch);
        }
        let _ = request.reply.send(ReadNews::Batch(batch));
        Ok(None)
    }
}

/// Reads in one snapshot; says which one it was.
fn snapshot_read(open: &mut Open, request: &ReadRequest) -> Result<(Option<Batch>, i64), ReadFault> {
    let connection = &open.connection;
    connection.prepare_cached("BEGIN")?.execute([])?;
    let read = (|| -> Result<(Option<Batch>, i64), ReadFault> {
        let version = open::data_version(connection)?;
        let batch = match &mut open.table {
            Table::Checkpointed(table) => table.read(connection, request)?,
            Table::Rows(table) => {
                let (batch, revived) = table.read(connection, request)?;
                if !revived.is_empty() {
                    let _ = request.reply.send(ReadNews::Revived(revived));
                }
                batch
            }
        };
        Ok((batch, version))
    })();
    let ended = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    let read = read?;
    ended?;
    Ok(read)
}

fn check_journal(connection: &Connection, path: &Path) -> Result<(), ReadFault> {
    let mode = open::journal_mode(connection)?;
    if mode == "wal" {
        return Ok(());
    }
    Err(ReadFault::Halt(Halt::new(format!(
        "{} is in journal mode {mode}; outboxd reads files in WAL mode only (otherwise every read would lock the application out). \
         Remedy: in the application, PRAGMA journal_mode = WAL; then `outboxd resume`",
        path.display()
    ))))
}
