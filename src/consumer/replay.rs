//! Replays: a range of settled events sent once more on purpose, marked as such, beside the live flow.
//!
//! Invariants (tests in `tests/it/replays_stand_beside_the_live_flow.rs`):
//! 1. Only what is settled is sent: nothing at or behind the checkpoint's far side, nothing that is held, nothing that was given up.
//! 2. Nothing that the live flow records is touched: a replay has a row, a connection to the source and a sink of its own.
//! 3. How far it came is recorded after every flight: a crash repeats at most a flight (by row, a page).
//!
//! A refused event stops it: it was delivered once, so nothing is lost, and a person decides. An unreachable sink is waited for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::Settings;
use super::courier::Courier;
use super::status::{Replaying, Status};
use crate::clock;
use crate::controls::Seam;
use crate::event::{Batch, Event, Rejection};
use crate::shutdown::{self, Phase};
use crate::sink::{self, Pick};
use crate::source::filter::Filter;
use crate::source::reader::Reader;
use crate::source::scan::{Page, Scan, Which};
use crate::source::{self, StatePlace};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::replay::{self, Replay, ReplayState};
use crate::state::{checkpoint, held, resolution};
use crate::telemetry::metric;

/// Events of one flight.
const FLIGHT_EVENTS_MAX: usize = 500;
/// Before what cannot be recorded is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// With a rate, a flight is what may be sent in so long.
const RATE_STEP: f64 = 0.1;

/// Which events are to be sent again: those that everything said here fits.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Limit>,
    /// Inclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Limit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Patterns with `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// Events a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Another sink than the relay's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_sink: Option<String>,
}

/// An end of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    Position(i64),
    /// Microseconds since 1970 UTC, of the event's own time.
    Time(i64),
}

/// The sinks of the configuration, for replays that go elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sinks {
    by_name: BTreeMap<String, sink::Settings>,
    /// Files that relays write: each takes one writer.
    taken: BTreeSet<PathBuf>,
}

impl Sinks {
    pub fn new(by_name: BTreeMap<String, sink::Settings>, relays: &[Settings]) -> Self {
        let files = |relay: &Settings| {
            let files = relay.sinks().into_iter().filter_map(|(_, sink)| sink.destination_file());
            files.map(PathBuf::from).collect::<Vec<_>>()
        };
        Self { by_name, taken: relays.iter().flat_map(files).collect() }
    }

    /// Where a replay of the relay goes, or why it cannot go there.
    fn of(&self, relay: &Settings, wanted: &Wanted) -> Result<sink::Settings, String> {
        let settings = match &wanted.to_sink {
            None => relay.destination.sink().ok_or("a projection has no sink")?,
            Some(name) => self.by_name.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
                format!("there is no sink {name}; there are: {}", known.join(", "))
            })?,
        };
        match settings.destination_file() {
            Some(path) if self.taken.contains(path) => Err(format!(
                "{} is written by a relay, and a file takes one writer. Remedy: --to-sink with another sink; or stop the daemon and replay \
                 then",
                path.display()
            )),
            _ => Ok(settings.clone()),
        }
    }
}

impl Wanted {
    fn admits(&self, event: &Event<'_>, types: &Filter) -> bool {
        let is_behind = |limit: &Limit| match limit {
            Limit::Position(position) => event.position.0 >= *position,
            Limit::Time(micros) => event.time_micros.is_some_and(|time| time >= *micros),
        };
        let is_before = |limit: &Limit| match limit {
            Limit::Position(position) => event.position.0 <= *position,
            Limit::Time(micros) => event.time_micros.is_some_and(|time| time <= *micros),
        };
        self.from.as_ref().is_none_or(is_behind)
            && self.to.as_ref().is_none_or(is_before)
            && (self.keys.is_empty() || self.keys.iter().any(|key| event.key == Some(key.as_bytes())))
            && (self.ids.is_empty() || self.ids.iter().any(|id| event.id == id))
            && types.admits(event.kind)
    }

    /// From which place, exclusive, to which the source has to be looked through.
    fn places(&self, by_row: bool, checkpoint: Option<i64>, bounds: (i64, i64)) -> (i64, i64) {
        let (first, last) = (bounds.0.saturating_sub(1), bounds.1);
        if by_row {
            return (first, last);
        }
        let first = match self.from {
            Some(Limit::Position(from)) => from.saturating_sub(1).max(first),
            _ => first,
        };
        let last = match self.to {
            Some(Limit::Position(to)) => to.min(last),
            _ => last,
        };
        let last = last.min(checkpoint.unwrap_or(bounds.0.saturating_sub(1)));
        (first.min(last), last)
    }
}

/// Records that a replay is wanted: what is settled by now is what it covers.
pub async fn begin(
    writer: &Writer,
    source: &source::Settings,
    settings: &Settings,
    wanted: Wanted,
) -> Result<Replay, JobError> {
    let (name, bytes, place) = (settings.name.clone(), settings.bounds.event_bytes_max, source.clone());
    let look = move || {
        Scan::of_delivered(&place, bytes).and_then(|scan| Ok((scan.is_by_row(), scan.bounds()?, scan.numbering())))
    };
    let looked = tokio::task::spawn_blocking(look).await.expect("looking does not panic");
    let (by_row, bounds, numbering) = looked.map_err(|error| refused(&source.name, &error))?;
    let words = serde_json::to_string(&wanted).expect("names and numbers are always JSON");
    let begun = writer.perform(move |connection| {
        let checkpoint = checkpoint::load(connection, &name)?;
        let (first, last) =
            wanted.places(by_row, checkpoint.map(|checkpoint| checkpoint.mark.position.0), bounds.unwrap_or((1, 0)));
        replay::begin(connection, &name, &words, (first, last), numbering)
    });
    begun.await
}

fn refused(source: &str, error: &dyn std::error::Error) -> JobError {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    JobError::Refused(format!("source {source} cannot be read: {error}{cause}"))
}

/// Sees to a consumer's replays.
pub struct Replayer {
    pub settings: Arc<Settings>,
    pub source: Arc<source::Settings>,
    pub reader: Reader,
    pub writer: Writer,
    pub sinks: watch::Receiver<Arc<Sinks>>,
    pub status: watch::Sender<Status>,
    /// The recorded replay was changed.
    pub nudge: Arc<Notify>,
}

/// Why a run of a replay ends before all is sent.
enum Halt {
    /// A person has to act.
    Stopped(String),
    /// It was cancelled, or nothing can be recorded any more.
    Over,
}

impl From<JobError> for Halt {
    fn from(_: JobError) -> Self {
        Halt::Over
    }
}

impl Replayer {
    /// Runs what is recorded as wanted, one after the other, until the daemon ends.
    pub async fn keep(self, mut shutdown: watch::Receiver<Phase>) {
        loop {
            let over = tokio::select! {
                over = self.one() => over,
                () = shutdown::asked(&mut shutdown) => return,
            };
            if !over {
                return;
            }
        }
    }

    /// Runs one, or waits for a change. Says whether to go on.
    async fn one(&self) -> bool {
        let name = self.settings.name.clone();
        let Ok(recorded) = self.writer.perform(move |connection| replay::load(connection, &name)).await else {
            return false;
        };
        match recorded {
            Some(replay) => {
                self.show(&replay);
                if replay.state == ReplayState::Running {
                    tokio::select! {
                        () = async { self.run(replay).await; tokio::time::sleep(PAUSE).await } => {}
                        () = self.nudge.notified() => {}
                    }
                } else {
                    self.nudge.notified().await;
                }
            }
            None => self.nudge.notified().await,
        }
        true
    }

    /// From where it stands to its end.
    pub async fn run(&self, mut replay: Replay) {
        tracing::info!(event = "replay_runs", consumer = %self.settings.name, number = replay.number, place = replay.place);
        match self.send_all(&mut replay).await {
            Ok(()) => replay.state = ReplayState::Done,
            Err(Halt::Stopped(detail)) => {
                replay.state = ReplayState::Stopped;
                replay.detail = detail;
            }
            Err(Halt::Over) => return,
        }
        if self.note(&replay).await.is_ok() {
            let (state, detail) = (replay.state.as_str(), &replay.detail);
            tracing::info!(event = "replay_ended", consumer = %self.settings.name, number = replay.number, state, sent = replay.sent, %detail);
        }
    }

    async fn send_all(&self, replay: &mut Replay) -> Result<(), Halt> {
        let wanted: Wanted = serde_json::from_str(&replay.wanted)
            .map_err(|error| Halt::Stopped(format!("outboxd_replay.wanted is damaged: {error}")))?;
        let sink = self.sinks.borrow().of(&self.settings, &wanted).map_err(Halt::Stopped)?;
        let mut desk = Some(self.desk(&wanted).await?);
        let (settings, bounds) = (&self.settings, &self.settings.bounds);
        let mut courier = Courier::new(sink, &settings.name, &settings.source, bounds.ack_timeout, Seam::Replay);
        let most = wanted.rate.map_or(FLIGHT_EVENTS_MAX, |rate| (f64::from(rate) * RATE_STEP) as usize);
        let most = most.clamp(1, FLIGHT_EVENTS_MAX);
        let mut due = tokio::time::Instant::now();
        loop {
            let mut taken = desk.take().expect("it comes back with its page");
            let (place, upto) = (replay.place, replay.upto);
            let turned = tokio::task::spawn_blocking(move || {
                let leaf = taken.turn(place, upto);
                (taken, leaf)
            });
            let (back, leaf) = turned.await.expect("reading does not panic");
            let by_row = back.scan.is_by_row();
            desk = Some(back);
            let Some(leaf) = leaf.map_err(Halt::Stopped)? else { break };
            replay.left_out += leaf.left_out;
            let batch = Arc::new(leaf.page.batch);
            for picks in leaf.picks.chunks(most) {
                if let Some(rate) = wanted.rate {
                    tokio::time::sleep_until(due).await;
                    due = due.max(tokio::time::Instant::now())
                        + Duration::from_secs_f64(picks.len() as f64 / f64::from(rate.max(1)));
                }
                let carried = courier.carry(&batch, picks.to_vec(), &mut |what| self.show_trouble(what)).await;
                self.account(replay, &batch, picks, carried, by_row).await?;
            }
            replay.place = leaf.page.next.max(place);
            self.note(replay).await?;
        }
        courier.close().await;
        replay.place = replay.upto;
        Ok(())
    }

    /// Records a flight that has come back.
    async fn account(
        &self,
        replay: &mut Replay,
        batch: &Batch,
        picks: &[Pick],
        refused: Vec<(u32, Rejection)>,
        by_row: bool,
    ) -> Result<(), Halt> {
        let first = refused.into_iter().min_by_key(|(index, _)| *index);
        let delivered = picks.iter().take_while(|pick| first.as_ref().is_none_or(|(index, _)| pick.index < *index));
        let delivered: Vec<_> = delivered.collect();
        replay.sent += delivered.len() as u64;
        metric::replayed(&self.settings.name, delivered.len() as u64);
        // By row, places are rowids, which are known of whole pages only.
        if let Some(last) = delivered.last().filter(|_| !by_row) {
            replay.place = batch.position(last.index as usize).0;
        }
        self.note(replay).await?;
        match first {
            None => Ok(()),
            Some((index, rejection)) => Err(Halt::Stopped(format!(
                "event {} was refused ({}: {}). Remedy: mend what refuses it and give the same command again, which goes on there; or begin \
                 behind it with --from",
                batch.event(index as usize).id,
                rejection.reason.as_str(),
                rejection.detail
            ))),
        }
    }

    /// The source and the state, to be read; refused where the table is not the one that the checkpoint was taken from.
    async fn desk(&self, wanted: &Wanted) -> Result<Desk, Halt> {
        let (source, bytes) = (self.source.clone(), self.settings.bounds.event_bytes_max);
        let opened = tokio::task::spawn_blocking(move || {
            let scan = Scan::of_delivered(&source, bytes).map_err(|error| refused(&source.name, &error).to_string())?;
            let state = open::reader(&source.state_path()).map_err(|error| error.to_string())?;
            Ok((scan, state))
        });
        let (mut scan, state) = opened.await.expect("opening does not panic").map_err(Halt::Stopped)?;
        let name = self.settings.name.clone();
        scan.hold_to(self.writer.perform(move |connection| replay::numbering(connection, &name)).await?);
        let name = self.settings.name.clone();
        if let Some(checkpoint) = self.writer.perform(move |connection| checkpoint::load(connection, &name)).await?
            && !scan.is_by_row()
        {
            if checkpoint.definition != scan.definition() || checkpoint.source != self.settings.source {
                let name = &self.settings.name;
                return Err(Halt::Stopped(format!(
                    "the checkpoint of {name} was taken with another mapping. Remedy: `outboxd consumer accept {name}` or `outboxd position \
                     set {name}`, then replay"
                )));
            }
            let mut marks = vec![checkpoint.mark.clone()];
            if self.source.state != StatePlace::Inside {
                marks.extend(checkpoint.witnesses.marks().iter().cloned());
            }
            self.reader.verify(marks).await.map_err(|halt| Halt::Stopped(halt.detail))?;
        }
        Ok(Desk {
            scan,
            state,
            consumer: self.settings.name.clone(),
            wanted: wanted.clone(),
            asked_for: Filter::new(&wanted.types),
            carried: Filter::new(&self.settings.types),
        })
    }

    async fn note(&self, replay: &Replay) -> Result<(), JobError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (name, noted) = (self.settings.name.clone(), replay.clone());
        self.writer
            .submit(move |connection| replay::note(connection, &name, &noted), move |result| drop(reply.send(result)));
        answer.await.map_err(|_| JobError::Ended)??;
        self.show(replay);
        Ok(())
    }

    fn show(&self, replay: &Replay) {
        self.status.send_modify(|status| {
            status.replay = Some(Replaying {
                number: replay.number,
                state: replay.state.as_str().to_owned(),
                sent: replay.sent,
                left_out: replay.left_out,
                first: replay.first,
                place: replay.place,
                upto: replay.upto,
                detail: replay.detail.clone(),
                updated_at: clock::iso(clock::now_micros()),
            });
        });
    }

    fn show_trouble(&self, what: &str) {
        self.status.send_if_modified(|status| {
            let Some(replaying) = status.replay.as_mut().filter(|replaying| replaying.detail != what) else {
                return false;
            };
            what.clone_into(&mut replaying.detail);
            true
        });
    }
}

/// What is read for a replay, on a thread that may block.
struct Desk {
    scan: Scan,
    state: Connection,
    consumer: String,
    wanted: Wanted,
    asked_for: Filter,
    /// Only what the relay carries was delivered.
    carried: Filter,
}

struct Leaf {
    page: Page,
    picks: Vec<Pick>,
    left_out: u64,
}

impl Desk {
    /// The next page behind `place`, and what of it is to be sent.
    fn turn(&mut self, place: i64, upto: i64) -> Result<Option<Leaf>, String> {
        let unread = |error: &dyn std::fmt::Display| format!("the recorded state cannot be read: {error}");
        // What is settled, and not held, in one snapshot; it stays so.
        let transaction = self.state.unchecked_transaction().map_err(|error| unread(&error))?;
        let checkpoint = checkpoint::load(&transaction, &self.consumer).map_err(|error| unread(&error))?;
        let held = held::behind(&transaction, &self.consumer, place).map_err(|error| unread(&error))?;
        let given_up = resolution::discarded(&transaction, &self.consumer).map_err(|error| unread(&error))?;
        transaction.finish().map_err(|error| unread(&error))?;
        let given_up: HashSet<String> = given_up.into_iter().collect();

        let settled = checkpoint.map_or(i64::MIN, |checkpoint| checkpoint.mark.position.0);
        if !self.scan.is_by_row() && settled < upto {
            return Err("the checkpoint was set back to before the end of this replay: what is behind it is going to be sent anyway. \
                        Remedy: `--cancel` it, and replay when the relay has caught up"
                .to_owned());
        }
        let which = Which::Settled(crate::event::Position(settled));
        let page = self.scan.page_up_to(which, place, upto).map_err(|error| refused("", &error).to_string())?;
        let Some(page) = page else { return Ok(None) };
        let (mut picks, mut left_out) = (Vec::new(), 0);
        for (index, event) in page.batch.events().enumerate() {
            if !self.wanted.admits(&event, &self.asked_for) || !self.carried.admits(event.kind) {
                continue;
            }
            let by_row = self.scan.is_by_row();
            // Of what could not be sent as it is nothing was delivered.
            let never_sent = page.batch.defect(index).is_some() || given_up.contains(event.id);
            if never_sent || (!by_row && held.contains(&event.position.0)) {
                left_out += 1;
            } else {
                picks.push(Pick { replay: true, ..Pick::first(index as u32) });
            }
        }
        Ok(Some(Leaf { page, picks, left_out }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_covers_what_is_settled_and_wanted() {
        let wanted = |from: Option<i64>, to: Option<i64>| Wanted {
            from: from.map(Limit::Position),
            to: to.map(Limit::Position),
            ..Wanted::default()
        };
        assert_eq!(wanted(None, None).places(false, Some(50), (1, 100)), (0, 50));
        assert_eq!(wanted(Some(10), Some(20)).places(false, Some(50), (1, 100)), (9, 20));
        assert_eq!(wanted(Some(60), None).places(false, Some(50), (1, 100)), (50, 50));
        assert_eq!(wanted(None, None).places(false, None, (1, 100)), (0, 0));
        assert_eq!(wanted(Some(10), Some(20)).places(true, Some(50), (1, 100)), (0, 100));
        assert_eq!(wanted(Some(i64::MIN), None).places(false, Some(5), (-7, 100)), (-8, 5));
    }

    #[test]
    fn what_was_asked_for_is_read_as_it_was_written() {
        let all = Wanted {
            from: Some(Limit::Time(7)),
            to: Some(Limit::Position(9)),
            keys: vec!["k".into()],
            ids: vec!["e".into()],
            types: vec!["T*".into()],
            rate: Some(5),
            to_sink: Some("other".into()),
        };
        for wanted in [Wanted::default(), all] {
            let words = serde_json::to_string(&wanted).unwrap();
            assert_eq!(serde_json::from_str::<Wanted>(&words).unwrap(), wanted);
        }
    }
}
