//! One SQL expression a field, made of what is declared.

use std::cell::RefCell;

use super::super::declared::{Declared, From, Piece, Take};
use super::super::decode::{Field, Form, Member};
use super::super::feed::Feed;
use super::super::mapping::{EXTRA, Gone, Mapping};
use super::super::marking;
use super::{literal, quoted};

/// Makes SQL of a declaration.
pub struct Maker<'a> {
    /// The table is called `o`: others may be joined to it.
    aliased: bool,
    feed: Option<&'a Feed>,
    /// Columns that were named, in the order in which they were: by them a table and its archive are read as one.
    named: RefCell<Vec<String>>,
    /// Columns beyond one a field.
    extra: Vec<String>,
    /// The sizes of columns that may be long, which are asked first.
    long: Vec<String>,
}

impl<'a> Maker<'a> {
    pub fn new(declared: &Declared, feed: Option<&'a Feed>) -> Self {
        let aliased = declared.rows.is_some() || feed.is_some();
        Self { aliased, feed, named: RefCell::default(), extra: Vec::new(), long: Vec::new() }
    }

    pub fn make(mut self, declared: &Declared) -> Mapping {
        let absent = |maker: &mut Self, take: Option<&Take>, usual: Form| {
            take.map_or_else(Field::absent, |take| maker.field(take, usual))
        };
        let payload = self.field(&declared.payload, Form::Plain);
        if payload.members.is_empty() {
            let sizes = self.sizes_of(&declared.payload);
            self.long.splice(0..0, sizes);
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
        let (row, position) = match (&declared.rows, self.feed) {
            (Some(rows), _) => (self.column(&rows.row), position.unwrap_or_else(|| "o.rowid".into())),
            (None, Some(_)) => ("f.position".to_owned(), "f.position".to_owned()),
            (None, None) => {
                let position = position.unwrap_or_else(|| "rowid".into());
                (position.clone(), position)
            }
        };
        let joined = |join: &Option<String>| join.as_ref().map_or(String::new(), |join| format!(" {join}"));
        let from = match (&declared.from, self.feed) {
            (From::Query(sql), _) => format!("({}\n)", sql.trim().trim_end_matches(';')),
            (From::Table { join, .. } | From::Fed { join, .. }, Some(feed)) => {
                format!("{}{}", feed.from(), joined(join))
            }
            (From::Table { name, archive: Some(archive), .. }, None) => self.with_archive(name, archive),
            (From::Table { name, join, .. } | From::Fed { table: name, join, .. }, None) => {
                format!("{}{}{}", quoted(name), if self.aliased { " o" } else { "" }, joined(join))
            }
        };
        let columns = Maker::new(declared, self.feed);
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
            is_joined: match &declared.from {
                From::Query(_) => true,
                From::Table { archive, .. } => archive.is_some(),
                From::Fed { archive, join, .. } => archive.is_some() || join.is_some(),
            },
            gone: self.feed.map(|feed| Gone { sql: feed.is_gone(), detail: feed.gone() }),
            feed: self.feed.cloned(),
            archive: match &declared.from {
                From::Table { archive, .. } => archive.clone(),
                From::Fed { .. } | From::Query(_) => None,
            },
            definition: definition(declared),
            told: declared.told(),
            rows: declared.rows.as_ref().map(|rows| marking::row_mapping(declared, rows, &|name| columns.column(name))),
        }
    }

    /// Both tables in one statement, and so in one snapshot: what moves between them is in one of them. SQLite takes it apart into a
    /// search in each, merged. Only what is declared is named: what else the two have is the application's.
    fn with_archive(&self, table: &str, archive: &str) -> String {
        let columns: Vec<String> = self.named.borrow().iter().map(|column| quoted(column)).collect();
        let columns = columns.join(", ");
        format!("(SELECT {columns} FROM {} UNION ALL SELECT {columns} FROM {})", quoted(table), quoted(archive))
    }

    /// How many bytes the columns have that may be long.
    fn size(&self) -> String {
        let mut sizes: Vec<&String> = Vec::new();
        for size in &self.long {
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        match sizes.as_slice() {
            [] => "0".into(),
            [one] => (*one).clone(),
            many => {
                let each: Vec<String> = many.iter().map(|size| format!("coalesce({size}, 0)")).collect();
                each.join(" + ")
            }
        }
    }

    pub fn column(&self, name: &str) -> String {
        self.taken_from(name, &|column| column)
    }

    /// SQLite knows a column's size without reading it, as long as it is asked of the column itself.
    fn size_of_column(&self, name: &str) -> String {
        self.taken_from(name, &|column| format!("octet_length({column})"))
    }

    /// The column, or what `of` makes of it. One of a fed table is the feed's, the table's or the archive's.
    fn taken_from(&self, name: &str, of: &dyn Fn(String) -> String) -> String {
        if name.eq_ignore_ascii_case("rowid") {
            return of(if self.aliased { "o.rowid".into() } else { "rowid".into() });
        }
        let own = match name.split_once('.') {
            _ if !self.aliased => {
                let mut named = self.named.borrow_mut();
                if !named.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                    named.push(name.to_owned());
                }
                return of(quoted(name));
            }
            Some((alias, column)) if alias != "o" => return of(format!("{}.{}", quoted(alias), quoted(column))),
            Some((_, column)) => column,
            None => name,
        };
        if let Some(column) = self.feed.and_then(|feed| feed.own_column(own)) {
            return of(column);
        }
        let column = of(format!("o.{}", quoted(own)));
        match self.feed.is_some_and(|feed| feed.archive.is_some()) {
            true => format!("coalesce({column}, {})", of(format!("a.{}", quoted(own)))),
            false => column,
        }
    }

    fn sizes_of(&self, take: &Take) -> Vec<String> {
        match take {
            Take::Column { name, .. } => vec![self.size_of_column(name)],
            Take::First(names) => names.iter().map(|name| self.size_of_column(name)).collect(),
            Take::Template(pieces) => pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Column(name) => Some(self.size_of_column(name)),
                    Piece::Literal(_) => None,
                })
                .collect(),
            Take::Constant(_) | Take::Fields(_) => Vec::new(),
        }
    }

    fn sql(&self, take: &Take) -> String {
        match take {
            Take::Column { name, form: Some(Form::Jsonb), .. } => {
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
            // Whatever is said of it besides.
            _ if usual == Form::JsonObject => usual,
            Take::Column { form: Some(form), .. } => *form,
            Take::Column { path: Some(_), .. } => usual,
            _ => Form::Plain,
        };
        let (path, members) = match take {
            Take::Column { path, .. } => (path.clone(), Vec::new()),
            Take::Fields(fields) => (None, fields.iter().map(|(name, take)| self.member(name, take)).collect()),
            _ => (None, Vec::new()),
        };
        if path.is_some() {
            let sizes = self.sizes_of(take);
            self.long.extend(sizes);
        }
        Field { sql: self.sql(take), size: self.size_of(take), label: take.to_string(), path, form, members }
    }

    fn size_of(&self, take: &Take) -> String {
        let sizes = self.sizes_of(take);
        match take {
            Take::First(_) => sizes.iter().rev().fold("0".to_owned(), |rest, size| format!("ifnull({size}, {rest})")),
            _ if sizes.is_empty() => "0".to_owned(),
            _ => {
                let each: Vec<String> = sizes.iter().map(|size| format!("ifnull({size}, 0)")).collect();
                each.join(" + ")
            }
        }
    }

    fn member(&mut self, name: &str, take: &Take) -> Member {
        let field = self.field(take, Form::Plain);
        self.extra.push(field.sql.clone());
        let sizes = self.sizes_of(take);
        self.long.extend(sizes);
        Member { name: name.to_owned(), index: EXTRA + self.extra.len() - 1, field }
    }
}

/// `table=` is filled in when the table is known.
fn definition(declared: &Declared) -> String {
    let of = |take: Option<&Take>| take.map_or_else(|| "NULL".to_owned(), Take::definition);
    let row = match (&declared.rows, &declared.from) {
        (Some(rows), _) => rows.row.clone(),
        (None, From::Fed { .. }) => "feed".to_owned(),
        (None, _) => of(declared.position.as_ref()),
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
