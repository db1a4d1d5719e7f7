//! `outboxd job`.

use clap::Subcommand;
use serde::Deserialize;

use super::control_client::{self, Request};
use super::{Context, Exit, Failure, terminal};
use crate::admin::answer::Refusal;
use crate::controls;
use crate::maintenance::{self, Report, Stop};

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
        Command::Run { name, .. } => control_client::Job::Run { job: name.clone() },
        Command::Verify { name } => return look(name, context, |job| job.verify(&Stop::default())),
    };
    let answer = context.ask(&Request::Job(request))?;
    match (context.json, command) {
        (true, _) => terminal::print_json(&answer)?,
        (false, Command::List | Command::Verify { .. }) => {
            terminal::print(&table(serde_json::from_value::<Listed>(answer)?.jobs))?
        }
        (false, Command::Run { name, .. }) => {
            let Ran { run } = serde_json::from_value(answer)?;
            let [name, detail] = [name, &run.detail].map(|text| terminal::visible(text));
            let took = run.duration_seconds.map_or("-".to_owned(), duration);
            terminal::print(&format!("{name} is done, in {took}: {detail}\n"))?;
        }
    }
    Ok(Exit::Ok)
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
