//! Keys that every job has: when it runs.

use std::time::Duration;

use chrono_tz::{TZ_VARIANTS, Tz};

use super::schedule::{Schedule, Times};
use crate::clock;
use crate::setting::problem::{KeyPath, either, nearest};
use crate::setting::value::Span;
use crate::setting::{Checker, Nanos};
use crate::source;

const EVERY_MIN: Span = Span(Duration::from_secs(1));
const EVERY_MAX: Span = Span(Duration::from_hours(366 * 24));
const JITTER_MAX: Span = Span(Duration::from_hours(24));

/// Declares the section of a type of job: [`crate::setting::key::section!`], with the keys that every job has before its own.
macro_rules! job_section {
    (
        $(#[doc = $about:literal])*
        $name:ident, $heading:literal { $($own:tt)* }
    ) => {
        $crate::setting::key::section! {
            $(#[doc = $about])*
            $name, $heading {
                /// What the job does.
                r#type: String, $crate::setting::key::Fallback::Required, r#""snapshot""#;
                /// When it runs, as cron says it: minute, hour, day of the month, month, weekday. A run that was missed is caught up once.
                schedule: String, $crate::setting::key::Fallback::Absent("`every` tells"), r#""0 3 * * *""#;
                /// The zone of `schedule`'s clock. A time of day that summer time leaves out comes right behind the gap; one that comes twice, once.
                time_zone: String, $crate::setting::key::Fallback::Value(r#""UTC""#), r#""Europe/Zurich""#;
                /// In place of `schedule`: so long after the last run began.
                every: $crate::setting::value::Span, $crate::setting::key::Fallback::Absent("`schedule` tells, or see the type"), r#""15m""#;
                /// Each run comes later by a random part of this.
                jitter: $crate::setting::value::Span, $crate::setting::key::Fallback::Value(r#""0s""#), r#""5m""#;
                $($own)*
            }
        }

        impl $name {
            fn timing(&self) -> $crate::maintenance::keys::Timing<'_> {
                $crate::maintenance::keys::Timing {
                    schedule: self.schedule.as_deref(),
                    time_zone: self.time_zone.as_deref(),
                    every: self.every,
                    jitter: self.jitter,
                }
            }
        }
    };
}

pub(crate) use job_section;

/// What a section says about when.
pub struct Timing<'a> {
    pub schedule: Option<&'a str>,
    pub time_zone: Option<&'a str>,
    pub every: Option<Span>,
    pub jitter: Option<Span>,
}

impl Timing<'_> {
    /// `usual` holds where nothing is said.
    pub fn resolve(&self, job: &str, usual: Option<Duration>, checker: &mut Checker<'_>) -> Option<Schedule> {
        let key = |part: &str| KeyPath::of(["jobs", job, part]);
        let jitter = self.jitter.unwrap_or(Span(Duration::ZERO));
        checker.within(&key("jitter"), Nanos(jitter), Nanos(Span(Duration::ZERO)), Nanos(JITTER_MAX));
        if self.time_zone.is_some() && self.schedule.is_none() {
            checker.refuse(key("time_zone"), "this is the zone of `schedule`, which is not said", "leave it out");
        }
        let times = match (self.schedule, self.every) {
            (Some(_), Some(_)) => {
                checker.refuse(key("every"), "`schedule` and `every` are both said", "keep one of them");
                None
            }
            (Some(text), None) => {
                cron(text, zone(self.time_zone, &key("time_zone"), checker)?, &key("schedule"), checker)
            }
            (None, Some(every)) => {
                checker.within(&key("every"), Nanos(every), Nanos(EVERY_MIN), Nanos(EVERY_MAX));
                Some(Times::Every(every.0))
            }
            (None, None) if checker.is_refused(&key("every")) || checker.is_refused(&key("schedule")) => None,
            (None, None) => match usual {
                Some(every) => Some(Times::Every(every)),
                None => {
                    let remedy = "for example: schedule = \"0 3 * * *\", or every = \"15m\"";
                    checker.refuse(key("schedule"), "when it runs must be said", remedy);
                    None
                }
            },
        };
        Some(Schedule::new(job, times?, jitter.0))
    }
}

fn cron(text: &str, zone: Tz, key: &KeyPath, checker: &mut Checker<'_>) -> Option<Times> {
    const REMEDY: &str = "write minute, hour, day of the month, month and weekday, as in \"30 3 * * 1-5\"";
    match Times::cron(text, zone) {
        Ok(times) if times.next(clock::now_micros()).is_some() => Some(times),
        Ok(_) => {
            checker.refuse(key.clone(), format!("{text:?} never comes"), REMEDY);
            None
        }
        Err(error) => {
            checker.refuse(key.clone(), format!("{text:?} is no schedule: {error}"), REMEDY);
            None
        }
    }
}

fn zone(said: Option<&str>, key: &KeyPath, checker: &mut Checker<'_>) -> Option<Tz> {
    let said = said.unwrap_or("UTC");
    let zone = said.parse().ok();
    if zone.is_none() {
        let remedy = match nearest(said, TZ_VARIANTS.iter().map(|zone| zone.name())) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "write a name as in \"Europe/Zurich\", or \"UTC\"".to_owned(),
        };
        checker.refuse(key.clone(), format!("there is no time zone {said:?}"), remedy);
    }
    zone
}

/// The source that a job names.
pub fn source(
    job: &str,
    said: Option<&String>,
    sources: &super::registry::Sources<'_>,
    checker: &mut Checker<'_>,
) -> Option<source::Settings> {
    let key = KeyPath::of(["jobs", job, "source"]);
    let name = checker.require(&key, said)?;
    if let Some(source) = sources.resolved.get(&name) {
        return Some(source.clone());
    }
    if !sources.named.contains(&name) {
        let names = || sources.named.iter().map(String::as_str);
        let remedy = match (nearest(&name, names()), names().next()) {
            (Some(near), _) => format!("did you mean {near:?}?"),
            (None, Some(_)) => format!("known are {}", either(names())),
            (None, None) => format!("write a section [sources.{name}]"),
        };
        checker.refuse(key, format!("there is no section [sources.{name}]"), remedy);
    }
    None
}
