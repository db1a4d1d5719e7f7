//! Whether a sink answers, and takes what a relay would send: asked as the relay asks it before its first event, and then what the sink's own
//! room remarks of the far side ([`crate::sink::survey`]). Nothing is sent.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Found;
use super::sample::Events;
use crate::event::Destination;
use crate::remark::{Remark, Verdict};
use crate::sink::survey::Sample;
use crate::sink::{self, FaultClass, Port};
use crate::{consumer, source};

const SINK_WAIT: Duration = Duration::from_secs(10);
const SURVEY_WAIT: Duration = Duration::from_secs(10);
/// So many destinations are named.
const PLACES_MAX: usize = 10;

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
    asked(relay, sink, offline, None).await.0
}

/// With what the sink remarks of these events, where it is looked at.
async fn asked(
    relay: &consumer::Settings,
    sink: &sink::Settings,
    offline: bool,
    sample: Option<&Sample<'_>>,
) -> (Answer, Vec<Remark>) {
    if let sink::Settings::File(file) = sink {
        return (file_answer(file.path.as_deref()), Vec::new());
    }
    if offline {
        return (Answer::Good("not looked at (--offline)".into()), Vec::new());
    }
    let (news, _keep) = mpsc::unbounded_channel();
    let port = Port { news, consumer: relay.name.clone(), source: relay.source.clone() };
    let mut sink = sink::open(sink, port);
    let answer = match sink.check(SINK_WAIT).await {
        Ok(()) => Answer::Good(format!("answers ({})", relay.name)),
        Err(fault) if fault.class == FaultClass::Unavailable => Answer::Away(fault.detail),
        Err(fault) => Answer::Refused(fault.detail),
    };
    let remarks = match (sample, &answer) {
        (None, _) | (_, Answer::Away(_)) => Vec::new(),
        (Some(sample), _) => {
            let surveyed = tokio::time::timeout(2 * SURVEY_WAIT, sink.survey(sample, SURVEY_WAIT)).await;
            let late = |_| {
                vec![Remark::advice(
                    "it took too long to be looked at more closely",
                    "ask again when it has less to do",
                )]
            };
            surveyed.unwrap_or_else(late)
        }
    };
    sink.close().await;
    (answer, remarks)
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

/// What the doctor says of a relay's events, and of its sinks.
pub async fn look(relay: &consumer::Settings, source: &source::Settings, offline: bool) -> Vec<Found> {
    let events = Events::of(relay, source);
    let told = match &events {
        Ok(events) => events.told(),
        Err(why) => vec![Remark::ok(format!("not looked at: {why}"))],
    };
    let subject = format!("events of relay {}", relay.name);
    let mut found: Vec<Found> =
        told.into_iter().map(|remark| Found { check: "events", subject: subject.clone(), remark }).collect();
    let sample = match &events {
        Ok(events) => events.sample(&relay.source),
        Err(_) => Sample { source: &relay.source, events: Vec::new() },
    };
    let own = relay.destination.sink().map(std::ptr::from_ref);
    for (name, sink) in relay.sinks() {
        let subject = format!("sink {name} of relay {}", relay.name);
        let (answer, remarks) = asked(relay, sink, offline, Some(&sample)).await;
        let routed = events.as_ref().ok().and_then(|events| routed(events, sink, relay, own == Some(sink)));
        let is_refused = !matches!(answer, Answer::Good(_));
        // Of one that is refused only what is wrong.
        let remarks = remarks.into_iter().filter(|remark| !is_refused || remark.verdict != Verdict::Ok);
        let told = [answer.told()].into_iter().chain(routed).chain(remarks);
        found.extend(told.map(|remark| Found { check: "sink", subject: subject.clone(), remark }));
    }
    found
}

/// Where the newest events would go.
fn routed(events: &Events, sink: &sink::Settings, relay: &consumer::Settings, is_own: bool) -> Option<Remark> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = 0;
    for event in events.newest() {
        count += 1;
        let place = match sink.destination(&event, &relay.source) {
            Destination::Unknown => continue,
            Destination::Topic(topic) => format!("topic {topic}"),
            Destination::Exchange { exchange, routing_key } if exchange.is_empty() => format!("queue {routing_key}"),
            Destination::Exchange { exchange, routing_key } => format!("exchange {exchange} by {routing_key:?}"),
        };
        *counts.entry(place).or_default() += 1;
    }
    let what = if is_own { "events" } else { "events, if they became dead letters, in copies," };
    let mut places: Vec<(String, usize)> = counts.into_iter().collect();
    places.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named: Vec<String> =
        places.iter().take(PLACES_MAX).map(|(place, count)| format!("{place} ({count})")).collect();
    let more = match places.len().saturating_sub(PLACES_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let to = if named.is_empty() { "there".to_owned() } else { format!("to {}{more}", named.join(", ")) };
    (count > 0).then(|| Remark::ok(format!("the last {count} {what} would go {to}")))
}

impl Answer {
    fn told(self) -> Remark {
        match self {
            Answer::Good(evidence) => Remark::ok(evidence),
            Answer::Away(detail) => Remark::danger(
                detail,
                "see whether it runs and can be reached from here; relays wait for it, and lose nothing",
            ),
            Answer::Refused(detail) if !detail.contains(" Remedy: ") => Remark::danger(
                detail,
                "mend it at the sink, or in its section of the configuration; relays wait for it",
            ),
            Answer::Refused(detail) | Answer::Unwritable(detail) => super::of_text(&detail, Remark::danger),
        }
    }
}
