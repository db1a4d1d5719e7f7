//! What is declared, fitted to a file as it is: names are looked up, SQL is made, and what could lose events is refused.
//!
//! Of several declarations (a preset's, for the generations of its tables) the first fits whose every name is there.

use rusqlite::{Connection, OptionalExtension};

use super::declared::{Declared, DeclaredRows, FormWord, From, Piece, Take};
use super::decode::{Field, Form, Member};
use super::mapping::{EXTRA, Mapping, RowMapping};
use super::marking;
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
    let made = Maker { by_row: declared.rows.is_some(), extra: Vec::new(), long: Vec::new() }.make(declared);
    let sql = made.select(0, "1", "LIMIT 0");
    let alone = match &declared.from {
        From::Query(query) => query.as_str(),
        From::Table { .. } => sql.as_str(),
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
    let bare = format!("SELECT {} FROM {}", made.row, made.from);
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
    let named = match &declared.from {
        From::Table { name, .. } => name.clone(),
        From::Query(_) => String::new(),
    };
    let Some((table, column)) = origins else {
        return Ok(Err(Misfit::Unusable(format!(
            "{} is no column of a table, and so nothing tells whether it is unique. Remedy: name the column as the table has it, \
             without an expression around it",
            made.row
        ))));
    };
    let key = Key::of(connection, &table, &column)?;
    let refusal = if declared.rows.is_some() {
        key.refusal_by_row(&table, &column)
    } else {
        key.refusal_by_checkpoint(&table, &column, declared.allow_reused_positions)
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
        return Ok(Err(Misfit::NoTable(format!("there is no table {table} yet"))));
    }
    let table = match &declared.from {
        From::Table { name, .. } => name.as_str(),
        From::Query(_) => "",
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

/// An error in SQL that was made of a declaration, with the nearest name that is there.
fn told(error: &rusqlite::Error, connection: &Connection, table: &str) -> rusqlite::Result<String> {
    let Some(msg) = message(error) else { return Ok(error.to_string()) };
    let Some(column) = msg.strip_prefix("no such column: ") else {
        return Ok(format!("{msg}. Remedy: compare what is said of this source with the application's tables"));
    };
    // SQLite adds a guess of its own to a name in quotes.
    let column = column.split(" - should this").next().unwrap_or(column).trim_matches('"');
    let column = column.rsplit_once('.').map_or(column, |(_, column)| column);
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

/// What SQLite promises of a column.
struct Key {
    autoincrement: bool,
    /// It is the rowid, by a name that keeps it over VACUUM.
    integer_key: bool,
    unique: bool,
}

impl Key {
    fn of(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<Self> {
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

    fn refusal_by_row(&self, table: &str, column: &str) -> Option<String> {
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

    fn refusal_by_checkpoint(&self, table: &str, column: &str, allow_reused: bool) -> Option<String> {
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

/// A name as SQL takes it, whatever it holds.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as SQL takes it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Makes SQL of a declaration.
struct Maker {
    by_row: bool,
    /// Columns beyond one a field.
    extra: Vec<String>,
    /// Columns that may be long: their sizes are asked first.
    long: Vec<String>,
}

impl Maker {
    fn make(mut self, declared: &Declared) -> Mapping {
        let from = match &declared.from {
            From::Query(sql) => format!("({}\n)", sql.trim().trim_end_matches(';')),
            From::Table { name, join } => {
                let alias = if self.by_row || join.is_some() { " o" } else { "" };
                let join = join.as_ref().map_or(String::new(), |join| format!(" {join}"));
                format!("{}{alias}{join}", quoted(name))
            }
        };
        let absent = |maker: &mut Self, take: Option<&Take>, usual: Form| {
            take.map_or_else(Field::absent, |take| maker.field(take, usual))
        };
        let payload = self.field(&declared.payload, Form::Plain);
        if !matches!(payload.form, Form::Object(_)) {
            let columns = self.columns_of(&declared.payload);
            self.long.splice(0..0, columns);
        }
        let headers = absent(&mut self, declared.headers.as_ref(), Form::JsonObject);
        let id = self.field(&declared.id, Form::Text);
        let key = absent(&mut self, declared.key.as_ref(), Form::Text);
        let stream_id = absent(&mut self, declared.stream_id.as_ref(), Form::Text);
        let stream_type = absent(&mut self, declared.stream_type.as_ref(), Form::Text);
        let version = absent(&mut self, declared.version.as_ref(), Form::Text);
        let kind = self.field(&declared.kind, Form::Text);
        let time = absent(&mut self, declared.time.as_ref(), Form::Text);
        let position = declared.position.as_ref().map(|take| self.sql(take));
        let (row, position) = match &declared.rows {
            Some(rows) => (self.column(&rows.row), position.unwrap_or_else(|| "o.rowid".into())),
            None => {
                let position = position.unwrap_or_else(|| "rowid".into());
                (position.clone(), position)
            }
        };
        Mapping {
            table: String::new(),
            from,
            row,
            position,
            id,
            key,
            stream_id,
            stream_type,
            version,
            kind,
            payload,
            headers,
            time,
            size: self.size(),
            extra: self.extra,
            tombstones: declared.tombstones,
            newest: None,
            is_query: matches!(declared.from, From::Query(_)),
            definition: definition(declared),
            told: declared.told(),
            rows: declared.rows.as_ref().map(|rows| row_mapping(declared, rows)),
        }
    }

    /// How many bytes the columns have that may be long.
    fn size(&self) -> String {
        let mut columns: Vec<&String> = Vec::new();
        for column in &self.long {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        match columns.as_slice() {
            [] => "0".into(),
            [one] => format!("octet_length({one})"),
            many => {
                let each: Vec<String> =
                    many.iter().map(|column| format!("coalesce(octet_length({column}), 0)")).collect();
                each.join(" + ")
            }
        }
    }

    fn column(&self, name: &str) -> String {
        if name.eq_ignore_ascii_case("rowid") {
            return if self.by_row { "o.rowid".into() } else { "rowid".into() };
        }
        match name.split_once('.') {
            Some((alias, column)) if self.by_row && alias != "o" => format!("{}.{}", quoted(alias), quoted(column)),
            Some((_, column)) if self.by_row => format!("o.{}", quoted(column)),
            None if self.by_row => format!("o.{}", quoted(name)),
            _ => quoted(name),
        }
    }

    fn columns_of(&self, take: &Take) -> Vec<String> {
        match take {
            Take::Column { name, .. } => vec![self.column(name)],
            Take::First(names) => names.iter().map(|name| self.column(name)).collect(),
            Take::Template(pieces) => pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Column(name) => Some(self.column(name)),
                    Piece::Literal(_) => None,
                })
                .collect(),
            Take::Constant(_) | Take::Fields(_) => Vec::new(),
        }
    }

    fn sql(&self, take: &Take) -> String {
        match take {
            Take::Column { name, form: Some(FormWord::Jsonb), .. } => {
                let column = self.column(name);
                format!(
                    "CASE WHEN typeof({column}) = 'blob' AND json_valid({column}, 8) THEN json({column}) ELSE {column} END"
                )
            }
            Take::Column { name, .. } => self.column(name),
            Take::First(names) => {
                let columns: Vec<String> = names.iter().map(|name| self.column(name)).collect();
                if let [one] = columns.as_slice() { one.clone() } else { format!("coalesce({})", columns.join(", ")) }
            }
            Take::Constant(text) => literal(text),
            Take::Template(pieces) => {
                let pieces: Vec<String> = pieces
                    .iter()
                    .map(|piece| match piece {
                        Piece::Literal(text) => literal(text),
                        Piece::Column(name) => self.column(name),
                    })
                    .collect();
                format!("('' || {})", pieces.join(" || "))
            }
            Take::Fields(_) => "NULL".into(),
        }
    }

    /// `usual` is the form of what stands at a path, and of headers, when none is said.
    fn field(&mut self, take: &Take, usual: Form) -> Field {
        let form = match take {
            Take::Fields(fields) => Form::Object(fields.iter().map(|(name, take)| self.member(name, take)).collect()),
            Take::Column { form: Some(word), .. } => form(*word),
            Take::Column { path: Some(_), .. } => usual,
            _ if usual == Form::JsonObject => usual,
            _ => Form::Plain,
        };
        let path = match take {
            Take::Column { path, .. } => path.clone(),
            _ => None,
        };
        if path.is_some() {
            let columns = self.columns_of(take);
            self.long.extend(columns);
        }
        Field { sql: self.sql(take), size: self.size_of(take), label: take.to_string(), path, form }
    }

    fn size_of(&self, take: &Take) -> String {
        let columns = self.columns_of(take);
        match take {
            Take::First(_) => columns
                .iter()
                .rev()
                .fold("0".to_owned(), |size, column| format!("ifnull(octet_length({column}), {size})")),
            _ if columns.is_empty() => "0".to_owned(),
            _ => {
                let each: Vec<String> =
                    columns.iter().map(|column| format!("ifnull(octet_length({column}), 0)")).collect();
                each.join(" + ")
            }
        }
    }

    fn member(&mut self, name: &str, take: &Take) -> Member {
        let field = self.field(take, Form::Plain);
        self.extra.push(field.sql.clone());
        let columns = self.columns_of(take);
        self.long.extend(columns);
        Member { name: name.to_owned(), index: EXTRA + self.extra.len() - 1, field }
    }
}

fn form(word: FormWord) -> Form {
    match word {
        FormWord::Plain => Form::Plain,
        FormWord::Text => Form::Text,
        FormWord::Integer => Form::Integer,
        FormWord::Blob => Form::Blob,
        FormWord::Uuid => Form::Uuid,
        FormWord::UuidMixed => Form::UuidMixed,
        FormWord::Hex => Form::Hex,
        FormWord::Json => Form::Json,
        FormWord::Jsonb => Form::Jsonb,
        FormWord::Iso => Form::Iso,
        FormWord::Seconds => Form::Epoch(1),
        FormWord::Millis => Form::Epoch(1_000),
        FormWord::Micros => Form::Epoch(1_000_000),
    }
}

/// `table=` is filled in when the table is known.
fn definition(declared: &Declared) -> String {
    let of = |take: Option<&Take>| take.map_or_else(|| "NULL".to_owned(), Take::definition);
    let row = match &declared.rows {
        Some(rows) => rows.row.clone(),
        None => of(declared.position.as_ref()),
    };
    let mut text = format!(
        "table= row={row} id={} key={} payload={}",
        of(Some(&declared.id)),
        of(declared.key.as_ref()),
        of(Some(&declared.payload))
    );
    if let From::Query(sql) = &declared.from {
        text.push_str(&format!(" query={}", sql.trim()));
    }
    text
}

fn row_mapping(declared: &Declared, rows: &DeclaredRows) -> RowMapping {
    let maker = Maker { by_row: true, extra: Vec::new(), long: Vec::new() };
    marking::row_mapping(declared, rows, &|name| maker.column(name))
}
