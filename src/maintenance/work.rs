//! One run of a job, by the daemon or by a command: recorded, done, recorded.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{Context, Failure, Report, Settings, Stop};
use crate::clock;
use crate::controls::{self, Seam};
use crate::sqlite::writer::{JobError, Writer};
use crate::state::files::{FileError, Files};
use crate::state::job_run::{self, Outcome, Run};
use crate::telemetry::metric;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Ended {
    pub run: Run,
    pub result: Result<Report, Failure>,
}

/// What nobody else may have while the work is done. The thread that does it holds it to its end, also when it is let go of.
#[derive(Debug, Default)]
pub struct Turn(pub Vec<OwnedMutexGuard<()>>);

/// What a start finds: the newest run, and the last that was done. One that was killed is told, and what it left is removed.
pub async fn take_over(settings: &Settings, writer: &Writer) -> Result<(Run, Option<Run>), JobError> {
    let (job, now) = (settings.name.clone(), clock::now_micros());
    let found =
        writer.perform(move |state| Ok((job_run::take_over(state, &job, now)?, job_run::success(state, &job)?)));
    let ((newest, killed), success) = found.await?;
    let tidied = settings.job.clone();
    let known = success.as_ref().and_then(|run| run.ended);
    let tidied = tokio::task::spawn_blocking(move || {
        tidied.announce(known);
        tidied.tidy()
    });
    let left = tidied.await.expect("tidying does not panic");
    let left = match left {
        Ok(left) => left.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        Err(error) => format!("cannot be removed: {error}"),
    };
    if let Some(killed) = killed {
        metric::job_ended(&settings.name, Outcome::Killed.as_str(), None, None);
        tracing::warn!(event = "job_was_killed", job = %settings.name, began = %clock::iso(killed.began), left);
    } else if !left.is_empty() {
        tracing::warn!(event = "job_tidied", job = %settings.name, left);
    }
    Ok((newest, success))
}

/// Does it now.
pub async fn perform(
    settings: &Settings,
    writer: &Writer,
    files: &Files,
    stop: &Stop,
    turn: Turn,
) -> Result<Ended, JobError> {
    let began = begin(settings, writer).await?;
    let start = Instant::now();
    let result = on_a_thread(settings, files, stop, turn).await;
    end(settings, writer, began, start.elapsed(), result).await
}

/// The same of a job that takes its files alone: the state may stand in one of them, and is let go of meanwhile.
pub async fn perform_alone(settings: &Settings, stop: &Stop) -> Result<Result<Ended, JobError>, FileError> {
    let files = Files::default();
    let writer = files.writer(&settings.home).await?;
    if let Err(error) = take_over(settings, &writer).await {
        return Ok(Err(error));
    }
    let began = match begin(settings, &writer).await {
        Ok(began) => began,
        Err(error) => return Ok(Err(error)),
    };
    drop(writer);
    files.close().await;
    let start = Instant::now();
    let result = on_a_thread(settings, &files, stop, Turn::default()).await;
    let took = start.elapsed();
    let writer = files.writer(&settings.home).await?;
    Ok(end(settings, &writer, began, took, result).await)
}

async fn begin(settings: &Settings, writer: &Writer) -> Result<i64, JobError> {
    let name = settings.name.clone();
    let now = clock::now_micros();
    let began = writer.perform(move |state| job_run::begin(state, &name, now)).await?;
    tracing::info!(event = "job_began", job = %settings.name);
    Ok(began)
}

async fn end(
    settings: &Settings,
    writer: &Writer,
    began: i64,
    took: Duration,
    result: Result<Report, Failure>,
) -> Result<Ended, JobError> {
    let (outcome, detail) = match &result {
        Ok(report) => (Outcome::Done, report.0.clone()),
        Err(Failure::Aborted) => (Outcome::Aborted, Failure::Aborted.to_string()),
        Err(failure) => (Outcome::Failed, failure.to_string()),
    };
    let (name, told) = (settings.name.clone(), detail.clone());
    writer.perform(move |state| job_run::end(state, &name, began, took, outcome, &told)).await?;
    let ended = began + took.as_micros() as i64;
    metric::job_ended(&settings.name, outcome.as_str(), Some(took), (outcome == Outcome::Done).then_some(ended));
    let seconds = took.as_secs_f64();
    match outcome {
        Outcome::Failed => tracing::error!(event = "job_failed", job = %settings.name, seconds, detail),
        _ => tracing::info!(event = "job_ended", job = %settings.name, result = outcome.as_str(), seconds, detail),
    }
    let run = Run { began, ended: Some(ended), outcome: Some(outcome), detail };
    Ok(Ended { run, result })
}

async fn on_a_thread(settings: &Settings, files: &Files, stop: &Stop, turn: Turn) -> Result<Report, Failure> {
    let (tell, told) = oneshot::channel();
    let (stop, files, home) = (stop.clone(), files.clone(), settings.home.clone());
    let context = Context { stop, files, home, runtime: Handle::current() };
    let job = settings.job.clone();
    let started = std::thread::Builder::new().name("job".into()).spawn(move || {
        controls::reach(Seam::JobWork);
        let result = job.run(&context);
        controls::reach(Seam::JobWork);
        drop((context, turn));
        // Nobody listens when it was let go of.
        let _ = tell.send(result);
    });
    if let Err(error) = started {
        return Err(Failure::Unavailable(format!("no thread can be started: {error}")));
    }
    told.await.unwrap_or_else(|_| Err(Failure::Bug("the job's thread has ended by itself; see the log".into())))
}
