//! One append, in an open transaction.
//!
//! On the good path it is one look at the stream and one INSERT an event. Everything else (was it appended before? what is wrong with it?)
//! is asked only when the stream is not as expected or the table refused.

use rusqlite::{Connection, OptionalExtension, Row, ffi, params};

use super::event::{Append, Appended, Expected, Message, NewEvent, StoredEvent};
use super::fault::{AppendError, AppendsError};
use super::sql;
use crate::controls::{self, Protection};
use crate::sqlite::fault::{Kind, classify};

/// Whether what fails is undone by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// No savepoint, whose journal takes a copy of every page that is changed (measured: three times the work of an INSERT). What fails
    /// behind a first write is [`Outcome::Again`].
    Quick,
    /// In a savepoint each.
    Guarded,
}

/// What became of appends that belong together.
pub enum Outcome {
    Done(Vec<Appended>),
    /// Nothing of it is written.
    Refused(AppendsError),
    /// It failed when something of it was written: the transaction has to be rolled back, and done again with care.
    Again,
    /// The transaction has been rolled back, with all that was in it: a trigger of the application's own says `RAISE(ROLLBACK)`.
    Ended(AppendsError),
}

/// Appends all of them, or none. An error concerns the whole transaction.
pub fn all(connection: &Connection, appends: &[Append], care: Care) -> rusqlite::Result<Outcome> {
    if care == Care::Guarded {
        connection.prepare_cached("SAVEPOINT appends")?.execute([])?;
    }
    let mut done = Vec::with_capacity(appends.len());
    let mut failed = None;
    let mut is_written = false;
    for (index, one) in appends.iter().enumerate() {
        match append(connection, one, care, &mut is_written)? {
            Ok(appended) => done.push(appended),
            Err(error) => {
                failed = Some(AppendsError { index, error });
                break;
            }
        }
    }
    if connection.is_autocommit() {
        let error = failed.expect("what does not fail does not end the transaction");
        return Ok(Outcome::Ended(error));
    }
    let is_half = failed.is_some() && is_written;
    if care == Care::Guarded {
        if is_half {
            connection.prepare_cached("ROLLBACK TO appends")?.execute([])?;
        }
        connection.prepare_cached("RELEASE appends")?.execute([])?;
    }
    Ok(match failed {
        None => Outcome::Done(done),
        Some(_) if is_half && care == Care::Quick && !controls::is_off(Protection::Savepoint) => Outcome::Again,
        Some(error) => Outcome::Refused(error),
    })
}

/// `is_written` becomes true when something of it stays written, whatever the answer is.
fn append(
    connection: &Connection,
    append: &Append,
    care: Care,
    is_written: &mut bool,
) -> rusqlite::Result<Result<Appended, AppendError>> {
    let stream: Option<(i64, String)> = connection
        .prepare_cached(sql::STREAM)?
        .query_row([&append.stream], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some(unfit) = unfit(append, stream.as_ref()) {
        return identify(connection, append, unfit);
    }
    let version = stream.map_or(0, |(version, _)| version);
    if care == Care::Guarded {
        connection.prepare_cached("SAVEPOINT append")?.execute([])?;
    }
    let written = write(connection, append, version)?;
    if connection.is_autocommit()
        && let Err(Refused::Event(_, error) | Refused::Message(_, error)) = &written
    {
        return Ok(Err(sqlite_refused(error)));
    }
    if care == Care::Guarded {
        if written.is_err() {
            connection.prepare_cached("ROLLBACK TO append")?.execute([])?;
        }
        connection.prepare_cached("RELEASE append")?.execute([])?;
    }
    // A statement that fails is undone by itself: at the first event nothing is written.
    *is_written |= match &written {
        Ok(_) => true,
        Err(Refused::Event(0, _)) => false,
        Err(_) => care == Care::Quick,
    };
    match written {
        Ok(appended) => Ok(Ok(appended)),
        // What is half written is not looked at: it is done again.
        Err(Refused::Event(1.., error) | Refused::Message(_, error)) if care == Care::Quick => {
            Ok(Err(sqlite_refused(&error)))
        }
        Err(Refused::Event(index, error)) => refused(connection, append, &append.events[index], version, error),
        Err(Refused::Message(index, error)) => message_refused(&append.outbox[index], error).map(Err),
    }
}

/// What keeps it from being appended to the stream as it is.
fn unfit(append: &Append, stream: Option<&(i64, String)>) -> Option<AppendError> {
    let actual = stream.map(|(version, _)| *version);
    let is_expected = match append.expected {
        Expected::Any => true,
        Expected::NoStream => actual.is_none(),
        Expected::StreamExists => actual.is_some(),
        Expected::Exact(version) => actual.unwrap_or(0) == version,
    };
    if !is_expected {
        return Some(AppendError::Conflict { stream: append.stream.clone(), expected: append.expected, actual });
    }
    let (version, stream_type) = stream?;
    if *stream_type != append.stream_type {
        let (stream, asked) = (append.stream.clone(), append.stream_type.clone());
        return Some(AppendError::OtherType { stream, actual: stream_type.clone(), asked });
    }
    let count = append.events.len();
    version.checked_add(count as i64).is_none().then(|| AppendError::VersionsUsedUp {
        stream: append.stream.clone(),
        version: *version,
        count,
    })
}

enum Refused {
    Event(usize, rusqlite::Error),
    Message(usize, rusqlite::Error),
}

fn write(connection: &Connection, append: &Append, version: i64) -> rusqlite::Result<Result<Appended, Refused>> {
    let mut insert = connection.prepare_cached(sql::INSERT_EVENT)?;
    let mut first_position = 0;
    for (index, event) in append.events.iter().enumerate() {
        let version = version + 1 + index as i64;
        let row = params![
            event.id,
            append.stream,
            append.stream_type,
            version,
            event.kind,
            event.data,
            event.metadata,
            event.time
        ];
        if let Err(error) = insert.execute(row) {
            return if is_of_the_file(&error) { Err(error) } else { Ok(Err(Refused::Event(index, error))) };
        }
        if index == 0 {
            first_position = connection.last_insert_rowid();
        }
    }
    let last_position = connection.last_insert_rowid();
    for (index, message) in append.outbox.iter().enumerate() {
        let Message { id, kind, key, payload, headers } = message;
        let row = params![id, append.stream, append.stream_type, kind, key, payload, headers];
        if let Err(error) = connection.prepare_cached(sql::INSERT_MESSAGE)?.execute(row) {
            return if is_of_the_file(&error) { Err(error) } else { Ok(Err(Refused::Message(index, error))) };
        }
    }
    let last_version = version + append.events.len() as i64;
    Ok(Ok(Appended { first_version: version + 1, last_version, first_position, last_position, is_repeat: false }))
}

/// Whatever is appended meets it, too.
fn is_of_the_file(error: &rusqlite::Error) -> bool {
    !matches!(classify(error).0, Kind::Sql | Kind::Stopped)
}

fn refused(
    connection: &Connection,
    append: &Append,
    event: &NewEvent,
    version: i64,
    error: rusqlite::Error,
) -> rusqlite::Result<Result<Appended, AppendError>> {
    match classify(&error).1 {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_TRIGGER => {
            let next: Option<i64> = connection
                .prepare_cached(sql::OF_STREAM)?
                .query_row(params![append.stream, version + 1], |row| row.get(4))
                .optional()?;
            let otherwise = match next {
                Some(version) => AppendError::VersionTaken { stream: append.stream.clone(), version },
                // Of an index or a trigger of the application's own.
                None => sqlite_refused(&error),
            };
            identify(connection, append, otherwise)
        }
        ffi::SQLITE_CONSTRAINT_CHECK => {
            let of = |json: &str| -> rusqlite::Result<Option<String>> {
                let sql = "SELECT CASE WHEN json_valid(?1) THEN json_type(?1) END";
                connection.prepare_cached(sql)?.query_row([json], |row| row.get(0))
            };
            let field = match &event.metadata {
                _ if of(&event.data)?.is_none() => Some("data"),
                Some(metadata) if of(metadata)?.as_deref() != Some("object") => Some("metadata"),
                _ => None,
            };
            Ok(Err(match field {
                Some(field) => AppendError::NotJson { id: event.id.clone(), field },
                None => sqlite_refused(&error),
            }))
        }
        _ => Ok(Err(sqlite_refused(&error))),
    }
}

fn message_refused(message: &Message, error: rusqlite::Error) -> rusqlite::Result<AppendError> {
    Ok(match classify(&error).1 {
        ffi::SQLITE_CONSTRAINT_UNIQUE => AppendError::OutboxIdTaken { id: message.id.clone() },
        ffi::SQLITE_CONSTRAINT_CHECK => AppendError::NotJson { id: message.id.clone(), field: "headers" },
        _ => sqlite_refused(&error),
    })
}

pub fn sqlite_refused(error: &rusqlite::Error) -> AppendError {
    AppendError::Sqlite { text: error.to_string(), code: classify(error).1 }
}

/// Whether these events are there already: the answer of the first time, or what is wrong. `otherwise` where none of them is there.
fn identify(
    connection: &Connection,
    append: &Append,
    otherwise: AppendError,
) -> rusqlite::Result<Result<Appended, AppendError>> {
    let mut by_id = connection.prepare_cached(sql::BY_ID)?;
    let mut found: Vec<Option<StoredEvent>> = Vec::with_capacity(append.events.len());
    for event in &append.events {
        found.push(by_id.query_row([&event.id], stored).optional()?);
    }
    let Some(there) = found.iter().flatten().next().map(|event| event.id.clone()) else { return Ok(Err(otherwise)) };
    let mut last = None;
    for (event, found) in append.events.iter().zip(&found) {
        let Some(found) = found else {
            return Ok(Err(AppendError::PartlyThere { there, missing: event.id.clone() }));
        };
        let difference = difference(append, event, found)
            .or_else(|| last.is_some_and(|last| found.version != last + 1).then_some("version"));
        if let Some(difference) = difference {
            let (id, stream, version) = (event.id.clone(), found.stream.clone(), found.version);
            return Ok(Err(AppendError::IdTaken { id, stream, version, difference }));
        }
        last = Some(found.version);
    }
    let ends = |found: Option<&Option<StoredEvent>>| {
        let event = found.and_then(Option::as_ref).expect("all of them were found");
        (event.version, event.position)
    };
    let ((first_version, first_position), (last_version, last_position)) = (ends(found.first()), ends(found.last()));
    Ok(Ok(Appended { first_version, last_version, first_position, last_position, is_repeat: true }))
}

/// The first of its parts that is not the same.
fn difference(append: &Append, event: &NewEvent, found: &StoredEvent) -> Option<&'static str> {
    let parts = [
        ("stream", append.stream == found.stream),
        ("stream type", append.stream_type == found.stream_type),
        ("type", event.kind == found.kind),
        ("data", event.data == found.data),
        ("metadata", event.metadata == found.metadata),
        ("time", event.time.as_ref().is_none_or(|time| *time == found.time)),
    ];
    parts.into_iter().find(|(_, is_same)| !is_same).map(|(part, _)| part)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    Ok(StoredEvent {
        position: row.get(0)?,
        id: row.get(1)?,
        stream: row.get(2)?,
        stream_type: row.get(3)?,
        version: row.get(4)?,
        kind: row.get(5)?,
        data: row.get(6)?,
        metadata: row.get(7)?,
        time: row.get(8)?,
    })
}
