//! How large a file is, what of it is free, how it grows: metrics, and advice with the figures.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::log::Log;
use super::place;
use super::premises::Finding;
use crate::telemetry::metric;

/// Looked at no more often than this.
const EVERY: Duration = Duration::from_secs(1);
/// Growth is not told from less.
const GROWTH_AFTER: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_hours(24);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Of these sizes on a copy, a check or a VACUUM takes minutes to hours.
const LARGE: u64 = 100 * GIB;
const GROWTH_LARGE: u64 = 2 * GIB;
const WAL_LARGE: u64 = 64 * MIB;
const FREE_LARGE: u64 = 16 * MIB;
const DAYS_LEFT_MIN: u64 = 30;

/// Looks at a file now and then.
#[derive(Debug, Default)]
pub struct Sizes {
    looked: Option<Instant>,
    first: Option<(Instant, u64)>,
}

/// Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    pub main: u64,
    pub wal: u64,
    pub free: u64,
    /// On its file system.
    pub disk_free: u64,
}

impl Figures {
    pub fn of(connection: &Connection, path: &Path) -> Self {
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let pragma = |name: &str| connection.prepare_cached(name)?.query_row([], |row| row.get::<_, i64>(0));
        let free = pragma("PRAGMA freelist_count").and_then(|pages| Ok(pages * pragma("PRAGMA page_size")?));
        Self {
            main: size(path),
            wal: size(&place::beside(path, "-wal")),
            free: free.unwrap_or(0) as u64,
            disk_free: place::free_bytes(&place::folder_of(path)).unwrap_or(u64::MAX),
        }
    }

    /// What somebody should know who keeps this file; `age` is that of the file, where it is known.
    pub fn advice(self, path: &Path, age: Option<Duration>) -> Vec<Finding> {
        let (name, Self { main, wal, free, disk_free }) = (path.display(), self);
        let mut advice = Vec::new();
        let mut add = |evidence: String, remedy: &str| advice.push(Finding::warning(evidence, remedy));
        if wal > WAL_LARGE.max(main / 4) {
            let evidence = format!(
                "the -wal of {name} has {} MiB (the file {} MiB): a read transaction that is held open keeps it from being emptied",
                wal / MIB,
                main / MIB
            );
            add(evidence, "find who reads for long (an open cursor, a forgotten transaction), and let it end");
        }
        if free > FREE_LARGE && free > main / 5 * 2 {
            let evidence = format!("of {name}, {} of {} MiB are free pages", free / MIB, main / MIB);
            add(evidence, "a job of type `vacuum` gives them back (docs/JOBS.md)");
        }
        let a_day =
            age.filter(|age| *age >= DAY).map(|age| (main as f64 / age.as_secs_f64() * DAY.as_secs_f64()) as u64);
        if let Some(a_day) = a_day.filter(|a_day| disk_free / (*a_day).max(1) < DAYS_LEFT_MIN) {
            let evidence = format!(
                "{name} has grown by {} MiB a day, and its file system has {} MiB free: {} days",
                a_day / MIB,
                disk_free / MIB,
                disk_free / a_day.max(1)
            );
            add(evidence, "make room, or let rows go (jobs of type `archive` and `retention`, docs/JOBS.md)");
        }
        let grows = a_day.filter(|a_day| *a_day > GROWTH_LARGE);
        if main > LARGE || grows.is_some() {
            let growth = grows.map_or(String::new(), |a_day| format!(", and has grown by {} GiB a day", a_day / GIB));
            let evidence =
                format!("{name} has {} GiB{growth}: a copy, a check or a restore of it takes long", main / GIB);
            add(evidence, "let rows go, or split the file by what grows; it is time to think of a database server");
        }
        advice
    }
}

/// What a file's size, growth and free pages say.
pub fn advice(connection: &Connection, path: &Path) -> Vec<Finding> {
    let age = fs::metadata(path).and_then(|meta| meta.created()).ok().and_then(|made| made.elapsed().ok());
    Figures::of(connection, path).advice(path, age)
}

impl Sizes {
    /// Sets the metrics of the file.
    pub fn look(&mut self, connection: &Connection, path: &Path, name: &str) {
        if self.looked.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let Figures { main, wal, free, disk_free } = Figures::of(connection, path);
        metric::file_bytes(name, "main", main);
        metric::file_bytes(name, "wal", wal);
        metric::freelist_bytes(name, free);
        metric::disk_free_bytes(name, disk_free);
        if let Ok(log) = Log::of(connection) {
            metric::checkpoint_backlog(name, log.backlog());
        }
        let (since, first) = *self.first.get_or_insert((Instant::now(), main));
        let grown = if since.elapsed() >= GROWTH_AFTER { main as f64 - first as f64 } else { 0.0 };
        metric::growth_per_day(name, grown / since.elapsed().as_secs_f64().max(1.0) * DAY.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_with_its_figures() {
        let small = Figures { main: 500 * MIB, wal: 4 * MIB, free: 10 * MIB, disk_free: 50 * GIB };
        let told = |figures: Figures, days: u64| -> String {
            let advice = figures.advice(Path::new("shop.db"), Some(DAY * days as u32));
            assert!(advice.iter().all(|found| !found.is_refusal()));
            advice.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(told(small, 100), "");
        assert!(
            told(Figures { wal: 300 * MIB, ..small }, 100)
                .contains("the -wal of shop.db has 300 MiB (the file 500 MiB)")
        );
        assert_eq!(told(Figures { wal: 60 * MIB, main: MIB, ..small }, 100), "");
        assert!(told(Figures { free: 250 * MIB, ..small }, 100).contains("of shop.db, 250 of 500 MiB are free pages"));
        let fast = told(Figures { disk_free: GIB, ..small }, 5);
        assert!(fast.contains("has grown by 100 MiB a day, and its file system has 1024 MiB free: 10 days"), "{fast}");
        assert_eq!(told(Figures { disk_free: GIB, ..small }, 0), "", "of a file made today nothing is known");
        assert!(
            told(Figures { main: 120 * GIB, disk_free: 900 * GIB, ..small }, 1_000)
                .contains("shop.db has 120 GiB: a copy")
        );
        assert!(
            told(Figures { main: 30 * GIB, disk_free: 900 * GIB, ..small }, 10)
                .contains("shop.db has 30 GiB, and has grown by 3 GiB a day")
        );
    }
}
