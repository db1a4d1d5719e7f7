//! `[jobs.X]` with `type = "retention"`: its keys, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use super::{Retention as Job, What};
use crate::maintenance::keys::{self, job_section};
use crate::maintenance::readers::{Reader, Readers};
use crate::maintenance::snapshot::tables::Schema;
use crate::maintenance::{Settings, Sources, archive, registry};
use crate::setting::key::Fallback::{Absent, Required};
use crate::setting::problem::KeyPath;
use crate::setting::value::Span;
use crate::setting::{Checker, Nanos};
use crate::source;
use crate::source::declared::{Declared, From, Mark};
use crate::sqlite::place;

const EVERY: Duration = Duration::from_hours(24);
const AGE_MAX: Span = Span(Duration::from_hours(100 * 366 * 24));
const NEWEST_MAX: u64 = 1_000_000_000_000;
const WHATS: [(&str, What); 4] =
    [("published", What::Published), ("resolved", What::Resolved), ("runs", What::Runs), ("archived", What::Archived)];

job_section! {
    /// Deletes rows whose time is over, a few at a time: never one that a consumer (also one that has never started), a held key, a dead letter or a replay still
    /// needs. A run says what holds rows back; `outboxd job run NAME --dry-run` says what would go. Not said when: once a day.
    Retention, "[jobs.<name>] with type = \"retention\"" {
        /// The source, whose rows (or whose state's) are deleted.
        source: String, Required, r#""shop""#;
        /// Which rows: `"published"` (of the source's outbox, delivered), `"resolved"` (records of what was decided of dead letters, eventsource-py's own
        /// `dead_letter_queue` included), `"runs"` (the history of jobs), `"archived"` (events in `archived_events`).
        what: String, Required, r#""published""#;
        /// Only rows that are older. Published ones are as old as their mark says, else as the event.
        older_than: Span, Absent("any age"), r#""720h""#;
        /// So many of the newest rows stay, however old they are. One of `older_than` and `keep_newest` must be said.
        keep_newest: u64, Absent("0"), "100000";
        /// For `what = "archived"`: said when nobody needs events from the beginning any more. Rebuilds, new consumers, `job verify` would see a history without it.
        history_may_go: bool, Absent("false"), "true";
    }
}

impl registry::Keys for Retention {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let schedule = self.timing().resolve(name, Some(EVERY), checker);
        if let Some(age) = self.older_than {
            checker.within(&key("older_than"), Nanos(age), Nanos(Span(Duration::ZERO)), Nanos(AGE_MAX));
        }
        if let Some(newest) = self.keep_newest {
            checker.within(&key("keep_newest"), newest, 0, NEWEST_MAX);
        }
        if self.older_than.is_none() && self.keep_newest.is_none() && !checker.is_refused(&key("older_than")) {
            let remedy = "for example: older_than = \"720h\", or keep_newest = 100000";
            checker.refuse(key("older_than"), "which rows stay must be said", remedy);
        }
        let what =
            checker.require(&key("what"), self.what.as_ref()).map(|what| checker.choose(&key("what"), &what, &WHATS));
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let what = what?;
        if self.history_may_go.is_some() && what != What::Archived {
            checker.refuse(key("history_may_go"), "only what = \"archived\" deletes history", "leave it out");
        }
        let preset = Schema::PRESETS.iter().find(|(name, _)| source.preset.as_deref() == Some(name));
        let schema = preset.map(|(_, schema)| *schema);
        let readers = match what {
            What::Published => published(&source, &key("source"), sources, checker),
            What::Archived => self.archived(&source, schema, name, sources, checker),
            What::Resolved | What::Runs => Readers { file: source.path.clone(), ..Readers::default() },
        };
        let job = Job {
            name: name.to_owned(),
            what,
            source: source.clone(),
            schema,
            older_than: self.older_than.map(|age| age.0),
            keep_newest: self.keep_newest.unwrap_or(0),
            readers,
        };
        Some(Settings {
            name: name.to_owned(),
            kind: "retention",
            schedule: schedule?,
            home: source,
            job: Arc::new(job),
        })
    }
}

impl Retention {
    fn archived(
        &self,
        source: &source::Settings,
        schema: Option<Schema>,
        name: &str,
        sources: &Sources<'_>,
        checker: &mut Checker<'_>,
    ) -> Readers {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        if !matches!(schema, Some(Schema::Outboxd | Schema::EventsourcePy)) {
            let reason = "archived events are deleted of the presets outboxd and eventsource-py only: what else depends on another application's is not known";
            checker.refuse(key("source"), reason, "leave the job out");
        } else if !source.tables.iter().all(|table| is_of(table, "events")) {
            checker.refuse(
                key("source"),
                "this source reads another table than `events`",
                "name a source with read = \"events\"",
            );
        }
        if self.history_may_go != Some(true) && !checker.is_refused(&key("history_may_go")) {
            let reason = "events that are deleted are gone: a rebuild or `verify` of a projection, a new consumer, `job verify` would see a history \
                          without its beginning";
            checker.refuse(key("history_may_go"), reason, "when nobody needs it, say history_may_go = true");
        }
        let readers = archive::readers(source, &key("source"), sources, checker);
        let replaying = readers.events.iter().map(|reader| reader.name.clone()).collect();
        Readers { replaying, ..readers }
    }
}

fn is_of(table: &Declared, name: &str) -> bool {
    table.from.table().is_some_and(|table| table.eq_ignore_ascii_case(name))
}

/// Everybody who reads the same table; what cannot be known to be delivered is refused.
fn published(source: &source::Settings, key: &KeyPath, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Readers {
    let mut readers = Readers { file: source.path.clone(), ..Readers::default() };
    let Some(table) = table_of(source, key, checker) else { return readers };
    let file = place::real(&source.path);
    let by_row = source.is_by_row();
    for section in sources.resolved.values().filter(|section| place::real(&section.path) == file) {
        let reads = section.tables.iter().any(|declared| is_of(declared, &table));
        if let Some(how) =
            otherwise(section, &table).or((reads && section.is_by_row() != by_row).then_some("another way"))
        {
            let reason = format!(
                "[sources.{}] reads {table} in {how}, and so nothing tells which rows it still needs",
                section.name
            );
            checker.refuse(key.clone(), reason, "let all sources read the table in the same way, or leave the job out");
            continue;
        }
        if !reads {
            continue;
        }
        for (consumer, placed) in sources.consumers.iter().filter(|(_, placed)| placed.name == section.name) {
            let state = placed.state_path();
            // Projections have their checkpoints with their tables.
            if placed.state != section.state {
                let reason = format!(
                    "[projections.{consumer}] is built of {table}: its rebuild would not find rows that are deleted"
                );
                checker.refuse(key.clone(), reason, "keep the rows, or leave the projection out");
            }
            readers.add_state(state.clone());
            readers.replaying.push(consumer.clone());
            if !by_row {
                let state = if place::real(&state) == file { source.path.clone() } else { state };
                readers.events.push(Reader { name: consumer.clone(), state });
            }
        }
        readers.add_state(section.state_path());
    }
    if !by_row {
        readers.table = table.clone();
        if readers.events.is_empty() {
            let reason = format!("no relay carries the rows of {table}, and so none is published");
            checker.refuse(key.clone(), reason, "write a section [relays.X] for this source");
        }
    }
    readers.named = sources.consumers.iter().map(|(consumer, _)| consumer.clone()).collect();
    readers
}

/// The outbox, if rows of it can be deleted.
fn table_of(source: &source::Settings, key: &KeyPath, checker: &mut Checker<'_>) -> Option<String> {
    let refused = |declared: &Declared| match (&declared.from, &declared.rows) {
        (From::Query(_), _) => Some(("it reads by a query, and rows are deleted from a table only", "name the table")),
        (From::Fed { .. }, _) => Some((
            "it reads by its feed, in which rows that are gone would still be told",
            "let the application delete up to `outboxd_safe_position`",
        )),
        (From::Table { archive: Some(_), .. }, _) => Some((
            "it reads an event log: events are archived, and then deleted there",
            "name an outbox, or say what = \"archived\"",
        )),
        (From::Table { .. }, Some(rows)) => match &rows.on_delivered {
            Mark::Set(columns) if columns.is_empty() => {
                Some(("its rows are only read, and nothing tells which are delivered", "leave the job out"))
            }
            Mark::Set(_) => None,
            Mark::Delete | Mark::Archive(_) => {
                Some(("its rows leave the table when they are delivered", "leave the job out"))
            }
        },
        (From::Table { name, .. }, None) if source.preset.is_some() && name.eq_ignore_ascii_case("events") => Some((
            "it reads an event log: events are archived, and then deleted there",
            "name an outbox, or say what = \"archived\"",
        )),
        (From::Table { .. }, None) => None,
    };
    if let Some((reason, remedy)) = source.tables.iter().find_map(refused) {
        checker.refuse(key.clone(), reason, remedy);
        return None;
    }
    source.tables.first().and_then(|table| table.from.table()).map(str::to_owned)
}

/// A reader of the table whose needs nobody knows, and how it reads.
fn otherwise(section: &source::Settings, table: &str) -> Option<&'static str> {
    let names = |sql: &str| sql.to_lowercase().contains(&table.to_lowercase());
    section.tables.iter().find_map(|declared| match &declared.from {
        From::Query(sql) if names(sql) => Some("a query of its own"),
        From::Fed { table: fed, .. } if fed.eq_ignore_ascii_case(table) => Some("its feed"),
        From::Fed { join: Some(join), .. } | From::Table { join: Some(join), .. } if names(join) => Some("a join"),
        From::Fed { archive: Some(archive), .. } | From::Table { archive: Some(archive), .. }
            if archive.eq_ignore_ascii_case(table) =>
        {
            Some("what it calls its archive")
        }
        _ => None,
    })
}
