//! Answers to requests, in one shape whoever gives them: the running daemon, or a command that works on the files.

use std::future::Future;

use serde_json::{Value, json};

use super::request::{Consumer, DeadLetters, Job, Position, Request};
use crate::consumer::control::Operation;
use crate::maintenance::Failure;
use crate::sqlite::writer::JobError;

/// Who knows the consumers.
pub trait Desk {
    /// One JSON object a consumer, as [`crate::admin::status_json`] makes it.
    fn statuses(&self) -> impl Future<Output = Result<Vec<Value>, Refusal>> + Send;
    fn consumers(&self) -> Vec<String>;
    /// Those that only the files still know.
    fn left_over(&self) -> impl Future<Output = Result<Vec<Value>, Refusal>> + Send;
    fn pause(&self, consumer: &str, paused: bool) -> impl Future<Output = Result<Value, Refusal>> + Send;
    fn operate(&self, consumer: &str, operation: Operation) -> impl Future<Output = Result<Value, Refusal>> + Send;
    /// One JSON object a job, as [`crate::maintenance::status::Status::to_json`] makes it.
    fn jobs(&self) -> impl Future<Output = Result<Vec<Value>, Refusal>> + Send;
    /// Runs a job now; answered when the run has ended.
    fn run_job(&self, job: &str) -> impl Future<Output = Result<Value, Refusal>> + Send;
    /// Reads the configuration anew.
    fn reload(&self) -> impl Future<Output = Result<Value, Refusal>> + Send;
}

/// Why something was not done: for people, and the exit code of the command that asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub error: String,
    pub exit: u8,
}

impl Refusal {
    pub const USAGE: u8 = 64;
    pub const DATA: u8 = 65;
    pub const UNAVAILABLE: u8 = 69;
    pub const BUG: u8 = 70;
    pub const LOCKED: u8 = 75;
    pub const CONFIG: u8 = 78;

    pub fn new(exit: u8, error: impl Into<String>) -> Self {
        Self { error: error.into(), exit }
    }

    pub fn no_job(job: &str, known: impl IntoIterator<Item = String>) -> Self {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        Self::new(Self::USAGE, format!("there is no job {job}; there are: {known}"))
    }

    pub fn to_json(&self) -> Value {
        json!({ "ok": false, "error": self.error, "exit": self.exit })
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let exit = match failure {
            Failure::Data(_) => Refusal::DATA,
            Failure::Locked(_) => Refusal::LOCKED,
            Failure::Bug(_) => Refusal::BUG,
            Failure::Aborted | Failure::Unavailable(_) => Refusal::UNAVAILABLE,
        };
        Refusal::new(exit, failure.to_string())
    }
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        let exit = if matches!(error, JobError::Refused(_)) { Refusal::DATA } else { Refusal::UNAVAILABLE };
        Refusal::new(exit, error.to_string())
    }
}

/// Does what is asked, of one consumer or of all.
pub async fn answer(desk: &impl Desk, request: &Request) -> Result<Value, Refusal> {
    let names = meant(desk, request)?;
    let mut value = match request {
        Request::Status => json!({ "consumers": desk.statuses().await?, "jobs": desk.jobs().await? }),
        Request::Job(Job::List) => json!({ "jobs": desk.jobs().await? }),
        Request::Job(Job::Run { job }) => desk.run_job(job).await?,
        Request::Consumer(Consumer::List) => json!({ "consumers": known(desk).await? }),
        Request::Reload => desk.reload().await?,
        Request::Pause { consumer } => desk.pause(consumer, true).await?,
        Request::Resume { consumer } => desk.pause(consumer, false).await?,
        Request::DeadLetters(_)
        | Request::Position(_)
        | Request::Consumer(_)
        | Request::Replay(_)
        | Request::Rebuild(_) => operate(desk, request, &names).await?,
    };
    value["ok"] = json!(true);
    Ok(value)
}

fn meant(desk: &impl Desk, request: &Request) -> Result<Vec<String>, Refusal> {
    let consumers = desk.consumers();
    match request.consumer() {
        None => Ok(consumers),
        Some(name) if consumers.iter().any(|consumer| consumer == name) => Ok(vec![name.to_owned()]),
        // A consumer that left the config can still be forgotten.
        Some(name) if matches!(request, Request::Consumer(Consumer::Forget { .. })) => Ok(vec![name.to_owned()]),
        Some(name) => {
            let known = if consumers.is_empty() { "none".to_owned() } else { consumers.join(", ") };
            Err(Refusal::new(Refusal::USAGE, format!("there is no consumer {name}; there are: {known}")))
        }
    }
}

async fn known(desk: &impl Desk) -> Result<Vec<Value>, Refusal> {
    let statuses = desk.statuses().await?.into_iter();
    let left_over = desk.left_over().await?;
    Ok(statuses
        .map(|status| {
            json!({
                "name": status["name"], "kind": status["kind"], "source": status["source"], "sink": status["sink"],
                "is_configured": true, "state": status["state"],
            })
        })
        .chain(left_over)
        .collect())
}

async fn operate(desk: &impl Desk, request: &Request, names: &[String]) -> Result<Value, Refusal> {
    let operation = request.operation().expect("the caller has sorted out the others");
    let mut results = Vec::new();
    for name in names {
        results.push((name.clone(), desk.operate(name, operation.clone()).await?));
    }
    Ok(match request {
        Request::DeadLetters(DeadLetters::List { limit, .. }) => {
            let mut letters = letters(&results);
            let more = letters.len() as u64 > *limit;
            letters.truncate(*limit as usize);
            json!({ "dead_letters": letters, "more": more })
        }
        Request::DeadLetters(DeadLetters::Show { id, .. }) => {
            let mut letters = letters(&results);
            match letters.len() {
                0 => return Err(Refusal::new(Refusal::DATA, format!("no held event has the id {id}"))),
                1 => json!({ "dead_letter": letters.remove(0) }),
                _ => {
                    return Err(Refusal::new(
                        Refusal::USAGE,
                        format!("several consumers hold {id}: name one by --consumer"),
                    ));
                }
            }
        }
        Request::DeadLetters(_) => {
            let count = |value: &Value| value["retried"].as_u64().or(value["discarded"].as_u64()).unwrap_or(0);
            let out_of_order: u64 = results.iter().filter_map(|(_, value)| value["out_of_order"].as_u64()).sum();
            let changed: u64 = results.iter().map(|(_, value)| count(value)).sum();
            json!({ "changed": changed, "out_of_order": out_of_order })
        }
        Request::Position(Position::Show { .. }) => {
            json!({ "positions": results.into_iter().map(|(_, value)| value).collect::<Vec<_>>() })
        }
        Request::Position(Position::Set { .. }) => {
            let value = &results[0].1;
            json!({ "position": value["after"], "previous": value["before"], "event_id": value["event_id"] })
        }
        _ => results.into_iter().next().map(|(_, value)| value).unwrap_or_default(),
    })
}

/// The held rows of all asked consumers, each with what its kept envelope says.
fn letters(results: &[(String, Value)]) -> Vec<Value> {
    let mut letters = Vec::new();
    for (consumer, value) in results {
        for row in value["dead_letters"].as_array().into_iter().flatten() {
            let mut letter = row.clone();
            let event = letter["event"].take();
            letter["consumer"] = json!(consumer);
            letter["failed_at"] = letter["held_at"].take();
            for (field, from) in [("type", "type"), ("headers", "headers"), ("payload_base64", "data_base64")] {
                letter[field] = event[from].clone();
            }
            letter["payload"] = match &event["data"] {
                Value::Null => Value::Null,
                data => json!(data.to_string()),
            };
            letters.push(letter);
        }
    }
    letters
}
