//! `outboxd rebuild`, `outboxd verify`, `outboxd plan`.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::bar::Bar;
use super::control_client::{self, Answer, Rebuild, Request};
use super::{Context, Exit, Failure, offline, terminal};
use crate::config::Loaded;
use crate::consumer::Settings;
use crate::consumer::rebuild::{self, Comparison, Failed, Purpose, Scratch};
use crate::consumer::status::Status;
use crate::controls;
use crate::event::Position;
use crate::projection::Definition;
use crate::source;
use crate::source::scan::{Scan, Which};
use crate::sqlite::lockfile::LockError;
use crate::sqlite::open;
use crate::state::checkpoint;

#[derive(Debug, clap::Args)]
pub struct RebuildArgs {
    /// The projection's name
    #[arg(value_name = "PROJECTION")]
    pub projection: String,
    /// Swap although events were refused: they become the projection's dead letters
    #[arg(long)]
    pub with_dead_letters: bool,
    /// Rebuild nothing: drop the tables that rebuilds of it have kept
    #[arg(long, conflicts_with = "with_dead_letters")]
    pub drop: bool,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The projection's name
    #[arg(value_name = "PROJECTION")]
    pub projection: String,
}

pub fn execute(args: &RebuildArgs, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    let loaded = context.load()?;
    let (settings, source) = find(&loaded, &args.projection)?;
    if args.drop {
        let question = || Ok(format!("Drop the tables that the last rebuild of {} has kept?", settings.name));
        terminal::confirm(question, context.yes)?;
        let dropped = ask(&loaded, &Request::Rebuild(Rebuild::Drop { consumer: settings.name.clone() }))?;
        match context.json {
            true => terminal::print_json(&dropped)?,
            false => terminal::print(&format!("{}: dropped {}\n", settings.name, listed(&dropped["dropped"])))?,
        }
        return Ok(Exit::Ok);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bar = Bar::new(context);
    let scratch = claim(settings, Purpose::Rebuild)?;
    scratch.take_over();
    runtime.block_on(make(source, &scratch, None, &mut bar))?;
    // Whoever swaps takes it from here: what follows goes through without this command, too.
    drop(scratch);
    let swap = Rebuild::Swap {
        consumer: settings.name.clone(),
        hash: tables(settings).hash(),
        with_dead_letters: args.with_dead_letters,
    };
    bar.say("made; they are swapped as soon as nobody else has the file locked");
    let swapped = ask(&loaded, &Request::Rebuild(swap));
    bar.clear();
    let swapped = swapped?;
    match context.json {
        true => terminal::print_json(&swapped)?,
        false => terminal::print(&format!(
            "{}: {} rows at position {}; the tables of before are kept ({}) until `outboxd rebuild {} --drop`\n",
            settings.name,
            swapped["rows"],
            swapped["position"],
            listed(&swapped["kept"]),
            settings.name
        ))?,
    }
    Ok(Exit::Ok)
}

/// Names, or that there are none.
fn listed(names: &Value) -> String {
    let names: Vec<&str> = names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

pub fn verify(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let (settings, source) = find(&loaded, &args.projection)?;
    let (name, live) = (&settings.name, &tables(settings).path);
    let none = || Failure::new(Exit::Data, format!("{name} has no tables yet"), "let it run first");
    let standing = if live.exists() { rebuild::position(live, name)? } else { None };
    let standing = standing.ok_or_else(none)?;
    let scratch = claim(settings, Purpose::Verify)?;
    scratch.empty();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut bar = Bar::new(context);
    let compared = runtime.block_on(async {
        make(source, &scratch, Some(standing), &mut bar).await?;
        let (comparison, standing) = Comparison::begin(live, scratch.path(), tables(settings))?;
        let standing = standing.ok_or_else(none)?;
        run_up_to(source, &scratch.settings, standing, &mut bar).await?;
        anyhow::Ok((comparison.differences()?, standing))
    });
    bar.clear();
    scratch.remove();
    let (differences, position) = compared?;
    let rows: u64 = differences.iter().map(|difference| difference.rows).sum();
    if context.json {
        let told: Vec<Value> = differences
            .iter()
            .map(|one| json!({ "table": one.table, "rows": one.rows, "only_live": one.only_live, "only_rebuilt": one.only_rebuilt }))
            .collect();
        terminal::print_json(&json!({ "consumer": name, "position": position.0, "rows": rows, "differences": told }))?;
    } else if rows == 0 {
        terminal::print(&format!("{name}: a rebuild up to position {position} comes to the same\n"))?;
    } else {
        let mut text = format!("{name}: at position {position}, {rows} rows differ (- live, + rebuilt)\n");
        for difference in &differences {
            text.push_str(&format!("{}:\n", difference.table));
            for (mark, lines) in [('-', &difference.only_live), ('+', &difference.only_rebuilt)] {
                lines.iter().for_each(|line| text.push_str(&format!("  {mark} {}\n", terminal::visible(line))));
            }
        }
        terminal::print(&text)?;
    }
    Ok(if rows == 0 { Exit::Ok } else { Exit::Data })
}

pub fn plan(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let (settings, source) = find(&loaded, &args.projection)?;
    let definition = tables(settings);
    let now = definition.as_json();
    let mut before = None;
    let mut rows = BTreeMap::new();
    if definition.path.exists() {
        let connection = open::reader(&definition.path)?;
        if crate::state::schema_version(&connection)?.is_some() {
            before = checkpoint::section(&connection, &settings.name)?;
        }
        for table in &definition.tables {
            if !open::columns(&connection, table)?.is_empty() {
                let sql = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
                rows.insert(table.clone(), connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?);
            }
        }
    }
    let changes = changes(before.as_ref(), &now);
    let began = Instant::now();
    let (mut events, mut types) = (0_u64, BTreeMap::<String, u64>::new());
    let scan = Scan::open(source)?;
    let mut after = i64::MIN;
    while let Some(page) = scan.page(Which::All, after)? {
        for event in page.batch.events() {
            events += 1;
            *types.entry(event.kind.to_owned()).or_default() += 1;
        }
        after = page.next;
    }
    let ignored = definition.ignored();
    let is_handled = |kind: &str| {
        definition.on.contains_key(kind)
            || definition.on.contains_key(crate::projection::EVERY_TYPE)
            || ignored.as_ref().is_some_and(|ignored| ignored.admits(kind))
    };
    let unhandled: BTreeMap<&String, u64> =
        types.iter().filter(|(kind, _)| !is_handled(kind)).map(|(kind, count)| (kind, *count)).collect();
    let unheard: Vec<&String> = definition
        .on
        .keys()
        .filter(|kind| *kind != crate::projection::EVERY_TYPE && !types.contains_key(*kind))
        .collect();
    // Reading is a part of the work: about a third, by the benchmark.
    let seconds = began.elapsed().as_secs_f64() * 3.0;
    let told = json!({
        "consumer": settings.name, "definition": definition.hash(), "is_made": before.is_some(), "changes": changes, "rows": rows,
        "events": events, "unhandled": unhandled, "unheard": unheard, "seconds": seconds,
    });
    if context.json {
        terminal::print_json(&told)?;
        return Ok(Exit::Ok);
    }
    let list = |value: &Value| {
        let pairs =
            value.as_object().into_iter().flatten().map(|(name, count)| format!("{} {count}", terminal::visible(name)));
        let text = pairs.collect::<Vec<_>>().join(", ");
        if text.is_empty() { "none".to_owned() } else { text }
    };
    let verdict = match (&before, changes.is_empty()) {
        (None, _) => "its tables are not made yet: `outboxd run` makes them".to_owned(),
        (Some(_), true) => "its definition is that of its tables: nothing is to be done".to_owned(),
        (Some(_), false) => {
            format!("changed: {}; `outboxd rebuild {}` makes the tables anew", changes.join(", "), settings.name)
        }
    };
    let text = format!(
        "{}: {verdict}\n  rows now: {}\n  events: {events}, a rebuild takes about {seconds:.0} s\n  types that nothing handles: {}\n  types that did not \
         happen: {}\n",
        settings.name,
        list(&told["rows"]),
        list(&told["unhandled"]),
        if unheard.is_empty() {
            "none".to_owned()
        } else {
            unheard.iter().map(|kind| terminal::visible(kind)).collect::<Vec<_>>().join(", ")
        },
    );
    terminal::print(&text)?;
    Ok(Exit::Ok)
}

/// The parts of a definition that are not as before.
fn changes(before: Option<&Value>, now: &Value) -> Vec<String> {
    let Some(before) = before else { return Vec::new() };
    let mut changes = Vec::new();
    for part in ["key", "tables", "views", "schema", "reads", "ignore"] {
        if before[part] != now[part] {
            changes.push(part.to_owned());
        }
    }
    let kinds = |value: &Value| value["on"].as_object().cloned().unwrap_or_default();
    let (old, new) = (kinds(before), kinds(now));
    for (kind, statements) in &new {
        match old.get(kind) {
            None => changes.push(format!("on.{kind} (new)")),
            Some(was) if was != statements => changes.push(format!("on.{kind}")),
            Some(_) => {}
        }
    }
    changes.extend(old.keys().filter(|kind| !new.contains_key(*kind)).map(|kind| format!("on.{kind} (gone)")));
    changes
}

fn find<'a>(loaded: &'a Loaded, name: &str) -> anyhow::Result<(&'a Settings, &'a source::Settings)> {
    let projections = &loaded.config.projections;
    let none = || {
        let names: Vec<&str> = projections.iter().map(|projection| projection.name.as_str()).collect();
        let remedy = format!("there are: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") });
        Failure::new(Exit::Usage, format!("there is no projection {name}"), remedy)
    };
    let settings = projections.iter().find(|projection| projection.name == name).ok_or_else(none)?;
    Ok((settings, &loaded.config.sources[&settings.source]))
}

fn tables(settings: &Settings) -> &Definition {
    settings.destination.tables().expect("it is a projection")
}

/// Asks the daemon, or does it on the files when none runs.
fn ask(loaded: &Loaded, request: &Request) -> anyhow::Result<Value> {
    match control_client::ask(&loaded.config.daemon.control, request)? {
        Answer::Given(answer) => Ok(answer),
        Answer::NotRunning => offline::answer(loaded, request),
    }
}

fn claim(settings: &Settings, purpose: Purpose) -> anyhow::Result<Scratch> {
    Scratch::claim(settings, purpose).map_err(|error| {
        let exit = if matches!(error, LockError::Held { .. }) { Exit::Locked } else { Exit::Unavailable };
        let reason = format!("the tables of {} are being made anew: {error}", settings.name);
        Failure::new(exit, reason, "wait until that one has ended, or end it").into()
    })
}

async fn make(
    source: &source::Settings,
    scratch: &Scratch,
    until: Option<Position>,
    bar: &mut Bar,
) -> anyhow::Result<()> {
    scratch.make(source, until, &mut |status| draw(bar, status, until)).await.map_err(failure)
}

async fn run_up_to(
    source: &source::Settings,
    settings: &Settings,
    until: Position,
    bar: &mut Bar,
) -> anyhow::Result<()> {
    let until = Some(until);
    rebuild::run_up_to(source, settings, until, &mut |status| draw(bar, status, until)).await.map_err(failure)
}

fn failure(failed: Failed) -> anyhow::Error {
    let (exit, reason) = match failed {
        Failed::Halted(why) => (Exit::Data, why),
        Failed::Away(why) => (Exit::Unavailable, why),
    };
    Failure { exit, reason, remedy: None }.into()
}

fn draw(bar: &mut Bar, status: &Status, until: Option<Position>) {
    let whole = until.map(|until| until.0).or(status.head).unwrap_or(0).max(1);
    let percent = (status.position.clamp(0, whole) * 100 / whole) as usize;
    bar.draw(percent, &format!("at {} of {whole}", status.position));
}
