//! How the far side does: what comes back from it, what is wrong with it, and when it is tried again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, Health, Isolation, Kind, Session, Surroundings};
use crate::clock;
use crate::consumer::delivery::Delivery;
use crate::controls::{self, Protection, Seam};
use crate::event::Reason;
use crate::sink::{Fault, FaultClass, Flight, News, Outcome};

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so long without any answer the far side is shown as unavailable.
const SILENCE_SHOWN: Duration = Duration::from_millis(1500);
/// The largest group that is sent while events are under suspicion.
const ISOLATED_MAX: usize = 256;
/// So many unroutable events in a row, and the consumer halts.
pub(super) const UNROUTABLE_MAX: u32 = 100;

/// How long nothing has come back for what is in flight.
#[derive(Default)]
pub(super) struct Silence {
    in_flight: usize,
    answered: usize,
    since: Option<Instant>,
    is_long: bool,
}

impl Silence {
    fn note<'a>(&mut self, flights: impl Iterator<Item = &'a Flight>, now: Instant) {
        let (in_flight, answered) = flights
            .map(|flight| (flight.len(), flight.answered()))
            .fold((0, 0), |(len, answered), flight| (len + flight.0, answered + flight.1));
        if in_flight == 0 {
            self.since = None;
        } else if self.since.is_none() || answered != self.answered {
            self.since = Some(now);
        }
        (self.in_flight, self.answered) = (in_flight, answered);
        self.is_long = self.since.is_some_and(|since| now.duration_since(since) >= SILENCE_SHOWN);
    }

    pub(super) fn is_long(&self) -> bool {
        self.is_long
    }

    /// When it will have become long.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.since.map(|since| since + SILENCE_SHOWN).filter(|due| *due > now)
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer for {SILENCE_SHOWN:?} or more to {} events in flight", self.in_flight)
    }
}

impl Session {
    pub(super) fn on_news(&mut self, news: News, around: &mut Surroundings<'_>) {
        match news {
            News::Landed(flight) => self.on_landed(&flight, around),
            News::Trouble(fault) => {
                self.log_fault(&fault, around);
                self.fault = Some(fault);
            }
            News::Blocked(why) => {
                match &why {
                    Some(why) => tracing::warn!(event = "sink_blocked", consumer = %self.settings.name, detail = %why),
                    None => tracing::info!(event = "sink_unblocked", consumer = %self.settings.name),
                }
                self.blocked = why;
                self.patient_since = Instant::now();
            }
        }
    }

    fn on_landed(&mut self, flight: &Arc<Flight>, around: &mut Surroundings<'_>) {
        // A flight of a sink that was closed since is no longer known.
        let Some(flying) = self.flights.remove(&flight.id) else { return };
        controls::reach(Seam::Landed);
        self.milestones.landed(&self.settings.name, flight);
        self.observe_acknowledgements(flight, around);
        match flying.kind {
            Kind::Live { lot } => {
                self.pass_through(flight);
                let notes = self.window.land(lot, flight);
                if notes.is_empty() {
                    if let Some(isolation) = &mut self.isolation {
                        isolation.group = isolation.group.saturating_mul(2).min(ISOLATED_MAX);
                    }
                    self.unroutable_run = 0;
                    self.heard_well();
                } else {
                    self.on_notes(lot, flight, &notes, flying.alone, around);
                }
            }
            Kind::Release(released) => self.on_release_landed(released, flight, flying.alone, around),
        }
    }

    fn on_notes(
        &mut self,
        lot: u64,
        flight: &Arc<Flight>,
        notes: &[(u32, Outcome)],
        alone: bool,
        around: &mut Surroundings<'_>,
    ) {
        let mut suspects = 0;
        for (slot, outcome) in notes {
            match outcome {
                Outcome::Delivered => {}
                Outcome::Rejected(rejection) => {
                    around.metrics.retry(rejection.reason.as_str());
                    self.announce(flight, *slot);
                }
                Outcome::Suspect(rejection) => {
                    if alone && flight.len() == 1 {
                        around.metrics.retry(rejection.reason.as_str());
                        self.window.convict(lot, flight.picks[*slot as usize].index);
                        self.announce(flight, *slot);
                    } else {
                        suspects += 1;
                    }
                }
                Outcome::Behind => {
                    self.holds.wait(&flight.event(*slot as usize).hold_key());
                }
                Outcome::Unavailable(fault) => self.trouble(fault.clone(), around),
            }
        }
        let is_answered = |(_, outcome): &(u32, Outcome)| !matches!(outcome, Outcome::Unavailable(_));
        if suspects > 0 {
            self.isolate(suspects);
        } else if self.fault.is_none() {
            self.heard_well();
        }
        if notes.iter().all(is_answered) {
            self.proved();
        }
        self.count_unroutable(flight, notes, around);
    }

    /// From now on nothing of the event's key is sent, although its refusal is not recorded yet.
    fn announce(&mut self, flight: &Flight, slot: u32) {
        if self.announces {
            self.holds.announce(&flight.event(slot as usize).hold_key(), clock::now_micros());
        }
    }

    /// When everything is unroutable, not the events are to blame: a person has to look at the far side.
    fn count_unroutable(&mut self, flight: &Arc<Flight>, notes: &[(u32, Outcome)], around: &mut Surroundings<'_>) {
        let is_unroutable = |(_, outcome): &&(u32, Outcome)| matches!(outcome, Outcome::Rejected(rejection) if rejection.reason == Reason::Unroutable);
        let unroutable = notes.iter().filter(is_unroutable).count();
        if notes.len() < flight.len() {
            self.unroutable_run = 0;
        }
        self.unroutable_run = self.unroutable_run.saturating_add(unroutable as u32);
        if unroutable > 0 && self.unroutable_run >= UNROUTABLE_MAX {
            let text = format!(
                "{} events in a row had no destination, and none was acknowledged. Remedy: see that exchange, queues and bindings \
                 (or topics) are there, and that the templates name them",
                self.unroutable_run
            );
            self.trouble(Fault::fatal(text), around);
        }
    }

    /// Nobody is convicted for what several did: everything unsettled that failed is sent again in smaller groups.
    fn isolate(&mut self, suspects: usize) {
        let group = match self.isolation {
            Some(isolation) => isolation.group.div_ceil(4).max(1),
            None => suspects.div_ceil(4).max(1),
        };
        let until_seq = self.isolation.map_or(self.window.next_seq(), |isolation| isolation.until_seq);
        self.isolation = Some(Isolation { group, until_seq });
        self.answered = true;
        if matches!(self.health, Health::Up) {
            self.health = Health::Landing;
        }
    }

    pub(super) fn trouble(&mut self, fault: Fault, around: &mut Surroundings<'_>) {
        self.log_fault(&fault, around);
        if fault.class == FaultClass::Fatal || self.fault.as_ref().is_none_or(|f| f.class != FaultClass::Fatal) {
            self.fault = Some(fault);
        }
        if matches!(self.health, Health::Up) {
            self.health = Health::Landing;
        }
    }

    fn log_fault(&self, fault: &Fault, around: &mut Surroundings<'_>) {
        let kind = match fault.class {
            FaultClass::Unavailable => "sink_unavailable",
            FaultClass::Fatal => "sink_refuses",
        };
        if let Some(repeated) = around.repeats.admit(&format!("{kind} {}", fault.detail)) {
            tracing::warn!(event = kind, consumer = %self.settings.name, detail = %fault.detail, repeated);
        }
    }

    /// The far side acknowledged: whatever was wrong with it is over.
    pub(super) fn heard_well(&mut self) {
        if matches!(self.health, Health::Up) && self.fault.take().is_some() {
            self.unproved = None;
            tracing::info!(event = "sink_up", consumer = %self.settings.name);
        }
        self.proved();
        self.pace.succeeded();
        self.fatal_pace.succeeded();
    }

    /// It takes what is sent again, or there is nothing that could tell.
    fn proved(&mut self) {
        if self.unproved.take().is_some() {
            tracing::info!(event = "sink_up", consumer = %self.settings.name);
        }
    }

    pub(super) fn is_well(&self) -> bool {
        self.fault.is_none() && self.unproved.is_none() && self.blocked.is_none() && !self.silence.is_long()
    }

    /// Notes whether answers come. A far side that is silent is shown long before `ack_timeout` lets anything be done about it.
    pub(super) fn listen(&mut self, around: &mut Surroundings<'_>) {
        if matches!(self.health, Health::Up) && self.flights.is_empty() {
            self.proved();
        }
        let was_long = self.silence.is_long();
        let is_waiting = matches!(self.health, Health::Up) && self.blocked.is_none();
        let flights = self.flights.values().filter(|_| is_waiting).map(|flying| &*flying.flight);
        self.silence.note(flights, Instant::now());
        match (was_long, self.silence.is_long()) {
            (false, true) if self.fault.is_none() => {
                if let Some(repeated) = around.repeats.admit("sink_silent") {
                    tracing::warn!(event = "sink_silent", consumer = %self.settings.name, detail = %self.silence, repeated);
                }
            }
            (true, false) if self.is_well() => {
                tracing::info!(event = "sink_up", consumer = %self.settings.name);
            }
            _ => {}
        }
    }

    pub(super) fn look_after_the_far_side(&mut self) {
        let is_over =
            |isolation: &Isolation| self.flights.is_empty() && self.window.is_sent_before(isolation.until_seq);
        if matches!(self.health, Health::Up) && self.isolation.as_ref().is_some_and(is_over) {
            self.isolation = None;
        }
        match self.health {
            Health::Up => {
                let timeout = self.settings.bounds.ack_timeout;
                if self.flights.values().any(|flying| self.is_overdue(&flying.flight)) {
                    self.fault = Some(Fault::unavailable(format!("no acknowledgement for {timeout:?}")));
                    self.stuck = true;
                    self.health = Health::Backoff(Instant::now());
                }
            }
            Health::Landing if self.flights.is_empty() => {
                self.window.rewind(&mut self.holds);
                let answered = std::mem::take(&mut self.answered);
                self.health = match &self.fault {
                    Some(fault) if !answered || fault.class == FaultClass::Fatal => {
                        Health::Backoff(Instant::now() + self.delay(fault.class))
                    }
                    // It is there, and only had to say no, with which it may have hung up: the next smaller group goes out as soon as
                    // it is reached again.
                    _ if answered => Health::Backoff(Instant::now()),
                    _ => Health::Up,
                };
            }
            Health::Landing => {
                if self.flights.values().all(|flying| self.is_overdue(&flying.flight)) {
                    self.stuck = true;
                    self.health = Health::Backoff(Instant::now());
                }
            }
            Health::Backoff(until) if Instant::now() >= until && self.draining.is_none() => self.probe(),
            Health::Backoff(_) | Health::Probing => {}
        }
    }

    /// While the broker has publishers blocked the clock stands still, and begins anew when it lets them go on: only then can it answer.
    fn is_overdue(&self, flight: &Flight) -> bool {
        let since = flight.sent_at.max(self.patient_since);
        let is_late = since.elapsed() >= self.settings.bounds.ack_timeout;
        self.blocked.is_none() && is_late && !controls::is_off(Protection::AckTimeout)
    }

    fn delay(&mut self, class: FaultClass) -> Duration {
        controls::reach(Seam::Backoff);
        match class {
            FaultClass::Unavailable => self.pace.delay(),
            FaultClass::Fatal => self.fatal_pace.delay(),
        }
    }

    fn probe(&mut self) {
        let Some(mut delivery) = self.delivery.take() else { return };
        self.health = Health::Probing;
        let answers = self.answers_tx.clone();
        tokio::spawn(async move {
            let checked = tokio::time::timeout(PROBE_TIMEOUT * 2, delivery.check(PROBE_TIMEOUT)).await;
            let checked = checked.unwrap_or_else(|_| Err(Fault::unavailable("the probe did not come back")));
            let _ = answers.send(Answer::Checked(delivery, checked));
        });
    }

    pub(super) fn on_checked(
        &mut self,
        delivery: Box<dyn Delivery>,
        checked: Result<(), Fault>,
        around: &mut Surroundings<'_>,
    ) {
        self.delivery = Some(delivery);
        match checked {
            Ok(()) if self.stuck && !self.flights.is_empty() => {
                // It answers, and yet owes us acknowledgements: start anew and send everything unsettled again, in order.
                tracing::warn!(event = "sink_restarted", consumer = %self.settings.name, in_flight = self.flights.len());
                self.forget_flights();
                let Some(mut delivery) = self.delivery.take() else { return };
                self.health = Health::Probing;
                self.stuck = false;
                let answers = self.answers_tx.clone();
                tokio::spawn(async move {
                    delivery.reopen().await;
                    let checked = delivery.check(PROBE_TIMEOUT).await;
                    let _ = answers.send(Answer::Checked(delivery, checked));
                });
            }
            Ok(()) => {
                self.stuck = false;
                if self.flights.is_empty() {
                    self.window.rewind(&mut self.holds);
                }
                // The pace is that of the last trouble until something is acknowledged: a probe may succeed and every send fail.
                self.health = Health::Up;
                match self.fault.take().or(self.unproved.take()) {
                    Some(fault) => self.unproved = Some(fault),
                    None => tracing::info!(event = "sink_up", consumer = %self.settings.name),
                }
            }
            Err(fault) => {
                self.log_fault(&fault, around);
                let delay = self.delay(fault.class);
                self.fault = Some(fault);
                self.health = Health::Backoff(Instant::now() + delay);
            }
        }
    }

    fn forget_flights(&mut self) {
        let flights = std::mem::take(&mut self.flights);
        for flying in flights.into_values() {
            if let Kind::Release(released) = flying.kind {
                self.release_interrupted(&released.key);
            }
        }
        self.per_key.clear();
        self.window.rewind(&mut self.holds);
    }
}
