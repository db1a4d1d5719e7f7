//! VACUUM INTO a file beside the live one, which then takes its place, while nobody has it open: by hand alone, since a daemon has.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::Pages;
use crate::clock;
use crate::controls::{self, Seam};
use crate::maintenance::backup::copy::{self, Share};
use crate::maintenance::backup::replace::{self, Owner};
use crate::maintenance::backup::restore;
use crate::maintenance::{Failure, Stop};
use crate::sqlite::holders::Holder;
use crate::sqlite::open;
use crate::sqlite::sole::Sole;

/// Copying is told as the first part of the work, and checking is the rest.
const SHARE: Share = Share { before: 0.0, own: 1.0 };
/// Of `auto_vacuum`, as SQLite tells it.
const NONE: i64 = 0;
const INCREMENTAL: i64 = 2;

#[derive(Debug)]
pub struct Into {
    pub make_incremental: bool,
}

/// What stands there now.
#[derive(Debug)]
pub struct Swapped {
    pub pages: Pages,
    /// The file of before.
    pub kept: PathBuf,
}

/// What a file says of itself, and VACUUM keeps.
#[derive(PartialEq, Eq, Debug)]
struct Header {
    page_size: i64,
    user_version: i64,
    application_id: i64,
    encoding: String,
    auto_vacuum: i64,
}

impl Header {
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT page_size, user_version, application_id, encoding, auto_vacuum \
                   FROM pragma_page_size, pragma_user_version, pragma_application_id, pragma_encoding, pragma_auto_vacuum";
        connection.query_row(sql, [], |row| {
            Ok(Self {
                page_size: row.get(0)?,
                user_version: row.get(1)?,
                application_id: row.get(2)?,
                encoding: row.get(3)?,
                auto_vacuum: row.get(4)?,
            })
        })
    }
}

impl Into {
    /// Whether it is to be done although hardly anything is free.
    pub fn switches(&self, connection: &Connection) -> rusqlite::Result<bool> {
        Ok(self.make_incremental && Header::of(connection)?.auto_vacuum == NONE)
    }

    /// From here on nobody else has the file, until the new one stands in its place.
    pub fn run(&self, path: &Path, stop: &Stop) -> Result<Swapped, Failure> {
        let meta = fs::metadata(path).map_err(|error| Failure::Unavailable(format!("{}: {error}", path.display())))?;
        let (mode, owner) = (meta.mode() & 0o7777, Owner { uid: meta.uid(), gid: meta.gid() });
        let mut pages = None;
        let ready = replace::prepare_of_itself(path, owner, |place, sole| {
            restore::make_by(place, |partial| {
                controls::reach(Seam::Vacuum);
                pages = Some(self.copy(place, sole, partial, stop)?);
                controls::reach(Seam::Vacuum);
                restore::dress(mode, owner, partial, place)
            })
        })?;
        if stop.is_asked() {
            ready.give_up();
            return Err(Failure::Aborted);
        }
        controls::reach(Seam::Vacuum);
        let mut replaced = ready.put_in_place(clock::now_micros())?;
        let (place, late) = (replaced.place.clone(), std::mem::take(&mut replaced.late));
        let kept = replaced.kept.take().expect("there was a file");
        replaced.let_go();
        if late.is_empty() {
            return Ok(Swapped { pages: pages.expect("it was made"), kept });
        }
        let who = late.iter().map(Holder::to_string).collect::<Vec<_>>().join(", ");
        Err(Failure::Locked(format!(
            "{} is written anew, and {who} opened the file of before in this very moment, and would go on with it: END IT before it writes. The file of \
             before is kept as {}",
            place.display(),
            kept.display()
        )))
    }

    /// Writes the copy, and makes sure that it holds what the file holds.
    fn copy(&self, place: &Path, sole: Option<&Sole>, partial: &Path, stop: &Stop) -> Result<Pages, Failure> {
        let told = |error: rusqlite::Error| match stop.is_asked() {
            true => Failure::Aborted,
            false => {
                Failure::Unavailable(format!("{} cannot be written anew, and is as it was: {error}", place.display()))
            }
        };
        let opened;
        let connection = match sole.and_then(Sole::connection) {
            Some(connection) => connection,
            None => {
                opened = open::copier(place).map_err(told)?;
                &opened
            }
        };
        let damaged = |failure: Failure| match failure {
            Failure::Data(what) => Failure::Data(format!(
                "{} is damaged, and is as it was: {what}. Remedy: an index alone is mended by REINDEX; else restore the last backup",
                place.display()
            )),
            other => other,
        };
        let held = copy::all_of(connection, stop).map_err(damaged)?;
        let mut expected = Header::of(connection).map_err(told)?;
        if self.switches(connection).map_err(told)? {
            // Of a file that has tables it takes effect in what is written anew alone.
            connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL").map_err(told)?;
            expected.auto_vacuum = INCREMENTAL;
        }
        // Nobody else may read it; SQLite takes an empty file for none.
        let made = File::options().write(true).create_new(true).mode(0o600).open(partial);
        made.map_err(|error| Failure::Unavailable(format!("{} cannot be made: {error}", partial.display())))?;
        copy::vacuum_from(connection, place, partial, SHARE, stop)?;
        let copied = open::still(partial).map_err(told)?;
        let another = |what: String| {
            Failure::Bug(format!("the copy of {} is not what was copied: {what}. Nothing was changed", place.display()))
        };
        let holds = copy::all_of(&copied, stop).map_err(|failure| match failure {
            Failure::Data(what) => another(what),
            other => other,
        })?;
        let differs = match (holds == held, Header::of(&copied).map_err(told)? == expected) {
            (true, true) => numbered_otherwise(connection, &copied).map_err(told)?,
            (false, _) => Some("its rows are others".to_owned()),
            (true, false) => Some("its header is another".to_owned()),
        };
        differs.map_or_else(|| Pages::of(&copied).map_err(told), |what| Err(another(what)))
    }
}

/// SQLite may give rows other numbers where no column is the number, and does not promise otherwise: a source may be read by them. `Some`: where.
fn numbered_otherwise(one: &Connection, other: &Connection) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') AND NOT wr AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let tables: Vec<String> = one.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in tables {
        let sql = format!("SELECT rowid FROM \"{}\" ORDER BY rowid", table.replace('"', "\"\""));
        let (mut one, mut other) = (one.prepare(&sql)?, other.prepare(&sql)?);
        let (mut one, mut other) = (one.query([])?, other.query([])?);
        loop {
            match (one.next()?, other.next()?) {
                (None, None) => break,
                (Some(row), Some(same)) if row.get_ref(0)? == same.get_ref(0)? => {}
                _ => return Ok(Some(format!("the rows of {table} are numbered otherwise"))),
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an application opens its file")]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_numbered_otherwise_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str, sql: &str| {
            let connection = Connection::open(folder.path().join(name)).unwrap();
            let tables = "CREATE TABLE \"a \"\" b\" (x); CREATE TABLE k (x PRIMARY KEY) WITHOUT ROWID; CREATE VIRTUAL TABLE f USING fts5(x);";
            connection.execute_batch(&[tables, sql].concat()).unwrap();
            connection
        };
        let rows = "INSERT INTO \"a \"\" b\" (rowid, x) VALUES (3, 1), (7, 2); INSERT INTO k VALUES (1);";
        let one = made("one", rows);
        for (number, (sql, is_seen)) in [
            (rows, false),
            ("INSERT INTO \"a \"\" b\" (x) VALUES (1), (2);", true),
            ("INSERT INTO \"a \"\" b\" (rowid, x) VALUES (3, 1);", true),
            ("INSERT INTO \"a \"\" b\" (rowid, x) VALUES (3, 1), (7, 2), (8, 3);", true),
        ]
        .into_iter()
        .enumerate()
        {
            let other = made(&number.to_string(), sql);
            let seen = numbered_otherwise(&one, &other).unwrap();
            assert_eq!(seen.is_some(), is_seen, "{sql}: {seen:?}");
        }
    }
}
