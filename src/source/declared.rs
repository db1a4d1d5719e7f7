//! What a configuration, or a preset, says of a table: which column is what, and for a table read by row how rows are marked.
//!
//! This is data, read from TOML. What it means for a file as it is: [`super::fit`].

mod read;

use std::fmt;
use std::time::Duration;

pub use super::decode::Form;
use super::json_path::JsonPath;

/// One table, or what is read in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    pub from: From,
    /// By checkpoint: the column of the position. By row: a number that grows, where there is one.
    pub position: Option<Take>,
    pub allow_reused_positions: bool,
    pub id: Take,
    pub key: Option<Take>,
    pub stream_id: Option<Take>,
    pub stream_type: Option<Take>,
    pub version: Option<Take>,
    pub kind: Take,
    pub payload: Take,
    pub headers: Option<Take>,
    pub time: Option<Take>,
    /// A payload that is `NULL` is sent as nothing; otherwise it is a mistake.
    pub tombstones: bool,
    pub rows: Option<DeclaredRows>,
    pub refuse: Option<Refuse>,
    /// How long one look may take that runs SQL of a person's own.
    pub sql_time_max: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// A table or a view, and SQL that joins others to it, in which it is called `o`; or the table into which rows of it are moved, read
    /// as if they had not moved.
    Table { name: String, join: Option<String>, archive: Option<String> },
    /// The same, read by its feed; and the application's own archive of it, which is called `a`.
    Fed { table: String, archive: Option<String>, join: Option<String> },
    /// SQL of a person's own.
    Query(String),
}

/// How the rows of a table read by row are known and marked.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredRows {
    /// The unique column.
    pub row: String,
    pub pending: Pending,
    /// Columns; ties in all of them are in order of insertion.
    pub order: Vec<String>,
    pub on_delivered: Mark,
    pub on_retry: Option<Mark>,
    pub on_rejected: Option<Mark>,
    /// SQL of a person's own.
    pub on_dead_letter: Option<String>,
}

/// A file in which this SQL finds something cannot be used, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Refuse {
    pub when: String,
    pub because: String,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Take {
    Column {
        name: String,
        path: Option<JsonPath>,
        /// `as = ...`.
        form: Option<Form>,
    },
    /// The first that is not `NULL`.
    First(Vec<String>),
    /// `"{stream_id}:{version}"`: literal text and columns.
    Template(Vec<Piece>),
    Constant(String),
    /// A JSON object with these members.
    Fields(Vec<(String, Take)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Literal(String),
    Column(String),
}

/// Which rows are to be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Pending {
    /// All of these.
    All(Vec<(String, Test)>),
    Sql(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    In(Vec<Literal>),
    Null(bool),
    /// An SQL operator and what stands on its right.
    Compare(&'static str, Literal),
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    Set(Vec<(String, Literal)>),
    Delete,
    /// Copied into this table, then deleted.
    Archive(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    /// `"{now}"`, `"{error}"`, `"{+1}"`, ...
    Word(Word),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Now,
    NowSpace,
    NowSeconds,
    NowMillis,
    NowMicros,
    Error,
    Plus,
    Minus,
}

impl Take {
    pub fn column(name: &str) -> Self {
        Take::Column { name: name.to_owned(), path: None, form: None }
    }

    /// As it stands in the definition that a checkpoint is compared with: which columns, not how they are decoded.
    pub fn definition(&self) -> String {
        match self {
            Take::Column { name, .. } => name.clone(),
            Take::First(names) => format!("coalesce({})", names.join(", ")),
            Take::Constant(text) => format!("'{text}'"),
            Take::Template(pieces) => {
                let pieces = pieces.iter().map(|piece| match piece {
                    Piece::Literal(text) => text.clone(),
                    Piece::Column(name) => format!("{{{name}}}"),
                });
                pieces.collect()
            }
            Take::Fields(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(name, take)| format!("{name}={}", take.definition())).collect();
                format!("{{{}}}", fields.join(", "))
            }
        }
    }

    pub fn form(&self) -> Option<Form> {
        match self {
            Take::Column { form, .. } => *form,
            _ => None,
        }
    }
}

impl DeclaredRows {
    /// Rows are only read.
    pub fn is_unmarked(&self) -> bool {
        self.on_delivered == Mark::Set(Vec::new())
    }
}

impl From {
    /// The table's name, where one is named.
    pub fn table(&self) -> Option<&str> {
        match self {
            From::Table { name, .. } | From::Fed { table: name, .. } => Some(name),
            From::Query(_) => None,
        }
    }
}

impl Declared {
    /// The table in which its rows are looked for, too.
    pub fn archive(&self) -> Option<&str> {
        match &self.from {
            From::Table { archive, .. } | From::Fed { archive, .. } => archive.as_deref(),
            From::Query(_) => None,
        }
    }

    /// The application's tables that it names.
    pub fn tables(&self) -> Vec<&str> {
        let moved = self.rows.as_ref().and_then(|rows| match &rows.on_delivered {
            Mark::Archive(table) => Some(table.as_str()),
            Mark::Set(_) | Mark::Delete => None,
        });
        self.from.table().into_iter().chain(self.archive()).chain(moved).collect()
    }

    /// The SQL of a person's own that runs when this is read, and the keys that it stands under.
    pub fn own_sql(&self) -> Vec<(&'static str, &str)> {
        let (query, join) = match &self.from {
            From::Query(sql) => (Some(sql), None),
            From::Table { join, .. } | From::Fed { join, .. } => (None, join.as_ref()),
        };
        let pending = self.rows.as_ref().and_then(|rows| match &rows.pending {
            Pending::Sql(sql) => Some(sql),
            Pending::All(_) => None,
        });
        let refuse = self.refuse.as_ref().map(|refuse| &refuse.when);
        [("query", query), ("join", join), ("pending_sql", pending), ("refuse_if", refuse)]
            .into_iter()
            .filter_map(|(key, sql)| sql.map(|sql| (key, sql.as_str())))
            .collect()
    }

    /// Where delivered rows move elsewhere: that table, read like this one, and nothing marked there.
    pub fn archived(&self) -> Option<Self> {
        let (From::Table { join, .. }, Some(rows)) = (&self.from, &self.rows) else { return None };
        let Mark::Archive(archive) = &rows.on_delivered else { return None };
        let rows = DeclaredRows {
            row: rows.row.clone(),
            pending: Pending::Sql("0".into()),
            order: Vec::new(),
            on_delivered: Mark::Set(Vec::new()),
            on_retry: None,
            on_rejected: None,
            on_dead_letter: None,
        };
        let from = From::Table { name: archive.clone(), join: join.clone(), archive: None };
        Some(Self { from, rows: Some(rows), ..self.clone() })
    }

    /// Field by field, for people.
    pub fn told(&self) -> Vec<(String, String)> {
        let mut told = Vec::new();
        match &self.from {
            From::Table { name, join, archive } => {
                told.push(("table".to_owned(), name.clone()));
                told.extend(archive.iter().map(|archive| ("archive".to_owned(), archive.clone())));
                told.extend(join.iter().map(|join| ("join".to_owned(), join.trim().to_owned())));
            }
            From::Fed { table, archive, join } => {
                told.push(("table".to_owned(), table.clone()));
                told.push(("position".to_owned(), "its feed's".to_owned()));
                told.extend(archive.iter().map(|archive| ("archive".to_owned(), archive.clone())));
                told.extend(join.iter().map(|join| ("join".to_owned(), join.trim().to_owned())));
            }
            From::Query(sql) => told.push(("query".to_owned(), sql.split_whitespace().collect::<Vec<_>>().join(" "))),
        }
        for (name, take) in [
            ("position", self.position.as_ref()),
            ("id", Some(&self.id)),
            ("key", self.key.as_ref()),
            ("stream_id", self.stream_id.as_ref()),
            ("stream_type", self.stream_type.as_ref()),
            ("version", self.version.as_ref()),
            ("type", Some(&self.kind)),
            ("payload", Some(&self.payload)),
            ("headers", self.headers.as_ref()),
            ("time", self.time.as_ref()),
        ] {
            told.extend(take.map(|take| (name.to_owned(), take.to_string())));
        }
        if let Some(rows) = &self.rows {
            told.push(("row".to_owned(), rows.row.clone()));
            told.push(("order".to_owned(), [&rows.order[..], &["rowid".to_owned()]].concat().join(", ")));
        }
        told
    }
}

/// As a person would say it.
impl fmt::Display for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.definition())?;
        let Take::Column { path, form, .. } = self else { return Ok(()) };
        if let Some(path) = path {
            write!(f, " at {path}")?;
        }
        if let Some(form) = form {
            write!(f, " as {}", form.word())?;
        }
        Ok(())
    }
}
