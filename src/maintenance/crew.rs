//! All jobs of this daemon: a task each; a reload touches only those that changed.
//!
//! Cron expressions are fired by tokio-cron-scheduler, and nothing else of it is used: it knows neither what was missed nor whether a run is under
//! way, and it keeps the offset that a zone had when a job was added. A firing only wakes the job's task, which asks its schedule whether it is
//! due, and looks at the clock every minute in any case.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{Id, JoinSet};
use tokio_cron_scheduler::{Job as Firing, JobScheduler};

use super::runner::{RunRequest, Runner, Turns};
use super::schedule::Times;
use super::status::Status;
use super::work::Ended;
use super::{Failure, Settings};
use crate::shutdown::{self, Phase, Shutdown};
use crate::state::files::Files;

/// What others hold of a job.
#[derive(Clone, Debug)]
pub struct Handle {
    pub name: String,
    requests: UnboundedSender<RunRequest>,
    pub status: watch::Receiver<Status>,
}

impl Handle {
    /// Runs it now, and waits for the end of that.
    pub async fn run(&self) -> Result<Ended, Failure> {
        let ends = || Failure::Unavailable("the daemon is about to end".into());
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).map_err(|_| ends())?;
        answer.await.map_err(|_| ends())?
    }
}

/// What a reload did, by the jobs' names.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    pub started: Vec<String>,
    pub restarted: Vec<String>,
    pub stopped: Vec<String>,
    pub unchanged: Vec<String>,
}

pub struct Crew {
    members: BTreeMap<String, Member>,
    tasks: JoinSet<()>,
    files: Files,
    turns: Turns,
    /// Made with the first job that has a cron expression.
    scheduler: Option<JobScheduler>,
    shutdown: watch::Receiver<Phase>,
    roster: watch::Sender<Vec<Handle>>,
}

struct Member {
    settings: Settings,
    handle: Handle,
    task: Id,
    /// Its name at the cron scheduler.
    firing: Option<uuid::Uuid>,
    /// Ends this one alone.
    shutdown: Shutdown,
}

impl Crew {
    pub async fn spawn(jobs: Vec<Settings>, files: Files, shutdown: &watch::Receiver<Phase>) -> Self {
        let roster = watch::Sender::new(Vec::new());
        let (members, tasks, turns, scheduler) = Default::default();
        let mut crew = Self { members, tasks, files, turns, scheduler, shutdown: shutdown.clone(), roster };
        crew.reload(jobs).await;
        crew
    }

    /// Stops, starts and restarts what a new configuration says otherwise. A run of a job that changes is aborted.
    pub async fn reload(&mut self, jobs: Vec<Settings>) -> Changes {
        let mut changes = Changes::default();
        let mut gone: BTreeMap<String, Member> = std::mem::take(&mut self.members);
        let mut coming = Vec::new();
        for settings in jobs {
            match gone.remove(&settings.name) {
                Some(member) if member.settings == settings => {
                    changes.unchanged.push(settings.name.clone());
                    self.members.insert(settings.name, member);
                    continue;
                }
                Some(member) => {
                    changes.restarted.push(settings.name.clone());
                    gone.insert(settings.name.clone(), member);
                }
                None => changes.started.push(settings.name.clone()),
            }
            coming.push(settings);
        }
        changes.stopped = gone.keys().filter(|name| !changes.restarted.contains(name)).cloned().collect();
        let mut leaving: Vec<Id> = Vec::new();
        for member in gone.into_values() {
            member.shutdown.drain(Duration::ZERO);
            leaving.push(member.task);
            if let (Some(scheduler), Some(firing)) = (&self.scheduler, member.firing) {
                // One that fires for nobody does no harm.
                let _ = scheduler.remove(&firing).await;
            }
        }
        while !leaving.is_empty() {
            let ended = self.tasks.join_next_with_id().await.expect("who leaves has a task");
            let (id, ()) = ended.expect(PANICKED);
            leaving.retain(|left| *left != id);
        }
        for settings in coming {
            self.start(settings).await;
        }
        self.roster.send_replace(self.members.values().map(|member| member.handle.clone()).collect());
        changes
    }

    /// Who is there at present; it changes with a reload.
    pub fn roster(&self) -> watch::Receiver<Vec<Handle>> {
        self.roster.subscribe()
    }

    /// The files that jobs write, or may write.
    pub fn files(&self) -> Vec<PathBuf> {
        let settings = self.members.values().map(|member| &member.settings);
        settings.flat_map(|settings| settings.job.files().into_iter().chain([settings.home.state_path()])).collect()
    }

    /// Waits until every job has ended.
    pub async fn ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect(PANICKED);
        }
    }

    async fn start(&mut self, settings: Settings) {
        let (requests, queue) = mpsc::unbounded_channel();
        let (status_tx, status) = watch::channel(Status::new(&settings));
        let handle = Handle { name: settings.name.clone(), requests, status };
        let (shutdown, phase) = Shutdown::new();
        let fired = Arc::new(Notify::new());
        let firing = self.fire(&settings, fired.clone()).await;
        let runner = Runner {
            settings: settings.clone(),
            files: self.files.clone(),
            turns: self.turns.clone(),
            requests: queue,
            asked: None,
            fired,
            shutdown: phase,
            status: status_tx,
        };
        let (forward, mut all) = (shutdown.clone(), self.shutdown.clone());
        let task = self.tasks.spawn(async move {
            tokio::select! {
                () = runner.run() => {}
                never = shutdown::forward(&mut all, &forward) => match never {},
            }
        });
        self.members.insert(settings.name.clone(), Member { settings, handle, task: task.id(), firing, shutdown });
    }

    /// Has the cron scheduler wake the job's task. What it cannot do is done by the look at the clock, a minute later at most.
    async fn fire(&mut self, settings: &Settings, fired: Arc<Notify>) -> Option<uuid::Uuid> {
        let Times::Cron { text, zone, .. } = &settings.schedule.times else { return None };
        let firing = async {
            let wake = move |_, _| {
                fired.notify_one();
                Box::pin(std::future::ready(())) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
            };
            // Its first field is for seconds.
            let firing = Firing::new_async_tz(format!("0 {text}"), *zone, wake)?;
            if self.scheduler.is_none() {
                let scheduler = JobScheduler::new().await?;
                scheduler.start().await?;
                self.scheduler = Some(scheduler);
            }
            self.scheduler.as_ref().expect("it was just made").add(firing).await
        };
        match firing.await {
            Ok(firing) => Some(firing),
            Err(error) => {
                tracing::warn!(event = "job_is_not_fired", job = %settings.name, detail = %error);
                None
            }
        }
    }
}

const PANICKED: &str = "a job's task that panics is a bug: the daemon must not go on as if nothing were";
