//! What a command asks for: one JSON object, the same over the control socket and, when the daemon is down, on the files.

use serde::{Deserialize, Serialize};

use crate::consumer::control::{Operation, Target};
use crate::event::Position;
use crate::state::held::Selection;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status {},
    Pause {
        consumer: String,
    },
    Resume {
        consumer: String,
    },
    DeadLetters {
        action: DeadLettersAction,
        /// All of them when none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consumer: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        older_than_seconds: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Position {
        action: PositionAction,
        consumer: String,
        /// `first`, `head`, or a position.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Consumer {
        action: ConsumerAction,
        consumer: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadLettersAction {
    List,
    Show,
    Retry,
    Discard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionAction {
    Show,
    Set,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsumerAction {
    Accept,
    Forget,
}

/// A request for one consumer or for all, as the engine understands it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Task {
    Status,
    Pause,
    Resume,
    Operate(Operation),
}

impl Request {
    /// The consumer that is meant; `None` = all.
    pub fn consumer(&self) -> Option<&str> {
        match self {
            Request::Status {} => None,
            Request::DeadLetters { consumer, .. } => consumer.as_deref(),
            Request::Pause { consumer }
            | Request::Resume { consumer }
            | Request::Position { consumer, .. }
            | Request::Consumer { consumer, .. } => Some(consumer),
        }
    }

    /// An error says what is missing.
    pub fn task(&self) -> Result<Task, String> {
        let said = |reason: &Option<String>| reason.clone().unwrap_or_default();
        Ok(match self {
            Request::Status {} => Task::Status,
            Request::Pause { .. } => Task::Pause,
            Request::Resume { .. } => Task::Resume,
            Request::DeadLetters { action, id, key, older_than_seconds, reason, .. } => {
                let selection = Selection {
                    id: id.clone(),
                    key: key.clone().map(String::into_bytes),
                    older_than_micros: older_than_seconds.map(|seconds| seconds.saturating_mul(1_000_000) as i64),
                    heads_only: *action == DeadLettersAction::List,
                };
                Task::Operate(match action {
                    DeadLettersAction::List => Operation::List(selection),
                    DeadLettersAction::Show => Operation::Show(selection),
                    DeadLettersAction::Retry => Operation::Retry(selection),
                    DeadLettersAction::Discard => Operation::Discard { selection, reason: said(reason) },
                })
            }
            Request::Position { action: PositionAction::Show, .. } => Task::Operate(Operation::Position),
            Request::Position { action: PositionAction::Set, to, reason, .. } => {
                let to = match to.as_deref() {
                    Some("first") => Target::First,
                    Some("head") => Target::Head,
                    Some(text) => {
                        let number = text.parse().map_err(|_| format!("{text:?} is neither first, head nor a position"))?;
                        Target::Position(Position(number))
                    }
                    None => return Err("say where to: first, head or a position".into()),
                };
                Task::Operate(Operation::SetPosition { to, reason: said(reason) })
            }
            Request::Consumer { action: ConsumerAction::Accept, reason, .. } => {
                Task::Operate(Operation::Accept { reason: said(reason) })
            }
            Request::Consumer { action: ConsumerAction::Forget, reason, .. } => {
                Task::Operate(Operation::Forget { reason: said(reason) })
            }
        })
    }
}
