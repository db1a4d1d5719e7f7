//! Takes on a changed configuration: reads and checks all of it first, and changes nothing when anything is wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::admin::ReloadRequest;
use crate::admin::answer::Refusal;
use crate::clock;
use crate::config::{self, Daemon, Loaded};
use crate::consumer::engine::Locked;
use crate::consumer::fleet::{Changes, Fleet};
use crate::maintenance::crew::{self, Crew};
use crate::telemetry::logs;
use crate::telemetry::metric;

pub(super) struct Reloader {
    file: PathBuf,
    /// In force.
    daemon: Daemon,
    level: logs::Level,
    hangup: Signal,
    requests: UnboundedReceiver<ReloadRequest>,
}

/// What a reload did.
struct Done {
    changes: Changes,
    jobs: crew::Changes,
    /// The keys of `[daemon]` that have another value now.
    daemon: Vec<&'static str>,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the new configuration is refused; the daemon goes on with the one it has\n\n{0}")]
    Config(#[from] config::Error),
    #[error("a source cannot be read, and nothing was changed: {0}")]
    Start(#[from] io::Error),
}

impl Reloader {
    /// With where to ask for a reload.
    pub(super) fn new(loaded: Loaded, level: logs::Level) -> io::Result<(Self, UnboundedSender<ReloadRequest>)> {
        metric::config_read(Some(clock::now_micros()));
        let (sender, requests) = mpsc::unbounded_channel();
        let hangup = signal(SignalKind::hangup())?;
        Ok((Self { file: loaded.file, daemon: loaded.config.daemon, level, hangup, requests }, sender))
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.daemon.drain_timeout
    }

    /// Reloads whenever that is asked for; ends when a consumer says that the daemon must.
    pub(super) async fn serve(&mut self, fleet: &mut Fleet, crew: &mut Crew) -> Locked {
        loop {
            let reply = tokio::select! {
                locked = fleet.refused() => return locked,
                _ = self.hangup.recv() => None,
                Some(reply) = self.requests.recv() => Some(reply),
            };
            let _ = sd_notify::notify(&reloading());
            let reloaded = match self.reload(fleet, crew).await {
                Ok(reloaded) => reloaded,
                Err(locked) => return locked,
            };
            metric::config_read(reloaded.is_ok().then(clock::now_micros));
            tell(&reloaded);
            let _ = sd_notify::notify(&[NotifyState::Ready]);
            if let Some(reply) = reply {
                // Who asked may be gone.
                let _ = reply.send(reloaded.map(Done::into_json).map_err(Refusal::from));
            }
        }
    }

    async fn reload(&mut self, fleet: &mut Fleet, crew: &mut Crew) -> Result<Result<Done, Refused>, Locked> {
        let loaded = match self.read().await {
            Ok(loaded) => loaded,
            Err(error) => return Ok(Err(error.into())),
        };
        let config = loaded.config;
        // A consumer that leaves is given the time that the new configuration says.
        let consumers = config.consumers().cloned().collect();
        let changes = match fleet.reload(&config.sources, &config.sinks, consumers, config.daemon.drain_timeout).await {
            Ok(changes) => changes?,
            Err(error) => return Ok(Err(error.into())),
        };
        let jobs = crew.reload(config.jobs).await;
        fleet.files().keep(&[fleet.states(), crew.files()].concat()).await;
        Ok(Ok(Done { changes, jobs, daemon: self.take_over(config.daemon) }))
    }

    async fn read(&self) -> Result<Loaded, config::Error> {
        let file = self.file.clone();
        // A file may lie on something slow: nothing else waits for it.
        let read = tokio::task::spawn_blocking(move || config::load(&file)).await;
        let loaded = read.expect("reading a configuration does not panic")?;
        loaded.refuse_what_stays(&self.daemon)?;
        Ok(loaded)
    }

    /// Says what is new. `when_locked` is about the start alone.
    fn take_over(&mut self, new: Daemon) -> Vec<&'static str> {
        let old = std::mem::replace(&mut self.daemon, new);
        let new = &self.daemon;
        if new.log_level != old.log_level
            && let Err(error) = self.level.set(&new.log_level)
        {
            tracing::warn!(event = "log_level_kept", detail = %error);
        }
        let keys = [
            ("drain_timeout", new.drain_timeout != old.drain_timeout),
            ("when_locked", new.when_locked != old.when_locked),
            ("log_level", new.log_level != old.log_level),
        ];
        keys.into_iter().filter_map(|(key, is_new)| is_new.then_some(key)).collect()
    }
}

impl Done {
    fn into_json(self) -> Value {
        let mut value = json!(self.changes);
        value["jobs"] = json!(self.jobs);
        value["daemon"] = json!(self.daemon);
        value
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let exit = if matches!(refused, Refused::Config(_)) { Refusal::CONFIG } else { Refusal::UNAVAILABLE };
        Refusal::new(exit, refused.to_string())
    }
}

fn reloading() -> Vec<NotifyState<'static>> {
    // Since version 253 the service manager wants the time as well.
    [NotifyState::Reloading].into_iter().chain(NotifyState::monotonic_usec_now()).collect()
}

fn tell(reloaded: &Result<Done, Refused>) {
    match reloaded {
        Ok(Done { changes, jobs, daemon }) => {
            let restarted: Vec<_> =
                changes.restarted.iter().map(|one| format!("{} ({})", one.consumer, one.changed.join(", "))).collect();
            tracing::info!(
                event = "config_reloaded",
                started = changes.started.join(", "),
                restarted = restarted.join(", "),
                stopped = changes.stopped.join(", "),
                unchanged = changes.unchanged.len(),
                jobs_started = jobs.started.join(", "),
                jobs_restarted = jobs.restarted.join(", "),
                jobs_stopped = jobs.stopped.join(", "),
                daemon = daemon.join(", "),
            );
            for consumer in &changes.stopped {
                let detail = format!("its checkpoint stays; `outboxd consumer forget {consumer}` removes it");
                tracing::info!(event = "consumer_removed", consumer = %consumer, detail);
            }
        }
        Err(refused) => tracing::error!(event = "config_refused", detail = %refused),
    }
}
