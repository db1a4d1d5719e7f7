//! How SQLite would read the tables: what reads or sorts all of one for every batch is told, with the index that is missing.

use super::chart::Chart;
use super::sqlite3;
use crate::remark::Remark;

const INDEX: &str = "CREATE INDEX \"";

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    let mut told = Vec::new();
    for (mapping, plan) in chart.tables.iter().filter_map(|table| table.fitted.as_ref().ok()) {
        told.extend(plan.warnings.iter().map(|warning| {
            let told = super::of_text(warning, Remark::advice);
            let remedy = told.remedy.clone().unwrap_or_default();
            match remedy.find(INDEX) {
                Some(at) => told.with([sqlite3(chart.patient.path, &remedy[at..])]),
                None => told,
            }
        }));
        if plan.warnings.is_empty() {
            told.push(Remark::ok(format!("of {}: {}", mapping.table, plan.steps.join("; "))));
        }
    }
    Ok(told)
}
