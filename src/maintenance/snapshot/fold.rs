//! One stream, folded: from its snapshot on, or from its first event.

use rusqlite::Connection;

use super::reducer::{Calculator, Reducer, State};
use super::tables::{Fresh, Schema, Stored, Stream};
use crate::controls::{self, Protection};
use crate::maintenance::{Failure, Stop};

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
}

/// Why a stream has no new snapshot.
#[derive(Debug)]
pub enum Trouble {
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

    /// The newest state; `None` when the snapshot holds it already.
    pub fn newest(&mut self, stream: &Stream, reducer: &Reducer, mark: &str) -> Result<Option<Fresh>, Trouble> {
        let stored = self.schema.stored(self.connection, stream).map_err(Trouble::of_sqlite)?;
        let mut base = None;
        if let Some(stored) = stored {
            if stored.version > stream.version {
                return Err(Trouble::Stream(ahead(&stored, stream)));
            }
            // What another reducer has made cannot be gone on from.
            if stored.made_by == mark {
                let state = State::of_snapshot(reducer, &stored.state, stored.version).map_err(|error| {
                    let version = stored.version;
                    Trouble::Stream(format!("its snapshot of version {version} cannot be read: {error}. Remedy: delete it, and it is made anew"))
                })?;
                base = state.map(|state| (stored.version, state));
                if base.is_some() && stored.version == stream.version {
                    return Ok(None);
                }
            }
        }
        self.on_from(stream, reducer, mark, base, stream.version).map(Some)
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
        let (schema, calculator) = (self.schema, &self.calculator);
        let (mut events, mut archive) = (&self.events, self.with_archive.as_ref());
        while version < upto {
            if self.stop.is_asked() {
                return Err(Trouble::All(Failure::Aborted));
            }
            let taken = schema.events(self.connection, events, (stream, version, upto), |event| {
                if event.version != version + 1 && !controls::is_off(Protection::Versions) {
                    return Err(Fault::Missing(hole(version, event.version)));
                }
                version = event.version;
                time.clear();
                time.push_str(event.time);
                self.count += 1;
                state
                    .apply(reducer, calculator, event)
                    .map_err(|error| Fault::Other(format!("version {version}: {error}")))
            });
            let fault = match taken.map_err(Trouble::of_sqlite)? {
                Ok(0) => Fault::Missing(cut_off(version, upto)),
                Ok(_) => continue,
                Err(fault) => fault,
            };
            match (fault, archive.take()) {
                (Fault::Missing(_), Some(with_archive)) => events = with_archive,
                (Fault::Missing(what) | Fault::Other(what), _) => return Err(Trouble::Stream(what)),
            }
        }
        let state = state.finish().map_err(|error| Trouble::Stream(format!("version {version}: {error}")))?;
        Ok(Fresh { stream: stream.clone(), version, state, made_by: mark.to_owned(), time })
    }
}

const RESTORE: &str = "Remedy: restore the events, or leave the stream's type out (\"none\")";

pub(super) fn ahead(stored: &Stored, stream: &Stream) -> String {
    format!(
        "its snapshot is of version {}, and its newest event of version {}: the events were cut off, or the snapshot is another's. Remedy: restore \
         the file, or delete the snapshot",
        stored.version, stream.version
    )
}

pub(super) fn cut_off(version: i64, upto: i64) -> String {
    let next = version + 1;
    format!(
        "version {next} is missing: the stream is at version {upto}, and there is no event behind {version}. {RESTORE}"
    )
}

pub(super) fn hole(before: i64, found: i64) -> String {
    match found <= before {
        true => format!("version {found} stands there twice. {RESTORE}"),
        false => format!("version {} is missing: behind version {before} comes {found}. {RESTORE}", before + 1),
    }
}

impl Trouble {
    pub fn of_sqlite(error: rusqlite::Error) -> Self {
        // A value of another kind than its column says is this stream's matter alone.
        match error {
            rusqlite::Error::InvalidColumnType(_, column, kind) => {
                Trouble::Stream(format!("a value of its column {column} is of kind {kind:?}, which cannot be read"))
            }
            error => Trouble::All(Failure::Unavailable(error.to_string())),
        }
    }
}
