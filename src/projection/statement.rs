//! The statements of a projection: which values they may name, and the proof that they fit the tables.

use std::fmt;
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::Definition;
use crate::event::Event;
use crate::setting::problem::{either, nearest};
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::guard::{Guard, Rules};

/// A value of an event that a statement may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    Position,
    Id,
    StreamId,
    StreamType,
    Version,
    Type,
    Data,
    Metadata,
    Time,
}

impl Field {
    pub const ALL: [(&str, Field); 9] = [
        (":position", Field::Position),
        (":id", Field::Id),
        (":stream_id", Field::StreamId),
        (":stream_type", Field::StreamType),
        (":version", Field::Version),
        (":type", Field::Type),
        (":data", Field::Data),
        (":metadata", Field::Metadata),
        (":time", Field::Time),
    ];

    pub fn of<'a>(self, event: &Event<'a>) -> ValueRef<'a> {
        let text = |text: Option<&'a str>| text.map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes()));
        match self {
            Field::Position => ValueRef::Integer(event.position.0),
            Field::Id => text(Some(event.id)),
            Field::StreamId => text(event.stream_id),
            Field::StreamType => text(event.stream_type),
            Field::Version => event.version.map_or(ValueRef::Null, ValueRef::Integer),
            Field::Type => text(Some(event.kind)),
            Field::Data => match event.payload {
                None => ValueRef::Null,
                Some(bytes) if std::str::from_utf8(bytes).is_ok() => ValueRef::Text(bytes),
                Some(bytes) => ValueRef::Blob(bytes),
            },
            Field::Metadata => text(event.headers),
            Field::Time => text(event.time),
        }
    }
}

/// Where a statement stands: its event type, and its number among that type's, from 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub kind: String,
    pub number: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on {}, statement {}", self.kind, self.number)
    }
}

/// What is wrong with a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misfit {
    pub place: Place,
    /// Line and column in it, from 1, where SQLite tells.
    pub at: Option<(usize, usize)>,
    pub reason: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some((line, column)) => {
                write!(f, "{}, line {line}, column {column}: {}", self.place, self.reason)
            }
            None => write!(f, "{}: {}", self.place, self.reason),
        }
    }
}

/// All statements with their places, in the order in which they are written.
pub fn all(definition: &Definition) -> impl Iterator<Item = (Place, &str)> {
    definition.on.iter().flat_map(|(kind, statements)| {
        let place = move |index| Place { kind: kind.clone(), number: index + 1 };
        statements.iter().enumerate().map(move |(index, sql)| (place(index), sql.as_str()))
    })
}

/// Prepares every statement on a connection that has the tables; runs none. The outer error is about the file, not about them.
pub fn prove(connection: &Connection, guard: &Guard, definition: &Definition) -> rusqlite::Result<Vec<Misfit>> {
    let mut names = connection.prepare("SELECT lower(name) FROM sqlite_schema WHERE type IN ('table', 'view')")?;
    let known = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let rules = Arc::new(Rules { known, ..definition.rules(false) });
    let mut misfits = Vec::new();
    for (place, sql) in all(definition) {
        if let Some((at, reason)) = prove_one(connection, guard, &rules, sql)? {
            misfits.push(Misfit { place, at, reason });
        }
    }
    Ok(misfits)
}

type Wrong = (Option<(usize, usize)>, String);

fn prove_one(connection: &Connection, guard: &Guard, rules: &Arc<Rules>, sql: &str) -> rusqlite::Result<Option<Wrong>> {
    let wrong = |reason: &str| Ok(Some((None, reason.to_owned())));
    let statement = match guard.under(connection, rules, || connection.prepare(sql))? {
        Ok(statement) => statement,
        Err(rusqlite::Error::MultipleStatement) => {
            let _ = guard.denied();
            return wrong("there is more than one statement in it: write a list of them");
        }
        Err(error) => match fault::classify(&error).0 {
            Kind::Busy | Kind::Storage | Kind::CannotOpen | Kind::Corrupt | Kind::Permission => return Err(error),
            Kind::Sql | Kind::Stopped => return Ok(Some(told(&error, guard.denied()))),
        },
    };
    if statement.readonly() || !guard.writes() {
        return wrong("it changes nothing: write an INSERT, UPDATE or DELETE");
    }
    if statement.column_count() > 0 {
        return wrong("it returns rows, which nobody would read: leave RETURNING out");
    }
    for index in 1..=statement.parameter_count() {
        let name = statement.parameter_name(index).unwrap_or("?");
        if Field::ALL.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let names = || Field::ALL.iter().map(|(name, _)| *name);
        let remedy = match nearest(name, names()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known are {}", either(names())),
        };
        return Ok(Some((None, format!("there is no value {name}: {remedy}"))));
    }
    Ok(None)
}

/// What SQLite said, with the place of it.
pub fn told(error: &rusqlite::Error, denied: Option<String>) -> Wrong {
    let (at, said) = match error {
        rusqlite::Error::SqlInputError { msg, sql, offset, .. } => {
            let before = usize::try_from(*offset).ok().and_then(|offset| sql.get(..offset));
            let at = before.map(|before| {
                let line = before.rsplit('\n').next().unwrap_or_default();
                (before.matches('\n').count() + 1, line.chars().count() + 1)
            });
            (at, msg.clone())
        }
        rusqlite::Error::SqliteFailure(_, Some(said)) => (None, said.clone()),
        other => (None, other.to_string()),
    };
    (at, denied.unwrap_or(said))
}
