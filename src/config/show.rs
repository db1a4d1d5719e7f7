//! The configuration in force, as text: what was said, and the defaults of what was not. Secrets are hidden.

use figment::value::{Dict, Value};

use super::file;
use super::layers::Layers;
use crate::setting::key::{Fallback, Key, Kind, Section};
use crate::setting::problem::{KeyPath, Origin};
use crate::{maintenance, sink};

const HIDDEN: &str = "***";

/// Every key in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub lines: Vec<Line>,
}

/// One key in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub path: KeyPath,
    /// As TOML would write it, or `***`.
    pub value: String,
    pub origin: Origin,
}

impl Shown {
    /// As a TOML file, with where each value came from as a comment when that is asked for.
    pub fn toml(&self, with_origin: bool) -> String {
        let mut text = String::new();
        let mut section = KeyPath::default();
        for line in &self.lines {
            let depth = if line.path.0[0] == "daemon" { 1 } else { 2 };
            let (head, rest) = line.path.0.split_at(depth);
            if section.0 != head {
                section = KeyPath(head.to_vec());
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{section}]\n"));
            }
            text.push_str(&format!("{} = {}", KeyPath(rest.to_vec()), line.value));
            match with_origin {
                true => text.push_str(&format!("  # {}\n", line.origin)),
                false => text.push('\n'),
            }
        }
        text
    }
}

/// What is in force in a configuration that was taken.
pub(super) fn shown(layers: &Layers) -> Shown {
    let mut lines = Lines { layers, lines: Vec::new() };
    let empty = Dict::new();
    let dict = |name: &str| layers.values.get(name).and_then(Value::as_dict).unwrap_or(&empty);
    lines.section(&KeyPath::of(["daemon"]), dict("daemon"), &file::Daemon::SECTION);
    for (group, section) in [
        ("sources", Some(file::Source::SECTION)),
        ("sinks", None),
        ("relays", Some(file::Relay::SECTION)),
        ("projections", Some(file::Projection::SECTION)),
        ("jobs", None),
    ] {
        for (name, value) in dict(group) {
            let values = value.as_dict().unwrap_or(&empty);
            let said = values.get("type").and_then(Value::as_str);
            let by_type = || match group {
                "jobs" => maintenance::types().find(|known| said == Some(known.name)).map(|known| known.section),
                _ => sink::types().find(|known| said == Some(known.name)).map(|known| known.section),
            };
            if let Some(section) = section.or_else(by_type) {
                lines.section(&KeyPath::of([group, name]), values, &section);
            }
        }
    }
    Shown { lines: lines.lines }
}

struct Lines<'a> {
    layers: &'a Layers,
    lines: Vec<Line>,
}

impl Lines<'_> {
    fn section(&mut self, at: &KeyPath, values: &Dict, section: &Section) {
        for key in section.keys {
            let path = at.join(key.name());
            let from_file = at.join(&format!("{}_file", key.name()));
            match (values.get(key.name()), values.get(from_file.last())) {
                // A variable goes before a file that the file names.
                (Some(value), _) => self.said(path, value, key),
                (None, Some(value)) if key.kind.may_stand_in_a_file() => self.push(from_file, written(value)),
                _ => {
                    if let Fallback::Value(value) = key.fallback {
                        self.lines.push(Line { path, value: value.to_owned(), origin: Origin::Fallback });
                    }
                }
            }
        }
    }

    fn said(&mut self, path: KeyPath, value: &Value, key: &Key) {
        match (key.kind, value) {
            (Kind::Keys(inner), Value::Dict(_, values)) if !values.is_empty() => self.section(&path, values, inner),
            (Kind::Secret, _) => self.push(path, HIDDEN.to_owned()),
            (Kind::Named, Value::Dict(_, values)) => {
                values.iter().for_each(|(name, said)| self.push(path.join(name), written(said)));
            }
            (Kind::Table, Value::Dict(_, values)) => self.properties(&path, values),
            _ => self.push(path, written(value)),
        }
    }

    fn properties(&mut self, path: &KeyPath, values: &Dict) {
        for (name, value) in values {
            let path = path.join(name);
            match value {
                Value::Dict(_, inner) => self.properties(&path, inner),
                _ if is_telling(name) => self.push(path, HIDDEN.to_owned()),
                _ => self.push(path, written(value)),
            }
        }
    }

    fn push(&mut self, path: KeyPath, value: String) {
        let origin = self.layers.origin(&path);
        self.lines.push(Line { path, value, origin });
    }
}

/// Whether a property of the user's own may hold a secret.
fn is_telling(name: &str) -> bool {
    ["password", "secret", "key", "token", "jaas", "config", "pem"].iter().any(|word| name.contains(word))
}

fn written(value: &Value) -> String {
    match value {
        Value::String(_, text) => toml::Value::String(text.clone()).to_string(),
        Value::Bool(_, value) => value.to_string(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Dict(_, values) => {
            let pairs = values.iter().map(|(key, value)| format!("{} = {}", KeyPath::of([key]), written(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => match (other.to_i128(), other.to_u128(), other.to_f64()) {
            (Some(number), ..) => number.to_string(),
            (_, Some(number), _) => number.to_string(),
            (_, _, Some(number)) => number.to_string(),
            _ => String::new(),
        },
    }
}
