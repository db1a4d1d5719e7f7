//! What a sink sees at its far side that a person should know: said to the doctor, which adds nothing to it.
//!
//! A survey sends nothing and changes nothing (`no_topic_is_made_by_looking_at_it`). It is given a sample, makes of each event what would be sent, and
//! looks where that would go. What it may not see it says, and does not guess (`what_may_not_be_seen_of_a_topic_is_said`).

use crate::event::{Event, Rejection};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    Fine,
    /// It works, and could be better, or safer.
    Advice,
    /// Events would be refused, held up, or lost behind the acknowledgement.
    Danger,
}

/// One thing that was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    pub weight: Weight,
    pub evidence: String,
    pub remedy: Option<String>,
    /// For a shell.
    pub commands: Vec<String>,
}

impl Remark {
    pub fn fine(evidence: impl Into<String>) -> Self {
        Self { weight: Weight::Fine, evidence: evidence.into(), remedy: None, commands: Vec::new() }
    }

    pub fn advice(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { weight: Weight::Advice, remedy: Some(remedy.into()), ..Self::fine(evidence) }
    }

    pub fn danger(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { weight: Weight::Danger, remedy: Some(remedy.into()), ..Self::fine(evidence) }
    }

    pub fn with(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.commands.extend(commands);
        self
    }
}

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

/// A word of a command line.
pub fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
