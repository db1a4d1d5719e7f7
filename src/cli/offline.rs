//! What commands do on the files themselves, while no daemon runs: the same answers from the same functions.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::control_client::Request;
use super::{Exit, Failure};
use crate::admin::answer::{self, Desk, Refusal};
use crate::admin::{job_answer, status_json};
use crate::config::{Config, Loaded};
use crate::consumer::control::{self, Operation};
use crate::consumer::replay::{Replayer, Sinks, Wanted};
use crate::consumer::status::{State, Status};
use crate::consumer::{self};
use crate::maintenance::work::{self, Turn};
use crate::maintenance::{self, Stop};
use crate::shutdown::Shutdown;
use crate::source;
use crate::source::reader::Reader;
use crate::sqlite::lockfile::LockError;
use crate::sqlite::open;
use crate::sqlite::writer::Writer;
use crate::state::files::{FileError, Files};
use crate::state::{checkpoint, held, job_run};

/// How often a replay is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a source may take to be there.
const LOOK_WAIT: Duration = Duration::from_secs(5);

/// Answers a request as the daemon would, in the same shapes.
pub fn answer(loaded: &Loaded, request: &Request) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let desk = Offline { config: &loaded.config, stop: Stop::default() };
    runtime.block_on(answer::answer(&desk, request)).map_err(|refusal| {
        let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
        Failure { exit, reason: refusal.error, remedy: None }.into()
    })
}

/// Runs a job in this process; `stop` tells how far it is.
pub fn run_job(loaded: &Loaded, job: &str, stop: &Stop) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let desk = Offline { config: &loaded.config, stop: stop.clone() };
    runtime.block_on(desk.run_job(job)).map_err(|refusal| {
        let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
        Failure { exit, reason: refusal.error, remedy: None }.into()
    })
}

/// Carries a replay in this process; a consumer's relay does not run meanwhile, so that its own file is free. `draw` is told how far it is.
pub fn replay(loaded: &Loaded, consumer: &str, wanted: Wanted, draw: &mut dyn FnMut(&Value)) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let desk = Offline { config: &loaded.config, stop: Stop::default() };
    let replayed = runtime.block_on(desk.replay(consumer, wanted, draw));
    replayed.map_err(|refusal| {
        let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
        Failure { exit, reason: refusal.error, remedy: None }.into()
    })
}

struct Offline<'a> {
    config: &'a Config,
    /// Of a job that runs here.
    stop: Stop,
}

impl Offline<'_> {
    /// The consumer, and its source with the place of its state.
    fn consumer(&self, consumer: &str) -> Result<(&consumer::Settings, source::Settings), Refusal> {
        let none = || Refusal::new(Refusal::USAGE, format!("{consumer} is not in the config"));
        let consumer = self.config.consumer(consumer).ok_or_else(none)?;
        Ok((consumer, consumer.placed(&self.config.sources[&consumer.source])))
    }

    fn placed(&self) -> Vec<source::Settings> {
        let projections = self.config.projections.iter();
        let placed = projections.map(|consumer| consumer.placed(&self.config.sources[&consumer.source]));
        self.config.sources.values().cloned().chain(placed).collect()
    }

    async fn replay(&self, consumer: &str, wanted: Wanted, draw: &mut dyn FnMut(&Value)) -> Result<Value, Refusal> {
        let (relay, source) = self.consumer(consumer)?;
        let (writer, reader) = open_both(consumer, &source).await?;
        let begun = control::operate(&writer, &reader, relay, Operation::Replay(wanted)).await?.value;
        let status = watch::Sender::new(Status::new(relay));
        let seen = status.subscribe();
        let replayer = Replayer {
            settings: Arc::new(relay.clone()),
            source: Arc::new(source),
            reader,
            writer,
            sinks: watch::Sender::new(Arc::new(Sinks::new(self.config.sinks.clone(), &[]))).subscribe(),
            status,
            nudge: Arc::default(),
        };
        let (shutdown, phase) = Shutdown::new();
        let running = tokio::spawn(replayer.keep(phase));
        let replay = loop {
            let replay = serde_json::to_value(&seen.borrow().replay).expect("numbers and text are always JSON");
            let is_it = replay["number"] == begun["number"];
            if is_it && replay["state"] != "running" {
                break replay;
            }
            if running.is_finished() {
                return Err(Refusal::new(Refusal::UNAVAILABLE, "the replay ended and could not be recorded"));
            }
            if is_it {
                draw(&replay);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        shutdown.drain(Duration::ZERO);
        let _ = running.await;
        Ok(replay)
    }
}

/// What commands on the files work with.
async fn open_both(consumer: &str, source: &source::Settings) -> Result<(Writer, Reader), Refusal> {
    if !source.path.exists() {
        let text = format!("{} is not there: nothing is recorded of {consumer}", source.path.display());
        return Err(Refusal::new(Refusal::UNAVAILABLE, text));
    }
    let writer = Files::default().writer(source).await.map_err(unopened)?;
    let reader = Reader::start(source.clone())
        .map_err(|error| Refusal::new(Refusal::UNAVAILABLE, format!("{}: {error}", source.path.display())))?;
    Ok((writer, reader))
}

impl Desk for Offline<'_> {
    /// Looks into the files without writing or locking anything.
    async fn statuses(&self) -> Result<Vec<Value>, Refusal> {
        let placed = |consumer: &consumer::Settings| consumer.placed(&self.config.sources[&consumer.source]);
        self.config.consumers().map(|consumer| status(consumer, &placed(consumer))).collect()
    }

    fn consumers(&self) -> Vec<String> {
        self.config.consumers().map(|consumer| consumer.name.clone()).collect()
    }

    async fn left_over(&self) -> Result<Vec<Value>, Refusal> {
        Ok(control::left_over(&self.placed(), &self.consumers())?)
    }

    async fn pause(&self, consumer: &str, paused: bool) -> Result<Value, Refusal> {
        let (relay, source) = self.consumer(consumer)?;
        let writer = Files::default().writer(&source).await.map_err(unopened)?;
        Ok(control::set_paused(&writer, &relay.name, paused).await?)
    }

    async fn operate(&self, consumer: &str, operation: Operation) -> Result<Value, Refusal> {
        if let (Operation::Forget { reason }, Err(_)) = (&operation, self.consumer(consumer)) {
            return Ok(control::forget_removed(&Files::default(), &self.placed(), consumer, reason).await?);
        }
        let (relay, source) = self.consumer(consumer)?;
        let (writer, reader) = open_both(consumer, &source).await?;
        let done = control::operate_within(LOOK_WAIT, &writer, &reader, relay, operation).await;
        let slow =
            || Refusal::new(Refusal::UNAVAILABLE, format!("{} cannot be read at present", source.path.display()));
        Ok(done.ok_or_else(slow)??.value)
    }

    async fn jobs(&self) -> Result<Vec<Value>, Refusal> {
        self.config.jobs.iter().map(job_status).collect()
    }

    /// In this process, under the locks that a daemon would take.
    async fn run_job(&self, job: &str) -> Result<Value, Refusal> {
        let names = || self.config.jobs.iter().map(|job| job.name.clone());
        let settings = self.config.jobs.iter().find(|settings| settings.name == job);
        let settings = settings.ok_or_else(|| Refusal::no_job(job, names()))?;
        if let Some(missing) = settings.job.files().into_iter().find(|file| !file.exists()) {
            return Err(Refusal::new(Refusal::UNAVAILABLE, format!("{} is not there", missing.display())));
        }
        if settings.schedule.is_by_hand() {
            return job_answer(job, work::perform_alone(settings, &self.stop).await.map_err(unopened)??);
        }
        let files = Files::default();
        let writer = files.writer(&settings.home).await.map_err(unopened)?;
        work::take_over(settings, &writer).await?;
        job_answer(job, work::perform(settings, &writer, &files, &self.stop, Turn::default()).await?)
    }

    async fn reload(&self) -> Result<Value, Refusal> {
        Err(Refusal::new(Refusal::UNAVAILABLE, "no daemon runs: there is nothing to reload"))
    }
}

/// What the files know of a job.
fn job_status(settings: &maintenance::Settings) -> Result<Value, Refusal> {
    let mut status = maintenance::status::Status::new(settings);
    (status.state, status.detail) = (maintenance::status::State::Stopped, "no daemon runs".into());
    let path = settings.home.state_path();
    if path.exists() {
        let unread =
            |error: &dyn std::fmt::Display| Refusal::new(Refusal::DATA, format!("{}: {error}", path.display()));
        let connection = open::visitor(&path).map_err(|error| unread(&error))?;
        if crate::state::schema_version(&connection).map_err(|error| unread(&error))?.is_some() {
            status.last = job_run::newest(&connection, &settings.name).map_err(|error| unread(&error))?;
        }
    }
    Ok(status.to_json())
}

fn unopened(error: FileError) -> Refusal {
    let exit =
        if matches!(error, FileError::Lock(LockError::Held { .. })) { Refusal::LOCKED } else { Refusal::UNAVAILABLE };
    Refusal::new(exit, error.to_string())
}

fn status(relay: &consumer::Settings, source: &source::Settings) -> Result<Value, Refusal> {
    let mut status = Status::new(relay);
    status.state = State::Stopped;
    status.detail = "no daemon runs".into();
    let path = source.state_path();
    if !path.exists() {
        let mut value = status_json(&status);
        value["backlog_events"] = Value::Null;
        value["lag_seconds"] = Value::Null;
        return Ok(value);
    }
    let unread = |error: &dyn std::fmt::Display| Refusal::new(Refusal::DATA, format!("{}: {error}", path.display()));
    let connection = open::visitor(&path).map_err(|error| unread(&error))?;
    if crate::state::schema_version(&connection).map_err(|error| unread(&error))?.is_some() {
        if let Some(checkpoint) = checkpoint::load(&connection, &relay.name).map_err(|error| unread(&error))? {
            status.position = checkpoint.mark.position.0;
        }
        let keys = held::keys(&connection, &relay.name, relay.bounds.retry_min).map_err(|error| unread(&error))?;
        status.held_keys = keys.len() as u64;
        status.dead = keys.iter().filter(|key| key.head == held::HeldState::Dead).count() as u64;
        status.held_since_micros = keys.iter().map(|key| key.since_micros).min();
    }
    let mut value = status_json(&status);
    // What is not looked at is not said.
    value["lag_seconds"] = json!(null);
    value["backlog_events"] = json!(null);
    Ok(value)
}
