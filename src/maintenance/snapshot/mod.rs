//! `type = "snapshot"`: the folded state of long streams, so that whoever reads one need not begin at its first event.
//!
//! Invariants, named by tests in `tests/it/snapshots_are_true.rs`:
//! 1. A snapshot holds what all events up to its version come to, each once and in order; a hole, a double, or what cannot be read
//!    leaves its stream alone without one, by name (`what_is_wrong_with_a_stream_is_told_and_the_others_go_on`).
//! 2. An older snapshot never takes the place of a newer one (`a_newer_snapshot_stays`).
//! 3. Nobody guesses how events are folded: a reducer is said for each stream type, or its streams are left alone and named.
//!
//! Reading is done on a connection of its own, in slices that are folded when the read transaction has ended; writing by the file's one writer, whose transactions are short and paced. A run that is
//! ended anywhere leaves the snapshots that were committed, each whole. Where to start reading: [`Snapshot::run`](Job::run), then `fold`.

mod fold;
pub(super) mod keys;
mod look;
mod patch;
mod reducer;
mod slice;
pub(super) mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;

use self::fold::{Folder, Trouble};
pub use self::keys::Snapshot as Keys;
pub use self::look::look_at;
use self::reducer::Reducer;
use self::tables::{After, Fresh, Schema, Stream, Unreadable};
use super::faults::Faults;
use super::{Context, Failure, Job, Look, Report, Stop};
use crate::controls::{self, Seam};
use crate::source::{self, archive_file, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state;
use crate::telemetry::metric;

/// Handed to the writer and not yet written.
const UNDER_WAY_MAX: usize = 64;
/// And so many bytes of states; one alone may have more.
const UNDER_WAY_BYTES_MAX: usize = 8 << 20;
/// The stream type that stands for all others.
const ANY: &str = "*";

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Snapshots {
    name: String,
    source: source::Settings,
    schema: Schema,
    every_events: i64,
    /// By stream type; `None` = its streams are left alone.
    reducers: BTreeMap<String, Option<Reducer>>,
    schema_versions: BTreeMap<String, u64>,
}

/// What a run has done.
#[derive(Debug, Default)]
struct Tally {
    written: u64,
    faults: Faults,
    /// Stream types without a reducer, and how many of their streams are due.
    unreduced: BTreeMap<String, u64>,
    /// Whether the snapshots of a stream type, by its reducer and its number, are not those of another reducer.
    is_same_reducer: BTreeMap<String, bool>,
}

impl Snapshots {
    fn reducer(&self, kind: &str) -> Option<&Option<Reducer>> {
        self.reducers.get(kind).or_else(|| self.reducers.get(ANY))
    }

    fn mark(&self, kind: &str, reducer: &Reducer) -> String {
        let schema_version = self.schema_versions.get(kind).or_else(|| self.schema_versions.get(ANY));
        self.schema.mark(reducer, schema_version.copied().unwrap_or(1))
    }

    fn open(&self) -> Result<Connection, Failure> {
        let path = self.source.path.display();
        let unread = |error: rusqlite::Error| Failure::Unavailable(format!("{path}: {error}"));
        if let Some(refusal) = inspection::refusal(&self.source) {
            return Err(Failure::Data(refusal.to_string()));
        }
        let connection = open::visitor(&self.source.path).map_err(unread)?;
        if let Some(finding) = inspection::journal(&connection, &self.source.path).map_err(unread)? {
            return Err(Failure::Data(finding.to_string()));
        }
        match self.schema.missing(&connection).map_err(unread)? {
            Some(what) => Err(Failure::Data(format!(
                "{path}: {what}. Remedy: let the application make its tables, or name the preset that these are"
            ))),
            None => match archive_file::attach(&connection, &self.source.path) {
                Ok(()) => Ok(connection),
                Err(archive_file::Fault::Sqlite(error)) => Err(unread(error)),
                Err(archive_file::Fault::Unfit(what)) => Err(Failure::Data(what)),
            },
        }
    }

    fn folder<'a>(&self, connection: &'a Connection, stop: &'a Stop) -> Result<Folder<'a>, Failure> {
        let failed = |error| Failure::Unavailable(format!("{}: {error}", self.source.path.display()));
        Folder::new(self.schema, connection, stop).map_err(failed)
    }

    /// Does something for every stream, a page at a time; rows that are none are told.
    fn for_each(
        &self,
        connection: &Connection,
        stop: &Stop,
        tally: &mut Tally,
        mut work: impl FnMut(&Stream, &mut Tally) -> Result<(), Trouble>,
    ) -> Result<(), Failure> {
        let mut after = After::nothing();
        loop {
            let page = self.schema.page(connection, &after);
            let page =
                page.map_err(|error| Failure::Unavailable(format!("{}: {error}", self.source.path.display())))?;
            let Some(last) = page.iter().map(|(place, _)| place).max() else { return Ok(()) };
            after.clone_from(last);
            for (_, stream) in &page {
                if stop.is_asked() {
                    return Err(Failure::Aborted);
                }
                let done = match stream {
                    Ok(stream) => work(stream, tally).map_err(|trouble| (stream, trouble)),
                    Err(Unreadable { id, what }) => {
                        tally.faults.add(format!("stream {id}: {what}"));
                        Ok(())
                    }
                };
                match done {
                    Ok(()) | Err((_, Trouble::Gone)) => {}
                    Err((stream, Trouble::Stream(what))) => tally.faults.stream(stream, &what),
                    Err((_, Trouble::All(failure))) => return Err(failure),
                }
            }
        }
    }

    /// A schema that has no place for the reducer's hash: a changed reducer under the same number would mix two kinds of states. Which one it is
    /// for a stream type is remembered, wherever in the configuration it stands.
    fn is_same_reducer(
        &self,
        context: &Context,
        kind: &str,
        reducer: &Reducer,
        tally: &mut Tally,
    ) -> Result<bool, Failure> {
        if self.schema != Schema::EventsourcePy {
            return Ok(true);
        }
        if let Some(known) = tally.is_same_reducer.get(kind) {
            return Ok(*known);
        }
        let number = self.mark(kind, reducer);
        let hash = reducer.hash();
        let (place, now) = (format!("reducer of {kind} {number}"), hash.clone());
        let is_same = context.state(move |connection| state::remembered(connection, &place, &now))? == hash;
        if !is_same {
            tally.faults.add(format!(
                "the reducer for {kind:?} is another than that of the snapshots that stand there, and its schema_version is still {number}: its streams \
                 are left as they are. Remedy: raise the number, in the application's class and in [jobs.{}.schema_versions]; its snapshots are then \
                 made anew",
                self.name
            ));
        }
        tally.is_same_reducer.insert(kind.to_owned(), is_same);
        Ok(is_same)
    }
}

impl Job for Snapshots {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let connection = self.open()?;
        let writer = context.application(&self.source)?;
        metric::snapshots_written(&self.name, 0);
        let mut folder = self.folder(&connection, context.stop())?;
        let mut tally = Tally::default();
        let mut writing = Writing::new(self, &writer);
        self.for_each(&connection, context.stop(), &mut tally, |stream, tally| {
            let reducer = self.reducer(&stream.kind);
            if let Some(Some(reducer)) = reducer
                && !self.is_same_reducer(context, &stream.kind, reducer, tally).map_err(Trouble::All)?
            {
                return Ok(());
            }
            if stream.snapshot <= stream.version && stream.version.saturating_sub(stream.snapshot) < self.every_events {
                return Ok(());
            }
            match reducer {
                Some(Some(reducer)) => {
                    let mark = self.mark(&stream.kind, reducer);
                    if let Some(fresh) = folder.newest(stream, self.every_events, reducer, &mark)? {
                        writing.write(fresh, tally).map_err(Trouble::All)?;
                    }
                }
                Some(None) => {}
                None => *tally.unreduced.entry(stream.kind.clone()).or_default() += 1,
            }
            Ok(())
        })?;
        writing.finish(&mut tally)?;
        tally.told(&self.name, folder.count)
    }

    fn verify(&self, stop: &Stop) -> Result<Report, Failure> {
        let connection = self.open()?;
        let mut folder = self.folder(&connection, stop)?;
        let (mut right, mut stale, mut tally) = (0, 0, Tally::default());
        self.for_each(&connection, stop, &mut tally, |stream, _| {
            let Some(Some(reducer)) = self.reducer(&stream.kind) else { return Ok(()) };
            let Some(stored) = folder.look(stream)?.1 else { return Ok(()) };
            if stored.made_by != self.mark(&stream.kind, reducer) {
                stale += 1;
                return Ok(());
            }
            let state = stored.state.map_err(|error| fold::unreadable(stored.version, &error))?;
            if !is_same(&folder.anew(stream, reducer, stored.version)?.state, &state) {
                return Err(Trouble::Stream(format!(
                    "its snapshot of version {} is not what its events come to. Remedy: delete it, and it is made anew",
                    stored.version
                )));
            }
            right += 1;
            Ok(())
        })?;
        let stale = if stale == 0 { String::new() } else { format!("; {stale} of another reducer were not looked at") };
        let told = format!("{right} snapshots are what {} events come to{stale}", folder.count);
        tally.faults.told(told)
    }

    fn look(&self, stream: &str) -> Option<Result<Vec<Look>, Failure>> {
        Some(self.look_at(stream))
    }
}

/// The same text, or the same value.
fn is_same(one: &str, other: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

impl Tally {
    fn told(mut self, job: &str, events: u64) -> Result<Report, Failure> {
        let done = format!("{} snapshots of {events} events", self.written);
        for (kind, count) in std::mem::take(&mut self.unreduced) {
            self.faults.add_surely(format!(
                "{count} streams of type {kind} are due, and nothing says how their events are folded. Remedy: in [jobs.{job}.reducers], {kind} = \
                 \"merge-patch\" (each event's data is a patch: right where events carry state; lists are replaced, counters come out wrong), or an \
                 expression for each event type, or \"none\""
            ));
        }
        self.faults.told(done)
    }
}

/// Snapshots on their way to the file.
struct Writing<'a> {
    job: &'a Snapshots,
    writer: &'a Writer,
    done: (SyncSender<Written>, Receiver<Written>),
    under_way: usize,
    /// Of the states under way.
    bytes: usize,
}

/// What became of a snapshot under way.
struct Written {
    stream: Stream,
    bytes: usize,
    /// The stream has gone, or a newer one stands there.
    is_late: bool,
    result: Result<(), JobError>,
}

impl<'a> Writing<'a> {
    fn new(job: &'a Snapshots, writer: &'a Writer) -> Self {
        Self { job, writer, done: sync_channel(UNDER_WAY_MAX), under_way: 0, bytes: 0 }
    }

    fn write(&mut self, fresh: Fresh, tally: &mut Tally) -> Result<(), Failure> {
        let bytes = fresh.state.len();
        while self.under_way == UNDER_WAY_MAX || (self.under_way > 0 && self.bytes + bytes > UNDER_WAY_BYTES_MAX) {
            self.take(tally)?;
        }
        let (schema, stream, done) = (self.job.schema, fresh.stream.clone(), self.done.0.clone());
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        self.under_way += 1;
        self.bytes += bytes;
        self.writer.submit(
            move |connection| {
                late.store(!schema.write(connection, &fresh)?, Ordering::Relaxed);
                controls::reach(Seam::Snapshot);
                Ok(())
            },
            move |result| {
                let written = Written { stream, bytes, is_late: is_late.load(Ordering::Relaxed), result };
                // There is room for all that are under way.
                drop(done.try_send(written));
            },
        );
        Ok(())
    }

    fn finish(mut self, tally: &mut Tally) -> Result<(), Failure> {
        while self.under_way > 0 {
            self.take(tally)?;
        }
        Ok(())
    }

    fn take(&mut self, tally: &mut Tally) -> Result<(), Failure> {
        let written = self.done.1.recv().expect("the sender is kept here, too");
        self.under_way -= 1;
        self.bytes -= written.bytes;
        match written.result {
            Ok(()) if written.is_late => {}
            Ok(()) => {
                tally.written += 1;
                metric::snapshots_written(&self.job.name, 1);
            }
            Err(JobError::Ended) => return Err(Failure::Unavailable(JobError::Ended.to_string())),
            Err(error) => tally.faults.stream(&written.stream, &format!("its snapshot cannot be written: {error}")),
        }
        Ok(())
    }
}
