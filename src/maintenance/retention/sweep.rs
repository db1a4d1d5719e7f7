//! One table: its rows are looked at page by page on a connection that only reads, and deleted by the file's one writer, for about a millisecond at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::target::Target;
use super::{Mode, Retention};
use crate::controls::{self, Protection, Seam};
use crate::maintenance::readers::{Limit, Look, Readers, Why};
use crate::maintenance::{Failure, Report, archive};
use crate::source::fit::quoted;
use crate::sqlite::writer::{JobError, Writer};
use crate::telemetry::metric;

/// Rows that are looked at in one statement.
const PAGE: usize = 1_000;
/// What is begun before this is finished; then others have their turn.
const SLICE: Duration = Duration::from_millis(1);
/// How far everybody has come is looked at anew after this; downwards, it is at each slice.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// A row whose time is over.
#[derive(Clone, Debug)]
struct Due {
    row: i64,
    position: Option<i64>,
    times: Vec<Value>,
}

/// What a run has come to.
#[derive(Debug, Default)]
pub struct Tally {
    deleted: BTreeMap<String, u64>,
    held_back: BTreeMap<(Why, String), u64>,
    /// Kept by the table itself, or changed meanwhile.
    kept: u64,
    young: u64,
    /// Rows whose time cannot be read, and the first of them.
    timeless: u64,
    first_timeless: String,
}

pub struct Sweep<'a> {
    pub job: &'a Retention,
    pub app: &'a Connection,
    /// Reads the table.
    pub rows: &'a Connection,
    pub target: Target,
    pub foreign: Option<Arc<archive::Tables>>,
    pub mode: &'a Mode<'a>,
    pub writer: Option<Writer>,
}

/// What the writer works with.
struct Broom {
    readers: Readers,
    look: Look,
    foreign: Option<Arc<archive::Tables>>,
    /// Takes one row, or only counts it.
    sql: String,
    is_dry: bool,
    queue: Vec<Due>,
    at: usize,
}

/// What a slice has done.
#[derive(Debug, Default)]
struct Done {
    next: usize,
    taken: u64,
    kept: u64,
    held_back: BTreeMap<(Why, String), u64>,
}

impl Sweep<'_> {
    pub fn run(&self, tally: &mut Tally) -> Result<(), Failure> {
        let unread = |error: rusqlite::Error| self.job.unread(&error);
        tally.deleted.entry(self.target.table.clone()).or_default();
        let (oldest, last) = (self.job.oldest(), self.last().map_err(unread)?);
        let guard = self.target.guard();
        let table = quoted(&self.target.table);
        let is_dry = self.writer.is_none();
        let sql = match is_dry {
            true => format!("SELECT 1 FROM {table} AS o WHERE {guard}"),
            false => format!("DELETE FROM {table} AS o WHERE {guard}"),
        };
        let (readers, foreign) = (self.job.readers.clone(), self.foreign.clone());
        let broom = Broom { readers, look: self.look()?, foreign, sql, is_dry, queue: Vec::new(), at: 0 };
        // The writer's thread works with it while this one waits, and the other way round.
        let broom = Arc::new(Mutex::new(broom));
        let (mut after, mut looked) = (i64::MIN, Instant::now());
        loop {
            self.mode.go_on()?;
            let (queue, next) = self.page(after, last, oldest, tally).map_err(unread)?;
            let Some(next) = next else { return Ok(()) };
            after = next;
            {
                let mut broom = lock(&broom);
                (broom.queue, broom.at) = (queue, 0);
            }
            loop {
                {
                    let mut broom = lock(&broom);
                    if broom.at == broom.queue.len() {
                        break;
                    }
                    if looked.elapsed() >= LOOK_AGAIN_AFTER {
                        (broom.look, looked) = (self.look()?, Instant::now());
                    }
                }
                self.mode.go_on()?;
                let done = self.slice(&broom)?;
                lock(&broom).at = done.next;
                if !is_dry {
                    metric::rows_deleted(&self.job.name, done.taken);
                }
                tally.add(&self.target.table, done);
            }
        }
    }

    fn look(&self) -> Result<Look, Failure> {
        let foreign =
            |app: &Connection| self.foreign.as_ref().map_or(Ok(Limit::none()), |tables| tables.foreign_limit(app));
        self.job.readers.look(self.app, foreign)
    }

    /// The first of the newest rows, which stay.
    fn last(&self) -> rusqlite::Result<i64> {
        let (mut left, mut before) = (self.job.keep_newest, i64::MAX);
        let sql = format!(
            "SELECT o.rowid, coalesce(({}), 0) FROM {} AS o WHERE o.rowid < ?1 ORDER BY o.rowid DESC LIMIT {PAGE}",
            self.target.done,
            quoted(&self.target.table)
        );
        let mut statement = self.rows.prepare(&sql)?;
        while left > 0 {
            let rows = statement.query_map([before], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(i64, bool)> = rows.collect::<Result<_, _>>()?;
            if rows.is_empty() {
                return Ok(i64::MIN);
            }
            for (row, is_done) in rows {
                before = row;
                left -= u64::from(is_done);
                if left == 0 {
                    break;
                }
            }
        }
        Ok(before)
    }

    /// The rows of a page whose time is over, and where it ends; nothing at the end.
    fn page(
        &self,
        after: i64,
        last: i64,
        oldest: Option<i64>,
        tally: &mut Tally,
    ) -> rusqlite::Result<(Vec<Due>, Option<i64>)> {
        let times = self.target.times.len();
        let mut statement = self.rows.prepare_cached(&self.target.page(PAGE))?;
        let mut rows = statement.query([after, last])?;
        let (mut due, mut end) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            end = Some(row.get(0)?);
            if !row.get::<_, bool>(1)? {
                continue;
            }
            let found = Due {
                row: row.get(0)?,
                position: row.get(2)?,
                times: (0..times).map(|n| row.get(3 + n)).collect::<Result<_, _>>()?,
            };
            match oldest.map(|oldest| (oldest, self.micros(&found.times))) {
                None => due.push(found),
                Some((oldest, Some(time))) if time <= oldest => due.push(found),
                Some((_, Some(_))) => tally.young += 1,
                Some((_, None)) => tally.timeless(&self.target.table, &found),
            }
        }
        Ok((due, end))
    }

    /// The first that stands there has to be a time.
    fn micros(&self, times: &[Value]) -> Option<i64> {
        let (time, value) = self.target.times.iter().zip(times).find(|(_, value)| **value != Value::Null)?;
        time.micros(value)
    }

    /// Waits until it is committed.
    fn slice(&self, broom: &Arc<Mutex<Broom>>) -> Result<Done, Failure> {
        let Some(writer) = &self.writer else {
            return lock(broom).sweep(self.rows).map_err(|error| self.job.refused(&error.to_string()));
        };
        let broom = broom.clone();
        let swept = writer.work(move |connection| lock(&broom).sweep(connection));
        swept.map_err(|error| match error {
            JobError::Ended => Failure::Unavailable(error.to_string()),
            error => {
                let remedy =
                    "Nothing of this slice was deleted. Remedy: see which triggers and foreign keys stand on the table";
                self.job.refused(&format!("rows of {} cannot be deleted: {error}. {remedy}", self.target.table))
            }
        })
    }
}

fn lock(broom: &Mutex<Broom>) -> std::sync::MutexGuard<'_, Broom> {
    broom.lock().expect("a panic under this lock ends the writer, and is told")
}

impl Broom {
    /// Runs in the writer's transaction, and may be called again when that is undone.
    fn sweep(&self, connection: &Connection) -> Result<Done, JobError> {
        let began = Instant::now();
        let foreign = self.foreign.as_ref().map_or(Ok(Limit::none()), |tables| tables.projections_limit(connection))?;
        let limit = match self.readers.states.is_empty() {
            true => self.look.limit.clone(),
            false => self.look.lowered(&self.readers, connection, foreign)?.0,
        };
        let mut done = Done { next: self.at, ..Done::default() };
        let mut statement = connection.prepare_cached(&self.sql)?;
        while let Some(due) = self.queue.get(done.next).filter(|_| began.elapsed() < SLICE) {
            done.next += 1;
            if due.position.unwrap_or(i64::MAX - 1) > limit.position && !controls::is_off(Protection::Needed) {
                *done.held_back.entry((limit.why, limit.by.clone())).or_default() += 1;
                continue;
            }
            let values = [Value::Integer(due.row), due.position.map_or(Value::Null, Value::Integer)];
            let values = params_from_iter(values.iter().chain(&due.times));
            let is_taken = if self.is_dry { statement.exists(values)? } else { statement.execute(values)? == 1 };
            match is_taken {
                true => done.taken += 1,
                false => done.kept += 1,
            }
            if is_taken && !self.is_dry {
                controls::reach(Seam::Retention);
            }
        }
        Ok(done)
    }
}

impl Tally {
    fn add(&mut self, table: &str, done: Done) {
        *self.deleted.entry(table.to_owned()).or_default() += done.taken;
        self.kept += done.kept;
        for (by, count) in done.held_back {
            *self.held_back.entry(by).or_default() += count;
        }
    }

    fn timeless(&mut self, table: &str, due: &Due) {
        if self.timeless == 0 {
            let found =
                due.times.iter().find(|value| **value != Value::Null).map_or("NULL".to_owned(), |value| match value {
                    Value::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
                    Value::Integer(number) => number.to_string(),
                    Value::Real(number) => number.to_string(),
                    Value::Blob(_) => "a blob".to_owned(),
                    Value::Null => "NULL".to_owned(),
                });
            self.first_timeless = format!("row {} of {table}: {found}", due.row);
        }
        self.timeless += 1;
    }

    pub fn measure(&self, job: &str) {
        for why in [Why::Consumer, Why::Held, Why::Outbox] {
            let count = self.held_back.iter().filter(|((of, _), _)| *of == why).map(|(_, count)| count).sum();
            metric::retention_held_back(job, why.as_str(), count);
        }
    }

    pub fn told(&self, is_done: bool) -> Result<Report, Failure> {
        let verb = if is_done { "deleted" } else { "would be deleted" };
        let deleted = self.deleted.iter().map(|(table, count)| format!("{count} rows of {table} {verb}"));
        let mut told = deleted.collect::<Vec<_>>().join(", ");
        if told.is_empty() {
            told = format!("there is no table yet, and no row {verb}");
        }
        for ((_, by), count) in &self.held_back {
            told.push_str(&format!("; {count} held back by {by}"));
        }
        if self.kept > 0 {
            told.push_str(&format!(
                "; {} stay, since they are the newest of their kind, are held, or changed meanwhile",
                self.kept
            ));
        }
        if self.young > 0 {
            told.push_str(&format!("; {} are younger than older_than", self.young));
        }
        if self.timeless == 0 {
            return Ok(Report(told));
        }
        Err(Failure::Data(format!(
            "{told}; of {} it is not known how old they are, and they stay ({} is no time). Remedy: mend that, or say keep_newest in place of older_than",
            self.timeless, self.first_timeless
        )))
    }
}
