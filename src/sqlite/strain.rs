//! How often the lock of an application's file is in our way: figures of our own transactions, and advice with them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::premises::Finding;

/// Whoever waits for so long notices it.
const LONG: Duration = Duration::from_millis(100);
/// Figures are of no more time than this.
const WINDOW: Duration = Duration::from_secs(600);
/// One long transaction of the application's is no sign; waiting again and again is.
const LONG_WAITS_MIN: u64 = 20;
const LONG_PER_CENT_MIN: u64 = 5;

/// Of one file. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Strain(Arc<Mutex<Halves>>);

/// The half of the window that goes on, and the one before.
#[derive(Debug)]
struct Halves {
    before: Option<Figures>,
    now: Figures,
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    since: Instant,
    transactions: u64,
    long_waits: u64,
    longest: Duration,
}

impl Figures {
    fn new(since: Instant) -> Self {
        Self { since, transactions: 0, long_waits: 0, longest: Duration::ZERO }
    }
}

impl Strain {
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Halves { before: None, now: Figures::new(now) })))
    }

    /// A transaction has got the lock, or has given it up.
    pub fn note(&self, now: Instant, waited: Duration) {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(halves.now.since) >= WINDOW / 2 {
            halves.before = Some(std::mem::replace(&mut halves.now, Figures::new(now)));
        }
        let figures = &mut halves.now;
        figures.transactions += 1;
        figures.long_waits += u64::from(waited > LONG);
        figures.longest = figures.longest.max(waited);
    }

    /// What somebody should know who keeps this file.
    pub fn advice(&self, now: Instant, path: &Path) -> Option<Finding> {
        let halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = halves.before.iter().chain([&halves.now]).filter(|half| now.duration_since(half.since) <= WINDOW);
        let all = recent.copied().reduce(|one, other| Figures {
            since: one.since,
            transactions: one.transactions + other.transactions,
            long_waits: one.long_waits + other.long_waits,
            longest: one.longest.max(other.longest),
        })?;
        let Figures { since, transactions, long_waits, longest } = all;
        if long_waits < LONG_WAITS_MIN || 100 * long_waits < LONG_PER_CENT_MIN * transactions {
            return None;
        }
        let seconds = now.duration_since(since).as_secs_f64().max(1.0);
        let evidence = format!(
            "{long_waits} of {transactions} transactions of outboxd's in {} waited for longer than {} ms for its write lock, the longest {} ms, in the last {seconds:.0} \
             s ({:.1} transactions a second)",
            path.display(),
            LONG.as_millis(),
            longest.as_millis(),
            transactions as f64 / seconds
        );
        let remedy = "let transactions that write be short, and begin them with BEGIN IMMEDIATE; put read models into files of their own. Where that is done and \
                      the waiting stays, it is time to think of a database server (docs/LIMITS.md)";
        Some(Finding::warning(evidence, remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_again_and_again_is_advised_with_the_figures() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let told = |strain: &Strain, seconds: u64| {
            strain.advice(at(seconds), Path::new("shop.db")).map_or(String::new(), |advice| advice.to_string())
        };
        let note = |strain: &Strain, second: u64, times: u64, millis: u64| {
            (0..times).for_each(|_| strain.note(at(second), Duration::from_millis(millis)));
        };
        let strain = Strain::new(began);
        note(&strain, 1, 50, 3);
        note(&strain, 1, 1, 60_000);
        assert_eq!(told(&strain, 2), "", "one that waited long is no sign");
        note(&strain, 50, 19, 150);
        let advice = told(&strain, 100);
        assert!(
            advice.contains("20 of 70 transactions of outboxd's in shop.db waited for longer than 100 ms"),
            "{advice}"
        );
        assert!(advice.contains("the longest 60000 ms, in the last 100 s (0.7 transactions a second)"), "{advice}");
        // Among many that did not wait it is none.
        note(&strain, 100, 331, 0);
        assert_eq!(told(&strain, 100), "");
        // It stays for a while, and is over when the window is.
        let strain = Strain::new(began);
        note(&strain, 10, 30, 200);
        note(&strain, 320, 1, 0);
        assert!(told(&strain, 400).contains("30 of 31 "), "of both halves");
        note(&strain, 630, 1, 0);
        assert_eq!(told(&strain, 630), "");
        let strain = Strain::new(began);
        note(&strain, 10, 30, 200);
        assert_eq!(
            (told(&strain, 600).is_empty(), told(&strain, 601).as_str()),
            (false, ""),
            "also where nothing is written any more"
        );
    }
}
