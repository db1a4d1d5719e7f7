//! `type = "optimize"`: SQLite's statistics are made anew where they are out of date, a table at a time. What the planner knows is the application's
//! from the next time that it opens the file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::keys::{self, job_section};
use super::registry::{self, Sources};
use super::{Context, Failure, Job, Report, Settings};
use crate::setting::Checker;
use crate::setting::key::Fallback::{Required, Value};
use crate::setting::problem::KeyPath;
use crate::source::{self, inspection};
use crate::sqlite::open;
use crate::sqlite::writer::JobError;

const EVERY: Duration = Duration::from_hours(24);
const LIMIT: u64 = 400;

job_section! {
    /// Asks SQLite which statistics of an application's file are out of date (`PRAGMA optimize`), and makes those anew (ANALYZE), each in a transaction of its own. It writes
    /// `sqlite_stat1` into the file. Not said when: once a day.
    Optimize, "[jobs.<name>] with type = \"optimize\"" {
        /// A source of the file.
        source: String, Required, r#""shop""#;
        /// So many rows of an index are looked at: it bounds how long the write lock is held.
        analysis_limit: u64, Value("400"), "1000";
    }
}

#[derive(Debug)]
struct Statistics {
    source: source::Settings,
    limit: u64,
}

impl registry::Keys for Optimize {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let schedule = self.timing().resolve(name, Some(EVERY), checker);
        let key = KeyPath::of(["jobs", name, "analysis_limit"]);
        let limit = checker.within(&key, self.analysis_limit.unwrap_or(LIMIT), 100, 100_000);
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let job = Statistics { source: source.clone(), limit };
        Some(Settings {
            name: name.to_owned(),
            kind: "optimize",
            schedule: schedule?,
            home: source,
            job: Arc::new(job),
        })
    }
}

impl Statistics {
    fn unread(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::Unavailable(format!("{}: {error}", self.source.path.display()))
    }

    /// In WAL mode, like all that outboxd writes.
    fn inspect(&self) -> Result<(), Failure> {
        let connection = open::visitor(&self.source.path).map_err(|error| self.unread(&error))?;
        let finding = inspection::journal(&connection, &self.source.path).map_err(|error| self.unread(&error))?;
        finding.map_or(Ok(()), |finding| Err(Failure::Data(finding.to_string())))
    }
}

/// The statements that SQLite would run for all tables; it only tells them, and asks for the write lock all the same.
fn due(connection: &Connection) -> Result<Vec<String>, JobError> {
    let mut statement = connection.prepare("PRAGMA optimize(0x10003)")?;
    let told: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut due = Vec::new();
    for sql in told {
        let Some(table) = sql.strip_prefix("ANALYZE ") else { continue };
        // Of an empty table without an index it says so for ever.
        let has_rows = connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {table})"), [], |row| row.get(0))?;
        due.extend(Some(sql).filter(|_| has_rows));
    }
    Ok(due)
}

impl Job for Statistics {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.source.path.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        self.inspect()?;
        let writer = context.application(&self.source)?;
        let due = context.runtime.block_on(writer.perform(due)).map_err(|error| self.unread(&error))?;
        if due.is_empty() {
            return Ok(Report("no statistics are out of date".into()));
        }
        let count = due.len();
        for sql in due {
            context.go_on()?;
            let sql = format!("PRAGMA analysis_limit = {}; {sql}", self.limit);
            writer.work(move |connection| Ok(connection.execute_batch(&sql)?)).map_err(|error| self.unread(&error))?;
        }
        Ok(Report(format!("statistics of {count} tables made anew, of at most {} rows of an index", self.limit)))
    }
}
