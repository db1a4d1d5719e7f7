//! One run of a consumer from its checkpoint: the loop in which batches become flights, flights become settlements.
//!
//! Everything is owned by this one task. Its neighbours are the reader's thread, the writer's thread and the sink's, which answer over
//! channels; the loop takes one answer, then does all that has become possible: settle, release, dispatch, read on.
//!
//! Where to start reading: [`Session::run`], [`Session::advance`].

mod intake;
mod release;
mod settle;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

use super::control::Command;
use super::delivery::Delivery;
use super::holds::{Holds, Key};
use super::status::{State, Status};
use super::window::{Turn, Window};
use super::{Settings, control};
use crate::clock;
use crate::event::{Batch, Reason};
use crate::retry::Pace;
use crate::shutdown::Phase;
use crate::sink::{Fault, FaultClass, Flight, News, Outcome, Pick};
use crate::source::filter::Filter;
use crate::source::mapping::RowMapping;
use crate::source::reader::{Halt, Head, Mark, ReadNews, Reader, RowsUpdate, SourceState};
use crate::sqlite::writer::{JobError, Writer, WriterState};
use crate::state::checkpoint::Witnesses;
use crate::state::held::{HeldRow, HeldState};
use crate::telemetry::logs::Repeats;
use crate::telemetry::metric::ConsumerMetrics;

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The loop turns at least this often, so that a watchdog can tell it from a dead one.
const BEAT: Duration = Duration::from_secs(1);
/// The largest group that is sent while events are under suspicion.
const ISOLATED_MAX: usize = 256;
/// How many held keys are tried at the same time.
const RELEASES_MAX: usize = 16;

/// How a session ends.
#[derive(Debug)]
pub enum End {
    Shutdown,
    /// What an operator did asks for a new start.
    Restart,
    /// A person has to act.
    Halted(String),
}

/// What a session starts with.
pub struct Start {
    pub settings: Arc<Settings>,
    pub reader: Reader,
    pub writer: Writer,
    pub delivery: Box<dyn Delivery>,
    pub news: UnboundedReceiver<News>,
    /// For flights: where sinks report.
    pub news_tx: UnboundedSender<News>,
    pub checkpoint: Mark,
    pub witnesses: Witnesses,
    pub rows: Option<RowMapping>,
    pub holds: Holds,
    pub dead_rows: Vec<crate::event::RowKey>,
    /// Events up to this position, and no more than a window of them, may have been sent by the run before.
    pub sent_before: Option<crate::event::Position>,
    pub paused: bool,
}

/// What stands around a session and outlives it.
pub struct Surroundings<'a> {
    pub commands: &'a mut UnboundedReceiver<Command>,
    pub shutdown: &'a mut watch::Receiver<Phase>,
    pub status: &'a watch::Sender<Status>,
    pub metrics: &'a ConsumerMetrics,
    pub repeats: &'a mut Repeats,
}

/// Answers to what the session asked for.
enum Answer {
    Settled(Result<(), JobError>),
    Checked(Box<dyn Delivery>, Result<(), Fault>),
    Loaded(Key, Result<release::Loaded, String>),
    Revived(Key),
}

/// How the far side does.
#[derive(Debug)]
enum Health {
    Up,
    /// Nothing more is sent; what is in flight still comes back.
    Landing,
    /// Until then.
    Backoff(Instant),
    Probing,
}

struct Flying {
    flight: Arc<Flight>,
    kind: Kind,
    /// Nothing else was in flight with it.
    alone: bool,
}

enum Kind {
    Live { lot: u64 },
    Release { key: Key, rows: Vec<HeldRow> },
}

/// Events that failed together are sent again in ever smaller groups, with nothing else in flight.
#[derive(Clone, Copy, Debug)]
struct Isolation {
    group: usize,
    /// It ends with the last lot that was under way.
    until_seq: u64,
}

pub struct Session {
    settings: Arc<Settings>,
    filter: Arc<Filter>,
    reader: Reader,
    writer: Writer,
    /// Away while a probe runs.
    delivery: Option<Box<dyn Delivery>>,
    news: UnboundedReceiver<News>,
    news_tx: UnboundedSender<News>,
    reads: UnboundedReceiver<ReadNews>,
    reads_tx: UnboundedSender<ReadNews>,
    answers: UnboundedReceiver<Answer>,
    answers_tx: UnboundedSender<Answer>,

    checkpoint: Mark,
    witnesses: Witnesses,
    rows: Option<RowMapping>,
    window: Window,
    holds: Holds,
    flights: HashMap<u64, Flying>,
    next_flight: u64,
    /// For `in_flight_per_key`.
    per_key: HashMap<Key, u32>,
    isolation: Option<Isolation>,

    health: Health,
    /// What is wrong with the far side, as last heard.
    fault: Option<Fault>,
    /// No acknowledgement came for `ack_timeout`: a probe that succeeds starts the sink anew.
    stuck: bool,
    pace: Pace,
    fatal_pace: Pace,
    blocked: Option<String>,

    reading: bool,
    at_head: bool,
    update: RowsUpdate,
    sent_before: Option<crate::event::Position>,
    sent_before_left: usize,
    settling: Option<settle::Settling>,
    release: release::Changes,
    paused: bool,
    draining: Option<Instant>,
    end: Option<End>,
    delivered: u64,
    redelivered: u64,
    held_counts: Option<(usize, usize, Option<i64>)>,
}

impl Session {
    pub fn new(start: Start) -> Self {
        let (reads_tx, reads) = tokio::sync::mpsc::unbounded_channel();
        let (answers_tx, answers) = tokio::sync::mpsc::unbounded_channel();
        let mut update = RowsUpdate { dead: start.dead_rows, ..RowsUpdate::default() };
        update.hold = start.holds.all_keys();
        Self {
            filter: Arc::new(Filter::new(&start.settings.types)),
            sent_before_left: start.settings.bounds.window_events,
            settings: start.settings,
            reader: start.reader,
            writer: start.writer,
            delivery: Some(start.delivery),
            news: start.news,
            news_tx: start.news_tx,
            reads,
            reads_tx,
            answers,
            answers_tx,
            checkpoint: start.checkpoint,
            witnesses: start.witnesses,
            rows: start.rows,
            window: Window::default(),
            holds: start.holds,
            flights: HashMap::new(),
            next_flight: 1,
            per_key: HashMap::new(),
            isolation: None,
            health: Health::Backoff(Instant::now()),
            fault: None,
            stuck: false,
            pace: Pace::new(Duration::from_secs(1), Duration::from_secs(2)),
            fatal_pace: Pace::new(Duration::from_secs(1), Duration::from_secs(30)),
            blocked: None,
            reading: false,
            at_head: false,
            update,
            sent_before: start.sent_before,
            settling: None,
            release: release::Changes::default(),
            paused: start.paused,
            draining: None,
            end: None,
            delivered: 0,
            redelivered: 0,
            held_counts: None,
        }
    }

    /// Runs until it is told to stop, or may not go on.
    pub async fn run(mut self, around: &mut Surroundings<'_>) -> End {
        loop {
            self.advance(around);
            self.publish(around);
            if let Some(end) = self.take_end(around) {
                self.close(&end).await;
                return end;
            }
            let wake = tokio::time::Instant::from_std(self.next_wake());
            tokio::select! {
                Some(news) = self.news.recv() => self.on_news(news, around),
                Some(read) = self.reads.recv() => self.on_read(read, around),
                Some(answer) = self.answers.recv() => self.on_answer(answer, around),
                Some(command) = around.commands.recv() => self.on_command(command).await,
                changed = around.shutdown.changed(), if self.draining.is_none() => {
                    let phase = changed.map_or(Phase::Drain { deadline: Instant::now() }, |()| *around.shutdown.borrow());
                    if let Phase::Drain { deadline } = phase {
                        self.draining = Some(deadline);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Does everything that has become possible.
    fn advance(&mut self, around: &mut Surroundings<'_>) {
        self.look_after_the_far_side();
        self.settle();
        self.start_releases();
        // Before the dispatch, so that the reader works while the sink takes what was read before.
        self.read_on();
        self.dispatch(around);
        self.settle();
    }

    // ---- the far side

    fn on_news(&mut self, news: News, around: &mut Surroundings<'_>) {
        match news {
            News::Landed(flight) => self.on_landed(&flight, around),
            News::Trouble(fault) => {
                self.log_fault(&fault, around);
                self.fault = Some(fault);
            }
            News::Blocked(why) => self.blocked = why,
        }
    }

    fn on_landed(&mut self, flight: &Arc<Flight>, around: &mut Surroundings<'_>) {
        // A flight of a sink that was closed since is no longer known.
        let Some(flying) = self.flights.remove(&flight.id) else { return };
        self.pass_through(flight);
        match flying.kind {
            Kind::Live { lot } => {
                self.observe_acknowledgements(flight, around);
                let notes = self.window.land(lot, flight);
                if notes.is_empty() {
                    if let Some(isolation) = &mut self.isolation {
                        isolation.group = isolation.group.saturating_mul(2).min(ISOLATED_MAX);
                    }
                    self.heard_well();
                } else {
                    self.on_notes(lot, flight, &notes, flying.alone, around);
                }
            }
            Kind::Release { key, rows } => self.on_release_landed(key, rows, flight, flying.alone, around),
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
                Outcome::Rejected(rejection) => around.metrics.retry(rejection.reason.as_str()),
                Outcome::Suspect(rejection) => {
                    if alone && flight.len() == 1 {
                        around.metrics.retry(rejection.reason.as_str());
                        self.window.convict(lot, flight.picks[*slot as usize].index);
                    } else {
                        suspects += 1;
                    }
                }
                Outcome::Unavailable(fault) => self.trouble(fault.clone(), around),
            }
        }
        if suspects > 0 {
            self.isolate(suspects);
        } else if self.fault.is_none() {
            self.heard_well();
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
        if matches!(self.health, Health::Up) {
            self.health = Health::Landing;
        }
    }

    fn trouble(&mut self, fault: Fault, around: &mut Surroundings<'_>) {
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
    fn heard_well(&mut self) {
        if matches!(self.health, Health::Up) && self.fault.take().is_some() {
            tracing::info!(event = "sink_up", consumer = %self.settings.name);
        }
        self.pace.succeeded();
        self.fatal_pace.succeeded();
    }

    fn look_after_the_far_side(&mut self) {
        match self.health {
            Health::Up => {
                let timeout = self.settings.bounds.ack_timeout;
                let oldest = self.flights.values().map(|flying| flying.flight.sent_at).min();
                if self.blocked.is_none() && oldest.is_some_and(|sent| sent.elapsed() >= timeout) {
                    self.fault = Some(Fault::unavailable(format!("no acknowledgement for {timeout:?}")));
                    self.stuck = true;
                    self.health = Health::Backoff(Instant::now());
                }
            }
            Health::Landing if self.flights.is_empty() => {
                self.window.rewind();
                self.health = match &self.fault {
                    Some(fault) => Health::Backoff(Instant::now() + self.delay(fault.class)),
                    None => Health::Up,
                };
            }
            Health::Landing => {
                let timeout = self.settings.bounds.ack_timeout;
                if self.flights.values().all(|flying| flying.flight.sent_at.elapsed() >= timeout) {
                    self.stuck = true;
                    self.health = Health::Backoff(Instant::now());
                }
            }
            Health::Backoff(until) if Instant::now() >= until && self.draining.is_none() => self.probe(),
            Health::Backoff(_) | Health::Probing => {}
        }
    }

    fn delay(&mut self, class: FaultClass) -> Duration {
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

    fn on_checked(&mut self, delivery: Box<dyn Delivery>, checked: Result<(), Fault>, around: &mut Surroundings<'_>) {
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
                    self.window.rewind();
                }
                self.health = Health::Up;
                self.fault = None;
                self.pace.succeeded();
                self.fatal_pace.succeeded();
                tracing::info!(event = "sink_up", consumer = %self.settings.name);
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
            if let Kind::Release { key, .. } = flying.kind {
                self.release_interrupted(&key);
            }
        }
        self.per_key.clear();
        self.window.rewind();
    }

    // ---- sending

    fn may_send(&self) -> bool {
        matches!(self.health, Health::Up)
            && self.delivery.is_some()
            && !self.paused
            && self.draining.is_none()
            && self.blocked.is_none()
            && self.end.is_none()
    }

    fn dispatch(&mut self, around: &mut Surroundings<'_>) {
        while self.may_send() {
            let alone = self.isolation.is_some();
            if (alone || self.holds.wants_silence()) && !self.flights.is_empty() {
                return;
            }
            let most = self.isolation.map_or(usize::MAX, |isolation| isolation.group);
            let (holds, per_key, bound) = (&mut self.holds, &mut self.per_key, self.settings.bounds.in_flight_per_key);
            let choice = self.window.choose(most, |batch, index| turn(batch, index, holds, per_key, bound));
            let Some(choice) = choice else { return };
            if self.isolation.is_some_and(|isolation| choice.lot >= isolation.until_seq) {
                self.isolation = None;
            }
            let again = choice.picks.iter().filter(|pick| pick.redelivery).count() as u64;
            if again > 0 {
                self.redelivered += again;
                around.metrics.redelivered.increment(again);
            }
            self.launch(choice.batch, choice.picks, Kind::Live { lot: choice.lot });
        }
    }

    fn launch(&mut self, batch: Arc<Batch>, picks: Vec<Pick>, kind: Kind) {
        let alone = self.flights.is_empty();
        if !alone {
            for flying in self.flights.values_mut() {
                flying.alone = false;
            }
        }
        let id = self.next_flight;
        self.next_flight += 1;
        let flight = Flight::new(id, batch, picks, self.news_tx.clone());
        self.flights.insert(id, Flying { flight: flight.clone(), kind, alone });
        self.delivery.as_mut().expect("may_send has looked").send(flight);
    }

    /// A flight has come back: its keys have room again.
    fn pass_through(&mut self, flight: &Flight) {
        if self.settings.bounds.in_flight_per_key.is_none() || self.per_key.is_empty() {
            return;
        }
        for slot in 0..flight.len() {
            if let Some(count) = self.per_key.get_mut(flight.event(slot).hold_key().as_ref()) {
                *count = count.saturating_sub(1);
            }
        }
        self.per_key.retain(|_, count| *count > 0);
    }

    fn observe_acknowledgements(&self, flight: &Flight, around: &Surroundings<'_>) {
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

    // ---- answers, commands, the end

    fn on_answer(&mut self, answer: Answer, around: &mut Surroundings<'_>) {
        match answer {
            Answer::Settled(result) => self.on_settled(result, around),
            Answer::Checked(delivery, checked) => self.on_checked(delivery, checked, around),
            Answer::Loaded(key, loaded) => self.on_loaded(key, loaded),
            Answer::Revived(key) => self.on_revived(key),
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Pause(reply) => {
                let result = control::set_paused(&self.writer, &self.settings.name, true).await;
                self.paused |= result.is_ok();
                let _ = reply.send(result);
            }
            Command::Resume(reply) => {
                let result = control::set_paused(&self.writer, &self.settings.name, false).await;
                self.paused &= result.is_err();
                if let Health::Backoff(until) = &mut self.health {
                    *until = Instant::now();
                }
                let _ = reply.send(result);
            }
            Command::Operate(operation, reply) => {
                let result = control::operate(&self.writer, &self.reader, &self.settings, operation).await;
                match &result {
                    Ok(done) if done.restarts => self.end = Some(End::Restart),
                    Ok(done) if done.changed_holds => {
                        if let Err(error) = self.reload_holds().await {
                            self.end = Some(End::Halted(error.to_string()));
                        }
                    }
                    _ => {}
                }
                let _ = reply.send(result.map(|done| done.value));
            }
        }
    }

    async fn reload_holds(&mut self) -> Result<(), JobError> {
        let name = self.settings.name.clone();
        let keys = self.writer.perform(move |connection| crate::state::held::keys(connection, &name)).await?;
        let before = self.holds.all_keys();
        self.holds.load(keys, self.window.next_seq());
        self.update.free.extend(before.into_iter().filter(|key| !self.holds.contains(key)));
        self.held_counts = None;
        Ok(())
    }

    /// The session ends when it was told to, and nothing is under way any more or the time is up.
    fn take_end(&mut self, around: &Surroundings<'_>) -> Option<End> {
        if self.settling.is_some() && self.draining.is_none_or(|deadline| Instant::now() < deadline) {
            // What was sent to the writer is waited for: a checkpoint must not move after us.
            return None;
        }
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        let deadline = self.draining?;
        if self.flights.is_empty() || Instant::now() >= deadline {
            if !self.flights.is_empty() {
                tracing::warn!(event = "drain_cut", consumer = %around.status.borrow().consumer, in_flight = self.flights.len());
            }
            return Some(End::Shutdown);
        }
        None
    }

    async fn close(mut self, end: &End) {
        let clean = self.flights.is_empty()
            && self.window.lots().all(|lot| lot.fates[lot.submitted..].iter().all(|fate| *fate == super::verdict::Fate::Unsent));
        if matches!(end, End::Shutdown) && clean {
            let name = self.settings.name.clone();
            let written = self
                .writer
                .perform(move |connection| crate::state::checkpoint::set_dirty(connection, &name, false))
                .await;
            if let Err(error) = written {
                tracing::warn!(event = "drain_unclean", consumer = %self.settings.name, detail = %error);
            }
        }
        if let Some(delivery) = self.delivery.take() {
            delivery.close().await;
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + BEAT;
        if let Health::Backoff(until) = self.health {
            wake = wake.min(until.max(now));
        }
        if let Some(deadline) = self.draining {
            wake = wake.min(deadline);
        }
        if let Some(due) = self.holds.next_due_micros().filter(|_| self.may_send()) {
            let micros = (due - clock::now_micros()).clamp(2_000, BEAT.as_micros() as i64);
            wake = wake.min(now + Duration::from_micros(micros as u64));
        }
        wake
    }

    // ---- what is seen from outside

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
        if let Some(fault) = &self.fault {
            let state = if fault.class == FaultClass::Fatal { State::Halted } else { State::Unavailable };
            return (state, fault.detail.clone());
        }
        if let WriterState::Waiting(why) = &*self.writer.state.borrow() {
            return (State::Waiting, format!("progress cannot be recorded: {why}"));
        }
        match self.health {
            Health::Up | Health::Landing => (State::Running, String::new()),
            Health::Backoff(_) | Health::Probing => (State::Starting, "looking for the sink".into()),
        }
    }

    fn publish(&mut self, around: &mut Surroundings<'_>) {
        let (state, detail) = self.state();
        let counts = match self.held_counts {
            Some(counts) => counts,
            None => {
                let counts =
                    (self.holds.count(HeldState::Dead), self.holds.count(HeldState::Retrying), self.holds.oldest_micros());
                self.held_counts = Some(counts);
                counts
            }
        };
        let (head, backlog) = match &*self.reader.state.borrow() {
            SourceState::Ready(Head::Position(head)) => (Some(head.0), (head.0 - self.checkpoint.position.0).max(0) as u64),
            SourceState::Ready(Head::Pending(pending)) => (None, *pending),
            _ => (None, self.window.events as u64),
        };
        around.status.send_modify(|status| {
            status.state = state;
            status.detail = detail;
            status.position = self.checkpoint.position.0;
            status.head = head;
            status.backlog = backlog;
            status.in_flight = self.window.events as u64;
            status.delivered = self.delivered;
            status.redelivered = self.redelivered;
            status.held_keys = self.holds.len() as u64;
            status.dead = counts.0 as u64;
            status.retrying = counts.1 as u64;
            status.sink_up = matches!(self.health, Health::Up) && self.fault.is_none();
            status.blocked = self.blocked.clone();
            status.held_since_micros = counts.2;
            if !self.window.is_empty() || self.at_head {
                status.oldest_unsettled_micros = self.window.oldest_micros();
            }
            status.beat_micros = clock::now_micros();
        });
    }
}

/// Decides whether an event is sent or waits: the one place.
fn turn(batch: &Batch, index: usize, holds: &mut Holds, per_key: &mut HashMap<Key, u32>, bound: Option<u32>) -> Turn {
    if holds.is_empty() && bound.is_none() {
        return Turn::Send;
    }
    let key = batch.event(index).hold_key();
    if let Some(hold) = holds.get_mut(&key) {
        hold.unsettled += 1;
        return Turn::Wait;
    }
    if let Some(bound) = bound {
        match per_key.get_mut(key.as_ref()) {
            Some(count) if *count >= bound => return Turn::Stop,
            Some(count) => *count += 1,
            None => drop(per_key.insert(key.into(), 1)),
        }
    }
    Turn::Send
}

/// The reasons that metrics name.
pub fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.as_str()).collect()
}

impl From<Halt> for End {
    fn from(halt: Halt) -> Self {
        End::Halted(halt.detail)
    }
}
