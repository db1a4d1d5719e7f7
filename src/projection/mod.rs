//! Projections: a source's events folded into tables by SQL, one event after the other.
//!
//! Invariants (tests in `tests/it/projections.rs` and `tests/it/hostile_sql.rs`):
//! 1. Every statement is prepared against the real schema before the first event ([`statement::prove`]).
//! 2. It writes the tables that its section names, reads those and what `reads` names, and does nothing else ([`crate::sqlite::guard`]).
//! 3. A value of an event reaches SQL only as a parameter, of a fixed set ([`statement::Field`]).
//! 4. An event's statements take effect together or not at all; one that fails takes no other with it ([`apply`]).
//!
//! What it deliberately does not do: commit. The transaction is the delivery's (`consumer::delivery::project`), and the settlement stands in it.

pub mod apply;
pub mod statement;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::event::Event;
use crate::source::filter::Filter;
use crate::source::json_path::JsonPath;
use crate::sqlite::guard::Rules;

/// Statements under this name run for every type.
pub const EVERY_TYPE: &str = "*";

/// A resolved `[projections.X]` section, but for what every consumer has.
#[derive(Clone, PartialEq, Debug)]
pub struct Definition {
    pub name: String,
    /// The read model's file.
    pub path: PathBuf,
    pub key: Key,
    /// The tables that are its own.
    pub tables: Vec<String>,
    /// What makes them.
    pub schema: String,
    /// The views that the schema makes.
    pub views: Vec<String>,
    pub reads: Vec<String>,
    /// Patterns of types that it has nothing to do with.
    pub ignore: Vec<String>,
    pub on: BTreeMap<String, Vec<String>>,
    pub statement_time_max: Duration,
    pub on_change: OnChange,
}

/// What becomes of tables that another definition has made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnChange {
    /// A person decides.
    Refuse,
    /// They are made anew, and swapped.
    Rebuild,
}

/// What order is kept by.
#[derive(Clone, PartialEq, Debug)]
pub enum Key {
    /// What the source says.
    Source,
    Stream,
    /// A place in the event's data.
    Path(JsonPath),
}

impl Key {
    /// `None`: a key of its own.
    pub fn of(&self, event: &Event<'_>) -> Option<Vec<u8>> {
        match self {
            Key::Source => event.key.map(<[u8]>::to_vec),
            Key::Stream => event.stream_id.map(|id| id.as_bytes().to_vec()),
            Key::Path(path) => {
                let found = path.find(event.payload?).ok()??;
                let text = serde_json::from_str::<String>(found).unwrap_or_else(|_| found.to_owned());
                (found != "null").then(|| text.into_bytes())
            }
        }
    }
}

impl Definition {
    /// A number for everything that decides what stands in the tables.
    pub fn hash(&self) -> String {
        let mut text = String::new();
        for byte in &Sha256::digest(self.as_json().to_string())[..8] {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    pub fn as_json(&self) -> serde_json::Value {
        let key = match &self.key {
            Key::Source => "source".to_owned(),
            Key::Stream => "stream_id".to_owned(),
            Key::Path(path) => path.to_string(),
        };
        serde_json::json!({
            "key": key, "tables": self.tables, "views": self.views, "schema": self.schema, "reads": self.reads, "ignore": self.ignore,
            "on": self.on,
        })
    }

    /// What its statements may do, or those of its schema.
    pub fn rules(&self, defines: bool) -> Rules {
        let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect();
        let mut own: BTreeSet<String> = lower(&self.tables);
        if !defines {
            own.extend(self.views.iter().map(|name| name.to_lowercase()));
        }
        let known = BTreeSet::new();
        Rules { own, reads: lower(&self.reads), known, defines, time_max: self.statement_time_max }
    }

    pub fn ignored(&self) -> Option<Filter> {
        (!self.ignore.is_empty()).then(|| Filter::new(&self.ignore))
    }
}
