//! One stream, folded: from its snapshot on, or from its first event.

use rusqlite::Connection;

use super::reducer::{Calculator, Reducer, State};
use super::slice::Slice;
use super::tables::{Fresh, Schema, Stored, Stream};
use crate::controls::{self, Protection};
use crate::maintenance::{Failure, Stop};
use crate::source::archive_file;
use crate::sqlite::fault::{self, Kind};

/// What folding works with.
#[derive(Debug)]
pub struct Folder<'a> {
    pub schema: Schema,
    pub connection: &'a Connection,
    pub calculator: Calculator,
    /// [`Schema::events_sql`].
    events: String,
    /// Where the archive is looked into only when an event is missing: the same with it.
    with_archive: Option<String>,
    stop: &'a Stop,
    /// Folded so far.
    pub count: u64,
}

/// What keeps a stream from being folded on.
enum Fault {
    Missing(String),
    Other(String),
    Stopped,
}

/// Why a stream has no new snapshot.
#[derive(Debug)]
pub enum Trouble {
    /// It was deleted meanwhile.
    Gone,
    /// With this one; the others go on.
    Stream(String),
    /// With all of them.
    All(Failure),
}

impl<'a> Folder<'a> {
    pub fn new(schema: Schema, connection: &'a Connection, stop: &'a Stop) -> rusqlite::Result<Self> {
        let has_archive = schema.has_archive(connection)?;
        // FlightDeck's has no index that finds a stream: each look walks it.
        let is_walked = schema == Schema::Flightdeck;
        let events = schema.events_sql(has_archive && !is_walked);
        let with_archive = (has_archive && is_walked).then(|| schema.events_sql(true));
        Ok(Self { schema, connection, calculator: Calculator::new()?, events, with_archive, stop, count: 0 })
    }

    /// The version of the stream's newest event and its snapshot, as they stand there together at this moment: what its page told may be old.
    pub fn look(&self, stream: &Stream) -> Result<(i64, Option<Stored>), Trouble> {
        let look = || -> rusqlite::Result<_> {
            let snapshot = self.connection.unchecked_transaction()?;
            let found = (self.schema.version(self.connection, stream)?, self.schema.stored(self.connection, stream)?);
            snapshot.finish()?;
            Ok(found)
        };
        let (version, stored) = look().map_err(|error| Trouble::of_sqlite(stream, error))?;
        let version = version.ok_or(Trouble::Gone)?;
        match &stored {
            Some(stored) if stored.version > version => Err(Trouble::Stream(format!(
                "its snapshot is of version {}, and its newest event of version {version}: the events were cut off, or the snapshot is another's. \
                 Remedy: restore the file, or delete the snapshot",
                stored.version
            ))),
            Some(stored) if stored.version < 1 => Err(unreadable(stored.version, "there is no such version")),
            _ => Ok((version, stored)),
        }
    }

    /// The newest state; `None` when fewer than `every` events are behind the snapshot.
    pub fn newest(
        &mut self,
        stream: &Stream,
        every: i64,
        reducer: &Reducer,
        mark: &str,
    ) -> Result<Option<Fresh>, Trouble> {
        let (version, stored) = self.look(stream)?;
        let mut base = None;
        if let Some(stored) = stored {
            if version - stored.version < every {
                return Ok(None);
            }
            // What another reducer has made cannot be gone on from.
            if stored.made_by == mark {
                let state = stored.state.and_then(|text| State::of_snapshot(reducer, &text, stored.version));
                let state = state.map_err(|error| unreadable(stored.version, &error))?;
                base = state.map(|state| (stored.version, state));
            }
        }
        self.on_from(stream, reducer, mark, base, version).map(Some)
    }

    /// The state at a version, from the first event on.
    pub fn anew(&mut self, stream: &Stream, reducer: &Reducer, upto: i64) -> Result<Fresh, Trouble> {
        self.on_from(stream, reducer, "", None, upto)
    }

    fn on_from(
        &mut self,
        stream: &Stream,
        reducer: &Reducer,
        mark: &str,
        base: Option<(i64, State)>,
        upto: i64,
    ) -> Result<Fresh, Trouble> {
        let (mut version, mut state) = base.unwrap_or_else(|| (0, State::first(reducer)));
        let mut time = String::new();
        let (mut events, mut archive) = (&self.events, self.with_archive.as_ref());
        while version < upto {
            let slice = Slice::read(self.connection, events, stream, (version, upto));
            let folded =
                slice.map_err(|error| Trouble::of_sqlite(stream, error))?.map_err(Fault::Other).and_then(|slice| {
                    if slice.is_empty() {
                        return Err(Fault::Missing(cut_off(version, upto)));
                    }
                    slice.events(stream).try_for_each(|event| {
                        if self.stop.is_asked() {
                            return Err(Fault::Stopped);
                        }
                        if event.version != version + 1 && !controls::is_off(Protection::Versions) {
                            return Err(Fault::Missing(hole(version, event.version)));
                        }
                        version = event.version;
                        time.clear();
                        time.push_str(event.time);
                        self.count += 1;
                        let applied = state.apply(reducer, &self.calculator, &event);
                        applied.map_err(|error| Fault::Other(format!("version {version}: {error}. {MEND}")))
                    })
                });
            let Err(fault) = folded else { continue };
            match (fault, archive.take()) {
                (Fault::Stopped, _) => return Err(Trouble::All(Failure::Aborted)),
                (Fault::Missing(_), Some(with_archive)) => events = with_archive,
                (Fault::Missing(what), None) => return Err(self.missing(stream, what)),
                (Fault::Other(what), _) => return Err(Trouble::Stream(what)),
            }
        }
        let state = state.finish().map_err(|error| Trouble::Stream(format!("version {version}: {error}. {MEND}")))?;
        Ok(Fresh { stream: stream.clone(), version, state, made_by: mark.to_owned(), time })
    }

    /// Events are missing; or all of them, since the application has erased the stream.
    fn missing(&self, stream: &Stream, what: String) -> Trouble {
        match self.schema.version(self.connection, stream) {
            Ok(None) => Trouble::Gone,
            Ok(Some(_)) => Trouble::Stream(what),
            Err(error) => Trouble::of_sqlite(stream, error),
        }
    }
}

const RESTORE: &str = "Remedy: restore the events, or leave the stream's type out (\"none\")";
pub const MEND: &str = "Remedy: mend the event or the reducer, or leave the stream's type out (\"none\")";

pub fn cut_off(version: i64, upto: i64) -> String {
    let next = version + 1;
    format!(
        "version {next} is missing: the stream is at version {upto}, and there is no event behind {version}. {RESTORE}"
    )
}

pub fn hole(before: i64, found: i64) -> String {
    match found <= before {
        true => format!("version {found} stands there twice. {RESTORE}"),
        false => format!("version {} is missing: behind version {before} comes {found}. {RESTORE}", before + 1),
    }
}

pub fn unreadable(version: i64, why: &str) -> Trouble {
    Trouble::Stream(format!(
        "its snapshot of version {version} cannot be read: {why}. Remedy: delete it, and it is made anew"
    ))
}

impl Trouble {
    pub fn of_sqlite(stream: &Stream, error: rusqlite::Error) -> Self {
        let Stream { id, kind, .. } = stream;
        match error {
            // A value of another kind than its column says is this stream's matter alone.
            rusqlite::Error::InvalidColumnType(_, column, kind) => Trouble::Stream(format!(
                "a value of its column {column} is of kind {kind:?}, which cannot be read. Remedy: mend that row, or delete it"
            )),
            error if fault::classify(&error).0 == Kind::Corrupt => Trouble::All(Failure::Data(format!(
                "stream {id} of type {kind}: {error}. Remedy: see what is damaged (PRAGMA integrity_check), and restore the file"
            ))),
            error => Trouble::All(match archive_file::said(&error) {
                Some(what) => Failure::Data(what),
                None => Failure::Unavailable(format!("stream {id} of type {kind}: {error}")),
            }),
        }
    }
}
