//! The daemon as others see it: an HTTP listener (metrics, health, status; read-only) and a control socket (for commands).
//!
//! The HTTP listener runs on a thread of its own, so that a busy relay never delays a probe. A request never opens a database
//! file: it reads what the consumers publish, or asks them.

pub mod answer;
pub mod control_socket;
pub mod http;
pub mod request;

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use crate::clock;
use crate::consumer::control::{self, Command, Operation};
use crate::consumer::fleet::{Handle, Roster};
use crate::consumer::status::{State, Status};
use crate::maintenance::{crew, status::run_json, work};
use crate::telemetry::metric::ConsumerGauges;
use answer::{Desk, Refusal};

/// A loop that has not turned for this long is taken for dead.
const BEAT_MAX: Duration = Duration::from_secs(30);

/// What every request looks at.
#[derive(Clone)]
pub struct Board {
    pub roster: watch::Receiver<Roster>,
    pub jobs: watch::Receiver<Vec<crew::Handle>>,
    pub metrics: PrometheusHandle,
    pub started: Instant,
    pub reloads: mpsc::UnboundedSender<ReloadRequest>,
}

/// Asks the daemon to read its configuration anew; answered when that is done.
pub type ReloadRequest = oneshot::Sender<Result<Value, Refusal>>;

impl Board {
    pub fn statuses(&self) -> Vec<Status> {
        self.roster.borrow().consumers.iter().map(|handle| handle.status.borrow().clone()).collect()
    }

    /// As commands and the API show them.
    pub fn job_statuses(&self) -> Vec<Value> {
        self.jobs.borrow().iter().map(|handle| handle.status.borrow().to_json()).collect()
    }

    fn handle(&self, consumer: &str) -> Option<Handle> {
        self.roster.borrow().consumers.iter().find(|handle| handle.name == consumer).cloned()
    }

    /// Consumers whose loop has stopped turning. An outage is not a hang.
    pub fn hung(&self) -> Vec<String> {
        let oldest = clock::steady_micros() - BEAT_MAX.as_micros() as i64;
        self.statuses()
            .into_iter()
            .filter(|status| status.beat_micros < oldest && status.state != State::Stopped)
            .map(|status| status.consumer)
            .collect()
    }

    /// The metrics, with what follows from the statuses as of now.
    pub fn render_metrics(&self) -> String {
        for status in self.statuses() {
            ConsumerGauges {
                lag_seconds: status.lag_seconds(),
                backlog: status.backlog,
                in_flight: status.in_flight,
                held_keys: status.held_keys,
                held_oldest_seconds: status.held_oldest_seconds(),
                dead_letters: status.dead,
                dead_letter_copies: status.copies.as_ref().map_or(0, |copies| copies.waiting),
                sink_up: status.sink_up,
                sink_blocked: status.blocked.is_some(),
                state: status.state.as_str(),
                states: &State::ALL,
                position_is_ahead: status.position_is_ahead,
            }
            .set(&status.consumer);
        }
        self.of_the_present(&self.metrics.render())
    }

    /// Without the series of consumers, sources and jobs that a reload has removed: the recorder forgets nothing.
    fn of_the_present(&self, metrics: &str) -> String {
        let (roster, jobs) = (self.roster.borrow(), self.jobs.borrow());
        let label = |line: &str, name: &str| {
            let from = line.find(name)? + name.len();
            Some(line[from..].split('"').next().unwrap_or_default().to_owned())
        };
        let stays = |line: &&str| {
            let consumer =
                label(line, "consumer=\"").is_none_or(|name| roster.consumers.iter().any(|c| c.name == name));
            consumer
                && label(line, "source=\"").is_none_or(|name| roster.sources.iter().any(|s| s.name == name))
                && label(line, "{job=\"").is_none_or(|name| jobs.iter().any(|job| job.name == name))
        };
        metrics.split_inclusive('\n').filter(|line| line.starts_with('#') || stays(line)).collect()
    }

    /// One line for `systemctl status`.
    pub fn summary(&self) -> String {
        let statuses = self.statuses();
        let running = statuses.iter().filter(|status| status.state == State::Running).count();
        let lag = statuses.iter().map(Status::lag_seconds).fold(0.0, f64::max);
        let held: u64 = statuses.iter().map(|status| status.held_keys).sum();
        format!("{running} of {} consumers running, lag {lag:.1} s, {held} keys held", statuses.len())
    }
}

/// A consumer's status as commands and the API show it.
pub fn status_json(status: &Status) -> Value {
    json!({
        "name": status.consumer,
        "source": status.source,
        "kind": status.kind,
        "sink": status.sink,
        "state": status.state.as_str(),
        "detail": status.detail,
        "warnings": status.warnings().collect::<Vec<_>>(),
        "position": status.position,
        "head": status.head,
        "lag_seconds": status.lag_seconds(),
        "backlog_events": status.backlog,
        "in_flight_events": status.in_flight,
        "delivered_total": status.delivered,
        "redelivered_total": status.redelivered,
        "order_violations_total": status.order_violations,
        "held_keys": status.held_keys,
        "held_oldest_seconds": status.held_oldest_seconds(),
        "retrying": status.retrying,
        "dead_letters": status.dead,
        "sink_up": status.sink_up,
        "sink_blocked": status.blocked,
        "replay": status.replay,
        "dead_letter_copies": status.copies,
        "unhandled": status.unhandled,
    })
}

impl Board {
    fn known(&self, consumer: &str) -> Result<Handle, Refusal> {
        let none = || Refusal::new(Refusal::USAGE, format!("{consumer} does not run: it is not in the config"));
        self.handle(consumer).ok_or_else(none)
    }
}

/// What a run came to, as the command that asked for it is told; one that failed says so by its exit code.
pub fn job_answer(job: &str, ended: work::Ended) -> Result<Value, Refusal> {
    match ended.result {
        Ok(_) => Ok(json!({ "job": job, "run": run_json(&ended.run) })),
        Err(failure) => Err(failure.into()),
    }
}

impl Desk for Board {
    async fn jobs(&self) -> Result<Vec<Value>, Refusal> {
        Ok(self.job_statuses())
    }

    async fn run_job(&self, job: &str) -> Result<Value, Refusal> {
        let handle = self.jobs.borrow().iter().find(|handle| handle.name == job).cloned();
        let handle =
            handle.ok_or_else(|| Refusal::no_job(job, self.jobs.borrow().iter().map(|job| job.name.clone())))?;
        job_answer(job, handle.run().await?)
    }

    async fn statuses(&self) -> Result<Vec<Value>, Refusal> {
        Ok(Board::statuses(self).iter().map(status_json).collect())
    }

    fn consumers(&self) -> Vec<String> {
        self.roster.borrow().consumers.iter().map(|handle| handle.name.clone()).collect()
    }

    async fn left_over(&self) -> Result<Vec<Value>, Refusal> {
        let (sources, configured) = (self.roster.borrow().sources.clone(), Desk::consumers(self));
        // A file may lie on something slow: nothing else waits for it.
        let looked = tokio::task::spawn_blocking(move || control::left_over(&sources, &configured));
        Ok(looked.await.expect("looking does not panic")?)
    }

    async fn pause(&self, consumer: &str, paused: bool) -> Result<Value, Refusal> {
        let command = if paused { Command::Pause } else { Command::Resume };
        Ok(self.known(consumer)?.ask(command).await?)
    }

    async fn operate(&self, consumer: &str, operation: Operation) -> Result<Value, Refusal> {
        if let (Operation::Forget { reason }, None) = (&operation, self.handle(consumer)) {
            let (files, sources) = (self.roster.borrow().files.clone(), self.roster.borrow().sources.clone());
            return Ok(control::forget_removed(&files, &sources, consumer, reason).await?);
        }
        Ok(self.known(consumer)?.ask(|reply| Command::Operate(operation, reply)).await?)
    }

    async fn reload(&self) -> Result<Value, Refusal> {
        let ends = || Refusal::new(Refusal::UNAVAILABLE, "the daemon is about to end");
        let (reply, answer) = oneshot::channel();
        self.reloads.send(reply).map_err(|_| ends())?;
        answer.await.map_err(|_| ends())?
    }
}
