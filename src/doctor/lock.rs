//! Whether SQLite's one place for a writer is taken most of the time.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use super::chart::Chart;
use crate::remark::Remark;
use crate::sqlite::holders::{self, Holder};

const LOOKS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(10);
/// Of the looks: whoever wants to write then waits more often than not.
const HELD_MIN: u32 = LOOKS / 2;

pub(super) fn look(chart: &Chart<'_>) -> rusqlite::Result<Vec<Remark>> {
    if chart.journal != "wal" {
        return Ok(Vec::new());
    }
    let mut held = BTreeMap::<u32, u32>::new();
    for _ in 0..LOOKS {
        if let Some(pid) = holders::of_write_lock(chart.patient.path) {
            *held.entry(pid).or_default() += 1;
        }
        thread::sleep(BETWEEN);
    }
    let times: u32 = held.values().sum();
    let most = held.iter().max_by_key(|(_, times)| **times).map(|(pid, _)| Holder::of(*pid));
    Ok(vec![match most.filter(|_| times >= HELD_MIN) {
        None => Remark::ok(format!("the write lock was free in {} of {LOOKS} looks", LOOKS - times)),
        Some(holder) => {
            let evidence = format!(
                "in {times} of {LOOKS} looks within {:?} the write lock was held, mostly by {holder}: there is one writer at a time",
                BETWEEN * LOOKS
            );
            let remedy = "let transactions that write be short, without waiting for anything else in between, and let several changes share one; where that \
                          is so and the lock stays taken, it is time to think of a database server (docs/LIMITS.md)";
            Remark::advice(evidence, remedy)
        }
    }])
}
