//! `[jobs.X]` with `type = "vacuum"`: its keys, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveTime;
use chrono_tz::Tz;

use super::{Full, How, Into, Vacuum as Job};
use crate::maintenance::keys::{self, job_section};
use crate::maintenance::schedule::{Schedule, Times};
use crate::maintenance::{Settings, Sources, registry};
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::problem::KeyPath;
use crate::setting::value::Span;
use crate::setting::{Checker, Nanos};

const EVERY: Duration = Duration::from_hours(24);
const MIN_FREE: u64 = 20;
const BUSY_MIN: Span = Span(Duration::from_millis(100));
const BUSY_MAX: Span = Span(Duration::from_hours(1));

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Incremental,
    Full,
    Into,
}

job_section! {
    /// Gives free pages of an application's file back to the file system: a few at a time (`incremental`), all in one VACUUM, in a window of its own
    /// (`full`), or by a file that is written anew and takes its place while everything is stopped (`into`). `outboxd job run NAME --dry-run` says what it
    /// would do. Not said when: once a day; `into` by hand alone.
    Vacuum, "[jobs.<name>] with type = \"vacuum\"" {
        /// A source of the file.
        source: String, Required, r#""shop""#;
        /// `"incremental"`: in slices, for files with `auto_vacuum = INCREMENTAL`. `"full"`: the file is written anew, and the application cannot write meanwhile.
        /// `"into"`: a new file takes its place, by `outboxd job run NAME` while nobody has the file open, the daemon included; the file of before is kept.
        mode: String, Value(r#""incremental""#), r#""full""#;
        /// Of less free pages than this share nothing is done.
        min_free: String, Value(r#""20 %""#), r#""40 %""#;
        /// For `full`: the only time of the day at which it may be, by the clock of `time_zone`.
        window: String, Absent("must be said for `full`"), r#""02:00-04:00""#;
        /// For `full`: how long the application waits for the write lock. A VACUUM that is expected to take more than half of that is not begun, and one
        /// that does is broken off.
        application_busy_timeout: Span, Absent("must be said for `full`"), r#""10s""#;
        /// For `full` and `into`: the file has `auto_vacuum = INCREMENTAL` from then on. (`into` is done for this alone, too, whatever is free; where it is `FULL` it stays.)
        make_incremental: bool, Absent("false"), "true";
    }
}

impl registry::Keys for Vacuum {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let modes = [("incremental", Mode::Incremental), ("full", Mode::Full), ("into", Mode::Into)];
        let mode = checker.choose_or(&key("mode"), self.mode.as_ref(), &modes, Mode::Incremental);
        let schedule = match mode {
            Mode::Incremental | Mode::Full => self.timing().resolve(name, Some(EVERY), checker),
            Mode::Into => Some(self.by_hand(name, &key, checker)),
        };
        let min_free = self.min_free.as_deref().map_or(Some(MIN_FREE), per_cent);
        if min_free.is_none() {
            checker.refuse(key("min_free"), "this is no share", "write something from \"0 %\" to \"100 %\"");
        }
        let zone = match schedule.as_ref().map(|schedule| &schedule.times) {
            Some(Times::Cron { zone, .. }) => *zone,
            _ => Tz::UTC,
        };
        let of_a_window =
            [("window", self.window.is_some()), ("application_busy_timeout", self.application_busy_timeout.is_some())];
        for (part, _) in of_a_window.into_iter().filter(|(_, is_said)| *is_said && mode != Mode::Full) {
            checker.refuse(key(part), "only mode = \"full\" asks for this", "leave it out");
        }
        let make_incremental = self.make_incremental.unwrap_or(false);
        let how = match mode {
            Mode::Incremental => {
                if self.make_incremental.is_some() {
                    let reason = "only mode = \"full\" and \"into\" ask for this";
                    checker.refuse(key("make_incremental"), reason, "leave it out");
                }
                How::Incremental
            }
            Mode::Full => How::Full(self.full(&key, zone, make_incremental, checker)?),
            Mode::Into => How::Into(Into { make_incremental }),
        };
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let job = Job { source: source.clone(), min_free: min_free?, how };
        Some(Settings { name: name.to_owned(), kind: "vacuum", schedule: schedule?, home: source, job: Arc::new(job) })
    }
}

impl Vacuum {
    fn by_hand(&self, name: &str, key: &dyn Fn(&str) -> KeyPath, checker: &mut Checker<'_>) -> Schedule {
        for (part, is_said) in [
            ("schedule", self.schedule.is_some()),
            ("time_zone", self.time_zone.is_some()),
            ("every", self.every.is_some()),
            ("jitter", self.jitter.is_some()),
        ] {
            if is_said {
                let reason = "mode = \"into\" takes that nobody has the file open, the daemon included: it is done by hand alone";
                checker.refuse(key(part), reason, "leave it out; `outboxd job run NAME` while everything is stopped");
            }
        }
        Schedule::new(name, Times::ByHand, Duration::ZERO)
    }

    fn full(
        &self,
        key: &dyn Fn(&str) -> KeyPath,
        zone: Tz,
        make_incremental: bool,
        checker: &mut Checker<'_>,
    ) -> Option<Full> {
        let said = checker.require(&key("window"), self.window.as_ref());
        let timeout = checker.require(&key("application_busy_timeout"), self.application_busy_timeout.as_ref());
        let window = said.and_then(|said| {
            let window = window(&said);
            if window.is_none() {
                checker.refuse(
                    key("window"),
                    format!("{said:?} is no time of the day"),
                    "for example: window = \"02:00-04:00\"",
                );
            }
            window
        });
        let timeout =
            checker.within(&key("application_busy_timeout"), Nanos(timeout?), Nanos(BUSY_MIN), Nanos(BUSY_MAX));
        Some(Full { window: window?, zone, application_busy_timeout: timeout.0.0, make_incremental })
    }
}

fn per_cent(text: &str) -> Option<u64> {
    text.trim().strip_suffix('%')?.trim().parse().ok().filter(|share| *share <= 100)
}

fn window(text: &str) -> Option<(NaiveTime, NaiveTime)> {
    let (from, to) = text.split_once('-')?;
    let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").ok();
    Some((time(from)?, time(to)?)).filter(|(from, to)| from != to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_windows_are_read() {
        assert_eq!(
            ["20 %", "0%", "100 %", "101 %", "20", "-1 %", "x %"].map(per_cent),
            [Some(20), Some(0), Some(100), None, None, None, None]
        );
        assert!(window("02:00-04:30").is_some() && window(" 23:00 - 1:00 ").is_some());
        assert!(["02:00", "02:00-02:00", "24:00-01:00", "2-3", ""].iter().all(|text| window(text).is_none()));
    }
}
