//! A stream looked at: its snapshot, the events behind it, and what they come to, all of one moment. Nothing is changed.

use rusqlite::Connection;

use super::fold::{self, Folder, Trouble};
use super::tables::{Schema, Stored, Stream};
use super::{Failure, Snapshots, Stop};
use crate::maintenance::Look;
use crate::source;
use crate::store::event::StoredEvent;

/// What a snapshot job would make of a stream; without a job, what it would begin with.
pub fn look_at(source: &source::Settings, stream: &str) -> Option<Result<Vec<Look>, Failure>> {
    let (_, schema) = Schema::PRESETS.iter().find(|(preset, _)| source.preset.as_deref() == Some(preset))?;
    let (reducers, schema_versions) = Default::default();
    let (name, source) = (String::new(), source.clone());
    Some(Snapshots { name, source, schema: *schema, every_events: 1, reducers, schema_versions }.look_at(stream))
}

impl Snapshots {
    /// An id may be that of several streams, of different types.
    pub(super) fn look_at(&self, id: &str) -> Result<Vec<Look>, Failure> {
        let connection = self.open()?;
        let unread = |error: rusqlite::Error| Failure::Unavailable(format!("{}: {error}", self.source.path.display()));
        let snapshot = connection.unchecked_transaction().map_err(unread)?;
        let streams = streams(self.schema, &snapshot, id).map_err(unread)?;
        streams.into_iter().map(|stream| self.look_at_one(&snapshot, stream)).collect()
    }

    fn look_at_one(&self, connection: &Connection, stream: Stream) -> Result<Look, Failure> {
        let told = |trouble| match trouble {
            Trouble::Stream(what) => {
                let path = self.source.path.display();
                Failure::Data(format!("{path}: stream {} of type {}: {what}", stream.id, stream.kind))
            }
            Trouble::All(failure) => failure,
        };
        let stored = self.schema.stored(connection, &stream).map_err(Trouble::of_sqlite).map_err(told)?;
        if let Some(stored) = &stored
            && stored.version > stream.version
        {
            return Err(told(Trouble::Stream(fold::ahead(stored, &stream))));
        }
        let after = stored.as_ref().map_or(0, |stored| stored.version);
        let events = self.behind(connection, &stream, after).map_err(told)?;
        let (mut state, mut is_anew) = (None, false);
        if let Some(Some(reducer)) = self.reducer(&stream.kind) {
            let (stop, mark) = (Stop::default(), self.mark(&stream.kind, reducer));
            let folder = Folder::new(self.schema, connection, &stop).map_err(Trouble::of_sqlite);
            let fresh = folder.and_then(|mut folder| folder.newest(&stream, reducer, &mark)).map_err(told)?;
            is_anew = stored.as_ref().is_none_or(|stored| stored.made_by != mark);
            state = fresh.map(|fresh| fresh.state);
        }
        // With nothing behind it, the snapshot is the state.
        let current = stored.as_ref().filter(|_| state.is_none() && events.is_empty());
        state = state.or_else(|| current.map(|stored| stored.state.clone()));
        let Stream { id, kind, version, .. } = stream;
        let snapshot = stored.map(|Stored { version, state, .. }| (version, state));
        Ok(Look { stream: id, kind, version, snapshot, events, state, is_anew })
    }

    /// The events behind a version, archived ones among them.
    fn behind(&self, connection: &Connection, stream: &Stream, after: i64) -> Result<Vec<StoredEvent>, Trouble> {
        let sql = self.schema.events_sql(self.schema.has_archive(connection).map_err(Trouble::of_sqlite)?);
        let (mut version, mut events) = (after, Vec::new());
        while version < stream.version {
            let place = (stream, version, stream.version);
            let taken = self.schema.events(connection, &sql, place, |event| {
                if event.version != version + 1 {
                    return Err(fold::hole(version, event.version));
                }
                version = event.version;
                events.push(StoredEvent {
                    position: event.position.unwrap_or(0),
                    id: event.id.to_owned(),
                    stream: stream.id.clone(),
                    stream_type: stream.kind.clone(),
                    version,
                    kind: event.kind.to_owned(),
                    data: event.data.to_owned(),
                    metadata: event.metadata.map(str::to_owned),
                    time: event.time.to_owned(),
                });
                Ok(())
            });
            match taken.map_err(Trouble::of_sqlite)? {
                Ok(0) => return Err(Trouble::Stream(fold::cut_off(version, stream.version))),
                Ok(_) => {}
                Err(what) => return Err(Trouble::Stream(what)),
            }
        }
        Ok(events)
    }
}

/// The streams of this id.
fn streams(schema: Schema, connection: &Connection, id: &str) -> rusqlite::Result<Vec<Stream>> {
    let sql = match schema {
        Schema::Outboxd => "SELECT stream_id, stream_type, version FROM streams WHERE stream_id = ?1",
        Schema::EventsourcePy => {
            "SELECT aggregate_id, aggregate_type, max(version) FROM events WHERE aggregate_id = ?1 GROUP BY aggregate_type ORDER BY aggregate_type"
        }
        Schema::Flightdeck => "SELECT stream_id, type, version FROM streams WHERE stream_id = ?1",
    };
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement
        .query_map([id], |row| Ok(Stream { id: row.get(0)?, kind: row.get(1)?, version: row.get(2)?, snapshot: 0 }))?;
    rows.collect()
}
