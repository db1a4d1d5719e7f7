//! `[projections.X]`: what it says is proven as far as that can be done without its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::relay::{ATTEMPTS_MAX, BYTES_MAX, BYTES_MIN, EVENTS_MAX, ON_REJECTS, check_name};
use super::{Bytes, Checker, Nanos};
use crate::config::read::Raw;
use crate::config::{file, preset};
use crate::consumer::{Bounds, Destination, OnReject, Settings, Start};
use crate::projection::{Definition, Key, OnChange, tables};
use crate::setting::problem::KeyPath;
use crate::setting::value::{Size, Span};
use crate::source::declared::Declared;
use crate::source::{self, StatePlace, json_path::JsonPath};
use crate::sqlite::place;

const ON_CHANGES: [(&str, OnChange); 2] = [("refuse", OnChange::Refuse), ("rebuild", OnChange::Rebuild)];
const TIME_MIN: Duration = Duration::from_millis(10);
const TIME_MAX: Duration = Duration::from_secs(600);
/// Its transaction ends when it ends: nothing is given up for being late.
const ACK_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

pub(super) fn resolve(
    raw: &Raw,
    sources: &BTreeMap<String, source::Settings>,
    checker: &mut Checker<'_>,
) -> Vec<Settings> {
    let mut projections = Vec::new();
    for (name, said) in &raw.projections {
        if raw.relays.contains_key(name) {
            let reason = "a relay has the same name: a consumer's name stands for it in commands, metrics and files";
            checker.refuse(KeyPath::of(["projections", name]), reason, "give one of them another name");
        }
        projections.extend(one(name, said, raw, checker));
    }
    for projection in &projections {
        if let Some(source) = sources.get(&projection.source) {
            check_against_source(projection, source, sources, checker);
        }
    }
    refuse_second_names(&projections, sources, checker);
    refuse_shared_tables(&projections, checker);
    prove(&projections, checker);
    projections
}

fn one(name: &str, said: &file::Projection, raw: &Raw, checker: &mut Checker<'_>) -> Option<Settings> {
    let key = |part: &str| KeyPath::of(["projections", name, part]);
    let source = checker.require(&key("source"), said.source.as_ref());
    if let Some(source) = &source {
        check_name(&key("source"), source, "sources", raw.sources.keys(), checker);
    }
    let path = checker.require(&key("path"), said.path.as_ref());
    let tables = checker.require(&key("tables"), said.tables.as_ref());
    let schema = checker.require(&key("schema"), said.schema.as_ref());
    let on = checker.require(&key("on"), said.on.as_ref());
    let on_reject = checker.choose_or(&key("on_reject"), said.on_reject.as_ref(), &ON_REJECTS, OnReject::Hold);
    let on_change = checker.choose_or(&key("on_change"), said.on_change.as_ref(), &ON_CHANGES, OnChange::Refuse);
    let bounds = bounds(name, said, checker);
    let statement_time_max = said.statement_time_max.unwrap_or(Span(Duration::from_secs(5)));
    let (least, most) = (Nanos(Span(TIME_MIN)), Nanos(Span(TIME_MAX)));
    checker.within(&key("statement_time_max"), Nanos(statement_time_max), least, most);
    let order = match said.key.as_deref() {
        None => Key::Source,
        Some("stream_id") => Key::Stream,
        Some(path) => match JsonPath::parse(path) {
            Ok(path) => Key::Path(path),
            Err(reason) => {
                checker.refuse(key("key"), reason, "write \"stream_id\", or a place in the data as in \"$.customer\"");
                Key::Source
            }
        },
    };
    let (source, path, tables, schema, on) = (source?, path?, tables?, schema?, on?);
    if tables.0.is_empty() {
        checker.refuse(
            key("tables"),
            "no table is named: nothing could be written",
            "name the tables that `schema` makes",
        );
    }
    let reads = said.reads.clone().unwrap_or_default().0;
    for (part, names) in [("tables", &tables.0), ("reads", &reads)] {
        let is_ours = |name: &&String| ["outboxd_", "sqlite_"].iter().any(|ours| name.to_lowercase().starts_with(ours));
        if let Some(name) = names.iter().find(is_ours) {
            checker.refuse(key(part), format!("{name} is not a table of the application's"), "leave it out");
        }
    }
    if on.0.is_empty() || on.0.values().any(Vec::is_empty) {
        checker.refuse(
            key("on"),
            "there is a type, or all of it, without a statement",
            "write SQL for the types that it handles",
        );
    }
    let definition = Definition {
        name: name.to_owned(),
        path: checker.path(&path),
        key: order,
        tables: tables.0,
        schema,
        views: Vec::new(),
        reads,
        ignore: said.ignore.clone().unwrap_or_default().0,
        on: on.0,
        statement_time_max: statement_time_max.0,
        on_change,
    };
    let definition = with_views(definition, checker)?;
    Some(Settings {
        name: name.to_owned(),
        source,
        destination: Destination::Tables(Arc::new(definition)),
        types: Vec::new(),
        start: Some(Start::First),
        on_reject,
        dead_letter_sink: None,
        dead_letter_row: false,
        bounds,
        paused: said.paused.unwrap_or(false),
        until: None,
    })
}

/// Four times a relay's: a transaction's two steps and its commit are of a fixed cost, and there is one at a time.
const BATCH_EVENTS: usize = 4_000;

fn bounds(name: &str, said: &file::Projection, checker: &mut Checker<'_>) -> Bounds {
    let key = |part: &str| KeyPath::of(["projections", name, part]);
    let usual = Bounds::default();
    let mut events = |part: &str, said: Option<u64>, most: u64, usual: usize| match said {
        Some(said) => checker.within(&key(part), said, 1, most) as usize,
        None => usual,
    };
    let attempts_max = events("attempts_max", said.attempts_max, ATTEMPTS_MAX, usual.attempts_max as usize) as u32;
    let batch_events = events("batch_events", said.batch_events, EVENTS_MAX, BATCH_EVENTS);
    let mut bytes = |part: &str, said: Option<Size>, usual: usize| match said {
        Some(said) => {
            checker.within(&key(part), Bytes(said), Bytes(Size(BYTES_MIN)), Bytes(Size(BYTES_MAX))).0.0 as usize
        }
        None => usual,
    };
    let batch_bytes = bytes("batch_bytes", said.batch_bytes, usual.batch_bytes);
    let event_bytes_max = bytes("event_bytes_max", said.event_bytes_max, usual.event_bytes_max);
    Bounds {
        attempts_max,
        batch_events,
        batch_bytes,
        event_bytes_max,
        // What is read ahead lets the reader work while the last batch is written.
        window_events: usual.window_events.max(2 * batch_events),
        window_bytes: usual.window_bytes.max(2 * batch_bytes).max(event_bytes_max),
        ack_timeout: ACK_TIMEOUT,
        ..usual
    }
}

fn with_views(definition: Definition, checker: &mut Checker<'_>) -> Option<Definition> {
    let key = |part: &str| KeyPath::of(["projections", &definition.name, part]);
    let tried = tables::try_schema(&definition);
    if let Some(reason) = tried.schema {
        checker.refuse(
            key("schema"),
            reason,
            "make the tables that `tables` names, with their indexes, views and triggers, and nothing else",
        );
        return None;
    }
    if let Some(table) = tried.missing.first() {
        checker.refuse(
            key("tables"),
            format!("`schema` makes no table {table}"),
            "make it there, or leave its name out",
        );
        return None;
    }
    Some(Definition { views: tried.views, ..definition })
}

fn check_against_source(
    projection: &Settings,
    source: &source::Settings,
    sources: &BTreeMap<String, source::Settings>,
    checker: &mut Checker<'_>,
) {
    let key = |part: &str| KeyPath::of(["projections", &projection.name, part]);
    if source.is_by_row() {
        let reason = format!(
            "[sources.{}] is read by row: the marks in its rows and the tables would stand in two transactions",
            source.name
        );
        checker.refuse(
            key("source"),
            reason,
            "name a source that is read by checkpoint or by feed, such as the events table",
        );
    }
    let Some(definition) = projection.destination.tables() else { return };
    let is_state = |source: &&source::Settings| {
        source.state != StatePlace::Inside && place::is_same(&source.state_path(), &definition.path)
    };
    if let Some(other) = sources.values().find(is_state) {
        let reason = format!("{} is the state of [sources.{}]", definition.path.display(), other.name);
        checker.refuse(key("path"), reason, "give the read model a file of its own");
    }
    for other in sources.values().filter(|source| place::is_same(&source.path, &definition.path)) {
        let theirs = tables_of(other);
        let is_theirs = |table: &&String| theirs.contains(&table.to_lowercase());
        if let Some(table) = definition.tables.iter().chain(&definition.views).find(is_theirs) {
            let reason = format!("{table} is the application's: [sources.{}] is in the same file", other.name);
            checker.refuse(
                key("tables"),
                reason,
                "give the projection tables of its own; others may be read (`reads`)",
            );
            return;
        }
    }
}

/// The application's tables in a source's file, as far as the configuration knows them.
fn tables_of(source: &source::Settings) -> BTreeSet<String> {
    let named = source.tables.iter().flat_map(Declared::tables).map(str::to_lowercase);
    named.chain(source.preset.iter().flat_map(|preset| preset::all_tables(preset))).collect()
}

/// SQLite keeps its log beside the name by which a file is opened: under two names there would be two of them.
fn refuse_second_names(
    projections: &[Settings],
    sources: &BTreeMap<String, source::Settings>,
    checker: &mut Checker<'_>,
) {
    let read_models = projections.iter().filter_map(|projection| projection.destination.tables());
    let files: BTreeSet<&Path> = read_models
        .clone()
        .map(|definition| &*definition.path)
        .chain(sources.values().map(|source| &*source.path))
        .collect();
    for definition in read_models {
        let is_second = |file: &&&Path| {
            place::is_same(file, &definition.path) && place::real(file) != place::real(&definition.path)
        };
        if let Some(other) = files.iter().find(is_second) {
            let path = definition.path.display();
            let reason = format!("{path} and {} are two names of one file (a hard link)", other.display());
            let remedy = "write the same name in both places: SQLite would keep two logs of it, and damage it";
            checker.refuse(KeyPath::of(["projections", &definition.name, "path"]), reason, remedy);
        }
    }
}

/// By the file: who writes which tables.
fn by_file(projections: &[Settings]) -> BTreeMap<std::path::PathBuf, Vec<&Arc<Definition>>> {
    let mut files = BTreeMap::<_, Vec<_>>::new();
    for definition in projections.iter().filter_map(|projection| projection.destination.tables()) {
        files.entry(place::real(&definition.path)).or_default().push(definition);
    }
    files
}

fn refuse_shared_tables(projections: &[Settings], checker: &mut Checker<'_>) {
    for (path, definitions) in by_file(projections) {
        let mut first: BTreeMap<String, &str> = BTreeMap::new();
        for definition in definitions {
            for table in definition.tables.iter().chain(&definition.views) {
                let Some(other) = first.insert(table.to_lowercase(), &definition.name) else { continue };
                let reason = match other == definition.name {
                    true => format!("{table} is named twice"),
                    false => format!("projection `{other}` has {table} in the same file {}", Path::display(&path)),
                };
                let key = KeyPath::of(["projections", &definition.name, "tables"]);
                checker.refuse(key, reason, "a table belongs to one projection; others may read it (`reads`)");
            }
        }
    }
}

/// Where everything that is read is made by projections of the same file, the statements are prepared here; else when the file is there.
fn prove(projections: &[Settings], checker: &mut Checker<'_>) {
    if !checker.problems.is_empty() {
        return;
    }
    for definitions in by_file(projections).values() {
        let made: BTreeSet<String> = definitions
            .iter()
            .flat_map(|definition| definition.tables.iter().chain(&definition.views))
            .map(|name| name.to_lowercase())
            .collect();
        let all: Vec<&Definition> = definitions.iter().map(|definition| &***definition).collect();
        for definition in &all {
            if !definition.reads.iter().all(|name| made.contains(&name.to_lowercase())) {
                continue;
            }
            let key = |kind: &str| KeyPath::of(["projections", &definition.name, "on", kind]);
            match tables::try_statements(definition, &all) {
                Ok(misfits) => misfits.into_iter().for_each(|misfit| {
                    let place = misfit.to_string();
                    let remedy = "see docs/PROJECTIONS.md: what statements may do, and which values they may name";
                    checker.refuse(key(&misfit.place.kind), place, remedy);
                }),
                Err(error) => {
                    let key = KeyPath::of(["projections", &definition.name, "schema"]);
                    checker.refuse(key, error.to_string(), "make the schemas of this file fit each other");
                }
            }
        }
    }
}
