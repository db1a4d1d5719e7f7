//! `outboxd check`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Context, Exit, terminal};
use crate::config::Loaded;
use crate::consumer::{self, Start};
use crate::doctor::sinks::{self, Answer};
use crate::event::{Batch, Position};
use crate::projection::{Definition, tables};
use crate::sink;
use crate::source::reader::{Halt, Look, Mark, ReadNews, ReadRequest, Reader, RowsUpdate, SourceState};
use crate::source::{self, Durability, StatePlace, inspection};
use crate::sqlite::{open, premises};
use crate::state::checkpoint::{self, Checkpoint};

const LOOK_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the configuration and the files only; connect to no broker
    #[arg(long)]
    pub offline: bool,
    /// Show payload and headers of the first messages, which may be nobody else's business, instead of their sizes
    #[arg(long)]
    pub payloads: bool,
}

/// What is shown of the first messages.
const FIRST: usize = 3;
const SHOWN_CHARS_MAX: usize = 120;
const BYTES_MAX: usize = 1 << 20;

/// One line of the report.
#[derive(serde::Serialize)]
struct Finding {
    subject: String,
    /// `ok`, `wait` (it may be right later), `problem`.
    verdict: &'static str,
    detail: String,
    #[serde(skip)]
    exit: Exit,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(look(&loaded, args));
    runtime.shutdown_background();
    if context.json {
        terminal::print_json(&serde_json::json!({ "file": loaded.file, "findings": findings }))?;
    } else {
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|finding| vec![finding.subject.clone(), finding.verdict.to_owned(), finding.detail.clone()])
            .collect();
        terminal::print(&format!("{}: the configuration is right\n", loaded.file.display()))?;
        terminal::print(&terminal::table(&["WHAT", "", "DETAIL"], &rows))?;
    }
    Ok(findings.iter().map(|finding| finding.exit).find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok))
}

async fn look(loaded: &Loaded, args: &Args) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, source) in &loaded.config.sources {
        let relays: Vec<_> = loaded.config.consumers().filter(|relay| relay.source == *name).collect();
        let subject = format!("source {name}");
        let refusals = refused(source);
        if !refusals.is_empty() {
            let told = |detail| Finding { subject: subject.clone(), verdict: "problem", detail, exit: Exit::Data };
            findings.extend(refusals.into_iter().map(told));
            continue;
        }
        match look_at(source, args.payloads).await {
            Ok(Seen::Ready(look, first)) => {
                let how = if look.mapping.rows.is_some() { "by row" } else { "by checkpoint" };
                let detail = format!(
                    "{}: table {} is read {how}, head {}",
                    source.path.display(),
                    look.mapping.table,
                    look.head
                );
                findings.push(ok(subject.clone(), detail));
                let mapped: Vec<String> =
                    look.mapping.told.iter().map(|(field, column)| format!("{field} = {column}")).collect();
                findings.push(ok(format!("{subject} mapping"), mapped.join("; ")));
                let told = |detail: &String| Finding {
                    subject: subject.clone(),
                    verdict: "warning",
                    detail: detail.clone(),
                    exit: Exit::Ok,
                };
                findings.extend(look.warnings.iter().map(told));
                findings.push(ok(format!("{subject} plan"), look.plan.steps.join("; ")));
                findings.extend(look.plan.warnings.iter().map(|warning| Finding {
                    subject: format!("{subject} plan"),
                    verdict: "slow",
                    detail: warning.clone(),
                    exit: Exit::Ok,
                }));
                findings.extend(first.iter().map(|(verdict, detail)| Finding {
                    subject: format!("{subject} message"),
                    verdict,
                    detail: detail.clone(),
                    exit: Exit::Ok,
                }));
                findings.extend(relays.iter().map(|relay| relay_finding(relay, source, &look)));
            }
            Ok(Seen::Waits(what)) => {
                let detail = format!("{what}; `run` waits for it");
                findings.push(Finding { subject, verdict: "wait", detail, exit: Exit::Ok });
            }
            Err(halt) => findings.push(Finding { subject, verdict: "problem", detail: halt.detail, exit: Exit::Data }),
        }
    }
    for job in &loaded.config.jobs {
        let next = job.schedule.times.next(crate::clock::now_micros()).map_or("never".to_owned(), crate::clock::iso);
        let detail = format!("{}, {}; the next time is {next}", job.kind, job.schedule.times);
        findings.push(ok(format!("job {}", job.name), detail));
    }
    for relay in &loaded.config.relays {
        for (name, sink) in relay.sinks() {
            findings.push(sink_finding(relay, name, sink, args.offline).await);
        }
    }
    findings.extend(
        loaded.config.projections.iter().filter_map(|projection| tables_finding(projection.destination.tables()?)),
    );
    findings
}

/// Proves the statements on the file as it is.
fn tables_finding(definition: &Definition) -> Option<Finding> {
    let subject = format!("projection {} tables", definition.name);
    let path = definition.path.display();
    let problem = |detail, exit| Some(Finding { subject: subject.clone(), verdict: "problem", detail, exit });
    if !definition.path.exists() {
        return Some(ok(
            subject,
            format!("{path} is not there yet; `run` makes it, with {}", definition.tables.join(", ")),
        ));
    }
    match tables::try_on_file(definition) {
        Ok(misfits) if misfits.is_empty() => Some(ok(subject, format!("{path}: every statement fits"))),
        Ok(misfits) => {
            let told: Vec<String> = misfits.iter().map(ToString::to_string).collect();
            problem(format!("{path}: {}", told.join("; ")), Exit::Config)
        }
        Err(error) => problem(format!("{path}: {error}"), Exit::Data),
    }
}

/// What keeps its files from being opened, all of it; nothing of a file that is not there yet.
fn refused(source: &source::Settings) -> Vec<String> {
    let found = inspection::before_opening(source).into_iter().filter(premises::Finding::is_refusal);
    let mut told: Vec<String> = found.map(|finding| finding.to_string()).collect();
    if told.is_empty() && source.state != StatePlace::Inside {
        // What cannot be read is told of the relay.
        told.extend(crate::state::foreign(&source.state_path()).ok().flatten().map(|finding| finding.to_string()));
    }
    told
}

/// What can be seen of a source.
enum Seen {
    /// It is not there yet.
    Waits(String),
    /// With the first messages, as far as they can be read.
    Ready(Box<Look>, Vec<(&'static str, String)>),
}

async fn look_at(source: &source::Settings, payloads: bool) -> Result<Seen, Halt> {
    // Nothing is sent: what is read need not be made durable.
    let reading = source::Settings { durability: Durability::Fast, ..source.clone() };
    let reader = Reader::glance(reading).map_err(|error| Halt::new(error.to_string()))?;
    // A look that is stopped says so when its time is over.
    let wait = LOOK_WAIT + source.tables.iter().map(|table| table.sql_time_max).max().unwrap_or_default();
    let mut state = reader.state.clone();
    let is_waiting = async {
        tokio::time::sleep(LOOK_WAIT).await;
        let seen = |state: &SourceState| matches!(state, SourceState::Waiting(_));
        state.wait_for(seen).await.map(|state| state.clone()).ok()
    };
    tokio::select! {
        biased;
        look = reader.look() => Ok(Seen::Ready(Box::new(look?), first_messages(&reader, payloads).await)),
        Some(SourceState::Waiting(what)) = is_waiting => Ok(Seen::Waits(what)),
        () = tokio::time::sleep(wait) => Err(Halt::new(format!("{}: no answer within {wait:?}", source.path.display()))),
    }
}

async fn first_messages(reader: &Reader, payloads: bool) -> Vec<(&'static str, String)> {
    let (reply, mut news) = mpsc::unbounded_channel();
    reader.read(ReadRequest {
        after: Position::default(),
        mark: Mark::default(),
        update: RowsUpdate::anew(),
        events_max: FIRST,
        bytes_max: BYTES_MAX,
        event_bytes_max: BYTES_MAX,
        filter: Arc::default(),
        reply,
    });
    match tokio::time::timeout(LOOK_WAIT, news.recv()).await {
        Ok(Some(ReadNews::Batch(batch))) => (0..batch.len()).map(|index| message(&batch, index, payloads)).collect(),
        Ok(Some(ReadNews::Halted(halt))) => vec![("problem", halt.detail)],
        _ => Vec::new(),
    }
}

fn message(batch: &Batch, index: usize, payloads: bool) -> (&'static str, String) {
    let event = batch.event(index);
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(SHOWN_CHARS_MAX).collect::<String>();
    let content = |bytes: &[u8]| if payloads { shown(bytes) } else { format!("of {} bytes", bytes.len()) };
    let mut text = format!("position {}, id {}, type {}", event.position, event.id, event.kind);
    for (name, value) in [
        ("key", event.key.map(shown)),
        ("stream_type", event.stream_type.map(str::to_owned)),
        ("version", event.version.map(|version| version.to_string())),
        ("time", event.time.map(str::to_owned)),
        ("headers", event.headers.map(|headers| content(headers.as_bytes()))),
        ("payload", event.payload.map(content)),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {value}"));
        }
    }
    match batch.defect(index) {
        None => ("ok", text),
        Some(defect) => ("dead", format!("{text}: would be a dead letter: {}", defect.detail)),
    }
}

fn ok(subject: String, detail: String) -> Finding {
    Finding { subject, verdict: "ok", detail, exit: Exit::Ok }
}

fn relay_finding(relay: &consumer::Settings, source: &source::Settings, look: &Look) -> Finding {
    let subject = format!("{} {}", relay.destination.kind(), relay.name);
    let source = &relay.placed(source);
    match recorded(relay, source) {
        Err(detail) => Finding { subject, verdict: "problem", detail, exit: Exit::Data },
        Ok(Some(checkpoint)) if look.mapping.rows.is_none() => {
            let behind = (look.head.0 - checkpoint.mark.position.0).max(0);
            ok(
                subject,
                format!("goes on behind position {}; at most {behind} events to send", checkpoint.mark.position),
            )
        }
        Ok(_) if look.mapping.rows.is_some() || !look.has_events => ok(subject, "begins with the first event".into()),
        Ok(_) => match relay.start {
            Some(Start::First) => ok(subject, format!("begins with the first of at most {} events", look.head)),
            Some(Start::Head) => ok(subject, format!("begins behind position {}", look.head)),
            None => Finding {
                subject,
                verdict: "problem",
                detail: "the source has events and there is no checkpoint: say start = \"first\" or \"head\"".into(),
                exit: Exit::Config,
            },
        },
    }
}

fn recorded(relay: &consumer::Settings, source: &source::Settings) -> Result<Option<Checkpoint>, String> {
    let path = source.state_path();
    if !path.exists() {
        return Ok(None);
    }
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let connection = open::visitor(&path).map_err(|error| told(&error))?;
    match crate::state::schema_version(&connection).map_err(|error| told(&error))? {
        Some(_) => checkpoint::load(&connection, &relay.name).map_err(|error| told(&error)),
        None => Ok(None),
    }
}

async fn sink_finding(relay: &consumer::Settings, name: &str, sink: &sink::Settings, offline: bool) -> Finding {
    let (verdict, detail, exit) = match sinks::ask(relay, sink, offline).await {
        Answer::Good(detail) => ("ok", detail, Exit::Ok),
        Answer::Away(detail) => ("wait", detail, Exit::Unavailable),
        Answer::Refused(detail) => ("problem", detail, Exit::Unavailable),
        Answer::Unwritable(detail) => ("problem", detail, Exit::CannotCreate),
    };
    Finding { subject: format!("sink {name}"), verdict, detail, exit }
}
