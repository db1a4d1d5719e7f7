//! Releasing held keys: the head is tried when it is due; what waits behind it follows in order, each row deleted in its settlement.
//!
//! A release can be interrupted anywhere: rows leave the table only with the settlement of their delivery, and new arrivals of the
//! key wait behind them until the key is free.

use std::sync::Arc;

use super::settle::{Tally, halted_by, kept_payload};
use super::{Answer, Kind, Session, Surroundings};
use crate::clock::{self, Moment};
use crate::consumer::holds::Key;
use crate::consumer::verdict;
use crate::controls::{self, Seam};
use crate::event::{Batch, BatchBuilder, Reason, Rejection, RowKey};
use crate::retry;
use crate::sink::format::envelope;
use crate::sink::{Flight, Outcome, Pick};
use crate::source::reader::{Names, Reader};
use crate::sqlite::writer::Writer;
use crate::state::held::{self, HeldRow, HeldState};
use crate::state::settlement::{HeldChange, RowMark};

/// How many held keys are tried at the same time.
const RELEASES_MAX: usize = 16;
/// Rows behind a delivered head that are sent in one flight.
const FOLLOWERS_MAX: usize = 100;
/// What stood in a release's way may still be there for a while.
const INTERRUPTED_MICROS: i64 = 200_000;

/// Changes that wait for the next settlement.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub held: Vec<HeldChange>,
    pub rows: Vec<(RowKey, RowMark)>,
    pub dead_rows: Vec<RowKey>,
    pub after: Vec<After>,
    pub tally: Tally,
    pub violations: u64,
    pub halts: Option<String>,
}

/// What follows for a key when its release is recorded.
#[derive(Debug)]
pub(super) struct After {
    key: Key,
    next: Next,
}

#[derive(Debug)]
enum Next {
    /// The rows that were sent are gone; there was nothing else in the table when it was loaded and rows had been added so often.
    Gone { all: Option<u64> },
    /// Its head's new state and due time, by the steady clock.
    Head(HeldState, i64),
}

/// What a flight of a key's rows was.
pub(super) struct Released {
    pub key: Key,
    pub rows: Vec<HeldRow>,
    /// These were all rows of the key when it was loaded and rows had been added so often.
    pub all: Option<u64>,
}

/// The rows of a key, with their events; a row whose event cannot be had any more has none.
pub(super) struct Loaded {
    rows: Vec<HeldRow>,
    batch: Batch,
    /// For each row, its event's index in the batch.
    indexes: Vec<Option<u32>>,
    /// There are no more.
    is_all: bool,
    /// How often rows had been added to the key before it was loaded.
    added: u64,
}

/// Dead rows that the application made pending again.
#[derive(Debug, Default)]
pub(super) struct Revived {
    held: Vec<Key>,
    /// Of these nothing is recorded.
    unknown: Vec<RowKey>,
}

impl Session {
    pub(super) fn start_releases(&mut self, around: &Surroundings<'_>) {
        if self.is_busy()
            || self.is_asked(around)
            || !self.may_send()
            || self.holds.is_empty()
            || (self.isolation.is_some() && !self.holds.wants_silence())
        {
            return;
        }
        // The reader has to know first that a key is held: rows of it that it hands out later would overtake.
        if self.by_row && self.update.holds_any() {
            return;
        }
        let now = clock::steady_micros();
        let most = if self.is_exclusive() { 1 } else { RELEASES_MAX };
        for key in self.holds.take_due(now, self.window.oldest_seq(), self.flights.is_empty(), most) {
            self.load(key);
        }
    }

    fn load(&mut self, key: Key) {
        let hold = self.holds.get_mut(&key).expect("it was just taken");
        let (most, added) = (if hold.flowing { FOLLOWERS_MAX } else { 1 }, hold.added);
        let most = most.min(self.delivery.as_ref().map_or(usize::MAX, |delivery| delivery.most()));
        let (writer, reader, answers) = (self.writer.clone(), self.reader.clone(), self.answers_tx.clone());
        let (name, bytes) = (self.settings.name.clone(), self.settings.bounds.event_bytes_max);
        tokio::spawn(async move {
            let loaded = load(&writer, &reader, &name, &key, most, bytes).await;
            let _ = answers.send(Answer::Loaded(key, loaded.map(|loaded| Loaded { added, ..loaded })));
        });
    }

    pub(super) fn on_loaded(&mut self, key: Key, loaded: Result<Loaded, String>, around: &mut Surroundings<'_>) {
        let mut loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                if let Some(repeated) = around.repeats.admit("release_unread") {
                    tracing::warn!(event = "release_unread", consumer = %self.settings.name, detail = %error, repeated);
                }
                return self.release_interrupted(&key);
            }
        };
        let Some(head) = loaded.rows.first() else {
            return self.after_release(After { key, next: Next::Gone { all: Some(loaded.added) } });
        };
        // The table knows better than the index: an operator or the application may have changed it meanwhile.
        let most = retry::next_attempt_in(self.settings.bounds.retry_min, head.attempts, &head.event_id);
        let recorded = head.next_attempt_micros.map(|due| Moment::recorded(due, most));
        let due = recorded.map_or(0, |due| self.holds.promise(&key, due));
        if head.state == HeldState::Dead || (head.state == HeldState::Retrying && due > clock::steady_micros()) {
            let next = Next::Head(head.state, due);
            return self.after_release(After { key, next });
        }
        if !self.may_send() || (self.holds.is_suspect(&key) && !self.flights.is_empty()) {
            return self.release_interrupted(&key);
        }
        match (loaded.indexes[0], loaded.sendable()) {
            (None, _) => self.bury(key, loaded.rows.swap_remove(0)),
            (Some(index), 0) => {
                // It cannot be sent as it is: that is an attempt too.
                let defect = loaded.batch.defect(index as usize).expect("nothing else keeps it").clone();
                self.refuse(key, loaded.rows.swap_remove(0), &defect, Some((&loaded.batch, index)));
            }
            (Some(_), sendable) => self.send_held(key, loaded, sendable),
        }
    }

    fn send_held(&mut self, key: Key, mut loaded: Loaded, sendable: usize) {
        controls::reach(Seam::Release);
        let all = (loaded.is_all && sendable == loaded.rows.len()).then_some(loaded.added);
        loaded.rows.truncate(sendable);
        let pick = |(row, index): (&HeldRow, &Option<u32>)| Pick {
            index: index.expect("a row that can be sent has its event"),
            attempt: row.attempts + 1,
            redelivery: true,
            replay: false,
        };
        let picks: Vec<Pick> = loaded.rows.iter().zip(&loaded.indexes).map(pick).collect();
        self.redelivered += picks.len() as u64;
        self.launch(Arc::new(loaded.batch), picks, Kind::Release(Released { key, rows: loaded.rows, all }));
    }

    /// The source has no row of it any more, and no copy was kept: a dead letter of its own kind.
    fn bury(&mut self, key: Key, row: HeldRow) {
        let rejection = Rejection::new(
            Reason::SourceRowGone,
            "the application deleted the row while the event waited; see the view outboxd_safe_position".to_owned(),
        );
        let spent = HeldRow { attempts: self.settings.bounds.attempts_max.max(row.attempts), ..row };
        self.refuse(key, spent, &rejection, None);
    }

    pub(super) fn release_interrupted(&mut self, key: &Key) {
        self.holds.come_back(key);
        self.holds.schedule(key.clone(), clock::steady_micros() + INTERRUPTED_MICROS);
    }

    pub(super) fn on_release_landed(
        &mut self,
        released: Released,
        flight: &Arc<Flight>,
        alone: bool,
        around: &mut Surroundings<'_>,
    ) {
        let Released { key, rows, all } = released;
        let notes = flight.take_notes();
        let first = notes.first().map_or(rows.len(), |(slot, _)| *slot as usize);
        for row in &rows[..first] {
            self.release.violations += u64::from(self.order.released(&key, row.position, flight.id));
            self.release.held.push(HeldChange::Delete { key: key.clone(), ordinal: row.ordinal });
            self.release.rows.extend(row.row_key.clone().map(|row_key| (row_key, RowMark::Released)));
        }
        self.release.tally.delivered += first as u64;
        if first > 0 {
            self.holds.acquit(&key);
        }
        let Some((slot, outcome)) = notes.into_iter().next() else {
            if let Some(hold) = self.holds.get_mut(&key) {
                hold.flowing = true;
            }
            self.heard_well();
            self.release.after.push(After { key, next: Next::Gone { all } });
            return;
        };
        let row = rows.into_iter().nth(slot as usize).expect("a slot for each row");
        let index = flight.picks[slot as usize].index;
        match outcome {
            Outcome::Unavailable(fault) => {
                self.trouble(fault, around);
                self.try_again(key, &row);
            }
            Outcome::Suspect(_) if !(alone && flight.len() == 1) => {
                self.holds.suspect(key.clone());
                self.try_again(key, &row);
            }
            Outcome::Suspect(rejection) | Outcome::Rejected(rejection) => {
                around.metrics.retry(rejection.reason.as_str());
                self.refuse(key, row, &rejection, Some((&flight.batch, index)));
            }
            Outcome::Delivered | Outcome::Behind => unreachable!("the first note of a key is neither"),
        }
    }

    /// Its attempt does not count.
    fn try_again(&mut self, key: Key, row: &HeldRow) {
        let state = if row.state == HeldState::Waiting { HeldState::Waiting } else { HeldState::Retrying };
        self.release.after.push(After { key, next: Next::Head(state, clock::steady_micros()) });
    }

    /// One more attempt failed.
    fn refuse(&mut self, key: Key, row: HeldRow, rejection: &Rejection, event: Option<(&Batch, u32)>) {
        self.holds.acquit(&key);
        let (attempts, bounds) = (row.attempts + 1, &self.settings.bounds);
        let consequence = verdict::after_refusal(self.settings.on_reject, attempts, bounds.attempts_max);
        let due = Moment::after(retry::next_attempt_in(bounds.retry_min, attempts, &row.event_id));
        self.holds.promise(&key, due);
        let row = HeldRow {
            state: consequence.state,
            attempts,
            next_attempt_micros: (consequence.state == HeldState::Retrying).then_some(due.wall_micros),
            reason: Some(rejection.reason.as_str().to_owned()),
            detail: Some(rejection.detail.clone()),
            payload: event.and_then(|(batch, index)| kept_payload(batch, index as usize)),
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
        let next = match consequence.state {
            // It holds nothing: for its key it is as if it were gone.
            HeldState::Skipped => Next::Gone { all: None },
            state => Next::Head(state, due.steady_micros),
        };
        self.release.after.push(After { key, next });
    }

    /// The release is recorded, or had nothing to record.
    pub(super) fn after_release(&mut self, after: After) {
        let key = after.key;
        self.holds.come_back(&key);
        let Some(hold) = self.holds.get_mut(&key) else { return };
        match after.next {
            Next::Gone { all } => {
                hold.head = HeldState::Waiting;
                if all != Some(hold.added) {
                    // The followers go on at once; those of other keys have their turn too.
                    self.holds.schedule(key, 0);
                } else {
                    // What is still to be settled of it follows when it is.
                    self.free(&key);
                }
            }
            Next::Head(state, due) => {
                hold.flowing = false;
                hold.head = state;
                if state != HeldState::Dead {
                    self.holds.schedule(key, due);
                }
            }
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
                                revived.held.push(held.key);
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
        for key in revived.held {
            if !self.holds.is_recorded(&key) {
                self.holds.record(&key, HeldState::Retrying, clock::now_micros(), self.window.next_seq());
                self.order.excuse(key.clone());
                self.update.hold(key.clone());
            }
            let Some(hold) = self.holds.get_mut(&key) else { continue };
            hold.head = HeldState::Retrying;
            hold.added += 1;
            self.holds.schedule(key, 0);
        }
        // Discarded since: now it is a row like every other.
        revived.unknown.into_iter().for_each(|row| self.update.ordinary(row));
        self.held_counts = None;
    }
}

impl Loaded {
    /// How many of the first rows go in one flight: the head and what merely waits behind it, each with a whole event.
    fn sendable(&self) -> usize {
        let fits = |at: usize| {
            let whole = self.indexes[at].is_some_and(|index| self.batch.defect(index as usize).is_none());
            whole && (at == 0 || self.rows[at].state == HeldState::Waiting)
        };
        (0..self.rows.len()).take_while(|at| fits(*at)).count()
    }
}

/// Its id was missing, or no text: once mended it is another one.
fn has_no_id(row: &HeldRow) -> bool {
    row.event_id.is_empty() || row.event_id.contains(char::REPLACEMENT_CHARACTER)
}

/// The key's first rows, each with its event: from the source, or from the copy that was kept.
async fn load(
    writer: &Writer,
    reader: &Reader,
    consumer: &str,
    key: &Key,
    most: usize,
    event_bytes_max: usize,
) -> Result<Loaded, String> {
    let (name, wanted) = (consumer.to_owned(), key.clone());
    let mut rows = writer
        .perform(move |connection| held::of_key(connection, &name, &wanted, most + 1))
        .await
        .map_err(|error| error.to_string())?;
    let is_all = rows.len() <= most;
    rows.truncate(most);
    let names = if reader.by_row {
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
            None => {
                let event = found.event(*index);
                event.id == row.event_id || (has_no_id(row) && event.position == row.position)
            }
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
    Ok(Loaded { rows, batch, indexes, is_all, added: 0 })
}
