//! Reading, on connections of its own.

use std::path::Path;

use futures_util::{Stream as Rows, TryStreamExt};
use sqlx::SqlitePool;

use super::event::{BYTES_MAX, Snapshot, State, StoredEvent, Stream};
use super::fault::{OpenError, ReadError};
use super::{merge, sql};
use crate::source::archive_file;
use crate::sqlite::premises::Use;
use crate::sqlite::{open, pool};

/// Connections that one store reads on at the same time.
const CONNECTIONS: u32 = 4;

type EventRow = (i64, String, String, String, i64, String, String, Option<String>, String);

/// What reads a store, and needs no right to write it.
#[derive(Clone, Debug)]
pub struct Reader(SqlitePool);

impl Reader {
    /// Reads the tables that [`super::init`] has made. To be called in a runtime.
    pub fn open(path: &Path, allow_network_filesystem: bool) -> Result<Self, OpenError> {
        super::checked(path, Use::Read, allow_network_filesystem, || open::visitor(path))?;
        Ok(Self::of(path))
    }

    pub(super) fn of(path: &Path) -> Self {
        let live = path.to_owned();
        let prepare = move || archive_file::statements(&live).map_err(|error| sqlx::Error::Configuration(error.into()));
        Self(pool::readers(path, CONNECTIONS, prepare, archive_file::IS_CURRENT))
    }

    /// A stream's events from a version on, archived ones as if they had not moved. None for a stream that is not there.
    pub async fn load(&self, stream: &str, from: i64) -> Result<Vec<StoredEvent>, ReadError> {
        anew(|| self.load_once(stream, from)).await
    }

    async fn load_once(&self, stream: &str, from: i64) -> Result<Vec<StoredEvent>, ReadError> {
        // What is compared comes from one snapshot.
        let mut transaction = self.0.begin().await?;
        let Some((newest, _)) = newest(&mut transaction, stream).await? else { return Ok(Vec::new()) };
        behind(&mut transaction, stream, from.max(1) - 1, newest).await
    }

    /// The same, as far as they have 64 MiB. None: there are no more.
    pub async fn load_some(&self, stream: &str, from: i64) -> Result<Vec<StoredEvent>, ReadError> {
        anew(|| self.load_some_once(stream, from)).await
    }

    async fn load_some_once(&self, stream: &str, from: i64) -> Result<Vec<StoredEvent>, ReadError> {
        let mut transaction = self.0.begin().await?;
        let Some((newest, _)) = newest(&mut transaction, stream).await? else { return Ok(Vec::new()) };
        let rows = sqlx::query_as(sql::OF_STREAM).bind(stream).bind(from.max(1)).fetch(&mut *transaction);
        let (events, is_all) = page(rows, |one, other| one.version == other.version).await?;
        let upto = events.last().filter(|_| !is_all).map_or(newest, |last| last.version);
        merge::of_stream(stream, from.max(1) - 1, upto, events)
    }

    /// The version of a stream's newest event.
    pub async fn version(&self, stream: &str) -> Result<Option<i64>, ReadError> {
        let mut connection = self.0.acquire().await?;
        Ok(newest(&mut connection, stream).await?.map(|(version, _)| version))
    }

    /// The newest position; 0 where there is no event.
    pub async fn head(&self) -> Result<i64, ReadError> {
        anew(|| async { Ok(sqlx::query_scalar(sql::HEAD).fetch_one(&self.0).await?) }).await
    }

    /// Events of all streams behind a position, in order, up to a number; fewer where they have more than 64 MiB. None: there are no more.
    pub async fn read_all(&self, after: i64, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        anew(|| self.read_all_once(after, limit)).await
    }

    async fn read_all_once(&self, after: i64, limit: usize) -> Result<Vec<StoredEvent>, ReadError> {
        let rows = sqlx::query_as(sql::OF_ALL).bind(after).bind(limit as i64).fetch(&self.0);
        merge::of_all(page(rows, |one, other| one.position == other.position).await?.0)
    }

    /// A stream's newest snapshot and the events behind it; `None` for a stream that is not there.
    pub async fn state(&self, stream: &str) -> Result<Option<State>, ReadError> {
        anew(|| self.state_once(stream)).await
    }

    async fn state_once(&self, stream: &str) -> Result<Option<State>, ReadError> {
        let mut transaction = self.0.begin().await?;
        let Some((version, stream_type)) = newest(&mut transaction, stream).await? else { return Ok(None) };
        let row: Option<(i64, String, String, String, bool)> =
            sqlx::query_as(sql::SNAPSHOT).bind(stream).fetch_optional(&mut *transaction).await?;
        let snapshot = match row {
            Some((snapshot, ..)) if snapshot > version => {
                return Err(ReadError::SnapshotAhead { stream: stream.to_owned(), snapshot, version });
            }
            Some((version, .., false)) => {
                return Err(ReadError::SnapshotCorrupt { stream: stream.to_owned(), version });
            }
            row => row.map(|(version, state, reducer_hash, time, _)| Snapshot { version, state, reducer_hash, time }),
        };
        let after = snapshot.as_ref().map_or(0, |snapshot| snapshot.version);
        let events = behind(&mut transaction, stream, after, version).await?;
        Ok(Some(State { stream: stream.to_owned(), stream_type, version, snapshot, events }))
    }

    /// Streams by name behind one (`""`: from the first), up to a number.
    pub async fn streams(&self, after: &str, limit: usize) -> Result<Vec<Stream>, ReadError> {
        let rows: Vec<(String, String, i64, Option<i64>)> =
            sqlx::query_as(sql::STREAMS).bind(after).bind(limit as i64).fetch_all(&self.0).await?;
        let stream = |(stream, stream_type, version, snapshot_version)| Stream {
            stream,
            stream_type,
            version,
            snapshot_version,
        };
        Ok(rows.into_iter().map(stream).collect())
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }
}

/// The archive may become another file between a connection's being looked at and its first statement: the next one is opened anew.
async fn anew<T, F: Future<Output = Result<T, ReadError>>>(read: impl Fn() -> F) -> Result<T, ReadError> {
    match read().await {
        Err(ReadError::Archive(said)) if archive_file::is_moved(&said) => read().await,
        done => done,
    }
}

/// Rows up to [`BYTES_MAX`], and at least one; those that are `same` stay together. Says whether that is all.
async fn page(
    mut rows: impl Rows<Item = Result<EventRow, sqlx::Error>> + Unpin,
    same: impl Fn(&StoredEvent, &StoredEvent) -> bool,
) -> Result<(Vec<StoredEvent>, bool), ReadError> {
    let (mut events, mut bytes): (Vec<StoredEvent>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let event = event(row);
        if bytes >= BYTES_MAX && events.last().is_some_and(|last| !same(last, &event)) {
            return Ok((events, false));
        }
        bytes += event.data.len() + event.metadata.as_ref().map_or(0, String::len);
        events.push(event);
    }
    Ok((events, true))
}

/// The version of the newest event, and the type.
async fn newest(connection: &mut sqlx::SqliteConnection, stream: &str) -> Result<Option<(i64, String)>, ReadError> {
    Ok(sqlx::query_as(sql::STREAM).bind(stream).fetch_optional(connection).await?)
}

async fn behind(
    connection: &mut sqlx::SqliteConnection,
    stream: &str,
    after: i64,
    newest: i64,
) -> Result<Vec<StoredEvent>, ReadError> {
    let from = after.saturating_add(1);
    let rows: Vec<EventRow> = sqlx::query_as(sql::OF_STREAM).bind(stream).bind(from).fetch_all(connection).await?;
    merge::of_stream(stream, after, newest, rows.into_iter().map(event).collect())
}

fn event((position, id, stream, stream_type, version, kind, data, metadata, time): EventRow) -> StoredEvent {
    StoredEvent { position, id, stream, stream_type, version, kind, data, metadata, time }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_met_the_archive_becoming_another_file_is_read_once_more() {
        // Where no archive is attached, the words are those of a connection that was looked at before there was one.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.db");
        crate::store::init(&path).await.unwrap();
        let live = open::writer(&path, open::Durable::Full).unwrap();
        let before = open::visitor(&path).unwrap();
        archive_file::attach(&before, &path).unwrap();
        live.execute("INSERT INTO archive_file VALUES (1, 'a', 'a.db', 1)", []).unwrap();
        let moved = before.query_row("SELECT count(*) FROM archived_events", [], |row| row.get::<_, i64>(0));
        let said = archive_file::said(&moved.unwrap_err()).unwrap();

        let asked = Cell::new(0);
        let read = |said: &'static [&'static str]| {
            asked.set(0);
            anew(|| async {
                asked.set(asked.get() + 1);
                match said.get(asked.get() - 1) {
                    Some(said) => Err(ReadError::Archive((*said).to_owned())),
                    None => Ok(asked.get()),
                }
            })
        };
        let said: &'static str = said.leak();
        assert_eq!(read(vec![said].leak()).await.unwrap(), 2);
        assert!(read(vec![said, said].leak()).await.is_err(), "not for ever");
        assert!(read(&["it is missing"]).await.is_err() && asked.get() == 1, "what is wrong is told");
    }
}
