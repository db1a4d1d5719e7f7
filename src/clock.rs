//! The only place that asks what time it is, and the reading of times that applications write.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 UTC. A clock before 1970 reads as 0.
#[expect(clippy::disallowed_methods, reason = "this is the room of the clock")]
pub fn now_micros() -> i64 {
    micros_of(SystemTime::now())
}

/// The same of a time that a file bears.
pub fn micros_of(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Microseconds of a clock that nobody sets: what is waited for is measured with it.
pub fn steady_micros() -> i64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as i64
}

/// A time to come: by the clock on the wall, for the record, and by the steady one, by which it is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    pub wall_micros: i64,
    pub steady_micros: i64,
}

impl Moment {
    pub fn after(delay: Duration) -> Self {
        Self::of(now_micros().saturating_add(delay.as_micros() as i64), delay)
    }

    /// One that was recorded, no further away than `most`: the clock on the wall may have been set since.
    pub fn recorded(wall_micros: i64, most: Duration) -> Self {
        let left = wall_micros.saturating_sub(now_micros()).clamp(0, most.as_micros() as i64);
        Self::of(wall_micros, Duration::from_micros(left as u64))
    }

    fn of(wall_micros: i64, left: Duration) -> Self {
        Self { wall_micros, steady_micros: steady_micros() + left.as_micros() as i64 }
    }
}

/// `2026-11-21T02:43:00.123456Z`.
pub fn iso(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| format!("{micros}us"), |t| format!("{t:.6}"))
}

/// Whether so many microseconds are a time in the years 1 to 9999.
pub fn is_a_time(micros: i64) -> bool {
    (-62_135_596_800_000_000..=253_402_207_200_000_000).contains(&micros)
}

/// As Python's `datetime.now(UTC).isoformat()`: an offset, and no fraction where it is zero.
pub fn python_iso(micros: i64) -> String {
    let text = iso(micros);
    let text = text.strip_suffix('Z').unwrap_or(&text);
    format!("{}+00:00", text.strip_suffix(".000000").unwrap_or(text))
}

/// Reads ISO 8601 with `T` or a space, zero to nine digits of fraction, and `Z`, an offset or nothing (= UTC).
/// `None` when the text is no such time.
pub fn parse_micros(text: &str) -> Option<i64> {
    let bytes = text.trim_ascii().as_bytes();
    if bytes.len() < 19 || !matches!(bytes[10], b'T' | b't' | b' ') || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let (year, month, day) = (number(&bytes[0..4])?, number(&bytes[5..7])?, number(&bytes[8..10])?);
    let (hour, minute, second) = (number(&bytes[11..13])?, number(&bytes[14..16])?, number(&bytes[17..19])?);
    if bytes[13] != b':' || bytes[16] != b':' || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let (fraction_micros, rest) = fraction(&bytes[19..])?;
    let offset_seconds = offset(rest)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_seconds;
    Some(seconds * 1_000_000 + fraction_micros)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
}

fn fraction(bytes: &[u8]) -> Option<(i64, &[u8])> {
    if bytes.first() != Some(&b'.') {
        return Some((0, bytes));
    }
    let count = bytes[1..].iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 || count > 9 {
        return None;
    }
    let digits = number(&bytes[1..=count])?;
    let micros = if count <= 6 { digits * 10_i64.pow(6 - count as u32) } else { digits / 10_i64.pow(count as u32 - 6) };
    Some((micros, &bytes[1 + count..]))
}

fn offset(bytes: &[u8]) -> Option<i64> {
    match bytes {
        [] | [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), rest @ ..] => {
            let (hours, minutes) = match rest {
                [h1, h2] => (number(&[*h1, *h2])?, 0),
                [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => (number(&[*h1, *h2])?, number(&[*m1, *m2])?),
                _ => return None,
            };
            let seconds = hours * 3_600 + minutes * 60;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Howard Hinnant's days_from_civil.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_not_waited_for_longer_than_it_could_have_taken() {
        let most = Duration::from_secs(5);
        for (wall, least, longest) in
            [(now_micros() + 3_600_000_000, 5, 5), (now_micros() + 2_000_000, 1, 2), (i64::MIN, 0, 0), (i64::MAX, 5, 5)]
        {
            let left = Moment::recorded(wall, most).steady_micros - steady_micros();
            assert!((least * 1_000_000 - 500_000..=longest * 1_000_000).contains(&left), "{wall}: {left}");
        }
    }

    #[test]
    fn python_leaves_out_a_fraction_of_zero() {
        assert_eq!(python_iso(1_795_228_980_000_000), "2026-11-21T02:43:00+00:00");
        assert_eq!(python_iso(1_795_228_980_000_120), "2026-11-21T02:43:00.000120+00:00");
    }

    #[test]
    fn the_formats_that_applications_write_are_read() {
        let expected = 1_795_228_980_000_000;
        for text in [
            "2026-11-21T02:43:00Z",
            "2026-11-21 02:43:00",
            "2026-11-21T02:43:00+00:00",
            "2026-11-21T03:43:00+01:00",
            "2026-11-21T02:43:00.000000000Z",
            "2026-11-20T23:13:00-0330",
        ] {
            assert_eq!(parse_micros(text), Some(expected), "{text}");
        }
        assert_eq!(parse_micros("2026-11-21T02:43:00.123456+00:00"), Some(expected + 123_456));
        assert_eq!(parse_micros("2026-11-21T02:43:00.1239999Z"), Some(expected + 123_999));
        assert_eq!(parse_micros("1969-12-31T23:59:59Z"), Some(-1_000_000));
    }

    #[test]
    fn what_is_no_time_is_not_guessed() {
        for text in [
            "",
            "now",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-21",
            "2026-11-21T02:43:00.Z",
            "2026-11-21T02:43:00 CET",
        ] {
            assert_eq!(parse_micros(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_time_that_is_written_is_read_back(micros in 0_i64..4_102_444_800_000_000) {
            proptest::prop_assert_eq!(parse_micros(&iso(micros)), Some(micros));
        }

        #[test]
        fn a_time_with_an_offset_is_read_as_others_read_it(
            seconds in -62_000_000_000_i64..253_000_000_000,
            digits in 0_usize..=9,
            offset in -1_439_i32..=1_439,
            space in proptest::prelude::any::<bool>(),
        ) {
            let zone = jiff::tz::TimeZone::fixed(jiff::tz::Offset::from_seconds(offset * 60).unwrap());
            let time = jiff::Timestamp::new(seconds, 123_456_789).unwrap();
            let nanos = time.subsec_nanosecond();
            let seconds = time.as_second() - i64::from(nanos < 0);
            let text = format!("{:.9}", time.to_zoned(zone).datetime());
            let text = if digits == 0 { text[..19].to_owned() } else { text[..20 + digits].to_owned() };
            let text = if space { text.replace('T', " ") } else { text };
            let sign = if offset < 0 { '-' } else { '+' };
            let text = format!("{text}{sign}{:02}:{:02}", offset.abs() / 60, offset.abs() % 60);
            let read: i64 = text.get(20..20 + digits).map_or(0, |fraction| format!("{fraction:0<9}")[..6].parse().unwrap());
            proptest::prop_assert_eq!(parse_micros(&text), Some(seconds * 1_000_000 + if digits == 0 { 0 } else { read }), "{}", text);
        }

        #[test]
        fn what_was_recorded_is_due_between_now_and_what_it_could_have_taken(wall in proptest::prelude::any::<i64>(), most in 0_u64..4_500_000_000) {
            let before = steady_micros();
            let moment = Moment::recorded(wall, Duration::from_micros(most));
            proptest::prop_assert_eq!(moment.wall_micros, wall);
            proptest::prop_assert!(moment.steady_micros >= before);
            proptest::prop_assert!(moment.steady_micros <= steady_micros() + most as i64);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_micros(&text);
        }
    }
}
