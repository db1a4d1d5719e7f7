//! `outboxd job`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Subcommand;
use serde::Deserialize;

use super::bar::Bar;
use super::control_client::{self, Answer, Request};
use super::{Context, Exit, Failure, offline, terminal};
use crate::admin::answer::Refusal;
use crate::controls;
use crate::maintenance::{self, Report, Stop};

/// How often the bar is drawn.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the jobs: when each last ran and will run next, with what result, and how long that took
    List,
    /// Run a job now, and wait for its end; by the daemon when it runs, else here
    ///
    /// A job that runs already is not run twice: exit code 75.
    Run {
        /// The job's name
        #[arg(value_name = "NAME")]
        name: String,
        /// Say what it would do, and do nothing; of types that can say it beforehand
        #[arg(long)]
        dry_run: bool,
    },
    /// Work out anew what a job's runs have made, and compare; change nothing
    ///
    /// Of a snapshot job: every snapshot is folded from the stream's first event on. Exit code 65 where one differs.
    Verify {
        /// The job's name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Deserialize)]
struct Listed {
    jobs: Vec<Job>,
}

/// A job in the daemon's answer.
#[derive(Debug, Deserialize)]
pub struct Job {
    name: String,
    r#type: String,
    schedule: String,
    state: String,
    detail: String,
    last: Option<Run>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Run {
    began: String,
    result: Option<String>,
    duration_seconds: Option<f64>,
    detail: String,
}

#[derive(Debug, Deserialize)]
struct Ran {
    run: Run,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    let request = match command {
        Command::List => control_client::Job::List,
        Command::Run { name, dry_run: true } => return look(name, context, |job| job.dry_run(&Stop::default())),
        Command::Run { name, .. } => return run(name, context),
        Command::Verify { name } => return look(name, context, |job| job.verify(&Stop::default())),
    };
    let answer = context.ask(&Request::Job(request))?;
    match context.json {
        true => terminal::print_json(&answer)?,
        false => terminal::print(&table(serde_json::from_value::<Listed>(answer)?.jobs))?,
    }
    Ok(Exit::Ok)
}

/// By the daemon when it runs, else here; a terminal is shown how far it is, where the job says so.
pub fn run(name: &str, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let socket = &loaded.config.daemon.control;
    let (stop, mut bar, is_done) = (Stop::default(), Bar::new(context), AtomicBool::new(false));
    let is_shown = bar.is_shown();
    let answer = std::thread::scope(|scope| {
        let look = || {
            while !is_done.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK_EVERY);
                if let Some(done) = stop.done().or_else(|| progress(socket, name)) {
                    bar.draw((done * 100.0) as usize, terminal::visible(name).as_ref());
                }
            }
            bar.clear();
        };
        let looker = is_shown.then(|| scope.spawn(look));
        let request = Request::Job(control_client::Job::Run { job: name.to_owned() });
        let answer = control_client::ask(socket, &request).and_then(|answer| match answer {
            Answer::Given(answer) => Ok(answer),
            Answer::NotRunning => offline::run_job(&loaded, name, &stop),
        });
        is_done.store(true, Ordering::Relaxed);
        if let Some(looker) = looker {
            looker.thread().unpark();
        }
        answer
    })?;
    if context.json {
        terminal::print_json(&answer)?;
        return Ok(Exit::Ok);
    }
    let Ran { run } = serde_json::from_value(answer)?;
    let [name, detail] = [name, &run.detail].map(terminal::visible);
    let took = run.duration_seconds.map_or("-".to_owned(), duration);
    terminal::print(&format!("{name} is done, in {took}: {detail}\n"))?;
    Ok(Exit::Ok)
}

/// Of a run that the daemon does.
fn progress(socket: &Path, name: &str) -> Option<f64> {
    let Ok(Answer::Given(answer)) = control_client::ask(socket, &Request::Job(control_client::Job::List)) else {
        return None;
    };
    answer["jobs"].as_array()?.iter().find(|job| job["name"] == name)?["progress"].as_f64()
}

/// It only reads: whether a daemon runs does not matter.
fn look(
    name: &str,
    context: &Context,
    look: impl FnOnce(&dyn maintenance::Job) -> Result<Report, maintenance::Failure>,
) -> anyhow::Result<Exit> {
    let jobs = context.load()?.config.jobs;
    let names = || jobs.iter().map(|job| job.name.clone());
    let job = jobs.iter().find(|job| job.name == name);
    let seen = match job {
        Some(job) => look(&*job.job).map_err(Refusal::from),
        None => Err(Refusal::no_job(name, names())),
    };
    let report = seen.map_err(|refusal| {
        let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
        Failure { exit, reason: refusal.error, remedy: None }
    })?;
    match context.json {
        true => terminal::print_json(&serde_json::json!({ "ok": true, "job": name, "detail": report.0 }))?,
        false => terminal::print(&format!("{}: {}\n", terminal::visible(name), terminal::visible(&report.0)))?,
    }
    Ok(Exit::Ok)
}

pub fn table(jobs: Vec<Job>) -> String {
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = jobs
        .into_iter()
        .map(|job| {
            let last = job.last.as_ref();
            let detail = if job.detail.is_empty() { last.map(|run| run.detail.clone()) } else { Some(job.detail) };
            // What follows names every stream.
            let detail = detail.and_then(|detail| detail.lines().next().map(str::to_owned));
            vec![
                job.name,
                job.r#type,
                job.schedule,
                job.state,
                last.map_or_else(none, |run| second(&run.began)),
                last.and_then(|run| run.result.clone()).unwrap_or_else(none),
                last.and_then(|run| run.duration_seconds).map_or_else(none, duration),
                job.next.as_deref().map_or_else(none, second),
                detail.unwrap_or_default(),
            ]
        })
        .collect();
    terminal::table(&["JOB", "TYPE", "SCHEDULE", "STATE", "LAST", "RESULT", "TOOK", "NEXT", "DETAIL"], &rows)
}

/// A time without its fraction.
fn second(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        0.0..1.0 => format!("{:.0}ms", seconds * 1000.0),
        1.0..120.0 => format!("{seconds:.1}s"),
        _ => format!("{}m {}s", seconds as u64 / 60, seconds as u64 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn jobs_are_a_table() {
        let jobs = serde_json::from_value(json!([
            {"name": "hourly", "type": "snapshot", "schedule": "every 1h", "state": "scheduled", "detail": "", "next": "2026-11-21T15:00:00.000000Z",
             "last": {"began": "2026-11-21T14:00:00.123456Z", "ended": "", "result": "done", "duration_seconds": 0.25, "detail": "12 snapshots"}},
            {"name": "b", "type": "snapshot", "schedule": "0 3 * * * (UTC)", "state": "waiting", "detail": "a \u{1b}[31m", "last": null, "next": null},
        ]))
        .unwrap();
        let expected = "\
JOB     TYPE      SCHEDULE         STATE      LAST                  RESULT  TOOK   NEXT                  DETAIL
hourly  snapshot  every 1h         scheduled  2026-11-21T14:00:00Z  done    250ms  2026-11-21T15:00:00Z  12 snapshots
b       snapshot  0 3 * * * (UTC)  waiting    -                     -       -      -                     a \\u{1b}[31m
";
        assert_eq!(table(jobs), expected);
    }
}
