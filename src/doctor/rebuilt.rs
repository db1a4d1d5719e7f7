//! The statements that make a table anew with AUTOINCREMENT: with its rows, indexes and triggers, in one transaction.

use rusqlite::{Connection, OptionalExtension};

use crate::source::fit::quoted;

const KEY: &str = "INTEGER PRIMARY KEY";

/// `None` where that is not a matter of one word: another kind of key, or generated columns.
pub(super) fn with_autoincrement(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    let Some(made) = connection.query_row(sql, [table], |row| row.get::<_, String>(0)).optional()? else {
        return Ok(None);
    };
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE hidden != 0)";
    let has_hidden: bool = connection.query_row(sql, [table], |row| row.get(0))?;
    let upper = made.to_ascii_uppercase();
    let (Some(at), false) = (upper.find(KEY), has_hidden || upper.matches(KEY).count() != 1) else { return Ok(None) };
    let made = format!("{} AUTOINCREMENT{}", &made[..at + KEY.len()], &made[at + KEY.len()..]);
    let sql = "SELECT sql FROM sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY rowid";
    let others: Vec<String> =
        connection.prepare(sql)?.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let (name, before) = (quoted(table), quoted(&format!("{table}_before")));
    let others: String = others.iter().map(|sql| format!("{sql}; ")).collect();
    // With the old way of renaming, what refers to the table goes on doing so by its name.
    Ok(Some(format!(
        "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON; BEGIN IMMEDIATE; ALTER TABLE {name} RENAME TO {before}; {made}; \
         INSERT INTO {name} SELECT * FROM {before}; DROP TABLE {before}; {others}COMMIT"
    )))
}
