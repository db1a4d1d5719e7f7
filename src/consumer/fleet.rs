//! All consumers of this daemon: each runs on a task of its own; one's trouble never stops another.
//!
//! To start is to reload from nothing: [`Fleet::plan`] compares what is wanted with what runs, and one path makes the one into the other.
//! Invariants (tests in `tests/it/reloads_change_only_what_changed.rs`):
//! 1. A consumer whose [`Blueprint`] stays the same does not notice.
//! 2. What can fail comes before the first consumer is told to stop: after that, a reload goes through.
//! 3. A consumer starts when those that it shares a name, rows or a file with have ended, drained as at a stop.
//! 4. Readers are shared by the consumers of a source, writers by those of a state file; both end with the last that needs them.

mod blueprint;

use std::collections::BTreeMap;
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::{Id, JoinSet};

pub use self::blueprint::{Blueprint, Changes, Restarted};
use super::Settings;
use super::control::{Command, Reply};
use super::engine::{Engine, Locked, WhenLocked};
use super::replay::Sinks;
use super::status::Status;
use crate::controls::{self, Seam};
use crate::shutdown::{self, Phase, Shutdown};
use crate::sink;
use crate::source::{self, Durability, StatePlace, reader::Reader};
use crate::sqlite::writer::JobError;
use crate::state::files::Files;

/// What others hold of a running consumer.
#[derive(Clone, Debug)]
pub struct Handle {
    pub name: String,
    commands: UnboundedSender<Command>,
    pub status: watch::Receiver<Status>,
}

impl Handle {
    /// Sends a command and waits for its answer.
    pub async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<serde_json::Value, JobError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| JobError::Ended)?;
        answer.await.map_err(|_| JobError::Ended)?
    }
}

/// Who runs at present, and on what.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    pub consumers: Vec<Handle>,
    pub sources: Vec<source::Settings>,
    pub files: Files,
}

pub struct Fleet {
    members: BTreeMap<String, Member>,
    readers: Readers,
    files: Files,
    /// Where replays may go.
    sinks: watch::Sender<Arc<Sinks>>,
    tasks: JoinSet<Result<(), Locked>>,
    shutdown: watch::Receiver<Phase>,
    roster: watch::Sender<Roster>,
}

struct Member {
    blueprint: Blueprint,
    handle: Handle,
    task: Id,
    /// Ends this one alone.
    shutdown: Shutdown,
}

/// By the source's name: one for all consumers of it.
type Readers = BTreeMap<String, (source::Settings, Reader)>;

/// The way from what runs to what is wanted.
struct Plan {
    readers: Readers,
    leaving: BTreeMap<Id, Blueprint>,
    coming: Vec<Blueprint>,
    changes: Changes,
    when_locked: WhenLocked,
}

impl Fleet {
    /// Starts a reader for every source that is read, and every consumer.
    pub fn spawn(
        sources: &BTreeMap<String, source::Settings>,
        sinks: &BTreeMap<String, sink::Settings>,
        relays: Vec<Settings>,
        when_locked: WhenLocked,
        shutdown: &watch::Receiver<Phase>,
    ) -> std::io::Result<Self> {
        let files = Files::default();
        let roster = watch::Sender::new(Roster { files: files.clone(), ..Roster::default() });
        let (members, readers, tasks) = Default::default();
        let sinks = watch::Sender::new(Arc::new(Sinks::new(sinks.clone(), &relays)));
        let mut fleet = Self { members, readers, files, sinks, tasks, shutdown: shutdown.clone(), roster };
        let mut plan = fleet.plan(sources, relays, when_locked)?;
        fleet.enter_upon(&mut plan, Duration::ZERO);
        Ok(fleet)
    }

    /// Stops, starts and restarts what a new configuration says otherwise; each drains within `drain`. An error means that nothing was
    /// changed. A state file that another daemon holds is waited for: those that run must not end for its sake.
    pub async fn reload(
        &mut self,
        sources: &BTreeMap<String, source::Settings>,
        sinks: &BTreeMap<String, sink::Settings>,
        relays: Vec<Settings>,
        drain: Duration,
    ) -> std::io::Result<Result<Changes, Locked>> {
        let wanted = Arc::new(Sinks::new(sinks.clone(), &relays));
        let mut plan = self.plan(sources, relays, WhenLocked::Wait)?;
        self.sinks.send_replace(wanted);
        controls::reach(Seam::Reload);
        self.enter_upon(&mut plan, drain);
        while !plan.leaving.is_empty() {
            let ended = self.tasks.join_next_with_id().await.expect("who leaves has a task");
            let (id, result) = ended.expect(PANICKED);
            if let Err(locked) = result {
                return Ok(Err(locked));
            }
            if let Some(left) = plan.leaving.remove(&id) {
                controls::reach(Seam::Reload);
                self.members.remove(&left.settings.name);
                self.start_who_can(&mut plan);
            }
        }
        controls::reach(Seam::Reload);
        Ok(Ok(plan.changes))
    }

    /// Who runs at present; it changes with a reload.
    pub fn roster(&self) -> watch::Receiver<Roster> {
        self.roster.subscribe()
    }

    /// The writers of this daemon, which jobs share.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The files that the consumers' states stand in.
    pub fn states(&self) -> Vec<PathBuf> {
        self.members.values().map(|member| member.blueprint.source.state_path()).collect()
    }

    pub fn handle(&self, name: &str) -> Option<&Handle> {
        self.members.get(name).map(|member| &member.handle)
    }

    /// Ends everything at once, as a crash would; harmless by the guarantees.
    pub async fn cut(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until every consumer has ended, or one says that the daemon must.
    pub async fn ended(&mut self) -> Result<(), Locked> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect(PANICKED)?;
        }
        Ok(())
    }

    /// Waits until every consumer has ended, and the files that they wrote are closed.
    pub async fn closed(mut self) -> Result<(), Locked> {
        self.ended().await?;
        self.files.close().await;
        Ok(())
    }

    /// Waits until a consumer says that the daemon must end; while none does, for ever.
    pub async fn refused(&mut self) -> Locked {
        match self.ended().await {
            Err(locked) => locked,
            Ok(()) => pending().await,
        }
    }

    /// Compares, and does what may fail: it starts the readers of sources that are new.
    fn plan(
        &self,
        sources: &BTreeMap<String, source::Settings>,
        relays: Vec<Settings>,
        when_locked: WhenLocked,
    ) -> std::io::Result<Plan> {
        let (readers, leaving, coming, changes) = Default::default();
        let mut plan = Plan { readers, leaving, coming, changes, when_locked };
        let mut gone: BTreeMap<&String, &Member> = self.members.iter().collect();
        for settings in relays.iter().cloned() {
            let source = sources.get(&settings.source).expect("the config was resolved: every relay's source is there");
            let wanted = Blueprint::new(settings, source);
            if !plan.readers.contains_key(&source.name) {
                let source = source::Settings { durability: durability(source, &relays), ..source.clone() };
                let running = self.readers.get(&source.name).filter(|(settings, _)| *settings == source);
                let reader = match running {
                    Some((_, reader)) => reader.clone(),
                    None => Reader::start(source.clone())?,
                };
                plan.readers.insert(source.name.clone(), (source, reader));
            }
            let name = wanted.settings.name.clone();
            let Some(member) = gone.remove(&name) else {
                plan.changes.started.push(name);
                plan.coming.push(wanted);
                continue;
            };
            let changed = wanted.changed_since(&member.blueprint);
            if changed.is_empty() {
                plan.changes.unchanged.push(name);
                continue;
            }
            plan.changes.restarted.push(Restarted { consumer: name, changed });
            plan.leaving.insert(member.task, member.blueprint.clone());
            plan.coming.push(wanted);
        }
        for (name, member) in gone {
            plan.changes.stopped.push(name.clone());
            plan.leaving.insert(member.task, member.blueprint.clone());
        }
        Ok(plan)
    }

    /// From here on nothing fails.
    fn enter_upon(&mut self, plan: &mut Plan, drain: Duration) {
        self.readers = std::mem::take(&mut plan.readers);
        for left in plan.leaving.values() {
            tracing::info!(event = "consumer_drains", consumer = %left.settings.name);
            self.members[&left.settings.name].shutdown.drain(drain);
        }
        self.start_who_can(plan);
    }

    /// Starts those that need not wait for one that is leaving; none when the daemon ends meanwhile.
    fn start_who_can(&mut self, plan: &mut Plan) {
        let coming = if *self.shutdown.borrow() == Phase::Run { std::mem::take(&mut plan.coming) } else { Vec::new() };
        for blueprint in coming {
            match plan.leaving.values().any(|left| blueprint.waits_for(left)) {
                true => plan.coming.push(blueprint),
                false => self.start(blueprint, plan.when_locked),
            }
        }
        self.roster.send_replace(Roster {
            consumers: self.members.values().map(|member| member.handle.clone()).collect(),
            sources: self.members.values().map(|member| member.blueprint.source.clone()).collect(),
            files: self.files.clone(),
        });
    }

    fn start(&mut self, blueprint: Blueprint, when_locked: WhenLocked) {
        let settings = &blueprint.settings;
        let (commands, queue) = mpsc::unbounded_channel();
        let (status_tx, status) = watch::channel(Status::new(settings));
        let handle = Handle { name: settings.name.clone(), commands, status };
        let (shutdown, phase) = Shutdown::new();
        let engine = Engine {
            settings: Arc::new(settings.clone()),
            source: Arc::new(blueprint.source.clone()),
            reader: self.readers[&settings.source].1.clone(),
            files: self.files.clone(),
            when_locked,
            commands: queue,
            shutdown: phase,
            status: status_tx,
            sinks: self.sinks.subscribe(),
            resumed: false,
        };
        let forward = shutdown.clone();
        let mut all = self.shutdown.clone();
        let task = self.tasks.spawn(async move {
            tokio::select! {
                ended = engine.run() => ended,
                never = shutdown::forward(&mut all, &forward) => match never {},
            }
        });
        self.members.insert(handle.name.clone(), Member { blueprint, handle, task: task.id(), shutdown });
    }
}

/// A read model in another file would keep what a power cut takes from its source: then what is read is always made durable first.
fn durability(source: &source::Settings, consumers: &[Settings]) -> Durability {
    let is_apart = |consumer: &&Settings| {
        consumer.destination.tables().is_some() && consumer.placed(source).state != StatePlace::Inside
    };
    match consumers.iter().filter(|consumer| consumer.source == source.name).find(is_apart) {
        Some(_) => Durability::Strict,
        None => source.durability,
    }
}

const PANICKED: &str = "a consumer that panics is a bug: the daemon must not go on as if nothing were";
