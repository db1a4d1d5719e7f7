//! SQL of a person's own on a connection that writes: what it may do, and for how long.
//!
//! SQLite asks an authorizer for everything that a statement is going to do, when it is prepared; also when it is prepared anew because the
//! schema has changed. There is one for the life of the connection (setting another one would have every statement prepared anew), which
//! asks who is acting: ourselves, who may do everything, or somebody under [`Rules`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;

use crate::controls::{self, Protection};

/// What a person's SQL may reach. Names are in lower case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Tables that it may write and read, and views of them.
    pub own: BTreeSet<String>,
    /// Tables and views that it may read.
    pub reads: BTreeSet<String>,
    /// All that there are, where that matters: a table of which no column is read is asked for without its database, as is a name made by WITH.
    pub known: BTreeSet<String>,
    /// It makes its tables, with their indexes, views and triggers; otherwise it works on them.
    pub defines: bool,
    /// How long one statement may run.
    pub time_max: Duration,
}

/// Table-valued functions that reach nothing but their arguments.
const JSON_TABLES: [&str; 2] = ["json_each", "json_tree"];
const SCHEMA_TABLES: [&str; 3] = ["sqlite_master", "sqlite_schema", "sqlite_sequence"];
/// What loads code, or gives another answer each time: then a rebuild would not come to the same.
const FUNCTIONS_DENIED: [&str; 4] = ["load_extension", "fts3_tokenizer", "random", "randomblob"];

/// The hold on one connection. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Guard {
    // The connection's thread takes it when a statement is prepared, and nobody else while one is: never contended.
    acting: Arc<Mutex<Acting>>,
    running: Arc<Running>,
}

/// What the progress handler looks at.
#[derive(Debug, Default)]
struct Running {
    /// Counts the statements that were begun.
    statement: AtomicU64,
    /// How long it may run, in microseconds; 0 = there is no limit.
    most_micros: AtomicU64,
}

#[derive(Debug, Default)]
struct Acting {
    rules: Option<Arc<Rules>>,
    denied: Option<String>,
    writes: bool,
    /// It was asked since it was looked.
    is_watched: bool,
}

impl Guard {
    /// SQLite asks so often, in steps of its machine, whether to go on: about every 100 us.
    const STEPS: i32 = 10_000;

    /// From now on the connection is guarded.
    pub fn install(connection: &Connection) -> rusqlite::Result<Self> {
        let guard = Self { acting: Arc::default(), running: Arc::default() };
        // Their first use makes them, which asks to write the schema.
        for table in JSON_TABLES {
            connection.prepare(&format!("SELECT count(*) FROM {table}('[]')"))?;
        }
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20)?;
        connection.set_limit(Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50)?;
        connection.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, 500)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)?;
        guard.watch(connection)?;
        // Most statements end before it is asked: only of those that do not is the time noted.
        let (running, mut seen, mut since) = (guard.running.clone(), 0, Instant::now());
        let is_over = move || {
            let (statement, most) = (running.statement.load(Relaxed), running.most_micros.load(Relaxed));
            if statement != seen {
                (seen, since) = (statement, Instant::now());
            }
            most > 0 && since.elapsed() > Duration::from_micros(most)
        };
        connection.progress_handler(Self::STEPS, Some(is_over))?;
        Ok(guard)
    }

    /// Has the authorizer look. Another one may have been put in its place meanwhile, and taken away.
    fn watch(&self, connection: &Connection) -> rusqlite::Result<()> {
        let acting = self.acting.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            let mut acting = lock(&acting);
            acting.is_watched = true;
            acting.writes |= matches!(
                context.action,
                AuthAction::Insert { .. } | AuthAction::Update { .. } | AuthAction::Delete { .. }
            );
            let verdict = acting.rules.as_ref().map_or(Ok(()), |rules| rules.judge(&context));
            match verdict {
                Err(denied) if !controls::is_off(Protection::Authorizer) => {
                    acting.denied.get_or_insert(denied);
                    Authorization::Deny
                }
                _ => Authorization::Allow,
            }
        }))
    }

    /// Does something under these rules.
    pub fn under<T>(
        &self,
        connection: &Connection,
        rules: &Arc<Rules>,
        work: impl FnOnce() -> T,
    ) -> rusqlite::Result<T> {
        *lock(&self.acting) = Acting::default();
        connection.prepare("SELECT 1")?;
        if !lock(&self.acting).is_watched {
            self.watch(connection)?;
        }
        lock(&self.acting).rules = Some(rules.clone());
        let done = work();
        lock(&self.acting).rules = None;
        self.running.most_micros.store(0, Relaxed);
        Ok(done)
    }

    /// A statement begins, which may run for so long.
    pub fn begin(&self, time_max: Duration) {
        self.running.statement.fetch_add(1, Relaxed);
        self.running.most_micros.store(time_max.as_micros() as u64, Relaxed);
    }

    /// Whether what was prepared last under rules asked to write rows: some statements that do other things ask nothing.
    pub fn writes(&self) -> bool {
        lock(&self.acting).writes
    }

    /// What was denied first since it was asked last.
    pub fn denied(&self) -> Option<String> {
        lock(&self.acting).denied.take()
    }
}

fn lock(acting: &Mutex<Acting>) -> MutexGuard<'_, Acting> {
    acting.lock().expect("no panic happens under this lock")
}

impl Rules {
    fn is_own(&self, table: &str) -> bool {
        self.own.contains(&table.to_lowercase())
    }

    fn may_read(&self, table: &str) -> bool {
        self.is_own(table) || self.reads.contains(&table.to_lowercase())
    }

    /// An error says what is denied.
    fn judge(&self, context: &AuthContext<'_>) -> Result<(), String> {
        let is_schema = |table: &str| self.defines && SCHEMA_TABLES.contains(&table);
        let is_main = context.database_name == Some("main");
        let writes = |table: &str| match is_main && (self.is_own(table) || is_schema(table)) {
            true => Ok(()),
            false => Err(format!("it may not write {table}, which `tables` does not name")),
        };
        match context.action {
            AuthAction::Select | AuthAction::Recursive => Ok(()),
            AuthAction::Insert { table_name }
            | AuthAction::Delete { table_name }
            | AuthAction::Update { table_name, .. } => writes(table_name),
            AuthAction::Read { table_name, .. } => {
                let is_with = context.database_name.is_none() && !self.known.contains(&table_name.to_lowercase());
                let is_json = JSON_TABLES.contains(&table_name);
                match is_with || is_json || is_schema(table_name) || self.may_read(table_name) {
                    true => Ok(()),
                    false => Err(format!("it may not read {table_name}, which neither `tables` nor `reads` names")),
                }
            }
            AuthAction::Function { function_name } => {
                match FUNCTIONS_DENIED.contains(&function_name.to_lowercase().as_str()) {
                    true => Err(format!("it may not call {function_name}()")),
                    false => Ok(()),
                }
            }
            AuthAction::CreateTable { table_name }
            | AuthAction::CreateIndex { table_name, .. }
            | AuthAction::CreateTrigger { table_name, .. }
                if self.defines =>
            {
                writes(table_name)
            }
            AuthAction::CreateView { .. } | AuthAction::Reindex { .. } if self.defines && is_main => Ok(()),
            _ => Err("it may insert, update and delete rows, and nothing else".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::open;

    #[test]
    fn whoever_takes_the_authorizer_away_takes_no_rule_away() {
        let connection = open::scratch().unwrap();
        connection.execute_batch("CREATE TABLE mine (a); CREATE TABLE theirs (a)").unwrap();
        let guard = Guard::install(&connection).unwrap();
        let rules = Arc::new(Rules { own: ["mine".to_owned()].into(), ..Rules::default() });
        for _ in 0..2 {
            let prepare = |sql: &str| guard.under(&connection, &rules, || connection.prepare(sql).is_ok()).unwrap();
            assert!(prepare("DELETE FROM mine"));
            assert!(!prepare("DELETE FROM theirs"));
            open::fenced(&connection, |connection| connection.prepare("SELECT 1").map(drop)).unwrap().unwrap();
        }
        assert!(connection.prepare("DELETE FROM theirs").is_ok(), "we ourselves may");
    }
}
