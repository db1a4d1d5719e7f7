//! The SQLite that last wrote the file.

use super::chart::Chart;
use crate::remark::Remark;
use crate::source::inspection;
use crate::sqlite::open;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if let Some(finding) = inspection::old_library(&chart.connection, chart.patient.path)? {
        let mut told = Remark::from(finding);
        let again =
            "; this is said until that one has changed the file's first page, as when a table is made, or by VACUUM";
        told.remedy = told.remedy.map(|remedy| remedy + again);
        return Ok(vec![told]);
    }
    Ok(vec![Remark::ok(match open::last_library(&chart.connection)?.filter(|version| *version > 0) {
        Some(version) => {
            format!("last written by SQLite {}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
        }
        None => "the file does not tell which SQLite wrote it".to_owned(),
    })])
}
