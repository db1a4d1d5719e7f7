//! The engine's own index of held keys: which they are, when their heads are due, and when each is free again.
//!
//! A key is free when its rows are gone and nothing of it that was decided "wait" is unsettled. A key is released only after every
//! lot that was under way when it became held is settled: those may hold later events of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::state::held::{HeldKey, HeldState};

pub type Key = Box<[u8]>;

/// One held key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Rows in the table that hold.
    pub rows: u64,
    /// Events that wait in the window and are not in the table yet.
    pub unsettled: u64,
    pub head: HeldState,
    pub since_micros: i64,
    /// Lots before this one must be settled before the key is released.
    pub barrier_seq: u64,
    pub releasing: bool,
    /// When its head is tried; an older appointment of the key does not count.
    pub due_micros: Option<i64>,
    /// More than the head may be sent: it was just delivered.
    pub flowing: bool,
}

#[derive(Debug, Default)]
pub struct Holds {
    keys: HashMap<Key, Hold>,
    due: BinaryHeap<Reverse<(i64, Key)>>,
    /// Heads that failed together with others: nothing else may be in flight when they are tried again.
    alone: HashSet<Key>,
}

impl Holds {
    pub fn load(&mut self, keys: Vec<HeldKey>, barrier_seq: u64) {
        let before = std::mem::take(&mut self.keys);
        self.due.clear();
        for held in keys {
            let old = before.get(&held.key);
            self.keys.insert(
                held.key.clone(),
                Hold {
                    rows: held.rows,
                    unsettled: old.map_or(0, |old| old.unsettled),
                    head: held.head,
                    since_micros: held.since_micros,
                    barrier_seq: old.map_or(barrier_seq, |old| old.barrier_seq),
                    releasing: old.is_some_and(|old| old.releasing),
                    due_micros: None,
                    flowing: false,
                },
            );
            match held.head {
                HeldState::Retrying => self.schedule(held.key, held.next_attempt_micros.unwrap_or(0)),
                // The row before it is gone (delivered or discarded) and the run ended there.
                HeldState::Waiting => self.schedule(held.key, 0),
                HeldState::Dead | HeldState::Skipped => {}
            }
        }
        // Keys that have nothing in the table any more, but events in the window that were decided "wait".
        for (key, old) in before {
            if old.unsettled > 0 || old.releasing {
                self.keys.entry(key).or_insert(Hold { rows: 0, ..old });
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Hold> {
        self.keys.get_mut(key)
    }

    pub fn all_keys(&self) -> Vec<Key> {
        self.keys.keys().cloned().collect()
    }

    /// Every dead head; counted only when something changed.
    pub fn count(&self, state: HeldState) -> usize {
        self.keys.values().filter(|hold| hold.head == state).count()
    }

    pub fn oldest_micros(&self) -> Option<i64> {
        self.keys.values().map(|hold| hold.since_micros).min()
    }

    /// The key becomes held.
    pub fn hold(&mut self, key: Key, head: HeldState, since_micros: i64, barrier_seq: u64) {
        let fresh = Hold {
            rows: 0,
            unsettled: 0,
            head,
            since_micros,
            barrier_seq,
            releasing: false,
            due_micros: None,
            flowing: false,
        };
        self.keys.insert(key, fresh);
    }

    pub fn schedule(&mut self, key: Key, due_micros: i64) {
        let Some(hold) = self.keys.get_mut(&key) else { return };
        hold.due_micros = Some(due_micros);
        self.due.push(Reverse((due_micros, key)));
    }

    pub fn next_due_micros(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The keys whose time has come and which may be released now; at most `most`. Those that may not yet stay due.
    pub fn take_due(&mut self, now_micros: i64, oldest_seq: u64, nothing_in_flight: bool, most: usize) -> Vec<Key> {
        let mut taken = Vec::new();
        let mut later = Vec::new();
        while taken.len() < most {
            match self.due.peek() {
                Some(Reverse((due, _))) if *due <= now_micros => {}
                _ => break,
            }
            let Some(Reverse((due, key))) = self.due.pop() else { break };
            let Some(hold) = self.keys.get_mut(&key) else { continue };
            if hold.releasing || hold.head == HeldState::Dead || hold.due_micros != Some(due) {
                continue;
            }
            if hold.barrier_seq > oldest_seq || (self.alone.contains(&key) && !nothing_in_flight) {
                later.push(Reverse((due, key)));
                continue;
            }
            hold.releasing = true;
            hold.due_micros = None;
            let alone = self.alone.contains(&key);
            taken.push(key);
            if alone {
                break;
            }
        }
        self.due.extend(later);
        taken
    }

    /// From now on the key's head is tried only when nothing else is in flight.
    pub fn suspect(&mut self, key: Key) {
        self.alone.insert(key);
    }

    pub fn is_suspect(&self, key: &[u8]) -> bool {
        self.alone.contains(key)
    }

    pub fn acquit(&mut self, key: &[u8]) {
        self.alone.remove(key);
    }

    /// Some head must be tried with nothing else in flight.
    pub fn wants_silence(&self) -> bool {
        !self.alone.is_empty()
    }

    /// Something was added behind a key whose head is gone: it goes on with it.
    pub fn follow(&mut self, key: &Key) {
        let idle = |hold: &mut Hold| hold.head == HeldState::Waiting && !hold.releasing && hold.due_micros.is_none();
        if self.keys.get_mut(key).is_some_and(idle) {
            self.schedule(key.clone(), 0);
        }
    }

    /// Lets the key go when nothing of it is left. Says whether it did.
    pub fn free_if_done(&mut self, key: &[u8]) -> bool {
        let done = self.keys.get(key).is_some_and(|hold| hold.rows == 0 && hold.unsettled == 0);
        if done {
            self.keys.remove(key);
            self.alone.remove(key);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }

    #[test]
    fn a_key_is_free_only_when_nothing_of_it_is_left() {
        let mut holds = Holds::default();
        holds.hold(key("a"), HeldState::Retrying, 0, 0);
        holds.get_mut(b"a").unwrap().rows = 1;
        holds.get_mut(b"a").unwrap().unsettled = 1;
        assert!(!holds.free_if_done(b"a"));
        holds.get_mut(b"a").unwrap().rows = 0;
        assert!(!holds.free_if_done(b"a"), "an arrival that waits is not in the table yet");
        holds.get_mut(b"a").unwrap().unsettled = 0;
        assert!(holds.free_if_done(b"a"));
        assert!(holds.is_empty());
    }

    #[test]
    fn a_key_waits_for_the_lots_that_were_under_way() {
        let mut holds = Holds::default();
        holds.hold(key("a"), HeldState::Retrying, 0, 5);
        holds.schedule(key("a"), 10);
        assert!(holds.take_due(9, 9, true, 8).is_empty(), "not due yet");
        assert!(holds.take_due(10, 4, true, 8).is_empty(), "lot 4 is not settled");
        assert_eq!(holds.take_due(10, 5, true, 8), [key("a")]);
        assert!(holds.take_due(10, 5, true, 8).is_empty(), "it is being released");
    }

    #[test]
    fn a_suspect_is_tried_alone() {
        let mut holds = Holds::default();
        for name in ["a", "b"] {
            holds.hold(key(name), HeldState::Retrying, 0, 0);
            holds.schedule(key(name), 1);
        }
        holds.suspect(key("a"));
        assert!(holds.wants_silence());
        assert_eq!(holds.take_due(1, 0, false, 8), [key("b")]);
        assert_eq!(holds.take_due(1, 0, true, 8), [key("a")]);
    }
}
