//! SQL for a table read by row: which rows are pending, and the statements that mark what became of one.
//!
//! Every statement is guarded by what `pending` says, so that a row which the application changed meanwhile stays as it is.

use rusqlite::Connection;

use super::declared::{Declared, DeclaredRows, From, Literal, Mark, Pending, Take, Test, Word};
use super::fit::{literal, quoted};
use super::mapping::{Index, RowMapping};

/// The statements know `:row`, `:now`, `:error`.
pub fn row_mapping(declared: &Declared, rows: &DeclaredRows, column: &dyn Fn(&str) -> String) -> RowMapping {
    let From::Table { name: table, .. } = &declared.from else {
        unreachable!("config takes no query for a table that is marked");
    };
    let own = |name: &str| quoted(unaliased(name));
    let guard = predicate(&rows.pending, column);
    let rejected = rows.on_rejected.as_ref().and_then(|mark| left_by(mark, &own));
    let released = match rejected {
        Some(rejected) => format!("(({guard}) OR ({rejected}))"),
        None => guard.clone(),
    };
    let statements = |mark: &Mark, guard: &str| {
        let place = format!("WHERE o.{} = :row AND {guard}", own(&rows.row));
        let table = format!("{} AS o", quoted(table));
        match mark {
            Mark::Delete => vec![format!("DELETE FROM {table} {place}")],
            Mark::Archive(archive) => vec![
                format!("INSERT INTO {} SELECT * FROM {table} {place}", quoted(archive)),
                format!("DELETE FROM {table} {place}"),
            ],
            Mark::Set(columns) if columns.is_empty() => Vec::new(),
            Mark::Set(columns) => {
                let set: Vec<String> = columns
                    .iter()
                    .map(|(name, value)| format!("{} = {}", own(name), value_sql(value, &own(name), ":now")))
                    .collect();
                vec![format!("UPDATE {table} SET {} {place}", set.join(", "))]
            }
        }
    };
    let time = match &declared.time {
        Some(Take::Column { name, .. }) => Some(name),
        _ => None,
    };
    let mut order: Vec<String> = Vec::new();
    let mut walk = None;
    for name in &rows.order {
        let sql = column(name);
        if Some(name) == time {
            // Times are written as `2026-11-21 03:15:20` and as `2026-11-21T03:15:20`, even in one table.
            order.push(format!("CASE typeof({sql}) WHEN 'text' THEN replace({sql}, ' ', 'T') ELSE {sql} END"));
            walk = Some(sql);
        } else {
            order.push(sql);
        }
    }
    let delivered = match left_by(&rows.on_delivered, column) {
        Some(left) => Some(left),
        None => matches!(rows.on_delivered, Mark::Set(_)).then(|| format!("NOT ({guard})")),
    };
    RowMapping {
        pending: predicate(&rows.pending, column),
        order,
        walk,
        delivered,
        on_delivered: statements(&rows.on_delivered, &guard),
        on_released: statements(&rows.on_delivered, &released),
        on_retry: rows.on_retry.as_ref().map(|mark| statements(mark, &guard)).unwrap_or_default(),
        on_rejected: rows.on_rejected.as_ref().map(|mark| statements(mark, &guard)).unwrap_or_default(),
        on_dead_letter: rows.on_dead_letter.clone(),
        tested: compared(&rows.pending).into_iter().map(column).collect(),
        index: None,
        is_own_sql: matches!(rows.pending, Pending::Sql(_)),
    }
}

/// The table's own columns that `pending` compares with something.
fn compared(pending: &Pending) -> Vec<&str> {
    let Pending::All(tests) = pending else { return Vec::new() };
    let compares = |test: &Test| !matches!(test, Test::Null(_) | Test::Compare("<>", _));
    let own = tests.iter().filter(|(name, test)| compares(test) && !unaliased(name).contains('.'));
    own.map(|(name, _)| name.as_str()).collect()
}

/// The index by which pending rows are found in order: first what is asked for one value, then the time. Where neither is there, what
/// is compared will do. Other conditions go into the index's own.
pub fn index(rows: &DeclaredRows, walk: Option<&str>) -> Option<Index> {
    let tests = match &rows.pending {
        Pending::All(tests) => tests.as_slice(),
        Pending::Sql(sql) if sql == "true" => &[],
        Pending::Sql(_) => return None,
    };
    let own = |name: &str| quoted(unaliased(name));
    let (mut columns, mut only) = (Vec::new(), Vec::new());
    for (name, test) in tests.iter().filter(|(name, _)| !unaliased(name).contains('.')) {
        match test {
            Test::Null(true) => columns.push(own(name)),
            Test::In(values) if values.len() == 1 => columns.push(own(name)),
            // What the time of day decides can be no condition of an index.
            Test::Compare(_, Literal::Word(_)) => {}
            test => only.push(test_sql(&own(name), test)),
        }
    }
    columns.extend(walk.map(|walk| unaliased(walk).to_owned()));
    if columns.is_empty() {
        columns.extend(compared(&rows.pending).first().map(|name| own(name)));
        only.clear();
    }
    (!columns.is_empty()).then(|| Index { columns, only: (!only.is_empty()).then(|| only.join(" AND ")) })
}

/// A marked table's own column: `o.status` is `status`.
fn unaliased(name: &str) -> &str {
    name.strip_prefix("o.").unwrap_or(name)
}

fn predicate(pending: &Pending, column: &dyn Fn(&str) -> String) -> String {
    match pending {
        Pending::Sql(sql) => format!("({sql})"),
        Pending::All(tests) => {
            let tests: Vec<String> = tests.iter().map(|(name, test)| test_sql(&column(name), test)).collect();
            tests.join(" AND ")
        }
    }
}

/// The time of a comparison is asked of SQLite, since no statement that reads is told one.
const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

fn test_sql(column: &str, test: &Test) -> String {
    match test {
        Test::In(values) => {
            let values: Vec<String> = values.iter().map(|value| value_sql(value, column, NOW)).collect();
            match values.as_slice() {
                [one] => format!("{column} = {one}"),
                many => format!("{column} IN ({})", many.join(", ")),
            }
        }
        Test::Null(true) => format!("{column} IS NULL"),
        Test::Null(false) => format!("{column} IS NOT NULL"),
        Test::Compare("<>", value) => format!("{column} IS NOT {}", value_sql(value, column, NOW)),
        Test::Compare(operator, value) => format!("{column} {operator} {}", value_sql(value, column, NOW)),
    }
}

fn value_sql(value: &Literal, column: &str, now: &str) -> String {
    match value {
        Literal::Null => "NULL".into(),
        Literal::Integer(number) => number.to_string(),
        Literal::Real(number) => format!("{number:?}"),
        Literal::Text(text) => literal(text),
        Literal::Word(Word::Now) => now.into(),
        Literal::Word(Word::NowSpace) => "strftime('%Y-%m-%d %H:%M:%S', 'now')".into(),
        Literal::Word(Word::NowSeconds) => "CAST(strftime('%s', 'now') AS INTEGER)".into(),
        Literal::Word(Word::NowMillis) => "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)".into(),
        Literal::Word(Word::NowMicros) => "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)".into(),
        Literal::Word(Word::Error) => ":error".into(),
        Literal::Word(Word::Plus) => format!("coalesce({column}, 0) + 1"),
        Literal::Word(Word::Minus) => format!("coalesce({column}, 0) - 1"),
    }
}

/// The constants that a mark leaves in the row: by them a row is known as rejected.
pub fn left_by(mark: &Mark, own: &dyn Fn(&str) -> String) -> Option<String> {
    let Mark::Set(columns) = mark else { return None };
    let constants: Vec<String> = columns
        .iter()
        .filter(|(_, value)| !matches!(value, Literal::Word(_)))
        .map(|(name, value)| format!("{} IS {}", own(name), value_sql(value, &own(name), ":now")))
        .collect();
    (!constants.is_empty()).then(|| constants.join(" AND "))
}

/// Whether a mark changes what `pending` looks at, as far as that can be seen.
pub fn ends_pending(pending: &Pending, mark: &Mark) -> bool {
    match (pending, mark) {
        (Pending::All(tests), Mark::Set(columns)) => columns
            .iter()
            .any(|(name, _)| tests.iter().any(|(tested, _)| unaliased(tested).eq_ignore_ascii_case(unaliased(name)))),
        _ => true,
    }
}

/// An archive takes whole rows: it must have the table's columns, in their order.
pub fn archive_misfit(connection: &Connection, table: &str, rows: &DeclaredRows) -> rusqlite::Result<Option<String>> {
    let marks = [Some(&rows.on_delivered), rows.on_retry.as_ref(), rows.on_rejected.as_ref()];
    for mark in marks.into_iter().flatten() {
        let Mark::Archive(archive) = mark else { continue };
        let names = |table: &str| -> rusqlite::Result<Vec<String>> {
            let statement = connection.prepare(&format!("SELECT * FROM {} LIMIT 0", quoted(table)))?;
            Ok(statement.column_names().into_iter().map(str::to_lowercase).collect())
        };
        if names(archive)? != names(table)? {
            return Ok(Some(format!(
                "table {archive} has not the columns of {table}, in their order, and so rows cannot be copied into it. Remedy: \
                 CREATE TABLE {} AS SELECT * FROM {} WHERE 0, or the like",
                quoted(archive),
                quoted(table)
            )));
        }
    }
    Ok(None)
}
