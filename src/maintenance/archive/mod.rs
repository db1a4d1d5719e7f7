//! `type = "archive"`: events that a snapshot holds, and that nobody has to read any more, are moved out of the way, within the same file or to a file
//! of their own.
//!
//! Invariants, named by tests in `tests/it/archives_pass_nobody`:
//! 1. An event stands in the log or in the archive, in one of them, as it was, wherever a run ends (`a_crash_anywhere_moves_events_whole_or_not`).
//! 2. Nothing moves that somebody still has to read ([`super::readers`]), that an outbox row refers to which is not published, that no snapshot holds, or
//!    that is its stream's newest: asked in the transaction that moves it (`each_limit_holds_back_and_is_told`).
//! 3. What is archived of a stream is its beginning, without a hole; a stream with a fault is left alone, by name
//!    (`what_is_wrong_is_told_and_the_others_go_on`).
//!
//! Streams are found, and their snapshots read, on a connection of its own; the file's one writer moves events, for about a millisecond at a time. In
//! another file they are made durable before ([`vault`]). Where to start reading: [`Archive::run`](Job::run), then [`mover`].

mod keys;
mod mover;
mod tables;
mod vault;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;

pub use self::keys::Archive as Keys;
pub(super) use self::keys::readers;
use self::mover::{Due, End, Moved, Mover};
pub(super) use self::tables::{ARCHIVE, Tables};
use self::vault::Vault;
use super::faults::Faults;
use super::readers::{Limit, Look, Readers, Why};
use super::snapshot::tables::{After, Schema, Stream, Unreadable};
use super::{Context, Failure, Job, Report};
use crate::clock;
use crate::controls::{self, Seam};
use crate::source::archive_file::{self, Fault, Witness};
use crate::source::{self, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::telemetry::metric;

/// How far everybody has come is looked at anew after this; downwards, it is at each slice.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Archive {
    name: String,
    source: source::Settings,
    schema: Schema,
    older_than: Option<Duration>,
    /// Where the archive is a file of its own.
    archive: Option<PathBuf>,
    /// For eventsource-py: what a snapshot has to bear, by type.
    schema_versions: BTreeMap<String, u64>,
    readers: Readers,
}

/// What a run has done.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    streams: HashSet<Stream>,
    /// Events that would have been moved, by what holds them back.
    held_back: BTreeMap<(Why, String), u64>,
    /// Streams of several events.
    without_snapshot: u64,
    of_other_number: u64,
    /// Streams whose snapshot was written anew while it was looked at.
    changed: u64,
    faults: Faults,
}

impl Archive {
    fn unread(&self, error: &rusqlite::Error) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.source.path.display()))
    }

    fn open(&self) -> Result<(Connection, Tables), Failure> {
        let connection = open::reader(&self.source.path).map_err(|error| self.unread(&error))?;
        let finding = inspection::journal(&connection, &self.source.path).map_err(|error| self.unread(&error))?;
        if let Some(finding) = finding {
            return Err(Failure::Data(finding.to_string()));
        }
        let tables = Tables::of(self.schema, &connection).map_err(|error| self.unread(&error))?;
        let tables = tables.map_err(|what| Failure::Data(format!("{}: {what}", self.source.path.display())))?;
        Ok((connection, tables))
    }

    /// The archive in a file of its own, where there is to be one; `connection` reads that, too, from then on.
    fn vault(&self, connection: &Connection, writer: &Writer) -> Result<Option<Vault>, Failure> {
        let live = &self.source.path;
        let vault = match &self.archive {
            Some(path) => Some(Vault::open(connection, live, path, |sql, values| {
                perform(writer, live, move |app| {
                    app.execute(sql, rusqlite::params_from_iter(&values))?;
                    Ok(())
                })
            })?),
            None => {
                let is_known = archive_file::is_known(connection).map_err(|error| self.unread(&error))?;
                let witness =
                    is_known.then(|| Witness::of(connection)).transpose().map_err(|error| self.unread(&error))?;
                if let Some(witness) = witness.flatten() {
                    return Err(Failure::Data(format!(
                        "{}: events of this file are archived in {}, and the job knows of no such file. Remedy: say archive_path",
                        live.display(),
                        witness.place(live).display()
                    )));
                }
                None
            }
        };
        match archive_file::attach(connection, live) {
            Ok(()) => Ok(vault),
            Err(Fault::Sqlite(error)) => Err(self.unread(&error)),
            Err(Fault::Unfit(what)) => Err(Failure::Data(what)),
        }
    }

    /// What of a stream may be moved as far as its snapshot is concerned; `None` = nothing.
    fn due(&self, run: &Run<'_>, stream: Stream, tally: &mut Tally) -> rusqlite::Result<Option<Due>> {
        if stream.version <= 1 {
            return Ok(None);
        }
        if stream.snapshot == 0 {
            tally.without_snapshot += 1;
            return Ok(None);
        }
        if stream.snapshot > stream.version {
            let what = format!(
                "its snapshot is of version {}, and its newest event of version {}: the events were cut off, or the snapshot is another's. \
                 Remedy: restore the file, or delete the snapshot",
                stream.snapshot, stream.version
            );
            tally.faults.stream(&stream, &what);
            return Ok(None);
        }
        let Some(first) = run.tables.first(run.connection, &stream)? else { return Ok(None) };
        if first > stream.snapshot.min(stream.version - 1) {
            return Ok(None);
        }
        let seen = run.tables.snapshot(run.connection, &stream)?;
        let (Some((snapshot, size)), Some(stored)) = (seen, self.schema.stored(run.connection, &stream)?) else {
            return Ok(None);
        };
        if run.tables.snapshot(run.connection, &stream)? != seen {
            tally.changed += 1;
            return Ok(None);
        }
        if self.schema == Schema::EventsourcePy {
            let number = self.schema_versions.get(&stream.kind).or_else(|| self.schema_versions.get("*"));
            if stored.made_by != number.copied().unwrap_or(1).to_string() {
                tally.of_other_number += 1;
                return Ok(None);
            }
        }
        if let Err(what) = tables::readable(self.schema, &stored) {
            let remedy = "Remedy: delete it, and have it made anew";
            tally
                .faults
                .stream(&stream, &format!("its snapshot of version {snapshot} cannot be read: {what}. {remedy}"));
            return Ok(None);
        }
        if let Some(archived) = run.tables.newest_archived(run.connection, &stream)?
            && archived + 1 != first
        {
            tally.faults.stream(&stream, &mover::hole(archived, first));
            return Ok(None);
        }
        Ok(Some(Due { stream, snapshot, size, first }))
    }
}

/// What a run works with.
struct Run<'a> {
    job: &'a Archive,
    context: &'a Context,
    connection: &'a Connection,
    tables: Arc<Tables>,
    writer: &'a Writer,
    /// Events above it are referred to by outbox rows that are not published.
    unpublished: Limit,
    /// What is younger stays.
    oldest: Option<i64>,
}

impl Run<'_> {
    fn look(&self) -> Result<Look, Failure> {
        let mut look = self.job.readers.look(self.connection, |app| self.tables.foreign_limit(app))?;
        look.limit = look.limit.or(self.unpublished.clone());
        Ok(look)
    }

    /// Moves what may be moved of these streams, a slice at a time.
    fn move_all(&self, queue: Vec<Due>, vault: &mut Option<Vault>, tally: &mut Tally) -> Result<(), Failure> {
        let mover = Mover {
            tables: self.tables.clone(),
            readers: self.job.readers.clone(),
            look: self.look()?,
            oldest: self.oldest,
            queue,
            at: 0,
            // The first one is not copied, either.
            moved: Moved { is_uncopied: true, ..Moved::default() },
            vault: vault.take(),
        };
        let mut looked = Instant::now();
        // The writer's thread works with it while this one waits, and the other way round: nobody ever waits for the lock.
        let mover = Arc::new(Mutex::new(mover));
        loop {
            {
                let mut mover = lock(&mover);
                if mover.at == mover.queue.len() {
                    *vault = mover.vault.take();
                    return Ok(());
                }
                if looked.elapsed() >= LOOK_AGAIN_AFTER {
                    (mover.look, looked) = (self.look()?, Instant::now());
                }
                if mover.moved.is_uncopied {
                    mover.copy(self.connection)?;
                }
            }
            self.context.go_on()?;
            self.slice(&mover)?;
            let mut mover = lock(&mover);
            let moved = mover.moved.clone();
            tally.events += moved.events;
            metric::events_archived(&self.job.name, moved.events);
            tally.streams.extend(moved.left.into_iter().map(|(at, _)| mover.queue[at].stream.clone()));
            for (at, end) in moved.ended {
                tally.end(&mover.queue[at].stream, end);
            }
            mover.at = moved.next;
            if let Some(first) = moved.first {
                let at = mover.at;
                mover.queue[at].first = first;
            }
        }
    }

    /// Waits until it is committed.
    fn slice(&self, mover: &Arc<Mutex<Mover>>) -> Result<(), Failure> {
        let work = mover.clone();
        perform(self.writer, &self.job.source.path, move |connection| {
            let mut mover = lock(&work);
            mover.moved = mover.slice(connection)?;
            Ok(())
        })?;
        let mover = lock(mover);
        let Some(vault) = &mover.vault else { return Ok(()) };
        controls::reach(Seam::ArchiveFile);
        vault.sealed_late()
    }
}

/// Has the file's one writer do it, and waits until it is committed.
fn perform(
    writer: &Writer,
    path: &Path,
    work: impl FnMut(&Connection) -> Result<(), JobError> + Send + 'static,
) -> Result<(), Failure> {
    writer.work(work).map_err(|error| match error {
        JobError::Ended => Failure::Unavailable(error.to_string()),
        error => Failure::Data(format!("{}: {error}", path.display())),
    })
}

fn lock(mover: &Mutex<Mover>) -> std::sync::MutexGuard<'_, Mover> {
    mover.lock().expect("a panic under this lock ends the writer, and is told")
}

impl Job for Archive {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn makes(&self) -> Vec<PathBuf> {
        self.archive.iter().cloned().collect()
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let (connection, tables) = self.open()?;
        let writer = context.application(&self.source)?;
        metric::events_archived(&self.name, 0);
        let mut vault = self.vault(&connection, &writer)?;
        let tables = Arc::new(tables);
        let look = self.readers.look(&connection, |app| tables.foreign_limit(app))?;
        let unpublished = tables.unpublished(&connection, look.outbox).map_err(|error| self.unread(&error))?;
        let age =
            |age: Duration| clock::now_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        let oldest = self.older_than.map(age);
        let run = Run { job: self, context, connection: &connection, tables, writer: &writer, unpublished, oldest };
        let (mut after, mut tally) = (After::nothing(), Tally::default());
        loop {
            let page = self.schema.page(&connection, &after).map_err(|error| self.unread(&error))?;
            let Some(last) = page.iter().map(|(place, _)| place.clone()).max() else { break };
            after = last;
            let mut queue = Vec::new();
            for (_, stream) in page {
                context.go_on()?;
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(Unreadable { id, what }) => {
                        tally.faults.add(format!("stream {id}: {what}"));
                        continue;
                    }
                };
                queue.extend(self.due(&run, stream, &mut tally).map_err(|error| self.unread(&error))?);
            }
            run.move_all(queue, &mut vault, &mut tally)?;
        }
        tally.told(&self.name, self.archive.as_deref())
    }
}

impl Tally {
    fn end(&mut self, stream: &Stream, end: End) {
        match end {
            End::Done => {}
            End::Changed => self.changed += 1,
            End::HeldBack(from, to, why, by) => {
                *self.held_back.entry((why, by)).or_default() += (to - from + 1).unsigned_abs();
            }
            End::Fault(what) => self.faults.stream(stream, &what),
        }
    }

    fn told(self, job: &str, archive: Option<&Path>) -> Result<Report, Failure> {
        for why in Why::ALL {
            let count = self.held_back.iter().filter(|((of, _), _)| *of == why).map(|(_, count)| count).sum();
            metric::archive_held_back(job, why.as_str(), count);
        }
        let to = archive.map_or(ARCHIVE.to_owned(), |archive| archive.display().to_string());
        let mut told = format!("{} events of {} streams moved to {to}", self.events, self.streams.len());
        for ((_, by), count) in &self.held_back {
            told.push_str(&format!("; {count} held back by {by}"));
        }
        if self.without_snapshot > 0 {
            told.push_str(&format!("; {} streams have no snapshot", self.without_snapshot));
        }
        if self.changed > 0 {
            told.push_str(&format!("; the snapshots of {} streams were changed meanwhile", self.changed));
        }
        if self.of_other_number > 0 {
            told.push_str(&format!(
                "; the snapshots of {} streams are of another schema_version",
                self.of_other_number
            ));
        }
        self.faults.told(told)
    }
}
