//! The doctor: what is dangerous, or could be better, about a database file and what outboxd is to do with it.
//!
//! One list of checks (`OUTSIDE`, `INSIDE`), each a function in a file of its own: what was found with its evidence, the remedy, and where
//! there are any the commands that carry it out. A new check is such a function and its line.
//!
//! Invariants (`tests/it/a_doctor_finds_faults.rs`, at the far side `tests/it/a_doctor_looks_at_sinks.rs`):
//! 1. Nothing is changed. A file whose opening could lock its application out is not opened. (A Kafka cluster that makes topics by itself makes a
//!    constant one when it is asked for by what `check` asks.)
//! 2. A look into the file is over within [`LOOK_MAX`]; what was not seen in that time is said.
//! 3. What keeps a source from being read is told in the words of a start and of `check`: they ask the same functions
//!    ([`crate::source::inspection`], [`crate::source::fit`], [`sinks::ask`]).
//!
//! What it cannot see is what is not in the file: `synchronous` and `foreign_keys` belong to each connection of the application.

mod chart;
mod clock;
pub mod configuration;
mod free_pages;
mod growth;
mod journal;
mod keys;
mod library;
mod litestream;
mod lock;
mod owners;
mod place;
mod plans;
mod positions;
mod rebuilt;
mod room;
mod sample;
pub mod sinks;
mod tables;
mod values;
mod wal;

use std::path::Path;
use std::time::Duration;

use crate::remark::{Remark, Verdict, word};
use crate::source;
use crate::sqlite::premises;
use chart::Chart;

/// How long each look into the file may take.
pub const LOOK_MAX: Duration = Duration::from_secs(2);

/// What a check says of what.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    pub check: &'static str,
    pub subject: String,
    #[serde(flatten)]
    pub remark: Remark,
}

/// Of a text with its remedy behind `Remedy: `, as sources tell what they cannot read.
fn of_text(text: &str, tell: fn(String, String) -> Remark) -> Remark {
    let (evidence, remedy) = text.split_once(" Remedy: ").unwrap_or((text, "see docs/SOURCES.md"));
    tell(evidence.trim_end_matches('.').to_owned(), remedy.to_owned())
}

impl From<premises::Finding> for Remark {
    fn from(finding: premises::Finding) -> Self {
        let verdict = if finding.is_refusal() { Verdict::Danger } else { Verdict::Advice };
        Self { verdict, remedy: Some(finding.remedy), ..Self::ok(finding.evidence) }
    }
}

/// A file, and what is known about it beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Patient<'a> {
    pub path: &'a Path,
    /// The source that reads it, where there is a configuration.
    pub source: Option<&'a source::Settings>,
}

type Outside = fn(&Patient<'_>) -> Vec<Remark>;
type Inside = fn(&Chart<'_>) -> rusqlite::Result<Vec<Remark>>;

/// Asked before the file is opened.
const OUTSIDE: [(&str, Outside); 3] = [("place", place::look), ("owners", owners::look), ("clock", clock::look)];

/// Asked of the open file.
const INSIDE: [(&str, Inside); 13] = [
    ("journal", journal::look),
    ("library", library::look),
    ("tables", tables::look),
    ("positions", positions::look),
    ("plans", plans::look),
    ("keys", keys::look),
    ("values", values::look),
    ("wal", wal::look),
    ("lock", lock::look),
    ("free-pages", free_pages::look),
    ("growth", growth::look),
    ("room", room::look),
    ("litestream", litestream::look),
];

/// What the doctor says of a file, and which configuration would read it.
pub struct Report {
    pub found: Vec<Found>,
    /// The presets that fit, each with what it reads: for a file that no configuration names.
    pub readable: Vec<(&'static str, String)>,
}

/// Looks at a file.
pub fn examine(patient: &Patient<'_>) -> Report {
    let subject = match patient.source {
        Some(source) => format!("source {} ({})", source.name, patient.path.display()),
        None => patient.path.display().to_string(),
    };
    let found = |check: &'static str, remark: Remark| Found { check, subject: subject.clone(), remark };
    if !patient.path.exists() && owners::look(patient).iter().all(|told| told.verdict == Verdict::Ok) {
        let told = Remark::advice("it is not there yet", "let the application make it; `outboxd run` waits for it");
        return Report { found: vec![found("place", told)], readable: Vec::new() };
    }
    let mut all: Vec<Found> =
        OUTSIDE.iter().flat_map(|(check, look)| look(patient).into_iter().map(|told| found(check, told))).collect();
    let locks_out = all.iter().any(|found| found.check != "clock" && found.remark.verdict == Verdict::Danger);
    if locks_out {
        let told = Remark::advice(
            "what is in it was not looked at: opening it could do harm, by what is said above",
            "mend that first, and ask again",
        );
        all.push(found("contents", told));
        return Report { found: all, readable: Vec::new() };
    }
    let chart = match Chart::of(patient) {
        Ok(chart) => chart,
        Err(error) => {
            let remedy = "name the application's SQLite file; if it is one, see docs/BACKUP.md about restoring it";
            all.push(found("contents", Remark::danger(format!("it cannot be read: {error}"), remedy)));
            return Report { found: all, readable: Vec::new() };
        }
    };
    for (check, look) in INSIDE {
        chart.limit.begin();
        let told = look(&chart).unwrap_or_else(|error| vec![not_seen(&error)]);
        all.extend(told.into_iter().map(|told| found(check, told)));
    }
    Report { found: all, readable: chart.readable() }
}

fn not_seen(error: &rusqlite::Error) -> Remark {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::OperationInterrupted) => Remark::ok(format!("not seen within {LOOK_MAX:?}")),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            Remark::advice(format!("not seen: {error}"), "ask again when the application writes less")
        }
        _ => Remark::danger(
            format!("it cannot be read: {error}"),
            "see what a job of type `integrity` says of the file (docs/JOBS.md); if it is damaged, docs/BACKUP.md",
        ),
    }
}

fn sqlite3(path: &Path, sql: &str) -> String {
    format!("sqlite3 {} {}", word(&path.display().to_string()), word(sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_are_one_word_each() {
        assert_eq!(sqlite3(Path::new("/a b/it's.db"), "SELECT 'x'"), r"sqlite3 '/a b/it'\''s.db' 'SELECT '\''x'\'''");
    }
}
