//! What a relay has recorded of its own progress, at one instant.

use std::collections::HashSet;

use super::Error;
use super::judge::Print;
use crate::event::Position;
use crate::source;
use crate::sqlite::open;
use crate::sqlite::writer::JobError;
use crate::state::{self, checkpoint, held, resolution};

#[derive(Default)]
pub(super) struct Progress {
    /// `None`: nothing is recorded.
    pub position: Option<Position>,
    /// Dead letters, and what waits behind them.
    pub held: HashSet<Print>,
    pub discarded: HashSet<Print>,
    /// Positions from, exclusive, to, inclusive, that an operator had the relay leave out.
    pub skipped: Vec<(i64, i64)>,
}

impl Progress {
    /// Looks into the file without writing or locking anything.
    pub fn load(consumer: &str, source: &source::Settings) -> Result<Self, Error> {
        let path = source.state_path();
        if !path.exists() {
            return Ok(Self::default());
        }
        let read = || -> Result<Self, JobError> {
            let mut connection = open::visitor(&path)?;
            if state::schema_version(&connection)?.is_none() {
                return Ok(Self::default());
            }
            let snapshot = connection.transaction()?;
            let prints = |ids: Vec<String>| ids.iter().map(|id| Print::of(id.as_bytes())).collect();
            Ok(Self {
                position: checkpoint::load(&snapshot, consumer)?.map(|checkpoint| checkpoint.mark.position),
                held: prints(held::ids(&snapshot, consumer)?),
                discarded: prints(resolution::discarded(&snapshot, consumer)?),
                skipped: resolution::skipped(&snapshot, consumer)?,
            })
        };
        read().map_err(|error| Error::Data(format!("{}: {:#}", path.display(), anyhow::Error::from(error))))
    }

    pub fn is_skipped(&self, position: i64) -> bool {
        self.skipped.iter().any(|(from, to)| (from + 1..=*to).contains(&position))
    }
}
