//! Whether SQLite gives out each position once: AUTOINCREMENT, and where it has come to.

use rusqlite::{Connection, OptionalExtension};

use super::chart::{Chart, Table};
use super::{rebuilt, sqlite3};
use crate::remark::Remark;
use crate::source::fit::{literal, quoted};
use crate::source::mapping::Mapping;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    let mut told = Vec::new();
    for table in &chart.tables {
        told.push(match &table.fitted {
            Err(what) => unusable(chart, what)?,
            Ok((mapping, _)) => of_mapping(chart, table, mapping)?,
        });
    }
    Ok(told)
}

fn unusable(chart: &Chart<'_>, what: &str) -> rusqlite::Result<Remark> {
    let told = super::of_text(what, Remark::danger);
    let remedy = told.remedy.clone().unwrap_or_default();
    if let Some(at) = remedy.find("CREATE UNIQUE INDEX ") {
        return Ok(told.with([sqlite3(chart.patient.path, &remedy[at..])]));
    }
    let table = what.strip_prefix("table ").and_then(|rest| rest.split_once(" has no AUTOINCREMENT key "));
    match table.map(|(table, _)| rebuilt::with_autoincrement(&chart.connection, table)).transpose()?.flatten() {
        Some(sql) => Ok(told.with([sqlite3(chart.patient.path, &sql)])),
        None => Ok(told),
    }
}

fn of_mapping(chart: &Chart<'_>, table: &Table, mapping: &Mapping) -> rusqlite::Result<Remark> {
    let name = &mapping.table;
    if mapping.rows.is_some() {
        return Ok(Remark::ok(format!("rows of {name} are known by {}, which is unique", mapping.row)));
    }
    if mapping.newest.is_some() {
        let evidence = format!("SQLite may give out positions of {name} again, once its newest rows are deleted");
        return Ok(match table.preset.is_none() && table.allows_reuse {
            true => Remark::advice(
                format!("{evidence}; allow_reused_positions = true says that they never are"),
                "make the key INTEGER PRIMARY KEY AUTOINCREMENT, or see that its newest rows stay",
            ),
            false => Remark::ok(format!("{evidence}; its library does not")),
        });
    }
    let Some((given, newest)) = given_out(&chart.connection, name)? else {
        return Ok(Remark::ok(format!("AUTOINCREMENT: no position of {name} is given out twice")));
    };
    let evidence = format!(
        "sqlite_sequence has {} for {name}, whose newest row is {newest}: it was set back, and once the newest rows are deleted, their positions are \
         given out again and passed over",
        given.map_or("nothing".to_owned(), |given| given.to_string())
    );
    let name = literal(name);
    let sql = match given {
        Some(_) => format!("UPDATE sqlite_sequence SET seq = max(seq, {newest}) WHERE name = {name}"),
        None => format!(
            "INSERT INTO sqlite_sequence (name, seq) SELECT {name}, {newest} WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = {name})"
        ),
    };
    let remedy = "set it to the newest position that was ever given out, at least to this";
    Ok(Remark::danger(evidence, remedy).with([sqlite3(chart.patient.path, &sql)]))
}

/// Where `sqlite_sequence` stands, and the newest row, when that is newer.
fn given_out(connection: &Connection, table: &str) -> rusqlite::Result<Option<(Option<i64>, i64)>> {
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
    let given: Option<i64> = connection.query_row(sql, [table], |row| row.get(0)).optional()?;
    let sql = format!("SELECT coalesce(max(rowid), 0) FROM {}", quoted(table));
    let newest: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
    Ok((newest > given.unwrap_or(0)).then_some((given, newest)))
}
