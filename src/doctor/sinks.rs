//! Whether a sink answers, and takes what a relay would send: asked as the relay asks it before its first event. Nothing is sent.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Found, Told};
use crate::consumer;
use crate::sink::{self, FaultClass, Port};

const SINK_WAIT: Duration = Duration::from_secs(10);

/// What a sink says.
pub enum Answer {
    Good(String),
    /// It may be there later.
    Away(String),
    Refused(String),
    /// Its file cannot be made.
    Unwritable(String),
}

pub async fn ask(relay: &consumer::Settings, sink: &sink::Settings, offline: bool) -> Answer {
    if let sink::Settings::File(file) = sink {
        return file_answer(file.path.as_deref());
    }
    if offline {
        return Answer::Good("not looked at (--offline)".into());
    }
    let (news, _keep) = mpsc::unbounded_channel();
    let port = Port { news, consumer: relay.name.clone(), source: relay.source.clone() };
    let mut sink = sink::open(sink, port);
    let checked = sink.check(SINK_WAIT).await;
    sink.close().await;
    match checked {
        Ok(()) => Answer::Good(format!("answers ({})", relay.name)),
        Err(fault) if fault.class == FaultClass::Unavailable => Answer::Away(fault.detail),
        Err(fault) => Answer::Refused(fault.detail),
    }
}

/// Opening the file would make it: only its folder is looked at.
fn file_answer(path: Option<&Path>) -> Answer {
    let Some(path) = path else { return Answer::Good("standard output".into()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match writable {
        Ok(()) => Answer::Good(format!("{}: its folder can be written", path.display())),
        Err(error) => Answer::Unwritable(format!(
            "{}: its folder cannot be written ({error}). Remedy: make it, for the user that outboxd runs as",
            path.display()
        )),
    }
}

/// The same as the doctor says it.
pub async fn look(relay: &consumer::Settings, name: &str, sink: &sink::Settings, offline: bool) -> Found {
    let told = match ask(relay, sink, offline).await {
        Answer::Good(evidence) => Told::ok(evidence),
        Answer::Away(detail) => Told::danger(
            detail,
            "see whether it runs and can be reached from here; relays wait for it, and lose nothing",
        ),
        Answer::Refused(detail) if !detail.contains(" Remedy: ") => {
            Told::danger(detail, "mend it at the sink, or in its section of the configuration; relays wait for it")
        }
        Answer::Refused(detail) | Answer::Unwritable(detail) => Told::of_text(&detail, Told::danger),
    };
    Found { check: "sink", subject: format!("sink {name} of relay {}", relay.name), told }
}
