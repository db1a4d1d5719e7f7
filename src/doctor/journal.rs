//! The journal mode, and what `synchronous` means for phantoms: events that were sent, and that a power cut takes back.

use super::chart::Chart;
use super::sqlite3;
use crate::remark::Remark;
use crate::source::{Durability, inspection};

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if let Some(finding) = inspection::journal(&chart.connection, chart.patient.path)? {
        return Ok(vec![Remark::from(finding).with([sqlite3(chart.patient.path, "PRAGMA journal_mode = WAL")])]);
    }
    let is_fast = chart.patient.source.is_some_and(|source| source.durability == Durability::Fast);
    Ok(vec![if is_fast {
        Remark::advice(
            "journal mode wal, and durability = \"fast\": with synchronous = NORMAL, which each connection of the application sets for itself, a power \
             cut takes back events that were sent already (phantoms)",
            "leave durability at \"strict\", or see that every connection that writes has PRAGMA synchronous = FULL",
        )
    } else {
        Remark::ok(
            "journal mode wal. What each connection has as `synchronous` does not stand in the file; with NORMAL a power cut takes back the last \
             commits. No phantom comes of it: outboxd makes durable what it reads before it sends it (durability = \"strict\")",
        )
    }])
}
