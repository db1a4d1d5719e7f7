//! The referee: compares what an application durably committed, by its own ledger, with what really arrived.
//!
//! It shares no code with the daemon: `tests/it/house.rs` sees that nothing of `outboxd` is named here but its pure judge, which
//! imports nothing itself and is tested here on doctored logs, one for each kind of fault.

mod doctored;
mod ledger;

use std::collections::{BTreeMap, HashMap, HashSet};

pub use ledger::{Entry, Ledger};
/// What bytes are known by.
pub use outboxd::audit::judge::Print;
use outboxd::audit::judge::{self, Book, Due, Expected, Named};

/// A message at the far side, in the order in which it stands there.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub id: String,
    /// Within a lane (a partition, a queue) there is an order; across lanes there is none.
    pub lane: u32,
    /// Which run of the daemon sent it.
    pub run: u32,
    /// What its body's bytes are known by; `None` where the reader did not look.
    pub body: Option<Print>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Committed, and neither arrived nor among the held.
    pub lost: Vec<String>,
    /// Arrived, and never committed.
    pub phantom: Vec<String>,
    /// Arrived with other bytes than were committed.
    pub altered: Vec<String>,
    /// First deliveries that came after a later event of their key.
    pub out_of_order: Vec<String>,
    /// Last deliveries that came after a last delivery of a later event of their key: what a consumer ends up with.
    pub out_of_order_in_the_end: Vec<String>,
    /// Keys whose events came over more than one lane: nobody could keep their order.
    pub scattered: Vec<String>,
    pub duplicates: usize,
    /// Events that a run sent although an earlier run's copy had arrived: what each kill of the daemon repeated.
    pub repeated_by_run: BTreeMap<u32, usize>,
    /// Events that came twice within one run: what the broker's troubles repeated.
    pub repeated_within_run: BTreeMap<u32, usize>,
}

impl Judgement {
    pub fn is_clean(&self) -> bool {
        self.out_of_order.is_empty() && self.is_clean_in_the_end()
    }

    /// Nothing is missing or altered, and whoever reads to the end has each key's last deliveries in order. Events in flight behind a
    /// refused one may have come before it; they are sent again behind it.
    pub fn is_clean_in_the_end(&self) -> bool {
        self.lost.is_empty()
            && self.phantom.is_empty()
            && self.altered.is_empty()
            && self.out_of_order_in_the_end.is_empty()
            && self.scattered.is_empty()
    }

    /// A few words: counts, and the first of each kind.
    pub fn summary(&self) -> String {
        let some = |what: &str, ids: &[String]| match ids.first() {
            None => format!("{what} 0"),
            Some(first) => format!("{what} {} ({first}, ..)", ids.len()),
        };
        let at_most = |map: &BTreeMap<u32, usize>| map.values().copied().max().unwrap_or(0);
        format!(
            "{}, {}, {}, {}, {}, {}, duplicates {} (by a restart: {:?}; most {}; within a run: {:?}; most {})",
            some("lost", &self.lost),
            some("phantom", &self.phantom),
            some("altered", &self.altered),
            some("out of order", &self.out_of_order),
            some("in the end", &self.out_of_order_in_the_end),
            some("scattered", &self.scattered),
            self.duplicates,
            self.repeated_by_run.values().collect::<Vec<_>>(),
            at_most(&self.repeated_by_run),
            self.repeated_within_run.values().collect::<Vec<_>>(),
            at_most(&self.repeated_within_run),
        )
    }
}

/// `held` are the ids of held events. Arrivals of one lane stand in its order.
pub fn judge(ledger: &[Entry], held: &[String], arrivals: &[Arrival]) -> Judgement {
    let book_of: HashMap<Print, &Entry> = ledger.iter().map(|entry| (Print::of(entry.id.as_bytes()), entry)).collect();
    assert_eq!(book_of.len(), ledger.len(), "the book has an id twice");
    let held: HashSet<&str> = held.iter().map(String::as_str).collect();
    let mut book = Book::with_capacity(ledger.len());
    for entry in ledger {
        book.expect(Expected {
            id: Print::of(entry.id.as_bytes()),
            key: Print::of(entry.key.as_bytes()),
            place: entry.number.into(),
            body: Some(entry.body),
            due: if held.contains(entry.id.as_str()) { Due::Open } else { Due::Arrived },
        });
    }
    let mut judge = book.close();
    let mut judgement = Judgement::default();
    for arrival in arrivals {
        let id = Print::of(arrival.id.as_bytes());
        let (lane, run) = (arrival.lane.try_into().unwrap(), arrival.run.try_into().unwrap());
        match judge.arrive(judge::Arrival { id, lane, run, body: arrival.body }) {
            judge::Seen::Unknown => judgement.phantom.push(arrival.id.clone()),
            judge::Seen::Altered => judgement.altered.push(arrival.id.clone()),
            judge::Seen::First | judge::Seen::Again => {}
        }
    }
    let verdict = judge.judge();
    let ids = |named: &[Named]| named.iter().map(|event| book_of[&event.id].id.clone()).collect();
    let counts = |of: BTreeMap<u16, u64>| of.into_iter().map(|(run, n)| (run.into(), n as usize)).collect();
    Judgement {
        lost: ids(&verdict.lost),
        out_of_order: ids(&verdict.out_of_order),
        out_of_order_in_the_end: ids(&verdict.out_of_order_in_the_end),
        scattered: verdict.scattered.iter().map(|event| book_of[&event.id].key.clone()).collect(),
        duplicates: verdict.duplicates as usize,
        repeated_by_run: counts(verdict.repeated_by_run),
        repeated_within_run: counts(verdict.repeated_within_run),
        ..judgement
    }
}
