//! One job's task: waits until it is due or asked for, and runs it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot, watch};

use super::schedule::Due;
use super::status::{State, Status};
use super::work::{self, Ended, Turn};
use super::{Failure, Settings, Stop};
use crate::clock;
use crate::controls::{self, Protection};
use crate::retry::Pace;
use crate::shutdown::{self, Phase};
use crate::sqlite::place;
use crate::sqlite::writer::Writer;
use crate::state::files::Files;
use crate::state::job_run::Run;
use crate::telemetry::metric;

/// However it is woken, it looks at the clock this often.
const TICK: Duration = Duration::from_secs(60);
/// What a stop waits for a run.
const ABORT_MAX: Duration = Duration::from_millis(800);
/// How far a run is is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Who waits for less is not worth a word.
const SHOWN_AFTER: Duration = Duration::from_millis(200);

/// Of a job that is done by hand.
const ALONE: &str = "it takes its file alone, and the daemon has that open. Nothing was done. Remedy: stop the daemon and the application, and run it then";

/// Asks for a run now; answered when it has ended.
pub type RunRequest = oneshot::Sender<Result<Ended, Failure>>;

pub(super) struct Runner {
    pub settings: Settings,
    pub files: Files,
    pub turns: Turns,
    pub requests: UnboundedReceiver<RunRequest>,
    /// Answered by what the next look finds.
    pub asked: Option<RunRequest>,
    /// By the cron scheduler.
    pub fired: Arc<Notify>,
    pub shutdown: watch::Receiver<Phase>,
    pub status: watch::Sender<Status>,
}

/// Jobs of one file take turns, and runs of one job.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    // Taken to look a place up, never across a wait.
    places: Arc<Mutex<BTreeMap<Place, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Of what there is one at a time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    Job(String),
    File(PathBuf),
}

impl Turns {
    /// Waits for all of the places, always in the same order.
    pub async fn take(&self, mut places: Vec<Place>) -> Turn {
        places.sort();
        places.dedup();
        if controls::is_off(Protection::Turns) {
            places.clear();
        }
        let mut taken = Vec::new();
        for place in places {
            let turn = self.places.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default().clone();
            taken.push(turn.lock_owned().await);
        }
        Turn(taken)
    }
}

impl Runner {
    pub(super) async fn run(mut self) {
        // Also one that never comes to run has its series.
        metric::job_info(&self.settings.name, self.settings.kind);
        metric::job_is_known(&self.settings.name, None);
        if let Some(writer) = self.writer().await {
            self.keep(&writer).await;
        }
        self.show(State::Stopped, "");
    }

    /// Waits for the state, as long as it takes; `None` when all ends first.
    async fn writer(&mut self) -> Option<Writer> {
        let mut pace = Pace::new(Duration::from_millis(200), TICK);
        loop {
            let why = match self.missing() {
                Some(file) => format!("{} is not there yet", file.display()),
                None => {
                    let mut shutdown = self.shutdown.clone();
                    // Opening it waits as long as another process writes there.
                    let opened = tokio::select! {
                        opened = self.open() => opened,
                        () = shutdown::asked(&mut shutdown) => return None,
                    };
                    match opened {
                        Ok(writer) => return Some(writer),
                        Err(why) => why,
                    }
                }
            };
            if self.status.borrow().detail != why {
                tracing::warn!(event = "job_waits", job = %self.settings.name, detail = why);
                self.show(State::Waiting, &why);
            }
            if let Some(reply) = self.asked.take() {
                drop(reply.send(Err(Failure::Unavailable(why))));
            }
            if !self.wakes(pace.delay()).await {
                return None;
            }
        }
    }

    async fn open(&self) -> Result<Writer, String> {
        let _turn = self.own_turn().await;
        let writer = self.files.writer(&self.settings.home).await.map_err(|error| error.to_string())?;
        let (newest, success) = work::take_over(&self.settings, &writer).await.map_err(|error| error.to_string())?;
        metric::job_is_known(&self.settings.name, success.and_then(|run| run.ended));
        self.status.send_modify(|status| status.last = Some(newest));
        Ok(writer)
    }

    /// A run that a reload has let go of may work still: what it leaves is not removed under it, nor told as that of a run that was killed.
    async fn own_turn(&self) -> Turn {
        let mut turn = std::pin::pin!(self.turns.take(vec![Place::Job(self.settings.name.clone())]));
        if let Ok(turn) = tokio::time::timeout(SHOWN_AFTER, &mut turn).await {
            return turn;
        }
        self.show(State::Waiting, "a run that began before the reload has not ended yet");
        turn.await
    }

    async fn keep(&mut self, writer: &Writer) {
        let mut last = self.status.borrow().last.as_ref().map_or(0, |run| run.began);
        // A record of a time that is yet to come says nothing; that the job runs once too often is better than not at all.
        if self.settings.schedule.due(clock::now_micros(), last) == Due::Stale {
            last = i64::MIN / 2;
        }
        loop {
            let now = clock::now_micros();
            let due = self.settings.schedule.due(now, last.max(0));
            let missing = self.missing();
            self.status.send_modify(|status| {
                status.next = match due {
                    Due::Now => Some(now),
                    Due::At(time) => Some(time),
                    Due::Stale => self.settings.schedule.times.next(now),
                    Due::Never => None,
                };
            });
            if let Some(reply) = self.asked.take() {
                match missing {
                    _ if self.settings.schedule.is_by_hand() => {
                        drop(reply.send(Err(Failure::Locked(ALONE.into()))));
                    }
                    Some(file) => {
                        drop(reply.send(Err(Failure::Unavailable(format!("{} is not there", file.display())))));
                    }
                    None => {
                        let Some(began) = self.once(writer, Some(reply)).await else { return };
                        last = began;
                    }
                }
                continue;
            }
            let wait = match (due, &missing) {
                (Due::Now, None) => {
                    let Some(began) = self.once(writer, None).await else { return };
                    last = began;
                    continue;
                }
                (Due::Now, Some(file)) => {
                    self.show(State::Waiting, &format!("{} is not there", file.display()));
                    TICK
                }
                (Due::Stale, _) => {
                    last = now;
                    continue;
                }
                (Due::At(time), _) => {
                    self.show(State::Scheduled, "");
                    Duration::from_micros(time.saturating_sub(now).max(0) as u64)
                }
                (Due::Never, _) => {
                    self.show(State::Scheduled, "");
                    TICK
                }
            };
            if !self.wakes(wait.min(TICK)).await {
                return;
            }
        }
    }

    /// One run, in its turn; says when it began. `None` when all ends.
    async fn once(&mut self, writer: &Writer, reply: Option<RunRequest>) -> Option<i64> {
        let stop = Stop::default();
        let Self { settings, files, turns, requests, shutdown, status, .. } = self;
        let show = |state| status.send_modify(|status| (status.state, status.detail) = (state, String::new()));
        show(State::Queued);
        let mut work = std::pin::pin!(async {
            let files_of_it = settings.job.files().into_iter().chain(settings.job.makes());
            let files_of_it = files_of_it.map(|file| Place::File(place::real(&file)));
            let turn = turns.take([Place::Job(settings.name.clone())].into_iter().chain(files_of_it).collect()).await;
            if stop.is_asked() {
                return None;
            }
            show(State::Running);
            Some(work::perform(settings, writer, files, &stop, turn).await)
        });
        let mut look = tokio::time::interval(LOOK_EVERY);
        let (ended, is_last) = loop {
            tokio::select! {
                ended = &mut work => break (ended, false),
                _ = look.tick() => if let Some(done) = stop.done() {
                    metric::job_progress(&settings.name, done);
                    status.send_modify(|status| status.progress = Some(done));
                },
                Some(another) = requests.recv() => {
                    let busy = format!("{} runs already, or waits for its turn: two runs of a job never overlap", settings.name);
                    drop(another.send(Err(Failure::Locked(busy))));
                }
                () = shutdown::asked(shutdown) => {
                    stop.ask();
                    break (tokio::time::timeout(ABORT_MAX, &mut work).await.ok().flatten(), true);
                }
            }
        };
        if status.borrow().progress.is_some() {
            metric::job_progress(&settings.name, 0.0);
            status.send_modify(|status| status.progress = None);
        }
        let now = clock::now_micros();
        let (answer, last) = match ended {
            None => (Err(Failure::Aborted), None),
            Some(Ok(ended)) => (Ok(ended.clone()), Some(ended.run)),
            // Nothing was recorded: it is tried again at its next time.
            Some(Err(error)) => {
                let detail = format!("the run cannot be recorded: {error}");
                tracing::error!(event = "job_failed", job = %settings.name, detail);
                let failed = Run { began: now, ended: Some(now), outcome: None, detail: detail.clone() };
                (Err(Failure::Unavailable(detail)), Some(failed))
            }
        };
        let began = last.as_ref().map_or(now, |run| run.began);
        if let Some(run) = last {
            status.send_modify(|status| status.last = Some(run));
        }
        if let Some(reply) = reply {
            // Who asked may be gone.
            drop(reply.send(answer));
        }
        (!is_last).then_some(began)
    }

    /// Until there is something to look at; `false` when all ends.
    async fn wakes(&mut self, after: Duration) -> bool {
        tokio::select! {
            () = shutdown::asked(&mut self.shutdown) => return false,
            Some(reply) = self.requests.recv() => self.asked = Some(reply),
            () = self.fired.notified() => {}
            () = tokio::time::sleep(after) => {}
        }
        true
    }

    fn missing(&self) -> Option<PathBuf> {
        self.settings.job.files().into_iter().find(|file| !file.exists())
    }

    fn show(&self, state: State, detail: &str) {
        self.status.send_if_modified(|status| {
            let is_new = (status.state, status.detail.as_str()) != (state, detail);
            (status.state, status.detail) = (state, detail.to_owned());
            is_new
        });
    }
}
