//! `type = "retention"`: rows whose time is over are deleted, a few at a time.
//!
//! Invariants, named by tests in `tests/it/retention_takes_nothing_needed`:
//! 1. No row goes that a consumer has not passed (also one that has never started), that a held key, a dead letter or a replay still needs: asked in
//!    the transaction that deletes it (`random_histories_lose_nothing_that_is_needed`).
//! 2. Of a table that may give out a number again the newest row stays (`a_position_is_not_given_out_again`).
//! 3. The write lock is held for about a millisecond at a time; wherever a run ends, a row is there or gone (`a_crash_anywhere_deletes_rows_whole_or_not`).
//!
//! What goes: [`target`]. How: [`sweep`]. Where to start reading: [`Retention::sweep_all`].

mod keys;
mod sweep;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;

pub use self::keys::Retention as Keys;
use self::sweep::{Sweep, Tally};
use self::target::{Place, Target};
use super::readers::{Limit, Readers};
use super::snapshot::tables::Schema;
use super::{Context, Failure, Job, Report, Stop, archive};
use crate::clock;
use crate::source::{self, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::Writer;
use crate::telemetry::metric;

/// Which rows go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// Those of an outbox that are delivered.
    Published,
    /// What operators, and eventsource-py, have decided of dead letters.
    Resolved,
    /// The history of jobs.
    Runs,
    /// Events that were moved to the archive.
    Archived,
}

/// What a `[jobs.X]` section of this type comes to.
#[derive(Debug)]
pub struct Retention {
    name: String,
    what: What,
    source: source::Settings,
    schema: Option<Schema>,
    older_than: Option<Duration>,
    keep_newest: u64,
    readers: Readers,
}

/// Whether rows go, or are only counted.
enum Mode<'a> {
    Delete(&'a Context),
    Count(&'a Stop),
}

impl Mode<'_> {
    fn go_on(&self) -> Result<(), Failure> {
        match self {
            Mode::Delete(context) => context.go_on(),
            Mode::Count(stop) if stop.is_asked() => Err(Failure::Aborted),
            Mode::Count(_) => Ok(()),
        }
    }
}

impl Retention {
    fn unread(&self, error: &rusqlite::Error) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.source.path.display()))
    }

    fn refused(&self, what: &str) -> Failure {
        Failure::Data(format!("{}: {what}", self.source.path.display()))
    }

    fn open(&self) -> Result<Connection, Failure> {
        let connection = open::visitor(&self.source.path).map_err(|error| self.unread(&error))?;
        let finding = inspection::journal(&connection, &self.source.path).map_err(|error| self.unread(&error))?;
        finding.map_or(Ok(connection), |finding| Err(Failure::Data(finding.to_string())))
    }

    /// What says besides how far readers are.
    fn foreign(&self, app: &Connection) -> Result<Option<archive::Tables>, Failure> {
        let Some(schema) = self.schema.filter(|_| self.what == What::Archived) else { return Ok(None) };
        let tables = archive::Tables::of(schema, app).map_err(|error| self.unread(&error))?;
        tables.map(Some).map_err(|what| self.refused(&what))
    }

    fn sweep_all(&self, mode: &Mode<'_>) -> Result<Report, Failure> {
        let app = self.open()?;
        let foreign = self.foreign(&app)?.map(std::sync::Arc::new);
        let limit = |app: &Connection| foreign.as_ref().map_or(Ok(Limit::none()), |tables| tables.foreign_limit(app));
        let outbox = self.readers.look(&app, limit)?.outbox;
        let targets =
            Target::all(self.what, &self.source, self.schema, outbox, &app).map_err(|error| self.unread(&error))?;
        let mut tally = Tally::default();
        for target in targets.map_err(|what| self.refused(&what))? {
            let (state, writer): (_, Option<Writer>);
            let rows = match target.place {
                Place::Application => &app,
                Place::State if !self.source.state_path().exists() => continue,
                Place::State => {
                    state = open::visitor(&self.source.state_path()).map_err(|error| self.unread(&error))?;
                    &state
                }
            };
            writer = match (mode, target.place) {
                (Mode::Count(_), _) => None,
                (Mode::Delete(context), Place::Application) => Some(context.application(&self.source)?),
                (Mode::Delete(context), Place::State) => Some(context.home()?),
            };
            if open::columns(rows, &target.table).map_err(|error| self.unread(&error))?.is_empty() {
                continue;
            }
            let sweep = Sweep { job: self, app: &app, rows, target, foreign: foreign.clone(), mode, writer };
            sweep.run(&mut tally)?;
        }
        let is_done = matches!(mode, Mode::Delete(_));
        if is_done {
            tally.measure(&self.name);
        }
        tally.told(is_done)
    }

    /// What is younger stays.
    fn oldest(&self) -> Option<i64> {
        let age =
            |age: Duration| clock::now_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        self.older_than.map(age)
    }
}

impl Job for Retention {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        metric::rows_deleted(&self.name, 0);
        self.sweep_all(&Mode::Delete(context))
    }

    fn dry_run(&self, stop: &Stop) -> Result<Report, Failure> {
        self.sweep_all(&Mode::Count(stop))
    }
}
