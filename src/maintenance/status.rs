//! What a job says of itself: one value, published in a `watch`.

use serde_json::{Value, json};

use super::Settings;
use crate::clock;
use crate::state::job_run::{Outcome, Run};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// For its next time.
    Scheduled,
    /// For a file, or for the lock of the state.
    Waiting,
    /// It is due, and another job works on the same file.
    Queued,
    Running,
    Stopped,
}

/// A job as seen from outside.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    pub job: String,
    pub kind: &'static str,
    pub schedule: String,
    pub state: State,
    /// Why it is in that state.
    pub detail: String,
    /// The newest run.
    pub last: Option<Run>,
    /// Microseconds since 1970 UTC.
    pub next: Option<i64>,
    /// Which part of the run under way is done, from 0 to 1, where it says so.
    pub progress: Option<f64>,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Scheduled => "scheduled",
            State::Waiting => "waiting",
            State::Queued => "queued",
            State::Running => "running",
            State::Stopped => "stopped",
        }
    }
}

impl Status {
    pub fn new(settings: &Settings) -> Self {
        Self {
            job: settings.name.clone(),
            kind: settings.kind,
            schedule: settings.schedule.times.to_string(),
            state: State::Waiting,
            detail: String::new(),
            last: None,
            next: None,
            progress: None,
        }
    }

    /// As commands and the API show it.
    pub fn to_json(&self) -> Value {
        let runs = self.last.as_ref().filter(|run| run.outcome != Some(Outcome::Known));
        json!({
            "name": self.job,
            "type": self.kind,
            "schedule": self.schedule,
            "state": self.state.as_str(),
            "detail": self.detail,
            "last": runs.map(run_json),
            "next": self.next.map(clock::iso),
            "progress": self.progress,
        })
    }
}

/// A run, as commands and the API show it.
pub fn run_json(run: &Run) -> Value {
    json!({
        "began": clock::iso(run.began),
        "ended": run.ended.map(clock::iso),
        "result": run.outcome.map(Outcome::as_str),
        "duration_seconds": run.took().map(|took| took.as_secs_f64()),
        "detail": run.detail,
    })
}
