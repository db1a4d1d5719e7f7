//! An open file, and the tables in it that are read, or could be.

use rusqlite::Connection;

use super::{LOOK_MAX, Patient};
use crate::config::preset;
use crate::source::declared::Declared;
use crate::source::fit::{self, Misfit};
use crate::source::mapping::Mapping;
use crate::source::plan::Plan;
use crate::source::reader::ReadFault;
use crate::sqlite::open::{self, TimeLimit};

pub(super) struct Chart<'a> {
    pub patient: Patient<'a>,
    pub connection: Connection,
    pub limit: TimeLimit,
    /// `wal`, ...
    pub journal: String,
    pub tables: Vec<Table>,
}

/// What a source reads, or could.
pub(super) struct Table {
    /// The preset, and what it reads.
    pub preset: Option<(&'static str, String)>,
    /// As it is declared; nothing of a query.
    named: String,
    pub allows_reuse: bool,
    /// Or why it cannot be read, with the remedy.
    pub fitted: Result<(Mapping, Plan), String>,
}

impl<'a> Chart<'a> {
    pub fn of(patient: &Patient<'a>) -> rusqlite::Result<Self> {
        let connection = open::visitor(patient.path)?;
        let limit = TimeLimit::of(&connection, LOOK_MAX)?;
        limit.begin();
        let journal = open::journal_mode(&connection)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let tables = tables(patient)?;
        Ok(Self { patient: *patient, connection, limit, journal, tables })
    }

    /// The presets that fit.
    pub fn readable(&self) -> Vec<(&'static str, String)> {
        self.tables.iter().filter(|table| table.fitted.is_ok()).filter_map(|table| table.preset.clone()).collect()
    }
}

/// SQL of a person's own runs on a connection of its own, which takes nothing but what reads.
fn tables(patient: &Patient<'_>) -> rusqlite::Result<Vec<Table>> {
    let connection = open::visitor(patient.path)?;
    open::restrict(&connection)?;
    let limit = TimeLimit::of(&connection, LOOK_MAX)?;
    let mut tables = Vec::new();
    if let Some(source) = patient.source {
        limit.begin();
        tables.extend(table(&connection, &source.tables, None)?);
        return Ok(tables);
    }
    for (preset, read, declared) in preset::all() {
        limit.begin();
        let found = table(&connection, &declared, Some((preset, read)))?;
        // Another library's table of that name is none of this preset.
        let is_foreign = |what: &String| what.starts_with("there is no column");
        tables.extend(found.filter(|found| !found.fitted.as_ref().is_err_and(is_foreign)));
    }
    let fit: Vec<String> =
        tables.iter().filter(|table| table.fitted.is_ok()).map(|table| table.named.clone()).collect();
    // What one preset reads is not asked to fit another one, too.
    tables.retain(|table| table.fitted.is_ok() || !fit.contains(&table.named));
    Ok(tables)
}

/// `None`: there is no such table.
fn table(
    connection: &Connection,
    declared: &[Declared],
    preset: Option<(&'static str, String)>,
) -> rusqlite::Result<Option<Table>> {
    let fitted = match fit::mapping(connection, declared)? {
        Err(Misfit::NoTable(_)) if preset.is_some() => return Ok(None),
        Err(Misfit::NoTable(what)) => {
            Err(format!("{what}. Remedy: let the application make it; `outboxd run` waits for it"))
        }
        Err(Misfit::Unusable(what)) => Err(what),
        Ok(mapping) => match Plan::of(connection, &mapping) {
            Ok(plan) => Ok((mapping, plan)),
            Err(ReadFault::Sqlite(error)) => return Err(error),
            Err(ReadFault::Halt(halt)) => Err(halt.detail),
        },
    };
    let allows_reuse = declared.iter().any(|declared| declared.allow_reused_positions);
    let named = declared.first().and_then(|declared| declared.from.table()).unwrap_or_default().to_owned();
    Ok(Some(Table { preset, named, allows_reuse, fitted }))
}
