//! Carries copies of dead letters to the dead-letter sink, beside the live flow.
//!
//! A copy is recorded in the transaction in which its event died, and taken out when the sink has acknowledged it: at least once,
//! in the order of dying. A sink that is away is waited for, and holds up nothing else; a copy that it refuses stays where it is, is shown,
//! and is tried again from time to time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::Settings;
use super::courier::Courier;
use super::status::{Copies, Status};
use crate::clock;
use crate::controls::Seam;
use crate::event::{Batch, BatchBuilder, Death, Destination, Event, Position};
use crate::shutdown::{self, Phase};
use crate::sink::format::envelope;
use crate::sink::{self, Pick};
use crate::source::reader::{Names, Reader};
use crate::sqlite::writer::{JobError, Writer};
use crate::state::copies::{self, DeadCopy};
use crate::telemetry::metric;

/// Each may be of a megabyte.
const COPIES_AT_ONCE: usize = 16;
/// After so long, what was refused is tried once more.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// Sees to the copies of one consumer's dead letters.
pub struct Copier {
    pub settings: Arc<Settings>,
    pub sink: sink::Settings,
    pub reader: Reader,
    pub writer: Writer,
    pub status: watch::Sender<Status>,
    /// Something died.
    pub nudge: Arc<Notify>,
}

impl Copier {
    pub async fn keep(self, mut shutdown: watch::Receiver<Phase>) {
        let (name, source) = (&self.settings.name, &self.settings.source);
        let timeout = self.settings.bounds.ack_timeout;
        let mut courier = Courier::new(self.sink.clone(), name, source, timeout, Seam::DeadLetterCopy);
        tokio::select! {
            // The writer has ended: so does the daemon.
            _ = self.carry_all(&mut courier) => {}
            () = shutdown::asked(&mut shutdown) => {}
        }
        courier.close().await;
    }

    async fn carry_all(&self, courier: &mut Courier) -> Result<(), JobError> {
        let mut refused: HashMap<i64, Instant> = HashMap::new();
        loop {
            let mut after = 0;
            loop {
                let name = self.settings.name.clone();
                let load = self.writer.perform(move |connection| {
                    let found = copies::waiting(connection, &name, after, COPIES_AT_ONCE)?;
                    Ok((found, copies::count(connection, &name)?))
                });
                let (found, waiting) = load.await?;
                self.show(waiting, None);
                let Some(last) = found.last() else { break };
                after = last.number;
                let due = |copy: &DeadCopy| refused.get(&copy.number).is_none_or(|at| at.elapsed() >= REFUSED_AGAIN);
                let found: Vec<DeadCopy> = found.into_iter().filter(due).collect();
                if !found.is_empty() {
                    self.carry(courier, found, &mut refused).await?;
                }
            }
            if refused.is_empty() {
                self.nudge.notified().await;
            } else {
                let _ = tokio::time::timeout(REFUSED_AGAIN, self.nudge.notified()).await;
            }
        }
    }

    async fn carry(
        &self,
        courier: &mut Courier,
        found: Vec<DeadCopy>,
        refused: &mut HashMap<i64, Instant>,
    ) -> Result<(), JobError> {
        let batch = Arc::new(self.batch(&found).await);
        let picks = (0..found.len() as u32).map(Pick::first).collect();
        let unheeded = courier.carry(&batch, picks, &mut |what| self.show_trouble(what)).await;
        for (index, rejection) in &unheeded {
            let copy = &found[*index as usize];
            let detail = format!("{}: {}", rejection.reason.as_str(), rejection.detail);
            tracing::warn!(event = "dead_letter_copy_refused", consumer = %self.settings.name, id = %copy.event_id, %detail);
            self.show_trouble(&format!("the copy of {} is refused: {detail}", copy.event_id));
            refused.insert(copy.number, Instant::now());
        }
        let has_arrived = |index: &usize| !unheeded.iter().any(|(refused, _)| *refused as usize == *index);
        let arrived: Vec<i64> = (0..found.len()).filter(has_arrived).map(|index| found[index].number).collect();
        for number in &arrived {
            refused.remove(number);
        }
        metric::dead_letters_copied(&self.settings.name, arrived.len() as u64);
        let (name, copied) = (self.settings.name.clone(), arrived.len() as u64);
        let (reply, answer) = tokio::sync::oneshot::channel();
        let left = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let noted = left.clone();
        self.writer.submit(
            move |connection| {
                let left = copies::arrived(connection, &name, &arrived)?;
                noted.store(left, std::sync::atomic::Ordering::Release);
                Ok(())
            },
            move |result| drop(reply.send(result)),
        );
        answer.await.map_err(|_| JobError::Ended)??;
        self.show(left.load(std::sync::atomic::Ordering::Acquire), Some(copied));
        Ok(())
    }

    /// The events as they were kept; else as the source still has them; else what is known of them, without a body.
    async fn batch(&self, found: &[DeadCopy]) -> Batch {
        let mut builder = BatchBuilder::default();
        for copy in found {
            let kept = copy.payload.as_deref().and_then(|kept| envelope::read(kept).ok());
            let still_there = if kept.is_none() { self.fetch(copy).await } else { None };
            let event = match (&kept, &still_there) {
                (Some(kept), _) => kept.columns(),
                (None, Some(there)) => there.event(0),
                (None, None) => bodiless(copy),
            };
            let sink = self.settings.destination.sink();
            let of = |sink: &sink::Settings| sink.destination(&event, &self.settings.source);
            let destination = sink.map_or(Destination::Unknown, of);
            builder.push(event);
            builder.death(Death { destination, ..copy.death.clone() });
        }
        builder.finish(Position::default(), clock::now_micros())
    }

    async fn fetch(&self, copy: &DeadCopy) -> Option<Batch> {
        let names = match &copy.row_key {
            Some(row) => Names::Rows(vec![row.clone()]),
            None => Names::Positions(vec![copy.position.0]),
        };
        let there = self.reader.fetch(names, self.settings.bounds.event_bytes_max).await.ok()?;
        let is_whole = !there.is_empty() && there.defect(0).is_none() && there.event(0).id == copy.event_id;
        is_whole.then_some(there)
    }

    fn show(&self, waiting: u64, copied: Option<u64>) {
        self.status.send_modify(|status| {
            let copies = status.copies.get_or_insert_with(Copies::default);
            copies.waiting = waiting;
            copies.copied += copied.unwrap_or(0);
        });
    }

    fn show_trouble(&self, what: &str) {
        self.status.send_if_modified(|status| {
            let copies = status.copies.get_or_insert_with(Copies::default);
            let is_new = copies.detail != what;
            what.clone_into(&mut copies.detail);
            is_new
        });
    }
}

/// Too large to be kept, or not to be decoded, and gone: an empty body.
fn bodiless(copy: &DeadCopy) -> Event<'_> {
    let has_key = !copy.key.starts_with(b"\0");
    Event {
        position: copy.position,
        id: &copy.event_id,
        key: has_key.then_some(&copy.key),
        stream_id: None,
        stream_type: None,
        version: None,
        kind: "",
        payload: Some(b""),
        headers: None,
        time: None,
        time_micros: None,
        death: None,
    }
}
