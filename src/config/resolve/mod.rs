//! From raw sections to settings: types, defaults and relations. Every error is noted, and resolving goes on, so that all are
//! told at once; a value that stands in for a refused one never leaves this room, because then nothing does.

mod amqp;
#[cfg(any(feature = "kafka", feature = "amqp"))]
mod broker;
mod daemon;
pub(super) mod declared;
mod http;
mod kafka;
mod relay;
mod sink;
mod source;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::Config;
use super::layers::Layers;
use super::problem::{KeyPath, Problem, either, nearest};
use super::read::Raw;
use super::value::{FilePath, Size, Span};

/// Checks everything against everything.
pub fn resolve(raw: &Raw, layers: &Layers, problems: &mut Vec<Problem>) -> Config {
    let mut checker = Checker { layers, problems };
    let daemon = daemon::resolve(&raw.daemon, &mut checker);
    let sources: BTreeMap<_, _> = raw
        .sources
        .iter()
        .filter_map(|(name, raw)| Some((name.clone(), source::resolve(name, raw, &mut checker)?)))
        .collect();
    let sinks: BTreeMap<_, _> = raw
        .sinks
        .iter()
        .filter_map(|(name, raw)| Some((name.clone(), sink::resolve(name, raw, &mut checker)?)))
        .collect();
    let relays = relay::resolve(raw, &sources, &sinks, &mut checker);
    Config { daemon, sources, sinks, relays }
}

/// Where commands go, whatever else is wrong.
pub fn control_of(layers: &Layers) -> PathBuf {
    let said = layers.values.get("daemon").and_then(|daemon| daemon.as_dict()?.get("control")?.as_str());
    daemon::control_of(said, &mut Checker { layers, problems: &mut Vec::new() })
}

/// Notes what is wrong.
struct Checker<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn refuse(&mut self, key: KeyPath, reason: impl Into<String>, remedy: impl Into<String>) {
        let origin = self.layers.origin(&key);
        self.problems.push(Problem { origin, key, reason: reason.into(), remedy: Some(remedy.into()) });
    }

    /// Whether something is wrong with this key, or with the file that holds it, already.
    fn is_refused(&self, key: &KeyPath) -> bool {
        self.problems.iter().any(|problem| {
            let same_section =
                problem.key.0.len() == key.0.len() && problem.key.0[..key.0.len() - 1] == key.0[..key.0.len() - 1];
            let named = problem.key.last();
            same_section && (named == key.last() || named.strip_suffix("_file") == Some(key.last()))
        })
    }

    /// The value; when it was not said, that is noted. The remedy is an example.
    fn require<T: Clone>(&mut self, key: &KeyPath, value: Option<&T>) -> Option<T> {
        if value.is_none() && !self.is_refused(key) {
            let example = super::reference::key_at(key).map_or("...", |key| key.example);
            self.refuse(key.clone(), "must be said", format!("for example: {} = {example}", key.last()));
        }
        value.cloned()
    }

    /// The choice that a word names; the first one stands in for a word that names none.
    fn choose<T: Copy>(&mut self, key: &KeyPath, word: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == word) {
            return *choice;
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let remedy = match nearest(word, names()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("write {}", either(names())),
        };
        self.refuse(key.clone(), format!("{word:?} is not a choice here"), remedy);
        choices[0].1
    }

    fn choose_or<T: Copy>(&mut self, key: &KeyPath, word: Option<&String>, choices: &[(&str, T)], fallback: T) -> T {
        word.map_or(fallback, |word| self.choose(key, word, choices))
    }

    /// A value within bounds.
    fn within<T: PartialOrd + fmt::Display>(&mut self, key: &KeyPath, value: T, least: T, most: T) -> T {
        if value < least || value > most {
            self.refuse(
                key.clone(),
                format!("{value} is out of bounds"),
                format!("write something from {least} to {most}"),
            );
        }
        value
    }

    fn path(&self, path: &FilePath) -> PathBuf {
        self.layers.folder.join(&path.0)
    }
}

/// A duration that is compared by length and printed with its unit.
#[derive(PartialEq)]
struct Nanos(Span);

impl PartialOrd for Nanos {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.0.0.partial_cmp(&other.0.0)
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A size that is compared by bytes.
#[derive(PartialEq)]
struct Bytes(Size);

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.0.0.partial_cmp(&other.0.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a host is this machine itself, by its name alone.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name() {
        for host in
            ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST", "a.localhost", "::ffff:127.0.0.1"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "localhost.example.com", "example.com", "0.0.0.0", "::", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
