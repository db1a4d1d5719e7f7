//! A feed: an AUTOINCREMENT table beside an application's table that has no safe position. An insert trigger fills it, in the
//! application's own transaction, with the key of every new row; so its positions are commit order.
//!
//! Invariants:
//! 1. Nothing is read while the trigger is not the one that [`make`] made, or a row is in the table, or its archive, and not in the feed.
//! 2. A key stands in the feed once: a row that is replaced moves to the end, as the new event that it is.
//! 3. Nothing that the application does can fail because of the trigger: it has no constraint that could be violated.
//!
//! Rows are looked for in slices of [`SLICE_ROWS`], each in a short read transaction.

mod make;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

pub use self::make::{Made, MakeError, Run, make};
use super::fit::{Misfit, quoted};

const SLICE_ROWS: usize = 2_000;
/// What is looked at in haste.
pub const NEWEST_ROWS: usize = 20_000;

/// How much of a table is compared with its feed before anything is read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// All of it.
    Whole,
    /// The newest rows, for who looks and sends nothing: about a second a million rows is too long to wait for.
    Newest,
}

/// A table that has a feed, or may have one.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// As the schema has it.
    pub table: String,
    /// What its rows are known by: the columns of its PRIMARY KEY, or of a UNIQUE index.
    pub key: Vec<KeyColumn>,
    /// The application's own archive, into which it moves rows.
    pub archive: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct KeyColumn {
    pub name: String,
    collation: String,
    may_be_null: bool,
}

type Found<T> = rusqlite::Result<Result<T, Misfit>>;

impl Feed {
    /// What the feed of this table is, whether it is there or not.
    pub fn of(connection: &Connection, table: &str, archive: Option<&str>) -> Found<Self> {
        let unusable = |what: String| Ok(Err(Misfit::Unusable(what)));
        let Some((table, kind)) = described(connection, table)? else {
            return Ok(Err(Misfit::NoTable(format!("there is no table {table} yet"))));
        };
        if kind != "table" {
            return unusable(format!(
                "{table} is a {kind}: no trigger can feed from it. Remedy: name the table beneath"
            ));
        }
        let archive = match archive {
            None => None,
            Some(archive) => match described(connection, archive)? {
                Some((archive, _)) => Some(archive),
                None => return Ok(Err(Misfit::NoTable(format!("there is no table {archive} yet")))),
            },
        };
        let Some(key) = key(connection, &table)? else {
            return unusable(format!(
                "table {table} has no key by which the feed could name a row (a rowid alone is given out anew by VACUUM). Remedy: make one \
                 of what the event is known by: CREATE UNIQUE INDEX {} ON {} (...)",
                quoted(&format!("{table}_event")),
                quoted(&table)
            ));
        };
        Ok(Ok(Self { table, key, archive }))
    }

    /// Its own name.
    pub fn name(&self) -> String {
        format!("outboxd_feed_{}", self.table)
    }

    pub fn trigger(&self) -> String {
        format!("{}_insert", self.name())
    }

    /// `key1, key2`.
    fn columns(&self) -> String {
        self.listed(|at, _| format!("key{at}"), ", ")
    }

    /// The same as they are made.
    fn declared_columns(&self) -> String {
        let collation = |column: &KeyColumn| match column.collation.as_str() {
            "BINARY" => String::new(),
            other => format!(" COLLATE {}", quoted(other)),
        };
        self.listed(|at, column| format!("key{at}{}", collation(column)), ", ")
    }

    fn listed(&self, each: impl Fn(usize, &KeyColumn) -> String, between: &str) -> String {
        let each: Vec<String> = self.key.iter().enumerate().map(|(at, column)| each(at + 1, column)).collect();
        each.join(between)
    }

    /// Table `alias`'s row is the one that the feed, called `f`, names.
    fn is_row(&self, alias: &str, operator: &str) -> String {
        self.listed(|at, column| format!("{alias}.{} {operator} f.key{at}", quoted(&column.name)), " AND ")
    }

    /// The expression for a column that the feed itself has.
    pub fn own_column(&self, name: &str) -> Option<String> {
        let at = self.key.iter().position(|column| column.name.eq_ignore_ascii_case(name))?;
        Some(format!("f.key{}", at + 1))
    }

    /// `FROM`: the feed `f`, the table `o` and, for rows that are not there any more, the archive `a`.
    pub fn from(&self) -> String {
        let mut from =
            format!("{} f LEFT JOIN {} o ON {}", quoted(&self.name()), quoted(&self.table), self.is_row("o", "="));
        if let Some(archive) = &self.archive {
            let missing = format!("o.{} IS NULL", quoted(&self.key[0].name));
            from.push_str(&format!(" LEFT JOIN {} a ON {missing} AND {}", quoted(archive), self.is_row("a", "=")));
        }
        from
    }

    /// The row is neither in the table nor in the archive.
    pub fn is_gone(&self) -> String {
        let first = quoted(&self.key[0].name);
        match self.archive {
            None => format!("o.{first} IS NULL"),
            Some(_) => format!("o.{first} IS NULL AND a.{first} IS NULL"),
        }
    }

    /// What a dead letter says of such a row.
    pub fn gone(&self) -> String {
        let Self { table, archive, .. } = self;
        let archive = archive.as_ref().map_or(String::new(), |archive| format!(" and not in {archive}"));
        format!(
            "its row is not in {table}{archive} any more: it was deleted before it was read (or its key holds a NULL). Rows may be deleted \
             up to the position in the view outboxd_safe_position"
        )
    }

    fn create_trigger(&self) -> String {
        format!(
            "CREATE TRIGGER {trigger} AFTER INSERT ON {table} BEGIN\n  DELETE FROM {feed} WHERE {same};\n  \
             INSERT INTO {feed} ({columns}) VALUES ({new});\nEND",
            trigger = quoted(&self.trigger()),
            table = quoted(&self.table),
            feed = quoted(&self.name()),
            same = self.listed(|at, column| format!("key{at} = NEW.{}", quoted(&column.name)), " AND "),
            columns = self.columns(),
            new = self.listed(|_, column| format!("NEW.{}", quoted(&column.name)), ", "),
        )
    }

    /// What was made, as far as it can be seen without looking at rows; otherwise what is wrong.
    pub fn check(&self, connection: &Connection) -> rusqlite::Result<Result<(), String>> {
        if described(connection, &self.name())?.is_none() {
            return Ok(Err(format!("table {} has no feed", self.table)));
        }
        let trigger = self.trigger_there(connection)?;
        Ok(match trigger {
            Some((on, sql)) if on.eq_ignore_ascii_case(&self.table) && sql == self.create_trigger() => Ok(()),
            Some((on, _)) => Err(format!(
                "trigger {} (on table {on}) is not the one that fills the feed of table {}",
                self.trigger(),
                self.table
            )),
            None => Err(format!(
                "trigger {} on table {} is gone, as after a migration that rebuilds the table",
                self.trigger(),
                self.table
            )),
        })
    }

    fn trigger_there(&self, connection: &Connection) -> rusqlite::Result<Option<(String, String)>> {
        connection
            .prepare_cached("SELECT tbl_name, sql FROM sqlite_schema WHERE type = 'trigger' AND name = ?1")?
            .query_row([self.trigger()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    /// How many rows are in the table, or the archive, and not in the feed.
    pub fn unfed(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let mut unfed = 0;
        for table in std::iter::once(&self.table).chain(&self.archive) {
            unfed += self.unfed_in(connection, table)?;
        }
        Ok(unfed)
    }

    /// The same of the newest rows, so many of each table; and of which tables there are more.
    pub fn unfed_newest(&self, connection: &Connection) -> rusqlite::Result<(u64, Vec<&str>)> {
        let (mut unfed, mut longer) = (0, Vec::new());
        for table in std::iter::once(&self.table).chain(&self.archive) {
            let keys = self.listed(|_, column| quoted(&column.name), ", ");
            let order = match connection.prepare(&format!("SELECT rowid FROM {} LIMIT 0", quoted(table))) {
                Ok(_) => "rowid DESC".to_owned(),
                Err(_) => self.listed(|_, column| format!("{} DESC", quoted(&column.name)), ", "),
            };
            let newest = format!("SELECT {keys} FROM {} ORDER BY {order} LIMIT {NEWEST_ROWS}", quoted(table));
            let sql = format!("SELECT count(*) FROM ({newest}) o WHERE {}", self.is_missing());
            unfed += connection.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64;
            let sql = format!("SELECT EXISTS (SELECT 1 FROM ({newest} OFFSET {NEWEST_ROWS}))");
            if connection.query_row(&sql, [], |row| row.get(0))? {
                longer.push(table.as_str());
            }
        }
        Ok((unfed, longer))
    }

    fn unfed_in(&self, connection: &Connection, table: &str) -> rusqlite::Result<u64> {
        let keys = self.listed(|_, column| format!("o.{}", quoted(&column.name)), ", ");
        let whole = self.listed(|_, column| format!("o.{} IS NOT NULL", quoted(&column.name)), " AND ");
        let holes = self.listed(|_, column| format!("o.{} IS NULL", quoted(&column.name)), " OR ");
        let (table, missing) = (quoted(table), self.is_missing());
        let mut unfed = 0;
        // A page is found by the key of the one before, and a NULL comes before nothing: such rows are counted apart.
        if self.key.iter().any(|column| column.may_be_null) {
            let sql = format!("SELECT count(*) FROM {table} o WHERE ({holes}) AND {missing}");
            unfed += connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0))? as u64;
        }
        let mut after: Vec<Value> = Vec::new();
        loop {
            let marks = vec!["?"; self.key.len()].join(", ");
            let place = if after.is_empty() { "1".to_owned() } else { format!("({keys}) > ({marks})") };
            let sql = format!(
                "SELECT {missing}, {keys} FROM {table} o WHERE {place} AND {whole} ORDER BY {keys} LIMIT {SLICE_ROWS}"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(after.iter()))?;
            let (mut seen, mut last) = (0, Vec::new());
            while let Some(row) = rows.next()? {
                seen += 1;
                unfed += u64::from(row.get::<_, bool>(0)?);
                if seen == SLICE_ROWS {
                    last = (1..=self.key.len()).map(|at| row.get(at)).collect::<Result<_, _>>()?;
                }
            }
            if seen < SLICE_ROWS {
                return Ok(unfed);
            }
            after = last;
        }
    }

    /// Of a row of `o`: the feed does not name it.
    fn is_missing(&self) -> String {
        format!("NOT EXISTS (SELECT 1 FROM {} f WHERE {})", quoted(&self.name()), self.is_row("o", "IS"))
    }

    /// How a person brings it about.
    pub fn remedy(&self, connection: &Connection) -> String {
        let archive = self.archive.as_ref().map_or(String::new(), |archive| format!(" --archive {archive}"));
        let file = connection.path().unwrap_or("FILE");
        format!("Remedy: `outboxd init --feed {}{archive} {file}`, then `outboxd resume`", self.table)
    }
}

/// Name and kind of a table or view.
fn described(connection: &Connection, name: &str) -> rusqlite::Result<Option<(String, String)>> {
    connection
        .prepare_cached(
            "SELECT name, CASE WHEN upper(sql) LIKE 'CREATE VIRTUAL%' THEN 'virtual table' ELSE type END FROM sqlite_schema \
             WHERE type IN ('table', 'view') AND name = ?1 COLLATE NOCASE",
        )?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// The columns of the PRIMARY KEY, or else of a UNIQUE index over whole columns.
fn key(connection: &Connection, table: &str) -> rusqlite::Result<Option<Vec<KeyColumn>>> {
    let index: Option<String> = connection
        .prepare_cached(
            "SELECT name FROM pragma_index_list(?1) l WHERE \"unique\" AND NOT partial \
             AND NOT EXISTS (SELECT 1 FROM pragma_index_xinfo(l.name) WHERE \"key\" AND cid < 0) \
             ORDER BY origin = 'pk' DESC, name LIMIT 1",
        )?
        .query_row([table], |row| row.get(0))
        .optional()?;
    // An INTEGER PRIMARY KEY has no index of its own.
    let primary: Vec<KeyColumn> = connection
        .prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?
        .query_map([table], |row| Ok(KeyColumn { name: row.get(0)?, collation: "BINARY".into(), may_be_null: false }))?
        .collect::<rusqlite::Result<_>>()?;
    let has_index: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk')",
        [table],
        |row| row.get(0),
    )?;
    if !primary.is_empty() && !has_index {
        return Ok(Some(primary));
    }
    let Some(index) = index else { return Ok(None) };
    let columns: Vec<KeyColumn> = connection
        .prepare_cached(
            "SELECT x.name, x.coll, NOT t.\"notnull\" FROM pragma_index_xinfo(?1) x \
             JOIN pragma_table_info(?2) t ON t.cid = x.cid WHERE x.\"key\" ORDER BY x.seqno",
        )?
        .query_map([&index, table], |row| {
            Ok(KeyColumn { name: row.get(0)?, collation: row.get(1)?, may_be_null: row.get(2)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(columns))
}
