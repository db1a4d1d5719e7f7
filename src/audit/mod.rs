//! The audit: what a relay's source holds, compared with what its sink really holds. Read-only on both sides.
//!
//! In this order, so that a running relay cannot make it err: what the relay has recorded; the rows that are settled by it; where the
//! sink ends; the rows that came since; then the sink, up to that end. Whatever is settled in the first step was acknowledged before
//! the third; whatever arrived before the third was committed before the fourth.
//!
//! The verdict is the [`judge`]'s, which knows nothing of this crate. From the engine comes one thing: the body that an event is
//! expected to have is made by the same [`crate::sink::format`] as the relay's messages. So a fault of that rendering is not found
//! here; the tests' referee finds it, which compares with what the application wrote.
//!
//! Invariants (`tests/it/audits.rs`):
//! 1. Nothing is written, committed, acknowledged or taken away: not in the files, and not at the broker.
//! 2. A fault is named only where it can be known; what cannot be known (pruned rows, retention, others' messages) is said.
//!
//! It needs 64 bytes an event (twice that for a table read by row), and nothing for each message. Start reading at [`audit`].

#[cfg(feature = "amqp")]
mod amqp;
mod file;
pub mod judge;
#[cfg(feature = "kafka")]
mod kafka;
mod progress;
mod report;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use crate::consumer::{self, Start};
use crate::event::{Event, Position};
use crate::sink::{self, Fault};
use crate::source;
use crate::source::filter::Filter;
use crate::source::scan::{Scan, ScanError, Which};
use judge::{Arrival, Book, Due, Expected, Judge, Named, Print, Seen, Verdict};
use progress::Progress;
pub use report::{Example, Found, Report};

/// How many events of each kind of fault are named.
const EXAMPLES_MAX: usize = 20;
/// So many ids that the source does not have are told apart; above, they are counted as messages.
const STRANGERS_MAX: usize = 1_000_000;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be done: what, and the remedy.
    #[error("{0}")]
    Usage(String, String),
    #[error("{0}")]
    Data(String),
    #[error("{path}: {cause}")]
    Source { path: String, is_there: bool, cause: ScanError },
    #[error("{}", .0.detail)]
    Sink(Fault),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Sink(fault)
    }
}

/// What a person adds.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// AMQP: the shadow queue.
    pub queue: Option<String>,
    /// File: what the sink's file was before it was renamed away, oldest first.
    pub older: Vec<PathBuf>,
    /// Others send to the same place.
    pub shared: bool,
}

/// A message, as a sink holds it.
struct Message<'a> {
    /// `None`: it bears no id of ours.
    id: Option<&'a str>,
    lane: u16,
    body: Print,
}

/// What could be read.
#[derive(Default)]
struct Extent {
    /// Lanes whose beginning is no longer there.
    cut: BTreeSet<u16>,
    /// Messages between others are no longer there.
    has_gaps: bool,
}

/// The sink's side.
trait FarSide {
    /// What it is, for the report.
    fn name(&self) -> String;

    /// The body with which the event stands there.
    fn body(&mut self, event: &Event<'_>) -> Print;

    /// Where the event goes, as far as order is concerned: between two places there is none. It is read, too.
    fn place(&mut self, event: &Event<'_>) -> String;

    /// Notes where it ends now.
    fn mark_end(&mut self) -> Result<(), Error>;

    /// Everything up to that end, each lane in its order.
    fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> Result<Extent, Fault>;
}

/// Steps, for whoever watches: what is done, and how far it has come.
pub type Watcher<'a> = &'a mut dyn FnMut(&'static str, u64);

/// Compares. `relays` are all of the configuration: they tell whether the sink is this one's alone.
pub fn audit(
    relay: &consumer::Settings,
    source: &source::Settings,
    relays: &[consumer::Settings],
    options: &Options,
    watch: Watcher<'_>,
) -> Result<Report, Error> {
    let mut far_side = open(relay, options)?;
    let progress = Progress::load(&relay.name, source)?;
    let unread = |cause| {
        let path = source.path.display().to_string();
        Error::Source { path, is_there: source.path.exists(), cause }
    };
    let scan = Scan::open(source).map_err(unread)?;
    let mut reading = Reading {
        filter: Filter::new(&relay.types),
        // Settled rows of a table read by row are met twice.
        book: Book::with_capacity(scan.count().map_err(unread)? as usize * if scan.is_by_row() { 2 } else { 1 }),
        report: Report::new(relay, far_side.name()),
        progress,
    };
    let settled = match (scan.is_by_row(), reading.progress.position) {
        (true, _) => Some(Which::Settled(Position::default())),
        (false, position) => position.map(Which::Settled),
    };
    if let Some(settled) = settled {
        reading.rows(&scan, settled, i64::MIN, &mut *far_side, watch).map_err(unread)?;
    }
    far_side.mark_end()?;
    let after = reading.progress.position.filter(|_| !scan.is_by_row()).map_or(i64::MIN, |position| position.0);
    reading.rows(&scan, Which::All, after, &mut *far_side, watch).map_err(unread)?;
    let Reading { book, mut report, progress, .. } = reading;
    let mut judge = book.close();
    let mut strangers = HashSet::new();
    let extent = read(&mut *far_side, &mut judge, &mut report, &mut strangers, watch)?;
    let verdict = judge.judge();
    let rows_gone = scan.rows_gone().map_err(unread)?;
    let is_shared = options.shared || relays.iter().any(|other| is_same_place(relay, other));
    report.strangers(&verdict, strangers.len() as u64, rows_gone, is_shared);
    let lost = judged(&verdict, relay, &progress, &extent, &mut report);
    report.conclude(&verdict, lost.len() as u64);
    name(&scan, &lost, &verdict, &mut report, watch).map_err(unread)?;
    Ok(report)
}

fn open(relay: &consumer::Settings, options: &Options) -> Result<Box<dyn FarSide>, Error> {
    let usage = |what: &str, remedy: &str| Err(Error::Usage(format!("{}: {what}", relay.name), remedy.into()));
    let (takes_queue, takes_older) = match relay.destination.sink() {
        #[cfg(feature = "amqp")]
        Some(sink::Settings::Amqp(_)) => (true, false),
        Some(sink::Settings::File(_)) => (false, true),
        _ => (false, false),
    };
    if options.queue.is_some() && !takes_queue {
        return usage("--queue is for RabbitMQ", "leave it out");
    }
    if !options.older.is_empty() && !takes_older {
        return usage("--older is for files", "leave it out");
    }
    match relay.destination.sink() {
        #[cfg(feature = "kafka")]
        Some(sink::Settings::Kafka(settings)) => {
            Ok(Box::new(kafka::Kafka::new(settings.clone(), relay.source.clone())))
        }
        #[cfg(feature = "amqp")]
        Some(sink::Settings::Amqp(settings)) => match &options.queue {
            Some(queue) => {
                let far_side = amqp::Amqp::new(settings.clone(), relay.source.clone(), queue.clone());
                Ok(Box::new(far_side.map_err(Fault::unavailable)?))
            }
            None => usage(
                "what consumers took is no longer at RabbitMQ",
                "bind a queue that nobody consumes from to the exchange before the relay starts, best a stream, and name it with --queue",
            ),
        },
        Some(sink::Settings::File(settings)) => match (&settings.path, settings.format) {
            (None, _) => usage("standard output cannot be read back", "write to a file"),
            (Some(path), sink::format::Format::Envelope) => {
                Ok(Box::new(file::Files::new(options.older.clone(), path.clone(), relay.source.clone())))
            }
            (Some(_), _) => usage("the lines of its file bear no ids", "only format = \"envelope\" can be compared"),
        },
        _ => usage("its sink cannot be read back", "audit a relay to Kafka, RabbitMQ or a file"),
    }
}

/// Whether the two may send to the same topic or exchange; files are never shared.
fn is_same_place(relay: &consumer::Settings, other: &consumer::Settings) -> bool {
    #[cfg(any(feature = "kafka", feature = "amqp"))]
    let may_meet = |a: &sink::template::Template, b: &sink::template::Template| match (a.constant(), b.constant()) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    relay.name != other.name
        && match (relay.destination.sink(), other.destination.sink()) {
            #[cfg(feature = "kafka")]
            (Some(sink::Settings::Kafka(a)), Some(sink::Settings::Kafka(b))) => may_meet(&a.topic, &b.topic),
            #[cfg(feature = "amqp")]
            (Some(sink::Settings::Amqp(a)), Some(sink::Settings::Amqp(b))) => may_meet(&a.exchange, &b.exchange),
            _ => false,
        }
}

/// The source's side.
struct Reading {
    filter: Filter,
    book: Book,
    report: Report,
    progress: Progress,
}

impl Reading {
    fn rows(
        &mut self,
        scan: &Scan,
        which: Which,
        mut after: i64,
        far_side: &mut dyn FarSide,
        watch: Watcher<'_>,
    ) -> Result<(), ScanError> {
        let mut count = 0;
        while let Some(page) = scan.page(which, after)? {
            for index in 0..page.batch.len() {
                let event = page.batch.event(index);
                let due = self.due(&event, which);
                let place = far_side.place(&event);
                self.book.expect(Expected {
                    id: Print::of(event.id.as_bytes()),
                    key: Print::of(&[place.as_bytes(), b"\0", &event.hold_key()].concat()),
                    place: event.position.0,
                    body: page.batch.defect(index).is_none().then(|| far_side.body(&event)),
                    due,
                });
            }
            count += page.batch.len() as u64;
            after = page.next;
            watch("events read", count);
        }
        Ok(())
    }

    fn due(&mut self, event: &Event<'_>, which: Which) -> Due {
        let id = Print::of(event.id.as_bytes());
        let counts = &mut self.report;
        let counter = match which {
            _ if self.progress.held.contains(&id) => &mut counts.held,
            // It may have been settled before; what was not is counted in the end.
            Which::All => return Due::Open,
            Which::Settled(_) if self.progress.discarded.contains(&id) => &mut counts.discarded,
            Which::Settled(_) if !self.filter.admits(event.kind) => &mut counts.not_asked_for,
            Which::Settled(_) if self.progress.is_skipped(event.position.0) => &mut counts.skipped,
            Which::Settled(_) => return Due::Arrived,
        };
        *counter += 1;
        Due::Open
    }
}

fn read(
    far_side: &mut dyn FarSide,
    judge: &mut Judge,
    report: &mut Report,
    strangers: &mut HashSet<Print>,
    watch: Watcher<'_>,
) -> Result<Extent, Fault> {
    let mut count = 0;
    far_side.read(&mut |message| {
        count += 1;
        if count % 1_000 == 0 {
            watch("messages read", count);
        }
        let Some(text) = message.id else {
            report.foreign_messages += 1;
            return;
        };
        let id = Print::of(text.as_bytes());
        match judge.arrive(Arrival { id, lane: message.lane, run: 0, body: Some(message.body) }) {
            Seen::First | Seen::Again => {}
            Seen::Altered => report.altered.add(text),
            Seen::Unknown => {
                report.unknown.add(text);
                if strangers.len() < STRANGERS_MAX {
                    strangers.insert(id);
                }
            }
        }
    })
}

/// Of what is missing, that of which it can be known that it was there; the rest is said.
fn judged(
    verdict: &Verdict,
    relay: &consumer::Settings,
    progress: &Progress,
    extent: &Extent,
    report: &mut Report,
) -> Vec<Named> {
    if extent.has_gaps {
        report.cannot_tell(
            verdict.lost.len() as u64,
            "offsets are missing between others (compaction, or somebody's transactions)",
        );
        return Vec::new();
    }
    let is_complete = |lane: &u16| !extent.cut.contains(lane);
    let begins = extent.cut.iter().map(|lane| verdict.first_places.get(lane).copied().unwrap_or(i64::MAX)).max();
    let (expired, missing): (Vec<Named>, Vec<Named>) =
        verdict.lost.iter().copied().partition(|event| begins.is_some_and(|begins| event.place < begins));
    report.cannot_tell(expired.len() as u64, "the sink's oldest messages have expired, and these are no younger");
    let first = verdict.first_places.iter().filter(|(lane, _)| is_complete(lane)).map(|(_, place)| *place).min();
    let begins = (relay.start == Some(Start::Head)).then_some(first.or(progress.position.map(|p| p.0))).flatten();
    let (before, lost): (Vec<Named>, Vec<Named>) =
        missing.into_iter().partition(|event| begins.is_some_and(|begins| event.place < begins));
    report.cannot_tell(before.len() as u64, "start = \"head\": they are older than the first one that arrived");
    lost
}

/// Finds the words for what is known by fingerprints, by reading the source once more.
fn name(
    scan: &Scan,
    lost: &[Named],
    verdict: &Verdict,
    report: &mut Report,
    watch: Watcher<'_>,
) -> Result<(), ScanError> {
    let some = |named: &[Named]| named.iter().take(EXAMPLES_MAX).map(|event| event.id).collect::<HashSet<_>>();
    let (lost, reordered) = (some(lost), some(&verdict.out_of_order_in_the_end));
    let mut left = lost.len() + reordered.len();
    let (mut after, mut count) = (i64::MIN, 0);
    while left > 0 {
        let Some(page) = scan.page(Which::All, after)? else { break };
        for event in page.batch.events() {
            let id = Print::of(event.id.as_bytes());
            for (wanted, kind) in [(&lost, &mut report.lost), (&reordered, &mut report.reordered)] {
                if wanted.contains(&id) {
                    kind.examples.push(Example::of(&event));
                    left -= 1;
                }
            }
        }
        count += page.batch.len() as u64;
        after = page.next;
        watch("events looked up", count);
    }
    Ok(())
}
