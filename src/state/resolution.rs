//! Who decided what, when and why: the record of discards, moved positions, accepted definitions.

use rusqlite::{Connection, params};

use crate::clock;
use crate::sqlite::writer::JobError;

/// One decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolution<'a> {
    pub consumer: &'a str,
    pub action: &'static str,
    pub event_id: Option<&'a str>,
    pub key: Option<&'a [u8]>,
    pub reason: &'a str,
    pub detail: String,
}

pub fn record(connection: &Connection, resolution: &Resolution<'_>) -> Result<(), JobError> {
    connection
        .prepare_cached(
            "INSERT INTO outboxd_resolution (at, consumer, action, event_id, key, reason, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            clock::iso(clock::now_micros()),
            resolution.consumer,
            resolution.action,
            resolution.event_id,
            resolution.key,
            resolution.reason,
            resolution.detail,
        ])?;
    Ok(())
}

/// The ids of events that were discarded.
pub fn discarded(connection: &Connection, consumer: &str) -> Result<Vec<String>, JobError> {
    let sql =
        "SELECT event_id FROM outboxd_resolution WHERE consumer = ?1 AND action = 'discard' AND event_id IS NOT NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let ids = statement.query_map([consumer], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// What a moved position left out: from, exclusive, to, inclusive.
pub fn skipped(connection: &Connection, consumer: &str) -> Result<Vec<(i64, i64)>, JobError> {
    let sql = "SELECT detail FROM outboxd_resolution WHERE consumer = ?1 AND action = 'position'";
    let mut statement = connection.prepare_cached(sql)?;
    let details = statement.query_map([consumer], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    Ok(details.iter().filter_map(|detail| moved(detail)).filter(|(from, to)| from < to).collect())
}

/// The detail of a moved position.
pub fn moved_detail(from: Option<i64>, to: i64) -> String {
    format!("from {} to {to}", from.map_or_else(|| "none".to_owned(), |from| from.to_string()))
}

fn moved(detail: &str) -> Option<(i64, i64)> {
    let (from, to) = detail.strip_prefix("from ")?.split_once(" to ")?;
    Some((if from == "none" { 0 } else { from.parse().ok()? }, to.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_position_is_read_as_it_was_written() {
        assert_eq!(moved(&moved_detail(Some(7), 12)), Some((7, 12)));
        assert_eq!(moved(&moved_detail(None, 12)), Some((0, 12)));
        assert_eq!(moved("something else"), None);
    }
}
