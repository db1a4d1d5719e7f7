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
