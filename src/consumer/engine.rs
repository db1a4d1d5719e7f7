//! One consumer from start to stop: finds its source and its state, proves that they belong together, and runs sessions.
//!
//! While it cannot run (waiting, halted) it still answers operators.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::control::{self, Command};
use super::copies::Copier;
use super::delivery::{Publish, StateLedger};
use super::holds::Holds;
use super::replay::{Replayer, Sinks};
use super::session::{self, End, SentBefore, Session, Surroundings};
use super::status::{State, Status};
use super::{OnReject, Settings, Start};
use crate::controls::{self, Seam};
use crate::event::RowKey;
use crate::shutdown::{self, Phase};
use crate::sink::Port;
use crate::source::reader::{Halt, Look, Mark, Reader};
use crate::source::{self, StatePlace};
use crate::sqlite::lockfile::LockError;
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer, WriterState};
use crate::state::checkpoint::{self, Checkpoint, Sent, Witnesses};
use crate::state::files::{FileError, Files};
use crate::state::held::{self, HeldKey, HeldRow};
use crate::telemetry::logs::Repeats;
use crate::telemetry::metric::ConsumerMetrics;

/// What closing a sink of a replay's or a copy's may take when the time is up.
const SIDE_CLOSE_MIN: Duration = Duration::from_millis(500);
const FILE_RETRY: Duration = Duration::from_millis(500);
/// How often a start that has to wait says what for.
const SAY_AGAIN: Duration = Duration::from_millis(200);

/// Whether a file that another daemon holds is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenLocked {
    Wait,
    Refuse,
}

/// A consumer that is about to run.
pub struct Engine {
    pub settings: Arc<Settings>,
    pub source: Arc<source::Settings>,
    pub reader: Reader,
    pub files: Files,
    pub when_locked: WhenLocked,
    pub commands: UnboundedReceiver<Command>,
    pub shutdown: watch::Receiver<Phase>,
    pub status: watch::Sender<Status>,
    /// Where replays may go.
    pub sinks: watch::Receiver<Arc<Sinks>>,
    /// An operator said "resume" in this run: `paused = true` in the config has been answered.
    pub resumed: bool,
}

/// Wakes what runs beside a session.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The recorded replay was changed.
    pub replays: Arc<Notify>,
    /// Copies of dead letters were recorded.
    pub copies: Arc<Notify>,
}

/// What runs beside the sessions, from the first on whose state could be read until the consumer ends.
#[derive(Default)]
struct Side {
    wakes: Beside,
    tasks: JoinSet<()>,
}

/// Why a consumer is not running.
#[derive(Debug)]
enum Stop {
    Shutdown,
    Halted(String),
    /// The whole daemon has to end: another one holds the file and waiting was not wanted.
    Refused(String),
}

/// The daemon must end with exit code 75.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Locked(pub String);

/// What is recorded of the consumer.
struct Recorded {
    checkpoint: Option<Checkpoint>,
    keys: Vec<HeldKey>,
    first_dead: Option<HeldRow>,
    dead_rows: Vec<RowKey>,
    paused: bool,
}

impl Engine {
    /// Runs until shutdown.
    pub async fn run(mut self) -> Result<(), Locked> {
        let metrics = ConsumerMetrics::new(&self.settings.name, &session::reasons());
        let mut repeats = Repeats::default();
        let mut side = Side::default();
        let ended = self.run_sessions(&metrics, &mut repeats, &mut side).await;
        let at_the_latest = match *self.shutdown.borrow() {
            Phase::Drain { deadline } => deadline.max(Instant::now() + SIDE_CLOSE_MIN),
            Phase::Run => Instant::now(),
        };
        let all = async { while side.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at(at_the_latest.into(), all).await;
        side.tasks.shutdown().await;
        ended?;
        self.say(State::Stopped, "");
        tracing::info!(event = "consumer_stopped", consumer = %self.settings.name);
        Ok(())
    }

    async fn run_sessions(
        &mut self,
        metrics: &ConsumerMetrics,
        repeats: &mut Repeats,
        side: &mut Side,
    ) -> Result<(), Locked> {
        loop {
            let stop = match self.start(side).await {
                Ok(start) => {
                    tracing::info!(event = "consumer_started", consumer = %self.settings.name, position = %start.checkpoint.position);
                    let mut around = Surroundings {
                        commands: &mut self.commands,
                        shutdown: &mut self.shutdown,
                        status: &self.status,
                        metrics,
                        repeats,
                        resumed: &mut self.resumed,
                    };
                    match Session::new(start).run(&mut around).await {
                        End::Shutdown => Stop::Shutdown,
                        End::Restart => continue,
                        End::Halted(detail) => Stop::Halted(detail),
                    }
                }
                Err(stop) => stop,
            };
            match stop {
                Stop::Shutdown => return Ok(()),
                Stop::Refused(detail) => return Err(Locked(detail)),
                Stop::Halted(detail) => {
                    tracing::error!(event = "consumer_halted", consumer = %self.settings.name, %detail);
                    self.say(State::Halted, &detail);
                    if !self.wait_for_resume(&side.wakes).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Once; what it needs of the state's file is there.
    fn start_beside(&self, side: &mut Side, writer: &Writer) {
        if !side.tasks.is_empty() {
            return;
        }
        let replayer = Replayer {
            settings: self.settings.clone(),
            source: self.source.clone(),
            reader: self.reader.clone(),
            writer: writer.clone(),
            sinks: self.sinks.clone(),
            status: self.status.clone(),
            nudge: side.wakes.replays.clone(),
        };
        side.tasks.spawn(replayer.keep(self.shutdown.clone()));
        if let Some((_, sink)) = &self.settings.dead_letter_sink {
            let copier = Copier {
                settings: self.settings.clone(),
                sink: sink.clone(),
                reader: self.reader.clone(),
                writer: writer.clone(),
                status: self.status.clone(),
                nudge: side.wakes.copies.clone(),
            };
            side.tasks.spawn(copier.keep(self.shutdown.clone()));
        }
    }

    fn say(&self, state: State, detail: &str) {
        self.status.send_modify(|status| {
            status.state = state;
            detail.clone_into(&mut status.detail);
            status.sink_up = false;
            status.beat_micros = crate::clock::steady_micros();
            if state == State::Halted {
                // Nobody looks at the events any more: from now on it falls behind.
                status.oldest_unsettled_micros.get_or_insert(crate::clock::now_micros());
            }
        });
    }

    /// Everything up to the first event.
    async fn start(&mut self, side: &mut Side) -> Result<session::Start, Stop> {
        self.say(State::Starting, "");
        controls::reach(Seam::Start);
        let look = self.look().await?;
        self.status.send_modify(|status| status.warnings = [&look.warnings[..], &look.plan.warnings[..]].concat());
        let writer = self.writer().await?;
        let recorded = self.recorded(&writer).await?;
        self.start_beside(side, &writer);
        let by_row = look.mapping.rows.is_some();
        let checkpoint = match &recorded.checkpoint {
            Some(checkpoint) => {
                self.check_definition(checkpoint, &look)?;
                if !by_row {
                    self.verify(checkpoint).await?;
                }
                checkpoint.clone()
            }
            None => self.first_checkpoint(&look)?,
        };
        self.check_dead_letters(recorded.first_dead.as_ref())?;
        let sent_before = recorded.checkpoint.as_ref().and_then(|checkpoint| match checkpoint.sent {
            Sent::Nothing => None,
            Sent::Anything if by_row => Some(SentBefore { until: look.head, events: usize::MAX }),
            _ => Some(SentBefore { until: look.head, events: self.settings.bounds.window_events }),
        });
        self.record_start(&writer, checkpoint.clone(), recorded.checkpoint.is_none()).await?;

        let mut rows = look.mapping.rows.clone();
        let on_dead_letter =
            rows.as_mut().map(|rows| &mut rows.on_dead_letter).filter(|_| !self.settings.dead_letter_row);
        on_dead_letter.into_iter().for_each(|sql| *sql = None);
        if let Some(sql) = rows.as_ref().and_then(|rows| rows.on_dead_letter.clone()) {
            self.try_statement(&writer, sql).await?;
        }
        let (news_tx, news) = mpsc::unbounded_channel();
        let port =
            Port { news: news_tx.clone(), consumer: self.settings.name.clone(), source: self.settings.source.clone() };
        let mut holds = Holds::default();
        holds.load(recorded.keys, 0);
        Ok(session::Start {
            settings: self.settings.clone(),
            reader: self.reader.clone(),
            ledger: Box::new(StateLedger { writer: writer.clone(), rows }),
            writer,
            delivery: Box::new(Publish::new(self.settings.sink.clone(), port)),
            news,
            news_tx,
            checkpoint: checkpoint.mark,
            witnesses: checkpoint.witnesses,
            by_row,
            holds,
            beside: side.wakes.clone(),
            dead_rows: recorded.dead_rows,
            sent_before,
            paused: recorded.paused || (self.settings.paused && !self.resumed),
        })
    }

    /// Waits for the source; operators are answered meanwhile.
    async fn look(&mut self) -> Result<Look, Stop> {
        let (reader, state) = (self.reader.clone(), self.reader.state.clone());
        let waits_for = move || match &*state.borrow() {
            source::reader::SourceState::Waiting(what) => Some(what.clone()),
            _ => None,
        };
        let look = self.during(waits_for, async move { reader.look().await }).await?;
        look.map_err(|halt: Halt| Stop::Halted(halt.detail))
    }

    /// Waits for the lock on the state's file.
    async fn writer(&mut self) -> Result<Writer, Stop> {
        loop {
            let (files, source) = (self.files.clone(), self.source.clone());
            let what = format!("{} cannot be written at present", source.state_path().display());
            let opening = async move { files.writer(&source).await };
            let asked = std::time::Instant::now();
            let waits_for = move || (asked.elapsed() >= SAY_AGAIN).then(|| what.clone());
            let error = match self.during(waits_for, opening).await? {
                Ok(writer) => return Ok(writer),
                Err(error) => error,
            };
            let locked = matches!(error, FileError::Lock(LockError::Held { .. }));
            if locked && self.when_locked == WhenLocked::Refuse {
                return Err(Stop::Refused(format!(
                    "{error}, and when_locked = \"refuse\". Remedy: stop the other outboxd, or let this one wait"
                )));
            }
            if !error.is_passing() {
                return Err(Stop::Halted(error.to_string()));
            }
            let what = error.to_string();
            self.say(State::Waiting, &what);
            self.during(|| Some(what.clone()), tokio::time::sleep(FILE_RETRY)).await?;
        }
    }

    /// Does something that may have to wait; when it does, says what for and refuses what operators ask.
    async fn during<T>(
        &mut self,
        waits_for: impl Fn() -> Option<String>,
        work: impl Future<Output = T>,
    ) -> Result<T, Stop> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                Some(command) = self.commands.recv(), if waits_for().is_some() => {
                    refuse(command, &waits_for().unwrap_or_default());
                }
                () = shutdown::asked(&mut self.shutdown) => return Err(Stop::Shutdown),
                () = tokio::time::sleep(SAY_AGAIN) => {
                    if let Some(what) = waits_for() {
                        self.say(State::Waiting, &what);
                    }
                }
            }
        }
    }

    async fn recorded(&mut self, writer: &Writer) -> Result<Recorded, Stop> {
        let (name, retry_min) = (self.settings.name.clone(), self.settings.bounds.retry_min);
        let recorded = writer.perform(move |connection| {
            Ok(Recorded {
                checkpoint: checkpoint::load(connection, &name)?,
                keys: held::keys(connection, &name, retry_min)?,
                first_dead: held::first_dead(connection, &name)?,
                dead_rows: held::dead_rows(connection, &name)?,
                paused: checkpoint::is_paused(connection, &name)?,
            })
        });
        self.during(blocked(writer), recorded).await?.map_err(halted)
    }

    /// What a person wrote is looked at before the first dead letter needs it.
    async fn try_statement(&mut self, writer: &Writer, sql: String) -> Result<(), Stop> {
        let name = self.settings.name.clone();
        let tried = writer.perform(move |connection| {
            let said = |error: rusqlite::Error| {
                JobError::Refused(format!(
                    "dead_letter_row = true in [relays.{name}], and what the source's `on_dead_letter` says cannot be done: {error}. \
                     Remedy: make the table that it names, or leave dead_letter_row out, then `outboxd resume`"
                ))
            };
            open::fenced(connection, |connection| connection.prepare(&sql).map(drop))?.map_err(said)
        });
        self.during(blocked(writer), tried).await?.map_err(|error| Stop::Halted(error.to_string()))
    }

    async fn record_start(&mut self, writer: &Writer, from: Checkpoint, is_first: bool) -> Result<(), Stop> {
        let begun = writer.perform(move |connection| checkpoint::begin(connection, &from, is_first));
        self.during(blocked(writer), begun).await?.map_err(halted)
    }

    /// With `on_reject = "halt"`, a dead letter keeps the consumer halted until it is retried or discarded.
    fn check_dead_letters(&self, first_dead: Option<&HeldRow>) -> Result<(), Stop> {
        match first_dead {
            Some(row) if self.settings.on_reject == OnReject::Halt => Err(Stop::Halted(session::halted_by(row))),
            _ => Ok(()),
        }
    }

    fn check_definition(&self, checkpoint: &Checkpoint, look: &Look) -> Result<(), Stop> {
        let definition = &look.mapping.definition;
        if checkpoint.definition == *definition && checkpoint.source == self.settings.source {
            return Ok(());
        }
        Err(Stop::Halted(format!(
            "the checkpoint of {name} was taken with another mapping: source {old_source}, {old}; now source {source}, {definition}. \
             Positions and keys may mean something else. Remedy: `outboxd consumer accept {name}` when they mean the same, \
             `outboxd position set {name}` when they do not",
            name = self.settings.name,
            old_source = checkpoint.source,
            old = checkpoint.definition,
            source = self.settings.source,
        )))
    }

    async fn verify(&mut self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        let mut marks = vec![checkpoint.mark.clone()];
        // Inside, the state went back together with the rest of the file.
        if self.source.state != StatePlace::Inside {
            marks.extend(checkpoint.witnesses.marks().iter().cloned());
        }
        let reader = self.reader.clone();
        let verified = self.during(|| None, async move { reader.verify(marks).await }).await?;
        verified.map_err(|halt| Stop::Halted(halt.detail))
    }

    fn first_checkpoint(&self, look: &Look) -> Result<Checkpoint, Stop> {
        let by_row = look.mapping.rows.is_some();
        let mark = match (self.settings.start, look.has_events && !by_row) {
            (_, false) => Mark::default(),
            (Some(Start::First), true) => Mark { position: look.before_first, event_id: String::new() },
            (Some(Start::Head), true) => Mark { position: look.head, event_id: look.head_id.clone() },
            (None, true) => {
                return Err(Stop::Halted(format!(
                    "source {} already has events and {} has no checkpoint: say where to begin. Remedy: start = \"first\" (send all of \
                     them) or start = \"head\" (only what comes from now on) in [relays.{}], and restart",
                    self.settings.source, self.settings.name, self.settings.name
                )));
            }
        };
        Ok(Checkpoint {
            consumer: self.settings.name.clone(),
            source: self.settings.source.clone(),
            definition: look.mapping.definition.clone(),
            mark,
            witnesses: Witnesses::default(),
            sent: Sent::Nothing,
            updated_at: String::new(),
        })
    }

    /// Answers operators until one says "resume" (true) or the daemon ends (false).
    async fn wait_for_resume(&mut self, beside: &Beside) -> bool {
        loop {
            let command = tokio::select! {
                Some(command) = self.commands.recv() => command,
                () = shutdown::asked(&mut self.shutdown) => return false,
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    self.status.send_modify(|status| status.beat_micros = crate::clock::steady_micros());
                    continue;
                }
            };
            match command {
                Command::Resume(reply) => {
                    self.resumed = true;
                    let Some(done) = self.in_time(self.unpause()).await else { return false };
                    let _ = reply.send(done);
                    return true;
                }
                Command::Pause(reply) => {
                    let _ = reply.send(Err(JobError::Refused("it is halted, so nothing moves".into())));
                }
                Command::Operate(operation, reply) => {
                    let Some(done) = self.in_time(self.operate(operation)).await else { return false };
                    let restarts = done.as_ref().is_ok_and(|done| done.restarts);
                    if done.as_ref().is_ok_and(|done| done.replays) {
                        beside.replays.notify_one();
                    }
                    let _ = reply.send(done.map(|done| done.value));
                    if restarts {
                        return true;
                    }
                }
            }
        }
    }

    async fn unpause(&self) -> Result<serde_json::Value, JobError> {
        let writer = self.files.writer(&self.source).await.map_err(|error| JobError::Refused(error.to_string()));
        match writer {
            Ok(writer) => control::set_paused(&writer, &self.settings.name, false).await,
            // It goes on all the same, and says what is wrong with the file.
            Err(_) => Ok(json!({ "consumer": self.settings.name, "paused": false })),
        }
    }

    async fn operate(&self, operation: control::Operation) -> Result<control::Done, JobError> {
        let writer = self.files.writer(&self.source).await.map_err(|error| JobError::Refused(error.to_string()))?;
        control::operate(&writer, &self.reader, &self.settings, operation).await
    }

    /// `None`: the daemon ends meanwhile.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, JobError>>) -> Option<Result<T, JobError>> {
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            done = control::in_time(work) => Some(done),
            () = shutdown::asked(&mut shutdown) => None,
        }
    }
}

/// What keeps a file's writer from writing.
fn blocked(writer: &Writer) -> impl Fn() -> Option<String> + use<> {
    let state = writer.state.clone();
    move || match &*state.borrow() {
        WriterState::Waiting(why) => Some(why.clone()),
        WriterState::Ready => None,
    }
}

fn halted(error: JobError) -> Stop {
    Stop::Halted(format!("the recorded state cannot be used: {error}"))
}

fn refuse(command: Command, why: &str) {
    let (Command::Pause(reply) | Command::Resume(reply) | Command::Operate(_, reply)) = command;
    let _ = reply.send(Err(JobError::Refused(format!("not now: {why}"))));
}
