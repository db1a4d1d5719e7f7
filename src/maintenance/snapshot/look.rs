//! A stream looked at: its snapshot, the events behind it, and what they come to. Nothing is changed.

use rusqlite::Connection;

use super::fold::{self, Folder, Trouble};
use super::reducer::{Folded, Reducer, State};
use super::slice::Slice;
use super::tables::{Schema, Stored, Stream};
use super::{Failure, Snapshots, Stop};
use crate::maintenance::Look;
use crate::source;
use crate::store::event::StoredEvent;

/// What a snapshot job would make of a stream; without a job, what it would begin with. `None`: where its snapshots are is not known.
pub fn look_at(source: &source::Settings, stream: &str) -> Option<Result<Vec<Look>, Failure>> {
    let (_, schema) = Schema::PRESETS.iter().find(|(preset, _)| source.preset.as_deref() == Some(preset))?;
    let (reducers, schema_versions) = Default::default();
    let (name, source) = (String::new(), source.clone());
    Some(Snapshots { name, source, schema: *schema, every_events: 1, reducers, schema_versions }.look_at(stream))
}

impl Snapshots {
    /// An id may be that of several streams, of different types.
    pub(super) fn look_at(&self, id: &str) -> Result<Vec<Look>, Failure> {
        let (connection, stop) = (self.open()?, Stop::default());
        let mut folder = self.folder(&connection, &stop)?;
        let path = self.source.path.display();
        let unread = |error: rusqlite::Error| Failure::Unavailable(format!("{path}: {error}"));
        let mut looks = Vec::new();
        for stream in streams(self.schema, &connection, id).map_err(unread)? {
            match self.look_at_one(&mut folder, &stream) {
                Ok(look) => looks.push(look),
                Err(Trouble::Gone) => {}
                Err(Trouble::Stream(what)) => {
                    return Err(Failure::Data(format!("{path}: stream {id} of type {}: {what}", stream.kind)));
                }
                Err(Trouble::All(failure)) => return Err(failure),
            }
        }
        Ok(looks)
    }

    /// Version and snapshot are of one moment; events never change, so that those up to that version may be read later.
    fn look_at_one(&self, folder: &mut Folder<'_>, stream: &Stream) -> Result<Look, Trouble> {
        let (version, stored) = folder.look(stream)?;
        let snapshot = match &stored {
            Some(Stored { version, state: Ok(state), .. }) => Some((*version, state.clone())),
            Some(Stored { version, state: Err(why), .. }) => return Err(fold::unreadable(*version, why)),
            None => None,
        };
        let after = snapshot.as_ref().map_or(0, |(version, _)| *version);
        let events = self.behind(folder.connection, stream, after, version)?;
        let (mut state, mut is_anew) = (None, false);
        if let Some(Some(reducer)) = self.reducer(&stream.kind) {
            let mark = self.mark(&stream.kind, reducer);
            let base = match &stored {
                // What another reducer has made cannot be gone on from.
                Some(stored) if stored.made_by == mark => snapshot.as_ref().map(|(version, text)| {
                    let state = State::of_snapshot(reducer, text, *version);
                    state.map_err(|error| fold::unreadable(*version, &error))
                }),
                _ => None,
            };
            let base = base.transpose()?.flatten();
            is_anew = base.is_none();
            state = Some(match base {
                Some(base) => on_from(base, folder, reducer, &events)?,
                None => folder.anew(stream, reducer, version)?.state,
            });
        }
        // With nothing behind it, the snapshot is the state.
        let current = snapshot.as_ref().filter(|_| events.is_empty());
        let state = state.or_else(|| current.map(|(_, state)| state.clone()));
        let Stream { id, kind, .. } = stream.clone();
        Ok(Look { stream: id, kind, version, snapshot, events, state, is_anew })
    }

    /// The events behind a version up to one, archived ones among them.
    fn behind(
        &self,
        connection: &Connection,
        stream: &Stream,
        after: i64,
        upto: i64,
    ) -> Result<Vec<StoredEvent>, Trouble> {
        let unread = |error| Trouble::of_sqlite(stream, error);
        let sql = self.schema.events_sql(self.schema.has_archive(connection).map_err(unread)?);
        let (mut version, mut events) = (after, Vec::new());
        while version < upto {
            let slice = Slice::read(connection, &sql, stream, (version, upto)).map_err(unread)?;
            let slice = slice.map_err(Trouble::Stream)?;
            if slice.is_empty() {
                return Err(Trouble::Stream(fold::cut_off(version, upto)));
            }
            for event in slice.events(stream) {
                if event.version != version + 1 {
                    return Err(Trouble::Stream(fold::hole(version, event.version)));
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
            }
        }
        Ok(events)
    }
}

/// The state behind these events.
fn on_from(
    mut state: State,
    folder: &Folder<'_>,
    reducer: &Reducer,
    events: &[StoredEvent],
) -> Result<String, Trouble> {
    for event in events {
        let folded = Folded {
            position: Some(event.position).filter(|position| *position != 0),
            id: &event.id,
            stream_id: &event.stream,
            stream_type: &event.stream_type,
            version: event.version,
            kind: &event.kind,
            data: &event.data,
            metadata: event.metadata.as_deref(),
            time: &event.time,
        };
        let applied = state.apply(reducer, &folder.calculator, &folded);
        applied.map_err(|error| Trouble::Stream(format!("version {}: {error}. {}", event.version, fold::MEND)))?;
    }
    state.finish().map_err(|error| Trouble::Stream(format!("{error}. {}", fold::MEND)))
}

/// The streams of this id.
fn streams(schema: Schema, connection: &Connection, id: &str) -> rusqlite::Result<Vec<Stream>> {
    let sql = match schema {
        Schema::Outboxd => "SELECT stream_type, version FROM streams WHERE stream_id = ?1",
        Schema::EventsourcePy => {
            "SELECT aggregate_type, max(version) FROM events WHERE aggregate_id = ?1 GROUP BY aggregate_type ORDER BY aggregate_type"
        }
        Schema::Flightdeck => "SELECT type, version FROM streams WHERE stream_id = ?1",
    };
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([id], |row| {
        Ok(Stream { id: id.to_owned(), kind: row.get(0)?, version: row.get(1)?, snapshot: 0 })
    })?;
    rows.collect()
}
