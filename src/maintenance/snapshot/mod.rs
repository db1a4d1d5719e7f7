//! `type = "snapshot"`: the folded state of long streams, so that whoever reads one need not begin at its first event.
//!
//! Invariants, named by tests in `tests/it/snapshots_are_true.rs`:
//! 1. A snapshot holds what all events up to its version come to, each once and in order; a hole, a double, or what cannot be read
//!    leaves its stream alone without one, by name (`what_is_wrong_with_a_stream_is_told_and_the_others_go_on`).
//! 2. An older snapshot never takes the place of a newer one (`a_newer_snapshot_stays`).
//! 3. Nobody guesses how events are folded: a reducer is said for each stream type, or its streams are left alone and named.
//!
//! Reading is done on a connection of its own, in batches; writing by the file's one writer, whose transactions are short and paced. A run that is
//! ended anywhere leaves the snapshots that were committed, each whole. Where to start reading: [`Snapshot::run`](Job::run), then `fold`.

mod fold;
pub(super) mod keys;
mod patch;
mod reducer;
pub(super) mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;

use self::fold::{Folder, Trouble};
pub use self::keys::Snapshot as Keys;
use self::reducer::Reducer;
use self::tables::{Fresh, Schema, Stream};
use super::{Context, Failure, Job, Report, Stop};
use crate::controls::{self, Seam};
use crate::source::{self, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state;
use crate::telemetry::metric;

/// Handed to the writer and not yet written.
const UNDER_WAY_MAX: usize = 64;
/// Of streams with a fault, so many are named.
const NAMED_MAX: usize = 20;
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
    faults: Vec<String>,
    fault_count: u64,
    /// Stream types without a reducer, and how many of their streams are due.
    unreduced: BTreeMap<String, u64>,
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
        let connection = open::reader(&self.source.path).map_err(unread)?;
        if let Some(finding) = inspection::journal(&connection, &self.source.path).map_err(unread)? {
            return Err(Failure::Data(finding.to_string()));
        }
        match self.schema.missing(&connection).map_err(unread)? {
            Some(what) => Err(Failure::Data(format!(
                "{path}: {what}. Remedy: let the application make its tables, or name the preset that these are"
            ))),
            None => Ok(connection),
        }
    }

    /// Does something for every stream, a page at a time.
    fn for_each(
        &self,
        connection: &Connection,
        stop: &Stop,
        mut work: impl FnMut(&Stream) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut after = String::new();
        loop {
            let page = self.schema.page(connection, &after);
            let page =
                page.map_err(|error| Failure::Unavailable(format!("{}: {error}", self.source.path.display())))?;
            let Some(last) = page.iter().map(|stream| &stream.id).max() else { return Ok(()) };
            after.clone_from(last);
            for stream in &page {
                if stop.is_asked() {
                    return Err(Failure::Aborted);
                }
                work(stream)?;
            }
        }
    }

    /// A schema that has no place for the reducer's hash: a changed reducer under the same number would mix two kinds of states.
    fn refuse_changed_reducers(&self, context: &Context) -> Result<(), Failure> {
        if self.schema != Schema::EventsourcePy {
            return Ok(());
        }
        for (kind, reducer) in &self.reducers {
            let Some(reducer) = reducer else { continue };
            let number = self.mark(kind, reducer);
            let hash = reducer.hash();
            let (place, now) = (format!("reducer {} {kind} {number}", self.name), hash.clone());
            let before = context.state(move |connection| state::remembered(connection, &place, &now))?;
            if before != hash {
                return Err(Failure::Data(format!(
                    "the reducer for {kind:?} is another than that of the snapshots that stand there, and its schema_version is still {number}. \
                     Remedy: raise the number, in the application's class and in [jobs.{}.schema_versions]; its snapshots are then made anew",
                    self.name
                )));
            }
        }
        Ok(())
    }
}

impl Job for Snapshots {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let connection = self.open()?;
        self.refuse_changed_reducers(context)?;
        let writer = context.application(&self.source)?;
        metric::snapshots_written(&self.name, 0);
        let mut folder = Folder::new(self.schema, &connection, context.stop())
            .map_err(|error| Failure::Unavailable(format!("{}: {error}", self.source.path.display())))?;
        let mut tally = Tally::default();
        let mut writing = Writing::new(self, &writer);
        self.for_each(&connection, context.stop(), |stream| {
            if stream.snapshot <= stream.version && stream.version - stream.snapshot < self.every_events {
                return Ok(());
            }
            let reducer = match self.reducer(&stream.kind) {
                Some(Some(reducer)) => reducer,
                Some(None) => return Ok(()),
                None => {
                    *tally.unreduced.entry(stream.kind.clone()).or_default() += 1;
                    return Ok(());
                }
            };
            match folder.newest(stream, reducer, &self.mark(&stream.kind, reducer)) {
                Ok(Some(fresh)) => writing.write(fresh, &mut tally),
                Ok(None) => Ok(()),
                Err(Trouble::Stream(what)) => {
                    tally.fault(stream, &what);
                    Ok(())
                }
                Err(Trouble::All(failure)) => Err(failure),
            }
        })?;
        writing.finish(&mut tally)?;
        tally.told(&self.name, folder.count)
    }

    fn verify(&self, stop: &Stop) -> Result<Report, Failure> {
        let connection = self.open()?;
        let mut folder = Folder::new(self.schema, &connection, stop)
            .map_err(|error| Failure::Unavailable(format!("{}: {error}", self.source.path.display())))?;
        let (mut right, mut stale, mut tally) = (0, 0, Tally::default());
        self.for_each(&connection, stop, |stream| {
            let Some(Some(reducer)) = self.reducer(&stream.kind) else { return Ok(()) };
            let unread = |error: rusqlite::Error| Failure::Unavailable(error.to_string());
            let Some(stored) = self.schema.stored(&connection, stream).map_err(unread)? else { return Ok(()) };
            if stored.made_by != self.mark(&stream.kind, reducer) {
                stale += 1;
                return Ok(());
            }
            match folder.anew(stream, reducer, stored.version) {
                Ok(fresh) if is_same(&fresh.state, &stored.state) => right += 1,
                Ok(_) => tally.fault(
                    stream,
                    &format!(
                        "its snapshot of version {} is not what its events come to. Remedy: delete it, and it is made anew",
                        stored.version
                    ),
                ),
                Err(Trouble::Stream(what)) => tally.fault(stream, &what),
                Err(Trouble::All(failure)) => return Err(failure),
            }
            Ok(())
        })?;
        let stale = if stale == 0 { String::new() } else { format!("; {stale} of another reducer were not looked at") };
        let told = format!("{right} snapshots are what {} events come to{stale}", folder.count);
        if tally.fault_count == 0 { Ok(Report(told)) } else { Err(Failure::Data(tally.faults_told(&told))) }
    }
}

/// The same text, or the same value.
fn is_same(one: &str, other: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

impl Tally {
    fn fault(&mut self, stream: &Stream, what: &str) {
        self.fault_count += 1;
        if self.faults.len() < NAMED_MAX {
            self.faults.push(format!("stream {} of type {}: {what}", stream.id, stream.kind));
        }
    }

    fn faults_told(&self, done: &str) -> String {
        let more = self.fault_count - self.faults.len() as u64;
        let more = if more == 0 { String::new() } else { format!("\n... and {more} more") };
        format!("{done}; {} streams are left as they are:\n{}{more}", self.fault_count, self.faults.join("\n"))
    }

    fn told(mut self, job: &str, events: u64) -> Result<Report, Failure> {
        let done = format!("{} snapshots of {events} events", self.written);
        for (kind, count) in std::mem::take(&mut self.unreduced) {
            self.fault_count += 1;
            self.faults.push(format!(
                "{count} streams of type {kind} are due, and nothing says how their events are folded. Remedy: in [jobs.{job}.reducers], {kind} = \
                 \"merge-patch\" (each event's data is a patch: right where events carry state; lists are replaced, counters come out wrong), or an \
                 expression for each event type, or \"none\""
            ));
        }
        if self.fault_count == 0 { Ok(Report(done)) } else { Err(Failure::Data(self.faults_told(&done))) }
    }
}

/// Snapshots on their way to the file.
struct Writing<'a> {
    job: &'a Snapshots,
    writer: &'a Writer,
    done: (SyncSender<Written>, Receiver<Written>),
    under_way: usize,
}

/// The stream, and whether its snapshot was written.
type Written = (Stream, Result<(), JobError>);

impl<'a> Writing<'a> {
    fn new(job: &'a Snapshots, writer: &'a Writer) -> Self {
        Self { job, writer, done: sync_channel(UNDER_WAY_MAX), under_way: 0 }
    }

    fn write(&mut self, fresh: Fresh, tally: &mut Tally) -> Result<(), Failure> {
        if self.under_way == UNDER_WAY_MAX {
            self.take(tally)?;
        }
        let (schema, stream, done) = (self.job.schema, fresh.stream.clone(), self.done.0.clone());
        self.under_way += 1;
        self.writer.submit(
            move |connection| {
                schema.write(connection, &fresh)?;
                controls::reach(Seam::Snapshot);
                Ok(())
            },
            // There is room for all that are under way.
            move |result| drop(done.try_send((stream, result))),
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
        let (stream, result) = self.done.1.recv().expect("the sender is kept here, too");
        self.under_way -= 1;
        match result {
            Ok(()) => {
                tally.written += 1;
                metric::snapshots_written(&self.job.name, 1);
            }
            Err(JobError::Ended) => return Err(Failure::Unavailable(JobError::Ended.to_string())),
            Err(error) => tally.fault(&stream, &format!("its snapshot cannot be written: {error}")),
        }
        Ok(())
    }
}
