//! What could be relayed here: tables that are known by name. Asked of a file that no configuration names.

use super::chart::Chart;
use crate::remark::Remark;

/// Of tables that are not known so many are named.
const NAMED_MAX: usize = 10;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if chart.patient.source.is_some() {
        return Ok(Vec::new());
    }
    let known = chart.tables.iter().filter_map(|table| Some((table.preset.as_ref()?, &table.fitted)));
    let told: Vec<Remark> = known
        .map(|((preset, read), fitted)| {
            let known = format!("known: preset = \"{preset}\", read = \"{read}\"");
            Remark::ok(match fitted {
                Ok((mapping, _)) => format!("{known}, of table {}", mapping.table),
                Err(_) => format!("{known}; it cannot be read as it is (`positions` says why)"),
            })
        })
        .collect();
    if !told.is_empty() {
        return Ok(told);
    }
    let sql =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    let names: Vec<String> =
        chart.connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let remedy = format!(
        "describe the table that has the events, column by column (docs/SOURCES.md); for one without a safe position `outboxd init --feed TABLE \
         {path}` makes a feed; and `outboxd init {path}` makes an outbox of ours",
        path = chart.patient.path.display()
    );
    let some = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let evidence = match names.len() {
        0 => "there is no table in it".to_owned(),
        count if count > NAMED_MAX => format!("none of its {count} tables is known by name: {some}, ..."),
        _ => format!("none of its tables is known by name: {some}"),
    };
    Ok(vec![Remark::advice(evidence, remedy)])
}
