//! The reader's thread: its file, its parked requests, and the loop that answers them.

mod opening;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use self::opening::check_schema;
use super::{Halt, Head, Names, ReadFault, ReadNews, ReadRequest, Request, SourceState};
use crate::controls::{self, Protection, Seam};
use crate::event::Batch;
use crate::source::archive_file;
use crate::source::checkpointed::Checkpointed;
use crate::source::feed::Care;
use crate::source::inspection;
use crate::source::mapping::Mapping;
use crate::source::rows::{self, Rows, RowsUpdate};
use crate::source::wake::Wake;
use crate::source::{Durability, Settings};
use crate::sqlite::barrier::Barrier;
use crate::sqlite::fault;
use crate::sqlite::log::GiveWay;
use crate::sqlite::open::{self, TimeLimit};
use crate::sqlite::sizes::Sizes;
use crate::telemetry::metric;

/// The poll after activity, doubling to the longest.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(250);
/// How often a file or table that is not there is looked for.
const APPEAR_POLL: Duration = Duration::from_millis(500);
/// The poll after a change notice that came before the commit could be seen: the file is written first, and perhaps synced, and only
/// then is the commit there.
const POLL_HINTED: Duration = Duration::from_micros(500);
/// How much of SQL is shown where it was stopped.
const SHOWN_CHARS_MAX: usize = 200;
/// Pending rows are counted again only after so many times what the last count took.
const COUNT_FACTOR: u32 = 50;

#[derive(Debug)]
enum Table {
    Checkpointed(Checkpointed),
    Rows(Rows),
}

impl Table {
    fn mapping(&self) -> &Mapping {
        match self {
            Table::Checkpointed(table) => table.mapping(),
            Table::Rows(table) => table.mapping(),
        }
    }
}

struct Open {
    connection: Connection,
    limit: TimeLimit,
    table: Table,
    inode: (u64, u64),
    schema_version: i64,
    /// What was found when it was opened and did not keep it from being read.
    warnings: Vec<String>,
    /// The `data_version` of the newest snapshot that the barrier has made durable.
    durable_version: Option<i64>,
    /// The `data_version` at which the parked requests were last answered.
    served_version: Option<i64>,
    /// The `data_version` whose head is published.
    headed_version: Option<i64>,
}

pub(super) struct Desk {
    settings: Settings,
    care: Care,
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
    sizes: Sizes,
    give_way: GiveWay,
}

impl Desk {
    pub(super) fn new(
        settings: Settings,
        queue: Receiver<Request>,
        wake: Wake,
        state: watch::Sender<SourceState>,
        care: Care,
    ) -> Self {
        Self {
            care,
            barrier: Barrier::new(&settings.path),
            excluded: rows::Shared::default(),
            counted: None,
            settings,
            queue,
            wake,
            state,
            open: None,
            seen: false,
            halted: None,
            parked: VecDeque::new(),
            poll: POLL_MIN,
            sizes: Sizes::default(),
            give_way: GiveWay::default(),
        }
    }

    pub(super) fn run(mut self) {
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
                if let Some(open) = &self.open {
                    self.give_way.wait(&open.connection);
                }
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

    fn admit(&mut self, request: Request) {
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
            (None, _) => match request {
                Request::Tell(update, reply) => self.note(update, &reply),
                request => self.parked.push_back(request),
            },
        }
    }

    /// A consumer has one request at a time. Where that has been answered, what is told now holds for the next.
    fn note(&mut self, update: RowsUpdate, reply: &UnboundedSender<ReadNews>) {
        let waiting = self.parked.iter_mut().find_map(|parked| match parked {
            Request::Read(read) if read.reply.same_channel(reply) => Some(read),
            _ => None,
        });
        match (waiting, &mut self.open) {
            (Some(read), _) => read.update.append(update),
            (None, Some(Open { table: Table::Rows(table), .. })) => table.update(update),
            (None, _) => rows::update(&self.excluded, update),
        }
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
                    fault::Kind::Stopped => Err(self.stopped()),
                    // The archive became another file: what waits is asked of that, too.
                    _ if archive_file::is_stale(&error) => {
                        self.open = None;
                        Ok(true)
                    }
                    _ => {
                        // A table or column that went between two looks is named.
                        if let Some(Err(ReadFault::Halt(halt))) =
                            self.open.as_mut().map(|open| check_schema(open, &self.settings))
                        {
                            return Err(halt);
                        }
                        let told = archive_file::told(&error);
                        Err(Halt::new(format!(
                            "reading {} failed: {told} (SQLite code {code}). Remedy: see whether the table was changed or dropped, or the \
                         file is damaged (PRAGMA integrity_check) or its disk cannot be read; then `outboxd resume`",
                            self.settings.path.display()
                        )))
                    }
                }
            }
        }
    }

    /// SQL of a person's own ran for too long.
    fn stopped(&self) -> Halt {
        let table = &self.settings.tables[0];
        let own_sql: Vec<String> = table
            .own_sql()
            .iter()
            .map(|(key, sql)| format!("{key} = {:?}", sql.chars().take(SHOWN_CHARS_MAX).collect::<String>()))
            .collect();
        Halt::new(format!(
            "{}: one look ran for more than {:?} (sql_time_max) and was stopped: {}. Nothing was passed over. Remedy: make the index that \
             `outboxd check` names, write simpler SQL, or raise sql_time_max; then `outboxd resume`",
            self.settings.path.display(),
            table.sql_time_max,
            own_sql.join(", "),
        ))
    }

    fn file_name(&self) -> String {
        self.settings.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn serve(&mut self, fresh: bool) -> Result<bool, ReadFault> {
        let open = self.open.as_mut().expect("serve is called with an open file");
        let version = open::data_version(&open.connection)?;
        let due = matches!(&open.table, Table::Rows(rows) if rows.is_full_pass_due(version));
        let changed = open.served_version != Some(version);
        if changed {
            let path = &self.settings.path;
            if let Some(refusal) = inspection::journal(&open.connection, path)? {
                return Err(Halt::from(refusal).into());
            }
            check_schema(open, &self.settings)?;
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
        open.limit.begin();
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
        let name = self.file_name();
        let open = self.open.as_ref().expect("it was open a moment ago");
        self.sizes.look(&open.connection, &self.settings.path, &name);
        Ok(())
    }

    /// `Ok(None)`: answered; `Ok(Some)`: has to wait for the next commit.
    #[expect(clippy::result_large_err, reason = "the request goes back to the queue")]
    fn answer(&mut self, request: Request) -> Result<Option<Request>, (Request, ReadFault)> {
        let open = self.open.as_mut().expect("answer is called with an open file");
        open.limit.begin();
        match request {
            Request::Look(reply) => {
                let look = match &mut open.table {
                    Table::Checkpointed(table) => {
                        table.prepare(&open.connection).and_then(|()| table.look(&open.connection))
                    }
                    Table::Rows(table) => table.look(&open.connection),
                };
                match look {
                    Ok(mut look) => {
                        look.warnings.extend_from_slice(&open.warnings);
                        drop(reply.send(Ok(look)));
                    }
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
            Request::Tell(..) => unreachable!("it is never parked"),
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
        let (batch, version) = match snapshot_read(open, &self.settings, &request) {
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
                let halt = Halt::for_good(format!(
                    "what was read cannot be made durable: {detail}. Nothing of it was sent; a later success would prove nothing. \
                     Remedy: mend the disk, see that the application's data is whole, restart outboxd"
                ));
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
fn snapshot_read(
    open: &mut Open,
    settings: &Settings,
    request: &ReadRequest,
) -> Result<(Option<Batch>, i64), ReadFault> {
    match &mut open.table {
        Table::Checkpointed(table) => table.prepare(&open.connection)?,
        Table::Rows(table) => table.prepare(&open.connection, &request.filter)?,
    }
    open.limit.begin();
    open.connection.prepare_cached("BEGIN")?.execute([])?;
    let read = (|| -> Result<(Option<Batch>, i64), ReadFault> {
        // In the same snapshot: what is handed out was read of a table that still is what was said.
        check_schema(open, settings)?;
        let connection = &open.connection;
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
    let ended = open.connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    let read = read?;
    ended?;
    Ok(read)
}
