//! A read model's tables compared with those that were made anew.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{copy, quoted};
use crate::event::Position;
use crate::projection::{Definition, tables};
use crate::sqlite::open;
use crate::sqlite::writer::JobError;
use crate::state::checkpoint;

/// Rows of a table that are shown.
const SHOWN_MAX: usize = 20;
/// What the live tables are called where they are compared.
const LIVE: &str = "outboxd_live_";

/// The rows that one of two has and the other has not.
#[derive(Debug, Default)]
pub struct Difference {
    pub table: String,
    /// As SQL literals, up to [`SHOWN_MAX`] of each.
    pub only_live: Vec<String>,
    pub only_rebuilt: Vec<String>,
    pub rows: u64,
}

/// Compares the tables of a file as they were at one moment with those that were made anew up to there.
pub struct Comparison<'a> {
    definition: &'a Definition,
    rebuilt: PathBuf,
}

impl<'a> Comparison<'a> {
    /// Copies the live tables as they are now beside the others: whoever writes there is kept from checkpoints for that long, and not for as
    /// long as comparing takes. Returns where the projection stands in them.
    pub fn begin(
        live: &Path,
        rebuilt: &Path,
        definition: &'a Definition,
    ) -> Result<(Self, Option<Position>), JobError> {
        let (from, to) = (open::visitor(live)?, open::state_file(rebuilt)?);
        to.execute_batch("BEGIN IMMEDIATE")?;
        let snapshot = from.unchecked_transaction()?;
        let position = checkpoint::load(&snapshot, &definition.name)?.map(|checkpoint| checkpoint.mark.position);
        tables::are_there(&snapshot, definition)?;
        for table in &definition.tables {
            // Without types: every value stays what it is.
            let columns = open::columns(&snapshot, table)?;
            let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
            let into = format!("{LIVE}{table}");
            to.execute_batch(&format!("CREATE TABLE {} ({})", quoted(&into), names.join(", ")))?;
            copy(&snapshot, &to, table, &into)?;
        }
        to.execute_batch("COMMIT")?;
        Ok((Self { definition, rebuilt: rebuilt.to_owned() }, position))
    }

    pub fn differences(&self) -> Result<Vec<Difference>, JobError> {
        let connection = open::visitor(&self.rebuilt)?;
        let mut differences = Vec::new();
        for table in &self.definition.tables {
            let columns: Vec<String> = open::columns(&connection, table)?.into_iter().map(|(name, _)| name).collect();
            let live = format!("{LIVE}{table}");
            let (only_live, few_live) = only(&connection, &columns, &live, table)?;
            let (only_rebuilt, few_rebuilt) = only(&connection, &columns, table, &live)?;
            let rows = few_live + few_rebuilt;
            if rows > 0 {
                differences.push(Difference { table: table.clone(), only_live, only_rebuilt, rows });
            }
        }
        Ok(differences)
    }
}

/// As literals, and how often each stands there: nothing is taken for the same that is not.
fn only(connection: &Connection, columns: &[String], here: &str, there: &str) -> Result<(Vec<String>, u64), JobError> {
    let literals: Vec<String> = columns.iter().map(|name| format!("quote({})", quoted(name))).collect();
    let literal = literals.join(" || ', ' || ");
    let rows =
        |table: &str| format!("SELECT {literal} AS line, count(*) AS times FROM {} GROUP BY line", quoted(table));
    let sql = format!("{} EXCEPT {} ORDER BY line", rows(here), rows(there));
    let mut statement = connection.prepare(&sql)?;
    let mut found = statement.query([])?;
    let (mut shown, mut count) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(row.get(0)?);
        }
    }
    Ok((shown, count))
}
