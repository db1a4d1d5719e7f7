//! Values that are stored as another kind than their column declares: bytes where text is declared, text where numbers are. They do not
//! compare equal, sort apart, and an index does not find them.

use rusqlite::Connection;

use super::chart::Chart;
use super::sqlite3;
use crate::remark::Remark;
use crate::source::fit::quoted;

/// The newest rows of each table.
const ROWS: i64 = 1_000;
const TABLES_MAX: i64 = 100;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if chart.journal != "wal" {
        return Ok(vec![Remark::ok("not looked at: in this journal mode the application would have to wait for it")]);
    }
    // STRICT tables have no such values; those of others are none of the application's.
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT strict AND NOT wr \
               AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_litestream%' ESCAPE '\\' ORDER BY name LIMIT ?1";
    let names: Vec<String> =
        chart.connection.prepare(sql)?.query_map([TABLES_MAX], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut told = Vec::new();
    for table in &names {
        told.extend(of_table(chart, table)?);
    }
    if told.is_empty() {
        told.push(Remark::ok(format!("as declared, in the newest {ROWS} rows of {} tables", names.len())));
    }
    Ok(told)
}

/// What a column takes, by the rules of its affinity (https://sqlite.org/datatype3.html, 3.1), without `NULL`.
fn kinds(declared: &str) -> Option<&'static str> {
    let has = |word: &str| declared.contains(word);
    if has("INT") {
        Some("'integer'")
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Some("'text'")
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Some("'real', 'integer'")
    } else {
        // Dates, decimals and bytes are kept in many ways, all of them meant.
        None
    }
}

fn of_table(chart: &Chart<'_>, table: &str) -> rusqlite::Result<Vec<Remark>> {
    let columns = columns(&chart.connection, table)?;
    let counts: Vec<String> = columns
        .iter()
        .map(|(column, kinds)| {
            format!("sum(typeof({0}) NOT IN ({kinds}, 'null')), sum(typeof({0}) = 'blob')", quoted(column))
        })
        .collect();
    if counts.is_empty() {
        return Ok(Vec::new());
    }
    let name = quoted(table);
    let newest = format!("rowid > (SELECT max(rowid) - {ROWS} FROM {name})");
    let mut statement =
        chart.connection.prepare(&format!("SELECT {} FROM {name} WHERE {newest}", counts.join(", ")))?;
    let found: Vec<(i64, i64)> = statement.query_row([], |row| {
        let count = |at: usize| row.get::<_, Option<i64>>(at).map(Option::unwrap_or_default);
        (0..columns.len()).map(|at| Ok((count(2 * at)?, count(2 * at + 1)?))).collect()
    })?;
    let wrong = columns.iter().zip(found).filter(|(_, (others, _))| *others > 0);
    Ok(wrong.map(|((column, kinds), (others, blobs))| one(chart, table, column, kinds, others, blobs)).collect())
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, &'static str)>> {
    let sql = "SELECT name, upper(type) FROM pragma_table_info(?1)";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([table], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let known = rows.filter_map(|row| row.map(|(name, declared)| Some((name, kinds(&declared)?))).transpose());
    known.collect()
}

fn one(chart: &Chart<'_>, table: &str, column: &str, kinds: &str, others: i64, blobs: i64) -> Remark {
    let (name, column_name) = (quoted(table), quoted(column));
    let evidence = format!(
        "of the newest {ROWS} rows of {table}, {others} have in {column} something else than {}: it is not equal to what looks the same, and sorts apart",
        kinds.replace('\'', "")
    );
    if kinds == "'text'" && others == blobs {
        let sql = format!(
            "UPDATE {name} SET {column_name} = CAST({column_name} AS TEXT) WHERE typeof({column_name}) = 'blob'"
        );
        let remedy =
            "let the application bind text, not bytes; where the bytes are text (UTF-8), this makes text of them";
        return Remark::advice(evidence, remedy).with([sqlite3(chart.patient.path, &sql)]);
    }
    let sql = format!(
        "SELECT rowid, typeof({column_name}), {column_name} FROM {name} WHERE typeof({column_name}) NOT IN ({kinds}, 'null')"
    );
    let remedy = "let the application write what the column declares, and mend these rows; this shows them";
    Remark::advice(evidence, remedy).with([sqlite3(chart.patient.path, &sql)])
}

#[cfg(test)]
mod tests {
    use super::kinds;

    #[test]
    fn affinity_is_by_the_first_word_that_fits() {
        assert_eq!(kinds("BIGINT"), Some("'integer'"));
        assert_eq!(kinds("CHARINT"), Some("'integer'"));
        assert_eq!(kinds("VARCHAR(255)"), Some("'text'"));
        assert_eq!(kinds("DOUBLE PRECISION"), Some("'real', 'integer'"));
        assert!(["BLOB", "", "DATETIME", "DECIMAL(10,5)", "JSON"].iter().all(|declared| kinds(declared).is_none()));
    }
}
