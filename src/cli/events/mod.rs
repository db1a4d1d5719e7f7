//! `outboxd events`: the event store for shell scripts, JSON lines in and out.

mod append;
mod line;
mod state;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::{Context, Exit, Failure, terminal};
use crate::config::Loaded;
use crate::source;
use crate::source::wake::Wake;
use crate::store::Reader;
use crate::store::event::StoredEvent;
use crate::store::fault::{OpenError, ReadError};
use line::EventLine;

/// Events, or streams, that are read and printed at a time.
const PAGE: usize = 1_000;
/// How often a file is looked at of whose changes no notice comes.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Append events, which are read from standard input, a JSON object a line; all of them, or none
    ///
    /// A line is {"stream_id": "order-1", "stream_type": "Order", "type": "OrderPlaced", "data": {"total": 7}}, and may have "id" (by which an
    /// event that is appended again is known), "metadata", "time", and "expected": "any", "none" (no such stream yet), "exists", or the
    /// version that the stream must have. Several events for one stream: {"stream_id", "stream_type", "expected", "events": [{"type", "data"}]}.
    /// Exit code 65 when a line or a stream is not as it must be, 75 when the file was locked for too long
    Append(append::Args),
    /// Print a stream's events, archived ones too
    Show {
        /// A source of the configuration, or a file (with a dot or a slash in it)
        #[arg(value_name = "SOURCE|FILE")]
        store: String,
        /// The stream
        #[arg(value_name = "STREAM")]
        stream: String,
        /// From this version on
        #[arg(long, value_name = "VERSION", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
        from: i64,
    },
    /// Print what a stream's state is made of: its snapshot, the events behind it, and what they come to
    ///
    /// The last is folded by the reducer that a snapshot job of the configuration has for streams of this type; where there is none, it is
    /// left out. Works on the presets outboxd, eventsource-py and flightdeck, and changes nothing
    State {
        /// A source of the configuration, or a file (with a dot or a slash in it)
        #[arg(value_name = "SOURCE|FILE")]
        store: String,
        /// The stream
        #[arg(value_name = "STREAM")]
        stream: String,
    },
    /// Print events of all streams as they are committed, until it is stopped
    Tail {
        /// A source of the configuration, or a file (with a dot or a slash in it)
        #[arg(value_name = "SOURCE|FILE")]
        store: String,
        /// Begin behind this position; 0 is before the first event [default: behind the newest]
        #[arg(long, value_name = "POSITION", value_parser = clap::value_parser!(i64).range(0..))]
        after: Option<i64>,
        /// End after so many events
        #[arg(long, value_name = "NUMBER")]
        count: Option<u64>,
        /// End at the newest event
        #[arg(long)]
        no_follow: bool,
    },
    /// List the streams with their versions
    Streams {
        /// A source of the configuration, or a file (with a dot or a slash in it)
        #[arg(value_name = "SOURCE|FILE")]
        store: String,
    },
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Append(args) => append::execute(args, context).await,
            Command::Show { store, stream, from } => show(store, stream, *from, context).await,
            Command::State { store, stream } => state::execute(store, stream, context),
            Command::Tail { store, after, count, no_follow } => {
                let follow = if *no_follow { Follow::UntilHead } else { Follow::ForEver };
                tail(store, *after, count.unwrap_or(u64::MAX), follow, context).await
            }
            Command::Streams { store } => streams(store, context).await,
        }
    })
}

/// A file with our tables.
struct Place {
    path: PathBuf,
    allow_network_filesystem: bool,
}

impl Place {
    fn named(name: &str, context: &Context) -> anyhow::Result<Self> {
        if !Self::is_source(name) {
            return Ok(Self { path: name.into(), allow_network_filesystem: false });
        }
        let (source, _) = Self::source(name, context)?;
        if source.preset.as_deref() != Some("outboxd") {
            let reason = format!("source {name} is not read as outboxd's own tables (preset = \"outboxd\")");
            return Err(Failure::new(Exit::Usage, reason, "the event store works on those only: `outboxd init`").into());
        }
        Ok(Self::of(&source))
    }

    fn of(source: &source::Settings) -> Self {
        Self { path: source.path.clone(), allow_network_filesystem: source.allow_network_filesystem }
    }

    /// Whether this names a source, not a file.
    fn is_source(name: &str) -> bool {
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    /// A source of the configuration, with all of that.
    fn source(name: &str, context: &Context) -> anyhow::Result<(source::Settings, Loaded)> {
        let loaded = context.load()?;
        let Some(source) = loaded.config.sources.get(name) else {
            let reason = format!("there is no source {name} in {}", loaded.file.display());
            return Err(Failure::new(Exit::Usage, reason, format!("for a file of that name write ./{name}")).into());
        };
        Ok((source.clone(), loaded))
    }

    fn reader(&self) -> anyhow::Result<Reader> {
        Reader::open(&self.path, self.allow_network_filesystem).map_err(|error| unopened(error).into())
    }
}

fn unopened(error: OpenError) -> Failure {
    let (exit, remedy) = match &error {
        OpenError::NotThere { path } => (Exit::Unavailable, format!("make it: `outboxd init {path}`")),
        OpenError::Premises(text) => return told(Exit::Permission, text),
        OpenError::Archive(text) => return told(Exit::Data, text),
        OpenError::Open { .. } => (Exit::Unavailable, "see whether it is locked, and may be written".to_owned()),
        OpenError::NoDatabase { .. } => (Exit::Data, "name the application's SQLite file".to_owned()),
        OpenError::Journal { .. } => (Exit::Data, "in the application, PRAGMA journal_mode = WAL".to_owned()),
        OpenError::NoTables { path, .. } => {
            (Exit::Data, format!("`outboxd init {path}` makes what is missing of outboxd's tables"))
        }
    };
    Failure::new(exit, format!("{:#}", anyhow::Error::new(error)), remedy)
}

/// Text that has its remedy in it.
fn told(exit: Exit, text: &str) -> Failure {
    let (reason, remedy) = text.split_once(" Remedy: ").unwrap_or((text, "see docs/FAILURES.md"));
    Failure::new(exit, reason.trim_end_matches('.'), remedy)
}

fn unread(place: &Place, error: ReadError) -> Failure {
    let (exit, remedy) = match &error {
        ReadError::Sqlite(_) => (Exit::Unavailable, "see whether the file is locked or damaged"),
        ReadError::Archive(text) => return told(Exit::Data, text),
        _ => (Exit::Data, "find out who wrote or deleted there without the store; nothing was changed"),
    };
    Failure::new(exit, format!("{}: {:#}", place.path.display(), anyhow::Error::new(error)), remedy)
}

async fn show(store: &str, stream: &str, from: i64, context: &Context) -> anyhow::Result<Exit> {
    let place = Place::named(store, context)?;
    let reader = place.reader()?;
    let (mut next, mut rows) = (Some(from), Vec::new());
    while let Some(from) = next {
        let events = reader.load_some(stream, from).await.map_err(|error| unread(&place, error))?;
        next = events.last().and_then(|last| last.version.checked_add(1));
        if context.json && !events.is_empty() {
            if !print_lines(&events)? {
                return Ok(Exit::Ok);
            }
        } else {
            rows.extend(events.iter().map(event_row));
        }
    }
    if reader.version(stream).await.map_err(|error| unread(&place, error))?.is_none() {
        let reason = format!("{}: there is no stream {}", place.path.display(), terminal::visible(stream));
        return Err(Failure::new(Exit::Data, reason, "`outboxd events streams` lists those that are there").into());
    }
    if !context.json {
        terminal::print(&event_table(&rows))?;
    }
    Ok(Exit::Ok)
}

fn event_row(event: &StoredEvent) -> Vec<String> {
    vec![event.version.to_string(), event.kind.clone(), event.time.clone(), shortened(&event.data)]
}

fn event_table(rows: &[Vec<String>]) -> String {
    terminal::table(&["VERSION", "TYPE", "TIME", "DATA"], rows)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    UntilHead,
    ForEver,
}

async fn tail(store: &str, after: Option<i64>, count: u64, follow: Follow, context: &Context) -> anyhow::Result<Exit> {
    let place = Place::named(store, context)?;
    let reader = place.reader()?;
    let unread = |error| unread(&place, error);
    let (mut wake, _bell) = Wake::new()?;
    wake.watch(&std::fs::canonicalize(&place.path)?);
    let mut after = match after {
        Some(after) => after,
        None => reader.head().await.map_err(unread)?,
    };
    let mut left = count;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE);
        let events = reader.read_all(after, most).await.map_err(unread)?;
        let Some(last) = events.last() else {
            if follow == Follow::UntilHead {
                break;
            }
            // Nothing else runs in this process.
            wake.wait(LOOK_EVERY);
            continue;
        };
        (after, left) = (last.position, left - events.len() as u64);
        let is_read = if context.json { print_lines(&events)? } else { print_events(&events)? };
        if !is_read {
            break;
        }
    }
    Ok(Exit::Ok)
}

async fn streams(store: &str, context: &Context) -> anyhow::Result<Exit> {
    let place = Place::named(store, context)?;
    let reader = place.reader()?;
    let mut rows = Vec::new();
    let mut after = String::new();
    loop {
        let page = reader.streams(&after, PAGE).await.map_err(|error| unread(&place, error))?;
        let Some(last) = page.last() else { break };
        after = last.stream.clone();
        if context.json {
            let lines: String = page.iter().map(|stream| line::stream(stream) + "\n").collect();
            if !terminal::print_while_read(&shown(&lines))? {
                return Ok(Exit::Ok);
            }
            continue;
        }
        rows.extend(page.into_iter().map(|stream| {
            let snapshot = stream.snapshot_version.map_or("-".to_owned(), |version| version.to_string());
            vec![stream.stream, stream.stream_type, stream.version.to_string(), snapshot]
        }));
    }
    if !context.json {
        terminal::print(&terminal::table(&["STREAM", "TYPE", "VERSION", "SNAPSHOT"], &rows))?;
    }
    Ok(Exit::Ok)
}

fn print_lines(events: &[StoredEvent]) -> anyhow::Result<bool> {
    let mut text = String::new();
    for event in events {
        text.push_str(&EventLine::of(event)?.to_string());
        text.push('\n');
    }
    terminal::print_while_read(&shown(&text))
}

fn print_events(events: &[StoredEvent]) -> anyhow::Result<bool> {
    let line = |event: &StoredEvent| {
        let StoredEvent { position, stream, version, kind, time, data, .. } = event;
        terminal::visible(&format!("{position}  {time}  {stream}/{version}  {kind}  {}", shortened(data))) + "\n"
    };
    terminal::print_while_read(&events.iter().map(line).collect::<String>())
}

/// For a terminal nothing may move the cursor; a program gets the bytes as they stand in the file.
fn shown(lines: &str) -> String {
    if std::io::stdout().is_terminal() { terminal::visible_json(lines) } else { lines.to_owned() }
}

fn shortened(data: &str) -> String {
    const MOST: usize = 120;
    match data.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &data[..end]),
        None => data.to_owned(),
    }
}
