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

/// When a rejected event is tried again: `first` (1 s), 4 s, 16 s, ... up to an hour after the attempt, with up to a quarter of
/// jitter that depends on the event's id alone, so that a restart does not move it.
pub fn next_attempt_micros(now_micros: i64, first: Duration, attempts: u32, event_id: &str) -> i64 {
    const MOST_MICROS: i64 = 3_600_000_000;
    let first_micros = (first.as_micros() as i64).max(4);
    let base = first_micros.saturating_mul(4_i64.saturating_pow(attempts.saturating_sub(1))).min(MOST_MICROS);
    let hash =
        event_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    now_micros.saturating_add(base).saturating_add((hash % (base as u64 / 4)) as i64)
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
        let after =
            |attempts, id: &str| next_attempt_micros(1_000_000, Duration::from_secs(1), attempts, id) - 1_000_000;
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
        assert!(next_attempt_micros(0, Duration::ZERO, 1, "a") > 0, "also where no wait is wanted");
    }

    proptest::proptest! {
        #[test]
        fn the_next_attempt_is_later_and_bounded(now in 0_i64..4_102_444_800_000_000, attempts in 0_u32..1000, id in ".{0,20}") {
            let next = next_attempt_micros(now, Duration::from_secs(1), attempts, &id);
            proptest::prop_assert!(next > now);
            proptest::prop_assert!(next - now <= 4_500_000_000);
        }
    }
}
