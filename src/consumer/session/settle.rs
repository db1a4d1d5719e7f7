//! Settling: what has come back becomes one settlement, recorded by the writer; one is under way at a time, and grows meanwhile.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::release::After;
use super::{Answer, End, Session, Surroundings};
use crate::clock::{self, Moment};
use crate::consumer::holds::Key;
use crate::consumer::verdict::{self, Fate, Verdict};
use crate::controls::{self, Seam};
use crate::event::{Batch, Event, Rejection, RowKey};
use crate::retry;
use crate::sink::format::envelope;
use crate::source::reader::{Halt, Mark};
use crate::sqlite::writer::JobError;
use crate::state::held::{HeldRow, HeldState, PAYLOAD_BYTES_MAX};
use crate::state::settlement::{Advance, HeldChange, RowMark, Settlement};

/// Rows of an application's table that are marked in one settlement; the ledger cuts it to what the lock may take.
const ROW_MARKS_MAX: usize = 2_000;
/// Held rows that are written in one settlement.
pub(super) const HELD_MAX: usize = 1_000;

/// A settlement that is with the writer, and what follows when it is recorded.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Lots before this one are settled with it.
    lots_before: u64,
    to: Option<Mark>,
    /// Some of what was passed on the way, for the witnesses.
    passed: Vec<Mark>,
    /// Keys that get rows with it.
    inserted: HashSet<Key>,
    waited: HashMap<Key, u64>,
    /// Keys that became held with it, and when they are due.
    due: Vec<(Key, Moment)>,
    rows: Vec<RowKey>,
    dead_rows: Vec<RowKey>,
    held_keys: Vec<Key>,
    released: Vec<After>,
    /// Held rows were changed.
    holds_changed: bool,
    tally: Tally,
    /// Deliveries of which the order is to be checked: lots, and runs of their events.
    unchecked: Vec<(u64, Range<usize>)>,
    violations: u64,
    halts: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub delivered: u64,
    pub retrying: u64,
    pub dead: u64,
    pub skipped: u64,
    pub waiting: u64,
}

impl Tally {
    pub(super) fn count(&mut self, state: HeldState) {
        match state {
            HeldState::Retrying => self.retrying += 1,
            HeldState::Dead => self.dead += 1,
            HeldState::Skipped => self.skipped += 1,
            HeldState::Waiting => self.waiting += 1,
        }
    }
}

impl Session {
    /// Hands the writer what can be settled, unless it is still busy with the last.
    pub(super) fn settle(&mut self) {
        if self.settling.is_some() || self.end.is_some() || self.operating {
            return;
        }
        if self.is_exclusive() && !self.flights.is_empty() {
            // What is in the air is recorded with what follows from it.
            return;
        }
        let mut settlement = Settlement { consumer: self.settings.name.as_str().into(), ..Settlement::default() };
        let oldest_seq = self.window.oldest_seq();
        let mut settling = Settling { lots_before: oldest_seq, ..Settling::default() };
        self.take_release_changes(&mut settlement, &mut settling);
        self.take_lots(&mut settlement, &mut settling);
        let is_idle = settling.lots_before == oldest_seq && settling.to.is_none() && settling.released.is_empty();
        if settlement.is_empty() && is_idle && settling.rows.is_empty() {
            return;
        }
        if let Some(to) = settling.to.clone().filter(|to| !self.by_row && *to != self.checkpoint) {
            settling.passed.iter().for_each(|mark| self.witnesses.advance(mark));
            self.witnesses.advance(&to);
            settlement.advance =
                Some(Advance { from: self.checkpoint.position, to, witnesses: self.witnesses.clone() });
        }
        settling.holds_changed = !settlement.held.is_empty();
        settlement.delivered = settling.tally.delivered;
        let answers = self.answers_tx.clone();
        if settlement.is_empty() {
            // Nothing to record: by row, what waits stays pending in the application's table; a release may have come to nothing.
            let _ = answers.send(Answer::Settled(Ok(())));
        } else {
            controls::reach(Seam::Settle);
            let done = Box::new(move |result| drop(answers.send(Answer::Settled(result))));
            self.ledger.record(settlement, done);
        }
        // The writer works meanwhile.
        settling.violations += self.violations_in(std::mem::take(&mut settling.unchecked));
        self.settling = Some(settling);
    }

    fn violations_in(&mut self, runs: Vec<(u64, Range<usize>)>) -> u64 {
        let mut violations = 0;
        for (seq, run) in runs {
            let lot = self.window.lot(seq).expect("a lot stays in the window until its settlement is recorded");
            for index in run {
                let event = lot.batch.event(index);
                // An event without a key is a key of its own.
                let is_late =
                    event.key.is_some_and(|key| self.order.delivered(key, event.position, lot.carriers[index]));
                violations += u64::from(is_late);
            }
        }
        violations
    }

    fn take_release_changes(&mut self, settlement: &mut Settlement, settling: &mut Settling) {
        let changes = std::mem::take(&mut self.release);
        settlement.held = changes.held;
        settlement.rows = changes.rows;
        settling.dead_rows = changes.dead_rows;
        settling.rows = settlement.rows.iter().map(|(row, _)| row.clone()).collect();
        settling.released = changes.after;
        settling.tally = changes.tally;
        settling.violations = changes.violations;
        settlement.copies = self.settings.dead_letter_sink.is_some();
        settling.halts = changes.halts;
    }

    /// Goes through the window in order, up to the first event that is not final.
    fn take_lots(&mut self, settlement: &mut Settlement, settling: &mut Settling) {
        let barrier_seq = self.window.next_seq();
        let (by_row, is_whole) = (self.by_row, self.is_exclusive());
        for lot in self.window.lots_mut() {
            let began = lot.submitted;
            if self.holds.is_empty() && !by_row && lot.rejections.is_empty() {
                // The good path: nothing is held, nothing was refused; the events are only counted.
                let run = lot.fates[began..].iter().take_while(|fate| **fate == Fate::Delivered).count();
                settling.unchecked.push((lot.seq, began..began + run));
                lot.submitted += run;
                settling.tally.delivered += run as u64;
            } else {
                while lot.submitted < lot.fates.len() {
                    if !is_whole && (settlement.rows.len() >= ROW_MARKS_MAX || settlement.held.len() >= HELD_MAX) {
                        break;
                    }
                    let index = lot.submitted;
                    let event = lot.batch.event(index);
                    let key = event.hold_key();
                    let Some(verdict) = verdict::judge(lot.fates[index], self.holds.is_recorded(&key)) else { break };
                    lot.submitted += 1;
                    let row_key = lot.batch.row_key(index).cloned();
                    settling.rows.extend(row_key.clone());
                    match verdict {
                        Verdict::Delivered => {
                            settling.unchecked.push((lot.seq, index..index + 1));
                            settling.tally.delivered += 1;
                            settlement.rows.extend(row_key.map(|row| (row, RowMark::Delivered)));
                        }
                        Verdict::Behind => {
                            if lot.fates[index] == Fate::Wait {
                                *settling.waited.entry(key.as_ref().into()).or_default() += 1;
                            }
                            settling.tally.waiting += 1;
                            // By row, what waits stays pending in the application's table.
                            if !by_row {
                                settling.inserted.insert(key.as_ref().into());
                                settlement.held.push(HeldChange::Insert(waiting_row(&event)));
                            }
                        }
                        Verdict::Refused => {
                            let rejection = lot.rejections.remove(&(index as u32)).expect("a refusal has a reason");
                            let bounds = &self.settings.bounds;
                            let consequence = verdict::after_refusal(self.settings.on_reject, 1, bounds.attempts_max);
                            let copy = kept_payload(&lot.batch, index);
                            let due = Moment::after(retry::next_attempt_in(bounds.retry_min, 1, event.id));
                            let due = (consequence.state == HeldState::Retrying).then_some(due);
                            let row = refused_row(&event, row_key, &rejection, consequence.state, due, copy);
                            settling.tally.count(consequence.state);
                            if consequence.halts {
                                settling.halts = Some(halted_by(&row));
                            }
                            if let Some(row_key) = &row.row_key {
                                let text = format!("{}: {}", rejection.reason.as_str(), rejection.detail);
                                let (mark, dead) = match consequence.state {
                                    HeldState::Retrying => (RowMark::Retry(text), false),
                                    _ => (RowMark::Rejected(text), true),
                                };
                                settlement.rows.push((row_key.clone(), mark));
                                settling.dead_rows.extend(dead.then(|| row_key.clone()));
                            }
                            if consequence.state != HeldState::Skipped {
                                let key: Key = key.as_ref().into();
                                self.holds.record(&key, consequence.state, clock::now_micros(), barrier_seq);
                                settling.inserted.insert(key.clone());
                                settling.held_keys.push(key.clone());
                                settling.due.extend(due.map(|due| (key, due)));
                            }
                            settlement.held.push(HeldChange::Insert(row));
                        }
                    }
                }
            }
            if lot.submitted > began || lot.fates.is_empty() {
                settling.to = Some(mark_at(&lot.batch, lot.submitted));
                settling.passed = if by_row { Vec::new() } else { passed(&lot.batch, began, lot.submitted) };
            }
            if !lot.is_submitted() {
                return;
            }
            settling.lots_before = lot.seq + 1;
        }
    }

    pub(super) fn on_settled(&mut self, result: Result<(), JobError>, around: &mut Surroundings<'_>) {
        let settling = self.settling.take().expect("one settlement is under way at a time");
        if let Err(JobError::Undone(why)) = &result {
            if let Some(repeated) = around.repeats.admit("flight_undone") {
                tracing::warn!(event = "flight_undone", consumer = %self.settings.name, detail = %why, repeated);
            }
            self.end = Some(End::Undone(why.clone()));
            return;
        }
        if let Err(error) = result {
            self.end = Some(End::Halted(Halt::new(format!("the settlement was refused: {error}"))));
            return;
        }
        controls::reach(Seam::Settled);
        if settling.holds_changed {
            self.held_counts = None;
        }
        self.window.drop_before(settling.lots_before);
        if let Some(to) = settling.to.filter(|_| !self.by_row) {
            self.checkpoint = to;
        }
        settling.held_keys.into_iter().for_each(|key| self.update.hold(key));
        for (key, due) in settling.due {
            let due = self.holds.promise(&key, due);
            self.holds.schedule(key, due);
        }
        for (key, count) in settling.waited {
            if let Some(hold) = self.holds.get_mut(&key) {
                hold.unsettled -= count;
            }
            self.holds.follow(&key);
        }
        for key in settling.inserted {
            if let Some(hold) = self.holds.get_mut(&key) {
                hold.added += 1;
            }
            self.holds.follow(&key);
        }
        if self.by_row {
            settling.rows.into_iter().for_each(|row| self.update.settled(row));
            settling.dead_rows.into_iter().for_each(|row| self.update.dead(row));
        }
        for after in settling.released {
            self.after_release(after);
        }
        let tally = settling.tally;
        self.delivered += tally.delivered;
        around.metrics.delivered.increment(tally.delivered);
        around.metrics.retrying.increment(tally.retrying);
        around.metrics.dead.increment(tally.dead);
        around.metrics.skipped.increment(tally.skipped);
        around.metrics.waiting.increment(tally.waiting);
        if settling.violations > 0 {
            self.violations += settling.violations;
            around.metrics.order_violations.increment(settling.violations);
            let detail = "deliveries came after later ones of their keys: a bug of outboxd; please report it";
            tracing::error!(event = "order_violated", consumer = %self.settings.name, events = settling.violations, detail);
        }
        if tally.dead + tally.skipped > 0 {
            self.beside.copies.notify_one();
        }
        if tally.dead + tally.skipped + tally.retrying > 0
            && let Some(repeated) = around.repeats.admit("events_refused")
        {
            let (retrying, dead, skipped) = (tally.retrying, tally.dead, tally.skipped);
            tracing::warn!(event = "events_refused", consumer = %self.settings.name, retrying, dead, skipped, repeated);
        }
        if let Some(why) = settling.halts {
            self.end = Some(End::Halted(Halt::new(why)));
        }
    }

    /// Lets a key go that has no rows any more, and tells the reader.
    pub(super) fn free(&mut self, key: &[u8]) {
        if self.holds.free(key) {
            self.order.free(key);
            self.held_counts = None;
            self.update.free(key.into());
        }
    }
}

/// What stands at the place up to which `submitted` events of the batch are settled.
fn mark_at(batch: &Batch, submitted: usize) -> Mark {
    if submitted == batch.len() {
        return Mark { position: batch.end, event_id: batch.end_id.clone() };
    }
    let last = batch.event(submitted - 1);
    Mark { position: last.position, event_id: last.id.to_owned() }
}

/// What stands at exponential distances before the end of what was settled: a single large batch leaves witnesses too.
fn passed(batch: &Batch, began: usize, submitted: usize) -> Vec<Mark> {
    let distances = (0..=10).rev().map(|exponent| 1_usize << exponent);
    let indexes = distances.filter_map(|distance| submitted.checked_sub(distance + 1)).filter(|index| *index >= began);
    let mark = |index| {
        let event = batch.event(index);
        Mark { position: event.position, event_id: event.id.to_owned() }
    };
    indexes.map(mark).collect()
}

fn waiting_row(event: &Event<'_>) -> HeldRow {
    HeldRow {
        key: event.hold_key().as_ref().into(),
        ordinal: 0,
        position: event.position,
        row_key: None,
        event_id: event.id.to_owned(),
        state: HeldState::Waiting,
        attempts: 0,
        next_attempt_micros: None,
        reason: None,
        detail: None,
        held_at: clock::iso(clock::now_micros()),
        payload: None,
    }
}

fn refused_row(
    event: &Event<'_>,
    row_key: Option<RowKey>,
    rejection: &Rejection,
    state: HeldState,
    due: Option<Moment>,
    payload: Option<Vec<u8>>,
) -> HeldRow {
    HeldRow {
        row_key,
        state,
        attempts: 1,
        next_attempt_micros: due.map(|due| due.wall_micros),
        reason: Some(rejection.reason.as_str().to_owned()),
        detail: Some(rejection.detail.clone()),
        payload,
        ..waiting_row(event)
    }
}

/// The event as an envelope, so that it can be looked at and sent after the application has pruned its row. An event that cannot
/// be sent as it is has no copy: what was read of it is not the whole.
pub(super) fn kept_payload(batch: &Batch, index: usize) -> Option<Vec<u8>> {
    let event = batch.event(index);
    let small = event.payload.is_none_or(|payload| payload.len() <= PAYLOAD_BYTES_MAX);
    (small && batch.defect(index).is_none()).then(|| {
        let mut out = Vec::new();
        envelope::keep(&event, "", &mut out);
        out
    })
}

pub fn halted_by(row: &HeldRow) -> String {
    format!(
        "event {} was refused ({}: {}) and on_reject = \"halt\". Remedy: mend what refuses it and `outboxd dead-letters retry --id {}`, \
         or discard it; then `outboxd resume`",
        row.event_id,
        row.reason.as_deref().unwrap_or("unknown"),
        row.detail.as_deref().unwrap_or(""),
        row.event_id
    )
}
