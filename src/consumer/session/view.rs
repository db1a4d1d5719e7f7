//! What is seen of a session from outside.

use std::time::Instant;

use super::{Health, Session, Surroundings};
use crate::clock;
use crate::consumer::status::State;
use crate::sink::{FaultClass, Flight};
use crate::source::reader::{Head, SourceState};
use crate::sqlite::writer::WriterState;
use crate::state::held::HeldState;

/// Logs, once a session, when the first events were read and when the far side first acknowledged: what a restart costs.
pub(super) struct Milestones {
    began: Instant,
    read: bool,
    acknowledged: bool,
}

impl Milestones {
    pub fn begin() -> Self {
        Self { began: Instant::now(), read: false, acknowledged: false }
    }

    pub fn read(&mut self, consumer: &str) {
        if !std::mem::replace(&mut self.read, true) {
            tracing::info!(event = "first_read", consumer, seconds = self.began.elapsed().as_secs_f64());
        }
    }

    pub fn landed(&mut self, consumer: &str, flight: &Flight) {
        let is_delivered = || (0..flight.len()).any(|slot| flight.is_delivered(slot));
        if !self.acknowledged && is_delivered() {
            self.acknowledged = true;
            tracing::info!(event = "first_acknowledgement", consumer, seconds = self.began.elapsed().as_secs_f64());
        }
    }
}

impl Session {
    fn state(&self) -> (State, String) {
        if let SourceState::Waiting(what) = &*self.reader.state.borrow() {
            return (State::Waiting, what.clone());
        }
        if self.paused {
            return (State::Paused, "by an operator; `outboxd resume` goes on".into());
        }
        if let Some(why) = &self.blocked {
            return (State::Unavailable, format!("the broker asks publishers to stop: {why}"));
        }
        if let Some(fault) = self.fault.as_ref().or(self.unproved.as_ref()) {
            let state = if fault.class == FaultClass::Fatal { State::Halted } else { State::Unavailable };
            return (state, fault.detail.clone());
        }
        if self.silence.is_long() {
            return (State::Unavailable, self.silence.to_string());
        }
        if let WriterState::Waiting(why) = &*self.writer.state.borrow() {
            return (State::Waiting, format!("progress cannot be recorded: {why}"));
        }
        match self.health {
            Health::Up | Health::Landing => (State::Running, String::new()),
            Health::Backoff(_) | Health::Probing => (State::Starting, "looking for the sink".into()),
        }
    }

    pub(super) fn publish(&mut self, around: &mut Surroundings<'_>) {
        let (state, detail) = self.state();
        let counts = match self.held_counts {
            Some(counts) => counts,
            None => {
                let counts = (
                    self.holds.count(HeldState::Dead),
                    self.holds.count(HeldState::Retrying),
                    self.holds.oldest_micros(),
                );
                self.held_counts = Some(counts);
                counts
            }
        };
        let (head, backlog) = match &*self.reader.state.borrow() {
            SourceState::Ready(Head::Position(head)) => {
                (Some(head.0), head.0.saturating_sub(self.checkpoint.position.0).max(0) as u64)
            }
            SourceState::Ready(Head::Pending(pending)) => (None, *pending),
            _ => (None, self.window.events as u64),
        };
        let strain = self.writer.strain.advice(Instant::now(), &self.writer.path).map(|advice| advice.to_string());
        around.status.send_modify(|status| {
            status.state = state;
            status.strain = strain;
            status.detail = detail;
            status.position = self.checkpoint.position.0;
            status.head = head;
            status.backlog = backlog;
            status.in_flight = self.window.events as u64;
            status.delivered = self.delivered;
            status.redelivered = self.redelivered;
            status.order_violations = self.violations;
            status.held_keys = self.holds.len() as u64;
            status.dead = counts.0 as u64;
            status.retrying = counts.1 as u64;
            status.sink_up = matches!(self.health, Health::Up) && self.is_well();
            status.blocked = self.blocked.clone();
            status.is_at_end = self.is_at_end();
            status.held_since_micros = counts.2;
            if !self.window.is_empty() || self.at_head {
                status.oldest_unsettled_micros = self.window.oldest_micros();
            }
            status.beat_micros = clock::steady_micros();
        });
    }
}
