//! `[jobs.X]` with `type = "archive"`: its keys, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use super::Archive as Job;
use super::tables::ARCHIVE;
use crate::maintenance::keys::{self, job_section};
use crate::maintenance::readers::{Reader, Readers};
use crate::maintenance::snapshot::keys::{Numbers, schema};
use crate::maintenance::snapshot::tables::Schema;
use crate::maintenance::{Settings, Sources, registry};
use crate::setting::key::Fallback::{Absent, Required};
use crate::setting::problem::KeyPath;
use crate::setting::value::Span;
use crate::setting::{Checker, Nanos};
use crate::source;
use crate::source::declared::{Declared, From};
use crate::sqlite::place;

const EVERY: Duration = Duration::from_hours(24);
const AGE_MAX: Span = Span(Duration::from_hours(100 * 366 * 24));

job_section! {
    /// Moves events that their stream's snapshot holds to the table `archived_events` of the same file, where every reader of outboxd's finds them as
    /// if they had not moved: for the presets `outboxd`, `eventsource-py` and `flightdeck`. Never moved is what a consumer has not passed, configured
    /// ones that have never started and eventsource-py's own projections included; what is held, or behind a held event; what a row of the outbox refers to that is not
    /// published; and each stream's newest event. A run says what holds events back. Not said when: once a day.
    Archive, "[jobs.<name>] with type = \"archive\"" {
        /// The source, whose events are moved.
        source: String, Required, r#""shop_events""#;
        /// Only events that are older, by their own time.
        older_than: Span, Absent("any age"), r#""720h""#;
        /// For `eventsource-py`, whose code reads `events` alone: said when the application loads aggregates with snapshots, and takes what
        /// it needs of older events from `archived_events`.
        application_reads_archive: bool, Absent("false"), "true";
        /// For `eventsource-py`: the number that the aggregate's class calls `schema_version`, by type (`"*"` = all others). The library takes no
        /// snapshot of another number, and so no event is moved that only such a one holds.
        schema_versions: Numbers, Absent("1"), "{ Order = 2 }";
    }
}

impl registry::Keys for Archive {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let schedule = self.timing().resolve(name, Some(EVERY), checker);
        if let Some(age) = self.older_than {
            checker.within(&key("older_than"), Nanos(age), Nanos(Span(Duration::ZERO)), Nanos(AGE_MAX));
        }
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let reason = "events are moved in the tables of the presets outboxd, eventsource-py and flightdeck only: what else depends on another \
                      application's is not known";
        let schema = schema(&source, &key("source"), reason, checker)?;
        let is_log = |table: &Declared| is_events(table) && table.rows.is_none();
        if !source.tables.iter().all(is_log) {
            let reason = "this source reads another table than `events`, and only events are archived";
            checker.refuse(key("source"), reason, "name a source with read = \"events\"");
        }
        self.application(name, schema, checker);
        let job = Job {
            name: name.to_owned(),
            readers: readers(&source, &key("source"), sources, checker),
            source: source.clone(),
            schema,
            older_than: self.older_than.map(|age| age.0),
            schema_versions: self.schema_versions.clone().unwrap_or_default().0,
        };
        Some(Settings { name: name.to_owned(), kind: "archive", schedule: schedule?, home: source, job: Arc::new(job) })
    }
}

impl Archive {
    /// What only eventsource-py's applications have to say.
    fn application(&self, name: &str, schema: Schema, checker: &mut Checker<'_>) {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        if schema == Schema::EventsourcePy {
            if self.application_reads_archive != Some(true) && !checker.is_refused(&key("application_reads_archive")) {
                let reason = "eventsource-py reads `events` alone: an aggregate that is loaded without a snapshot (or whose class has another \
                              schema_version), a projection that is made anew, a look at all events would see a history without its beginning";
                let remedy = "when the application loads aggregates with snapshots, and takes older events from `archived_events` where it needs \
                              them, say application_reads_archive = true";
                checker.refuse(key("application_reads_archive"), reason, remedy);
            }
            return;
        }
        for (part, is_said) in [
            ("application_reads_archive", self.application_reads_archive.is_some()),
            ("schema_versions", self.schema_versions.is_some()),
        ] {
            if is_said {
                checker.refuse(key(part), "only eventsource-py's applications have to say this", "leave it out");
            }
        }
    }
}

fn is_events(table: &Declared) -> bool {
    table.from.table().is_some_and(|table| table.eq_ignore_ascii_case("events"))
}

fn reads_archive(table: &Declared) -> bool {
    let (From::Table { archive, .. } | From::Fed { archive, .. }) = &table.from else { return false };
    archive.as_ref().is_some_and(|archive| archive.eq_ignore_ascii_case(ARCHIVE))
}

/// Everybody who reads the same file. One that would not find what was moved is refused.
pub fn readers(source: &source::Settings, key: &KeyPath, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Readers {
    let file = place::real(&source.path);
    let mut readers = Readers { file: source.path.clone(), table: "events".into(), ..Readers::default() };
    for section in sources.resolved.values().filter(|section| place::real(&section.path) == file) {
        let name = &section.name;
        let reads_by_sql = |table: &Declared| match &table.from {
            From::Query(sql) => sql.to_lowercase().contains("events"),
            From::Table { .. } | From::Fed { .. } => false,
        };
        if section.tables.iter().any(reads_by_sql) {
            let reason = format!(
                "[sources.{name}] reads events of this file by a query of its own, which would not find those that are archived"
            );
            checker.refuse(key.clone(), reason, format!("read them there by `table`, with archive = \"{ARCHIVE}\""));
        } else if section.tables.iter().any(is_events) && !section.tables.iter().any(reads_archive) {
            let reason = format!(
                "[sources.{name}] reads `events` of this file without its archive, and would not find events that are moved"
            );
            checker.refuse(key.clone(), reason, format!("say archive = \"{ARCHIVE}\" there"));
        }
        readers.add_state(section.state_path());
        for (consumer, placed) in sources.consumers.iter().filter(|(_, placed)| placed.name == *name) {
            // The same file, whatever it is called there.
            let state = placed.state_path();
            let state = if place::real(&state) == file { source.path.clone() } else { state };
            let reader = Reader { name: consumer.clone(), state: state.clone() };
            if section.tables.iter().any(is_events) {
                readers.events.push(reader);
            } else {
                readers.outbox.push(reader);
            }
            readers.add_state(state);
        }
    }
    readers.named = sources.consumers.iter().map(|(consumer, _)| consumer.clone()).collect();
    readers
}
