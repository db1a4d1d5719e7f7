//! The window: what was read and is not yet durably settled, in the source's order.
//!
//! Invariants (tested below and by the crash tests):
//! 1. Events are settled in order, without a hole.
//! 2. After trouble, what may not have arrived is sent again, and so is everything behind it of the same key.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::holds::Holds;
use super::verdict::Fate;
use crate::controls::{self, Protection};
use crate::event::{Batch, Rejection};
use crate::sink::{Flight, Outcome, Pick};

/// One batch in the window.
#[derive(Debug)]
pub struct Lot {
    pub seq: u64,
    pub batch: Arc<Batch>,
    pub fates: Vec<Fate>,
    /// The flights in which delivered events were carried, from the lot's first event on.
    pub carriers: Vec<u64>,
    /// Why events were refused or came under suspicion.
    pub rejections: HashMap<u32, Rejection>,
    /// Events before this one are in a settlement.
    pub submitted: usize,
    /// Events before this index may have been sent by an earlier run.
    pub sent_before: usize,
}

impl Lot {
    pub fn is_submitted(&self) -> bool {
        self.submitted == self.fates.len()
    }
}

#[derive(Debug, Default)]
pub struct Window {
    lots: VecDeque<Lot>,
    next_seq: u64,
    /// The first lot and event that may be unsent.
    cursor: (u64, usize),
    pub events: usize,
    pub bytes: usize,
}

/// What the next flight is made of.
#[derive(Debug)]
pub struct Choice {
    pub lot: u64,
    pub batch: Arc<Batch>,
    pub picks: Vec<Pick>,
}

/// What is to be done with an event when its turn comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    Send,
    /// Its key is held.
    Wait,
    /// Its key has as many in flight as it may: nothing behind it is sent before.
    Stop,
}

impl Window {
    /// Adds a batch; the first `sent_before` of its events may have been sent by an earlier run.
    pub fn push(&mut self, batch: Batch, sent_before: usize) {
        self.events += batch.len();
        self.bytes += batch.bytes();
        let fates = vec![Fate::Unsent; batch.len()];
        let seq = self.next_seq;
        self.next_seq += 1;
        let batch = Arc::new(batch);
        let carriers = vec![0; batch.len()];
        self.lots.push_back(Lot { seq, batch, fates, carriers, rejections: HashMap::new(), submitted: 0, sent_before });
    }

    /// Decides for the newest lot's events which of them wait.
    pub fn hold_back_last(&mut self, mut waits: impl FnMut(&[u8]) -> bool) {
        let Some(lot) = self.lots.back_mut() else { return };
        for (index, fate) in lot.fates.iter_mut().enumerate() {
            if waits(&lot.batch.event(index).hold_key()) {
                *fate = Fate::Wait;
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.lots.is_empty()
    }

    pub fn lots(&self) -> impl Iterator<Item = &Lot> {
        self.lots.iter()
    }

    pub fn lots_mut(&mut self) -> impl Iterator<Item = &mut Lot> {
        self.lots.iter_mut()
    }

    /// The number that the next lot will have.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The number of the oldest lot that is not durably settled.
    pub fn oldest_seq(&self) -> u64 {
        self.lots.front().map_or(self.next_seq, |lot| lot.seq)
    }

    /// Microseconds since 1970 UTC of the oldest event that is not settled.
    pub fn oldest_micros(&self) -> Option<i64> {
        let lot = self.lots.iter().find(|lot| !lot.is_submitted()).or(self.lots.front())?;
        if lot.batch.is_empty() {
            return None;
        }
        let index = lot.submitted.min(lot.batch.len() - 1);
        Some(lot.batch.event(index).time_micros.unwrap_or(lot.batch.read_micros))
    }

    pub fn lot(&self, seq: u64) -> Option<&Lot> {
        let first = self.lots.front()?.seq;
        self.lots.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    fn lot_mut(&mut self, seq: u64) -> Option<&mut Lot> {
        let first = self.lots.front()?.seq;
        self.lots.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }

    /// Picks the next flight: at most `most` unsent events of one lot, each as `turn` decides.
    pub fn choose(&mut self, most: usize, mut turn: impl FnMut(&Batch, usize) -> Turn) -> Option<Choice> {
        let (mut seq, mut index) = self.cursor.max((self.oldest_seq(), 0));
        loop {
            let lot = self.lot_mut(seq)?;
            let mut picks = Vec::new();
            let mut stopped = false;
            while index < lot.fates.len() && picks.len() < most {
                let fate = lot.fates[index];
                if matches!(fate, Fate::Unsent | Fate::UnsentAgain) {
                    match (turn(&lot.batch, index), lot.batch.defect(index)) {
                        (Turn::Stop, _) => {
                            stopped = true;
                            break;
                        }
                        (Turn::Wait, _) => lot.fates[index] = Fate::Wait,
                        (Turn::Send, Some(defect)) => {
                            lot.rejections.insert(index as u32, defect.clone());
                            lot.fates[index] = Fate::Refused;
                        }
                        (Turn::Send, None) => {
                            let redelivery =
                                fate == Fate::UnsentAgain || index < lot.sent_before || lot.batch.is_again(index);
                            picks.push(Pick { redelivery, ..Pick::first(index as u32) });
                            lot.fates[index] = Fate::in_flight();
                        }
                    }
                }
                index += 1;
            }
            let choice = (!picks.is_empty()).then(|| Choice { lot: seq, batch: lot.batch.clone(), picks });
            if index == lot.fates.len() {
                (seq, index) = (seq + 1, 0);
            }
            self.cursor = (seq, index);
            if choice.is_some() || stopped {
                return choice;
            }
        }
    }

    /// Writes a landed flight's outcomes into its lot. The outcomes other than `Delivered` are returned.
    pub fn land(&mut self, lot: u64, flight: &Arc<Flight>) -> Vec<(u32, Outcome)> {
        let notes = flight.take_notes();
        if controls::is_off(Protection::Acknowledgement) {
            return Vec::new();
        }
        let lot = self.lot_mut(lot).expect("a lot stays in the window until its flights have landed");
        for (slot, pick) in flight.picks.iter().enumerate() {
            if flight.is_delivered(slot) {
                lot.fates[pick.index as usize] = Fate::Delivered;
                lot.carriers[pick.index as usize] = flight.id;
            }
        }
        for (slot, outcome) in &notes {
            let index = flight.picks[*slot as usize].index;
            lot.fates[index as usize] = match outcome {
                Outcome::Delivered => Fate::Delivered,
                Outcome::Unavailable(_) => Fate::Unknown,
                Outcome::Behind => Fate::Wait,
                Outcome::Rejected(rejection) => {
                    lot.rejections.insert(index, rejection.clone());
                    Fate::Refused
                }
                Outcome::Suspect(rejection) => {
                    lot.rejections.insert(index, rejection.clone());
                    if controls::is_off(Protection::GuiltyAlone) { Fate::Refused } else { Fate::Suspect }
                }
            };
        }
        notes
    }

    /// The one event of a lone flight is refused: suspicion has become certainty.
    pub fn convict(&mut self, lot: u64, index: u32) {
        let lot = self.lot_mut(lot).expect("a lot stays in the window until its flights have landed");
        lot.fates[index as usize] = Fate::Refused;
    }

    /// After trouble, with nothing in flight: decides what is sent again. Returns how many events that are. A refusal that stands
    /// is announced anew; what waited behind one that does not stand has its turn again.
    pub fn rewind(&mut self, holds: &mut Holds) -> usize {
        let mut again = 0;
        let mut tainted: HashSet<Vec<u8>> = HashSet::new();
        holds.withdraw_announcements();
        for lot in &mut self.lots {
            for index in lot.submitted..lot.fates.len() {
                let fate = lot.fates[index];
                if fate == Fate::Delivered && tainted.is_empty() {
                    continue;
                }
                let key = lot.batch.event(index).hold_key();
                let next = match fate {
                    Fate::Wait if holds.is_recorded(&key) => fate,
                    Fate::Wait if holds.wait(&key) => fate,
                    Fate::Wait => Fate::Unsent,
                    _ => fate.after_trouble(tainted.contains(key.as_ref())),
                };
                if next == Fate::Refused {
                    holds.announce(&key, lot.batch.read_micros);
                }
                if next == Fate::UnsentAgain && fate != Fate::Unsent && !controls::is_off(Protection::Behind) {
                    tainted.insert(key.into_owned());
                }
                again += usize::from(next == Fate::UnsentAgain);
                lot.fates[index] = next;
            }
        }
        self.cursor = (self.oldest_seq(), 0);
        again
    }

    /// Nothing of the lots before `seq` is still to be sent.
    pub fn is_sent_before(&self, seq: u64) -> bool {
        self.cursor.max((self.oldest_seq(), 0)).0 >= seq
    }

    /// Takes the lots before `seq`, which are settled, out of the window.
    pub fn drop_before(&mut self, seq: u64) {
        while let Some(lot) = self.lots.front().filter(|lot| lot.seq < seq) {
            assert!(lot.is_submitted(), "only settled lots leave the window");
            self.events -= lot.batch.len();
            self.bytes -= lot.batch.bytes();
            self.lots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{BatchBuilder, Event, Position};

    fn batch(keys: &[&str]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (index, key) in keys.iter().enumerate() {
            builder.push(Event {
                position: Position(index as i64 + 1),
                id: "id",
                key: Some(key.as_bytes()),
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
        builder.finish(Position(keys.len() as i64), 0)
    }

    fn flight(window: &mut Window, most: usize) -> Option<(u64, Arc<Flight>)> {
        let (news, _keep) = tokio::sync::mpsc::unbounded_channel();
        let choice = window.choose(most, |_, _| Turn::Send)?;
        Some((choice.lot, Flight::new(0, choice.batch, choice.picks, news)))
    }

    fn fault() -> Outcome {
        Outcome::Unavailable(crate::sink::Fault::unavailable("away"))
    }

    #[test]
    fn what_is_behind_an_unknown_one_of_its_key_is_sent_again() {
        let mut window = Window::default();
        window.push(batch(&["a", "b", "a", "c"]), 0);
        let (lot, sent) = flight(&mut window, 10).unwrap();
        for slot in 0..4 {
            sent.fill(slot, if slot == 0 { fault() } else { Outcome::Delivered });
        }
        window.land(lot, &sent);
        assert_eq!(window.rewind(&mut Holds::default()), 2);
        let again = window.choose(10, |_, _| Turn::Send).unwrap();
        assert_eq!(again.picks.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 2]);
        assert!(again.picks.iter().all(|p| p.redelivery));
    }

    #[test]
    fn what_waited_behind_a_refusal_that_does_not_stand_has_its_turn_again() {
        let mut window = Window::default();
        let mut holds = Holds::default();
        window.push(batch(&["a", "a", "a", "b", "b"]), 0);
        let (lot, sent) = flight(&mut window, 4).unwrap();
        let refused = || Outcome::Rejected(Rejection::new(crate::event::Reason::Refused, "no"));
        for (slot, outcome) in [fault(), refused(), Outcome::Delivered, refused()].into_iter().enumerate() {
            sent.fill(slot, outcome);
        }
        window.land(lot, &sent);
        holds.announce(b"a", 0);
        holds.announce(b"b", 0);
        // Events 0 to 2 are to be sent again; 3 stays refused, and 4 waits behind it.
        let all = |holds: &mut Holds, batch: &Batch, index: usize| {
            if holds.wait(&batch.event(index).hold_key()) { Turn::Wait } else { Turn::Send }
        };
        assert!(window.choose(9, |batch, index| all(&mut holds, batch, index)).is_none());
        assert_eq!(window.lots[0].fates[4], Fate::Wait);
        window.rewind(&mut holds);
        assert_eq!(holds.all_keys(), [Box::from(&b"b"[..])]);
        assert_eq!(holds.get_mut(b"b").unwrap().unsettled, 1);
        let again = window.choose(9, |batch, index| all(&mut holds, batch, index)).unwrap();
        assert_eq!(again.picks.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_flight_is_made_of_one_lot_and_goes_on_where_it_ended() {
        let mut window = Window::default();
        window.push(batch(&["a", "b", "c"]), 2);
        window.push(batch(&["d"]), 0);
        let picks = |window: &mut Window| {
            window
                .choose(2, |_, _| Turn::Send)
                .map(|c| c.picks.iter().map(|p| (c.lot, p.index, p.redelivery)).collect::<Vec<_>>())
        };
        assert_eq!(picks(&mut window), Some(vec![(0, 0, true), (0, 1, true)]));
        assert_eq!(picks(&mut window), Some(vec![(0, 2, false)]));
        assert_eq!(picks(&mut window), Some(vec![(1, 0, false)]));
        assert_eq!(picks(&mut window), None);
        assert_eq!(window.events, 4);
    }

    #[test]
    fn what_must_stop_stops_and_what_must_wait_waits() {
        let mut window = Window::default();
        window.push(batch(&["a", "b", "a"]), 0);
        let first = window.choose(9, |_, i| match i {
            0 => Turn::Wait,
            1 => Turn::Send,
            _ => Turn::Stop,
        });
        assert_eq!(first.unwrap().picks.len(), 1);
        assert_eq!(window.lots[0].fates, [Fate::Wait, Fate::InFlight, Fate::Unsent]);
        assert_eq!(window.choose(9, |_, _| Turn::Send).unwrap().picks[0].index, 2);
    }

    proptest::proptest! {
        /// Against a simple far side: flights come back in any order, with anything undelivered; after trouble all is rewound. In the end
        /// everything was delivered, and whoever reads to the end has each key's last deliveries in order.
        #[test]
        fn whatever_comes_back_the_last_deliveries_of_a_key_are_in_order(
            lots in proptest::collection::vec(proptest::collection::vec(0_usize..4, 1..8), 1..6),
            chances in proptest::collection::vec(proptest::prelude::any::<u16>(), 1..120),
        ) {
            let mut window = Window::default();
            for keys in &lots {
                let keys: Vec<&str> = keys.iter().map(|key| ["a", "b", "c", "d"][*key]).collect();
                window.push(batch(&keys), 0);
            }
            let mut chances = chances.into_iter();
            // The far side takes what is sent in the order in which it is sent, whenever it answers.
            let mut aloft: Vec<(u64, Arc<Flight>, usize)> = Vec::new();
            let (mut sent, mut last) = (0, HashMap::new());
            let mut trouble = false;
            loop {
                // When the chances are used up, everything succeeds.
                let bits = chances.next().unwrap_or(0);
                let may_send = !trouble && (bits & 1 == 0 || aloft.is_empty());
                if may_send && let Some(flight) = flight(&mut window, 1 + usize::from(bits >> 1 & 3)) {
                    let (lot, flight) = flight;
                    let began = sent;
                    sent += flight.len();
                    aloft.push((lot, flight, began));
                    continue;
                }
                if aloft.is_empty() && !trouble {
                    break;
                }
                if aloft.is_empty() {
                    window.rewind(&mut Holds::default());
                    trouble = false;
                    continue;
                }
                let (lot, flight, began) = aloft.remove(usize::from(bits >> 3) % aloft.len());
                for slot in 0..flight.len() {
                    let is_unknown = bits >> (5 + slot) & 1 == 1;
                    // What is not known to have arrived may have arrived.
                    if !is_unknown || bits >> 12 & 1 == 1 {
                        let event = (flight.event(slot).hold_key().into_owned(), (lot, flight.picks[slot].index));
                        let at = last.entry(event).or_insert(0);
                        *at = (began + slot).max(*at);
                    }
                    flight.fill(slot, if is_unknown { fault() } else { Outcome::Delivered });
                    trouble |= is_unknown;
                }
                window.land(lot, &flight);
            }
            proptest::prop_assert!(window.lots().all(|lot| lot.fates.iter().all(|fate| *fate == Fate::Delivered)));
            proptest::prop_assert_eq!(last.len(), window.events);
            let mut in_order: Vec<_> = last.into_iter().collect();
            in_order.sort();
            for pair in in_order.windows(2) {
                let ((first, _), before) = &pair[0];
                let ((second, _), after) = &pair[1];
                proptest::prop_assert!(first != second || before < after);
            }
        }
    }
}
