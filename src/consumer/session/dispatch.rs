//! Sending: what is unsent goes in flights, each event as its key allows.

use std::collections::HashMap;
use std::sync::Arc;

use super::far_side::UNROUTABLE_MAX;
use super::settle::HELD_MAX;
use super::{Flying, Health, Kind, Session, Surroundings};
use crate::clock;
use crate::consumer::delivery::Cargo;
use crate::consumer::holds::{Holds, Key};
use crate::consumer::window::Turn;
use crate::controls::{self, Seam};
use crate::event::Batch;
use crate::sink::{Flight, Pick};

impl Session {
    pub(super) fn may_send(&self) -> bool {
        matches!(self.health, Health::Up)
            && !(self.is_exclusive() && self.operating)
            && self.delivery.is_some()
            && !self.paused
            && self.draining.is_none()
            && self.blocked.is_none()
            && self.end.is_none()
    }

    /// What is sent takes effect in the transaction that records it: there is one at a time, and its effect is known before the next.
    pub(super) fn is_exclusive(&self) -> bool {
        self.settings.destination.tables().is_some()
    }

    /// A transaction is open, or about to be.
    pub(super) fn is_busy(&self) -> bool {
        let is_open = || !self.flights.is_empty() || self.settling.is_some() || self.holds.is_under_way();
        self.is_exclusive() && is_open()
    }

    /// An operator waits for a moment between two transactions.
    pub(super) fn is_asked(&self, around: &Surroundings<'_>) -> bool {
        self.is_exclusive() && !around.commands.is_empty()
    }

    pub(super) fn dispatch(&mut self, around: &mut Surroundings<'_>) {
        while !self.is_asked(around) && self.may_send() && !self.is_busy() && !self.holds.wants_silence() {
            let most = if self.unroutable_run >= UNROUTABLE_MAX {
                1
            } else {
                self.isolation.map_or(usize::MAX, |isolation| isolation.group)
            };
            let most = most.min(self.delivery.as_ref().map_or(usize::MAX, |delivery| delivery.most()));
            if most < usize::MAX && !self.flights.is_empty() {
                return;
            }
            // All that is decided up to a flight is recorded with it.
            let room = if self.is_exclusive() { HELD_MAX } else { usize::MAX };
            let mut gate = Gate {
                room,
                holds: &mut self.holds,
                per_key: &mut self.per_key,
                bound: self.settings.bounds.in_flight_per_key,
                announces: self.announces,
            };
            let choice = self.window.choose(most, |batch, index| gate.turn(batch, index));
            let Some(choice) = choice else { return };
            let again = choice.picks.iter().filter(|pick| pick.redelivery).count() as u64;
            if again > 0 {
                self.redelivered += again;
                around.metrics.redelivered.increment(again);
            }
            self.launch(choice.batch, choice.picks, Kind::Live { lot: choice.lot });
        }
    }

    pub(super) fn launch(&mut self, batch: Arc<Batch>, picks: Vec<Pick>, kind: Kind) {
        controls::reach(Seam::Send);
        let alone = self.flights.is_empty();
        if !alone {
            for flying in self.flights.values_mut() {
                flying.alone = false;
            }
        }
        let id = self.next_flight;
        self.next_flight += 1;
        let flight = Flight::new(id, batch, picks, self.news_tx.clone());
        let cargo = if matches!(kind, Kind::Live { .. }) { Cargo::Live } else { Cargo::Held };
        self.live_has_its_turn = cargo == Cargo::Held;
        self.flights.insert(id, Flying { flight: flight.clone(), kind, alone });
        self.delivery.as_mut().expect("may_send has looked").send(flight, cargo);
    }

    /// A flight has come back: its keys have room again.
    pub(super) fn pass_through(&mut self, flight: &Flight) {
        if self.per_key.is_empty() {
            return;
        }
        for slot in 0..flight.len() {
            if let Some(count) = self.per_key.get_mut(flight.event(slot).hold_key().as_ref()) {
                *count = count.saturating_sub(1);
            }
        }
        self.per_key.retain(|_, count| *count > 0);
    }

    pub(super) fn observe_acknowledgements(&self, flight: &Flight, around: &Surroundings<'_>) {
        const SAMPLES: usize = 64;
        let now = clock::now_micros();
        let step = flight.len().div_ceil(SAMPLES).max(1);
        for slot in (0..flight.len()).step_by(step) {
            if flight.is_delivered(slot) {
                let since = flight.event(slot).time_micros.unwrap_or(flight.batch.read_micros);
                let stands_for = step.min(flight.len() - slot);
                around.metrics.event_to_ack.record_many((now - since).max(0) as f64 / 1e6, stands_for);
            }
        }
    }
}

/// Decides whether an event is sent or waits: the one place.
struct Gate<'a> {
    holds: &'a mut Holds,
    per_key: &'a mut HashMap<Key, u32>,
    /// In flight per key.
    bound: Option<u32>,
    /// A first refusal holds its key.
    announces: bool,
    /// Held rows that may still be made.
    room: usize,
}

impl Gate<'_> {
    fn turn(&mut self, batch: &Batch, index: usize) -> Turn {
        let is_defective = batch.has_defects() && batch.defect(index).is_some();
        if self.holds.is_empty() && self.bound.is_none() && !is_defective {
            return Turn::Send;
        }
        if self.room == 0 {
            return Turn::Stop;
        }
        let key = batch.event(index).hold_key();
        if self.holds.wait(&key) {
            self.room -= 1;
            return Turn::Wait;
        }
        if is_defective {
            self.room -= 1;
            if self.announces {
                self.holds.announce(&key, clock::now_micros());
            }
            return Turn::Send;
        }
        if let Some(bound) = self.bound {
            match self.per_key.get_mut(key.as_ref()) {
                Some(count) if *count >= bound => return Turn::Stop,
                Some(count) => *count += 1,
                None => drop(self.per_key.insert(key.as_ref().into(), 1)),
            }
        }
        Turn::Send
    }
}
