//! Which backups are kept: of each day, week, month and year the newest, for so many of them as there are backups of. Pure.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use chrono_tz::Tz;

/// How many days, weeks, months and years keep their newest backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    pub daily: u64,
    pub weekly: u64,
    pub monthly: u64,
    pub yearly: u64,
}

/// A stretch of the calendar, by the number of the tier and the stretch's own.
type Bucket = (u8, i32, u32);

impl Policy {
    /// Of these times (microseconds since 1970 UTC) those to keep, by the calendar of the zone. The newest is always among them.
    pub fn kept(&self, zone: Tz, times: impl IntoIterator<Item = i64>) -> BTreeSet<i64> {
        let newest_first: BTreeSet<i64> = times.into_iter().collect();
        let mut kept: BTreeSet<i64> = newest_first.last().copied().into_iter().collect();
        for (tier, most) in [self.daily, self.weekly, self.monthly, self.yearly].into_iter().enumerate() {
            let mut seen: BTreeSet<Bucket> = BTreeSet::new();
            for time in newest_first.iter().rev() {
                let is_new = !seen.contains(&bucket(tier as u8, zone, *time));
                if is_new && (seen.len() as u64) < most {
                    seen.insert(bucket(tier as u8, zone, *time));
                    kept.insert(*time);
                }
            }
        }
        kept
    }
}

fn bucket(tier: u8, zone: Tz, time: i64) -> Bucket {
    let time = DateTime::<Utc>::from_timestamp_micros(time).unwrap_or_default().with_timezone(&zone);
    let date: NaiveDate = time.date_naive();
    let week = date.iso_week();
    match tier {
        0 => (tier, date.year(), date.ordinal()),
        1 => (tier, week.year(), week.week()),
        2 => (tier, date.year(), date.month()),
        _ => (tier, date.year(), 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const DAY: i64 = 24 * 3_600_000_000;
    const GFS: Policy = Policy { daily: 7, weekly: 4, monthly: 12, yearly: 0 };

    fn micros(text: &str) -> i64 {
        clock::parse_micros(text).unwrap()
    }

    #[test]
    fn the_newest_of_each_day_week_and_month_stays() {
        // Every day at three from the first of January to the end of March, a Tuesday.
        let times: Vec<i64> = (0..90).map(|day| micros("2026-01-01T03:00:00Z") + day * DAY).collect();
        let kept: Vec<String> =
            GFS.kept(Tz::UTC, times).into_iter().map(|time| clock::iso(time)[..10].to_owned()).collect();
        let days = ["2026-03-25", "2026-03-26", "2026-03-27", "2026-03-28", "2026-03-29", "2026-03-30", "2026-03-31"];
        let expected = [&["2026-01-31", "2026-02-28", "2026-03-15", "2026-03-22"][..], &days].concat();
        assert_eq!(kept, expected);
    }

    #[test]
    fn the_zone_says_where_a_day_ends() {
        let times = ["2026-06-01T21:30:00Z", "2026-06-01T22:30:00Z"].map(micros);
        let one = Policy { daily: 9, weekly: 0, monthly: 0, yearly: 0 };
        assert_eq!(one.kept(Tz::UTC, times).len(), 1);
        assert_eq!(one.kept(Tz::Europe__Zurich, times).len(), 2);
    }

    proptest! {
        /// A year or three of days, with outages and days of several backups: what stands after each prune is exactly what the policy says of all
        /// that ever was, so that pruning early takes nothing that is wanted later.
        #[test]
        fn pruning_day_by_day_keeps_what_the_policy_says_of_all_that_was(
            days in prop::collection::vec(prop_oneof![6 => Just(1_u8), 2 => Just(0_u8), 1 => Just(3_u8)], 370..1_100),
            (daily, weekly, monthly, yearly) in (0_u64..10, 0_u64..6, 0_u64..14, 0_u64..3),
            at in 0..DAY,
        ) {
            let policy = Policy { daily, weekly, monthly, yearly };
            let zone = Tz::Europe__Zurich;
            let (mut all, mut standing) = (Vec::new(), BTreeSet::new());
            for (day, count) in days.iter().enumerate() {
                for n in 0..i64::from(*count) {
                    let time = micros("2024-01-01T00:00:00Z") + day as i64 * DAY + at + n * 3_600_000_000;
                    all.push(time);
                    standing.insert(time);
                    standing = policy.kept(zone, standing);
                    prop_assert!(standing.contains(&time), "the newest stays");
                }
            }
            let most = daily + weekly + monthly + yearly;
            prop_assert!(standing.len() as u64 <= most.max(1));
            prop_assert_eq!(standing, policy.kept(zone, all));
        }
    }
}
