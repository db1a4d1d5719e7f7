//! Tables whose rows go when their time is over: which rows have done what they were for, when that was, and what keeps one there all the same.
//!
//! SQL here is over the table as `o`. What keeps a row is asked once more in the statement that deletes it.

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension};

use super::What;
use crate::clock;
use crate::controls::{self, Protection};
use crate::maintenance::archive::ARCHIVE;
use crate::maintenance::snapshot::tables::Schema;
use crate::source::archive_file::{self, Witness};
use crate::source::declared::{Declared, Literal, Mark, Word};
use crate::source::fit::{self, Misfit, quoted};
use crate::source::mapping::Mapping;
use crate::source::{self, marking};
use crate::sqlite::open;

/// What says when is read only up to this size.
const TIME_BYTES_MAX: usize = 64 << 10;

/// Whose file the table stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Application,
    State,
}

/// A table, and SQL that fits it as it is.
#[derive(Debug)]
pub struct Target {
    pub place: Place,
    pub table: String,
    /// The row has done what it was for.
    pub done: String,
    /// And nothing keeps it there.
    pub free: String,
    /// What the limit of its readers is compared with.
    pub position: Option<String>,
    /// When that was: the first that is a time.
    pub times: Vec<Time>,
}

#[derive(Debug)]
pub struct Time {
    pub sql: String,
    pub form: Form,
}

/// How a time is written.
#[derive(Debug)]
pub enum Form {
    Iso,
    /// So many are a second.
    Epoch(i64),
    /// As the source says.
    Field(Box<Mapping>),
}

/// Something in the file keeps the job from its work: what, and the remedy.
type Found<T> = rusqlite::Result<Result<T, String>>;

impl Time {
    fn column(name: &str, form: Form) -> Self {
        Self { sql: bounded(&format!("o.{}", quoted(name))), form }
    }

    /// Microseconds since 1970; `None` where it is no time.
    pub fn micros(&self, value: &Value) -> Option<i64> {
        let value = ValueRef::from(value);
        match (&self.form, value) {
            (Form::Field(mapping), value) => clock::parse_micros(&mapping.time.text(value, "time", &mut None)?)
                .filter(|micros| clock::is_a_time(*micros)),
            (_, ValueRef::Text(text)) => clock::parse_micros(std::str::from_utf8(text).ok()?),
            (Form::Epoch(a_second), ValueRef::Integer(number)) => {
                number.checked_mul(1_000_000 / a_second).filter(|micros| clock::is_a_time(*micros))
            }
            _ => None,
        }
    }
}

fn bounded(sql: &str) -> String {
    format!("CASE WHEN octet_length({sql}) <= {TIME_BYTES_MAX} THEN {sql} END")
}

impl Target {
    /// `?1` a row, `?2` its position, from `?3` on its times: as it was read, and free to go.
    pub fn guard(&self) -> String {
        let position = self.position.as_deref().unwrap_or("NULL");
        let times: Vec<String> =
            self.times.iter().enumerate().map(|(n, time)| format!(" AND ({}) IS ?{}", time.sql, n + 3)).collect();
        format!("o.rowid = ?1 AND ({position}) IS ?2{} AND ({}) AND ({})", times.concat(), self.done, self.free)
    }

    /// The rows behind `?1` and before `?2`: rowid, whether it is done, position, times.
    pub fn page(&self, rows: usize) -> String {
        let times: Vec<String> = self.times.iter().map(|time| format!(", {}", time.sql)).collect();
        format!(
            "SELECT o.rowid, coalesce(({}), 0), {}{} FROM {} AS o WHERE o.rowid > ?1 AND o.rowid < ?2 ORDER BY o.rowid LIMIT {rows}",
            self.done,
            self.position.as_deref().unwrap_or("NULL"),
            times.concat(),
            quoted(&self.table)
        )
    }

    /// The job's tables, or what is wrong with them. `outbox`: rows of our outbox above it are not published.
    pub fn all(
        what: What,
        source: &source::Settings,
        schema: Option<Schema>,
        outbox: i64,
        app: &Connection,
    ) -> Found<Vec<Self>> {
        let mut targets = match what {
            What::Published => match published(source, app)? {
                Ok(target) => vec![target],
                Err(what) => return Ok(Err(what)),
            },
            What::Archived if archive_file::is_known(app)? && Witness::of(app)?.is_some() => {
                return Ok(Err("its archive is a file of its own, from which nothing is deleted. Remedy: leave this job out; where the \
                               history may go, archive into the same file"
                    .into()));
            }
            What::Archived => vec![archived(schema.unwrap_or(Schema::Outboxd), outbox, app)?],
            What::Runs => vec![Self::runs()],
            What::Resolved => [Some(Self::resolutions()), resolved(schema, app)?].into_iter().flatten().collect(),
        };
        for target in targets.iter_mut().filter(|target| target.place == Place::Application) {
            if let Some(what) = target.misfit(app)? {
                return Ok(Err(what));
            }
            target.keep_the_tail(app)?;
        }
        Ok(Ok(targets))
    }

    fn runs() -> Self {
        const T: &str = "outboxd_job_run";
        let later =
            |which: &str| format!("EXISTS (SELECT 1 FROM {T} n WHERE n.job = o.job AND n.rowid > o.rowid{which})");
        Self {
            place: Place::State,
            table: T.into(),
            done: "o.result IS NOT NULL".into(),
            // A job's newest run says when it is due, its newest that was done how it stands.
            free: format!("{} AND (o.result <> 'done' OR {})", later(""), later(" AND n.result = 'done'")),
            position: None,
            times: vec![Time::column("ended", Form::Iso), Time::column("began", Form::Iso)],
        }
    }

    fn resolutions() -> Self {
        Self {
            place: Place::State,
            table: "outboxd_resolution".into(),
            // A position that was moved says what nobody has read: `outboxd audit` asks for it as long as the file is there.
            done: "o.action <> 'position'".into(),
            free: "1".into(),
            position: None,
            times: vec![Time::column("at", Form::Iso)],
        }
    }

    fn misfit(&self, app: &Connection) -> rusqlite::Result<Option<String>> {
        let child: Option<String> = app
            .query_row(
                "SELECT m.name FROM sqlite_schema m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE LIMIT 1",
                [&self.table],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(child) = child {
            return Ok(Some(format!(
                "the table {child} refers to {} by a foreign key, and would lose what it refers to, or rows of its own. Remedy: make {child} without it",
                self.table
            )));
        }
        let tried = [self.page(1), format!("SELECT 1 FROM {} AS o WHERE {}", quoted(&self.table), self.guard())];
        let error = tried.iter().find_map(|sql| app.prepare(sql).err());
        Ok(error.map(|error| {
            format!(
                "of {} it cannot be told which rows may go: {error}. Remedy: a table with rowids, whose marks and times stand in columns of its own",
                self.table
            )
        }))
    }

    /// SQLite gives the number of the newest row out again when that is gone, unless the table is AUTOINCREMENT: then `sqlite_sequence` knows it.
    fn keep_the_tail(&mut self, app: &Connection) -> rusqlite::Result<()> {
        let has_sequence = !open::columns(app, "sqlite_sequence")?.is_empty();
        let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1 COLLATE NOCASE)";
        if controls::is_off(Protection::Tail)
            || has_sequence && app.query_row(sql, [&self.table], |row| row.get::<_, bool>(0))?
        {
            return Ok(());
        }
        let table = quoted(&self.table);
        self.free.push_str(&format!(" AND o.rowid < (SELECT max(t.rowid) FROM {table} AS t)"));
        if let Some(position) = self.position.clone().filter(|position| position != "o.rowid") {
            self.free.push_str(&format!(" AND {position} < (SELECT max({position}) FROM {table} AS o)"));
        }
        Ok(())
    }
}

/// Rows of an outbox that are delivered.
fn published(source: &source::Settings, app: &Connection) -> Found<Target> {
    let mapping = match fit::mapping(app, &source.tables)? {
        Ok(mapping) => mapping,
        Err(Misfit::NoTable(what) | Misfit::Unusable(what)) => return Ok(Err(what)),
    };
    let named = |table: &Declared| table.from.table().is_some_and(|name| name.eq_ignore_ascii_case(&mapping.table));
    let Some(declared) = source.tables.iter().find(|table| named(table)) else {
        return Ok(Err(format!(
            "[sources.{}] reads a view, and rows are deleted from a table only. Remedy: name the table {}",
            source.name, mapping.table
        )));
    };
    let mut target = Target {
        place: Place::Application,
        table: mapping.table.clone(),
        done: "1".into(),
        free: "1".into(),
        position: Some(mapping.position.clone()),
        times: Vec::new(),
    };
    if let (Some(rows), Some(marks)) = (&mapping.rows, &declared.rows) {
        let own = |name: &str| format!("o.{}", quoted(name.strip_prefix("o.").unwrap_or(name)));
        let Mark::Set(columns) = &marks.on_delivered else {
            return Ok(Err("its rows leave the table when they are delivered. Remedy: leave the job out".into()));
        };
        for (name, value) in columns {
            let form = match value {
                Literal::Word(Word::Now | Word::NowSpace) => Form::Iso,
                Literal::Word(Word::NowSeconds) => Form::Epoch(1),
                Literal::Word(Word::NowMillis) => Form::Epoch(1_000),
                Literal::Word(Word::NowMicros) => Form::Epoch(1_000_000),
                _ => continue,
            };
            target.times.push(Time::column(name.strip_prefix("o.").unwrap_or(name), form));
        }
        let delivered = match (marking::left_by(&marks.on_delivered, &own), target.times.as_slice()) {
            (Some(left), _) => left,
            (None, [time, ..]) => format!("({}) IS NOT NULL", time.sql),
            (None, []) => {
                return Ok(Err("nothing that is set in a delivered row tells it from others. Remedy: let on_delivered set a status, or a time".into()));
            }
        };
        let rejected = marks.on_rejected.as_ref().and_then(|mark| marking::left_by(mark, &own));
        let rejected = rejected.map_or(String::new(), |left| format!(" AND NOT ({left})"));
        target.done = format!("({delivered}) AND NOT coalesce(({}), 0){rejected}", rows.pending);
        if !open::columns(app, "outboxd_held")?.is_empty() && !controls::is_off(Protection::Needed) {
            // Mostly there is none, and nothing is searched.
            target.free = format!("NOT EXISTS (SELECT 1 FROM outboxd_held h WHERE h.row_id IS {})", mapping.row);
        }
        target.position = Some("o.rowid".into());
    }
    if mapping.time.sql != "NULL" {
        target.times.push(Time { sql: bounded(&mapping.time.sql), form: Form::Field(Box::new(mapping)) });
    }
    Ok(Ok(target))
}

/// Archived events: of each stream the newest stays, by which the archive is known to have no hole, and what no snapshot holds.
fn archived(schema: Schema, outbox: i64, app: &Connection) -> rusqlite::Result<Target> {
    let has = |table: &str| open::columns(app, table).map(|columns| !columns.is_empty());
    let is_old =
        || Ok::<_, rusqlite::Error>(!open::columns(app, ARCHIVE)?.iter().any(|(name, _)| name == "global_position"));
    let (stream, position, time): (&[&str], _, _) = match schema {
        Schema::Outboxd | Schema::Flightdeck => (&["stream_id"], "position", "time"),
        Schema::EventsourcePy if is_old()? => (&["aggregate_id", "aggregate_type"], "id", "timestamp"),
        Schema::EventsourcePy => (&["aggregate_id", "aggregate_type"], "global_position", "timestamp"),
    };
    let same =
        |alias: &str| stream.iter().map(|name| format!("{alias}.{name} = o.{name}")).collect::<Vec<_>>().join(" AND ");
    let mut free = format!(
        "EXISTS (SELECT 1 FROM snapshots s WHERE {} AND s.version >= o.version) AND EXISTS (SELECT 1 FROM {ARCHIVE} n WHERE {} AND n.version > o.version)",
        same("s"),
        same("n")
    );
    match schema {
        Schema::Outboxd | Schema::Flightdeck => {
            free.push_str(&format!(
                " AND NOT EXISTS (SELECT 1 FROM outbox q WHERE q.id = o.id AND q.position > {outbox})"
            ));
        }
        Schema::EventsourcePy => {
            for (table, ended) in [("event_outbox", "published"), ("dead_letter_queue", "resolved")] {
                if has(table)? {
                    let sql = format!(
                        " AND NOT EXISTS (SELECT 1 FROM {table} q WHERE q.event_id = o.event_id AND q.status <> '{ended}')"
                    );
                    free.push_str(&sql);
                }
            }
        }
    }
    Ok(Target {
        place: Place::Application,
        table: ARCHIVE.into(),
        done: "1".into(),
        free,
        position: Some(format!("o.{position}")),
        times: vec![Time::column(time, Form::Iso)],
    })
}

/// eventsource-py's own dead letters.
fn resolved(schema: Option<Schema>, app: &Connection) -> rusqlite::Result<Option<Target>> {
    const T: &str = "dead_letter_queue";
    let columns = open::columns(app, T)?;
    if schema != Some(Schema::EventsourcePy) || columns.is_empty() {
        return Ok(None);
    }
    let is_there = |name: &&str| columns.iter().any(|(column, _)| column == name);
    let times = ["resolved_at", "last_failed_at"].into_iter().filter(is_there);
    Ok(Some(Target {
        place: Place::Application,
        table: T.into(),
        done: "o.status = 'resolved'".into(),
        free: "1".into(),
        position: None,
        times: times.map(|name| Time::column(name, Form::Iso)).collect(),
    }))
}
