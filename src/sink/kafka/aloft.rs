//! Flights whose reports may still come. A number, its ticket, travels through the client with each message; by it, flight and slot are
//! found again, without an allocation or a count of references a message.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::sink::{Flight, Outcome};

/// One producer's flights, oldest first.
#[derive(Default)]
pub(super) struct Aloft {
    entries: VecDeque<Entry>,
    /// The next message's number. It may wrap: numbers are only compared with the oldest that is aloft.
    next: usize,
}

struct Entry {
    first: usize,
    flight: Arc<Flight>,
    is_alone: bool,
}

/// Where a message belongs.
pub(super) struct Seat<'a> {
    pub flight: &'a Arc<Flight>,
    pub slot: usize,
    /// When it was sent, nothing else was in flight.
    pub is_alone: bool,
}

impl Aloft {
    /// Gives the flight's messages consecutive numbers, and says the first.
    pub fn board(&mut self, flight: &Arc<Flight>, is_alone: bool) -> usize {
        while self.entries.front().is_some_and(|entry| entry.flight.is_landed()) {
            self.entries.pop_front();
        }
        let first = self.next;
        self.next = first.wrapping_add(flight.len());
        self.entries.push_back(Entry { first, flight: flight.clone(), is_alone });
        first
    }

    /// `None` when its flight has landed and gone.
    pub fn seat(&self, number: usize) -> Option<Seat<'_>> {
        let oldest = self.entries.front()?.first;
        let is_before = |entry: &Entry| entry.first.wrapping_sub(oldest) <= number.wrapping_sub(oldest);
        let entry = &self.entries[self.entries.partition_point(is_before).checked_sub(1)?];
        let slot = number.wrapping_sub(entry.first);
        (slot < entry.flight.len()).then_some(Seat { flight: &entry.flight, slot, is_alone: entry.is_alone })
    }

    /// Ends every flight: slots without an outcome get this one.
    pub fn give_back(&mut self, outcome: &Outcome) {
        self.entries.drain(..).for_each(|entry| entry.flight.fill_rest(outcome));
    }

    /// Whether a flight is still waited for so long after it was sent.
    pub fn is_overdue(&self, after: Duration) -> bool {
        self.entries.iter().any(|entry| !entry.flight.is_landed() && entry.flight.sent_at.elapsed() > after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BatchBuilder, Event, Position};
    use crate::sink::Pick;

    fn flight(events: u32) -> Arc<Flight> {
        let mut builder = BatchBuilder::default();
        for _ in 0..events {
            builder.push(Event {
                position: Position(1),
                id: "id",
                key: None,
                stream_id: None,
                stream_type: None,
                version: None,
                kind: "T",
                payload: None,
                headers: None,
                time: None,
                time_micros: None,
                death: None,
            });
        }
        let (news, _) = tokio::sync::mpsc::unbounded_channel();
        Flight::new(0, Arc::new(builder.finish(Position(1), 0)), (0..events).map(Pick::first).collect(), news)
    }

    #[test]
    fn every_number_leads_to_its_flight_and_slot_also_where_numbers_wrap() {
        for start in [0, usize::MAX - 3] {
            let mut aloft = Aloft { next: start, ..Aloft::default() };
            let flights = [flight(3), flight(1), flight(4)];
            let firsts = flights.each_ref().map(|flight| aloft.board(flight, false));
            for (flight, first) in flights.iter().zip(firsts) {
                for slot in 0..flight.len() {
                    let seat = aloft.seat(first.wrapping_add(slot)).unwrap();
                    assert!(Arc::ptr_eq(seat.flight, flight) && seat.slot == slot);
                }
            }
            assert!(aloft.seat(start.wrapping_add(8)).is_none());
            flights[0].fill_rest(&Outcome::Delivered);
            aloft.board(&flight(1), true);
            assert!(aloft.seat(start).is_none());
            assert!(aloft.seat(start.wrapping_add(8)).unwrap().is_alone);
        }
    }
}
