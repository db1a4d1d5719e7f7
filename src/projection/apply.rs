//! Runs a projection's statements for the events of a flight, in a transaction that is the caller's.
//!
//! On the good path there is no savepoint, whose journal takes a copy of every page that is changed: when an event fails, the transaction is rolled
//! back, and all is done once more with a savepoint an event. Statements run one by one, so that the event that failed is known, and nothing has
//! to be searched for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ffi};

use super::statement::{Field, Place, told};
use super::{Definition, EVERY_TYPE};
use crate::controls::{self, Seam};
use crate::event::{Event, Reason, Rejection};
use crate::sink::{Fault, Flight, Outcome};
use crate::source::filter::Filter;
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::guard::{Guard, Rules};

/// What runs for which type.
#[derive(Debug)]
pub struct Applier {
    definition: Arc<Definition>,
    rules: Arc<Rules>,
    ignored: Option<Filter>,
    statements: Vec<(Place, String)>,
    by_type: HashMap<String, Vec<usize>>,
    /// For types that are not named.
    otherwise: Vec<usize>,
}

/// A flight of which the events that failed are known.
pub struct Applied {
    pub outcomes: Vec<Outcome>,
    /// Events of types that nothing handles.
    pub unhandled: BTreeMap<String, u64>,
}

/// What is not tried behind an event that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    None,
    OfItsKey,
    All,
}

/// What is done about an event that fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Care {
    /// Nothing: whatever fails takes all of the flight with it.
    Quick,
    /// It alone leaves no trace. These events ended the transaction before.
    Guarded(HashMap<usize, Rejection>),
}

/// Why a flight was not applied.
pub enum Stopped {
    /// An event failed: the transaction has to be rolled back, and all of it done again with care.
    Half,
    /// The file is away.
    Sqlite(rusqlite::Error),
    /// The statements do not fit the tables any more.
    Misfit(Fault),
    /// An event's SQL ended the transaction.
    Ended(usize, Rejection),
}

impl From<rusqlite::Error> for Stopped {
    fn from(error: rusqlite::Error) -> Self {
        Stopped::Sqlite(error)
    }
}

enum Failed {
    Event(Rejection),
    All(Stopped),
}

/// A statement that is ready to run, and the values that it wants.
struct Ready<'c> {
    statement: CachedStatement<'c>,
    wanted: Vec<(usize, Field)>,
}

impl Applier {
    pub fn new(definition: Arc<Definition>) -> Self {
        let (mut statements, mut by_type) = (Vec::new(), HashMap::<String, Vec<usize>>::new());
        for (place, sql) in super::statement::all(&definition) {
            by_type.entry(place.kind.clone()).or_default().push(statements.len());
            statements.push((place, sql.to_owned()));
        }
        let otherwise = by_type.remove(EVERY_TYPE).unwrap_or_default();
        by_type.values_mut().for_each(|own| own.extend(&otherwise));
        let (rules, ignored) = (Arc::new(definition.rules(false)), definition.ignored());
        Self { definition, rules, ignored, statements, by_type, otherwise }
    }

    /// Applies what can be applied; with care, everything else has left no trace.
    pub fn apply(
        &self,
        connection: &Connection,
        guard: &Guard,
        flight: &Flight,
        care: &Care,
        waits: Waits,
    ) -> Result<Applied, Stopped> {
        let mut run = Run { applier: self, connection, guard, ready: Vec::new(), unhandled: BTreeMap::new() };
        run.ready.resize_with(self.statements.len(), || None);
        match care {
            Care::Quick => run.at_once(flight),
            Care::Guarded(refused) => run.one_by_one(flight, refused, waits),
        }
    }
}

struct Run<'c, 'a> {
    applier: &'a Applier,
    connection: &'c Connection,
    guard: &'a Guard,
    ready: Vec<Option<Ready<'c>>>,
    unhandled: BTreeMap<String, u64>,
}

impl Run<'_, '_> {
    fn at_once(mut self, flight: &Flight) -> Result<Applied, Stopped> {
        let (rules, guard, connection) = (self.applier.rules.clone(), self.guard, self.connection);
        let all = guard.under(connection, &rules, || {
            (0..flight.len()).try_for_each(|slot| self.event(&flight.event(slot)).map_err(|failed| (slot, failed)))
        })?;
        match all {
            Ok(()) => Ok(Applied { outcomes: vec![Outcome::Delivered; flight.len()], unhandled: self.unhandled }),
            Err((_, Failed::All(stopped))) => Err(stopped),
            Err((slot, Failed::Event(rejection))) if connection.is_autocommit() => Err(Stopped::Ended(slot, rejection)),
            Err((_, Failed::Event(_))) => Err(Stopped::Half),
        }
    }

    fn one_by_one(
        mut self,
        flight: &Flight,
        refused: &HashMap<usize, Rejection>,
        waits: Waits,
    ) -> Result<Applied, Stopped> {
        let mut outcomes = Vec::with_capacity(flight.len());
        let mut held = HashSet::new();
        for slot in 0..flight.len() {
            let event = flight.event(slot);
            // What is released together was held by one key, whatever its events say now.
            let key = if waits == Waits::All { Default::default() } else { event.hold_key() };
            if held.contains(key.as_ref()) {
                outcomes.push(Outcome::Behind);
                continue;
            }
            let rejection = match refused.get(&slot) {
                Some(rejection) => Some(rejection.clone()),
                None => self.in_savepoint(slot, &event)?,
            };
            if rejection.is_some() && waits != Waits::None {
                held.insert(key.into_owned());
            }
            outcomes.push(rejection.map_or(Outcome::Delivered, Outcome::Rejected));
        }
        Ok(Applied { outcomes, unhandled: self.unhandled })
    }

    fn in_savepoint(&mut self, slot: usize, event: &Event<'_>) -> Result<Option<Rejection>, Stopped> {
        self.connection.prepare_cached("SAVEPOINT event")?.execute([])?;
        let rules = self.applier.rules.clone();
        let (guard, connection) = (self.guard, self.connection);
        let rejection = match guard.under(connection, &rules, || self.event(event))? {
            Ok(()) => None,
            Err(Failed::All(stopped)) => return Err(stopped),
            Err(Failed::Event(rejection)) if self.connection.is_autocommit() => {
                return Err(Stopped::Ended(slot, rejection));
            }
            Err(Failed::Event(rejection)) => {
                self.connection.prepare_cached("ROLLBACK TO event")?.execute([])?;
                Some(rejection)
            }
        };
        self.connection.prepare_cached("RELEASE event")?.execute([])?;
        Ok(rejection)
    }

    fn event(&mut self, event: &Event<'_>) -> Result<(), Failed> {
        let applier = self.applier;
        if applier.ignored.as_ref().is_some_and(|ignored| ignored.admits(event.kind)) {
            return Ok(());
        }
        let statements = applier.by_type.get(event.kind).unwrap_or(&applier.otherwise);
        if statements.is_empty() {
            match self.unhandled.get_mut(event.kind) {
                Some(count) => *count += 1,
                None => drop(self.unhandled.insert(event.kind.to_owned(), 1)),
            }
            return Ok(());
        }
        for index in statements {
            self.run(*index, event)?;
        }
        controls::reach(Seam::Apply);
        Ok(())
    }

    fn run(&mut self, index: usize, event: &Event<'_>) -> Result<(), Failed> {
        let (place, sql) = &self.applier.statements[index];
        let ready = match &mut self.ready[index] {
            Some(ready) => ready,
            empty => match Ready::of(self.connection, sql) {
                Ok(ready) => empty.insert(ready),
                Err(error) => return Err(self.unprepared(place, &error)),
            },
        };
        self.guard.begin(self.applier.rules.time_max);
        match ready.run(event) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(place, sql, &error)),
        }
    }

    fn unprepared(&self, place: &Place, error: &rusqlite::Error) -> Failed {
        match is_of_the_file(error) {
            Some(stopped) => Failed::All(stopped),
            None => Failed::All(Stopped::Misfit(self.misfit(place, error))),
        }
    }

    fn misfit(&self, place: &Place, error: &rusqlite::Error) -> Fault {
        let (_, reason) = told(error, self.guard.denied());
        Fault::fatal(format!(
            "{} does not fit {} any more: {place}: {reason}. Remedy: bring the table back as the section's `schema` makes it, or make them anew",
            self.applier.definition.name,
            self.applier.definition.path.display()
        ))
    }

    fn failed(&self, place: &Place, sql: &str, error: &rusqlite::Error) -> Failed {
        if let Some(stopped) = is_of_the_file(error) {
            return Failed::All(stopped);
        }
        let (kind, code) = fault::classify(error);
        // It may be that the schema has changed since the statement was prepared: then no event is to blame.
        if matches!(code & 0xff, ffi::SQLITE_ERROR | ffi::SQLITE_AUTH | ffi::SQLITE_SCHEMA)
            && let Err(error) = self.connection.prepare(sql)
        {
            return self.unprepared(place, &error);
        }
        let reason = match kind {
            Kind::Stopped => format!("it ran for longer than {:?}", self.applier.rules.time_max),
            _ => told(error, None).1,
        };
        Failed::Event(Rejection::new(Reason::ProjectionError, format!("{place}: {reason}")))
    }
}

/// Errors that are about no statement and no event.
fn is_of_the_file(error: &rusqlite::Error) -> Option<Stopped> {
    let again = || rusqlite::Error::SqliteFailure(ffi::Error::new(fault::classify(error).1), Some(told(error, None).1));
    match fault::classify(error).0 {
        Kind::Busy | Kind::Storage | Kind::CannotOpen => Some(Stopped::Sqlite(again())),
        Kind::Permission | Kind::Corrupt => {
            let text =
                format!("the read model cannot be written: {error}. Remedy: mend its rights, or restore the file");
            Some(Stopped::Misfit(Fault::fatal(text)))
        }
        Kind::Stopped | Kind::Sql => None,
    }
}

impl<'c> Ready<'c> {
    fn of(connection: &'c Connection, sql: &str) -> rusqlite::Result<Self> {
        let statement = connection.prepare_cached(sql)?;
        let mut wanted = Vec::new();
        for (name, field) in Field::ALL {
            wanted.extend(statement.parameter_index(name)?.map(|index| (index, field)));
        }
        Ok(Self { statement, wanted })
    }

    fn run(&mut self, event: &Event<'_>) -> rusqlite::Result<()> {
        for (index, field) in &self.wanted {
            let value: ValueRef<'_> = field.of(event);
            self.statement.raw_bind_parameter(*index, ToSqlOutput::Borrowed(value))?;
        }
        self.statement.raw_execute().map(drop)
    }
}
