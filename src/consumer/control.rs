//! What operators may ask of a consumer, while it runs or (through the same functions, on the files) while it does not.

mod patience;

use std::path::Path;
use std::time::Duration;

use rusqlite::OptionalExtension;
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub use self::patience::{OPERATION_MAX, in_time, late, operate_within};

use super::Settings;
use super::rebuild;
use super::replay::{self, Wanted};
use crate::clock;
use crate::controls::{self, Seam};
use crate::event::Position;
use crate::source;
use crate::source::reader::{Halt, Head, Look, Mark, Names, Reader, SourceState};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state;
use crate::state::checkpoint::{self, Checkpoint, Sent, Witnesses};
use crate::state::files::Files;
use crate::state::held::{self, HeldRow, HeldState, Selection};
use crate::state::resolution::{self, Resolution};
use crate::state::schema_version;

pub type Reply = oneshot::Sender<Result<Value, JobError>>;

/// To a running consumer.
#[derive(Debug)]
pub enum Command {
    Pause(Reply),
    /// Goes on after a pause or a halt.
    Resume(Reply),
    Operate(Operation, Reply),
}

/// Looks at or changes what is recorded of a consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Without what is kept of the events.
    List {
        selection: Selection,
        most: usize,
    },
    Show(Selection),
    Retry(Selection),
    Discard {
        selection: Selection,
        reason: String,
    },
    Position,
    SetPosition {
        to: Target,
        reason: String,
    },
    Accept {
        reason: String,
    },
    Forget {
        reason: String,
    },
    /// Puts a projection's tables that were made anew in the place of the live ones.
    Swap {
        /// Of the definition that they were made by.
        hash: String,
        with_dead_letters: bool,
    },
    /// Drops the tables that a swap has kept.
    DropKept,
    /// Sends settled events again, or goes on with that.
    Replay(Wanted),
    CancelReplay,
}

/// Where a consumer is to go on: behind this event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Before the first event.
    First,
    /// Behind the newest.
    Head,
    Position(Position),
}

/// What an operation came to.
#[derive(Debug)]
pub struct Done {
    pub value: Value,
    /// The consumer must start anew.
    pub restarts: bool,
    /// Held rows were changed.
    pub changed_holds: bool,
    /// The recorded replay was changed.
    pub replays: bool,
}

/// How long a source is waited for on an operator's behalf.
const LOOK_MAX: Duration = Duration::from_secs(10);

impl Operation {
    /// It works for as long as there are rows: late is only what does not work.
    pub fn takes_its_time(&self) -> bool {
        matches!(self, Operation::Swap { .. } | Operation::DropKept)
    }
}

/// Its tables hold what is settled already.
const NOT_A_RELAY: &str = "a projection is not replayed: what its tables hold would be counted twice. Remedy: `outboxd rebuild` makes \
                           them anew from the first event";
/// Rows that one command changes.
const ROWS_MAX: usize = 10_000;
/// Rows that are shown whole.
const SHOWN_MAX: usize = 20;

pub async fn set_paused(writer: &Writer, consumer: &str, paused: bool) -> Result<Value, JobError> {
    let name = consumer.to_owned();
    writer.perform(move |connection| checkpoint::set_paused(connection, &name, paused)).await?;
    Ok(json!({ "consumer": consumer, "paused": paused }))
}

/// Runs an operation in the file that the consumer's state stands in. The reader is asked only where the source has to be looked at.
pub async fn operate(
    writer: &Writer,
    reader: &Reader,
    settings: &Settings,
    operation: Operation,
) -> Result<Done, JobError> {
    let name = settings.name.clone();
    match operation {
        Operation::List { selection, most } => {
            let listed = move |connection: &rusqlite::Connection| {
                let rows = held::select(connection, &name, &selection, most)?;
                rows.iter().map(|row| short_json(connection, &name, row)).collect::<Result<Vec<Value>, JobError>>()
            };
            let rows = writer.perform(listed).await?;
            Ok(looked(json!({ "consumer": settings.name, "dead_letters": rows })))
        }
        Operation::Show(selection) => {
            let shown = move |connection: &rusqlite::Connection| {
                let rows = held::select(connection, &name, &selection, SHOWN_MAX)?;
                rows.iter().map(|row| whole_json(connection, &name, row)).collect::<Result<Vec<Value>, JobError>>()
            };
            let rows = writer.perform(shown).await?;
            Ok(looked(json!({ "consumer": settings.name, "dead_letters": rows })))
        }
        Operation::Retry(selection) => {
            let retried = writer.perform(move |c| retry(c, &name, &selection)).await?;
            Ok(changed(json!({ "consumer": settings.name, "retried": retried.0, "out_of_order": retried.1 })))
        }
        Operation::Discard { selection, reason } => {
            let discarded = writer.perform(move |c| discard(c, &name, &selection, &reason)).await?;
            Ok(changed(json!({ "consumer": settings.name, "discarded": discarded })))
        }
        Operation::Position => {
            let checkpoint = writer.perform(move |c| checkpoint::load(c, &name)).await?;
            let none = || json!({ "consumer": settings.name, "source": settings.source });
            let mut value = checkpoint.filter(|_| !reader.by_row).map_or_else(none, |c| checkpoint_json(&c));
            if let SourceState::Ready(Head::Position(head)) = &*reader.state.borrow() {
                value["head"] = json!(head.0);
            }
            Ok(looked(value))
        }
        Operation::SetPosition { to, reason } => set_position(writer, reader, settings, to, reason).await,
        Operation::Accept { reason } => {
            let mapping = look(reader).await?.mapping;
            let (source, definition) = (settings.source.clone(), settings.definition(&mapping));
            let section = settings.destination.tables().map(|tables| tables.as_json());
            let accept = move |c: &rusqlite::Connection| {
                accept(c, &name, &source, &definition, &reason)?;
                section.as_ref().map_or(Ok(()), |section| checkpoint::keep_section(c, &name, section))
            };
            writer.perform(accept).await?;
            Ok(Done { restarts: true, ..changed(json!({ "consumer": settings.name, "accepted": true })) })
        }
        Operation::Forget { reason } => {
            let gone = writer.perform(move |c| forget(c, &name, &reason)).await?;
            let value = json!({ "consumer": settings.name, "forgotten": [gone], "is_configured": true });
            Ok(Done { restarts: true, ..changed(value) })
        }
        Operation::Swap { hash, with_dead_letters } => {
            if settings.destination.tables().is_some_and(|tables| tables.hash() != hash) {
                let text = "the running daemon has another definition. Remedy: `outboxd reload`, then rebuild again";
                return Err(JobError::Refused(text.to_owned()));
            }
            let definition = settings.definition(&look(reader).await?.mapping);
            let swapped = rebuild::put_in_place(writer, reader, settings, definition, with_dead_letters).await?;
            Ok(Done { restarts: true, ..changed(swapped) })
        }
        Operation::DropKept => Ok(looked(rebuild::drop_kept(writer, settings).await?)),
        Operation::Replay(_) if settings.destination.tables().is_some() => {
            Err(JobError::Refused(NOT_A_RELAY.to_owned()))
        }
        Operation::Replay(wanted) => {
            let source = reader.settings.clone();
            let begun = replay::begin(writer, &source, settings, wanted).await?;
            let value =
                json!({ "consumer": settings.name, "number": begun.number, "place": begun.place, "sent": begun.sent });
            Ok(Done { replays: true, ..looked(value) })
        }
        Operation::CancelReplay => {
            let cancelled = writer.perform(move |c| state::replay::cancel(c, &name)).await?;
            if !cancelled {
                return Err(JobError::Refused(format!("no replay of {} is under way", settings.name)));
            }
            Ok(Done { replays: true, ..looked(json!({ "consumer": settings.name, "cancelled": true })) })
        }
    }
}

fn looked(value: Value) -> Done {
    Done { value, restarts: false, changed_holds: false, replays: false }
}

fn changed(value: Value) -> Done {
    Done { value, restarts: false, changed_holds: true, replays: false }
}

fn text_or_hex(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.starts_with('\0') => json!(text),
        _ => json!(null),
    }
}

fn row_json(row: &HeldRow) -> Value {
    json!({
        "id": row.event_id,
        "key": text_or_hex(&row.key),
        "position": row.position.0,
        "row": row.row_key.as_ref().map(ToString::to_string),
        "state": row.state.as_str(),
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_micros.map(clock::iso),
        "reason": row.reason,
        "detail": row.detail,
        "held_at": row.held_at,
    })
}

/// The row with the event's type.
fn short_json(connection: &rusqlite::Connection, consumer: &str, row: &HeldRow) -> Result<Value, JobError> {
    let mut value = row_json(row);
    value["event"] = json!({ "type": held::kind(connection, consumer, row)? });
    Ok(value)
}

/// The row with the event as it is kept.
fn whole_json(connection: &rusqlite::Connection, consumer: &str, row: &HeldRow) -> Result<Value, JobError> {
    let kept = held::payload(connection, consumer, row)?;
    let event: Option<Value> = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
    let mut value = row_json(row);
    value["event"] = event.unwrap_or(Value::Null);
    Ok(value)
}

fn checkpoint_json(checkpoint: &Checkpoint) -> Value {
    json!({
        "consumer": checkpoint.consumer,
        "source": checkpoint.source,
        "position": checkpoint.mark.position.0,
        "event_id": checkpoint.mark.event_id,
        "updated_at": checkpoint.updated_at,
    })
}

/// Makes the selected heads due. Returns how many, and how many of them were skipped before (they come out of order).
fn retry(connection: &rusqlite::Connection, consumer: &str, selection: &Selection) -> Result<(usize, usize), JobError> {
    let heads = Selection { heads_only: true, ..selection.clone() };
    let rows = held::select(connection, consumer, &heads, ROWS_MAX)?;
    let now = clock::now_micros();
    for row in &rows {
        held::revive(connection, consumer, row, now)?;
        controls::reach(Seam::Operate);
    }
    Ok((rows.len(), rows.iter().filter(|row| row.state == HeldState::Skipped).count()))
}

fn discard(
    connection: &rusqlite::Connection,
    consumer: &str,
    selection: &Selection,
    reason: &str,
) -> Result<usize, JobError> {
    if reason.trim().is_empty() {
        return Err(JobError::Refused("discarding wants a reason: it is recorded in outboxd_resolution".into()));
    }
    let rows = held::select(connection, consumer, &Selection { heads_only: true, ..selection.clone() }, ROWS_MAX)?;
    for row in &rows {
        let detail = whole_json(connection, consumer, row)?.to_string();
        let (event_id, key) = (Some(row.event_id.as_str()), Some(&row.key[..]));
        resolution::record(connection, &Resolution { consumer, action: "discard", event_id, key, reason, detail })?;
        held::delete(connection, consumer, &row.key, row.ordinal)?;
        controls::reach(Seam::Operate);
    }
    Ok(rows.len())
}

async fn look(reader: &Reader) -> Result<Look, JobError> {
    let late = || Err(Halt::new("the source is not there, or locked".into()));
    let looked = tokio::time::timeout(LOOK_MAX, reader.look()).await.unwrap_or_else(|_| late());
    looked.map_err(|halt| JobError::Refused(halt.detail))
}

async fn set_position(
    writer: &Writer,
    reader: &Reader,
    settings: &Settings,
    to: Target,
    reason: String,
) -> Result<Done, JobError> {
    if reader.by_row {
        return Err(JobError::Refused(
            "this source is read by row: it has no position. Remedy: set the rows' status in the application's table"
                .into(),
        ));
    }
    let look = look(reader).await?;
    let mark = match to {
        Target::First => Mark { position: look.before_first, event_id: String::new() },
        Target::Head => Mark { position: look.head, event_id: look.head_id },
        Target::Position(position) if position > look.head => {
            return Err(JobError::Refused(format!(
                "position {position} is behind the newest one ever given out, {}",
                look.head
            )));
        }
        Target::Position(position) => {
            let found = reader.fetch(Names::Positions(vec![position.0]), 1).await;
            let found = found.map_err(|halt| JobError::Refused(halt.detail))?;
            let event_id = if found.is_empty() { String::new() } else { found.event(0).id.to_owned() };
            Mark { position, event_id }
        }
    };
    let (name, source, definition) =
        (settings.name.clone(), settings.source.clone(), settings.definition(&look.mapping));
    let after = mark.clone();
    let before = writer
        .perform(move |connection| {
            let before = checkpoint::load(connection, &name)?;
            let detail = resolution::moved_detail(before.as_ref().map(|b| b.mark.position.0), mark.position.0);
            let resolution =
                Resolution { consumer: &name, action: "position", event_id: None, key: None, reason: &reason, detail };
            resolution::record(connection, &resolution)?;
            let checkpoint = Checkpoint {
                consumer: name.clone(),
                source: source.clone(),
                // Whoever names a position has the table before him as it is now.
                definition: definition.clone(),
                mark: mark.clone(),
                witnesses: Witnesses::default(),
                sent: Sent::Window,
                updated_at: String::new(),
            };
            checkpoint::put(connection, &checkpoint)?;
            Ok(before)
        })
        .await?;
    let value = json!({
        "consumer": settings.name,
        "before": before.map(|b| b.mark.position.0),
        "after": after.position.0,
        "event_id": after.event_id,
    });
    Ok(Done { restarts: true, ..looked(value) })
}

fn accept(
    connection: &rusqlite::Connection,
    consumer: &str,
    source: &str,
    definition: &str,
    reason: &str,
) -> Result<(), JobError> {
    let Some(checkpoint) = checkpoint::load(connection, consumer)? else {
        return Err(JobError::Refused(format!("{consumer} has no checkpoint: there is nothing to accept")));
    };
    let detail =
        format!("from source {}, {} to source {source}, {definition}", checkpoint.source, checkpoint.definition);
    resolution::record(
        connection,
        &Resolution { consumer, action: "accept", event_id: None, key: None, reason, detail },
    )?;
    checkpoint::put(
        connection,
        &Checkpoint { definition: definition.to_owned(), source: source.to_owned(), ..checkpoint },
    )
}

/// Forgets a consumer that is in no configuration any more, wherever one of the sources' state knows it.
pub async fn forget_removed(
    files: &Files,
    sources: &[source::Settings],
    consumer: &str,
    reason: &str,
) -> Result<Value, JobError> {
    let mut forgotten = Vec::new();
    for source in sources.iter().filter(|source| has_state(&source.state_path())) {
        let writer = files.writer(source).await.map_err(|error| JobError::Refused(error.to_string()))?;
        let (name, why) = (consumer.to_owned(), reason.to_owned());
        let known = writer.perform(move |connection| {
            let is_known = checkpoint::load(connection, &name)?.is_some()
                || held::counts(connection, &name)?.into_iter().any(|n| n > 0);
            if is_known { forget(connection, &name, &why).map(Some) } else { Ok(None) }
        });
        if let Some(mut gone) = in_time(known).await? {
            gone["file"] = json!(source.state_path());
            forgotten.push(gone);
        }
    }
    match forgotten.is_empty() {
        true => Err(JobError::Refused(format!("the state of no source knows {consumer}: there is nothing to forget"))),
        false => Ok(json!({ "consumer": consumer, "forgotten": forgotten, "is_configured": false })),
    }
}

/// The consumers that only the sources' state still knows: they were renamed, or taken out of the configuration.
pub fn left_over(sources: &[source::Settings], configured: &[String]) -> Result<Vec<Value>, JobError> {
    let mut paths: Vec<_> = sources.iter().map(source::Settings::state_path).collect();
    paths.sort();
    paths.dedup();
    let mut left = Vec::new();
    for path in paths.into_iter().filter(|path| has_state(path)) {
        for checkpoint in checkpoint::all(&open::reader(&path)?)? {
            if !configured.contains(&checkpoint.consumer) {
                let kind = if checkpoint.definition.contains("; projection ") { "projection" } else { "relay" };
                left.push(json!({
                    "name": checkpoint.consumer, "kind": kind, "source": checkpoint.source, "sink": null,
                    "is_configured": false, "state": null, "position": checkpoint.mark.position.0, "file": path,
                }));
            }
        }
    }
    Ok(left)
}

/// Whether there are tables of ours: looking for a consumer makes none.
fn has_state(path: &Path) -> bool {
    let connection = path.exists().then(|| open::reader(path).ok()).flatten();
    connection.is_some_and(|connection| matches!(schema_version(&connection), Ok(Some(_))))
}

/// Says what went, and up to where the application may prune its rows now.
fn forget(connection: &rusqlite::Connection, consumer: &str, reason: &str) -> Result<Value, JobError> {
    let checkpoint = checkpoint::load(connection, consumer)?;
    let counts = held::counts(connection, consumer)?;
    let copies = state::copies::count(connection, consumer)?;
    let held = counts.iter().sum::<u64>();
    let position = checkpoint.as_ref().map(|checkpoint| checkpoint.mark.position.0);
    let detail = format!("position {position:?}, {held} held rows");
    resolution::record(
        connection,
        &Resolution { consumer, action: "forget", event_id: None, key: None, reason, detail },
    )?;
    checkpoint::forget(connection, consumer)?;
    let source = checkpoint.map(|checkpoint| checkpoint.source);
    let safe = connection
        .query_row("SELECT position FROM outboxd_safe_position WHERE source = ?1", [&source], |row| {
            row.get::<_, i64>(0)
        })
        .optional()?;
    let held: serde_json::Map<String, Value> =
        HeldState::ALL.iter().zip(counts).map(|(state, count)| (state.as_str().to_owned(), json!(count))).collect();
    Ok(json!({ "source": source, "position": position, "held": held, "copies": copies, "safe_position": safe }))
}
