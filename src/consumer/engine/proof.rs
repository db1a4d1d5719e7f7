//! What a consumer proves before its first event: that its state is of this source, this mapping and, for a projection, these tables.

use super::{Engine, Stop, blocked, halted};
use crate::consumer::{OnReject, Start, session};
use crate::projection::{OnChange, tables};
use crate::source::StatePlace;
use crate::source::reader::{Halt, Look, Mark};
use crate::sqlite::open;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::checkpoint::{self, Checkpoint, Sent, Witnesses};
use crate::state::held::HeldRow;

impl Engine {
    /// What a person wrote is looked at before the first dead letter needs it.
    pub(super) async fn try_statement(&mut self, writer: &Writer, sql: String) -> Result<(), Stop> {
        let name = self.settings.name.clone();
        let tried = writer.perform(move |connection| {
            let said = |error: rusqlite::Error| {
                JobError::Refused(format!(
                    "dead_letter_row = true in [relays.{name}], and what the source's `on_dead_letter` says cannot be done: {error}. \
                     Remedy: make the table that it names, or leave dead_letter_row out, then `outboxd resume`"
                ))
            };
            open::fenced(connection, |connection| connection.prepare(&sql).map(drop))?.map_err(said)
        });
        self.during(blocked(writer), tried).await?.map_err(|error| Stop::Halted(Halt::new(error.to_string())))
    }

    /// The tables of a projection are made with its first checkpoint.
    pub(super) async fn record_start(&mut self, writer: &Writer, from: Checkpoint, is_first: bool) -> Result<(), Stop> {
        let (definition, guard) = (self.settings.destination.tables().cloned(), writer.guard.clone());
        let begun = writer.perform(move |connection| {
            match &definition {
                Some(definition) if is_first => {
                    tables::make(connection, &guard, definition)?;
                    checkpoint::keep_section(connection, &definition.name, &definition.as_json())?;
                }
                Some(definition) => tables::are_there(connection, definition)?,
                None => {}
            }
            checkpoint::begin(connection, &from, is_first)
        });
        self.during(blocked(writer), begun).await?.map_err(halted)
    }

    /// With `on_reject = "halt"`, a dead letter keeps the consumer halted until it is retried or discarded.
    pub(super) fn check_dead_letters(&self, first_dead: Option<&HeldRow>) -> Result<(), Stop> {
        match first_dead {
            Some(row) if self.settings.on_reject == OnReject::Halt => {
                Err(Stop::Halted(Halt::new(session::halted_by(row))))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_definition(&self, checkpoint: &Checkpoint, look: &Look) -> Result<(), Stop> {
        let definition = &self.settings.definition(&look.mapping);
        if checkpoint.definition == *definition && checkpoint.source == self.settings.source {
            return Ok(());
        }
        if let Some(tables) = self.settings.destination.tables() {
            if tables.on_change == OnChange::Rebuild && checkpoint.source == self.settings.source {
                return Err(Stop::Rebuild);
            }
            return Err(Stop::Halted(Halt::new(format!(
                "{name} has another definition than its tables in {} were made with: source {}, {}; now source {}, {definition}. What stands \
                 there would be of two kinds. Remedy: `outboxd plan {name}` tells what differs, `outboxd rebuild {name}` makes the tables anew; \
                 `outboxd consumer accept {name}` goes on with them as they are",
                tables.path.display(),
                checkpoint.source,
                checkpoint.definition,
                self.settings.source,
                name = self.settings.name,
            ))));
        }
        Err(Stop::Halted(Halt::new(format!(
            "the checkpoint of {name} was taken with another mapping: source {old_source}, {old}; now source {source}, {definition}. \
             Positions and keys may mean something else. Remedy: `outboxd consumer accept {name}` when they mean the same, \
             `outboxd position set {name}` when they do not",
            name = self.settings.name,
            old_source = checkpoint.source,
            old = checkpoint.definition,
            source = self.settings.source,
        ))))
    }

    pub(super) async fn verify(&mut self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        let mut marks = vec![checkpoint.mark.clone()];
        // Inside, the state went back together with the rest of the file.
        if self.source.state != StatePlace::Inside {
            marks.extend(checkpoint.witnesses.marks().iter().cloned());
        }
        let reader = self.reader.clone();
        let verified = self.during(|| None, async move { reader.verify(marks).await }).await?;
        let name = &self.settings.name;
        let has_tables = self.settings.destination.tables().is_some();
        verified.map_err(|mut halt| {
            if has_tables {
                halt.detail.push_str(&format!(
                    ". What its tables hold of the events that went is not undone by that: `outboxd rebuild {name}` makes them anew from what is there"
                ));
            }
            Stop::Halted(halt)
        })
    }

    pub(super) fn first_checkpoint(&self, look: &Look) -> Result<Checkpoint, Stop> {
        let by_row = look.mapping.rows.is_some();
        let mark = match (self.settings.start, look.has_events && !by_row) {
            (_, false) => Mark::default(),
            (Some(Start::First), true) => Mark { position: look.before_first, event_id: String::new() },
            (Some(Start::Head), true) => Mark { position: look.head, event_id: look.head_id.clone() },
            (None, true) => {
                return Err(Stop::Halted(Halt::new(format!(
                    "source {} already has events and {} has no checkpoint: say where to begin. Remedy: start = \"first\" (send all of \
                     them) or start = \"head\" (only what comes from now on) in [relays.{}], and restart",
                    self.settings.source, self.settings.name, self.settings.name
                ))));
            }
        };
        Ok(Checkpoint {
            consumer: self.settings.name.clone(),
            source: self.settings.source.clone(),
            definition: self.settings.definition(&look.mapping),
            mark,
            witnesses: Witnesses::default(),
            sent: Sent::Nothing,
            updated_at: String::new(),
        })
    }
}
