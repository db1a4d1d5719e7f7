//! A projection's tables: what makes them, and whether they are there.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::Definition;
use super::statement::{self, told};
use crate::controls::{self, Seam};
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::guard::Guard;
use crate::sqlite::open;
use crate::sqlite::writer::JobError;

/// Which of its tables stand in the file.
pub fn there(connection: &Connection, definition: &Definition) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    for table in definition.tables.iter().chain(&definition.views) {
        if !open::columns(connection, table)?.is_empty() {
            found.push(table.clone());
        }
    }
    Ok(found)
}

/// Makes the tables, in the caller's transaction.
pub fn make(connection: &Connection, guard: &Guard, definition: &Definition) -> Result<(), JobError> {
    let there = there(connection, definition)?;
    if let Some(table) = there.first() {
        return Err(JobError::Refused(format!(
            "{} has a table or view {table} already, and no checkpoint of {name} that would tell how far it has come. Remedy: rename or drop it, \
             or give the projection another file or other tables, then `outboxd resume {name}`; or have it replaced by `outboxd rebuild {name}`",
            definition.path.display(),
            name = definition.name,
        )));
    }
    run_schema(connection, guard, definition)?;
    controls::reach(Seam::Define);
    Ok(())
}

/// They were made, and stay: one that is gone would make of the rest something that nobody wants.
pub fn are_there(connection: &Connection, definition: &Definition) -> Result<(), JobError> {
    let there = there(connection, definition)?;
    let missing = definition.tables.iter().chain(&definition.views).find(|table| !there.contains(table));
    missing.map_or(Ok(()), |table| {
        Err(JobError::Refused(format!(
            "the table or view {table} of {} is not in {} any more, and its checkpoint is. Remedy: bring it back (from a backup of that file), or \
             make all of it anew with `outboxd rebuild {}`",
            definition.name,
            definition.path.display(),
            definition.name
        )))
    })
}

fn run_schema(connection: &Connection, guard: &Guard, definition: &Definition) -> Result<(), JobError> {
    let rules = Arc::new(definition.rules(true));
    guard.begin(rules.time_max);
    match guard.under(connection, &rules, || connection.execute_batch(&definition.schema))? {
        Ok(()) => Ok(()),
        Err(error) if matches!(fault::classify(&error).0, Kind::Sql | Kind::Stopped) => {
            let (at, reason) = told(&error, guard.denied());
            let at =
                at.map_or(String::new(), |(line, column)| format!(", line {line}, column {column} of the statement"));
            Err(JobError::Refused(format!("schema{at}: {reason}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The indexes and triggers that the schema makes, by name.
pub fn parts(definition: &Definition) -> Result<Vec<String>, JobError> {
    let scratch = open::scratch()?;
    run_schema(&scratch, &Guard::install(&scratch)?, definition)?;
    let sql = "SELECT name FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL";
    Ok(scratch.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Proves the statements in the file as it stands, and leaves it so; where the tables are not made yet, together with them.
pub fn try_on_file(definition: &Definition) -> Result<Vec<statement::Misfit>, JobError> {
    let connection = open::reader(&definition.path)?;
    let guard = Guard::install(&connection)?;
    if !there(&connection, definition)?.is_empty() {
        are_there(&connection, definition)?;
        return Ok(statement::prove(&connection, &guard, definition)?);
    }
    // Nothing can be made here: the schema of what it reads is made nowhere, and its own beside it.
    let scratch = open::scratch()?;
    for table in &definition.reads {
        let sql = "SELECT sql FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')";
        let sql: Option<String> = connection.query_row(sql, [table], |row| row.get(0)).optional()?;
        scratch.execute_batch(&sql.unwrap_or_default())?;
    }
    let guard = Guard::install(&scratch)?;
    run_schema(&scratch, &guard, definition)?;
    Ok(statement::prove(&scratch, &guard, definition)?)
}

/// What can be told of a definition without its file.
#[derive(Debug, Default)]
pub struct Tried {
    /// What is wrong with the schema.
    pub schema: Option<String>,
    /// The views that it makes.
    pub views: Vec<String>,
    /// Tables that are named, and not made.
    pub missing: Vec<String>,
}

/// Makes the tables nowhere, together with those of others in the same file.
pub fn try_schema(definition: &Definition) -> Tried {
    try_on_scratch(definition).unwrap_or_else(|error| Tried { schema: Some(error.to_string()), ..Tried::default() })
}

fn try_on_scratch(definition: &Definition) -> Result<Tried, JobError> {
    let scratch = open::scratch()?;
    let guard = Guard::install(&scratch)?;
    if let Err(error) = run_schema(&scratch, &guard, definition) {
        return Ok(Tried { schema: Some(error.to_string()), ..Tried::default() });
    }
    let mut tried = Tried::default();
    let mut objects =
        scratch.prepare("SELECT type, name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")?;
    let objects: Vec<(String, String, String)> =
        objects.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    let is_made =
        |table: &&String| objects.iter().any(|(kind, name, _)| kind == "table" && name.eq_ignore_ascii_case(table));
    tried.missing = definition.tables.iter().filter(|table| !is_made(table)).cloned().collect();
    let ours = |name: &str| name.to_lowercase().starts_with("outboxd_");
    if let Some((_, name, _)) = objects.iter().find(|(_, name, _)| ours(name)) {
        tried.schema = Some(format!("{name} cannot be made: names with outboxd_ are the daemon's own"));
    }
    if let Some((_, name, _)) = objects.iter().find(|(_, _, sql)| sql.to_lowercase().contains("deferred")) {
        tried.schema =
            Some(format!("{name} is deferred: what it forbids would fail at COMMIT, where no event could be named"));
    }
    tried.views = objects.into_iter().filter(|(kind, ..)| kind == "view").map(|(_, name, _)| name).collect();
    Ok(tried)
}

/// Proves the statements of one definition on the tables of all that share its file.
pub fn try_statements(definition: &Definition, neighbours: &[&Definition]) -> Result<Vec<statement::Misfit>, JobError> {
    let scratch = open::scratch()?;
    let guard = Guard::install(&scratch)?;
    for neighbour in neighbours {
        run_schema(&scratch, &guard, neighbour)?;
    }
    Ok(statement::prove(&scratch, &guard, definition)?)
}
