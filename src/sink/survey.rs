//! What a sink sees at its far side that a person should know: said to the doctor, which adds nothing to it.
//!
//! A survey sends nothing and changes nothing (`no_topic_is_made_by_looking_at_it`). It is given a sample, makes of each event what would be sent, and
//! looks where that would go. What it may not see it says, and does not guess (`what_may_not_be_seen_of_a_topic_is_said`).

use crate::event::{Event, Rejection};
use crate::remark::Remark;

/// Events that a relay sends, or has sent: the newest ones of its source, and the largest that was found.
#[derive(Debug)]
pub struct Sample<'a> {
    pub source: &'a str,
    pub events: Vec<Event<'a>>,
}

/// Events that would be refused before they are sent.
#[derive(Default)]
pub struct Refused {
    count: usize,
    first: Option<(String, Rejection)>,
}

impl Refused {
    pub fn note(&mut self, event: &Event<'_>, rejection: Rejection) {
        self.count += 1;
        self.first.get_or_insert_with(|| (event.id.to_owned(), rejection));
    }

    pub fn remark(self, sample: &Sample<'_>) -> Option<Remark> {
        let (id, rejection) = self.first?;
        let evidence = format!(
            "{} of {} events looked at would be refused before they are sent, and held or made dead letters; one is {id}: {}",
            self.count,
            sample.events.len(),
            rejection.detail
        );
        Some(Remark::danger(
            evidence,
            "mend the sink's section (docs/CONFIG.md), or let the application write what it needs; `types` leaves events out",
        ))
    }
}
