//! SQL that only calculates: on a connection to no file, with no table to read, under an authorizer that lets it do nothing else.

use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;

use super::open::{self, TimeLimit};

/// Table-valued functions that reach nothing but their arguments.
const JSON_TABLES: [&str; 2] = ["json_each", "json_tree"];
/// What gives another answer each time, or reaches out.
const FUNCTIONS_DENIED: [&str; 10] = [
    "load_extension",
    "fts3_tokenizer",
    "random",
    "randomblob",
    "changes",
    "total_changes",
    "last_insert_rowid",
    "current_date",
    "current_time",
    "current_timestamp",
];

/// A connection for SQL of a person's own that may calculate for so long at a time, with values up to so many bytes.
pub fn calculator(most: Duration, bytes_max: i32) -> rusqlite::Result<(Connection, TimeLimit)> {
    let connection = open::scratch()?;
    // Their first use makes them, which asks to write the schema.
    for table in JSON_TABLES {
        connection.prepare(&format!("SELECT count(*) FROM {table}('[]')"))?;
    }
    // A misspelt name in double quotes must be an error, not a string.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20)?;
    connection.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, 500)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes_max)?;
    connection.set_prepared_statement_cache_capacity(256);
    connection.authorizer(Some(|context: AuthContext<'_>| {
        let allowed = match context.action {
            AuthAction::Select | AuthAction::Recursive => true,
            // A name made by WITH belongs to no database.
            AuthAction::Read { table_name, .. } => context.database_name.is_none() || JSON_TABLES.contains(&table_name),
            AuthAction::Function { function_name } => {
                !FUNCTIONS_DENIED.contains(&function_name.to_lowercase().as_str())
            }
            _ => false,
        };
        if allowed { Authorization::Allow } else { Authorization::Deny }
    }))?;
    let limit = TimeLimit::of(&connection, most)?;
    Ok((connection, limit))
}
