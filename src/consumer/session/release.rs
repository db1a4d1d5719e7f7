//! Releasing held keys: the head is tried when it is due; what waits behind it follows in order, each row deleted in its settlement.
//!
//! A release can be interrupted anywhere: rows leave the table only with the settlement of their delivery, and new arrivals of the
//! key wait behind them until the key is free.

use std::sync::Arc;

use super::settle::{Tally, halted_by, kept_payload};
use super::{Answer, Kind, RELEASES_MAX, Session, Surroundings};
use crate::clock;
use crate::consumer::holds::Key;
use crate::consumer::verdict;
use crate::event::{Batch, BatchBuilder, Reason, Rejection, RowKey};
use crate::retry;
use crate::sink::format::envelope;
use crate::sink::{Flight, Outcome, Pick};
use crate::source::reader::{Names, Reader};
use crate::sqlite::writer::Writer;
use crate::state::held::{self, HeldRow, HeldState};
use crate::state::settlement::{HeldChange, RowMark};


/// Rows behind a delivered head that are sent in one flight.
const FOLLOWERS_MAX: usize = 100;

/// Changes that wait for the next settlement.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub held: Vec<HeldChange>,
    pub rows: Vec<(RowKey, RowMark)>,
    pub dead_rows: Vec<RowKey>,
    pub after: Vec<After>,
    pub tally: Tally,
    pub halts: Option<String>,
}

/// What follows for a key when its release is recorded.
#[derive(Debug)]
pub(super) struct After {
    key: Key,
    deleted: u64,
    /// Its head's new state and due time; `None`: the rows that were sent are gone.
    head: Option<(HeldState, i64)>,
}

/// The rows of a key, with their events; a row whose event cannot be had any more has none.
pub(super) struct Loaded {
    rows: Vec<HeldRow>,
    batch: Batch,
    /// For each row, its event's index in the batch.
    indexes: Vec<Option<u32>>,
}

/// Dead rows that the application made pending again.
#[derive(Debug, Default)]
pub(super) struct Revived {
    /// By key, with the state before.
    held: Vec<(Key, HeldState)>,
    /// Of these nothing is recorded.
    unknown: Vec<RowKey>,
}

impl Session {
    pub(super) fn start_releases(&mut self) {
        if !self.may_send() || self.holds.is_empty() || self.isolation.is_some() {
            return;
        }
        // The reader has to know first that a key is held: rows of it that it hands out later would overtake.
        if self.rows.is_some() && self.update.holds_any() {
            return;
        }
        let releasing = self.flights.values().filter(|flying| matches!(flying.kind, Kind::Release { .. })).count();
        let most = RELEASES_MAX.saturating_sub(releasing);
        let now = clock::now_micros();
        for key in self.holds.take_due(now, self.window.oldest_seq(), self.flights.is_empty(), most) {
            self.load(key);
        }
    }

    fn load(&mut self, key: Key) {
        let flowing = self.holds.get_mut(&key).is_some_and(|hold| hold.flowing);
        let most = if flowing { FOLLOWERS_MAX } else { 1 };
        let (writer, reader, answers) = (self.writer.clone(), self.reader.clone(), self.answers_tx.clone());
        let (name, bytes, by_row) = (self.settings.name.clone(), self.settings.bounds.event_bytes_max, self.rows.is_some());
        tokio::spawn(async move {
            let loaded = load(&writer, &reader, &name, &key, most, bytes, by_row).await;
            let _ = answers.send(Answer::Loaded(key, loaded));
        });
    }

    pub(super) fn on_loaded(&mut self, key: Key, loaded: Result<Loaded, String>) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(event = "release_unread", consumer = %self.settings.name, detail = %error);
                self.release_interrupted(&key);
                return;
            }
        };
        if loaded.rows.is_empty() {
            // Discarded meanwhile.
            if let Some(hold) = self.holds.get_mut(&key) {
                hold.releasing = false;
                hold.rows = 0;
            }
            self.free_if_done(&key);
            return;
        }
        if !self.may_send() || (self.holds.is_suspect(&key) && !self.flights.is_empty()) {
            self.release_interrupted(&key);
            return;
        }
        let sendable = loaded.indexes.iter().take_while(|index| index.is_some()).count();
        if sendable == 0 {
            self.bury(key, loaded.rows.into_iter().next().expect("looked at above"));
            return;
        }
        let mut rows = loaded.rows;
        rows.truncate(sendable);
        let picks: Vec<Pick> = rows
            .iter()
            .zip(&loaded.indexes)
            .map(|(row, index)| Pick {
                index: index.expect("counted above"),
                attempt: row.attempts + 1,
                redelivery: true,
                replay: false,
            })
            .collect();
        if let Some(defect) = loaded.batch.defect(picks[0].index as usize).cloned() {
            // It cannot be sent as it is: that is an attempt too.
            let batch = Arc::new(loaded.batch);
            let row = rows.swap_remove(0);
            self.refuse(key, row, &defect, Some((&batch, picks[0].index)), 0);
            return;
        }
        self.redelivered += picks.len() as u64;
        self.launch(Arc::new(loaded.batch), picks, Kind::Release { key, rows });
    }

    /// The source has no row of it any more, and no copy was kept: a dead letter of its own kind.
    fn bury(&mut self, key: Key, row: HeldRow) {
        let rejection = Rejection::new(
            Reason::SourceRowGone,
            "the application deleted the row while the event waited; see the view outboxd_safe_position".to_owned(),
        );
        let spent = HeldRow { attempts: self.settings.bounds.attempts_max.max(row.attempts), ..row };
        self.refuse(key, spent, &rejection, None, 0);
    }

    pub(super) fn release_interrupted(&mut self, key: &Key) {
        if let Some(hold) = self.holds.get_mut(key) {
            hold.releasing = false;
            // Not at once: what stood in the way may still be there.
            self.holds.schedule(key.clone(), clock::now_micros() + 100_000);
        }
    }

    pub(super) fn on_release_landed(
        &mut self,
        key: Key,
        rows: Vec<HeldRow>,
        flight: &Arc<Flight>,
        alone: bool,
        around: &mut Surroundings<'_>,
    ) {
        let notes = flight.take_notes();
        let first = notes.first().map_or(rows.len(), |(slot, _)| *slot as usize);
        for row in &rows[..first] {
            self.release.held.push(HeldChange::Delete { key: key.clone(), ordinal: row.ordinal });
            self.release.rows.extend(row.row_key.clone().map(|row_key| (row_key, RowMark::Released)));
        }
        self.release.tally.delivered += first as u64;
        let Some((slot, outcome)) = notes.into_iter().next() else {
            self.holds.acquit(&key);
            if let Some(hold) = self.holds.get_mut(&key) {
                hold.flowing = true;
            }
            self.heard_well();
            self.release.after.push(After { key, deleted: first as u64, head: None });
            return;
        };
        let row = rows.into_iter().nth(slot as usize).expect("a slot for each row");
        let index = flight.picks[slot as usize].index;
        let now = clock::now_micros();
        match outcome {
            Outcome::Unavailable(fault) => {
                self.trouble(fault, around);
                self.release.after.push(After { key, deleted: first as u64, head: Some((row.state, now)) });
            }
            Outcome::Suspect(rejection) if alone && flight.len() == 1 => {
                around.metrics.retry(rejection.reason.as_str());
                self.refuse(key, row, &rejection, Some((&flight.batch, index)), first as u64);
            }
            Outcome::Suspect(_) => {
                self.holds.suspect(key.clone());
                if let Some(hold) = self.holds.get_mut(&key) {
                    hold.flowing = false;
                }
                self.release.after.push(After { key, deleted: first as u64, head: Some((row.state, now)) });
            }
            Outcome::Rejected(rejection) => {
                around.metrics.retry(rejection.reason.as_str());
                self.refuse(key, row, &rejection, Some((&flight.batch, index)), first as u64);
            }
            Outcome::Delivered => unreachable!("a note is never `Delivered`"),
        }
    }

    /// One more attempt failed.
    fn refuse(&mut self, key: Key, row: HeldRow, rejection: &Rejection, event: Option<(&Arc<Batch>, u32)>, deleted: u64) {
        self.holds.acquit(&key);
        let attempts = row.attempts + 1;
        let consequence = verdict::after_refusal(self.settings.on_reject, attempts, self.settings.bounds.attempts_max);
        let due = retry::next_attempt_micros(clock::now_micros(), attempts, &row.event_id);
        let row = HeldRow {
            state: consequence.state,
            attempts,
            next_attempt_micros: (consequence.state == HeldState::Retrying).then_some(due),
            reason: Some(rejection.reason.as_str().to_owned()),
            detail: Some(rejection.detail.clone()),
            payload: event.and_then(|(batch, index)| kept_payload(&batch.event(index as usize))),
            ..row
        };
        self.release.tally.count(consequence.state);
        if consequence.halts {
            self.release.halts = Some(halted_by(&row));
        }
        if let Some(row_key) = &row.row_key {
            let text = format!("{}: {}", rejection.reason.as_str(), rejection.detail);
            let mark = if consequence.state == HeldState::Retrying {
                RowMark::Retry(text)
            } else {
                self.release.dead_rows.push(row_key.clone());
                RowMark::Rejected(text)
            };
            self.release.rows.push((row_key.clone(), mark));
        }
        self.release.held.push(HeldChange::Update(row));
        // A skipped row holds nothing: for its key it is as if it were gone.
        let skipped = u64::from(consequence.state == HeldState::Skipped);
        let head = (consequence.state != HeldState::Skipped).then_some((consequence.state, due));
        self.release.after.push(After { key, deleted: deleted + skipped, head });
    }

    /// The release is recorded.
    pub(super) fn after_release(&mut self, after: After) {
        let Some(hold) = self.holds.get_mut(&after.key) else { return };
        hold.rows = hold.rows.saturating_sub(after.deleted);
        match after.head {
            None if hold.rows > 0 => {
                hold.head = HeldState::Waiting;
                hold.releasing = false;
                // The followers go on at once; those of other keys have their turn too.
                self.holds.schedule(after.key, 0);
            }
            None => {
                hold.releasing = false;
                hold.head = HeldState::Waiting;
                self.free_or_follow(after.key);
            }
            Some((state, due)) => {
                hold.releasing = false;
                hold.flowing = false;
                hold.head = state;
                if state != HeldState::Dead {
                    self.holds.schedule(after.key, due);
                }
            }
        }
    }

    /// Nothing of the key is in the table: it is free, or what waits in the window will be there soon.
    fn free_or_follow(&mut self, key: Key) {
        if self.holds.contains(&key) && !self.holds.free_if_done(&key) {
            self.holds.schedule(key, clock::now_micros() + 5_000);
        } else {
            self.update.free(key);
        }
    }

    /// Dead rows that the application made pending again: a retry.
    pub(super) fn revive(&mut self, rows: Vec<RowKey>, _around: &mut Surroundings<'_>) {
        let (writer, name) = (self.writer.clone(), self.settings.name.clone());
        let answers = self.answers_tx.clone();
        tokio::spawn(async move {
            let now = clock::now_micros();
            let revived = writer
                .perform(move |connection| {
                    let mut revived = Revived::default();
                    for row in &rows {
                        match held::by_row_key(connection, &name, row)? {
                            Some(held) => {
                                held::revive(connection, &name, &held, now)?;
                                revived.held.push((held.key, held.state));
                            }
                            None => revived.unknown.push(row.clone()),
                        }
                    }
                    Ok(revived)
                })
                .await;
            match revived {
                Ok(revived) => drop(answers.send(Answer::Revived(revived))),
                Err(error) => tracing::warn!(event = "revival_unrecorded", detail = %error),
            }
        });
    }

    pub(super) fn on_revived(&mut self, revived: Revived) {
        for (key, state) in revived.held {
            if !self.holds.contains(&key) {
                let barrier = self.window.next_seq();
                self.holds.hold(key.clone(), HeldState::Retrying, clock::now_micros(), barrier);
                self.update.hold(key.clone());
            }
            let Some(hold) = self.holds.get_mut(&key) else { continue };
            // A skipped row did not count among those that hold.
            hold.rows += u64::from(state == HeldState::Skipped);
            hold.head = HeldState::Retrying;
            self.holds.schedule(key, 0);
        }
        // Discarded since: now it is a row like every other.
        revived.unknown.into_iter().for_each(|row| self.update.ordinary(row));
        self.held_counts = None;
    }
}

/// The key's first rows, each with its event: from the source, or from the copy that was kept.
async fn load(
    writer: &Writer,
    reader: &Reader,
    consumer: &str,
    key: &Key,
    most: usize,
    event_bytes_max: usize,
    by_row: bool,
) -> Result<Loaded, String> {
    let (name, wanted) = (consumer.to_owned(), key.clone());
    let rows = writer
        .perform(move |connection| held::of_key(connection, &name, &wanted, most))
        .await
        .map_err(|error| error.to_string())?;
    let names = if by_row {
        Names::Rows(rows.iter().filter_map(|row| row.row_key.clone()).collect())
    } else {
        Names::Positions(rows.iter().map(|row| row.position.0).collect())
    };
    let found = reader.fetch(names, event_bytes_max).await.map_err(|halt| halt.detail)?;
    let mut builder = BatchBuilder::default();
    let mut indexes = Vec::with_capacity(rows.len());
    for row in &rows {
        // An event may stand in an outbox twice.
        let at = (0..found.len()).find(|index| match &row.row_key {
            Some(row_key) => found.row_key(*index) == Some(row_key),
            None => found.event(*index).id == row.event_id,
        });
        let kept = || row.payload.as_deref().and_then(|payload| envelope::read(payload).ok());
        let pushed = match at {
            Some(index) => {
                builder.push(found.event(index));
                if let Some(defect) = found.defect(index) {
                    builder.defect(defect.clone());
                }
                true
            }
            None => match kept() {
                Some(event) => {
                    builder.push(event.columns());
                    true
                }
                None => false,
            },
        };
        indexes.push(pushed.then(|| builder.len() as u32 - 1));
    }
    let batch = builder.finish(crate::event::Position::default(), clock::now_micros());
    Ok(Loaded { rows, batch, indexes })
}
