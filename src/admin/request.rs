//! What a command asks for: one JSON object, the same over the control socket and, while the daemon is down, on the files.

use serde::{Deserialize, Serialize};

use crate::consumer::control::{Operation, Target};
use crate::consumer::replay::Wanted;
use crate::state::held::Selection;

/// What a command asks of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    Status,
    Reload,
    Pause { consumer: String },
    Resume { consumer: String },
    DeadLetters(DeadLetters),
    Position(Position),
    Consumer(Consumer),
    Replay(Replay),
    Rebuild(Rebuild),
    Job(Job),
}

/// The end of a rebuild, which was done beside the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Rebuild {
    Swap {
        consumer: String,
        /// Of the definition that the tables were made by.
        hash: String,
        with_dead_letters: bool,
    },
    /// Drops what the last swap has kept.
    Drop { consumer: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum DeadLetters {
    List {
        #[serde(flatten)]
        filter: Filter,
        limit: u64,
    },
    /// One event, which `id` names; with `consumer` when more than one failed with it.
    Show { id: String, consumer: Option<String> },
    Retry {
        #[serde(flatten)]
        filter: Filter,
    },
    Discard {
        #[serde(flatten)]
        filter: Filter,
        reason: String,
    },
}

/// Which dead letters are meant: those that all the given fields fit. None given = all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    pub consumer: Option<String>,
    pub key: Option<String>,
    pub id: Option<String>,
    /// Held for at least so long.
    pub older_than_seconds: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Position {
    /// Of one consumer, or of all.
    Show {
        consumer: Option<String>,
    },
    Set {
        consumer: String,
        to: Place,
    },
}

/// A place in a source: `"first"`, `"head"` or `{"position": 7}`. The next event to be carried is the one behind it; for
/// `"first"` the very first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    First,
    Head,
    Position(i64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Consumer {
    List,
    Accept { consumer: String },
    Forget { consumer: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Replay {
    /// Answered when it is recorded; how far it has come stands in the consumer's status.
    Start {
        consumer: String,
        wanted: Wanted,
    },
    Cancel {
        consumer: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Job {
    List,
    /// Answered when the run has ended.
    Run {
        job: String,
    },
}

impl Request {
    /// The consumer that is meant; `None` = all.
    pub fn consumer(&self) -> Option<&str> {
        match self {
            Request::Status | Request::Reload | Request::Job(_) | Request::Consumer(Consumer::List) => None,
            Request::Pause { consumer } | Request::Resume { consumer } => Some(consumer),
            Request::DeadLetters(
                DeadLetters::List { filter, .. } | DeadLetters::Retry { filter } | DeadLetters::Discard { filter, .. },
            ) => filter.consumer.as_deref(),
            Request::DeadLetters(DeadLetters::Show { consumer, .. }) => consumer.as_deref(),
            Request::Position(Position::Show { consumer }) => consumer.as_deref(),
            Request::Position(Position::Set { consumer, .. })
            | Request::Consumer(Consumer::Accept { consumer } | Consumer::Forget { consumer })
            | Request::Rebuild(Rebuild::Swap { consumer, .. } | Rebuild::Drop { consumer })
            | Request::Replay(Replay::Start { consumer, .. } | Replay::Cancel { consumer }) => Some(consumer),
        }
    }

    /// What is recorded of a consumer and is to be looked at or changed; `None` where the request is about the running one.
    pub fn operation(&self) -> Option<Operation> {
        Some(match self {
            Request::Status
            | Request::Reload
            | Request::Job(_)
            | Request::Pause { .. }
            | Request::Resume { .. }
            | Request::Consumer(Consumer::List) => return None,
            Request::DeadLetters(DeadLetters::List { filter, limit }) => Operation::List {
                selection: filter.selection(),
                // One more tells whether there are more.
                most: usize::try_from(*limit).unwrap_or(usize::MAX).saturating_add(1),
            },
            Request::DeadLetters(DeadLetters::Show { id, .. }) => {
                Operation::Show(Selection { id: Some(id.clone()), ..Selection::default() })
            }
            Request::DeadLetters(DeadLetters::Retry { filter }) => Operation::Retry(filter.selection()),
            Request::DeadLetters(DeadLetters::Discard { filter, reason }) => {
                Operation::Discard { selection: filter.selection(), reason: reason.clone() }
            }
            Request::Position(Position::Show { .. }) => Operation::Position,
            Request::Position(Position::Set { to, .. }) => {
                Operation::SetPosition { to: to.target(), reason: BY_OPERATOR.into() }
            }
            Request::Consumer(Consumer::Accept { .. }) => Operation::Accept { reason: BY_OPERATOR.into() },
            Request::Rebuild(Rebuild::Swap { hash, with_dead_letters, .. }) => {
                Operation::Swap { hash: hash.clone(), with_dead_letters: *with_dead_letters }
            }
            Request::Rebuild(Rebuild::Drop { .. }) => Operation::DropKept,
            Request::Replay(Replay::Start { wanted, .. }) => Operation::Replay(wanted.clone()),
            Request::Replay(Replay::Cancel { .. }) => Operation::CancelReplay,
            Request::Consumer(Consumer::Forget { .. }) => Operation::Forget { reason: BY_OPERATOR.into() },
        })
    }
}

const BY_OPERATOR: &str = "asked for by an operator";

impl Filter {
    fn selection(&self) -> Selection {
        Selection {
            id: self.id.clone(),
            key: self.key.clone().map(String::into_bytes),
            older_than_micros: self.older_than_seconds.map(|seconds| seconds.saturating_mul(1_000_000) as i64),
            heads_only: false,
        }
    }
}

impl Place {
    fn target(&self) -> Target {
        match self {
            Place::First => Target::First,
            Place::Head => Target::Head,
            Place::Position(position) => Target::Position(crate::event::Position(*position)),
        }
    }
}
