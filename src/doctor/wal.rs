//! The `-wal`: how large it is, and which process keeps it from being emptied.

use std::thread;
use std::time::Duration;

use super::chart::Chart;
use crate::remark::Remark;
use crate::sqlite::holders::{self, Holder};
use crate::sqlite::log::{self, Log};
use crate::sqlite::sizes::Figures;

/// A read transaction that is there before and after is no short one.
const BETWEEN: Duration = Duration::from_millis(300);

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    let path = chart.patient.path;
    if chart.journal != "wal" {
        return Ok(Vec::new());
    }
    let mut told: Vec<Remark> =
        Figures::of(&chart.connection, path).wal_advice(path).map(Remark::from).into_iter().collect();
    // Where the -shm cannot be written, SQLite does not tell.
    let backlog = || Log::of(&chart.connection).map_or(0, Log::backlog);
    let before = backlog();
    if before < log::DUE_PAGES {
        if told.is_empty() {
            told.push(Remark::ok(format!("{before} pages wait to be copied into the file")));
        }
        return Ok(told);
    }
    let first = holders::of_read_marks(path);
    thread::sleep(BETWEEN);
    let again = holders::of_read_marks(path);
    let (after, stay): (i64, Vec<Holder>) =
        (backlog(), first.into_iter().filter(|holder| again.contains(holder)).collect());
    if after < log::DUE_PAGES {
        return Ok(told);
    }
    let evidence = format!("{after} pages of the -wal wait to be copied into the file");
    if stay.is_empty() {
        let remedy = "see that the application checkpoints (PRAGMA wal_autocheckpoint is 1000 unless it says otherwise), and that no process out of \
                      sight, as in another container, reads for long";
        told.push(Remark::advice(format!("{evidence}, and no process is seen that reads for long"), remedy));
    }
    told.extend(stay.iter().map(|holder| {
        let remedy = "let it end its read transaction (an open cursor, a forgotten BEGIN); the application's next commits then empty the -wal";
        Remark::advice(format!("{evidence}, and {holder} reads for long"), remedy)
    }));
    Ok(told)
}
