//! What restored files mean for a consumer: looked up in the files, and chosen by nobody but the one who reads it.

use std::path::Path;

use serde_json::{Value, json};

use crate::consumer::Settings;
use crate::maintenance::backup::manifest::Stands;
use crate::source::filter::Filter;
use crate::source::reader::Mark;
use crate::source::scan::{Scan, ScanError, Which};
use crate::source::{self, StatePlace};
use crate::sqlite::open;
use crate::state::checkpoint::{self, Checkpoint};
use crate::state::schema_version;

/// What becomes of a consumer when it is started on the files as they are now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// By row: what stands as not delivered is sent.
    Pending,
    /// It has no checkpoint.
    Begins,
    /// So many events that it had carried come once more.
    GoesOn {
        position: i64,
        again: Again,
        /// How far it had come, where the restored file does not go so far.
        beyond: Option<i64>,
    },
    Halts {
        position: i64,
        head: i64,
        choices: Vec<Choice>,
    },
    /// A read model.
    Ahead {
        position: i64,
        head: i64,
    },
    Unknown(String),
}

/// How many events come once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Again {
    Sent(u64),
    /// How far it had come is not known.
    AtMost(u64),
    /// Into tables that went back with its checkpoint.
    Applied(u64),
}

/// One of the ways on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    pub command: String,
    pub position: i64,
    /// Events that are sent once more.
    pub again: u64,
    pub because: &'static str,
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub consumer: &'a Settings,
    /// With the place of its state.
    pub source: &'a source::Settings,
    /// Nobody writes the source's file at present.
    pub is_still: bool,
    /// Its state was replaced.
    pub went_back: bool,
    /// How far it had come by the state that was replaced, where that can be read.
    pub before: Option<i64>,
    /// How far it had come when the backup was made, by its manifest.
    pub then: Option<&'a Stands>,
    /// Takes the way by the manifest.
    pub reset: &'a str,
}

impl Question<'_> {
    pub fn answer(&self) -> Meaning {
        self.looked().unwrap_or_else(|error| Meaning::Unknown(format!("{error:#}")))
    }

    fn looked(&self) -> anyhow::Result<Meaning> {
        let Some(checkpoint) = checkpoint(&self.source.state_path(), &self.consumer.name)? else {
            return Ok(Meaning::Begins);
        };
        let scan = if self.is_still { Scan::still(self.source)? } else { Scan::open(self.source)? };
        if scan.is_by_row() {
            return Ok(Meaning::Pending);
        }
        let (position, head) = (checkpoint.mark.position.0, scan.head()?.0);
        if scan.knows(&marks(&checkpoint, self.source))?.is_ok() {
            let carried = self.before.unwrap_or(if self.went_back { head } else { position });
            let again = self.count(&scan, position, carried.min(head))?;
            let again = match (self.consumer.destination.tables(), self.went_back, self.before) {
                (Some(_), _, _) => Again::Applied(again),
                (None, true, None) => Again::AtMost(again),
                _ => Again::Sent(again),
            };
            return Ok(Meaning::GoesOn { position, again, beyond: self.before.filter(|before| *before > head) });
        }
        if self.consumer.destination.tables().is_some() {
            return Ok(Meaning::Ahead { position, head });
        }
        let mut choices = Vec::new();
        if let Some(then) = self.then.filter(|then| then.position <= head) {
            choices.push(Choice {
                command: self.reset.to_owned(),
                position: then.position,
                again: self.count(&scan, then.position, head)?,
                because: "where it stood when the backup was made",
            });
        }
        let known = checkpoint.witnesses.marks().iter().rev();
        for mark in known {
            if scan.knows(std::slice::from_ref(mark))?.is_ok() {
                choices.push(self.set(
                    &scan,
                    mark.position.0,
                    head,
                    "the last event that its checkpoint and the restored file both know",
                )?);
                break;
            }
        }
        let because = "all that stands there now; right where the far side has got it";
        choices.push(self.set(&scan, head, head, because)?);
        Ok(Meaning::Halts { position, head, choices })
    }

    fn set(&self, scan: &Scan, position: i64, head: i64, because: &'static str) -> Result<Choice, ScanError> {
        let command = format!("outboxd position set {} {position}", self.consumer.name);
        Ok(Choice { command, position, again: self.count(scan, position, head)?, because })
    }

    /// Events of the consumer's types behind a position, up to another.
    fn count(&self, scan: &Scan, after: i64, last: i64) -> Result<u64, ScanError> {
        let filter = Filter::new(&self.consumer.types);
        let (mut count, mut after) = (0, after);
        while let Some(page) = scan.page_up_to(Which::All, after, last)? {
            count += page.batch.events().filter(|event| filter.admits(event.kind)).count() as u64;
            after = page.next;
        }
        Ok(count)
    }
}

/// What a start compares with the source.
pub fn marks(checkpoint: &Checkpoint, source: &source::Settings) -> Vec<Mark> {
    let witnesses = checkpoint.witnesses.marks().iter().filter(|_| source.state != StatePlace::Inside);
    std::iter::once(&checkpoint.mark).chain(witnesses).cloned().collect()
}

/// How far a consumer has come by a file, whether somebody writes it or not.
pub fn checkpoint(file: &Path, consumer: &str) -> anyhow::Result<Option<Checkpoint>> {
    if !file.exists() {
        return Ok(None);
    }
    let is_written = crate::sqlite::place::beside(file, "-wal").exists();
    let connection = if is_written { open::visitor(file)? } else { open::still(file)? };
    match schema_version(&connection)? {
        None => Ok(None),
        Some(_) => Ok(checkpoint::load(&connection, consumer)?),
    }
}

impl Meaning {
    pub fn to_json(&self, consumer: &str) -> Value {
        match self {
            Meaning::Pending => json!({ "consumer": consumer, "then": "sends-pending" }),
            Meaning::Begins => json!({ "consumer": consumer, "then": "begins" }),
            Meaning::GoesOn { position, again, beyond } => {
                let (Again::Sent(again) | Again::AtMost(again) | Again::Applied(again)) = again;
                let mut value =
                    json!({ "consumer": consumer, "then": "goes-on", "position": position, "again": again });
                if let Some(beyond) = beyond {
                    value["beyond"] = json!(beyond);
                }
                value
            }
            Meaning::Halts { position, head, choices } => {
                let choices: Vec<Value> = choices
                    .iter()
                    .map(|one| json!({ "command": one.command, "position": one.position, "again": one.again }))
                    .collect();
                json!({ "consumer": consumer, "then": "halts", "position": position, "head": head, "choices": choices })
            }
            Meaning::Ahead { position, head } => json!({
                "consumer": consumer, "then": "halts", "position": position, "head": head,
                "choices": [{ "command": format!("outboxd rebuild {consumer}"), "position": head, "again": 0 }],
            }),
            Meaning::Unknown(why) => json!({ "consumer": consumer, "then": "unknown", "why": why }),
        }
    }

    pub fn told(&self, consumer: &str) -> String {
        let events = |count: u64| if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
        match self {
            Meaning::Pending => format!(
                "  {consumer} sends what stands as not delivered in the restored file: what it had sent since comes once more, with the same ids\n"
            ),
            Meaning::Begins => {
                format!("  {consumer} has no checkpoint in its state: it begins as at its first start\n")
            }
            Meaning::GoesOn { position, again, beyond } => {
                let what = match again {
                    Again::Sent(0) | Again::AtMost(0) => "nothing comes twice".to_owned(),
                    Again::Sent(count) => {
                        format!("{} that it had sent come once more, with the same ids", events(*count))
                    }
                    Again::AtMost(count) => format!("up to {} come once more, with the same ids", events(*count)),
                    Again::Applied(count) => {
                        format!("its tables went back with it, and {} are applied to them again", events(*count))
                    }
                };
                let beyond = match (beyond, again) {
                    (None, _) | (_, Again::Applied(_)) => String::new(),
                    (Some(beyond), _) => format!(
                        ". What it sent behind the end of the restored file, up to position {beyond}, is at its far side and not in the file any more"
                    ),
                };
                format!("  {consumer} goes on behind position {position}: {what}{beyond}\n")
            }
            Meaning::Halts { position, head, choices } => {
                let mut text = format!(
                    "  {consumer} HALTS until you choose: its checkpoint is at position {position}, and is not of the restored file, which ends at {head}. \
                     What it sent behind that is at its far side, and not in the file any more\n"
                );
                for choice in choices {
                    text += &format!(
                        "    {}\n      goes on behind position {}, {}: {} come once more, with the same ids\n",
                        choice.command,
                        choice.position,
                        choice.because,
                        events(choice.again)
                    );
                }
                text
            }
            Meaning::Ahead { position, head } => format!(
                "  {consumer} HALTS: its tables are ahead of the restored file. They hold events up to position {position}, and the file ends at {head}\n    outboxd \
                 rebuild {consumer}\n      makes them anew from what stands there\n"
            ),
            Meaning::Unknown(why) => format!("  what it means for {consumer} cannot be told: {why}\n"),
        }
    }
}
