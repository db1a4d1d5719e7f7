//! The tables that are known by name. A preset is data: a file in `config/presets`, in the words that a person's own table is described in.
//!
//! `[[outbox]]` and `[[events]]` are the tables that `read` chooses from; several of one name are its generations, the newest first: the
//! first that fits the file is taken. A new preset is one file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::file;
use super::resolve::declared::declared;
use crate::source::declared::Declared;
use crate::store;

/// Every preset's name and text, by name (`build.rs` lists the folder).
pub const ALL: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/presets.rs"));

pub fn names() -> impl Iterator<Item = &'static str> + Clone {
    ALL.iter().map(|(name, _)| *name)
}

pub fn text(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The sections of a preset, by what `read` calls them.
pub(super) fn sections(name: &str) -> Option<BTreeMap<String, Vec<file::Source>>> {
    let text = text(name)?;
    Some(toml::from_str(text).unwrap_or_else(|error| panic!("config/presets/{name}.toml: {error}")))
}

/// All tables of the application that a preset names, whichever is read.
pub(super) fn all_tables(name: &str) -> BTreeSet<String> {
    let reads = sections(name).unwrap_or_default().into_keys();
    let declared: Vec<Arc<[Declared]>> = reads.filter_map(|read| tables(name, &read)).collect();
    let named = declared.iter().flat_map(|declared| declared.iter()).flat_map(Declared::tables).map(str::to_lowercase);
    let ours = if name == "outboxd" { &store::TABLES[..] } else { &[] };
    named.chain(ours.iter().map(|table| (*table).to_owned())).collect()
}

/// How a preset's table is read.
pub fn tables(name: &str, read: &str) -> Option<Arc<[Declared]>> {
    let generations = sections(name)?.remove(read)?;
    let generations = generations.iter().map(|section| {
        declared(section, &mut |key, reason, _| panic!("config/presets/{name}.toml, {read}, {key}: {reason}"))
    });
    generations.collect()
}

/// Every table that is known by name: whose it is, what `read` calls it, how it is read.
pub fn all() -> impl Iterator<Item = (&'static str, String, Arc<[Declared]>)> {
    let reads = names().flat_map(|name| sections(name).unwrap_or_default().into_keys().map(move |read| (name, read)));
    reads.filter_map(|(name, read)| tables(name, &read).map(|tables| (name, read, tables)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_whole() {
        for name in names() {
            for read in sections(name).unwrap().keys() {
                assert!(!tables(name, read).unwrap().is_empty(), "{name} {read}");
            }
        }
    }
}
