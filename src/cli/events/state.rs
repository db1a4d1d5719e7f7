//! `outboxd events state`: what a stream's state is made of, and what it comes to.

use serde::Serialize;
use serde_json::value::RawValue;

use super::line::EventLine;
use super::{Place, event_row, event_table, shown};
use crate::admin::answer::Refusal;
use crate::cli::{Context, Exit, Failure, terminal};
use crate::config::preset;
use crate::maintenance::{self, Look};
use crate::source::{self, Durability, StatePlace};

/// As it is printed for programs.
#[derive(Serialize)]
struct StateLine<'a> {
    stream_id: &'a str,
    stream_type: &'a str,
    version: i64,
    snapshot: Option<SnapshotLine<'a>>,
    events: Vec<EventLine<'a>>,
    /// Left out where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct SnapshotLine<'a> {
    version: i64,
    state: &'a RawValue,
}

pub fn execute(store: &str, stream: &str, context: &Context) -> anyhow::Result<Exit> {
    let (source, jobs) = match Place::is_source(store) {
        true => {
            let (source, loaded) = Place::source(store, context)?;
            (source, loaded.config.jobs)
        }
        false => (file(store), Vec::new()),
    };
    if source.preset.as_deref() == Some(OURS) {
        // What is wrong with the file is told as by the other commands.
        Place::of(&source).reader()?;
    }
    let folded = jobs
        .iter()
        .filter(|job| (&job.home.path, &job.home.preset) == (&source.path, &source.preset))
        .filter_map(|job| job.job.look(stream));
    let mut found = None;
    for look in folded {
        let look = look.map_err(failed)?;
        let is_known = look.iter().all(|look| look.state.is_some());
        found = Some(look);
        if is_known {
            break;
        }
    }
    let looks = match found {
        Some(looks) => looks,
        None => maintenance::look_at(&source, stream).ok_or_else(|| unknown(store))?.map_err(failed)?,
    };
    if looks.is_empty() {
        let reason = format!("{}: there is no stream {}", source.path.display(), terminal::visible(stream));
        return Err(Failure::new(Exit::Data, reason, "see whether its id is written right").into());
    }
    for look in &looks {
        if context.json {
            terminal::print(&shown(&(line(look)? + "\n")))?;
        } else {
            terminal::print(&told(look))?;
        }
    }
    Ok(Exit::Ok)
}

const OURS: &str = "outboxd";

/// A file that `outboxd init` has made.
fn file(path: &str) -> source::Settings {
    source::Settings {
        name: path.to_owned(),
        path: path.into(),
        preset: Some(OURS.to_owned()),
        tables: preset::tables(OURS, "events").expect("it is one of ours"),
        durability: Durability::Strict,
        state: StatePlace::Beside,
        allow_network_filesystem: false,
    }
}

fn failed(failure: maintenance::Failure) -> Failure {
    let refusal = Refusal::from(failure);
    let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
    Failure { exit, reason: refusal.error, remedy: None }
}

fn unknown(store: &str) -> Failure {
    let reason = format!("it is not known where the application of source {store} keeps its snapshots");
    Failure::new(Exit::Usage, reason, "name a source with the preset outboxd, eventsource-py or flightdeck")
}

fn told(look: &Look) -> String {
    let Look { stream, kind, version, snapshot, events, state, is_anew } = look;
    let snapshot_told = match snapshot {
        Some((version, state)) => format!("of version {version}: {state}"),
        None => "none".to_owned(),
    };
    let mut text = terminal::sheet(&[
        ("stream", format!("{stream} of type {kind}, at version {version}")),
        ("snapshot", snapshot_told),
        ("behind it", if events.is_empty() { "nothing".to_owned() } else { format!("{} events", events.len()) }),
    ]);
    if !events.is_empty() {
        text.push_str(&event_table(&events.iter().map(event_row).collect::<Vec<_>>()));
    }
    let state = match state {
        Some(state) if snapshot.is_some() && *is_anew => {
            format!("{state} (from the first event on: another reducer has made the snapshot)")
        }
        Some(state) => state.clone(),
        None => format!(
            "not known: nothing here says how events of type {kind} are folded. A snapshot job of the configuration does:              [jobs.<name>.reducers], {kind} = ...; name its source, not the file"
        ),
    };
    text + &terminal::sheet(&[("state    ", state)])
}

fn line(look: &Look) -> Result<String, Failure> {
    let json = |what: &str, text| -> Result<&RawValue, Failure> {
        serde_json::from_str(text).map_err(|error| {
            let reason = format!("stream {}: {what} is no JSON: {error}", terminal::visible(&look.stream));
            Failure::new(Exit::Data, reason, "delete the snapshot, and it is made anew; or look at it without --json")
        })
    };
    let snapshot = match &look.snapshot {
        Some((version, state)) => Some(SnapshotLine { version: *version, state: json("its snapshot", state)? }),
        None => None,
    };
    let line = StateLine {
        stream_id: &look.stream,
        stream_type: &look.kind,
        version: look.version,
        snapshot,
        events: look.events.iter().map(EventLine::of).collect::<Result<_, _>>()?,
        state: look.state.as_deref().map(|state| json("its state", state)).transpose()?,
    };
    let text = serde_json::to_string(&line).expect("what was parsed can be written");
    // JSON over several lines would be several lines: outside of strings a line's end means nothing.
    Ok(text.replace(['\n', '\r'], " "))
}
