//! How far everybody has come who reads a table: nothing above that is moved, or deleted.
//!
//! Checkpoints stand in other files than the events. Whoever passes an event settles it, or has its held row written, in the transaction that moves
//! the checkpoint: so checkpoints and held rows are read in one snapshot, *before* the transaction that moves events. What may only get lower
//! meanwhile (a position set backwards, a consumer that begins) is looked at once more in it: [`Look::lowered`].

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::Failure;
use crate::sqlite::writer::JobError;
use crate::sqlite::{open, place};
use crate::state::checkpoint::{self, Checkpoint};
use crate::state::{self, held, replay};

/// What holds an event back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    Consumer,
    Held,
    Outbox,
    Age,
}

/// The highest position that may be moved, and what says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limit {
    pub position: i64,
    pub why: Why,
    pub by: String,
}

/// A configured consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reader {
    pub name: String,
    /// The file that its checkpoint stands in.
    pub state: PathBuf,
}

/// Everybody who reads this file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Readers {
    /// The application's file.
    pub file: PathBuf,
    /// The table that is asked about.
    pub table: String,
    /// Those of the table.
    pub events: Vec<Reader>,
    /// Those of the outbox, where it is read by checkpoint.
    pub outbox: Vec<Reader>,
    /// Consumers whose replays need what they have not come to; in tables read by row, places are rowids.
    pub replaying: Vec<String>,
    /// Every configured consumer's name: who is none of them may have been one.
    pub named: Vec<String>,
    /// Where checkpoints may stand.
    pub states: Vec<PathBuf>,
}

/// How far they had come at a moment, and what that can be asked again by.
#[derive(Debug)]
pub struct Look {
    pub limit: Limit,
    /// Outbox rows above it are not published.
    pub outbox: i64,
    states: Vec<(PathBuf, Connection)>,
}

impl Why {
    pub const ALL: [Why; 4] = [Why::Consumer, Why::Held, Why::Outbox, Why::Age];

    pub fn as_str(self) -> &'static str {
        match self {
            Why::Consumer => "consumer",
            Why::Held => "held",
            Why::Outbox => "outbox",
            Why::Age => "age",
        }
    }
}

impl Limit {
    pub fn none() -> Self {
        Self { position: i64::MAX, why: Why::Consumer, by: String::new() }
    }

    /// The lower of two.
    pub fn or(self, other: Self) -> Self {
        if other.position < self.position { other } else { self }
    }
}

impl Readers {
    /// One more file in which checkpoints may stand.
    pub fn add_state(&mut self, state: PathBuf) {
        let state = if place::real(&state) == place::real(&self.file) { self.file.clone() } else { state };
        if !self.states.contains(&state) {
            self.states.push(state);
        }
    }

    /// Checkpoints and held rows, each file's in one snapshot; then what else says how far it is.
    pub fn look(
        &self,
        app: &Connection,
        foreign: impl FnOnce(&Connection) -> rusqlite::Result<Limit>,
    ) -> Result<Look, Failure> {
        let unread = |path: &Path, error: &dyn std::fmt::Display| {
            Failure::Unavailable(format!("{} cannot be read, in which checkpoints stand: {error}", path.display()))
        };
        let mut states = Vec::new();
        for path in self.states.iter().filter(|path| **path != self.file && path.exists()) {
            let connection = open::visitor(path).map_err(|error| unread(path, &error))?;
            states.push((path.clone(), connection));
        }
        let looked = |app: &Connection| -> Result<(Limit, i64), JobError> {
            let connections = states.iter().map(|(_, connection)| connection).chain([app]);
            connections.clone().try_for_each(|connection| connection.execute_batch("BEGIN"))?;
            let (limit, outbox) = self.checkpoints(app, &states)?;
            let (limit, outbox) = self.held(app, &states, limit, outbox)?;
            connections.clone().try_for_each(|connection| connection.execute_batch("COMMIT"))?;
            Ok((limit, outbox))
        };
        let (limit, outbox) = looked(app).map_err(|error| unread(&self.file, &error))?;
        let foreign = foreign(app).map_err(|error| unread(&self.file, &error))?;
        Ok(Look { limit: limit.or(foreign), outbox, states })
    }

    fn place<'a>(
        &'a self,
        app: &'a Connection,
        states: &'a [(PathBuf, Connection)],
    ) -> impl Iterator<Item = (&'a Path, &'a Connection)> {
        let inside = self.states.contains(&self.file).then_some((self.file.as_path(), app));
        states.iter().map(|(path, connection)| (path.as_path(), connection)).chain(inside)
    }

    fn checkpoints(&self, app: &Connection, states: &[(PathBuf, Connection)]) -> Result<(Limit, i64), JobError> {
        let mut found: Vec<(&Path, Checkpoint)> = Vec::new();
        for (path, connection) in self.place(app, states) {
            if state::schema_version(connection)?.is_some() {
                found.extend(checkpoint::all(connection)?.into_iter().map(|checkpoint| (path, checkpoint)));
            }
        }
        let of = |reader: &Reader| {
            let own = |(path, found): &&(&Path, Checkpoint)| found.consumer == reader.name && *path == reader.state;
            found.iter().find(own).map(|(_, found)| found.mark.position.0)
        };
        let forgotten = |table: &str| {
            let table = format!("table={table} ");
            let of_table = move |(_, found): &&(&Path, Checkpoint)| found.definition.starts_with(&table);
            let is_new = |(_, found): &&(&Path, Checkpoint)| !self.named.contains(&found.consumer);
            found.iter().filter(of_table).filter(is_new).map(|(_, found)| found)
        };
        let mut limit = Limit::none();
        for reader in &self.events {
            let name = &reader.name;
            let (position, by) = match of(reader) {
                Some(position) => (position, format!("{name}, which is at position {position}")),
                None => (0, format!("{name}, which has never started")),
            };
            limit = limit.or(Limit { position, why: Why::Consumer, by });
        }
        for Checkpoint { consumer, mark, .. } in forgotten(&self.table) {
            let position = mark.position.0;
            let by = format!(
                "{consumer}, which is at position {position} and not in the configuration (`outboxd consumer forget {consumer}` lets go of it)"
            );
            limit = limit.or(Limit { position, why: Why::Consumer, by });
        }
        for (_, connection) in self.place(app, states).filter(|_| !self.replaying.is_empty()) {
            for (consumer, place) in replay::unfinished(connection)? {
                if self.replaying.contains(&consumer) {
                    let by = format!("a replay of {consumer}, which has come to {place}");
                    limit = limit.or(Limit { position: place, why: Why::Consumer, by });
                }
            }
        }
        let outbox = self.outbox.iter().map(|reader| of(reader).unwrap_or(0));
        let outbox = outbox.chain(forgotten("outbox").map(|found| found.mark.position.0)).min();
        Ok((limit, outbox.unwrap_or(0)))
    }

    fn held(
        &self,
        app: &Connection,
        states: &[(PathBuf, Connection)],
        mut limit: Limit,
        mut outbox: i64,
    ) -> Result<(Limit, i64), JobError> {
        let is_of = |readers: &[Reader], name: &str| readers.iter().any(|reader| reader.name == name);
        for (_, connection) in self.place(app, states) {
            if state::schema_version(connection)?.is_none() {
                continue;
            }
            for (consumer, position) in held::lowest(connection)? {
                // One that is not configured any more may have read either.
                let is_forgotten = !self.named.contains(&consumer);
                if is_of(&self.outbox, &consumer) || is_forgotten {
                    outbox = outbox.min(position - 1);
                }
                if is_of(&self.events, &consumer) || is_forgotten {
                    let by = format!("an event that {consumer} holds at position {position} (`outboxd dead-letters`)");
                    limit = limit.or(Limit { position: position - 1, why: Why::Held, by });
                }
            }
        }
        Ok((limit, outbox))
    }
}

impl Look {
    /// The same as far as it is lower by now. Runs in the transaction that moves events, and reads a row a consumer.
    pub fn lowered(&self, readers: &Readers, app: &Connection, foreign: Limit) -> Result<(Limit, i64), JobError> {
        let (limit, outbox) = readers.checkpoints(app, &self.states)?;
        let limit = self.limit.clone().or(limit).or(foreign);
        Ok((limit, self.outbox.min(outbox)))
    }
}
