//! `outboxd events append`.

use std::io::{self, BufRead, Read};

use super::line::{self, Defaults};
use super::{Place, unopened};
use crate::cli::{Context, Exit, Failure, terminal};
use crate::config::Span;
use crate::controls;
use crate::sqlite::open::Durable;
use crate::store::event::{Append, Appended, BYTES_MAX, EVENTS_MAX, Expected};
use crate::store::fault::{AppendError, AppendsError};
use crate::store::{EventStore, Options};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A source of the configuration, or a file (with a dot or a slash in it)
    #[arg(value_name = "SOURCE|FILE")]
    store: String,
    /// All lines are for this stream, and one append
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,
    /// The stream's type, for lines that do not say it
    #[arg(long, value_name = "TYPE")]
    stream_type: Option<String>,
    /// With --stream: `any`, `none`, `exists` or the version that the stream must have
    #[arg(long, value_name = "VERSION", requires = "stream", value_parser = line::expected)]
    expected: Option<Expected>,
    /// Append and answer each line by itself; end at the first that fails, behind which nothing is appended
    #[arg(long, conflicts_with = "expected")]
    each: bool,
    /// Write each event into the outbox as well, under the same id, in the same transaction
    #[arg(long)]
    outbox: bool,
    /// How long the file's lock is waited for
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = Span::parse)]
    wait: Span,
}

/// What is to be appended, and the line that it stands in.
type Numbered = (usize, Append);

pub async fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    let place = Place::named(&args.store, context)?;
    let options = Options {
        durable: Durable::Full,
        allow_network_filesystem: place.allow_network_filesystem,
        ..Options::default()
    };
    let store = EventStore::open(&place.path, options).await.map_err(unopened)?;
    if args.each {
        each(&store, args, context).await?;
    } else {
        together(&store, args, context).await?;
    }
    store.close().await;
    Ok(Exit::Ok)
}

async fn together(store: &EventStore, args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut appends: Vec<Numbered> = Vec::new();
    let (mut events, mut bytes) = (0, 0);
    let mut lines = Lines::new(args);
    while let Some(read) = lines.next() {
        let (number, append, length) = read.map_err(|failure| failure.told("nothing was appended"))?;
        events += append.events.len();
        bytes += length;
        if events > EVENTS_MAX || bytes > BYTES_MAX {
            return Err(failed(number, &AppendError::TooMuch).told("nothing was appended").into());
        }
        if args.stream.is_some() {
            let first = appends.first().map_or(&append, |(_, first)| first);
            one_append(number, first, &append).map_err(|failure| failure.told("nothing was appended"))?;
        }
        match appends.first_mut().filter(|_| args.stream.is_some()) {
            Some((_, first)) => {
                first.events.extend(append.events);
                first.outbox.extend(append.outbox);
            }
            None => appends.push((number, append)),
        }
    }
    if let (Some((_, first)), Some(expected)) = (appends.first_mut(), args.expected) {
        first.expected = expected;
    }
    let (numbers, appends): (Vec<usize>, Vec<Append>) = appends.into_iter().unzip();
    let streams: Vec<String> = appends.iter().map(|append| append.stream.clone()).collect();
    if appends.is_empty() {
        return Ok(());
    }
    let done = store.append_all(appends, args.wait.0).await.map_err(|AppendsError { index, error }| {
        let extent = match error.is_known() {
            false => "whether anything was appended is not known: append it again, with the same ids",
            true => "nothing was appended",
        };
        failed(numbers[index], &error).told(extent)
    })?;
    let told =
        numbers.iter().zip(&streams).zip(done).map(|((number, stream), done)| told(*number, stream, done, context));
    terminal::print(&told.collect::<String>())
}

/// With --stream, all lines are one append.
fn one_append(line: usize, first: &Append, next: &Append) -> Result<(), Failed> {
    let reason = match (next.expected == Expected::Any, next.stream_type == first.stream_type) {
        (false, _) => "with --stream, --expected says for all lines what is expected; no line does",
        (_, false) => "with --stream, all lines are of one stream_type",
        _ => return Ok(()),
    };
    Err(Failed { line, exit: Exit::Data, reason: reason.to_owned(), remedy: "mend the line, or leave --stream out" })
}

async fn each(store: &EventStore, args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut lines = Lines::new(args);
    while let Some(read) = lines.next() {
        let extent = |number: usize| match number {
            1 => "nothing was appended".to_owned(),
            _ => format!("the lines before it were appended, from line {number} on nothing was"),
        };
        let (number, append, _) = read.map_err(|failure| failure.told(&extent(failure.line)))?;
        let stream = append.stream.clone();
        let done = store.append(append, args.wait.0).await.map_err(|error| {
            let extent = match error.is_known() {
                true => extent(number),
                false if number == 1 => "whether it was appended is not known".to_owned(),
                false => format!(
                    "the lines before it were appended; whether line {number} was is not known, and nothing behind it was"
                ),
            };
            failed(number, &error).told(&extent)
        })?;
        // Who no longer reads the answers is not served any further.
        if !terminal::print_while_read(&told(number, &stream, done, context))? {
            return Ok(());
        }
    }
    Ok(())
}

fn told(number: usize, stream: &str, done: Appended, context: &Context) -> String {
    if context.json {
        return line::appended(number, stream, done) + "\n";
    }
    let versions = match done.last_version - done.first_version {
        0 => format!("version {}", done.first_version),
        _ => format!("versions {} to {}", done.first_version, done.last_version),
    };
    let again = if done.is_repeat { ", was there already" } else { "" };
    format!("{}: {versions}{again}\n", terminal::visible(stream))
}

/// A line that was not appended.
struct Failed {
    line: usize,
    exit: Exit,
    reason: String,
    remedy: &'static str,
}

impl Failed {
    fn told(&self, extent: &str) -> Failure {
        Failure::new(
            self.exit,
            format!("line {}: {}; {extent}", self.line, terminal::visible(&self.reason)),
            self.remedy,
        )
    }
}

fn failed(line: usize, error: &AppendError) -> Failed {
    let (exit, remedy) = match error {
        AppendError::Locked => (Exit::Locked, "try again, or wait for longer (--wait)"),
        // A constraint or trigger of the application's own.
        AppendError::Sqlite { code, .. } if code & 0xff == 19 => {
            (Exit::Data, "mend the line, or ask whoever made the constraint")
        }
        AppendError::Sqlite { .. } => (Exit::Io, "see whether the disk is full, or fails"),
        AppendError::Unknown { .. } => (
            Exit::Io,
            "see whether the disk fails; then append it again, with the same ids: what is there already is not appended twice",
        ),
        AppendError::Ended => (Exit::Unavailable, "append it again, with the same ids"),
        AppendError::Conflict { .. } => (Exit::Data, "look at what was appended meanwhile, and decide anew"),
        AppendError::TooMuch => (Exit::Data, "append it in parts, or line by line (--each)"),
        _ => (Exit::Data, "mend the line, and append them all again: what has an id is not appended twice"),
    };
    Failed { line, exit, reason: error.to_string(), remedy }
}

/// Standard input, line by line.
struct Lines<'a> {
    input: io::StdinLock<'static>,
    number: usize,
    defaults: Defaults<'a>,
}

impl<'a> Lines<'a> {
    fn new(args: &'a Args) -> Self {
        let defaults =
            Defaults { stream: args.stream.as_deref(), stream_type: args.stream_type.as_deref(), outbox: args.outbox };
        Self { input: io::stdin().lock(), number: 0, defaults }
    }

    /// The next line that is not empty: its number, what it says, and how many bytes it has.
    fn next(&mut self) -> Option<Result<(usize, Append, usize), Failed>> {
        const REMEDY: &str = "mend the line, and append them all again: what has an id is not appended twice";
        loop {
            self.number += 1;
            let failed = |exit, reason| Failed { line: self.number, exit, reason, remedy: REMEDY };
            let mut bytes = Vec::new();
            match (&mut self.input).take(BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(length) if length > BYTES_MAX => {
                    return Some(Err(failed(Exit::Data, "it has more than 64 MiB".to_owned())));
                }
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(length) => {
                    let parsed = line::parse(&bytes, self.defaults);
                    let parsed = parsed.map(|append| (self.number, append, length));
                    return Some(parsed.map_err(|reason| failed(Exit::Data, reason)));
                }
                Err(error) => return Some(Err(failed(Exit::Io, format!("it cannot be read: {error}")))),
            }
        }
    }
}
