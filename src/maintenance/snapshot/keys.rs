//! `[jobs.X]` with `type = "snapshot"`: its keys, and what follows from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::Deserializer;

use super::Snapshots;
use super::reducer::{Calculator, Reducer};
use super::tables::Schema;
use crate::maintenance::keys::{self, job_section};
use crate::maintenance::{Settings, Sources, registry};
use crate::setting::Checker;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::{Keyed, Kind};
use crate::setting::problem::KeyPath;
use crate::source;

const EVERY: Duration = Duration::from_hours(1);
const EVERY_EVENTS: u64 = 50;
const EVERY_EVENTS_MAX: u64 = 1_000_000_000;
const REDUCER: &str = "write \"merge-patch\", \"none\", or a table with an expression for each event type";

job_section! {
    /// Folds streams that have grown, and writes a snapshot of each into the application's file, in its own shape: for the presets `outboxd`,
    /// `eventsource-py` and `flightdeck`. A snapshot is gone on from when the same reducer has made it, else it is made anew.
    /// `outboxd job verify` folds everything from the first event on and compares. Not said when: every hour.
    Snapshot, "[jobs.<name>] with type = \"snapshot\"" {
        /// The source, of which the streams' events are read.
        source: String, Required, r#""shop_events""#;
        /// A stream is due when so many events are behind its snapshot.
        every_events: u64, Value("50"), "100";
        /// How a state follows from events, by stream type (`"*"` = all others). `"merge-patch"`: each event's data is a patch (RFC 7396); right where
        /// events carry state; lists are replaced, and counters come out wrong. A table: an SQL expression for each event type (`"*"` = all
        /// others) that gives the next state, as JSON, out of `:state` (`{}` at first) and `:position`, `:id`, `:stream_id`, `:stream_type`,
        /// `:version`, `:type`, `:data`, `:metadata`, `:time`; it must not depend on anything else, as on the time of now. `"none"`: left alone.
        /// For `flightdeck` it is always the list of the events, as its own code wants it.
        reducers: Reducers, Absent("must be said, but for `flightdeck`"), r#"{ Order = "merge-patch", Cart = { Added = "json_set(:state, '$.n', :version)" } }"#;
        /// For `eventsource-py`: the number that the aggregate's class calls `schema_version`, by type (`"*"` = all others). Raise it with the reducer.
        schema_versions: Numbers, Absent("1"), "{ Order = 2 }";
    }
}

/// By stream type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reducers(BTreeMap<String, Said>);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a word in quotes, or a table with an SQL expression for each event type")]
enum Said {
    Word(String),
    Expressions(BTreeMap<String, String>),
}

/// By name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers(pub(in crate::maintenance) BTreeMap<String, u64>);

impl Keyed for Reducers {
    const KIND: Kind = Kind::Named;
}

impl Keyed for Numbers {
    const KIND: Kind = Kind::Named;
}

impl<'de> Deserialize<'de> for Reducers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self)
    }
}

impl registry::Keys for Snapshot {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let schedule = self.timing().resolve(name, Some(EVERY), checker);
        let every_events =
            checker.within(&key("every_events"), self.every_events.unwrap_or(EVERY_EVENTS), 1, EVERY_EVENTS_MAX);
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let reason = "snapshots are written in the shape of the presets outboxd, eventsource-py and flightdeck only: where another application \
                      keeps its own is not known";
        let schema = schema(&source, &key("source"), reason, checker)?;
        let reducers = self.reducers(name, schema, checker)?;
        let schema_versions = self.schema_versions.clone().unwrap_or_default().0;
        if schema != Schema::EventsourcePy && self.schema_versions.is_some() {
            let reason = "only eventsource-py's snapshots bear such a number";
            checker.refuse(key("schema_versions"), reason, "leave it out");
        }
        let job = Snapshots {
            name: name.to_owned(),
            source: source.clone(),
            schema,
            every_events: every_events as i64,
            reducers,
            schema_versions,
        };
        Some(Settings {
            name: name.to_owned(),
            kind: "snapshot",
            schedule: schedule?,
            home: source,
            job: Arc::new(job),
        })
    }
}

/// The schema of the source's preset; `reason` says why there has to be one.
pub(in crate::maintenance) fn schema(
    source: &source::Settings,
    key: &KeyPath,
    reason: &str,
    checker: &mut Checker<'_>,
) -> Option<Schema> {
    let known = Schema::PRESETS.iter().find(|(preset, _)| source.preset.as_deref() == Some(preset));
    if known.is_none() {
        checker.refuse(key.clone(), reason, "name a source with one of these presets");
    }
    known.map(|(_, schema)| *schema)
}

impl Snapshot {
    fn reducers(
        &self,
        name: &str,
        schema: Schema,
        checker: &mut Checker<'_>,
    ) -> Option<BTreeMap<String, Option<Reducer>>> {
        let key = KeyPath::of(["jobs", name, "reducers"]);
        let said = self.reducers.clone().unwrap_or_default().0;
        if schema == Schema::Flightdeck {
            if !said.is_empty() {
                let reason = "FlightDeck's own code folds a list of events: its snapshots are that list";
                checker.refuse(key, reason, "leave `reducers` out");
            }
            return Some(BTreeMap::from([(super::ANY.to_owned(), Some(Reducer::Events))]));
        }
        if said.is_empty() && !checker.is_refused(&key) {
            let reason = "how a state follows from events must be said for each stream type: it cannot be guessed";
            checker.refuse(
                key.clone(),
                reason,
                format!("for example: reducers = {{ Order = \"merge-patch\" }}; {REDUCER}"),
            );
        }
        let calculator = Calculator::new().expect("a database in memory can be opened");
        let mut reducers = BTreeMap::new();
        for (kind, said) in said {
            let reducer = match said {
                Said::Word(word) if word == "merge-patch" => Some(Reducer::MergePatch { without: schema.envelope() }),
                Said::Word(word) if word == "none" => None,
                Said::Word(word) => {
                    checker.refuse(key.join(&kind), format!("there is no reducer {word:?}"), REDUCER);
                    continue;
                }
                Said::Expressions(expressions) => {
                    for (event, expression) in &expressions {
                        if let Err(error) = calculator.check(expression) {
                            let reason = format!("this is no SQL expression that only calculates: {error}");
                            let remedy = "write one that gives the next state, as in \"json_set(:state, '$.total', :data ->> 'total')\"";
                            checker.refuse(key.join(&kind).join(event), reason, remedy);
                        }
                    }
                    Some(Reducer::Sql(expressions))
                }
            };
            reducers.insert(kind, reducer);
        }
        Some(reducers)
    }
}
