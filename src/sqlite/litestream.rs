//! Litestream beside a file: who copies the `-wal` owns the checkpoints.

use std::path::Path;

use rusqlite::Connection;

use super::place;
use crate::controls::{self, Protection};

/// Whether it is at work here, as far as its tables and its folder say.
pub fn is_there(connection: &Connection, path: &Path) -> rusqlite::Result<bool> {
    if controls::is_off(Protection::CheckpointOwner) {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name IN ('_litestream_seq', '_litestream_lock'))";
    let has_tables: bool = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(has_tables || place::folder_of(path).join(format!(".{name}-litestream")).is_dir())
}
