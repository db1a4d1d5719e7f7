//! The pace of waiting: exponential, with jitter, for ever.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that grow from `min` to `max` and stay there; each is drawn anew, so that many waiters spread.
#[derive(Debug)]
pub struct Pace {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    max: Duration,
    /// How many delays were handed out since the last success.
    pub attempts: u32,
}

impl Pace {
    pub fn new(min: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_factor(2.0)
            .with_min_delay(min)
            .with_max_delay(max)
            .with_jitter()
            .without_max_times();
        Self { builder, delays: builder.build(), max, attempts: 0 }
    }

    /// How long to wait before the next attempt.
    pub fn delay(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        self.delays.next().unwrap_or(self.max).min(self.max * 2)
    }

    pub fn succeeded(&mut self) {
        self.attempts = 0;
        self.delays = self.builder.build();
    }
}

/// How long after an attempt a rejected event is tried again: `first` (1 s), 4 s, 16 s, ... up to an hour, with up to a quarter of
/// jitter that depends on the event's id alone, so that a restart does not move it.
pub fn next_attempt_in(first: Duration, attempts: u32, event_id: &str) -> Duration {
    const MOST_MICROS: u64 = 3_600_000_000;
    let first_micros = (first.as_micros().min(MOST_MICROS.into()) as u64).max(4);
    let base = first_micros.saturating_mul(4_u64.saturating_pow(attempts.saturating_sub(1))).min(MOST_MICROS);
    let hash =
        event_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Duration::from_micros(base + hash % (base / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_grows_to_its_limit_and_never_ends() {
        let mut pace = Pace::new(Duration::from_millis(100), Duration::from_secs(2));
        let delays: Vec<Duration> = (0..200).map(|_| pace.delay()).collect();
        assert!(delays[0] >= Duration::from_millis(100));
        assert!(delays.iter().all(|d| *d <= Duration::from_secs(4)));
        assert!(delays[199] >= Duration::from_secs(2));
        assert_eq!(pace.attempts, 200);
        pace.succeeded();
        assert!(pace.delay() < Duration::from_millis(300));
        assert_eq!(pace.attempts, 1);
    }

    #[test]
    fn attempts_are_four_times_as_far_apart_each_time_and_no_restart_moves_them() {
        let after = |attempts, id: &str| next_attempt_in(Duration::from_secs(1), attempts, id).as_micros() as i64;
        for (attempts, base) in [(0, 1), (1, 1), (2, 4), (3, 16), (6, 1024), (7, 3600), (900, 3600)] {
            let base = base * 1_000_000;
            let waits: Vec<i64> = (0..200).map(|n| after(attempts, &format!("event-{n}"))).collect();
            assert!(waits.iter().all(|wait| (base..base + base / 4).contains(wait)), "{attempts}: {waits:?}");
            let spread = waits.iter().max().unwrap() - waits.iter().min().unwrap();
            assert!(spread > base / 8, "they spread: {spread} of {base}");
            assert_eq!(after(attempts, "event-7"), after(attempts, "event-7"));
        }
        // FNV-1a of the id, so that it is the same in every version of this program.
        assert_eq!(after(1, "a"), 1_000_000 + (0xaf63_dc4c_8601_ec8c_u64 % 250_000) as i64);
        assert!(!next_attempt_in(Duration::ZERO, 1, "a").is_zero(), "also where no wait is wanted");
    }

    proptest::proptest! {
        #[test]
        fn the_next_attempt_is_later_bounded_and_no_sooner_than_the_one_before(
            first in proptest::prelude::any::<u64>(),
            attempts in proptest::prelude::any::<u32>(),
            id in ".{0,20}",
        ) {
            let first = Duration::from_micros(first);
            let delay = next_attempt_in(first, attempts, &id);
            proptest::prop_assert!(delay >= first.min(Duration::from_secs(3600)));
            proptest::prop_assert!(delay <= Duration::from_secs(4500));
            // The jitter may take back a little where the base has come to its limit.
            let base = |attempts| next_attempt_in(first, attempts, &id).as_micros() * 4 / 5;
            proptest::prop_assert!(next_attempt_in(first, attempts.saturating_add(1), &id).as_micros() >= base(attempts));
            proptest::prop_assert_eq!(delay, next_attempt_in(first, attempts, &id));
        }

        #[test]
        fn a_pace_stays_between_its_bounds_whatever_it_is_asked(
            min in 1_u64..5_000,
            more in 0_u64..60_000,
            successes in proptest::collection::vec(proptest::prelude::any::<bool>(), 1..200),
        ) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min + more));
            let mut pace = Pace::new(min, max);
            for success in successes {
                if success {
                    pace.succeeded();
                    proptest::prop_assert_eq!(pace.attempts, 0);
                }
                let delay = pace.delay();
                proptest::prop_assert!(delay >= min && delay <= max * 2, "{:?}", delay);
            }
        }
    }
}
