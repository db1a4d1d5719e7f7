//! One run of a consumer from its checkpoint: the loop in which batches become flights, flights become settlements.
//!
//! Everything is owned by this one task. Its neighbours are the reader's thread, the writer's thread and the sink's, which answer over
//! channels; the loop takes one answer, then does all that has become possible: settle, release, dispatch, read on.
//!
//! Where to start reading: [`Session::run`], [`Session::advance`].

mod commands;
mod dispatch;
mod far_side;
mod intake;
mod release;
mod settle;
mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;

pub use self::settle::halted_by;

use super::Settings;
use super::control::Command;
use super::delivery::{Delivery, Ledger};
use super::engine::Beside;
use super::holds::{Holds, Key};
use super::order::OrderCheck;
use super::status::Status;
use super::verdict::{self, Fate};
use super::window::Window;
use crate::clock;
use crate::controls::{self, Protection, Seam};
use crate::event::{Position, Reason};
use crate::retry::Pace;
use crate::shutdown::{self, Phase};
use crate::sink::{Fault, Flight, News};
use crate::source::filter::Filter;
use crate::source::reader::{Halt, Mark, ReadNews, Reader, RowsUpdate};
use crate::sqlite::writer::{JobError, Writer};
use crate::state::checkpoint::Witnesses;
use crate::state::held::HeldState;
use crate::telemetry::logs::Repeats;
use crate::telemetry::metric::ConsumerMetrics;

/// The loop turns at least this often, so that a watchdog can tell it from a dead one.
const BEAT: Duration = Duration::from_secs(1);
/// What the end of a session may take when its time is up.
const CLOSE_MIN: Duration = Duration::from_secs(2);

/// How a session ends.
#[derive(Debug)]
pub enum End {
    Shutdown,
    /// What an operator did asks for a new start.
    Restart,
    /// What was applied could not be committed, and is undone: it starts from the checkpoint.
    Undone(String),
    /// A person has to act.
    Halted(Halt),
}

/// What the run before may have sent.
pub struct SentBefore {
    /// By checkpoint: up to here.
    pub until: Position,
    /// No more than so many.
    pub events: usize,
}

/// What a session starts with.
pub struct Start {
    pub settings: Arc<Settings>,
    pub reader: Reader,
    pub writer: Writer,
    pub delivery: Box<dyn Delivery>,
    pub ledger: Box<dyn Ledger>,
    pub news: UnboundedReceiver<News>,
    /// For flights: where sinks report.
    pub news_tx: UnboundedSender<News>,
    pub checkpoint: Mark,
    pub witnesses: Witnesses,
    /// The source is read by row: it has no position, and what waits stays pending in the application's table.
    pub by_row: bool,
    pub holds: Holds,
    /// What runs beside it.
    pub beside: Beside,
    pub dead_rows: Vec<crate::event::RowKey>,
    pub sent_before: Option<SentBefore>,
    pub paused: bool,
}

/// What stands around a session and outlives it.
pub struct Surroundings<'a> {
    pub commands: &'a mut UnboundedReceiver<Command>,
    pub shutdown: &'a mut watch::Receiver<Phase>,
    pub status: &'a watch::Sender<Status>,
    pub metrics: &'a ConsumerMetrics,
    pub repeats: &'a mut Repeats,
    /// An operator said "resume".
    pub resumed: &'a mut bool,
}

/// Answers to what the session asked for.
enum Answer {
    Settled(Result<(), JobError>),
    Checked(Box<dyn Delivery>, Result<(), Fault>),
    Loaded(Key, Result<release::Loaded, String>),
    Revived(release::Revived),
    Operated(commands::Operated),
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
    Release(release::Released),
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
    ledger: Box<dyn Ledger>,
    news: UnboundedReceiver<News>,
    news_tx: UnboundedSender<News>,
    reads: UnboundedReceiver<ReadNews>,
    reads_tx: UnboundedSender<ReadNews>,
    answers: UnboundedReceiver<Answer>,
    answers_tx: UnboundedSender<Answer>,

    checkpoint: Mark,
    witnesses: Witnesses,
    by_row: bool,
    window: Window,
    holds: Holds,
    order: OrderCheck,
    beside: Beside,
    flights: HashMap<u64, Flying>,
    next_flight: u64,
    /// For `in_flight_per_key`: live events in flight.
    per_key: HashMap<Key, u32>,
    isolation: Option<Isolation>,
    /// Since it was last well, the far side has refused several events together: it is not away.
    answered: bool,
    /// A first refusal holds its key (not with `on_reject = "skip"` and a single attempt).
    announces: bool,

    health: Health,
    /// What is wrong with the far side, as last heard.
    fault: Option<Fault>,
    /// What was wrong with it before a probe succeeded; it counts until something that was sent is answered, because a probe does not
    /// prove everything.
    unproved: Option<Fault>,
    silence: far_side::Silence,
    /// No acknowledgement came for `ack_timeout`: a probe that succeeds starts the sink anew.
    stuck: bool,
    pace: Pace,
    fatal_pace: Pace,
    blocked: Option<String>,
    /// When the far side last blocked us or let us go on.
    patient_since: Instant,
    /// Events that were found unroutable one after the other, with none delivered in between.
    unroutable_run: u32,

    reading: bool,
    at_head: bool,
    update: RowsUpdate,
    sent_before: Option<SentBefore>,
    settling: Option<settle::Settling>,
    release: release::Changes,
    /// An operator's command is under way: nothing is settled meanwhile, so that both see the same rows.
    operating: bool,
    /// What was sent last was held: where there is one flight at a time, what was read comes before another one.
    live_has_its_turn: bool,
    paused: bool,
    draining: Option<Instant>,
    end: Option<End>,
    delivered: u64,
    redelivered: u64,
    violations: u64,
    held_counts: Option<(usize, usize, Option<i64>)>,
    milestones: view::Milestones,
}

impl Session {
    pub fn new(start: Start) -> Self {
        let (reads_tx, reads) = tokio::sync::mpsc::unbounded_channel();
        let (answers_tx, answers) = tokio::sync::mpsc::unbounded_channel();
        let first = verdict::after_refusal(start.settings.on_reject, 1, start.settings.bounds.attempts_max);
        let mut update = RowsUpdate::anew();
        start.dead_rows.into_iter().for_each(|row| update.dead(row));
        start.holds.all_keys().into_iter().for_each(|key| update.hold(key));
        Self {
            filter: Arc::new(Filter::new(&start.settings.types)),
            settings: start.settings,
            reader: start.reader,
            writer: start.writer,
            delivery: Some(start.delivery),
            ledger: start.ledger,
            news: start.news,
            news_tx: start.news_tx,
            reads,
            reads_tx,
            answers,
            answers_tx,
            checkpoint: start.checkpoint,
            witnesses: start.witnesses,
            by_row: start.by_row,
            window: Window::default(),
            holds: start.holds,
            order: OrderCheck::new(start.by_row),
            beside: start.beside,
            flights: HashMap::new(),
            next_flight: 1,
            per_key: HashMap::new(),
            isolation: None,
            answered: false,
            announces: first.state != HeldState::Skipped,
            health: Health::Backoff(Instant::now()),
            fault: None,
            unproved: None,
            silence: far_side::Silence::default(),
            stuck: false,
            pace: Pace::new(Duration::from_secs(1), Duration::from_secs(2)),
            fatal_pace: Pace::new(Duration::from_secs(1), Duration::from_secs(30)),
            blocked: None,
            patient_since: Instant::now(),
            unroutable_run: 0,
            reading: false,
            at_head: false,
            update,
            sent_before: start.sent_before,
            settling: None,
            release: release::Changes::default(),
            operating: false,
            live_has_its_turn: false,
            paused: start.paused,
            draining: None,
            end: None,
            delivered: 0,
            redelivered: 0,
            violations: 0,
            held_counts: None,
            milestones: view::Milestones::begin(),
        }
    }

    /// Runs until it is told to stop, or may not go on.
    pub async fn run(mut self, around: &mut Surroundings<'_>) -> End {
        loop {
            self.advance(around);
            self.publish(around);
            if let Some(end) = self.take_end() {
                self.close(&end).await;
                return end;
            }
            let wake = tokio::time::Instant::from_std(self.next_wake());
            tokio::select! {
                Some(news) = self.news.recv() => self.on_news(news, around),
                Some(read) = self.reads.recv() => self.on_read(read, around),
                Some(answer) = self.answers.recv() => self.on_answer(answer, around),
                Some(command) = around.commands.recv(), if !self.operating && !self.is_busy() => self.on_command(command, around),
                () = shutdown::asked(around.shutdown), if self.draining.is_none() => {
                    let deadline = match *around.shutdown.borrow() {
                        Phase::Drain { deadline } if !controls::is_off(Protection::Drain) => deadline,
                        Phase::Drain { .. } | Phase::Run => Instant::now(),
                    };
                    self.draining = Some(deadline);
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Does everything that has become possible.
    fn advance(&mut self, around: &mut Surroundings<'_>) {
        self.look_after_the_far_side();
        self.settle();
        if self.is_exclusive() && !self.is_busy() && std::mem::take(&mut self.live_has_its_turn) {
            self.dispatch(around);
        }
        self.start_releases(around);
        // Before the dispatch, so that the reader works while the sink takes what was read before.
        self.read_on();
        self.dispatch(around);
        self.listen(around);
        self.settle();
    }

    fn on_answer(&mut self, answer: Answer, around: &mut Surroundings<'_>) {
        match answer {
            Answer::Settled(result) => self.on_settled(result, around),
            Answer::Checked(delivery, checked) => self.on_checked(delivery, checked, around),
            Answer::Loaded(key, loaded) => {
                // What was read before the reader knew that the key is held came first: it has to wait.
                while let Ok(read) = self.reads.try_recv() {
                    self.on_read(read, around);
                }
                self.on_loaded(key, loaded, around);
            }
            Answer::Revived(revived) => self.on_revived(revived),
            Answer::Operated(operated) => self.on_operated(operated),
        }
    }

    /// The session ends when it was told to, and nothing is under way any more or the time is up.
    fn take_end(&mut self) -> Option<End> {
        let is_late = self.draining.is_some_and(|deadline| Instant::now() >= deadline);
        if (self.settling.is_some() || self.operating) && !is_late {
            // What was sent to the writer is waited for: a checkpoint must not move after us.
            return None;
        }
        if let Some(end) = self.end.take() {
            return Some(end);
        }
        self.draining?;
        if !self.flights.is_empty() && !is_late {
            return None;
        }
        if !self.flights.is_empty() {
            tracing::warn!(event = "drain_cut", consumer = %self.settings.name, in_flight = self.flights.len());
        }
        Some(End::Shutdown)
    }

    async fn close(mut self, end: &End) {
        let untouched = |fate: &Fate| matches!(fate, Fate::Unsent | Fate::Wait);
        let clean = self.flights.is_empty()
            && self.settling.is_none()
            && self.window.lots().all(|lot| lot.fates[lot.submitted..].iter().all(untouched));
        let left = self
            .draining
            .map_or(CLOSE_MIN, |deadline| deadline.saturating_duration_since(Instant::now()).max(CLOSE_MIN));
        if matches!(end, End::Shutdown) && clean {
            controls::reach(Seam::Stop);
            let name = self.settings.name.clone();
            let written = self.writer.perform(move |connection| crate::state::checkpoint::set_clean(connection, &name));
            // It only spares what follows a mark that it may come twice: not worth a long wait.
            match tokio::time::timeout(CLOSE_MIN, written).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(event = "drain_unclean", consumer = %self.settings.name, detail = %error)
                }
                Err(_) => {
                    tracing::warn!(event = "drain_unclean", consumer = %self.settings.name, detail = "the file is locked")
                }
            }
        }
        if let Some(delivery) = self.delivery.take()
            && tokio::time::timeout(left, delivery.close()).await.is_err()
        {
            tracing::warn!(event = "sink_left", consumer = %self.settings.name, detail = "it did not close in time");
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + BEAT;
        if let Health::Backoff(until) = self.health {
            wake = wake.min(until.max(now + Duration::from_millis(1)));
        }
        if let Some(due) = self.silence.due(now) {
            wake = wake.min(due);
        }
        if let Some(deadline) = self.draining {
            wake = wake.min(deadline.max(now));
        }
        if let Some(due) = self.holds.next_due_micros().filter(|_| self.may_send()) {
            let micros = (due - clock::steady_micros()).clamp(2_000, BEAT.as_micros() as i64);
            wake = wake.min(now + Duration::from_micros(micros as u64));
        }
        wake
    }
}

/// The reasons that metrics name.
pub fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.as_str()).collect()
}

impl From<Halt> for End {
    fn from(halt: Halt) -> Self {
        End::Halted(halt)
    }
}
