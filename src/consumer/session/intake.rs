//! Reading on: asks the reader for as much as the window has room for.

use super::{End, Session, Surroundings};
use crate::controls::{self, Protection};
use crate::event::Batch;
use crate::projection::Key;
use crate::source::reader::{Mark, ReadNews, ReadRequest};

impl Session {
    pub(super) fn read_on(&mut self) {
        let bounds = &self.settings.bounds;
        let room = self.window.events < bounds.window_events && self.window.bytes < bounds.window_bytes;
        // While nothing may be sent, one batch is enough to know how old the oldest event is.
        let wanted = room && self.draining.is_none() && self.end.is_none() && (!self.paused || self.window.is_empty());
        let told = !self.update.is_empty() && self.by_row;
        if self.reading {
            if told {
                self.reader.tell(std::mem::take(&mut self.update), self.reads_tx.clone());
            }
            return;
        }
        if !wanted || self.settings.until.is_some_and(|until| self.read_up_to().position >= until) {
            return;
        }
        self.reading = true;
        // Where reading goes on must still be what was read there last: the checkpoint may be far behind it.
        let mark = self.read_up_to();
        self.reader.read(ReadRequest {
            after: mark.position,
            mark,
            update: std::mem::take(&mut self.update),
            events_max: bounds.batch_events.min(bounds.window_events - self.window.events),
            bytes_max: bounds.batch_bytes.min(bounds.window_bytes - self.window.bytes),
            event_bytes_max: bounds.event_bytes_max,
            filter: self.filter.clone(),
            reply: self.reads_tx.clone(),
        });
    }

    /// All that there is to be read was read, and settled.
    pub(super) fn is_at_end(&self) -> bool {
        let is_read = self.at_head || self.settings.until.is_some_and(|until| self.read_up_to().position >= until);
        is_read && self.window.is_empty() && self.settling.is_none()
    }

    fn read_up_to(&self) -> Mark {
        let end = |batch: &Batch| Mark { position: batch.end, event_id: batch.end_id.clone() };
        self.window.lots().last().map_or_else(|| self.checkpoint.clone(), |lot| end(&lot.batch))
    }

    pub(super) fn on_read(&mut self, news: ReadNews, around: &mut Surroundings<'_>) {
        match news {
            ReadNews::Batch(mut batch) => {
                if let Some(until) = self.settings.until {
                    batch.truncate(until);
                }
                if let Some(definition) = self.settings.destination.tables().filter(|tables| tables.key != Key::Source)
                {
                    batch.rekey(|event| definition.key.of(event));
                }
                self.reading = false;
                self.at_head = false;
                self.milestones.read(&self.settings.name);
                let sent_before = self.sent_before_in(&batch);
                self.window.push(batch, sent_before);
                if self.by_row {
                    self.hold_back_arrivals();
                }
            }
            // The request stays with the reader.
            ReadNews::AtHead => {
                self.at_head = true;
                if self.by_row {
                    // What the run before may have sent has been read.
                    self.sent_before = None;
                }
            }
            ReadNews::Revived(rows) => self.revive(rows, around),
            ReadNews::Halted(halt) => {
                self.end.get_or_insert(End::Halted(halt));
            }
        }
    }

    /// By row, an arrival of a held key waits in the application's table, before others of its key which the reader passes over: it must
    /// not be sent when its turn comes, were the key free by then.
    fn hold_back_arrivals(&mut self) {
        let holds = &mut self.holds;
        if holds.is_empty() || controls::is_off(Protection::Overtaking) {
            return;
        }
        self.window.hold_back_last(|key| match holds.get_mut(key) {
            Some(hold) => {
                hold.unsettled += 1;
                true
            }
            None => false,
        });
    }

    /// How many of the batch's first events the run before may have sent.
    fn sent_before_in(&mut self, batch: &Batch) -> usize {
        let Some(before) = &mut self.sent_before else { return 0 };
        let mut count = 0;
        for index in 0..batch.len() {
            if before.events == 0 || (!self.by_row && batch.position(index) > before.until) {
                self.sent_before = None;
                break;
            }
            // What is marked anyway was of a held key: it was not among those in flight.
            before.events -= usize::from(!batch.is_again(index));
            count += 1;
        }
        count
    }
}
