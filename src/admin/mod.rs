//! The daemon as others see it: an HTTP listener (metrics, health, status; read-only) and a control socket (for commands).
//!
//! The HTTP listener runs on a thread of its own, so that a busy relay never delays a probe. A request never opens a database
//! file: it reads what the consumers publish, or asks them.

pub mod answer;
pub mod control_socket;
pub mod http;
pub mod request;

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use crate::clock;
use crate::consumer::control::{Command, Operation};
use crate::consumer::fleet::Handle;
use crate::consumer::status::{State, Status};
use crate::telemetry::metric::ConsumerGauges;
use answer::{Desk, Refusal};

/// A loop that has not turned for this long is taken for dead.
const BEAT_MAX: Duration = Duration::from_secs(30);

/// What every request looks at.
#[derive(Clone)]
pub struct Board {
    pub handles: Vec<Handle>,
    pub metrics: PrometheusHandle,
    pub started: Instant,
}

impl Board {
    pub fn statuses(&self) -> Vec<Status> {
        self.handles.iter().map(|handle| handle.status.borrow().clone()).collect()
    }

    pub fn handle(&self, consumer: &str) -> Option<&Handle> {
        self.handles.iter().find(|handle| handle.name == consumer)
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
                sink_up: status.sink_up,
                sink_blocked: status.blocked.is_some(),
                state: status.state.as_str(),
                states: &State::ALL,
            }
            .set(&status.consumer);
        }
        self.metrics.render()
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
        "sink": status.sink,
        "state": status.state.as_str(),
        "detail": status.detail,
        "position": status.position,
        "head": status.head,
        "lag_seconds": status.lag_seconds(),
        "backlog_events": status.backlog,
        "in_flight_events": status.in_flight,
        "delivered_total": status.delivered,
        "redelivered_total": status.redelivered,
        "held_keys": status.held_keys,
        "held_oldest_seconds": status.held_oldest_seconds(),
        "retrying": status.retrying,
        "dead_letters": status.dead,
        "sink_up": status.sink_up,
        "sink_blocked": status.blocked,
    })
}

impl Board {
    fn known(&self, consumer: &str) -> Result<&Handle, Refusal> {
        let none = || Refusal::new(Refusal::USAGE, format!("{consumer} does not run: it is not in the config"));
        self.handle(consumer).ok_or_else(none)
    }
}

impl Desk for Board {
    async fn statuses(&self) -> Result<Vec<Value>, Refusal> {
        Ok(Board::statuses(self).iter().map(status_json).collect())
    }

    fn consumers(&self) -> Vec<String> {
        self.handles.iter().map(|handle| handle.name.clone()).collect()
    }

    async fn pause(&self, consumer: &str, paused: bool) -> Result<Value, Refusal> {
        let command = if paused { Command::Pause } else { Command::Resume };
        Ok(self.known(consumer)?.ask(command).await?)
    }

    async fn operate(&self, consumer: &str, operation: Operation) -> Result<Value, Refusal> {
        Ok(self.known(consumer)?.ask(|reply| Command::Operate(operation, reply)).await?)
    }
}
