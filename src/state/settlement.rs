//! The recorded result of a batch: one value, applied in one transaction.

use std::sync::Arc;

use rusqlite::{Connection, ToSql};

use super::checkpoint::{self, Witnesses};
use super::copies;
use super::held::{self, HeldRow, HeldState};
use crate::clock;
use crate::controls::{self, Protection, Seam};
use crate::event::{Position, RowKey};
use crate::source::mapping::RowMapping;
use crate::source::reader::Mark;
use crate::sqlite::writer::JobError;
use crate::sqlite::{fault, open};

/// Everything that a settlement changes.
#[derive(Clone, Debug, Default)]
pub struct Settlement {
    pub consumer: Arc<str>,
    /// By checkpoint: from where to where.
    pub advance: Option<Advance>,
    /// By row: what became of which row.
    pub rows: Vec<(RowKey, RowMark)>,
    pub held: Vec<HeldChange>,
    /// How many events it records as delivered.
    pub delivered: u64,
    /// There is a dead-letter sink: it gets a copy of each event that dies.
    pub copies: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advance {
    pub from: Position,
    pub to: Mark,
    pub witnesses: Witnesses,
}

/// What is written into an application's row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowMark {
    Delivered,
    /// Delivered after it was held.
    Released,
    Retry(String),
    Rejected(String),
}

/// A change of the held rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeldChange {
    Insert(HeldRow),
    Update(HeldRow),
    Delete { key: Box<[u8]>, ordinal: i64 },
}

impl Settlement {
    pub fn is_empty(&self) -> bool {
        self.advance.is_none() && self.rows.is_empty() && self.held.is_empty()
    }

    /// Runs in the writer's transaction; changes nothing else than what it says.
    pub fn apply(&self, connection: &Connection, rows: Option<&RowMapping>) -> Result<(), JobError> {
        if let Some(advance) = &self.advance {
            checkpoint::advance(connection, &self.consumer, advance.from, &advance.to, &advance.witnesses)?;
        }
        for change in &self.held {
            match change {
                HeldChange::Insert(row) => held::insert(connection, &self.consumer, row)?,
                HeldChange::Update(row) => held::update(connection, &self.consumer, row)?,
                HeldChange::Delete { key, ordinal } => held::delete(connection, &self.consumer, key, *ordinal)?,
            }
            let died = |row: &&HeldRow| self.copies && matches!(row.state, HeldState::Dead | HeldState::Skipped);
            let (row, ordinal) = match change {
                HeldChange::Insert(row) => (Some(row), None),
                HeldChange::Update(row) => (Some(row), Some(row.ordinal)),
                HeldChange::Delete { .. } => (None, None),
            };
            if let Some(row) = row.filter(died) {
                copies::queue(connection, &self.consumer, &row.key, ordinal)?;
            }
        }
        if let Some(mapping) = rows {
            let now = clock::python_iso(clock::now_micros());
            for (key, mark) in &self.rows {
                mark_row(connection, mapping, &self.consumer, (key, mark), &now)?;
            }
        }
        Ok(())
    }
}

/// What the disk does is tried again; what a person wrote is for a person to mend.
fn of_a_person(error: JobError) -> JobError {
    match error {
        JobError::Sqlite(error) if !fault::classify(&error).0.passes() => JobError::Refused(format!(
            "what the source's `on_dead_letter` says could not be done: {error}. Nothing was passed over. Remedy: mend it, or leave \
             dead_letter_row out, then `outboxd resume`"
        )),
        error => error,
    }
}

fn mark_row(
    connection: &Connection,
    mapping: &RowMapping,
    consumer: &str,
    (key, mark): (&RowKey, &RowMark),
    now: &str,
) -> Result<(), JobError> {
    let (statements, error) = match mark {
        RowMark::Delivered => (&mapping.on_delivered, None),
        RowMark::Released => (&mapping.on_released, None),
        RowMark::Retry(error) => (&mapping.on_retry, Some(error)),
        RowMark::Rejected(error) => (&mapping.on_rejected, Some(error)),
    };
    let values = [(":row", key as &dyn ToSql), (":now", &now), (":error", &error), (":consumer", &consumer)];
    let run = |sql: &str| -> Result<(), JobError> {
        let mut statement = connection.prepare_cached(sql)?;
        for (name, value) in values {
            if let Some(index) = statement.parameter_index(name)? {
                statement.raw_bind_parameter(index, value)?;
            }
        }
        statement.raw_execute()?;
        Ok(())
    };
    let guarded = !controls::is_off(Protection::RowGuard);
    for sql in statements {
        run(if guarded { sql } else { sql.split(" AND ").next().unwrap_or(sql) })?;
    }
    if let (RowMark::Rejected(_), Some(sql)) = (mark, &mapping.on_dead_letter) {
        open::fenced(connection, |_| run(sql))?.map_err(of_a_person)?;
    }
    controls::reach(Seam::Mark);
    Ok(())
}
