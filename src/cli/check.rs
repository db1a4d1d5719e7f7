//! `outboxd check`.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Context, Exit, terminal};
use crate::config::Loaded;
use crate::consumer::{self, Start};
use crate::sink::{self, FaultClass, Port};
use crate::source;
use crate::source::reader::{Halt, Look, Reader, SourceState};
use crate::sqlite::open;
use crate::state::checkpoint::{self, Checkpoint};

const LOOK_WAIT: Duration = Duration::from_secs(2);
const SINK_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the configuration and the files only; connect to no broker
    #[arg(long)]
    pub offline: bool,
}

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
    let findings = runtime.block_on(look(&loaded, args.offline));
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

async fn look(loaded: &Loaded, offline: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, source) in &loaded.config.sources {
        let relays: Vec<_> = loaded.config.relays.iter().filter(|relay| relay.source == *name).collect();
        let subject = format!("source {name}");
        match look_at(source).await {
            Ok(Some(look)) => {
                let how = if look.mapping.rows.is_some() { "by row" } else { "by checkpoint" };
                let detail = format!(
                    "{}: table {} is read {how}, head {}",
                    source.path.display(),
                    look.mapping.table,
                    look.head
                );
                findings.push(ok(subject, detail));
                findings.extend(relays.iter().map(|relay| relay_finding(relay, source, &look)));
            }
            Ok(None) => {
                let detail =
                    format!("{}: the file or the table is not there yet; `run` waits for it", source.path.display());
                findings.push(Finding { subject, verdict: "wait", detail, exit: Exit::Ok });
            }
            Err(halt) => findings.push(Finding { subject, verdict: "problem", detail: halt.detail, exit: Exit::Data }),
        }
    }
    for relay in &loaded.config.relays {
        findings.push(sink_finding(relay, offline).await);
    }
    findings
}

/// `None`: not there yet.
async fn look_at(source: &source::Settings) -> Result<Option<Look>, Halt> {
    let reader = Reader::start(source.clone()).map_err(|error| Halt::new(error.to_string()))?;
    match tokio::time::timeout(LOOK_WAIT, reader.look()).await {
        Ok(look) => look.map(Some),
        Err(_) => match &*reader.state.borrow() {
            SourceState::Halted(halt) => Err(halt.clone()),
            _ => Ok(None),
        },
    }
}

fn ok(subject: String, detail: String) -> Finding {
    Finding { subject, verdict: "ok", detail, exit: Exit::Ok }
}

fn relay_finding(relay: &consumer::Settings, source: &source::Settings, look: &Look) -> Finding {
    let subject = format!("relay {}", relay.name);
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
    let connection = open::reader(&path).map_err(|error| told(&error))?;
    match crate::state::schema_version(&connection).map_err(|error| told(&error))? {
        Some(_) => checkpoint::load(&connection, &relay.name).map_err(|error| told(&error)),
        None => Ok(None),
    }
}

async fn sink_finding(relay: &consumer::Settings, offline: bool) -> Finding {
    let subject = format!("sink {}", relay.sink_name);
    if let sink::Settings::File(file) = &relay.sink {
        return file_finding(subject, file.path.as_deref());
    }
    if offline {
        return ok(subject, "not looked at (--offline)".into());
    }
    let (news, _keep) = mpsc::unbounded_channel();
    let port = Port { news, consumer: relay.name.clone(), source: relay.source.clone() };
    let mut sink = sink::open(&relay.sink, port);
    let checked = sink.check(SINK_WAIT).await;
    sink.close().await;
    match checked {
        Ok(()) => ok(subject, format!("answers ({})", relay.name)),
        Err(fault) if fault.class == FaultClass::Unavailable => {
            Finding { subject, verdict: "wait", detail: fault.detail, exit: Exit::Unavailable }
        }
        Err(fault) => Finding { subject, verdict: "problem", detail: fault.detail, exit: Exit::Unavailable },
    }
}

/// Opening the file would make it: only its folder is looked at.
fn file_finding(subject: String, path: Option<&std::path::Path>) -> Finding {
    let Some(path) = path else { return ok(subject, "standard output".into()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match writable {
        Ok(()) => ok(subject, format!("{}: its folder can be written", path.display())),
        Err(error) => Finding {
            subject,
            verdict: "problem",
            detail: format!(
                "{}: its folder cannot be written ({error}). Remedy: make it, for the user that outboxd runs as",
                path.display()
            ),
            exit: Exit::CannotCreate,
        },
    }
}
