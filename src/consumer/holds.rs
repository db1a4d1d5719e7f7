//! The engine's own index of held keys: which they are, when their heads are due, and when each is free again.
//!
//! A key is *announced* as soon as a refusal of it is known, and *recorded* with the settlement that writes its row: from the
//! announcement on nothing of it is sent. It is free when its rows are gone and nothing of it that was decided "wait" is
//! unsettled. It is released only after every lot that was under way when it was recorded is settled: those may hold later events
//! of it.
//!
//! On its way to its release a key is due (by time), then behind its lots, then ready (in turn), then under way. A key has one
//! appointment; what is left of older ones in the queues is passed over.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};

use crate::clock::Moment;
use crate::controls::{self, Protection};
use crate::state::held::{HeldKey, HeldState};

pub type Key = Box<[u8]>;

/// One held key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Its row is in a settlement, or in the table.
    pub is_recorded: bool,
    /// Events that wait in the window and are not in the table yet.
    pub unsettled: u64,
    pub head: HeldState,
    pub since_micros: i64,
    /// Lots before this one must be settled before the key is released.
    pub barrier_seq: u64,
    /// Goes up with everything that may have added rows: what was loaded before may not be all.
    pub added: u64,
    /// More than the head may be sent: it was just delivered.
    pub flowing: bool,
    appointment: Appointment,
    /// When its head is to be tried, as it is recorded.
    promise: Option<Moment>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Appointment {
    None,
    /// When its head is tried, by the steady clock.
    Due(i64),
    /// Its time has come.
    Queued,
    UnderWay,
}

#[derive(Debug, Default)]
pub struct Holds {
    keys: HashMap<Key, Hold>,
    due: BinaryHeap<Reverse<(i64, Key)>>,
    /// Those whose time has come, by the lots that they are behind.
    behind: BTreeMap<u64, Vec<Key>>,
    ready: VecDeque<Key>,
    ready_suspects: VecDeque<Key>,
    /// Keys that are being loaded, sent or settled.
    under_way: HashSet<Key>,
    /// Heads that failed together with others: nothing else may be in flight when they are tried again.
    suspects: HashSet<Key>,
}

impl Hold {
    fn new(head: HeldState, since_micros: i64, barrier_seq: u64) -> Self {
        Self {
            is_recorded: true,
            unsettled: 0,
            head,
            since_micros,
            barrier_seq,
            added: 0,
            flowing: false,
            appointment: Appointment::None,
            promise: None,
        }
    }
}

impl Holds {
    /// Takes over what the table says. Returns the keys that are held no more.
    pub fn load(&mut self, keys: Vec<HeldKey>, barrier_seq: u64) -> Vec<Key> {
        let mut before = std::mem::take(&mut self.keys);
        for held in keys {
            let old = before.remove(&held.key);
            let fresh = Hold::new(held.head, held.since_micros, barrier_seq);
            let hold = match old {
                Some(old) if old.is_recorded => Hold { head: held.head, added: old.added + 1, flowing: false, ..old },
                Some(old) => Hold { unsettled: old.unsettled, ..fresh },
                None => fresh,
            };
            self.keys.insert(held.key.clone(), hold);
            match held.head {
                HeldState::Retrying => {
                    let due = held.due.map_or(0, |due| self.promise(&held.key, due));
                    self.schedule(held.key, due);
                }
                // The row before it is gone (delivered or discarded) and the run ended there.
                HeldState::Waiting => self.schedule(held.key, 0),
                HeldState::Dead | HeldState::Skipped => self.rest(&held.key),
            }
        }
        let mut freed = Vec::new();
        for (key, old) in before {
            // Nothing in the table, and yet not free: announced, on its way, or events in the window were decided "wait".
            if !old.is_recorded {
                self.keys.insert(key, old);
            } else if old.unsettled > 0 || old.appointment == Appointment::UnderWay {
                self.keys.insert(key, Hold { head: HeldState::Waiting, added: old.added + 1, ..old });
            } else {
                self.suspects.remove(&key);
                freed.push(key);
            }
        }
        freed
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

    pub fn is_recorded(&self, key: &[u8]) -> bool {
        self.keys.get(key).is_some_and(|hold| hold.is_recorded)
    }

    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Hold> {
        self.keys.get_mut(key)
    }

    pub fn all_keys(&self) -> Vec<Key> {
        self.keys.keys().cloned().collect()
    }

    /// Every head in this state; counted only when something changed.
    pub fn count(&self, state: HeldState) -> usize {
        self.keys.values().filter(|hold| hold.head == state).count()
    }

    pub fn oldest_micros(&self) -> Option<i64> {
        self.keys.values().map(|hold| hold.since_micros).min()
    }

    /// A refusal of the key is known: nothing of it is sent any more.
    pub fn announce(&mut self, key: &[u8], since_micros: i64) {
        if !self.keys.contains_key(key) && !controls::is_off(Protection::Hold) {
            let hold = Hold { is_recorded: false, ..Hold::new(HeldState::Retrying, since_micros, u64::MAX) };
            self.keys.insert(key.into(), hold);
        }
    }

    /// Takes back every announcement that is not recorded: the window announces anew what still stands.
    pub fn withdraw_announcements(&mut self) {
        self.keys.retain(|_, hold| hold.is_recorded);
    }

    /// An event of the key waits, if the key is held. Says whether it is.
    pub fn wait(&mut self, key: &[u8]) -> bool {
        let hold = self.keys.get_mut(key);
        hold.is_some_and(|hold| {
            hold.unsettled += 1;
            true
        })
    }

    /// The key's refusal is in a settlement.
    pub fn record(&mut self, key: &[u8], head: HeldState, since_micros: i64, barrier_seq: u64) {
        if controls::is_off(Protection::Hold) {
            return;
        }
        let unsettled = self.keys.get(key).map_or(0, |hold| hold.unsettled);
        self.keys.insert(key.into(), Hold { unsettled, ..Hold::new(head, since_micros, barrier_seq) });
    }

    /// Takes note of when the key's head is due. By which clock it is waited for is decided when a time is first seen: the clock on the
    /// wall may be set meanwhile. Returns that time by the steady clock.
    pub fn promise(&mut self, key: &[u8], due: Moment) -> i64 {
        let Some(hold) = self.keys.get_mut(key) else { return due.steady_micros };
        let known = hold.promise.filter(|known| known.wall_micros == due.wall_micros);
        hold.promise.insert(known.unwrap_or(due)).steady_micros
    }

    /// Its head is tried at that time, by the steady clock. A key that is under way gets its next appointment when it comes back.
    pub fn schedule(&mut self, key: Key, due_micros: i64) {
        let Some(hold) = self.keys.get_mut(&key) else { return };
        if hold.appointment != Appointment::UnderWay {
            hold.appointment = Appointment::Due(due_micros);
            self.due.push(Reverse((due_micros, key)));
        }
    }

    /// No appointment: somebody or something else decides when the key goes on.
    fn rest(&mut self, key: &[u8]) {
        if let Some(hold) = self.keys.get_mut(key)
            && hold.appointment != Appointment::UnderWay
        {
            hold.appointment = Appointment::None;
        }
    }

    /// When the next head is due; those whose time has come wait for something else than time.
    pub fn next_due_micros(&self) -> Option<i64> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The keys whose turn it is; so many that `most` are under way. A suspect goes alone, when nothing is in flight.
    pub fn take_due(&mut self, now_micros: i64, oldest_seq: u64, nothing_in_flight: bool, most: usize) -> Vec<Key> {
        self.ripen(now_micros, oldest_seq);
        let mut taken = Vec::new();
        if self.wants_silence() {
            if nothing_in_flight && self.under_way.is_empty() {
                let suspect = Self::next_of(&mut self.ready_suspects, &mut self.keys, oldest_seq);
                taken.extend(suspect);
            }
        } else {
            while self.under_way.len() + taken.len() < most {
                let Some(key) = Self::next_of(&mut self.ready, &mut self.keys, oldest_seq) else { break };
                taken.push(key);
            }
        }
        self.under_way.extend(taken.iter().cloned());
        taken
    }

    /// Moves what is due on to its place in the queue.
    fn ripen(&mut self, now_micros: i64, oldest_seq: u64) {
        while self.due.peek().is_some_and(|Reverse((due, _))| *due <= now_micros) {
            let Some(Reverse((due, key))) = self.due.pop() else { return };
            let Some(hold) = self.keys.get_mut(&key).filter(|hold| hold.appointment == Appointment::Due(due)) else {
                continue;
            };
            hold.appointment = Appointment::Queued;
            self.behind.entry(hold.barrier_seq).or_default().push(key);
        }
        while self.behind.first_key_value().is_some_and(|(seq, _)| *seq <= oldest_seq) {
            for key in self.behind.pop_first().into_iter().flat_map(|(_, keys)| keys) {
                let suspect = self.suspects.contains(&key);
                if suspect { self.ready_suspects.push_back(key) } else { self.ready.push_back(key) }
            }
        }
    }

    fn next_of(queue: &mut VecDeque<Key>, keys: &mut HashMap<Key, Hold>, oldest_seq: u64) -> Option<Key> {
        while let Some(key) = queue.pop_front() {
            let hold = keys.get_mut(&key);
            let fits = |hold: &&mut Hold| hold.appointment == Appointment::Queued && hold.barrier_seq <= oldest_seq;
            if let Some(hold) = hold.filter(fits) {
                hold.appointment = Appointment::UnderWay;
                return Some(key);
            }
        }
        None
    }

    /// The key's release has come to an end, one way or the other.
    pub fn come_back(&mut self, key: &[u8]) {
        self.under_way.remove(key);
        if let Some(hold) = self.keys.get_mut(key)
            && hold.appointment == Appointment::UnderWay
        {
            hold.appointment = Appointment::None;
        }
    }

    /// A key is being loaded, sent or settled.
    pub fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// From now on the key's head is tried only when nothing else is in flight.
    pub fn suspect(&mut self, key: Key) {
        self.suspects.insert(key);
    }

    pub fn is_suspect(&self, key: &[u8]) -> bool {
        self.suspects.contains(key)
    }

    pub fn acquit(&mut self, key: &[u8]) {
        self.suspects.remove(key);
    }

    /// A suspect's turn has come, or it is under way: nothing else is sent meanwhile.
    pub fn wants_silence(&self) -> bool {
        let under_way = || self.under_way.iter().any(|key| self.is_suspect(key));
        !self.keys.is_empty() && (!self.ready_suspects.is_empty() || (!self.suspects.is_empty() && under_way()))
    }

    /// Something was added behind a key whose head is gone: it goes on with it.
    pub fn follow(&mut self, key: &[u8]) {
        let idle = |hold: &Hold| hold.head == HeldState::Waiting && hold.appointment == Appointment::None;
        if self.keys.get(key).is_some_and(idle) {
            self.schedule(key.into(), 0);
        }
    }

    /// Lets the key go, which has no rows, unless something of it is still to be settled. Says whether it did.
    pub fn free(&mut self, key: &[u8]) -> bool {
        let done =
            self.keys.get(key).is_some_and(|hold| hold.unsettled == 0 && hold.appointment != Appointment::UnderWay);
        if done {
            self.keys.remove(key);
            self.suspects.remove(key);
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
        holds.announce(b"a", 0);
        assert!(holds.wait(b"a"));
        holds.record(b"a", HeldState::Retrying, 0, 0);
        assert!(!holds.free(b"a"), "an arrival that waits is not in the table yet");
        holds.get_mut(b"a").unwrap().unsettled = 0;
        assert!(holds.free(b"a"));
        assert!(holds.is_empty());
    }

    #[test]
    fn a_key_waits_for_the_lots_that_were_under_way() {
        let mut holds = Holds::default();
        holds.record(b"a", HeldState::Retrying, 0, 5);
        holds.schedule(key("a"), 10);
        assert!(holds.take_due(9, 9, true, 8).is_empty(), "not due yet");
        assert!(holds.take_due(10, 4, true, 8).is_empty(), "lot 4 is not settled");
        assert_eq!(holds.next_due_micros(), None, "it does not wait for time any more");
        assert_eq!(holds.take_due(10, 5, true, 8), [key("a")]);
        assert!(holds.take_due(10, 5, true, 8).is_empty(), "it is under way");
    }

    #[test]
    fn a_suspect_is_tried_alone() {
        let mut holds = Holds::default();
        for name in ["a", "b"] {
            holds.record(name.as_bytes(), HeldState::Retrying, 0, 0);
            holds.schedule(key(name), 1);
        }
        holds.suspect(key("a"));
        assert!(!holds.wants_silence(), "its turn has not come");
        assert!(holds.take_due(1, 0, false, 8).is_empty());
        assert!(holds.wants_silence());
        assert_eq!(holds.take_due(1, 0, true, 8), [key("a")]);
        assert!(holds.wants_silence(), "it is under way");
        holds.acquit(b"a");
        holds.come_back(b"a");
        assert_eq!(holds.take_due(1, 0, false, 8), [key("b")]);
    }

    #[test]
    fn what_is_left_of_an_older_hold_releases_nothing() {
        let mut holds = Holds::default();
        holds.record(b"a", HeldState::Retrying, 0, 0);
        holds.schedule(key("a"), 1);
        holds.ripen(1, 0);
        holds.free(b"a");
        holds.record(b"a", HeldState::Retrying, 0, 7);
        holds.schedule(key("a"), 1);
        assert!(holds.take_due(1, 6, true, 8).is_empty(), "its own lots are not settled");
        assert_eq!(holds.take_due(1, 7, true, 8), [key("a")]);
    }

    #[test]
    fn announcements_are_taken_back_and_records_are_not() {
        let mut holds = Holds::default();
        holds.announce(b"a", 0);
        holds.record(b"b", HeldState::Dead, 0, 0);
        holds.announce(b"b", 0);
        holds.withdraw_announcements();
        assert_eq!(holds.all_keys(), [key("b")]);
    }

    #[test]
    fn a_key_without_rows_stays_while_something_of_it_waits() {
        let mut holds = Holds::default();
        holds.record(b"a", HeldState::Dead, 0, 0);
        holds.record(b"b", HeldState::Dead, 0, 0);
        holds.wait(b"a");
        assert_eq!(holds.load(Vec::new(), 0), [key("b")]);
        holds.follow(b"a");
        assert_eq!(holds.take_due(0, 0, true, 1), [key("a")], "its head was discarded: what waits goes on");
    }

    #[test]
    fn what_was_promised_is_kept_when_the_clock_on_the_wall_is_set() {
        let mut holds = Holds::default();
        holds.record(b"a", HeldState::Retrying, 0, 0);
        let moment = |wall_micros, steady_micros| Moment { wall_micros, steady_micros };
        assert_eq!(holds.promise(b"a", moment(7, 100)), 100);
        assert_eq!(holds.promise(b"a", moment(7, 900)), 100, "the same record, seen later, is due no later");
        assert_eq!(holds.promise(b"a", moment(8, 900)), 900);
    }

    proptest::proptest! {
        /// Against a model that only remembers: a key is released when it is held, its time has come, what was under way is settled and it
        /// is not under way already; and never more at a time than are allowed.
        #[test]
        fn a_release_is_never_too_early_nor_twice(
            steps in proptest::collection::vec((0_u8..6, 0_usize..4, 0_i64..20), 1..200),
            most in 1_usize..4,
        ) {
            let mut holds = Holds::default();
            // For each held key: due time, and the lot that has to be settled before.
            let mut model: HashMap<Key, (Option<i64>, u64)> = HashMap::new();
            let mut under_way: HashSet<Key> = HashSet::new();
            let (mut now, mut oldest) = (0, 0);
            for (what, which, value) in steps {
                let key = key(["a", "b", "c", "d"][which]);
                match what {
                    0 if !model.contains_key(&key) => {
                        let barrier = oldest + value as u64 / 5;
                        holds.record(&key, HeldState::Retrying, now, barrier);
                        model.insert(key, (None, barrier));
                    }
                    1 => {
                        holds.schedule(key.clone(), now + value);
                        if let Some(held) = model.get_mut(&key).filter(|_| !under_way.contains(&key)) {
                            held.0 = Some(now + value);
                        }
                    }
                    2 => now += value,
                    3 => oldest += value as u64 / 5,
                    4 if under_way.remove(&key) => holds.come_back(&key),
                    5 if model.contains_key(&key) => {
                        proptest::prop_assert_eq!(holds.free(&key), !under_way.contains(&key));
                        if !under_way.contains(&key) {
                            model.remove(&key);
                        }
                    }
                    _ => {}
                }
                for taken in holds.take_due(now, oldest, true, most) {
                    let held = model.get_mut(&taken).expect("only what is held is released");
                    proptest::prop_assert!(held.0.take().is_some_and(|due| due <= now), "too early");
                    proptest::prop_assert!(held.1 <= oldest, "before what was under way");
                    proptest::prop_assert!(under_way.insert(taken), "twice");
                }
                proptest::prop_assert!(under_way.len() <= most);
                proptest::prop_assert_eq!(holds.len(), model.len());
                let could_go = |(key, (due, barrier)): (&Key, &(Option<i64>, u64))| {
                    due.is_some_and(|due| due <= now) && *barrier <= oldest && !under_way.contains(key)
                };
                proptest::prop_assert!(under_way.len() == most || !model.iter().any(could_go), "left behind");
            }
        }
    }
}
