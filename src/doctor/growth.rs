//! How the file has grown, and how long its disk lasts.

use super::chart::Chart;
use crate::remark::Remark;
use crate::sqlite::sizes::{self, Figures};

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    let path = chart.patient.path;
    let found = Figures::of(&chart.connection, path).growth_advice(path, sizes::age(path));
    let told: Vec<Remark> = found.into_iter().map(Remark::from).collect();
    Ok(if told.is_empty() {
        vec![Remark::ok("its disk lasts for more than a month, as far as can be told")]
    } else {
        told
    })
}
