//! From raw sections to settings: types, defaults and relations. Every error is noted, and resolving goes on, so that all are
//! told at once; a value that stands in for a refused one never leaves this room, because then nothing does.

mod daemon;
pub(super) mod declared;
mod projection;
mod relay;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Config;
use super::layers::Layers;
use super::read::Raw;
use crate::setting::checker::Places;
use crate::setting::key::Key;
use crate::setting::problem::{KeyPath, Origin, Problem};
use crate::setting::{Bytes, Checker, Nanos, is_loopback};
use crate::{consumer, maintenance};

/// Checks everything against everything.
pub fn resolve(raw: &Raw, layers: &Layers, problems: &mut Vec<Problem>) -> Config {
    let mut checker = Checker { places: layers, problems };
    let daemon = daemon::resolve(&raw.daemon, &mut checker);
    let sources: BTreeMap<_, _> = raw
        .sources
        .iter()
        .filter_map(|(name, raw)| Some((name.clone(), source::resolve(name, raw, &mut checker)?)))
        .collect();
    let sinks: BTreeMap<_, _> = raw
        .sinks
        .iter()
        .filter_map(|(name, raw)| Some((name.clone(), raw.as_ref()?.resolve(name, &mut checker)?)))
        .collect();
    let relays = relay::resolve(raw, &sources, &sinks, &mut checker);
    let projections = projection::resolve(raw, &sources, &mut checker);
    let placed =
        |consumer: &consumer::Settings| Some((consumer.name.clone(), consumer.placed(sources.get(&consumer.source)?)));
    let consumers = relays.iter().chain(&projections).filter_map(placed).collect();
    let backed_up = |(name, keys): (&String, &Option<Box<dyn maintenance::Keys>>)| {
        let files = keys.as_ref()?.backed_up();
        (!files.is_empty()).then(|| (name.clone(), files.to_vec()))
    };
    let backups = raw.jobs.iter().filter_map(backed_up).collect();
    let named = raw.sources.keys().cloned().collect();
    let known = maintenance::Sources { resolved: &sources, named, consumers, backups };
    let resolve =
        |(name, raw): (&String, &Option<Box<dyn maintenance::Keys>>)| raw.as_ref()?.resolve(name, &known, &mut checker);
    let jobs = raw.jobs.iter().filter_map(resolve).collect();
    Config { daemon, sources, sinks, relays, projections, jobs }
}

/// Where commands go, whatever else is wrong.
pub fn control_of(layers: &Layers) -> PathBuf {
    let said = layers.values.get("daemon").and_then(|daemon| daemon.as_dict()?.get("control")?.as_str());
    daemon::control_of(said, &mut Checker { places: layers, problems: &mut Vec::new() })
}

impl Places for Layers {
    fn origin(&self, key: &KeyPath) -> Origin {
        Layers::origin(self, key)
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn key(&self, path: &KeyPath) -> Option<&'static Key> {
        super::reference::key_at(path)
    }
}
