//! How SQLite will read the table: a scan or a sort for every batch is told, with the statement that makes the missing index.

use rusqlite::Connection;

use super::fit::quoted;
use super::listing::{self, ALL_PENDING, Way};
use super::mapping::{Mapping, RowMapping};
use super::reader::ReadFault;
use crate::sqlite::open;

/// `EXPLAIN QUERY PLAN`, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    pub steps: Vec<String>,
    /// Each with its remedy.
    pub warnings: Vec<String>,
}

impl Plan {
    pub fn of(connection: &Connection, mapping: &Mapping) -> Result<Self, ReadFault> {
        let (steps, own) = match &mapping.rows {
            None => {
                let row = &mapping.row;
                let sql = mapping.select(0, &format!("{row} > 0"), &format!("ORDER BY {row} LIMIT 1000"));
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let steps: Vec<String> = statement.query_map([], |row| row.get(3))?.collect::<Result<_, _>>()?;
                let slow = match steps.iter().find(|step| is_slow(step)) {
                    Some(step) => Some(slow_position(connection, step, mapping)?),
                    None => None,
                };
                (steps, slow)
            }
            Some(rows) => {
                let (way, steps) = listing::way(connection, mapping)?;
                let slow = slow_rows(way, mapping, rows);
                (steps, slow)
            }
        };
        let joined = steps.iter().filter_map(|step| index_made_each_time(step));
        let warnings = own.into_iter().chain(joined).collect();
        Ok(Self { steps, warnings })
    }
}

/// It reads or sorts everything.
fn is_slow(step: &str) -> bool {
    (step.starts_with("SCAN") && !step.contains("CONSTANT ROW")) || step.contains("TEMP B-TREE FOR ORDER BY")
}

fn slow_position(connection: &Connection, step: &str, mapping: &Mapping) -> rusqlite::Result<String> {
    let what = format!("every batch reads all of it ({step})");
    let Some(archive) = &mapping.archive else {
        let index = create_index(&mapping.table, "position", std::slice::from_ref(&mapping.row), None);
        return Ok(format!("{what}. Remedy: see that the position is the table's own key, or {index}"));
    };
    // Columns of another kind in each keep SQLite from searching the two as one.
    let archived = open::columns(connection, archive)?;
    for (name, kind) in open::columns(connection, &mapping.table)? {
        let other = archived.iter().find(|(other, _)| other.eq_ignore_ascii_case(&name));
        if let Some((_, other)) = other.filter(|(_, other)| *other != kind && mapping.from.contains(&quoted(&name))) {
            return Ok(format!(
                "{what}: {name} is {} in {} and {} in {archive}. Remedy: make {archive} with the same types of columns",
                typed(&kind),
                mapping.table,
                typed(other)
            ));
        }
    }
    let is_archive = step.split_whitespace().nth(1).is_some_and(|named| named.eq_ignore_ascii_case(archive));
    let table = if is_archive { archive } else { &mapping.table };
    let index = create_index(table, "position", std::slice::from_ref(&mapping.row), None);
    Ok(format!("{what}. Remedy: see that the position is the own key of {table}, or {index}"))
}

fn typed(kind: &str) -> &str {
    if kind.is_empty() { "without a type" } else { kind }
}

fn slow_rows(way: Way, mapping: &Mapping, rows: &RowMapping) -> Option<String> {
    let what = match way {
        Way::ByTime => return None,
        Way::ByIndex if rows.walk.is_none() => return None,
        Way::Whole if rows.pending == ALL_PENDING => return None,
        Way::ByIndex => {
            "every look for pending rows sorts all of them, since no index brings them in the declared order"
        }
        Way::Whole => "every look for pending rows reads the whole table, since no index finds them in order",
    };
    let remedy = match &rows.index {
        Some(index) => create_index(&mapping.table, "pending", &index.columns, index.only.as_deref()),
        None if rows.is_own_sql => {
            "an index over what `pending_sql` asks of, best CREATE INDEX ... WHERE with the same words, or say `pending`".to_owned()
        }
        None => "let `pending` ask for a value of a column, such as status = \"new\", and make an index of that".to_owned(),
    };
    Some(format!("{what}. Remedy: {remedy}"))
}

fn create_index(table: &str, name: &str, columns: &[String], only: Option<&str>) -> String {
    let only = only.map_or(String::new(), |only| format!(" WHERE {only}"));
    let name = quoted(&format!("{table}_{name}"));
    format!("CREATE INDEX {name} ON {} ({}){only}", quoted(table), columns.join(", "))
}

fn index_made_each_time(step: &str) -> Option<String> {
    if !step.contains("AUTOMATIC") {
        return None;
    }
    let column = step.split_once('(').map_or("...", |(_, rest)| rest.split(['=', '>', '<']).next().unwrap_or(rest));
    let joined = step.split_whitespace().nth(1).unwrap_or("...");
    Some(format!(
        "every batch builds an index over {joined}, to find rows in it by {column}. Remedy: CREATE INDEX {} ON {joined} ({})",
        quoted(&format!("{joined}_{column}")),
        quoted(column)
    ))
}
