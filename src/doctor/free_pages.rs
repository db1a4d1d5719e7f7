//! Pages in the file that nothing is in.

use super::chart::Chart;
use super::sqlite3;
use crate::remark::Remark;
use crate::sqlite::sizes::Figures;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    let (path, figures) = (chart.patient.path, Figures::of(&chart.connection, chart.patient.path));
    let told = match figures.free_advice(path) {
        Some(finding) => {
            let mut told = Remark::from(finding);
            let once = "; or once, while the application may wait for it";
            told.remedy = told.remedy.map(|remedy| remedy + once);
            told.with([sqlite3(path, "VACUUM")])
        }
        None => Remark::ok(format!("{} of {} KiB", figures.free >> 10, figures.main >> 10)),
    };
    Ok(vec![told])
}
