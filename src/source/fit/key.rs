//! What SQLite promises of the column that names a row, and what is refused because it does not.

use rusqlite::{Connection, OptionalExtension};

use super::quoted;

/// What SQLite promises of a column.
pub struct Key {
    pub autoincrement: bool,
    /// It is the rowid, by a name that keeps it over VACUUM.
    integer_key: bool,
    unique: bool,
}

impl Key {
    pub fn of(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<Self> {
        let sql: Option<String> = connection
            .query_row(
                "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE",
                [table],
                |row| row.get(0),
            )
            .optional()?
            .flatten();
        let sql = sql.unwrap_or_default().to_uppercase();
        let integer_key: bool = connection.query_row(
            "SELECT count(*) = 1 AND max(name = ?2 COLLATE NOCASE AND upper(type) = 'INTEGER') \
             FROM pragma_table_info(?1) WHERE pk > 0",
            [table, column],
            |row| Ok(row.get::<_, Option<bool>>(0)?.unwrap_or(false)),
        )?;
        let integer_key = integer_key && !sql.contains("WITHOUT ROWID");
        let unique: bool = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) l WHERE l.\"unique\" AND NOT l.partial \
             AND (SELECT count(*) = 1 AND max(name = ?2 COLLATE NOCASE) FROM pragma_index_info(l.name)))",
            [table, column],
            |row| row.get(0),
        )?;
        Ok(Self { autoincrement: integer_key && sql.contains("AUTOINCREMENT"), integer_key, unique })
    }

    pub fn refusal_by_row(&self, table: &str, column: &str) -> Option<String> {
        (!self.integer_key && !self.unique).then(|| {
            format!(
                "{column} is not unique in table {table}, and a row is known by it when it is marked. Remedy: name a column with a \
                 PRIMARY KEY or a UNIQUE index, or make one: CREATE UNIQUE INDEX {} ON {} ({})",
                quoted(&format!("{table}_{column}")),
                quoted(table),
                quoted(column),
            )
        })
    }

    pub fn refusal_by_checkpoint(&self, table: &str, column: &str, allow_reused: bool) -> Option<String> {
        if self.autoincrement {
            return None;
        }
        if !allow_reused {
            return Some(format!(
                "table {table} has no AUTOINCREMENT key {column}: SQLite reuses the ids of deleted rows, and events behind a checkpoint \
                 would be passed over. Remedy: rebuild the table with INTEGER PRIMARY KEY AUTOINCREMENT; or, when the newest rows are \
                 never deleted, say allow_reused_positions = true"
            ));
        }
        let is_rowid = ["rowid", "_rowid_", "oid"].contains(&column.to_lowercase().as_str());
        (!self.integer_key && !self.unique && !is_rowid).then(|| {
            format!(
                "the position {column} is not unique in table {table}: events with one position could be cut apart, and the second \
                 be passed over. Remedy: CREATE UNIQUE INDEX {} ON {} ({})",
                quoted(&format!("{table}_{column}")),
                quoted(table),
                quoted(column),
            )
        })
    }
}
