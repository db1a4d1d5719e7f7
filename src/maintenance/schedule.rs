//! When a job is due: a pure question, asked with the time of now and of the last run, and so the same however often and by whomever.
//!
//! Invariants, each over simulated years in the tests below:
//! 1. A time that was missed is caught up once, however many were missed.
//! 2. Once is once where a clock is set or summer time begins or ends: not zero, not twice.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use chrono::{DateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// When a job runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub times: Times,
    /// Each run comes later by something below this, drawn from the job's name and the run's time: a restart draws the same.
    pub jitter: Duration,
    salt: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Times {
    /// Minute, hour, day, month, weekday, on a wall in this zone.
    Cron {
        text: String,
        cron: Box<Cron>,
        zone: Tz,
    },
    Every(Duration),
    /// Never by itself: only when it is asked for, by a command that has nothing else open while no daemon runs.
    ByHand,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    /// Not before this time, in microseconds since 1970 UTC.
    At(i64),
    Never,
    /// The last run is said to be of a time to come, further away than one run's: the clock was set back since by more than a period.
    Stale,
}

impl Times {
    /// Five fields; what they mean is cron's. The error is for a person.
    pub fn cron(text: &str, zone: Tz) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = Box::new(parser.parse(text).map_err(|error| error.to_string())?);
        Ok(Self::Cron { text: text.to_owned(), cron, zone })
    }

    /// Whether `last` is so far behind `now` that more than one run lies in between. The one of `last` itself does not count: set back over
    /// it, the clock comes to its time a second time.
    fn is_over_a_period(&self, now: i64, last: i64) -> bool {
        let next = self.next(now);
        let over = match self {
            Times::Every(_) => next,
            Times::Cron { .. } => next.and_then(|next| self.next(next)),
            Times::ByHand => None,
        };
        over.is_some_and(|over| last > over)
    }

    /// The first time behind `after`, in microseconds.
    pub fn next(&self, after: i64) -> Option<i64> {
        match self {
            Times::Every(every) => after.checked_add(i64::try_from(every.as_micros()).ok()?),
            Times::ByHand => None,
            Times::Cron { text, cron, zone } => {
                // croner would keep the fraction.
                let after = DateTime::<Utc>::from_timestamp(after.div_euclid(1_000_000), 0)?.with_timezone(zone);
                let is_every_hour = matches!(text.split_whitespace().nth(1), Some("*" | "*/1"));
                let next = if is_every_hour { next_that_passes(cron, &after) } else { next_on_the_wall(cron, &after) };
                next.map(|time| time.timestamp_micros())
            }
        }
    }
}

/// What comes every hour or minute goes by the time that really passes, also where an hour comes twice. (croner leaves the second out.)
fn next_that_passes(cron: &Cron, after: &DateTime<Tz>) -> Option<DateTime<Tz>> {
    let zone = after.timezone();
    let offset = after.offset().fix();
    let time = cron.find_next_occurrence(&after.with_timezone(&offset), false).ok()?.with_timezone(&zone);
    if time.offset().fix() == offset {
        return Some(time);
    }
    // The clock changes in between, at the first of these seconds: from there on the new one counts.
    let (mut old, mut new) = (after.timestamp(), time.timestamp());
    while new - old > 1 {
        let middle = old + (new - old) / 2;
        let is_old = zone.timestamp_opt(middle, 0).single()?.offset().fix() == offset;
        if is_old { old = middle } else { new = middle }
    }
    let changed = zone.timestamp_opt(new, 0).single()?;
    let time = cron.find_next_occurrence(&changed.with_timezone(&changed.offset().fix()), true).ok()?;
    Some(time.with_timezone(&zone))
}

/// A time of day comes once a day: the first of the two where the clock goes back over it, and behind the gap where it is left out. (croner
/// gives both to who asks from between them.)
fn next_on_the_wall(cron: &Cron, after: &DateTime<Tz>) -> Option<DateTime<Tz>> {
    const MINUTES_LEFT_OUT_MAX: i64 = 24 * 60;
    let mut wall = after.naive_local();
    loop {
        wall = cron.find_next_occurrence(&wall.and_utc(), false).ok()?.naive_utc();
        let behind_a_gap =
            |minutes| after.timezone().from_local_datetime(&(wall + TimeDelta::minutes(minutes))).earliest();
        let time = (0..=MINUTES_LEFT_OUT_MAX).find_map(behind_a_gap)?;
        if time > *after {
            return Some(time);
        }
    }
}

impl Schedule {
    pub fn new(job: &str, times: Times, jitter: Duration) -> Self {
        Self { times, jitter, salt: job.to_owned() }
    }

    /// Whether a job that last began at `last` has to run now.
    pub fn due(&self, now: i64, last: i64) -> Due {
        if last > now && self.times.is_over_a_period(now, last) {
            return Due::Stale;
        }
        match self.times.next(last).map(|time| time.saturating_add(self.delay(time))) {
            None => Due::Never,
            Some(time) if time <= now => Due::Now,
            Some(time) => Due::At(time),
        }
    }

    /// See [`Times::ByHand`].
    pub fn is_by_hand(&self) -> bool {
        self.times == Times::ByHand
    }

    fn delay(&self, time: i64) -> i64 {
        let mut hasher = DefaultHasher::new();
        (&self.salt, time).hash(&mut hasher);
        hasher.finish().checked_rem(self.jitter.as_micros() as u64).unwrap_or(0) as i64
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Times::Cron { text, zone, .. } => write!(f, "{text} ({zone})"),
            Times::Every(every) => write!(f, "every {}", crate::setting::value::Span(*every)),
            Times::ByHand => write!(f, "by hand"),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, Timelike};
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;
    const MINUTE: i64 = 60 * SECOND;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;

    fn micros(text: &str) -> i64 {
        crate::clock::parse_micros(text).unwrap()
    }

    fn cron(text: &str, zone: Tz) -> Schedule {
        Schedule::new("nightly", Times::cron(text, zone).unwrap(), Duration::ZERO)
    }

    fn every(span: Duration) -> Schedule {
        Schedule::new("often", Times::Every(span), Duration::ZERO)
    }

    /// Asks at each of these times, as the scheduler does; says when it ran.
    fn runs(schedule: &Schedule, known: i64, asked: impl IntoIterator<Item = i64>) -> Vec<i64> {
        let mut last = known;
        let mut runs = Vec::new();
        for now in asked {
            match schedule.due(now, last) {
                Due::Now => {
                    runs.push(now);
                    last = now;
                }
                Due::Stale => last = now,
                Due::At(_) | Due::Never => {}
            }
        }
        runs
    }

    fn steps(from: i64, to: i64, step: i64) -> impl Iterator<Item = i64> {
        (0..).map(move |n| from + n * step).take_while(move |time| *time <= to)
    }

    #[test]
    fn what_is_done_by_hand_is_never_due() {
        let schedule = Schedule::new("once", Times::ByHand, Duration::ZERO);
        for (now, last) in [(0, 0), (DAY, 0), (0, DAY), (i64::MAX, i64::MIN)] {
            assert_eq!(schedule.due(now, last), Due::Never, "{now}, {last}");
        }
        assert!(schedule.is_by_hand() && schedule.times.to_string() == "by hand");
    }

    #[test]
    fn what_was_missed_is_caught_up_once() {
        let nightly = cron("0 3 * * *", Tz::UTC);
        let known = micros("2026-11-01T12:00:00Z");
        assert_eq!(nightly.due(micros("2026-11-02T02:59:59Z"), known), Due::At(micros("2026-11-02T03:00:00Z")));
        assert_eq!(nightly.due(known, known + 123_456), Due::At(micros("2026-11-02T03:00:00Z")), "a whole second");
        let back = micros("2026-11-09T17:00:00Z");
        assert_eq!(runs(&nightly, known, steps(back, back + 9 * HOUR, MINUTE)), [back]);
        let quarter = every(Duration::from_secs(900));
        assert_eq!(runs(&quarter, known, [back, back + MINUTE, back + 15 * MINUTE]), [back, back + 15 * MINUTE]);
    }

    /// Every way in which the hour of a run can be left out or come twice, in zones on both sides of the world.
    #[test]
    fn summer_time_makes_a_day_neither_without_a_run_nor_with_two() {
        for zone in
            [Tz::Europe__Zurich, Tz::America__New_York, Tz::Australia__Lord_Howe, Tz::America__Santiago, Tz::UTC]
        {
            for time in ["30 2 * * *", "0 3 * * *", "15 1 * * *", "45 23 * * *", "0 0 * * *", "59 2 * * *"] {
                let nightly = cron(time, zone);
                let start = zone.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap().timestamp_micros();
                // A prime, so that it is asked at ever other seconds.
                let runs = runs(&nightly, start, steps(start, start + 400 * DAY, 421 * SECOND));
                let days: Vec<i32> = runs
                    .iter()
                    .map(|run| zone.timestamp_micros(*run).unwrap())
                    .map(|run| run.num_days_from_ce() - i32::from(time.starts_with("45 23") && run.hour() < 12))
                    .collect();
                let gaps: Vec<i32> = days.windows(2).map(|pair| pair[1] - pair[0]).collect();
                assert!(gaps.iter().all(|gap| *gap == 1), "{zone} {time}: {:?}", gaps.iter().position(|gap| *gap != 1));
                assert!(runs.len() >= 399, "{zone} {time}: {}", runs.len());
            }
        }
    }

    #[test]
    fn what_comes_every_hour_goes_by_the_time_that_passes() {
        let start = micros("2026-10-24T22:00:00Z");
        for (text, count) in [("0 * * * *", 6), ("*/15 * * * *", 24)] {
            let found = runs(&cron(text, Tz::Europe__Zurich), start, steps(start, start + 6 * HOUR, MINUTE));
            assert_eq!(found.len(), count, "{text}: {found:?}");
        }
    }

    /// Named hours are hours of the wall, also where they are told as every second one: in spring and in autumn, on both sides of the world.
    #[test]
    fn hours_that_are_named_come_once_a_day_each() {
        for zone in [Tz::Europe__Zurich, Tz::America__New_York, Tz::Australia__Lord_Howe] {
            for (step, a_day) in [(2, 12), (3, 8), (6, 4), (12, 2)] {
                let schedule = cron(&format!("0 */{step} * * *"), zone);
                let start = zone.with_ymd_and_hms(2026, 1, 1, 0, 30, 0).unwrap().timestamp_micros();
                let found = runs(&schedule, start, steps(start, start + 364 * DAY, 15 * MINUTE));
                let mut days = std::collections::BTreeMap::<_, Vec<u32>>::new();
                for run in &found {
                    let time = zone.timestamp_micros(*run).unwrap();
                    days.entry(time.date_naive()).or_default().push(time.hour());
                }
                let first = zone.timestamp_micros(start).unwrap().date_naive();
                let last = *days.keys().next_back().unwrap();
                for (day, hours) in days.into_iter().filter(|(day, _)| *day != first && *day != last) {
                    assert_eq!(hours.len(), a_day, "{zone} */{step} on {day}: {hours:?}");
                    // Where the hour is left out, its run comes right behind the gap.
                    let off = hours.iter().filter(|hour| *hour % step != 0).count();
                    assert!(off <= 1 && hours.is_sorted(), "{zone} */{step} on {day}: {hours:?}");
                }
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_makes_no_run_twice_and_none_be_left_out() {
        let nightly = cron("0 3 * * *", Tz::UTC);
        let known = micros("2026-11-01T12:00:00Z");
        let three = micros("2026-11-02T03:00:00Z");
        // An hour back, right after the run: it is three o'clock again.
        let again =
            steps(three, three + 30 * MINUTE, MINUTE).chain(steps(three - 30 * MINUTE, three + DAY - MINUTE, MINUTE));
        assert_eq!(runs(&nightly, known, again), [three]);
        // The run began a moment late, and the clock is set back over its time, again and again.
        let late = three + SECOND / 5;
        let over_and_over = (0..5).flat_map(|n| steps(three - (30 - n) * MINUTE, three + 29 * MINUTE, MINUTE));
        let found = runs(&nightly, known, [late].into_iter().chain(over_and_over).chain([three + DAY]));
        assert_eq!(found, [late, three + DAY]);
        let hourly = cron("0 * * * *", Tz::UTC);
        let back_and_on = steps(three - 59 * MINUTE, three + 2 * HOUR, MINUTE);
        let found = runs(&hourly, three - HOUR, [late].into_iter().chain(back_and_on));
        assert_eq!(found, [late, three + HOUR, three + 2 * HOUR]);
        // Ten years on, and back again: the days in between come all the same.
        let years_on = three + 3_650 * DAY + 5 * HOUR;
        let there = steps(three, three + HOUR, MINUTE).chain([years_on, years_on + MINUTE]);
        let jumped = there.chain(steps(three + HOUR, three + 2 * DAY, MINUTE));
        assert_eq!(runs(&nightly, known, jumped), [three, years_on, three + DAY, three + 2 * DAY]);
        // The same of what is counted from the last run.
        let quarter = every(Duration::from_secs(900));
        let set_back = steps(three, three + 20 * MINUTE, MINUTE).chain(steps(three - DAY, three - DAY + HOUR, MINUTE));
        let found = runs(&quarter, three, set_back);
        assert_eq!(found[0], three + 15 * MINUTE);
        assert_eq!(found[1..], [15, 30, 45, 60].map(|minutes| three - DAY + minutes * MINUTE));
    }

    #[test]
    fn jitter_comes_later_by_less_than_it_says_and_the_same_after_a_restart() {
        let spread =
            |job: &str| Schedule::new(job, Times::cron("0 * * * *", Tz::UTC).unwrap(), Duration::from_secs(600));
        let known = micros("2026-11-01T12:00:00Z");
        let delays = |job: &str| -> Vec<i64> {
            (0..50)
                .map(|hour| match spread(job).due(known + hour * HOUR, known + hour * HOUR) {
                    Due::At(time) => time - known - (hour + 1) * HOUR,
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        let drawn = delays("a");
        assert!(drawn.iter().all(|delay| (0..600 * SECOND).contains(delay)), "{drawn:?}");
        assert!(drawn.iter().any(|delay| *delay != drawn[0]) && drawn != delays("b"));
        assert_eq!(drawn, delays("a"));
        assert_eq!(runs(&spread("a"), known, steps(known, known + DAY + 600 * SECOND, 7 * SECOND)).len(), 24);
    }

    #[test]
    fn what_is_no_schedule_is_refused_and_one_that_never_comes_is_known() {
        for wrong in ["", "* * * *", "0 0 3 * * *", "61 * * * *", "x * * * *", "0 3 * * * 2027"] {
            assert!(Times::cron(wrong, Tz::UTC).is_err(), "{wrong:?} was taken");
        }
        assert_eq!(Times::cron("0 0 30 2 *", Tz::UTC).unwrap().next(0), None);
        assert_eq!(cron("0 0 30 2 *", Tz::UTC).due(i64::MAX, 0), Due::Never);
    }

    proptest! {
        /// Whenever it is asked, in whatever steps, over outages and with a clock that moves back by less than a period: between two times
        /// of the schedule it never runs twice, and it has run when it was asked behind one.
        #[test]
        fn once_between_two_times(
            pauses in proptest::collection::vec((1_i64..200_000, 0_i64..1_800), 1..300),
            hour in 0_u32..24,
            jitter in 0_u64..3_600,
        ) {
            let times = Times::cron(&format!("17 {hour} * * *"), Tz::Europe__Zurich).unwrap();
            let schedule = Schedule::new("any", times.clone(), Duration::from_secs(jitter));
            let start = micros("2026-01-01T12:00:00Z");
            let (mut now, mut highest, mut last, mut slots) = (start, start, start, Vec::new());
            for (pause, back) in pauses {
                now += pause * SECOND;
                highest = highest.max(now);
                let asked = now - back.min(pause / 2) * SECOND;
                match schedule.due(asked, last) {
                    Due::Now => {
                        slots.push(times.next(last).unwrap());
                        last = asked;
                    }
                    Due::Stale => prop_assert!(false, "a small step back is none"),
                    Due::At(time) => prop_assert!(time > asked),
                    Due::Never => prop_assert!(false),
                }
                let owed = times.next(last).unwrap() + (jitter as i64) * SECOND;
                prop_assert!(owed >= asked, "left out: {owed} at {asked}");
            }
            prop_assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "twice");
        }

        /// A clock that is set on and back at will, by seconds or by weeks: set back within a period, no time of the schedule has a second
        /// run; by more, that is seen; and whatever happened, two periods of a clock that goes have a run.
        #[test]
        fn clocks_that_jump_make_it_neither_none_nor_two(
            jumps in proptest::collection::vec((-40_i64..40, 0_i64..86_400, 0_i64..2 * HOUR), 1..60),
            text in prop::sample::select(vec!["17 3 * * *", "0 */6 * * *", "0 * * * *", "*/20 * * * *", "30 2 * * 1"]),
            jitter in 0_u64..600,
        ) {
            let times = Times::cron(text, Tz::Europe__Zurich).unwrap();
            let schedule = Schedule::new("any", times.clone(), Duration::from_secs(jitter));
            // How many times of the schedule lie behind the one and not behind the other.
            let between = |from: i64, to: i64| -> usize {
                std::iter::successors(times.next(from), |time| times.next(*time)).take_while(|time| *time <= to).take(3).count()
            };
            let start = micros("2026-03-01T12:00:00Z");
            let (mut now, mut last) = (start, start);
            for (hours, seconds, later) in jumps {
                // By hours, or by seconds alone; then it goes on for some time.
                now = (now + hours * HOUR + if hours % 2 == 0 { seconds * SECOND } else { -seconds * SECOND }).max(start);
                for asked in [now, now + later / 2, now + later] {
                    match schedule.due(asked, last) {
                        Due::Now => {
                            prop_assert!(between(last, asked) >= 1, "a time had two runs: {last} and {asked}");
                            last = asked;
                        }
                        Due::Stale => {
                            prop_assert!(between(asked, last) >= 2, "{asked} is within a period of {last}");
                            last = asked;
                        }
                        Due::At(time) => prop_assert!(time > asked),
                        Due::Never => prop_assert!(false),
                    }
                    prop_assert!(between(asked, last) < 3, "{last} is never reached again from {asked}");
                }
                now += later;
            }
            let two = times.next(times.next(times.next(now).unwrap()).unwrap()).unwrap() + jitter as i64 * SECOND;
            prop_assert!(!runs(&schedule, last, steps(now, two, MINUTE).chain([two])).is_empty(), "none from {now} to {two}, {last}");
        }

        #[test]
        fn no_time_panics(now in any::<i64>(), last in any::<i64>(), seconds in 1_u64..100_000_000) {
            let _ = every(Duration::from_secs(seconds)).due(now, last);
            let _ = cron("*/7 3 1,15 * 1-5", Tz::America__Santiago).due(now, last);
        }
    }
}
