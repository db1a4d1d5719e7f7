//! From layers to raw sections: every unknown key and every value of the wrong kind is reported, not only the first.
//!
//! serde stops at the first fault; so the faulty key is taken out and the section is read again, until it can be read.

use std::collections::BTreeMap;

use figment::error::{Actual, Error as Fault, Kind as FaultKind};
use figment::value::{Dict, Value};
use serde::Deserialize;

use super::file;
use super::layers::Layers;
use super::reference;
use crate::setting::key::{Key, Kind, Section};
use crate::setting::problem::{KeyPath, Origin, Problem, either, nearest};
use crate::setting::secret_file::{self, Audience};
use crate::{maintenance, sink};

/// Everything that the configuration says, section by section, not yet checked against each other.
#[derive(Debug, Default)]
pub struct Raw {
    pub daemon: file::Daemon,
    pub sources: BTreeMap<String, file::Source>,
    /// `None`: its type is missing or unknown, which has been reported.
    pub sinks: BTreeMap<String, Option<Box<dyn sink::Keys>>>,
    pub relays: BTreeMap<String, file::Relay>,
    pub projections: BTreeMap<String, file::Projection>,
    /// `None`: as of a sink.
    pub jobs: BTreeMap<String, Option<Box<dyn maintenance::Keys>>>,
}

const TOP_LEVEL: [&str; 6] = ["daemon", "sources", "sinks", "relays", "projections", "jobs"];

/// What the documents of later versions promise: refused, not ignored.
const LATER: [(&str, &str); 3] = [
    ("daemon.token", "tokens are not in this version: HTTP changes nothing; use the commands"),
    ("daemon.token_file", "tokens are not in this version: HTTP changes nothing; use the commands"),
    ("daemon.tls", "TLS for the admin address is not in this version; keep it on loopback"),
];

/// Why something of a later version is refused.
fn later(path: &KeyPath) -> Option<&'static str> {
    LATER.into_iter().find(|(pattern, _)| matches(pattern, path)).map(|(_, reason)| reason)
}

fn matches(pattern: &str, path: &KeyPath) -> bool {
    let parts = pattern.split('.');
    parts.clone().count() == path.0.len() && parts.zip(&path.0).all(|(part, key)| part == "*" || part == key)
}

/// Reads every section; what cannot be read is reported and left out.
pub fn sections(layers: &Layers, problems: &mut Vec<Problem>) -> Raw {
    let mut reader = Reader { layers, problems };
    let mut raw = Raw::default();
    for (name, value) in &layers.values {
        let path = KeyPath::of([name]);
        match name.as_str() {
            "daemon" => raw.daemon = reader.section(&path, value, &file::Daemon::SECTION),
            "sources" => raw.sources = reader.named(&path, value, |r, p, v| r.section(p, v, &file::Source::SECTION)),
            "sinks" => raw.sinks = reader.named(&path, value, Reader::sink),
            "relays" => raw.relays = reader.named(&path, value, |r, p, v| r.section(p, v, &file::Relay::SECTION)),
            "projections" => {
                raw.projections = reader.named(&path, value, |r, p, v| r.section(p, v, &file::Projection::SECTION));
            }
            "jobs" => raw.jobs = reader.named(&path, value, Reader::job),
            _ => reader.unknown(&path, &TOP_LEVEL),
        }
    }
    raw
}

struct Reader<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn complain(&mut self, key: KeyPath, reason: String, remedy: Option<String>) {
        let origin = self.layers.origin(&key);
        self.problems.push(Problem { origin, key, reason, remedy });
    }

    fn unknown(&mut self, path: &KeyPath, known: &[&str]) {
        if let Some(reason) = later(path) {
            return self.complain(path.clone(), reason.to_owned(), Some("leave it out".to_owned()));
        }
        let remedy = match nearest(path.last(), known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("write {}, or leave it out", either(known.iter().copied())),
        };
        self.complain(path.clone(), "there is no such key".to_owned(), Some(remedy));
    }

    /// Sections whose names are the user's: `[sources.shop]`.
    fn named<T>(
        &mut self,
        path: &KeyPath,
        value: &Value,
        mut read: impl FnMut(&mut Self, &KeyPath, &Value) -> T,
    ) -> BTreeMap<String, T> {
        let Some(dict) = value.as_dict() else {
            let remedy = format!("write [{path}.a_name_you_choose]");
            self.complain(path.clone(), "a section is wanted here".to_owned(), Some(remedy));
            return BTreeMap::new();
        };
        let mut sections = BTreeMap::new();
        for (name, value) in dict {
            let path = path.join(name);
            if !is_name(name) {
                let remedy = "choose a name of a-z, 0-9 and _, without __, of at most 64 characters";
                self.complain(path.clone(), "this name cannot be used".to_owned(), Some(remedy.to_owned()));
            }
            sections.insert(name.clone(), read(self, &path, value));
        }
        sections
    }

    /// What `type` says; where it says nothing, that is reported.
    fn kind<'a>(&mut self, path: &KeyPath, value: &'a Value, write: impl Fn() -> String) -> Option<&'a str> {
        let Some(said) = value.as_dict().and_then(|dict| dict.get("type")) else {
            self.complain(path.join("type"), "must be said".to_owned(), Some(write()));
            return None;
        };
        Some(said.as_str().unwrap_or_default())
    }

    fn job(&mut self, path: &KeyPath, value: &Value) -> Option<Box<dyn maintenance::Keys>> {
        let names = || maintenance::types().filter(|known| known.is_for_users()).map(|known| known.name);
        let write = || format!("write {}", either(names()));
        let said = self.kind(path, value, write)?;
        if let Some(known) = maintenance::types().find(|known| known.name == said) {
            return self.section_of(path, value, &known.section, known.read);
        }
        let remedy = nearest(said, names()).map_or_else(write, |name| format!("did you mean `{name}`?"));
        self.complain(path.join("type"), "there is no such type of job".to_owned(), Some(remedy));
        None
    }

    fn sink(&mut self, path: &KeyPath, value: &Value) -> Option<Box<dyn sink::Keys>> {
        let names = || sink::types().map(|known| known.name);
        let write = || format!("write {}", either(names()));
        let said = self.kind(path, value, write)?;
        if let Some(known) = sink::types().find(|known| known.name == said) {
            return self.section_of(path, value, &known.section, known.read);
        }
        let (reason, remedy) = match sink::is_left_out(said) {
            true => (
                format!("this build of outboxd cannot do {said}: it was built without the feature `{said}`"),
                format!("build it with `cargo build --release --features {said}`, or use a release"),
            ),
            false => (
                "there is no such type of sink".to_owned(),
                nearest(said, names()).map_or_else(write, |name| format!("did you mean `{name}`?")),
            ),
        };
        self.complain(path.join("type"), reason, Some(remedy));
        None
    }

    fn section<T: Default + for<'de> Deserialize<'de>>(
        &mut self,
        path: &KeyPath,
        value: &Value,
        section: &Section,
    ) -> T {
        self.section_of(path, value, section, |value| T::deserialize(value).map_err(Box::new)).unwrap_or_default()
    }

    fn section_of<T>(
        &mut self,
        path: &KeyPath,
        value: &Value,
        section: &Section,
        read: impl Fn(&Value) -> Result<T, Box<Fault>>,
    ) -> Option<T> {
        let Some(mut dict) = value.as_dict().cloned() else {
            self.complain(path.clone(), "a section is wanted here".to_owned(), Some(format!("write [{path}]")));
            return None;
        };
        self.take_from_files(path, &mut dict, section);
        loop {
            match read(&Value::from(dict.clone())) {
                Ok(read) => return Some(read),
                Err(fault) => {
                    self.report(path, &fault, section);
                    assert!(remove(&mut dict, &fault.path), "a fault of a section names a key in it: {:?}", fault.path);
                }
            }
        }
    }

    /// Puts what stands in the file that `x_file` names in the place of `x`.
    fn take_from_files(&mut self, path: &KeyPath, dict: &mut Dict, section: &Section) {
        for key in section.keys {
            if let (Kind::Keys(inner), Some(Value::Dict(_, table))) = (key.kind, dict.get_mut(key.name())) {
                self.take_from_files(&path.join(key.name()), table, inner);
            }
            let file_name = format!("{}_file", key.name());
            if !key.kind.may_stand_in_a_file() || section.key(&file_name).is_some() {
                continue;
            }
            let Some(named) = dict.remove(&file_name) else { continue };
            self.take_from_file(path, dict, key, &named);
        }
    }

    fn take_from_file(&mut self, path: &KeyPath, dict: &mut Dict, key: &Key, named: &Value) {
        let (direct, by_file) = (path.join(key.name()), path.join(&format!("{}_file", key.name())));
        if dict.contains_key(key.name()) {
            let is_variable = |path| matches!(self.layers.origin(path), Origin::Variable(_));
            match (is_variable(&direct), is_variable(&by_file)) {
                (true, false) => return,
                (false, true) => {}
                _ => {
                    let reason = format!("`{}` and `{}` are both said", direct.last(), by_file.last());
                    return self.complain(by_file, reason, Some("keep one of them".to_owned()));
                }
            }
        }
        let Some(file) = named.as_str().filter(|file| !file.is_empty()) else {
            let remedy = Some("write the path in quotes".to_owned());
            return self.complain(by_file, "the path of a file is wanted here".to_owned(), remedy);
        };
        let audience = if key.kind == Kind::Secret { Audience::NotOthers } else { Audience::Anybody };
        match secret_file::read(&self.layers.folder.join(file), audience) {
            Ok(text) => {
                dict.insert(key.name().to_owned(), Value::from(text));
            }
            Err((reason, remedy)) => {
                let usual = || "write the value into that file, readable for the user that outboxd runs as".to_owned();
                self.complain(by_file, reason, Some(remedy.unwrap_or_else(usual)));
            }
        }
    }

    fn report(&mut self, path: &KeyPath, fault: &Fault, section: &Section) {
        let key_path = fault.path.iter().fold(path.clone(), |path, part| path.join(part));
        let example = reference::key_at(&key_path).map(|key| format!("for example: {} = {}", key.name(), key.example));
        match &fault.kind {
            FaultKind::UnknownField(_, known) => {
                let inner = fault.path.len().checked_sub(2).and_then(|index| section.key(&fault.path[index]));
                let section = match inner.map(|key| key.kind) {
                    Some(Kind::Keys(inner)) => inner,
                    _ => section,
                };
                let known: Vec<&str> = known.iter().map(|name| name.trim_start_matches("r#")).collect();
                if let Some(stem) = misplaced_file(&key_path, section) {
                    let reason = format!("`{stem}` cannot be given as a file");
                    return self.complain(key_path, reason, Some(format!("write `{stem}`")));
                }
                self.unknown(&key_path, &known);
            }
            FaultKind::InvalidType(actual, wanted) | FaultKind::InvalidValue(actual, wanted) => {
                self.complain(key_path, format!("this is {}; wanted is {}", article(actual), plain(wanted)), example);
            }
            FaultKind::Message(reason) => self.complain(key_path, reason.clone(), example),
            // Their words may quote the value, which may be a secret.
            _ => self.complain(key_path, "this value cannot be used here".to_owned(), example),
        }
    }
}

fn misplaced_file(path: &KeyPath, section: &Section) -> Option<&'static str> {
    let stem = path.last().strip_suffix("_file")?;
    section.key(stem).map(|key| key.name())
}

/// Takes the key that a fault names out of a section, wherever it stands below.
fn remove(dict: &mut Dict, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if let (Some(Value::Dict(_, inner)), false) = (dict.get_mut(first), rest.is_empty())
        && remove(inner, rest)
    {
        return true;
    }
    dict.remove(first).is_some()
}

/// The kind of a value, never the value: it may be a secret in the wrong place.
fn article(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Signed(number) if *number < 0 => "a negative number",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

/// serde's words for what it expected, in ours.
fn plain(wanted: &str) -> &str {
    match wanted {
        "a string" => "text in quotes",
        "a boolean" => "true or false",
        "u64" => "a whole number, not negative",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    !name.is_empty() && name.len() <= 64 && name.chars().all(allowed) && !name.contains("__")
}
