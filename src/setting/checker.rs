//! Checks what was said, and notes what is wrong: each thing with its place, its reason and its remedy.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};

use super::key::Key;
use super::problem::{KeyPath, Origin, Problem, either, nearest};
use super::value::{FilePath, Size, Span};

/// Notes what is wrong.
pub struct Checker<'a> {
    pub places: &'a dyn Places,
    pub problems: &'a mut Vec<Problem>,
}

/// Where values stand, and what their keys are.
pub trait Places {
    fn origin(&self, key: &KeyPath) -> Origin;

    /// What relative paths start from.
    fn folder(&self) -> &Path;

    fn key(&self, path: &KeyPath) -> Option<&'static Key>;
}

impl Checker<'_> {
    pub fn refuse(&mut self, key: KeyPath, reason: impl Into<String>, remedy: impl Into<String>) {
        let origin = self.places.origin(&key);
        self.problems.push(Problem { origin, key, reason: reason.into(), remedy: Some(remedy.into()) });
    }

    /// Whether something is wrong with this key, or with the file that holds it, already.
    pub fn is_refused(&self, key: &KeyPath) -> bool {
        self.problems.iter().any(|problem| {
            let same_section =
                problem.key.0.len() == key.0.len() && problem.key.0[..key.0.len() - 1] == key.0[..key.0.len() - 1];
            let named = problem.key.last();
            same_section && (named == key.last() || named.strip_suffix("_file") == Some(key.last()))
        })
    }

    /// The value; when it was not said, that is noted. The remedy is an example.
    pub fn require<T: Clone>(&mut self, key: &KeyPath, value: Option<&T>) -> Option<T> {
        if value.is_none() && !self.is_refused(key) {
            let example = self.places.key(key).map_or("...", |key| key.example);
            self.refuse(key.clone(), "must be said", format!("for example: {} = {example}", key.last()));
        }
        value.cloned()
    }

    /// The choice that a word names; the first one stands in for a word that names none.
    pub fn choose<T: Copy>(&mut self, key: &KeyPath, word: &str, choices: &[(&str, T)]) -> T {
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

    pub fn choose_or<T: Copy>(
        &mut self,
        key: &KeyPath,
        word: Option<&String>,
        choices: &[(&str, T)],
        fallback: T,
    ) -> T {
        word.map_or(fallback, |word| self.choose(key, word, choices))
    }

    /// A value within bounds.
    pub fn within<T: PartialOrd + fmt::Display>(&mut self, key: &KeyPath, value: T, least: T, most: T) -> T {
        if value < least || value > most {
            self.refuse(
                key.clone(),
                format!("{value} is out of bounds"),
                format!("write something from {least} to {most}"),
            );
        }
        value
    }

    pub fn path(&self, path: &FilePath) -> PathBuf {
        self.places.folder().join(&path.0)
    }
}

/// A duration that is compared by length and printed with its unit.
#[derive(PartialEq)]
pub struct Nanos(pub Span);

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
pub struct Bytes(pub Size);

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
pub fn is_loopback(host: &str) -> bool {
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
