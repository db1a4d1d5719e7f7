//! Foreign keys: whether the rows keep to them. That a connection has turned them on does not stand in the file.

use super::chart::Chart;
use super::sqlite3;
use crate::remark::Remark;
use crate::source::fit::{literal, quoted};

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if chart.journal != "wal" {
        return Ok(vec![Remark::ok("not looked at: in this journal mode the application would have to wait for it")]);
    }
    let sql = "SELECT count(*) FROM sqlite_schema s, pragma_foreign_key_list(s.name) WHERE s.type = 'table'";
    let declared: i64 = chart.connection.query_row(sql, [], |row| row.get(0))?;
    if declared == 0 {
        return Ok(vec![Remark::ok("no table declares foreign keys")]);
    }
    let sql =
        "SELECT \"table\", parent, count(*), count(rowid) FROM pragma_foreign_key_check GROUP BY 1, 2 ORDER BY 1, 2";
    let mut statement = chart.connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
    })?;
    let mut told = Vec::new();
    for row in rows {
        let (table, parent, count, named) = row?;
        let evidence = format!(
            "{count} rows of {table} refer to rows of {parent} that are not there: somebody writes without PRAGMA foreign_keys = ON, which SQLite \
             has off unless a connection says so"
        );
        let remedy = format!(
            "let every connection of the application begin with PRAGMA foreign_keys = ON; put back what is missing in {parent}, or, where these rows \
             of {table} are not needed, delete them"
        );
        let sql = format!(
            "DELETE FROM {} WHERE rowid IN (SELECT rowid FROM pragma_foreign_key_check({}) WHERE parent = {})",
            quoted(&table),
            literal(&table),
            literal(&parent)
        );
        let one = Remark::danger(evidence, remedy);
        told.push(if named == count { one.with([sqlite3(chart.patient.path, &sql)]) } else { one });
    }
    if told.is_empty() {
        told.push(Remark::ok(format!("{declared} are declared, and all rows keep to them")));
    }
    Ok(told)
}
