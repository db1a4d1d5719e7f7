//! How SQLite will read the table: a scan or a sort for every batch is told, with the statement that makes the missing index.

use rusqlite::Connection;

use super::fit::quoted;
use super::mapping::Mapping;

/// `EXPLAIN QUERY PLAN`, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    pub steps: Vec<String>,
    /// Each with its remedy.
    pub warnings: Vec<String>,
}

impl Plan {
    pub fn of(connection: &Connection, mapping: &Mapping) -> rusqlite::Result<Self> {
        let sql = match &mapping.rows {
            None => mapping.select(0, &format!("{} > 0", mapping.row), &format!("ORDER BY {} LIMIT 1000", mapping.row)),
            Some(rows) => format!("SELECT {} FROM {} WHERE {} LIMIT 1000", mapping.row, mapping.from, rows.pending),
        };
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
        let steps: Vec<String> = statement.query_map([], |row| row.get(3))?.collect::<Result<_, _>>()?;
        let mut warnings: Vec<String> = steps.iter().filter_map(|step| warning(step, mapping)).collect();
        warnings.dedup();
        Ok(Self { steps, warnings })
    }
}

fn warning(step: &str, mapping: &Mapping) -> Option<String> {
    let table = quoted(&mapping.table);
    if step.contains("AUTOMATIC") {
        let column = step.split_once('(').map_or("...", |(_, rest)| rest.split(['=', '>', '<']).next().unwrap_or(rest));
        let joined = step.split_whitespace().nth(1).unwrap_or("...");
        return Some(format!(
            "every batch builds an index over {joined}, to find rows in it by {column}. Remedy: CREATE INDEX {} ON {joined} ({})",
            quoted(&format!("{joined}_{column}")),
            quoted(column)
        ));
    }
    let Some(rows) = &mapping.rows else {
        let slow =
            (step.starts_with("SCAN") && !step.contains("CONSTANT ROW")) || step.contains("TEMP B-TREE FOR ORDER BY");
        return slow.then(|| {
            format!(
                "every batch reads all of it ({step}). Remedy: see that the position is the table's own key, or CREATE INDEX {} ON {table} \
                 ({})",
                quoted(&format!("{}_position", mapping.table)),
                mapping.row
            )
        });
    };
    let all = rows.pending == "(true)";
    let slow = step.starts_with("SCAN") && !step.contains("USING") && !all;
    slow.then(|| {
        let index = match rows.index.as_slice() {
            [] => "an index over what `pending_sql` asks of".to_owned(),
            columns => {
                let name = quoted(&format!("{}_pending", mapping.table));
                format!("CREATE INDEX {name} ON {table} ({})", columns.join(", "))
            }
        };
        format!("every look for pending rows reads the whole table ({step}). Remedy: {index}")
    })
}
