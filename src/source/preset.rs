//! The tables that are known by name: our own, and eventsource-py's through its generations.

use rusqlite::Connection;

use super::mapping::{Mapping, RowMapping};
use super::{Preset, Read};
use crate::sqlite::open;

/// Why a preset does not fit the file (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The table is not there; the application may be about to make it.
    NoTable(String),
    /// The table is there and cannot be used: what is wrong, and the remedy.
    Unusable(String),
}

/// Finds the mapping for a preset in the file as it is.
pub fn mapping(connection: &Connection, preset: Preset, read: Read) -> rusqlite::Result<Result<Mapping, Misfit>> {
    let base = match (preset, read) {
        (Preset::Outboxd, Read::Outbox) => OUTBOX,
        (Preset::Outboxd, Read::Events) => EVENTS,
        (Preset::EventsourcePy, Read::Events) => EVENTSOURCE_EVENTS,
        (Preset::EventsourcePy, Read::Outbox) => EVENTSOURCE_OUTBOX,
    };
    let columns = open::columns(connection, base.table)?;
    if columns.is_empty() {
        return Ok(Err(Misfit::NoTable(format!("there is no table {} yet", base.table))));
    }
    let type_of = |name: &str| columns.iter().find(|(column, _)| column == name).map(|(_, kind)| kind.as_str());
    Ok(match (preset, read) {
        (Preset::EventsourcePy, Read::Events) => Ok(match type_of("global_position") {
            Some(_) => base,
            // Releases 0.1, 0.2 and 0.3.0 call it `id`.
            None => Mapping { row: "id", ..base },
        }),
        (Preset::EventsourcePy, Read::Outbox) => eventsource_outbox(connection, base, type_of("id"))?,
        _ => Ok(base),
    })
}

fn eventsource_outbox(
    connection: &Connection,
    base: Mapping,
    id_type: Option<&str>,
) -> rusqlite::Result<Result<Mapping, Misfit>> {
    let events = open::columns(connection, "events")?;
    let has = |name: &str| events.iter().any(|(column, _)| column == name);
    let position = if has("global_position") {
        Some("e.global_position")
    } else if has("id") && has("event_id") {
        Some("e.id")
    } else {
        None
    };
    // Releases 0.3 to 0.5 write a UUID into an INTEGER key, which SQLite refuses: such a table stays empty, unless an
    // older release filled it.
    // 0.3.0 has the log of 0.2.0, where the outbox works: its table of checkpoints tells them apart.
    let checkpoints = open::columns(connection, "projection_checkpoints")?;
    let later_than_0_2 = has("global_position") || checkpoints.iter().any(|(column, _)| column == "global_position");
    if id_type == Some("INTEGER") && later_than_0_2 {
        let filled: bool = connection.query_row("SELECT EXISTS (SELECT 1 FROM event_outbox)", [], |row| row.get(0))?;
        if !filled {
            return Ok(Err(Misfit::Unusable(
                "event_outbox has an INTEGER id: eventsource-py 0.3 to 0.5 cannot write it (every insert fails with \
                 \"datatype mismatch\"), so nothing will ever stand in it. Remedy: relay the log instead (read = \"events\"), \
                 or upgrade the library to 0.8 or later and drop the empty table so that it is made anew"
                    .into(),
            )));
        }
    }
    Ok(Ok(match position {
        Some("e.global_position") => base,
        Some(_) => {
            Mapping { rows: Some(RowMapping { number: "e.id", position: "coalesce(e.id, o.rowid)", ..ROWS }), ..base }
        }
        None => Mapping {
            from: "event_outbox o",
            version: "NULL",
            rows: Some(RowMapping { number: "NULL", position: "o.rowid", ..ROWS }),
            ..base
        },
    }))
}

const OUTBOX: Mapping = Mapping {
    table: "outbox",
    from: "outbox",
    row: "position",
    id: "id",
    key: "coalesce(key, stream_id)",
    stream_id: "stream_id",
    stream_type: "stream_type",
    version: "NULL",
    kind: "type",
    payload: "payload",
    headers: "headers",
    time: "time",
    payload_member: false,
    rows: None,
};

const EVENTS: Mapping = Mapping {
    table: "events",
    from: "events",
    row: "position",
    id: "id",
    key: "stream_id",
    stream_id: "stream_id",
    stream_type: "stream_type",
    version: "version",
    kind: "type",
    payload: "data",
    headers: "metadata",
    time: "time",
    payload_member: false,
    rows: None,
};

/// eventsource-py, every release: the log.
const EVENTSOURCE_EVENTS: Mapping = Mapping {
    table: "events",
    from: "events",
    row: "global_position",
    id: "event_id",
    key: "aggregate_id",
    stream_id: "aggregate_id",
    stream_type: "aggregate_type",
    version: "version",
    kind: "event_type",
    payload: "payload",
    headers: "NULL",
    time: "timestamp",
    payload_member: false,
    rows: None,
};

/// eventsource-py: the outbox, in the order of the log where the event is there. `created_at` alone ties within one append,
/// and ids are random.
const EVENTSOURCE_OUTBOX: Mapping = Mapping {
    table: "event_outbox",
    from: "event_outbox o LEFT JOIN events e ON e.event_id = o.event_id",
    row: "o.id",
    id: "o.event_id",
    key: "o.aggregate_id",
    stream_id: "o.aggregate_id",
    stream_type: "o.aggregate_type",
    version: "e.version",
    kind: "o.event_type",
    payload: "o.event_data",
    headers: "NULL",
    time: "o.created_at",
    payload_member: true,
    rows: Some(ROWS),
};

const ROWS: RowMapping = RowMapping {
    pending: "o.status = 'pending'",
    number: "e.global_position",
    delivered: "o.status = 'published'",
    position: "coalesce(e.global_position, o.rowid)",
    on_delivered: "UPDATE event_outbox SET status = 'published', published_at = :now WHERE id = :row AND status = 'pending'",
    on_released: "UPDATE event_outbox SET status = 'published', published_at = :now \
                  WHERE id = :row AND status IN ('pending', 'failed')",
    on_retry: "UPDATE event_outbox SET retry_count = retry_count + 1, last_error = :error WHERE id = :row AND status = 'pending'",
    on_rejected: "UPDATE event_outbox SET status = 'failed', retry_count = retry_count + 1, last_error = :error \
                  WHERE id = :row AND status = 'pending'",
};
