//! One slice: in one transaction, for about a millisecond, the first events of one stream after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::tables::{ARCHIVE, HEADS, Head, Tables};
use crate::clock;
use crate::controls::{self, Protection, Seam};
use crate::maintenance::readers::{Limit, Look, Readers, Why};
use crate::maintenance::snapshot::tables::Stream;
use crate::sqlite::writer::JobError;

/// What is begun before this is finished; then others have their turn.
const SLICE: Duration = Duration::from_millis(1);

/// A stream of which something may be moved.
#[derive(Clone, Debug)]
pub struct Due {
    pub stream: Stream,
    /// The snapshot that was found readable.
    pub snapshot: i64,
    pub size: i64,
    /// The first version that is not archived.
    pub first: i64,
}

/// What became of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Everything that its snapshot holds is archived.
    Done,
    /// From this version up to that one it stays, and why.
    HeldBack(i64, i64, Why, String),
    /// Its snapshot is another by now: the next run looks at it.
    Changed,
    Fault(String),
}

/// What a slice has done.
#[derive(Debug, Default)]
pub struct Moved {
    pub events: u64,
    /// Streams that are through, by their place in the queue, with the number of events moved in this slice.
    pub ended: Vec<(usize, End)>,
    /// Streams of which something was moved.
    pub touched: Vec<usize>,
    /// Where the next slice goes on, and the first version that is left there.
    pub next: usize,
    pub first: Option<i64>,
}

#[derive(Debug)]
pub struct Mover {
    pub tables: Arc<Tables>,
    pub readers: Readers,
    pub look: Look,
    /// What is younger stays, in microseconds since 1970.
    pub oldest: Option<i64>,
    pub queue: Vec<Due>,
    pub at: usize,
    pub moved: Moved,
}

/// What holds in one transaction.
struct Bounds {
    limit: Limit,
    outbox: i64,
    now: String,
    began: Instant,
}

impl Mover {
    /// Runs in the writer's transaction, and may be called again when that is undone.
    pub fn slice(&self, connection: &Connection) -> Result<Moved, JobError> {
        let began = Instant::now();
        let (limit, outbox) =
            self.look.lowered(&self.readers, connection, self.tables.projections_limit(connection)?)?;
        let bounds = Bounds { limit, outbox, now: clock::iso(clock::now_micros()), began };
        let mut moved = Moved { next: self.at, ..Moved::default() };
        while let Some(due) = self.queue.get(moved.next) {
            let before = moved.events;
            let (first, end) = self.stream(connection, due, &bounds, &mut moved.events)?;
            if moved.events > before {
                moved.touched.push(moved.next);
            }
            let Some(end) = end else {
                moved.first = Some(first);
                return Ok(moved);
            };
            moved.ended.push((moved.next, end));
            moved.next += 1;
            if began.elapsed() >= SLICE {
                break;
            }
        }
        Ok(moved)
    }

    /// The first version that is left, and what became of the stream; nothing when there was no time for all of it.
    fn stream(
        &self,
        connection: &Connection,
        due: &Due,
        bounds: &Bounds,
        events: &mut u64,
    ) -> Result<(i64, Option<End>), JobError> {
        let mut first = due.first;
        let mut top = due.snapshot;
        if controls::is_off(Protection::Covered) {
            top = i64::MAX;
        } else if self.tables.snapshot(connection, &due.stream)? != Some((due.snapshot, due.size)) {
            return Ok((first, Some(End::Changed)));
        }
        if !controls::is_off(Protection::NewestStays) {
            top = top.min(self.tables.newest(connection, &due.stream)?.unwrap_or(0) - 1);
        }
        loop {
            let heads = self.tables.heads(connection, &due.stream, top)?;
            let count = heads.len() as i64;
            for head in heads {
                if let Some(end) = self.keeps(connection, &head, first, top, bounds)? {
                    return Ok((first, Some(end)));
                }
                if let Some(fault) = self.head(connection, &head, &bounds.now)? {
                    return Ok((first, Some(End::Fault(fault))));
                }
                *events += 1;
                first = head.version + 1;
                if bounds.began.elapsed() >= SLICE {
                    return Ok((first, (first > top).then_some(End::Done)));
                }
            }
            if count < HEADS {
                return Ok((first, Some(End::Done)));
            }
        }
    }

    /// What keeps this event where it is, if anything does.
    fn keeps(
        &self,
        connection: &Connection,
        head: &Head,
        first: i64,
        top: i64,
        bounds: &Bounds,
    ) -> rusqlite::Result<Option<End>> {
        let held_back = |why: Why, by: &str| Some(End::HeldBack(head.version, top, why, by.to_owned()));
        if head.version != first {
            return Ok(Some(End::Fault(hole(first - 1, head.version))));
        }
        let Some(id) = &head.id else {
            let what = format!(
                "version {}: its id is no text, by which it would be known in {ARCHIVE}. Remedy: mend it",
                head.version
            );
            return Ok(Some(End::Fault(what)));
        };
        if !controls::is_off(Protection::Passed) {
            let limit = &bounds.limit;
            // One that the feed does not have (yet) has not been read by anybody.
            if head.position.unwrap_or(i64::MAX - 1) > limit.position {
                return Ok(held_back(limit.why, &limit.by));
            }
            if self.tables.is_referred_to(connection, id, bounds.outbox)? {
                return Ok(held_back(Why::Outbox, "rows that are not published"));
            }
        }
        if let Some(oldest) = self.oldest {
            match head.time.as_deref().and_then(clock::parse_micros) {
                Some(time) if time <= oldest => {}
                Some(_) => return Ok(held_back(Why::Age, "older_than")),
                None => {
                    let what = format!(
                        "version {}: {:?} is no time, so that its age is not known. Remedy: leave `older_than` out, or mend it",
                        head.version,
                        head.time.as_deref().unwrap_or("NULL")
                    );
                    return Ok(Some(End::Fault(what)));
                }
            }
        }
        Ok(None)
    }

    /// Moves one event; a fault concerns its stream alone.
    fn head(&self, connection: &Connection, head: &Head, now: &str) -> Result<Option<String>, JobError> {
        let Head { row, version, .. } = head;
        let id = head.id.as_deref().unwrap_or_default();
        match self.tables.copy(connection, *row, now) {
            Ok(1) => {}
            Err(rusqlite::Error::SqliteFailure(error, message)) if error.code == ErrorCode::ConstraintViolation => {
                let message = message.unwrap_or_else(|| error.to_string());
                return Ok(Some(format!(
                    "version {version}: {ARCHIVE} does not take event {id} ({message}): it, or another of its version or position, stands there \
                     already. Remedy: compare the two, and delete the wrong one"
                )));
            }
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(kept(id, "could not be copied")),
        }
        controls::reach(Seam::Archive);
        match self.tables.delete(connection, *row) {
            Ok(1) => Ok(None),
            Ok(_) => Err(kept(id, "does not stand in the archive as it stood in the log")),
            Err(rusqlite::Error::SqliteFailure(error, message)) if error.code == ErrorCode::ConstraintViolation => Err(
                kept(id, &format!("cannot be taken out of the log: {}", message.unwrap_or_else(|| error.to_string()))),
            ),
            Err(error) => Err(error.into()),
        }
    }
}

fn kept(id: &str, what: &str) -> JobError {
    JobError::Refused(format!(
        "event {id} {what}; it stays where it is. Remedy: see which triggers stand on events and {ARCHIVE}"
    ))
}

/// Behind version `before` comes `found`.
pub fn hole(before: i64, found: i64) -> String {
    const RESTORE: &str = "Remedy: restore the events, or delete the wrong one";
    match found <= before {
        true => format!("version {found} stands there twice, or is archived already. {RESTORE}"),
        false => format!("version {} is missing: behind version {before} comes {found}. {RESTORE}", before + 1),
    }
}
