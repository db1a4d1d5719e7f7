//! Litestream beside the file.

use super::chart::Chart;
use crate::remark::Remark;
use crate::sqlite::litestream;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    Ok(vec![Remark::ok(match litestream::is_there(&chart.connection, chart.patient.path)? {
        true => "Litestream is at work here, and owns the checkpoints: outboxd makes none, and no full VACUUM",
        false => "no sign of Litestream",
    })])
}
