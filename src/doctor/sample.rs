//! The newest events that a relay takes, and the largest one: what a sink is asked about.

use super::LOOK_MAX;
use crate::consumer;
use crate::event::{Batch, Event};
use crate::remark::Remark;
use crate::sink::survey;
use crate::source;
use crate::source::filter::Filter;
use crate::source::scan::{Largest, Scan, ScanError};

/// Of each source.
pub(super) const EVENTS_MAX: usize = 100;

pub(super) struct Events {
    newest: Batch,
    largest: Largest,
}

impl Events {
    /// Each of the two looks is over within [`LOOK_MAX`].
    pub fn of(relay: &consumer::Settings, source: &source::Settings) -> Result<Self, String> {
        let told = |error: ScanError| match error {
            ScanError::Unusable(what) => what.split(" Remedy: ").next().unwrap_or(&what).to_owned(),
            ScanError::Sqlite(error) => error.to_string(),
        };
        if !source.path.exists() {
            return Err("the file is not there yet".to_owned());
        }
        let filter = Filter::new(&relay.types);
        let scan = Scan::bounded(source, relay.bounds.event_bytes_max).map_err(told)?;
        let newest = scan.newest(&filter, EVENTS_MAX, LOOK_MAX).map_err(told)?;
        let largest = scan.largest(&filter, LOOK_MAX).map_err(told)?;
        Ok(Self { newest, largest })
    }

    fn sound(batch: &Batch) -> impl Iterator<Item = Event<'_>> {
        (0..batch.len()).filter(|index| batch.defect(*index).is_none()).map(|index| batch.event(index))
    }

    /// The newest ones.
    pub fn newest(&self) -> impl Iterator<Item = Event<'_>> {
        Self::sound(&self.newest)
    }

    /// All that can be read.
    pub fn sample<'a>(&'a self, source: &'a str) -> survey::Sample<'a> {
        let mut events: Vec<Event<'_>> = self.newest().collect();
        let is_new =
            |event: &Event<'_>| !events.iter().any(|known| (known.position, known.id) == (event.position, event.id));
        let largest: Vec<Event<'_>> = Self::sound(&self.largest.batch).filter(is_new).collect();
        events.extend(largest);
        survey::Sample { source, events }
    }

    /// What was looked at, and which of it can never be sent.
    pub fn told(&self) -> Vec<Remark> {
        let defects =
            [&self.newest, &self.largest.batch].map(|batch| (0..batch.len()).find_map(|index| batch.defect(index)));
        let mut told = vec![Remark::ok(self.looked_at())];
        let unread = (0..self.newest.len()).filter(|index| self.newest.defect(*index).is_some()).count();
        if let Some(defect) = defects.into_iter().flatten().next() {
            let of = match unread {
                0 => "the largest event".to_owned(),
                unread => format!("{unread} of the last {} events", self.newest.len()),
            };
            let evidence =
                format!("{of} would be made dead letters before a sink sees them; one says: {}", defect.detail);
            told.push(Remark::danger(evidence, "mend the row, or what is said of the source (docs/SOURCES.md)"));
        }
        told
    }

    fn looked_at(&self) -> String {
        if self.newest.is_empty() {
            return "there is none yet that this relay takes: sinks are asked without any".to_owned();
        }
        let rows = if self.largest.is_whole {
            format!("all {} rows", self.largest.rows)
        } else {
            format!("the newest {} rows (more were not seen within {LOOK_MAX:?})", self.largest.rows)
        };
        let largest = match self.largest.batch.len() {
            0 => String::new(),
            _ => format!("; the largest, of {rows}, has {} bytes", self.largest.batch.event_bytes(0)),
        };
        format!("the last {} that this relay takes{largest}", self.newest.len())
    }
}
