//! One consumer from start to stop: finds its source and its state, proves that they belong together, and runs sessions.
//!
//! While it cannot run (waiting, halted) it still answers operators.

mod proof;
mod rebuilding;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::control::{self, Command, OPERATION_MAX};
use super::copies::Copier;
use super::delivery::project::Project;
use super::delivery::{Delivery, Ledger, Publish, StateLedger};
use super::holds::Holds;
use super::replay::{Replayer, Sinks};
use super::session::{self, End, SentBefore, Session, Surroundings};
use super::status::{State, Status};
use super::verdict;
use super::{Destination, Settings};
use crate::controls::{self, Seam};
use crate::event::RowKey;
use crate::shutdown::{self, Phase};
use crate::sink::{News, Port};
use crate::source;
use crate::source::mapping::RowMapping;
use crate::source::reader::{Halt, Look, Reader};
use crate::sqlite::lockfile::LockError;
use crate::sqlite::writer::{JobError, Writer, WriterState};
use crate::state::checkpoint::{self, Checkpoint, Sent};
use crate::state::files::{FileError, Files};
use crate::state::held::{self, HeldKey, HeldRow, HeldState};
use crate::telemetry::logs::Repeats;
use crate::telemetry::metric::ConsumerMetrics;

/// What closing a sink of a replay's or a copy's may take when the time is up.
const SIDE_CLOSE_MIN: Duration = Duration::from_millis(500);
const FILE_RETRY: Duration = Duration::from_millis(500);
/// Before a flight that could not be committed is applied anew.
const UNDONE_RETRY: Duration = Duration::from_secs(1);
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
    Halted(Halt),
    /// The tables of another definition are to be made anew.
    Rebuild,
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
                        End::Undone(why) => {
                            let what = format!("it could not be written, and is done anew: {why}");
                            self.say(State::Unavailable, &what);
                            match self.during(|| Some(what.clone()), tokio::time::sleep(UNDONE_RETRY)).await {
                                Ok(()) => continue,
                                Err(stop) => stop,
                            }
                        }
                        End::Halted(halt) => Stop::Halted(halt),
                    }
                }
                Err(stop) => stop,
            };
            let stop = match stop {
                Stop::Rebuild => match self.rebuild().await {
                    Ok(()) => continue,
                    Err(stop) => stop,
                },
                stop => stop,
            };
            match stop {
                Stop::Shutdown => return Ok(()),
                Stop::Rebuild => unreachable!("a rebuild asks for no other"),
                Stop::Refused(detail) => return Err(Locked(detail)),
                Stop::Halted(halt) => {
                    tracing::error!(event = "consumer_halted", consumer = %self.settings.name, detail = %halt.detail);
                    self.say_of(State::Halted, &halt.detail, halt.position_is_ahead);
                    if !self.wait_for_resume(&side.wakes).await {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Once; what it needs of the state's file is there.
    fn start_beside(&self, side: &mut Side, writer: &Writer) {
        if !side.tasks.is_empty() || self.settings.destination.tables().is_some() {
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
        self.say_of(state, detail, false);
    }

    fn say_of(&self, state: State, detail: &str, position_is_ahead: bool) {
        self.status.send_modify(|status| {
            (status.state, status.position_is_ahead) = (state, position_is_ahead);
            detail.clone_into(&mut status.detail);
            (status.sink_up, status.is_at_end) = (false, false);
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
        let is_relay = self.settings.destination.sink().is_some();
        // Of a projection nothing was sent that is not recorded.
        let before = recorded.checkpoint.as_ref().filter(|_| is_relay);
        let sent_before = before.and_then(|checkpoint| match checkpoint.sent {
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
        let (delivery, ledger) = self.ends(&writer, rows, &news_tx);
        let mut holds = Holds::default();
        holds.load(recorded.keys, 0);
        Ok(session::Start {
            settings: self.settings.clone(),
            reader: self.reader.clone(),
            ledger,
            writer,
            delivery,
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

    /// Where the events take effect, and where that is recorded.
    fn ends(
        &self,
        writer: &Writer,
        rows: Option<RowMapping>,
        news: &mpsc::UnboundedSender<News>,
    ) -> (Box<dyn Delivery>, Box<dyn Ledger>) {
        let settings = &self.settings;
        match &settings.destination {
            Destination::Sink { settings: sink, .. } => {
                let port =
                    Port { news: news.clone(), consumer: settings.name.clone(), source: settings.source.clone() };
                let ledger = StateLedger { writer: writer.clone(), rows };
                (Box::new(Publish::new(sink.clone(), port)), Box::new(ledger))
            }
            Destination::Tables(definition) => {
                let first = verdict::after_refusal(settings.on_reject, 1, settings.bounds.attempts_max);
                let holds = first.state != HeldState::Skipped;
                let (delivery, ledger) = Project::new(definition.clone(), writer.clone(), holds, self.status.clone());
                (Box::new(delivery), Box::new(ledger))
            }
        }
    }

    /// Waits for the source; operators are answered meanwhile.
    async fn look(&mut self) -> Result<Look, Stop> {
        let (reader, state) = (self.reader.clone(), self.reader.state.clone());
        let waits_for = move || match &*state.borrow() {
            source::reader::SourceState::Waiting(what) => Some(what.clone()),
            _ => None,
        };
        let look = self.during(waits_for, async move { reader.look().await }).await?;
        look.map_err(Stop::Halted)
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
                return Err(Stop::Halted(Halt::new(error.to_string())));
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
                    let Some(done) = self.unless_it_ends(control::in_time(self.unpause())).await else { return false };
                    let _ = reply.send(done);
                    return true;
                }
                Command::Pause(reply) => {
                    let _ = reply.send(Err(JobError::Refused("it is halted, so nothing moves".into())));
                }
                Command::Operate(operation, reply) => {
                    let Some(done) = self.unless_it_ends(self.operate(operation)).await else { return false };
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
        let opening = self.files.writer(&self.source);
        let opened = async { opening.await.map_err(|error| JobError::Refused(error.to_string())) };
        let writer = control::in_time(opened).await?;
        let done = control::operate_within(OPERATION_MAX, &writer, &self.reader, &self.settings, operation).await;
        done.unwrap_or_else(|| Err(control::late()))
    }

    /// `None`: the daemon ends meanwhile.
    async fn unless_it_ends<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            done = work => Some(done),
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
    Stop::Halted(Halt::new(format!("the recorded state cannot be used: {error}")))
}

fn refuse(command: Command, why: &str) {
    let (Command::Pause(reply) | Command::Resume(reply) | Command::Operate(_, reply)) = command;
    let _ = reply.send(Err(JobError::Refused(format!("not now: {why}"))));
}
