//! How SQLite would read the tables: what reads or sorts all of one for every batch is told, with the index that is missing.

use super::chart::Chart;
use super::{Told, sqlite3};

const INDEX: &str = "CREATE INDEX \"";

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Told>> {
    let mut told = Vec::new();
    for (mapping, plan) in chart.tables.iter().filter_map(|table| table.fitted.as_ref().ok()) {
        told.extend(plan.warnings.iter().map(|warning| {
            let told = Told::of_text(warning, Told::advice);
            let remedy = told.remedy.clone().unwrap_or_default();
            match remedy.find(INDEX) {
                Some(at) => told.with(sqlite3(chart.patient.path, &remedy[at..])),
                None => told,
            }
        }));
        if plan.warnings.is_empty() {
            told.push(Told::ok(format!("of {}: {}", mapping.table, plan.steps.join("; "))));
        }
    }
    Ok(told)
}
