//! `[relays.X]`, and how relays, sources and sinks go together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{Bytes, Checker, Nanos};
use crate::config::file;
use crate::config::read::Raw;
use crate::consumer::{Bounds, Destination, OnReject, Settings, Start};
use crate::setting::problem::{KeyPath, either, nearest};
use crate::setting::value::{Size, Span};
use crate::sink;
use crate::sink::format::Format;
use crate::source;
use crate::source::declared::{Declared, From};
use crate::sqlite::place;

const STARTS: [(&str, Start); 2] = [("first", Start::First), ("head", Start::Head)];
pub(super) const ON_REJECTS: [(&str, OnReject); 3] =
    [("hold", OnReject::Hold), ("skip", OnReject::Skip), ("halt", OnReject::Halt)];

pub(super) const ATTEMPTS_MAX: u64 = 1_000;
pub(super) const EVENTS_MAX: u64 = 1_000_000;
pub(super) const BYTES_MIN: u64 = 1 << 10;
pub(super) const BYTES_MAX: u64 = 1 << 30;
const ACK_TIMEOUT_MIN: Duration = Duration::from_millis(100);
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

pub(super) fn resolve(
    raw: &Raw,
    sources: &BTreeMap<String, source::Settings>,
    sinks: &BTreeMap<String, sink::Settings>,
    checker: &mut Checker<'_>,
) -> Vec<Settings> {
    let has_others = !raw.projections.is_empty() || !raw.jobs.is_empty();
    if raw.relays.is_empty() && !has_others && checker.problems.is_empty() {
        nothing_to_do(checker);
    }
    let resolved = raw.relays.iter().map(|(name, relay)| one(name, relay, raw, sinks, checker)).collect::<Vec<_>>();
    let relays: Vec<Settings> = resolved.into_iter().flatten().collect();
    for relay in &relays {
        if let Some(source) = sources.get(&relay.source) {
            check_against_source(relay, source, checker);
        }
    }
    refuse_shared_rows(&relays, sources, checker);
    refuse_shared_files(&relays, checker);
    refuse_files_of_sources(&relays, sources, checker);
    relays
}

fn nothing_to_do(checker: &mut Checker<'_>) {
    let remedy = "write a section [relays.a_name_you_choose] with `source` and `sink`";
    let reason = "there is no relay, no projection and no job: there would be nothing to do";
    checker.refuse(KeyPath::of(["relays"]), reason, remedy);
}

fn one(
    name: &str,
    relay: &file::Relay,
    raw: &Raw,
    sinks: &BTreeMap<String, sink::Settings>,
    checker: &mut Checker<'_>,
) -> Option<Settings> {
    let key = |part: &str| KeyPath::of(["relays", name, part]);
    let source = checker.require(&key("source"), relay.source.as_ref());
    let sink_name = checker.require(&key("sink"), relay.sink.as_ref());
    if let Some(source) = &source {
        check_name(&key("source"), source, "sources", raw.sources.keys(), checker);
    }
    if let Some(sink) = &sink_name {
        check_name(&key("sink"), sink, "sinks", raw.sinks.keys(), checker);
    }
    if let Some(sink) = &relay.dead_letter_sink {
        check_name(&key("dead_letter_sink"), sink, "sinks", raw.sinks.keys(), checker);
    }
    let types = relay.types.clone().unwrap_or_default().0;
    if relay.types.is_some() && (types.is_empty() || types.iter().any(String::is_empty)) {
        checker.refuse(
            key("types"),
            "this list would let nothing through",
            "name types, as in [\"Order*\"], or leave it out",
        );
    }
    let start = relay.start.as_ref().map(|word| checker.choose(&key("start"), word, &STARTS));
    let on_reject = checker.choose_or(&key("on_reject"), relay.on_reject.as_ref(), &ON_REJECTS, OnReject::Hold);
    let bounds = bounds(name, relay, checker);
    let (source, sink_name) = (source?, sink_name?);
    let sink = sinks.get(&sink_name)?.for_relay(bounds.ack_timeout);
    let paused = relay.paused.unwrap_or(false);
    let dead_letter_sink = relay.dead_letter_sink.clone().and_then(|name| {
        let sink = sinks.get(&name)?.for_relay(bounds.ack_timeout);
        Some((name, sink))
    });
    let (name, dead_letter_row) = (name.to_owned(), relay.dead_letter_row.unwrap_or(false));
    Some(Settings {
        name,
        source,
        destination: Destination::Sink { name: sink_name, settings: sink },
        types,
        start,
        on_reject,
        dead_letter_sink,
        dead_letter_row,
        bounds,
        paused,
        until: None,
    })
}

pub(super) fn check_name<'a>(
    key: &KeyPath,
    name: &str,
    section: &str,
    known: impl Iterator<Item = &'a String> + Clone,
    checker: &mut Checker<'_>,
) {
    if known.clone().any(|known| known == name) {
        return;
    }
    let names = || known.clone().map(String::as_str);
    let remedy = match (nearest(name, names()), names().next()) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, Some(_)) => format!("known are {}", either(names())),
        (None, None) => format!("write a section [{section}.{name}]"),
    };
    checker.refuse(key.clone(), format!("there is no section [{section}.{name}]"), remedy);
}

fn bounds(name: &str, relay: &file::Relay, checker: &mut Checker<'_>) -> Bounds {
    let key = |part: &str| KeyPath::of(["relays", name, part]);
    let usual = Bounds::default();
    let mut events = |part: &str, said: Option<u64>, most: u64, usual: usize| match said {
        Some(said) => checker.within(&key(part), said, 1, most) as usize,
        None => usual,
    };
    let attempts_max = events("attempts_max", relay.attempts_max, ATTEMPTS_MAX, usual.attempts_max as usize) as u32;
    let in_flight = relay.in_flight_per_key;
    let in_flight_per_key = in_flight.map(|said| events("in_flight_per_key", Some(said), EVENTS_MAX, 1) as u32);
    let window_events = events("window_events", relay.window_events, EVENTS_MAX, usual.window_events);
    // A small window makes the batches small too, unless their size is said.
    let batch_events = events("batch_events", relay.batch_events, EVENTS_MAX, usual.batch_events.min(window_events));
    let mut bytes = |part: &str, said: Option<Size>, usual: usize| match said {
        Some(said) => {
            checker.within(&key(part), Bytes(said), Bytes(Size(BYTES_MIN)), Bytes(Size(BYTES_MAX))).0.0 as usize
        }
        None => usual,
    };
    let window_bytes = bytes("window_bytes", relay.window_bytes, usual.window_bytes);
    let batch_bytes = bytes("batch_bytes", relay.batch_bytes, usual.batch_bytes.min(window_bytes));
    let event_bytes_max = bytes("event_bytes_max", relay.event_bytes_max, usual.event_bytes_max.min(window_bytes));
    let ack_timeout = relay.ack_timeout.unwrap_or(Span(usual.ack_timeout));
    let (least, most) = (Nanos(Span(ACK_TIMEOUT_MIN)), Nanos(Span(ACK_TIMEOUT_MAX)));
    checker.within(&key("ack_timeout"), Nanos(ack_timeout), least, most);
    for (part, part_size, window, window_size) in [
        ("batch_events", batch_events, "window_events", window_events),
        ("batch_bytes", batch_bytes, "window_bytes", window_bytes),
        ("event_bytes_max", event_bytes_max, "window_bytes", window_bytes),
    ] {
        if part_size > window_size {
            let reason = format!("`{part}` is larger than `{window}`, which it must fit into");
            checker.refuse(key(part), reason, format!("make `{window}` larger, or `{part}` smaller"));
        }
    }
    Bounds {
        attempts_max,
        ack_timeout: ack_timeout.0,
        in_flight_per_key,
        window_events,
        window_bytes,
        batch_events,
        batch_bytes,
        event_bytes_max,
        ..usual
    }
}

fn check_against_source(relay: &Settings, source: &source::Settings, checker: &mut Checker<'_>) {
    let key = |part: &str| KeyPath::of(["relays", &relay.name, part]);
    for (name, sink) in relay.sinks() {
        if sink.format() != Format::EventsourcePy || source.preset.as_deref() == Some("eventsource-py") {
            continue;
        }
        checker.refuse(
            KeyPath::of(["sinks", name, "format"]),
            format!(
                "relay `{}` brings events from [sources.{}], whose preset is not eventsource-py: they have no such form",
                relay.name, relay.source
            ),
            "write format = \"plain\" or \"envelope\"",
        );
    }
    let has_row = |table: &Declared| table.rows.as_ref().is_some_and(|rows| rows.on_dead_letter.is_some());
    if relay.dead_letter_row && !source.tables.iter().any(has_row) {
        let reason = format!("[sources.{}] does not say how a dead letter is written", source.name);
        checker.refuse(key("dead_letter_row"), reason, "say `on_dead_letter` there, or leave this out");
    }
    if relay.start == Some(Start::Head) && source.is_by_row() {
        let reason =
            format!("[sources.{}] is read by row: its rows say themselves what is still to be sent", source.name);
        checker.refuse(key("start"), reason, "leave `start` out");
    }
}

/// The mark in a row tells that it was delivered, not to whom.
fn refuse_shared_rows(relays: &[Settings], sources: &BTreeMap<String, source::Settings>, checker: &mut Checker<'_>) {
    let mut first: BTreeMap<(PathBuf, String), &str> = BTreeMap::new();
    for relay in relays {
        let Some(source) = sources.get(&relay.source).filter(|source| source.is_by_row()) else { continue };
        let From::Table { name, .. } = &source.tables[0].from else { continue };
        let table = (place::real(&source.path), name.to_lowercase());
        let Some(other) = first.insert(table, &relay.name) else { continue };
        let reason = format!(
            "relay `{other}` reads the same table, whose rows are marked when they are delivered: each event would reach only \
             one of the two"
        );
        let remedy = "read the log instead (a source with read = \"events\" carries to as many relays as you like), or let the \
                      second one read from the first one's broker";
        checker.refuse(KeyPath::of(["relays", &relay.name, "source"]), reason, remedy);
    }
}

fn refuse_shared_files(relays: &[Settings], checker: &mut Checker<'_>) {
    let mut first: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for relay in relays {
        for ((_, sink), key) in relay.sinks().into_iter().zip(["sink", "dead_letter_sink"]) {
            let Some(path) = sink.destination_file() else { continue };
            let Some(other) = first.insert(place::real(path), &relay.name) else { continue };
            let reason = format!("relay `{other}` writes to the same file {}", path.display());
            let remedy = "give each relay, and its copies of dead letters, a file of their own";
            checker.refuse(KeyPath::of(["relays", &relay.name, key]), reason, remedy);
        }
    }
}

/// A relay that wrote into what it reads from would destroy it.
fn refuse_files_of_sources(
    relays: &[Settings],
    sources: &BTreeMap<String, source::Settings>,
    checker: &mut Checker<'_>,
) {
    let owned = |source: &source::Settings| {
        let beside = ["-wal", "-shm", "-journal"].map(|end| PathBuf::from(format!("{}{end}", source.path.display())));
        [source.path.clone(), source.state_path()].into_iter().chain(beside).map(|path| place::real(&path))
    };
    for relay in relays {
        let Destination::Sink { name: sink_name, settings: sink } = &relay.destination else { continue };
        let Some(path) = sink.destination_file() else { continue };
        let same = place::real(path);
        if let Some(source) = sources.values().find(|source| owned(source).any(|owned| owned == same)) {
            let reason =
                format!("{} belongs to [sources.{}]: the sink would write into it", path.display(), source.name);
            let key = KeyPath::of(["sinks", sink_name, "path"]);
            checker.refuse(key, reason, "give the sink a file of its own");
        }
    }
}
