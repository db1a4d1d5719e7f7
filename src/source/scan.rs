//! All rows of a source, page by page, for whoever compares them with something else. Nothing is written, waited for or marked.

mod newest;

use rusqlite::{Connection, OptionalExtension, named_params};

use super::Settings;
use super::archive_file;
use super::checkpointed::Checkpointed;
use super::declared::Declared;
use super::feed::Care;
use super::fit::{self, Misfit, quoted};
use super::inspection;
use super::mapping::Mapping;
use super::reader::{Mark, ReadFault};
use crate::event::{Batch, BatchBuilder, Position};
use crate::sqlite::open;
pub use newest::Largest;

const PAGE_EVENTS_MAX: usize = 1_000;
const PAGE_BYTES_MAX: usize = 4 << 20;
/// SQLite's own limit for a value.
const EVENT_BYTES_MAX: usize = 1_000_000_000;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("reading failed")]
    Sqlite(#[source] rusqlite::Error),
    #[error("{0}")]
    Unusable(String),
}

impl From<rusqlite::Error> for ScanError {
    fn from(error: rusqlite::Error) -> Self {
        match archive_file::said(&error) {
            Some(what) => ScanError::Unusable(what),
            None => ScanError::Sqlite(error),
        }
    }
}

impl From<archive_file::Fault> for ScanError {
    fn from(fault: archive_file::Fault) -> Self {
        match fault {
            archive_file::Fault::Sqlite(error) => ScanError::Sqlite(error),
            archive_file::Fault::Unfit(what) => ScanError::Unusable(what),
        }
    }
}

impl From<ReadFault> for ScanError {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Halt(halt) => ScanError::Unusable(halt.detail),
            ReadFault::Sqlite(error) => ScanError::Sqlite(error),
        }
    }
}

/// Which rows are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Those up to this position of a table read by checkpoint, those marked as delivered of one read by row.
    Settled(Position),
    All,
}

pub struct Scan {
    connection: Connection,
    mapping: Mapping,
    event_bytes_max: usize,
    /// [`Scan::numbering`].
    numbering: Option<i64>,
}

/// Some rows, and where the next page begins.
pub struct Page {
    pub batch: Batch,
    pub next: i64,
}

impl Scan {
    pub fn open(settings: &Settings) -> Result<Self, ScanError> {
        Self::within(settings, EVENT_BYTES_MAX)
    }

    /// All that is there; larger events are not read whole.
    pub fn bounded(settings: &Settings, event_bytes_max: usize) -> Result<Self, ScanError> {
        Self::within(settings, event_bytes_max)
    }

    /// What was delivered and is still there: where rows move to an archive, that. Larger events are not read whole.
    pub fn of_delivered(settings: &Settings, event_bytes_max: usize) -> Result<Self, ScanError> {
        let kept = |table: &Declared| table.archived().unwrap_or_else(|| table.clone());
        let kept = Settings { tables: settings.tables.iter().map(kept).collect(), ..settings.clone() };
        let scan = Self::within(&kept, event_bytes_max)?;
        if scan.mapping.rows.as_ref().is_some_and(|rows| rows.delivered.is_none()) {
            return Err(ScanError::Unusable(format!(
                "the rows of {} are deleted when they are delivered, so that none is left to be sent again. Remedy: on_delivered = \
                 {{ archive = \"...\" }} keeps them for another time",
                scan.mapping.table
            )));
        }
        Ok(scan)
    }

    /// A file that nobody writes, as it lies there; nothing is made beside it.
    pub fn still(settings: &Settings) -> Result<Self, ScanError> {
        Self::of_connection(open::still(&settings.path)?, settings, EVENT_BYTES_MAX)
    }

    fn within(settings: &Settings, event_bytes_max: usize) -> Result<Self, ScanError> {
        if let Some(refusal) = inspection::refusal(settings) {
            return Err(ScanError::Unusable(refusal.to_string()));
        }
        let connection = open::visitor(&settings.path)?;
        if let Some(refusal) = inspection::journal(&connection, &settings.path)? {
            return Err(ScanError::Unusable(refusal.to_string()));
        }
        Self::of_connection(connection, settings, event_bytes_max)
    }

    fn of_connection(connection: Connection, settings: &Settings, event_bytes_max: usize) -> Result<Self, ScanError> {
        if settings.reads_archive() {
            archive_file::attach(&connection, &settings.path)?;
        }
        match fit::mapping(&connection, &settings.tables)? {
            Ok(mapping) => {
                let numbering = numbering(&connection, &mapping)?;
                Ok(Self { connection, mapping, event_bytes_max, numbering })
            }
            Err(Misfit::NoTable(what) | Misfit::Unusable(what)) => Err(ScanError::Unusable(what)),
        }
    }

    pub fn is_by_row(&self) -> bool {
        self.mapping.rows.is_some()
    }

    /// The newest position ever given out. Not of a table read by row.
    pub fn head(&self) -> Result<Position, ScanError> {
        Ok(self.checkpointed().head(&self.connection)?)
    }

    /// Whether what a checkpoint remembers stands here, as a start asks it; else why not. Not of a table read by row.
    pub fn knows(&self, marks: &[Mark]) -> Result<Result<(), String>, ScanError> {
        match self.checkpointed().verify(&self.connection, marks) {
            Ok(()) => Ok(Ok(())),
            Err(ReadFault::Halt(halt)) => Ok(Err(halt.detail)),
            Err(ReadFault::Sqlite(error)) => Err(error.into()),
        }
    }

    fn checkpointed(&self) -> Checkpointed {
        Checkpointed::new(self.mapping.clone(), Care::Newest)
    }

    /// What places depend on, where they are rowids that VACUUM gives out anew (it counts as a change of the schema): the schema's version.
    /// `None` where places stay.
    pub fn numbering(&self) -> Option<i64> {
        self.numbering
    }

    /// Places are those of this numbering, noted when they were: of another one no page is read.
    pub fn hold_to(&mut self, noted: Option<i64>) {
        if self.numbering.is_some() {
            self.numbering = noted.or(self.numbering);
        }
    }

    pub fn definition(&self) -> &str {
        &self.mapping.definition
    }

    /// The lowest and the highest place, as [`Scan::page`] counts them.
    pub fn bounds(&self) -> Result<Option<(i64, i64)>, ScanError> {
        let place = self.place();
        let sql = format!("SELECT min({place}), max({place}) FROM {}", self.mapping.from);
        let (least, most): (Option<i64>, Option<i64>) =
            self.connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(least.zip(most))
    }

    fn place(&self) -> &str {
        if self.is_by_row() { "o.rowid" } else { &self.mapping.row }
    }

    pub fn count(&self) -> Result<u64, ScanError> {
        let Mapping { table, from, gone, archive, .. } = &self.mapping;
        let sql = match (gone, archive) {
            (Some(gone), _) => format!("SELECT count(*) FROM {from} WHERE NOT ({})", gone.sql),
            // What stands in both is one.
            (None, Some(archive)) => format!(
                "SELECT (SELECT count(*) FROM {from}) - (SELECT count(*) FROM {table} WHERE {row} IN (SELECT {row} FROM {archive}))",
                table = quoted(table),
                row = self.mapping.row,
                archive = quoted(archive),
            ),
            (None, None) => format!("SELECT count(*) FROM {}", quoted(table)),
        };
        Ok(self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// How many positions were given out whose rows are not there; `None` where the table does not tell.
    pub fn rows_gone(&self) -> Result<Option<u64>, ScanError> {
        if self.is_by_row() || self.mapping.newest.is_some() {
            return Ok(None);
        }
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let given_out: Option<i64> =
            self.connection.query_row(sql, [&self.mapping.table], |row| row.get(0)).optional()?;
        Ok(Some((given_out.unwrap_or(0) as u64).saturating_sub(self.count()?)))
    }

    /// The rows behind `after`, in the table's own order; `None` at the end.
    pub fn page(&self, which: Which, after: i64) -> Result<Option<Page>, ScanError> {
        self.page_up_to(which, after, i64::MAX)
    }

    /// The same, up to a place.
    pub fn page_up_to(&self, which: Which, after: i64, last: i64) -> Result<Option<Page>, ScanError> {
        let place = self.place();
        let settled = match (&self.mapping.rows, which) {
            (_, Which::All) => String::new(),
            (Some(rows), Which::Settled(_)) => format!(" AND {}", rows.delivered.as_deref().unwrap_or("0")),
            (None, Which::Settled(position)) => format!(" AND {place} <= {position}"),
        };
        let filter = format!("{place} > :after AND {place} <= :last{settled}{}", self.mapping.and_there());
        let tail = format!("ORDER BY {place} LIMIT {PAGE_EVENTS_MAX}");
        let sql = self.mapping.select(self.event_bytes_max, &filter, &tail);
        // The application may take rows away between the two looks of a page.
        let snapshot = self.connection.unchecked_transaction()?;
        if self.numbering != numbering(&self.connection, &self.mapping)? {
            return Err(ScanError::Unusable(renumbered(&self.mapping.table)));
        }
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(named_params! { ":after": after, ":last": last })?;
        let mut batch = BatchBuilder::with_capacity(PAGE_EVENTS_MAX, 64 << 10);
        let mut last_key = None;
        while let Some(row) = rows.next()? {
            if let Some((last, id)) = batch.end().filter(|_| self.mapping.archive.is_some())
                && self.mapping.is_copy(row, last.0, || Some(id))?
            {
                continue;
            }
            self.mapping.push(row, &mut batch, self.event_bytes_max, |_| true)?;
            last_key = Some(Mapping::row_key(row)?);
            if batch.bytes() >= PAGE_BYTES_MAX {
                break;
            }
        }
        drop(rows);
        let Some(last_key) = last_key else { return Ok(None) };
        let nameless = || {
            let row = &self.mapping.row;
            ScanError::Unusable(format!(
                "a row of {} has no {row} by which it could be told from others",
                self.mapping.table
            ))
        };
        last_key.ok_or_else(nameless)?;
        let next = match (self.is_by_row(), batch.end()) {
            (false, Some((position, _))) => position.0,
            _ => {
                let (from, taken) = (&self.mapping.from, batch.len());
                let sql = format!(
                    "SELECT max(place) FROM (SELECT {place} AS place FROM {from} WHERE {filter} ORDER BY {place} LIMIT {taken})"
                );
                let range = named_params! { ":after": after, ":last": last };
                self.connection.prepare_cached(&sql)?.query_row(range, |row| row.get(0))?
            }
        };
        snapshot.finish()?;
        Ok(Some(Page { batch: batch.finish(Position(next), 0), next }))
    }
}

/// Of a table that is read by row and has no INTEGER PRIMARY KEY.
fn numbering(connection: &Connection, mapping: &Mapping) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT count(*) = 1 AND max(upper(type)) = 'INTEGER' FROM pragma_table_info(?1) WHERE pk > 0";
    let stays = mapping.rows.is_none()
        || connection.prepare_cached(sql)?.query_row([&mapping.table], |row| row.get::<_, Option<bool>>(0))?
            == Some(true);
    if stays { Ok(None) } else { open::schema_version(connection).map(Some) }
}

/// Which rows were passed is not known any more.
fn renumbered(table: &str) -> String {
    format!(
        "the schema was changed or the file was compacted (VACUUM), which may number the rows of {table} anew: it has no INTEGER PRIMARY KEY. Nothing was \
         passed over. Remedy: begin again from the first row (a replay: `--cancel`, then the same command)"
    )
}
