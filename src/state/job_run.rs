//! The runs of jobs: when each began, how long it took, how it ended.
//!
//! A run is recorded before its work begins, so that one that was killed is known: it has no end ([`take_over`]). The newest is the one that was
//! recorded last, whatever the clock said.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use crate::clock;
use crate::controls::{self, Seam};
use crate::sqlite::writer::JobError;

/// Of each job.
const RUNS_KEPT: i64 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Done,
    Failed,
    /// The daemon was told to end, or the job was changed.
    Aborted,
    /// The process ended while it ran, or a reload did not wait for its end.
    Killed,
    /// No run: the job became known. What is missed is counted from here.
    Known,
}

/// One run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Microseconds since 1970 UTC.
    pub began: i64,
    /// As much later as it took; `None` while it runs.
    pub ended: Option<i64>,
    pub outcome: Option<Outcome>,
    pub detail: String,
}

impl Outcome {
    /// Those that a run ends with.
    pub const ENDS: [Outcome; 4] = [Outcome::Done, Outcome::Failed, Outcome::Aborted, Outcome::Killed];

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
            Outcome::Killed => "killed",
            Outcome::Known => "known",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ENDS.into_iter().chain([Outcome::Known]).find(|outcome| outcome.as_str() == name)
    }
}

impl Run {
    pub fn took(&self) -> Option<Duration> {
        self.ended.map(|ended| Duration::from_micros(ended.saturating_sub(self.began).max(0) as u64))
    }
}

/// Records that a run begins; returns when, which is its name: a clock that stands still gives no time twice.
pub fn begin(connection: &Connection, job: &str, now: i64) -> Result<i64, JobError> {
    let mut began = now;
    let mut insert = connection.prepare_cached("INSERT OR IGNORE INTO outboxd_job_run (job, began) VALUES (?1, ?2)")?;
    while insert.execute(params![job, clock::iso(began)])? == 0 {
        began += 1;
    }
    let sql = "DELETE FROM outboxd_job_run WHERE job = ?1 AND rowid <= (SELECT rowid FROM outboxd_job_run WHERE job = ?1 \
               ORDER BY rowid DESC LIMIT 1 OFFSET ?2)";
    connection.prepare_cached(sql)?.execute(params![job, RUNS_KEPT])?;
    controls::reach(Seam::JobRun);
    Ok(began)
}

/// Records its end, so long after it began.
pub fn end(
    connection: &Connection,
    job: &str,
    began: i64,
    took: Duration,
    outcome: Outcome,
    detail: &str,
) -> Result<(), JobError> {
    let ended = began.saturating_add(took.as_micros() as i64);
    let sql = "UPDATE outboxd_job_run SET ended = ?3, result = ?4, detail = ?5 WHERE job = ?1 AND began = ?2";
    connection.prepare_cached(sql)?.execute(params![
        job,
        clock::iso(began),
        clock::iso(ended),
        outcome.as_str(),
        detail
    ])?;
    controls::reach(Seam::JobRun);
    Ok(())
}

/// What a start has to know: the newest run (of a job that is new: since when it is known), and the run that was killed, which is marked as such.
pub fn take_over(connection: &Connection, job: &str, now: i64) -> Result<(Run, Option<Run>), JobError> {
    let killed = newest(connection, job)?.filter(|run| run.outcome.is_none());
    let sql = "UPDATE outboxd_job_run SET result = 'killed', detail = 'the process ended while it ran, a reload did not wait for its end, or this file was restored from a backup that was made meanwhile' WHERE job = ?1 AND result IS NULL";
    connection.prepare_cached(sql)?.execute([job])?;
    if newest(connection, job)?.is_none() {
        let began = begin(connection, job, now)?;
        end(connection, job, began, Duration::ZERO, Outcome::Known, "")?;
    }
    let newest = newest(connection, job)?.expect("a row has just been seen or made");
    Ok((newest, killed))
}

pub fn newest(connection: &Connection, job: &str) -> Result<Option<Run>, JobError> {
    one(connection, "job = ?1", job)
}

/// The newest that was done.
pub fn success(connection: &Connection, job: &str) -> Result<Option<Run>, JobError> {
    one(connection, "job = ?1 AND result = 'done'", job)
}

fn one(connection: &Connection, which: &str, job: &str) -> Result<Option<Run>, JobError> {
    let sql =
        format!("SELECT began, ended, result, detail FROM outboxd_job_run WHERE {which} ORDER BY rowid DESC LIMIT 1");
    Ok(connection.prepare_cached(&sql)?.query_row([job], read).optional()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Run> {
    let time = |text: Option<String>| text.and_then(|text| clock::parse_micros(&text));
    let (began, ended): (String, Option<String>) = (row.get(0)?, row.get(1)?);
    let outcome: Option<String> = row.get(2)?;
    Ok(Run {
        began: time(Some(began)).unwrap_or(0),
        ended: time(ended),
        outcome: outcome.as_deref().and_then(Outcome::named),
        detail: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::open;
    use crate::state;

    fn tables() -> (tempfile::TempDir, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let connection = open::state_file(&folder.path().join("state.db")).unwrap();
        state::migrate(&connection).unwrap();
        (folder, connection)
    }

    #[test]
    fn a_run_that_has_no_end_was_killed_and_is_told_so_once() {
        let (_folder, connection) = tables();
        let (known, none) = take_over(&connection, "j", 5_000_000).unwrap();
        assert_eq!((known.began, known.outcome, none), (5_000_000, Some(Outcome::Known), None));
        let began = begin(&connection, "j", 7_000_000).unwrap();
        let (newest, killed) = take_over(&connection, "j", 9_000_000).unwrap();
        assert_eq!((newest.began, newest.outcome), (began, Some(Outcome::Killed)));
        assert_eq!(killed.map(|run| run.began), Some(began));
        assert_eq!(take_over(&connection, "j", 9_000_000).unwrap(), (newest, None));
        assert_eq!(success(&connection, "j").unwrap(), None);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_makes_runs_all_the_same() {
        let (_folder, connection) = tables();
        let first = begin(&connection, "j", 7_000_000).unwrap();
        end(&connection, "j", first, Duration::from_millis(1500), Outcome::Done, "12 snapshots").unwrap();
        let second = begin(&connection, "j", 7_000_000).unwrap();
        assert_ne!(first, second);
        let third = begin(&connection, "j", 3_000_000).unwrap();
        end(&connection, "j", third, Duration::ZERO, Outcome::Failed, "away").unwrap();
        let newest = newest(&connection, "j").unwrap().unwrap();
        assert_eq!((newest.began, newest.outcome, newest.detail.as_str()), (third, Some(Outcome::Failed), "away"));
        let success = success(&connection, "j").unwrap().unwrap();
        assert_eq!((success.began, success.took()), (first, Some(Duration::from_millis(1500))));
    }

    #[test]
    fn the_newest_thousand_runs_are_kept() {
        let (_folder, connection) = tables();
        connection.execute_batch("BEGIN").unwrap();
        for n in 0..1_200 {
            begin(&connection, "j", n).unwrap();
        }
        begin(&connection, "k", 0).unwrap();
        let count = |job: &str| -> i64 {
            let sql = "SELECT count(*) FROM outboxd_job_run WHERE job = ?1";
            connection.query_row(sql, [job], |row| row.get(0)).unwrap()
        };
        assert_eq!((count("j"), count("k")), (RUNS_KEPT, 1));
        assert_eq!(newest(&connection, "j").unwrap().unwrap().began, 1_199);
    }
}
