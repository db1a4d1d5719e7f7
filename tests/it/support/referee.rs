//! Compares an application's book with what really arrived. It shares no code with the daemon.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A committed event, in the application's book.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    pub key: String,
    /// Counts the key's events from 1.
    pub number: u32,
}

/// A message at the far side, in the order in which it stands there.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub id: String,
    /// Within a lane (a partition, a queue) there is an order; across lanes there is none.
    pub lane: u32,
    /// Which run of the daemon sent it.
    pub run: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Committed, and neither arrived nor among the held.
    pub lost: Vec<String>,
    /// Arrived, and never committed.
    pub phantom: Vec<String>,
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

    /// Nothing is missing, and whoever reads to the end has each key's last deliveries in order. Events in flight behind a refused one
    /// may have come before it; they are sent again behind it.
    pub fn is_clean_in_the_end(&self) -> bool {
        self.lost.is_empty()
            && self.phantom.is_empty()
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
            "{}, {}, {}, {}, {}, duplicates {} (by a restart: {:?}; most {}; within a run: {:?}; most {})",
            some("lost", &self.lost),
            some("phantom", &self.phantom),
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
    let book: HashMap<&str, &Entry> = ledger.iter().map(|entry| (entry.id.as_str(), entry)).collect();
    assert_eq!(book.len(), ledger.len(), "the book has an id twice");
    let mut judgement = Judgement::default();
    let mut runs_of: HashMap<&str, Vec<u32>> = HashMap::new();
    let mut newest: HashMap<&str, u32> = HashMap::new();
    let mut lanes: HashMap<&str, u32> = HashMap::new();
    let mut scattered = BTreeSet::new();
    for arrival in arrivals {
        let Some(entry) = book.get(arrival.id.as_str()) else {
            judgement.phantom.push(arrival.id.clone());
            continue;
        };
        if *lanes.entry(&entry.key).or_insert(arrival.lane) != arrival.lane {
            scattered.insert(entry.key.clone());
        }
        let runs = runs_of.entry(&arrival.id).or_default();
        if runs.is_empty() {
            let newest = newest.entry(&entry.key).or_default();
            if entry.number < *newest {
                judgement.out_of_order.push(arrival.id.clone());
            }
            *newest = entry.number.max(*newest);
        }
        runs.push(arrival.run);
    }
    judgement.out_of_order_in_the_end = out_of_order_in_the_end(&book, arrivals);
    judgement.scattered = scattered.into_iter().collect();
    for runs in runs_of.values() {
        judgement.duplicates += runs.len() - 1;
        let distinct: BTreeSet<u32> = runs.iter().copied().collect();
        for run in distinct.iter().skip(1) {
            *judgement.repeated_by_run.entry(*run).or_default() += 1;
        }
        for run in distinct {
            let copies = runs.iter().filter(|other| **other == run).count();
            if copies > 1 {
                *judgement.repeated_within_run.entry(run).or_default() += copies - 1;
            }
        }
    }
    let held: HashSet<&str> = held.iter().map(String::as_str).collect();
    let is_lost = |entry: &&Entry| !runs_of.contains_key(entry.id.as_str()) && !held.contains(entry.id.as_str());
    judgement.lost = ledger.iter().filter(is_lost).map(|entry| entry.id.clone()).collect();
    judgement
}

fn out_of_order_in_the_end(book: &HashMap<&str, &Entry>, arrivals: &[Arrival]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut oldest: HashMap<&str, u32> = HashMap::new();
    let mut wrong = Vec::new();
    for arrival in arrivals.iter().rev() {
        let Some(entry) = book.get(arrival.id.as_str()).filter(|_| seen.insert(arrival.id.as_str())) else { continue };
        let oldest = oldest.entry(&entry.key).or_insert(entry.number);
        if entry.number > *oldest {
            wrong.push(arrival.id.clone());
        }
        *oldest = entry.number.min(*oldest);
    }
    wrong
}

/// Two keys, `a` and `b`, with three events each.
fn book() -> Vec<Entry> {
    let entry = |key: &str, number| Entry { id: format!("{key}{number}"), key: key.into(), number };
    (1..=3).flat_map(|number| [entry("a", number), entry("b", number)]).collect()
}

/// `a1 b1 a2:1`: ids with the run, on one lane.
fn log(text: &str) -> Vec<Arrival> {
    text.split_whitespace()
        .map(|word| {
            let (id, run) = word.split_once(':').unwrap_or((word, "0"));
            Arrival { id: id.into(), lane: 0, run: run.parse().unwrap() }
        })
        .collect()
}

#[test]
fn a_good_log_is_clean() {
    let judgement = judge(&book(), &[], &log("a1 b1 b2 a2 b3 a3"));
    assert_eq!(judgement, Judgement::default());
    assert!(judgement.is_clean());
}

#[test]
fn what_is_missing_is_lost_unless_it_is_held() {
    let judged = judge(&book(), &[], &log("a1 b1 b2 a2 a3"));
    assert_eq!((judged.lost.as_slice(), judged.is_clean()), (&["b3".to_owned()][..], false));
    assert!(judge(&book(), &["b3".into()], &log("a1 b1 b2 a2 a3")).is_clean());
}

#[test]
fn what_nobody_committed_is_a_phantom() {
    let judged = judge(&book(), &[], &log("a1 b1 c1 b2 a2 b3 a3"));
    assert_eq!((judged.phantom.as_slice(), judged.is_clean()), (&["c1".to_owned()][..], false));
}

#[test]
fn a_first_delivery_behind_a_later_one_is_out_of_order() {
    let judged = judge(&book(), &[], &log("a1 b1 a3 b2 a2 b3"));
    assert_eq!((judged.out_of_order.as_slice(), judged.is_clean()), (&["a2".to_owned()][..], false));
    // A later copy of an event that had come in its turn is a duplicate and nothing else.
    assert!(judge(&book(), &[], &log("a1 b1 a2 a3 a2 a3 b2 b3")).is_clean());
}

#[test]
fn what_was_in_flight_behind_a_refused_event_is_made_good_by_coming_again() {
    let judged = judge(&book(), &[], &log("a1 b1 a3 b2 a2 a3 b3"));
    assert_eq!((judged.out_of_order.len(), judged.is_clean(), judged.is_clean_in_the_end()), (1, false, true));
    let judged = judge(&book(), &[], &log("a1 b1 a2 a3 b2 a2 b3"));
    assert_eq!(
        (judged.out_of_order_in_the_end.as_slice(), judged.is_clean_in_the_end()),
        (&["a3".to_owned()][..], false)
    );
}

#[test]
fn a_key_on_two_lanes_is_scattered() {
    let mut arrivals = log("a1 b1 b2 a2 b3 a3");
    arrivals[3].lane = 1;
    let judged = judge(&book(), &[], &arrivals);
    assert_eq!((judged.scattered.as_slice(), judged.is_clean()), (&["a".to_owned()][..], false));
}

#[test]
fn duplicates_are_counted_for_the_run_that_made_them() {
    let judged = judge(&book(), &[], &log("a1 b1 a2 a1:1 b1:1 a2:1 a3:1 a3:1 b2:1 b2:2 b3:2 a3:2"));
    assert!(judged.is_clean());
    assert_eq!(judged.duplicates, 6);
    assert_eq!(judged.repeated_by_run, BTreeMap::from([(1, 3), (2, 2)]));
    assert_eq!(judged.repeated_within_run, BTreeMap::from([(1, 1)]));
}
