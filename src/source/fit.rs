//! What is declared, fitted to a file as it is: names are looked up, SQL is made, and what could lose events is refused.
//!
//! Of several declarations (a preset's, for the generations of its tables) the first fits whose every name is there.

mod key;
mod maker;

use rusqlite::Connection;

use self::key::Key;
use self::maker::Maker;
use super::declared::{Declared, From};
use super::feed::Feed;
use super::mapping::Mapping;
use super::marking;
use crate::controls::{self, Protection};
use crate::sqlite::open;

/// Why a declaration does not fit the file (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The table is not there; the application may be about to make it.
    NoTable(String),
    /// The table is there and cannot be used: what is wrong, and the remedy.
    Unusable(String),
}

type Fitted<T> = rusqlite::Result<Result<T, Misfit>>;

/// The first declaration that fits.
pub fn mapping(connection: &Connection, declared: &[Declared]) -> Fitted<Mapping> {
    let mut misfits = Vec::new();
    for declared in declared {
        match fit(connection, declared)? {
            Ok(mapping) => return Ok(refused(connection, declared)?.map(|()| mapping)),
            Err(misfit) => misfits.push(misfit),
        }
    }
    // The table itself is missing, or only what the newest generation has.
    let unusable = misfits.iter().position(|misfit| matches!(misfit, Misfit::Unusable(_)));
    Ok(Err(misfits.swap_remove(unusable.unwrap_or(0))))
}

fn refused(connection: &Connection, declared: &Declared) -> Fitted<()> {
    let Some(refuse) = &declared.refuse else { return Ok(Ok(())) };
    let found: bool = connection.query_row(&format!("SELECT EXISTS ({})", refuse.when), [], |row| row.get(0))?;
    Ok(if found { Err(Misfit::Unusable(refuse.because.clone())) } else { Ok(()) })
}

fn fit(connection: &Connection, declared: &Declared) -> Fitted<Mapping> {
    let feed = match &declared.from {
        From::Fed { table, archive, .. } => match Feed::of(connection, table, archive.as_deref())? {
            Ok(feed) => Some(feed),
            Err(misfit) => return Ok(Err(misfit)),
        },
        _ => None,
    };
    if let Some(feed) = feed.as_ref().filter(|_| !controls::is_off(Protection::Feed))
        && let Err(what) = feed.check(connection)?
    {
        return Ok(Err(Misfit::Unusable(format!("{what}. Nothing was passed over. {}", feed.remedy(connection)))));
    }
    let made = Maker::new(declared, feed.as_ref()).make(declared);
    let sql = made.select(0, "1", "LIMIT 0");
    let alone = match &declared.from {
        From::Query(query) => query.as_str(),
        From::Table { .. } | From::Fed { .. } => sql.as_str(),
    };
    match statements(connection, alone) {
        Ok(1) => {}
        Ok(_) => {
            return Ok(Err(Misfit::Unusable(
                "SQL of your own must be one SELECT. Remedy: leave out what follows it".into(),
            )));
        }
        Err(error) => return missing(connection, declared, error),
    }
    if let Err(error) = connection.prepare(&sql) {
        return missing(connection, declared, error);
    }
    // Positions are given out by the table, never by its archive.
    let bare = match (&declared.from, &made.archive) {
        (From::Table { name, .. }, Some(_)) => format!("SELECT {} FROM {}", made.row, quoted(name)),
        _ => format!("SELECT {} FROM {}", made.row, made.from),
    };
    let origins = match connection.prepare(&bare) {
        Ok(statement) => {
            let columns = statement.columns_with_metadata();
            let origin = |column: &rusqlite::ColumnMetadata<'_>| {
                Some((column.table_name()?.to_owned(), column.origin_name()?.to_owned()))
            };
            columns.first().and_then(origin)
        }
        Err(error) => return missing(connection, declared, error),
    };
    let named = declared.from.table().unwrap_or_default().to_owned();
    let Some((table, column)) = origins else {
        return Ok(Err(Misfit::Unusable(format!(
            "{} is no column of a table, and so nothing tells whether it is unique. Remedy: name the column as the table has it, \
             without an expression around it",
            made.row
        ))));
    };
    let key = Key::of(connection, &table, &column)?;
    let refusal = match &declared.rows {
        Some(rows) if rows.is_unmarked() => None,
        Some(_) => key.refusal_by_row(&table, &column),
        None => key.refusal_by_checkpoint(&table, &column, declared.allow_reused_positions),
    };
    if let Some(refusal) = refusal {
        return Ok(Err(Misfit::Unusable(refusal)));
    }
    let is_rowid = column.eq_ignore_ascii_case("rowid");
    let name = if is_rowid { column.clone() } else { quoted(&column) };
    let newest = (!key.autoincrement).then(|| format!("SELECT max({name}) FROM {}", quoted(&table)));
    let mut mapping = Mapping { table: table.clone(), newest, ..made };
    mapping.definition = mapping.definition.replacen("table=", &format!("table={}", shown(&named, &table)), 1);
    let never_null = columns_never_null(connection, &table)?;
    if let (Some(rows), Some(declared)) = (&mut mapping.rows, &declared.rows) {
        if let Some(what) = marking::archive_misfit(connection, &table, declared)? {
            return Ok(Err(Misfit::Unusable(what)));
        }
        if !rows.walk.as_ref().is_some_and(|walk| never_null.iter().any(|column| walk.eq_ignore_ascii_case(column))) {
            rows.walk = None;
        }
        rows.index = marking::index(declared, rows.walk.as_deref());
        for statement in rows.statements() {
            if let Err(error) = connection.prepare(statement) {
                return Ok(Err(Misfit::Unusable(told(&error, connection, &table)?)));
            }
        }
    }
    Ok(Ok(mapping))
}

/// The columns of a table that hold no `NULL`, as statements of a table read by row name them.
fn columns_never_null(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare("SELECT name FROM pragma_table_info(?1) WHERE \"notnull\"")?
        .query_map([table], |row| Ok(format!("o.{}", quoted(&row.get::<_, String>(0)?))))?
        .collect()
}

/// How many statements there are in SQL, each looked at.
fn statements(connection: &Connection, sql: &str) -> rusqlite::Result<usize> {
    use rusqlite::fallible_iterator::FallibleIterator;

    let mut batch = rusqlite::Batch::new(connection, sql);
    let mut count = 0;
    while batch.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// The name as it was said where a table is named: a view has another one beneath.
fn shown<'a>(named: &'a str, table: &'a str) -> &'a str {
    if named.is_empty() { table } else { named }
}

/// A name in the declaration is not in the file.
fn missing<T>(connection: &Connection, declared: &Declared, error: rusqlite::Error) -> Fitted<T> {
    let Some(msg) = message(&error) else { return Err(error) };
    if let Some(table) = msg.strip_prefix("no such table: ") {
        // Of a table and its archive SQLite names the archive first.
        let own = declared.from.table().unwrap_or(table);
        let table = if open::columns(connection, own)?.is_empty() { own } else { table };
        return Ok(Err(Misfit::NoTable(format!("there is no table {table} yet"))));
    }
    let table = match &declared.from {
        From::Fed { archive: Some(archive), .. } if msg.starts_with("no such column: a.") => archive,
        From::Table { name, archive: Some(archive), .. } if has_column(connection, name, msg)? => archive,
        from => from.table().unwrap_or_default(),
    };
    Ok(Err(Misfit::Unusable(told(&error, connection, table)?)))
}

/// What SQLite says of SQL that it does not take; `None` for any other error.
fn message(error: &rusqlite::Error) -> Option<&str> {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => Some(msg),
        rusqlite::Error::SqliteFailure(failure, Some(msg)) if failure.extended_code == rusqlite::ffi::SQLITE_ERROR => {
            Some(msg)
        }
        _ => None,
    }
}

/// Whether the table has the column of which SQLite says that there is no such one: then it is another table that lacks it.
fn has_column(connection: &Connection, table: &str, msg: &str) -> rusqlite::Result<bool> {
    let Some(column) = column_missing(msg) else { return Ok(false) };
    Ok(open::columns(connection, table)?.iter().any(|(name, _)| name.eq_ignore_ascii_case(column)))
}

/// The column in what SQLite says.
fn column_missing(msg: &str) -> Option<&str> {
    let column = msg.strip_prefix("no such column: ")?;
    // SQLite adds a guess of its own to a name in quotes.
    let column = column.split(" - should this").next().unwrap_or(column).trim_matches('"');
    Some(column.rsplit_once('.').map_or(column, |(_, column)| column))
}

/// An error in SQL that was made of a declaration, with the nearest name that is there.
fn told(error: &rusqlite::Error, connection: &Connection, table: &str) -> rusqlite::Result<String> {
    let Some(msg) = message(error) else { return Ok(error.to_string()) };
    let Some(column) = column_missing(msg) else {
        return Ok(format!("{msg}. Remedy: compare what is said of this source with the application's tables"));
    };
    let columns = open::columns(connection, table)?;
    let near = columns
        .iter()
        .map(|(name, _)| (strsim::jaro_winkler(name, column), name))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let remedy = match near {
        Some((_, name)) => format!("did you mean {name}?"),
        None if columns.is_empty() => "name a column that is there".to_owned(),
        None => {
            let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
            format!("the table has {}", names.join(", "))
        }
    };
    let place = if table.is_empty() { String::new() } else { format!(" in table {table}") };
    Ok(format!("there is no column {column}{place}. Remedy: {remedy}"))
}

/// A name as SQL takes it, whatever it holds.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as SQL takes it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
