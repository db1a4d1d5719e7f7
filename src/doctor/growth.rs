//! How the file has grown, and how long its disk lasts.

use super::Told;
use super::chart::Chart;
use crate::sqlite::sizes::{self, Figures};

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Told>> {
    let path = chart.patient.path;
    let found = Figures::of(&chart.connection, path).growth_advice(path, sizes::age(path));
    let told: Vec<Told> = found.into_iter().map(Told::from).collect();
    Ok(if told.is_empty() {
        vec![Told::ok("its disk lasts for more than a month, as far as can be told")]
    } else {
        told
    })
}
