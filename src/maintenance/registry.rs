//! The types of jobs: a line for each file.

use std::collections::BTreeMap;
use std::fmt::Debug;

use figment::value::Value;
use serde::Deserialize;

use super::Settings;
use crate::setting::Checker;
use crate::setting::key::Section;
use crate::source;

macro_rules! jobs {
    ($($(#[$gate:meta])* $file:ident: $name:literal, $keys:ident;)*) => {
        static TYPES: &[Type] = &[$($(#[$gate])* Type {
            name: $name,
            section: super::$file::$keys::SECTION,
            read: read::<super::$file::$keys>,
        }),*];
    };
}

// The file, and in it what `type` says with its keys.
jobs! {
    archive: "archive", Keys;
    backup: "backup", Keys;
    integrity: "integrity", Keys;
    optimize: "optimize", Optimize;
    retention: "retention", Keys;
    snapshot: "snapshot", Keys;
    vacuum: "vacuum", Keys;
    // It stands in no document: no release has it.
    #[cfg(feature = "controls")] trial: "trial", Trial;
}

/// What the documents promise, and this version does not have.
const PLANNED: [&str; 1] = ["drill"];

/// A value of `jobs.X.type`.
pub struct Type {
    pub name: &'static str,
    /// Its keys.
    pub section: Section,
    pub read: Read,
}

/// Reads a type's keys.
pub type Read = fn(&Value) -> Result<Box<dyn Keys>, Box<figment::Error>>;

/// What a section says, not yet checked.
pub trait Keys: Debug {
    /// Checks it, and notes everything that is wrong.
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings>;

    /// The files that it backs up.
    fn backed_up(&self) -> &[String] {
        &[]
    }
}

/// The `[sources.X]` sections: those that could be resolved, and the names of all; and who reads them.
pub struct Sources<'a> {
    pub resolved: &'a BTreeMap<String, source::Settings>,
    pub named: Vec<String>,
    /// Each consumer's name, and its source with the place of its state.
    pub consumers: Vec<(String, source::Settings)>,
    /// Each backup job's name, and the files that it says.
    pub backups: Vec<(String, Vec<String>)>,
}

/// Those of this build.
pub fn types() -> impl Iterator<Item = &'static Type> + Clone {
    TYPES.iter()
}

impl Type {
    /// Whether users are told of it.
    pub fn is_for_users(&self) -> bool {
        self.name != "trial"
    }
}

/// Whether there will be such a type.
pub fn is_planned(name: &str) -> bool {
    PLANNED.contains(&name)
}

fn read<K: Keys + Default + for<'de> Deserialize<'de> + 'static>(
    value: &Value,
) -> Result<Box<dyn Keys>, Box<figment::Error>> {
    Ok(Box::new(K::deserialize(value)?))
}
