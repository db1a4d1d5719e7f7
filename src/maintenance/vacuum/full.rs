//! VACUUM of the whole file: the write lock is held all the while, and so it is done only when that was allowed for.

use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{NaiveTime, TimeZone};
use chrono_tz::Tz;
use rusqlite::ErrorCode;

use super::Pages;
use crate::clock;
use crate::controls::{self, Seam};
use crate::maintenance::{Failure, Stop};
use crate::setting::value::Span;
use crate::sqlite::fault::{self, Kind};
use crate::sqlite::open::{self, Durable};

/// Bytes in a second, on the safe side: measured were about 60 MB.
const PACE: u64 = 40 << 20;
/// How soon a lock that others hold is asked for again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// SQLite asks so often, in steps of its machine, whether to go on.
const STEPS: i32 = 1_000;

#[derive(Debug)]
pub struct Full {
    pub window: (NaiveTime, NaiveTime),
    pub zone: Tz,
    /// How long the application waits for the write lock.
    pub application_busy_timeout: Duration,
    pub make_incremental: bool,
}

impl Full {
    fn is_open(&self, now: i64) -> bool {
        let Some(now) = self.zone.timestamp_micros(now).single() else { return false };
        let (now, (from, to)) = (now.time(), self.window);
        if from <= to { from <= now && now < to } else { now >= from || now < to }
    }

    /// What it would cost, or why it may not be.
    pub fn may_begin(&self, path: &Path, pages: Pages) -> Result<String, Failure> {
        let name = path.display();
        if !self.is_open(clock::now_micros()) {
            let (from, to) = self.window;
            return Err(Failure::Unavailable(format!(
                "{name}: it is not between {} and {} ({}), and outside of its window the file is not vacuumed. Remedy: let `schedule` come into the window",
                from.format("%H:%M"),
                to.format("%H:%M"),
                self.zone
            )));
        }
        super::has_room(path, 2 * pages.used_bytes() + super::SPARE_BYTES)?;
        let expected = Duration::from_secs_f64(pages.used_bytes() as f64 / PACE as f64);
        let most = Span(self.application_busy_timeout);
        if expected > self.application_busy_timeout / 2 {
            return Err(Failure::Data(format!(
                "{name}: to write {} bytes anew takes about {expected:.1?}, all of it under the write lock, and the application waits for {most}: half of that is the \
                 most. Remedy: mode = \"incremental\"; or let the application wait for longer",
                pages.used_bytes()
            )));
        }
        Ok(format!("about {expected:.1?} under the write lock, of the {most} that the application waits"))
    }

    /// Says how long the lock was held. What is broken off leaves the file as it was.
    pub fn run(&self, path: &Path, stop: &Stop) -> Result<Duration, Failure> {
        let told = |error: rusqlite::Error| {
            Failure::Unavailable(format!("{} cannot be vacuumed, and is as it was: {error}", path.display()))
        };
        let connection = open::writer(path, Durable::Full).map_err(told)?;
        if self.make_incremental {
            connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL").map_err(told)?;
        }
        loop {
            let began = Instant::now();
            let (asked, most) = (stop.clone(), self.application_busy_timeout / 2);
            let is_over = move || asked.is_asked() || began.elapsed() > most;
            connection.progress_handler(STEPS, Some(is_over)).map_err(told)?;
            controls::reach(Seam::Vacuum);
            match connection.execute_batch("VACUUM") {
                Ok(()) => {
                    controls::reach(Seam::Vacuum);
                    let took = began.elapsed();
                    // Else the application's next commit does it. What is not done now is done then.
                    drop(connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())));
                    return Ok(took);
                }
                Err(_) if stop.is_asked() => return Err(Failure::Aborted),
                Err(error) if fault::classify(&error).0 == Kind::Busy && self.is_open(clock::now_micros()) => {
                    std::thread::sleep(ASK_AGAIN_AFTER);
                }
                Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::OperationInterrupted => {
                    return Err(Failure::Unavailable(format!(
                        "{}: it took longer than half of the {} that the application waits, and was broken off; the file is as it was. Remedy: mode = \
                         \"incremental\"; or let the application wait for longer",
                        path.display(),
                        Span(self.application_busy_timeout)
                    )));
                }
                Err(error) => return Err(told(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_one_of_the_wall_and_may_hold_midnight() {
        let full = |from: &str, to: &str| {
            let time = |text: &str| NaiveTime::parse_from_str(text, "%H:%M").unwrap();
            let application_busy_timeout = Duration::from_secs(5);
            Full {
                window: (time(from), time(to)),
                zone: Tz::Europe__Zurich,
                application_busy_timeout,
                make_incremental: false,
            }
        };
        let at = |text: &str| clock::parse_micros(text).unwrap();
        for (from, to, now, is_open) in [
            ("02:00", "04:00", "2026-11-21T00:59:59Z", false),
            ("02:00", "04:00", "2026-11-21T01:00:00Z", true),
            ("02:00", "04:00", "2026-11-21T03:00:00Z", false),
            ("23:00", "01:00", "2026-11-21T22:30:00Z", true),
            ("23:00", "01:00", "2026-11-21T23:30:00Z", true),
            ("23:00", "01:00", "2026-11-21T12:00:00Z", false),
            ("02:00", "04:00", "2026-07-21T00:00:00Z", true),
        ] {
            assert_eq!(full(from, to).is_open(at(now)), is_open, "{from}-{to} at {now}");
        }
    }
}
