//! A check of ourselves: whether the last delivery of each event comes after that of the one before it of its key.
//!
//! It looks at settlements, in which each event is delivered once: positions of a key must grow (not asked of a source read by
//! row, whose order is declared), and so must the flights that carried them. The table is of a fixed size; a key that has lost its place to
//! another is begun anew, so that a violation may be missed, and none is made up. Nothing is allocated, locked or waited for.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::holds::Key;
use crate::event::Position;

const KEYS_MAX: usize = 4_096;

#[derive(Clone, Copy, Debug)]
struct Last {
    /// The key's hash, by which no hostile key can pass for another.
    key: u64,
    position: Position,
    flight: u64,
}

pub struct OrderCheck {
    last: Box<[Option<Last>]>,
    hasher: RandomState,
    by_row: bool,
    /// Keys whose dead letter comes back after it had been skipped: out of order, as was said of it.
    late: HashSet<Key>,
}

impl OrderCheck {
    pub fn new(by_row: bool) -> Self {
        Self { last: vec![None; KEYS_MAX].into(), hasher: RandomState::new(), by_row, late: HashSet::new() }
    }

    /// A delivery was settled. Says whether it violates the order.
    pub fn delivered(&mut self, key: &[u8], position: Position, flight: u64) -> bool {
        let hash = self.hasher.hash_one(key);
        let now = Last { key: hash, position, flight };
        let place = &mut self.last[hash as usize % KEYS_MAX];
        let before = place.filter(|last| last.key == hash);
        let is_late = before.is_some_and(|last| flight < last.flight || (!self.by_row && position <= last.position));
        if !is_late {
            *place = Some(now);
        }
        is_late
    }

    /// The same of a held event.
    pub fn released(&mut self, key: &[u8], position: Position, flight: u64) -> bool {
        if !self.late.is_empty() && self.late.contains(key) {
            return false;
        }
        self.delivered(key, position, flight)
    }

    /// What comes of the key, until it is free again, may be late.
    pub fn excuse(&mut self, key: Key) {
        self.late.insert(key);
    }

    pub fn free(&mut self, key: &[u8]) {
        if !self.late.is_empty() {
            self.late.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_counted_and_nothing_else() {
        let mut check = OrderCheck::new(false);
        for (key, position, flight, is_late) in [
            ("a", 1, 1, false),
            ("b", 2, 1, false),
            ("a", 3, 1, false),
            ("a", 4, 2, false),
            ("b", 5, 2, false),
            // Sent in an earlier flight than the one before it arrived in.
            ("b", 6, 1, true),
            // Before what was delivered.
            ("a", 2, 3, true),
            ("a", 5, 3, false),
        ] {
            assert_eq!(check.delivered(key.as_bytes(), Position(position), flight), is_late, "{key} {position}");
        }
    }

    #[test]
    fn a_skipped_dead_letter_may_come_late_until_its_key_is_free() {
        let mut check = OrderCheck::new(false);
        assert!(!check.delivered(b"a", Position(9), 1));
        check.excuse(b"a"[..].into());
        assert!(!check.released(b"a", Position(1), 2));
        check.free(b"a");
        assert!(check.released(b"a", Position(2), 3));
    }

    #[test]
    fn by_row_the_position_is_not_the_order() {
        let mut check = OrderCheck::new(true);
        assert!(!check.delivered(b"a", Position(9), 1));
        assert!(!check.delivered(b"a", Position(3), 2));
        assert!(check.delivered(b"a", Position(10), 1));
    }

    proptest::proptest! {
        /// However many keys there are: what is in order is never counted.
        #[test]
        fn no_violation_is_made_up(keys in proptest::collection::vec(0_u32..20_000, 0..20_000)) {
            let mut check = OrderCheck::new(false);
            for (at, key) in keys.iter().enumerate() {
                proptest::prop_assert!(!check.delivered(&key.to_le_bytes(), Position(at as i64), at as u64 / 100));
            }
        }
    }
}
