//! Litestream beside the file.

use super::Told;
use super::chart::Chart;
use crate::sqlite::litestream;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Told>> {
    Ok(vec![Told::ok(match litestream::is_there(&chart.connection, chart.patient.path)? {
        true => "Litestream is at work here, and owns the checkpoints: outboxd makes none, and no full VACUUM",
        false => "no sign of Litestream",
    })])
}
