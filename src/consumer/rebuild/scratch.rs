//! The file beside the read model in which tables are made anew. One maker at a time has it, and nobody else removes it.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::{Failed, copy_rows, quoted, run_up_to};
use crate::consumer::status::Status;
use crate::consumer::{Destination, OnReject, Settings};
use crate::event::Position;
use crate::projection::Definition;
use crate::source;
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::writer::JobError;
use crate::sqlite::{open, place};
use crate::state::{checkpoint, held, schema_version};

/// Rows that are copied in one look.
const SLICE: usize = 5_000;

/// What a scratch file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Rebuild,
    Verify,
}

/// Held until dropped; the file stays then, so that the next one goes on with it.
#[derive(Debug)]
pub struct Scratch {
    /// The same projection, into a file of its own.
    pub settings: Settings,
    definition: Arc<Definition>,
    /// The read model.
    live: PathBuf,
    lock: LockFile,
}

impl Scratch {
    /// An error names who has it.
    pub fn claim(settings: &Settings, purpose: Purpose) -> Result<Self, LockError> {
        let live = settings.destination.tables().expect("only projections are made anew");
        let what = match purpose {
            Purpose::Rebuild => "rebuild",
            Purpose::Verify => "verify",
        };
        let mut base = place::real(&live.path).into_os_string();
        base.push(format!("-{what}-{}", live.name));
        let lock = LockFile::take(Path::new(&base))?;
        base.push(".db");
        let definition = Arc::new(Definition { path: base.into(), ..(**live).clone() });
        let mut bounds = settings.bounds;
        // What fails does so because of what stands in the event and the tables: a second attempt would fail, too.
        bounds.attempts_max = 1;
        let settings = Settings {
            destination: Destination::Tables(definition.clone()),
            bounds,
            paused: false,
            // How many are refused is told at the end.
            on_reject: if settings.on_reject == OnReject::Halt { OnReject::Hold } else { settings.on_reject },
            ..settings.clone()
        };
        Ok(Self { settings, definition, live: live.path.clone(), lock })
    }

    pub fn path(&self) -> &Path {
        &self.definition.path
    }

    /// Goes on with what an earlier maker has left where that comes to the same: it was ended on its way, by this definition. Where
    /// events were refused, or nothing is known, all is made anew.
    pub fn take_over(&self) {
        let is_whole = || -> Result<bool, JobError> {
            let (left, name) = (open::visitor(self.path())?, &self.settings.name);
            if schema_version(&left)?.is_none() {
                return Ok(false);
            }
            let is_its_own = checkpoint::section(&left, name)? == Some(self.definition.as_json());
            Ok(is_its_own && held::counts(&left, name)?.iter().sum::<u64>() == 0)
        };
        if !self.path().exists() || !is_whole().unwrap_or(false) {
            self.empty();
        }
    }

    /// Nothing is there afterwards: the file itself, and what SQLite and the lock put beside it.
    pub fn empty(&self) {
        for end in ["", "-wal", "-shm", "-outboxd.lock"] {
            // What is not there need not be removed.
            let _ = fs::remove_file(PathBuf::from(format!("{}{end}", self.path().display())));
        }
    }

    /// The last thing that its maker does.
    pub fn remove(self) {
        self.empty();
        self.lock.remove();
    }

    /// Makes the tables until all is applied, up to a position or to the end; `look` is told how far it is.
    pub async fn make(
        &self,
        source: &source::Settings,
        until: Option<Position>,
        look: &mut (dyn FnMut(&Status) + Send),
    ) -> Result<(), Failed> {
        let is_left_over = self.path().exists();
        match self.go_on(source, until, look).await {
            // It may be that it does not fit any more (another mapping, another source): then nobody could ever go on with it.
            Err(Failed::Halted(_)) if is_left_over => {
                self.empty();
                self.go_on(source, until, look).await
            }
            made => made,
        }
    }

    async fn go_on(
        &self,
        source: &source::Settings,
        until: Option<Position>,
        look: &mut (dyn FnMut(&Status) + Send),
    ) -> Result<(), Failed> {
        let (live, definition) = (self.live.clone(), self.definition.clone());
        let brought =
            tokio::task::spawn_blocking(move || bring_reads(&live, &definition.path, &definition.reads)).await;
        let brought = brought.expect("it does not panic");
        brought.map_err(|error| Failed::Halted(format!("what it reads of others cannot be had: {error}")))?;
        run_up_to(source, &self.settings, until, look).await
    }
}

/// Brings what the statements read, as it is now, into the file in which they are going to run.
fn bring_reads(live: &Path, path: &Path, reads: &[String]) -> Result<(), JobError> {
    if reads.is_empty() || !live.exists() {
        return Ok(());
    }
    let (from, to) = (open::visitor(live)?, open::state_file(path)?);
    to.execute_batch("BEGIN IMMEDIATE")?;
    for table in reads {
        let columns = readable(&from, table)?;
        if columns.is_empty() || !open::columns(&to, table)?.is_empty() {
            continue;
        }
        let typed: Vec<String> =
            columns.iter().map(|column| format!("{} {}", quoted(&column.name), column.says)).collect();
        let strict = "SELECT EXISTS (SELECT 1 FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE AND strict)";
        let is_strict: bool = from.query_row(strict, [table], |row| row.get(0))?;
        let strict = if is_strict { " STRICT" } else { "" };
        to.execute_batch(&format!("CREATE TABLE {} ({}){strict}", quoted(table), typed.join(", ")))?;
        let names: Vec<String> = columns.into_iter().map(|column| column.name).collect();
        match rowid_of(&from, table, &names)? {
            // Whoever writes there is not kept from checkpoints for long: each slice is a look of its own.
            Some(rowid) => {
                let names = [vec![rowid.to_owned()], names].concat();
                let which = format!("WHERE {rowid} >= ?1 ORDER BY {rowid} LIMIT {SLICE}");
                let mut next = Some(i64::MIN);
                while let Some(first) = next {
                    let copied = copy_rows(&from, &to, (table, table), &names, &which, &[&first])?;
                    next = to.last_insert_rowid().checked_add(1).filter(|_| copied == SLICE as u64);
                }
            }
            None => drop(copy_rows(&from, &to, (table, table), &names, "", &[])?),
        }
        index_like(&from, &to, table)?;
    }
    to.execute_batch("COMMIT")?;
    Ok(())
}

struct Column {
    name: String,
    /// Its type and collation.
    says: String,
}

/// The columns that a statement may read, generated ones among them.
fn readable(from: &Connection, table: &str) -> Result<Vec<Column>, JobError> {
    let sql = "SELECT name, upper(type) FROM pragma_table_xinfo(?1) WHERE hidden <> 1";
    let mut columns = from.prepare(sql)?;
    let column = |row: &rusqlite::Row<'_>| {
        let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
        // A view's columns have none.
        let metadata = from.column_metadata(None, table, name.as_str()).ok();
        let collation = metadata.and_then(|known| known.1).map_or("BINARY".into(), CStr::to_string_lossy);
        Ok(Column { says: format!("{kind} COLLATE {}", quoted(&collation)), name })
    };
    Ok(columns.query_map([table], column)?.collect::<Result<_, _>>()?)
}

/// The name by which a table's rowid is known, where it has one.
fn rowid_of(from: &Connection, table: &str, columns: &[String]) -> Result<Option<&'static str>, JobError> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE AND type = 'table' AND NOT wr)";
    let has_one: bool = from.query_row(sql, [table], |row| row.get(0))?;
    let is_free = |name: &&str| !columns.iter().any(|column| column.eq_ignore_ascii_case(name));
    Ok(["rowid", "_rowid_", "oid"].into_iter().find(is_free).filter(|_| has_one))
}

/// What is found by an index there is found by one here: a statement that looks something up for each event would read the whole table each time.
/// Unique or not is the other file's affair.
fn index_like(from: &Connection, to: &Connection, table: &str) -> Result<(), JobError> {
    // The columns of each index, a rowid by its name among them; where one is an expression, or rows are left out, no copy is made.
    // Another collation than SQLite's own is the application's.
    let sql = "SELECT group_concat('\"' || replace(name, '\"', '\"\"') || '\" COLLATE ' || coll, ', ') FROM \
               (SELECT l.seq AS number, i.name, i.coll FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) i \
                WHERE i.key AND NOT l.partial ORDER BY l.seq, i.seqno) \
               GROUP BY number HAVING count(*) = count(name) AND NOT max(coll COLLATE NOCASE NOT IN ('BINARY', 'NOCASE', 'RTRIM')) \
               UNION SELECT '\"' || replace(name, '\"', '\"\"') || '\"' FROM pragma_table_info(?1) WHERE pk = 1";
    let mut indexes = from.prepare(sql)?;
    let columns = indexes.query_map([table], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    for (number, columns) in columns.iter().enumerate() {
        let name = quoted(&format!("outboxd_read_{table}_{number}"));
        to.execute_batch(&format!("CREATE INDEX {name} ON {} ({columns})", quoted(table)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::open;

    #[test]
    fn what_an_index_finds_there_is_found_by_one_here() {
        let folder = tempfile::tempdir().unwrap();
        let live = open::state_file(&folder.path().join("live.db")).unwrap();
        live.execute_batch(
            "CREATE TABLE a (n INTEGER PRIMARY KEY, \"the name\" TEXT COLLATE NOCASE UNIQUE, b, c, g AS (b * 10));
             CREATE INDEX bc ON a (b, c);
             CREATE INDEX lower ON a (lower(c)); CREATE INDEX some ON a (c) WHERE c > 1;
             CREATE TABLE w (k TEXT, l, PRIMARY KEY (k, l)) WITHOUT ROWID; CREATE VIEW v AS SELECT * FROM a;
             INSERT INTO a VALUES (7, 'Ann', 1, 2); INSERT INTO w VALUES ('x', 1)",
        )
        .unwrap();
        let path = folder.path().join("scratch.db");
        bring_reads(&folder.path().join("live.db"), &path, &["a", "w", "v"].map(String::from)).unwrap();
        let here = open::visitor(&path).unwrap();
        let plan = |what: &str| -> String {
            here.query_row(&format!("EXPLAIN QUERY PLAN SELECT * FROM {what}"), [], |row| row.get("detail")).unwrap()
        };
        for what in
            ["a WHERE n = 7", "a WHERE \"the name\" = 'ann'", "a WHERE b = 1 AND c = 2", "w WHERE k = 'x' AND l = 1"]
        {
            assert!(plan(what).starts_with("SEARCH"), "{what}: {}", plan(what));
        }
        let ann = "SELECT count(*) FROM a WHERE \"the name\" = 'ANN'";
        assert_eq!(here.query_row(ann, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
        assert_eq!(here.query_row("SELECT g FROM v", [], |row| row.get::<_, i64>(0)).unwrap(), 10);
    }
}
