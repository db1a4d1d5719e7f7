//! Making a feed, or mending one: in one transaction, and only what is missing.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::{Feed, described};
use crate::source::fit::{Misfit, quoted};
use crate::sqlite::open::{self, Durable};

const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Whether anything is to be made, or only said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Make,
    Say,
}

/// What was made, or would be.
#[derive(Debug)]
pub struct Made {
    pub feed: Feed,
    pub statements: Vec<String>,
    /// How many rows were put into the feed.
    pub rows: u64,
}

impl Made {
    /// What takes it back.
    pub fn undo(&self) -> [String; 2] {
        [format!("DROP TRIGGER {}", quoted(&self.feed.trigger())), format!("DROP TABLE {}", quoted(&self.feed.name()))]
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("{0}")]
    Unfit(String),
    #[error("the feed cannot be made")]
    Sqlite(#[from] rusqlite::Error),
}

/// Makes the feed of a table; the rows that are there go in first, those of the archive before all others.
pub fn make(path: &Path, table: &str, archive: Option<&str>, run: Run) -> Result<Made, MakeError> {
    if run == Run::Say {
        return plan(&open::reader(path)?, table, archive);
    }
    let mut connection = open::writer(path, Durable::Full)?;
    connection.busy_timeout(LOCK_WAIT)?;
    connection.execute_batch("PRAGMA cache_size = -64000")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let made = plan(&transaction, table, archive)?;
    for statement in &made.statements {
        transaction.execute_batch(statement)?;
    }
    transaction.commit()?;
    Ok(made)
}

fn plan(connection: &Connection, table: &str, archive: Option<&str>) -> Result<Made, MakeError> {
    let feed = match Feed::of(connection, table, archive)? {
        Ok(feed) => feed,
        Err(Misfit::NoTable(what) | Misfit::Unusable(what)) => return Err(MakeError::Unfit(what)),
    };
    let name = quoted(&feed.name());
    let is_there = described(connection, &feed.name())?.is_some();
    let mut statements = Vec::new();
    if is_there {
        let sql = format!("SELECT position, {} FROM {name}", feed.columns());
        if let Err(error) = connection.prepare(&sql) {
            return Err(MakeError::Unfit(format!(
                "table {} is there, and is not the feed of a table with this key ({error}). Remedy: DROP it, and choose anew where its \
                 relays go on (`outboxd position set`)",
                feed.name()
            )));
        }
    } else {
        if feed.has_safe_position(connection)? {
            return Err(MakeError::Unfit(format!(
                "table {table} has an AUTOINCREMENT key and needs no feed. Remedy: name that key as the `position`"
            )));
        }
        let columns = feed.declared_columns();
        statements.push(format!("CREATE TABLE {name} (position INTEGER PRIMARY KEY AUTOINCREMENT, {columns})"));
    }
    let (inserts, rows) = missing_rows(connection, &feed, is_there)?;
    statements.extend(inserts);
    if !is_there {
        // An index that is made of all rows at once costs a fraction.
        let index = quoted(&format!("{}_key", feed.name()));
        statements.push(format!("CREATE INDEX {index} ON {name} ({})", feed.columns()));
    }
    if feed.check(connection)?.is_err() {
        if feed.trigger_there(connection)?.is_some() {
            statements.push(format!("DROP TRIGGER {}", quoted(&feed.trigger())));
        }
        statements.push(feed.create_trigger());
    }
    Ok(Made { feed, statements, rows })
}

/// The statements that feed what is not in the feed, and how many rows that is.
fn missing_rows(connection: &Connection, feed: &Feed, is_there: bool) -> Result<(Vec<String>, u64), MakeError> {
    let name = quoted(&feed.name());
    let keys = feed.listed(|_, column| format!("o.{}", quoted(&column.name)), ", ");
    let (mut inserts, mut rows) = (Vec::new(), 0);
    for table in feed.archive.iter().chain([&feed.table]) {
        let missing = match &feed.archive {
            _ if is_there => feed.is_missing(),
            // A row may stand in both.
            Some(archive) if table != archive => {
                let same = feed.listed(|_, column| format!("a.{0} IS o.{0}", quoted(&column.name)), " AND ");
                format!("NOT EXISTS (SELECT 1 FROM {} a WHERE {same})", quoted(archive))
            }
            _ => "1".to_owned(),
        };
        let from = format!("FROM {} o WHERE {missing}", quoted(table));
        let count: i64 = connection.query_row(&format!("SELECT count(*) {from}"), [], |row| row.get(0))?;
        if count > 0 {
            rows += count as u64;
            let without_rowid = connection.prepare(&format!("SELECT rowid FROM {} LIMIT 0", quoted(table))).is_err();
            let order = if without_rowid { keys.as_str() } else { "o.rowid" };
            inserts.push(format!("INSERT INTO {name} ({}) SELECT {keys} {from} ORDER BY {order}", feed.columns()));
        }
    }
    Ok((inserts, rows))
}

impl Feed {
    fn has_safe_position(&self, connection: &Connection) -> rusqlite::Result<bool> {
        connection.query_row(
            "SELECT upper(sql) LIKE '%AUTOINCREMENT%' FROM sqlite_schema WHERE type = 'table' AND name = ?1",
            [&self.table],
            |row| row.get(0),
        )
    }
}
