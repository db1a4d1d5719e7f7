//! The daemon as others see it: an HTTP listener (metrics, health, status; read-only) and a control socket (for commands).
//!
//! The HTTP listener runs on a thread of its own, so that a busy relay never delays a probe. A request never opens a database
//! file: it reads what the consumers publish, or asks them.

pub mod control_socket;
pub mod http;
pub mod request;

use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;

use crate::clock;
use crate::consumer::fleet::Handle;
use crate::consumer::status::{State, Status};
use crate::telemetry::metric::ConsumerGauges;

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
        let oldest = clock::now_micros() - BEAT_MAX.as_micros() as i64;
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
