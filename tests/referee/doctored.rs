//! The referee itself, on logs that were doctored: it names each kind of fault, and none that is not there.

use std::collections::BTreeMap;

use super::{Arrival, Entry, Judgement, Print, judge};

/// Two keys, `a` and `b`, with three events each; an event's body is its id.
fn book() -> Vec<Entry> {
    let entry = |key: &str, number| {
        let id = format!("{key}{number}");
        Entry { body: Print::of(id.as_bytes()), id, key: key.into(), number }
    };
    (1..=3).flat_map(|number| [entry("a", number), entry("b", number)]).collect()
}

/// `a1 b1 a2:1`: ids with the run, on one lane.
fn log(text: &str) -> Vec<Arrival> {
    text.split_whitespace()
        .map(|word| {
            let (id, run) = word.split_once(':').unwrap_or((word, "0"));
            Arrival { id: id.into(), lane: 0, run: run.parse().unwrap(), body: Some(Print::of(id.as_bytes())) }
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
fn other_bytes_than_were_committed_are_altered() {
    let mut arrivals = log("a1 b1 b2 a2 b3 a3");
    arrivals[4].body = Some(Print::of(b"b3 "));
    let judged = judge(&book(), &[], &arrivals);
    assert_eq!((judged.altered.as_slice(), judged.is_clean()), (&["b3".to_owned()][..], false));
    // A second copy is compared like the first.
    let mut arrivals = log("a1 b1 b2 a2 b3 a3 a3");
    arrivals[6].body = Some(Print::of(b""));
    assert_eq!(judge(&book(), &[], &arrivals).altered, ["a3"]);
    // Two events whose bodies were exchanged are both altered.
    let mut arrivals = log("a1 b1 b2 a2 b3 a3");
    (arrivals[0].body, arrivals[1].body) = (arrivals[1].body, arrivals[0].body);
    assert_eq!(judge(&book(), &[], &arrivals).altered, ["a1", "b1"]);
    // Where nobody looked, nothing is said.
    arrivals.iter_mut().for_each(|arrival| arrival.body = None);
    assert!(judge(&book(), &[], &arrivals).is_clean());
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
    // So is one of which only a second copy came over another lane.
    let mut arrivals = log("a1 b1 b2 a2 b3 a3 a3");
    arrivals[6].lane = 1;
    assert_eq!(judge(&book(), &[], &arrivals).scattered, ["a"]);
}

#[test]
fn duplicates_are_counted_for_the_run_that_made_them() {
    let judged = judge(&book(), &[], &log("a1 b1 a2 a1:1 b1:1 a2:1 a3:1 a3:1 b2:1 b2:2 b3:2 a3:2"));
    assert!(judged.is_clean());
    assert_eq!(judged.duplicates, 6);
    assert_eq!(judged.repeated_by_run, BTreeMap::from([(1, 3), (2, 2)]));
    assert_eq!(judged.repeated_within_run, BTreeMap::from([(1, 1)]));
}

/// Any log that was made by the rules is clean, and one change of each kind is named.
mod by_dice {
    use super::*;
    use crate::support::dice::Dice;

    /// A window's worth is repeated here and there, as after crashes.
    fn ruled(book: &[Entry], dice: &mut Dice) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let (mut next, mut run) = (0, 0);
        while next < book.len() {
            let end = (next + 1 + dice.below(9) as usize).min(book.len());
            arrivals.extend(book[next..end].iter().map(|entry| Arrival {
                id: entry.id.clone(),
                lane: 0,
                run,
                body: Some(entry.body),
            }));
            let is_crash = dice.below(4) == 0;
            run += u32::from(is_crash);
            next = if is_crash { end - dice.below((end - next) as u64) as usize } else { end };
        }
        arrivals
    }

    #[test]
    fn one_doctored_place_is_always_found() {
        let mut dice = Dice::thrown("doctored logs");
        for _ in 0..500 {
            let book = book();
            let arrivals = ruled(&book, &mut dice);
            let judged = judge(&book, &[], &arrivals);
            assert!(judged.is_clean(), "{} {arrivals:?}", judged.summary());
            assert_eq!(judged.duplicates, arrivals.len() - book.len());

            let victim = arrivals[dice.below(arrivals.len() as u64) as usize].id.clone();
            let without: Vec<_> = arrivals.iter().filter(|arrival| arrival.id != victim).cloned().collect();
            assert_eq!(judge(&book, &[], &without).lost, [victim]);

            let mut altered = arrivals.clone();
            let at = dice.below(altered.len() as u64) as usize;
            altered[at].body = Some(Print::of(b"something else"));
            assert_eq!(judge(&book, &[], &altered).altered, [altered[at].id.clone()]);

            // The first event of a key, at the very end and nowhere before.
            let mut late = arrivals.clone();
            late.retain(|arrival| arrival.id != "a1");
            late.extend(log("a1"));
            let judged = judge(&book, &[], &late);
            assert_eq!((judged.out_of_order.as_slice(), judged.is_clean_in_the_end()), (&["a1".to_owned()][..], false));
        }
    }
}
