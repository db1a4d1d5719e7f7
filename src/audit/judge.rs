//! The judge: what was to arrive, what arrived, and what is wrong between the two. Pure; it imports nothing of this crate, so that the
//! tests' referee can use it without sharing code with what it judges.
//!
//! An event is known to it by fingerprints (128 bits of SHA-256) and a place within its key: 64 bytes an event, which is 64 MB for a
//! million and 640 MB for ten million; arrivals are not kept. A [`Book`] takes what was to arrive, a [`Judge`] what arrived.
//!
//! It decides (`tests/referee`, on doctored logs):
//! * lost: acknowledged by all that is known, and did not arrive;
//! * unknown: arrived, and stands in no book (whether that is a phantom, its caller has to know);
//! * out of order: a first delivery behind that of a later event of its key; in the end: the same of last deliveries, which is what a
//!   consumer that reads to the end is left with;
//! * scattered: a key that came over several lanes, between which there is no order;
//! * duplicates, by the run that made them; altered bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

use sha2::{Digest, Sha256};

/// The first half of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Print(u64, u64);

impl Print {
    pub fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let half = |from: usize| digest[from..from + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Print(half(0), half(8))
    }

    /// What `sha256sum` prints.
    pub fn parse(hex: &str) -> Option<Self> {
        let half = |from: usize| u64::from_str_radix(hex.get(from..from + 16)?, 16).ok();
        Some(Print(half(0)?, half(16)?))
    }

    /// What is compared of a body.
    fn short(self) -> NonZeroU64 {
        NonZeroU64::new(self.0).unwrap_or(NonZeroU64::MAX)
    }
}

impl fmt::Display for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

/// What is to be expected of an event; of two words on one event the first in this order counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Due {
    /// It has to be there.
    Arrived,
    /// It may be there.
    Open,
}

/// An event that was committed.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub id: Print,
    /// What order is kept by.
    pub key: Print,
    /// Grows along the key.
    pub place: i64,
    /// `None`: not compared.
    pub body: Option<Print>,
    pub due: Due,
}

/// A message at the far side.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub id: Print,
    /// Within a lane (a partition, a queue) there is an order, in which its messages are handed in.
    pub lane: u16,
    /// Which run of the daemon sent it, where that is known.
    pub run: u16,
    pub body: Option<Print>,
}

/// What an arrival is, at first sight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    First,
    Again,
    /// With another body than expected, for the first time or again.
    Altered,
    /// In no book.
    Unknown,
}

struct Entry {
    id: Print,
    key: u64,
    place: i64,
    body: Option<NonZeroU64>,
    /// When it arrived first and last, counted in arrivals from 1.
    first: u32,
    last: u32,
    copies: u32,
    /// Of the last arrival.
    run: u16,
    /// Of the first arrival.
    lane: u16,
    due: Due,
    /// It came over another lane, too.
    strayed: bool,
}

/// What was to arrive.
#[derive(Default)]
pub struct Book(Vec<Entry>);

impl Book {
    pub fn with_capacity(events: usize) -> Self {
        Self(Vec::with_capacity(events))
    }

    pub fn expect(&mut self, event: Expected) {
        self.0.push(Entry {
            id: event.id,
            key: event.key.0,
            place: event.place,
            body: event.body.map(Print::short),
            first: 0,
            last: 0,
            copies: 0,
            run: 0,
            lane: 0,
            due: event.due,
            strayed: false,
        });
    }

    pub fn close(mut self) -> Judge {
        self.0.sort_unstable_by_key(|entry| (entry.id, entry.due));
        self.0.dedup_by_key(|entry| entry.id);
        Judge { entries: self.0, arrivals: 0, verdict: Verdict::default() }
    }
}

/// Takes what arrived.
pub struct Judge {
    entries: Vec<Entry>,
    arrivals: u32,
    verdict: Verdict,
}

/// An event that something is wrong with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named {
    pub id: Print,
    pub place: i64,
}

/// What became of it all.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events that had to arrive.
    pub due: u64,
    /// Events that could, but did not have to.
    pub open: u64,
    /// Messages that were handed in.
    pub arrivals: u64,
    /// Events that arrived.
    pub arrived: u64,
    pub lost: Vec<Named>,
    /// Messages of events that are in no book.
    pub unknown: u64,
    /// Messages whose bytes are others.
    pub altered: u64,
    pub out_of_order: Vec<Named>,
    pub out_of_order_in_the_end: Vec<Named>,
    /// One event of each key that came over several lanes; its order is not judged.
    pub scattered: Vec<Named>,
    /// Messages more than events.
    pub duplicates: u64,
    /// Events that a run sent although an earlier one's copy had arrived.
    pub repeated_by_run: BTreeMap<u16, u64>,
    /// Messages that a run sent more than once.
    pub repeated_within_run: BTreeMap<u16, u64>,
    /// The lowest place that arrived on each lane.
    pub first_places: BTreeMap<u16, i64>,
}

impl Judge {
    pub fn arrive(&mut self, arrival: Arrival) -> Seen {
        self.arrivals = self.arrivals.checked_add(1).expect("fewer than four billion messages are compared at once");
        let verdict = &mut self.verdict;
        let Ok(at) = self.entries.binary_search_by_key(&arrival.id, |entry| entry.id) else {
            verdict.unknown += 1;
            return Seen::Unknown;
        };
        let entry = &mut self.entries[at];
        let is_first = entry.copies == 0;
        if is_first {
            (entry.first, entry.lane) = (self.arrivals, arrival.lane);
            let lowest = verdict.first_places.entry(arrival.lane).or_insert(entry.place);
            *lowest = entry.place.min(*lowest);
        } else if entry.run == arrival.run {
            *verdict.repeated_within_run.entry(arrival.run).or_default() += 1;
        } else {
            *verdict.repeated_by_run.entry(arrival.run).or_default() += 1;
        }
        entry.strayed |= entry.lane != arrival.lane;
        (entry.last, entry.run) = (self.arrivals, arrival.run);
        entry.copies += 1;
        let is_altered = matches!((entry.body, arrival.body), (Some(due), Some(body)) if due != body.short());
        match (is_altered, is_first) {
            (true, _) => {
                verdict.altered += 1;
                Seen::Altered
            }
            (false, true) => Seen::First,
            (false, false) => Seen::Again,
        }
    }

    pub fn judge(self) -> Verdict {
        let Judge { mut entries, arrivals, mut verdict } = self;
        verdict.arrivals = u64::from(arrivals);
        entries.sort_unstable_by_key(|entry| (entry.key, entry.place));
        for entry in &entries {
            verdict.due += u64::from(entry.due == Due::Arrived);
            verdict.open += u64::from(entry.due == Due::Open);
            verdict.arrived += u64::from(entry.copies > 0);
            verdict.duplicates += u64::from(entry.copies.saturating_sub(1));
            if entry.due == Due::Arrived && entry.copies == 0 {
                verdict.lost.push(entry.named());
            }
        }
        for key in entries.chunk_by(|a, b| a.key == b.key) {
            verdict.judge_order(key);
        }
        verdict
    }
}

impl Entry {
    fn named(&self) -> Named {
        Named { id: self.id, place: self.place }
    }
}

impl Verdict {
    /// The events of one key, by place.
    fn judge_order(&mut self, key: &[Entry]) {
        let arrived = || key.iter().filter(|entry| entry.copies > 0);
        let Some(some) = arrived().next() else { return };
        if arrived().any(|entry| entry.strayed || entry.lane != some.lane) {
            return self.scattered.push(some.named());
        }
        let mut earliest_of_later = u32::MAX;
        for entry in arrived().rev() {
            if earliest_of_later < entry.first {
                self.out_of_order.push(entry.named());
            }
            earliest_of_later = earliest_of_later.min(entry.first);
        }
        let mut latest_of_earlier = 0;
        for entry in arrived() {
            if latest_of_earlier > entry.last {
                self.out_of_order_in_the_end.push(entry.named());
            }
            latest_of_earlier = latest_of_earlier.max(entry.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_sha256sum_prints() {
        let printed = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Print::parse(printed), Some(Print::of(b"abc")));
        assert_eq!(Print::of(b"abc").to_string(), printed[..32]);
        assert_eq!(Print::parse("ba78"), None);
    }

    #[test]
    fn an_event_costs_what_the_document_says() {
        assert_eq!(size_of::<Entry>(), 64);
    }
}
