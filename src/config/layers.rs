//! Layers: the file, `conf.d/*.toml` beside it in name order, and the environment, one over the other.
//!
//! Every value keeps where it came from, to the line. A syntax error is told by place and message, never with the text of
//! the line, which may hold a secret.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::reference;
use crate::setting::key::Kind;
use crate::setting::problem::{KeyPath, Origin, Problem, nearest};

/// What a variable of ours begins with.
const PREFIX: &str = "OUTBOXD_";

/// The sections that a variable may name.
const SECTION_NAMES: [&str; 6] = ["daemon", "sources", "sinks", "relays", "projections", "jobs"];

/// All layers, merged.
pub struct Layers {
    pub values: Dict,
    /// The main file.
    pub file: PathBuf,
    /// The folder that relative paths are relative to.
    pub folder: PathBuf,
    figment: Figment,
    lines: BTreeMap<(String, KeyPath), usize>,
}

impl Layers {
    /// Reads everything that can be read; what cannot becomes a problem.
    pub fn read(file: &Path, variables: impl IntoIterator<Item = (OsString, OsString)>) -> (Self, Vec<Problem>) {
        let folder = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut stack = Stack::default();
        for path in std::iter::once(file.to_owned()).chain(stack.fragments(&folder.join("conf.d"))) {
            stack.add_file(&path);
        }
        stack.add_variables(variables);
        let Stack { figment, lines, problems } = stack;
        let values = figment.data().ok().and_then(|mut map| map.remove(&Profile::Default)).unwrap_or_default();
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        (Self { values, file: file.to_owned(), folder, figment, lines }, problems)
    }

    /// Where the value at `path` came from; for one that nobody said, where its section did, or should have.
    pub fn origin(&self, path: &KeyPath) -> Origin {
        (1..=path.0.len())
            .rev()
            .find_map(|length| self.exact_origin(&KeyPath(path.0[..length].to_vec())))
            .unwrap_or_else(|| Origin::File { path: self.file.clone(), line: None })
    }

    pub fn exact_origin(&self, path: &KeyPath) -> Option<Origin> {
        let metadata = self.figment.get_metadata(self.value(path)?.tag())?;
        Some(match metadata.name.strip_prefix(VARIABLE) {
            Some(name) => Origin::Variable(name.to_owned()),
            None => {
                let line = self.lines.get(&(metadata.name.to_string(), path.clone())).copied();
                Origin::File { path: PathBuf::from(metadata.name.as_ref()), line }
            }
        })
    }

    fn value(&self, path: &KeyPath) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        rest.iter().try_fold(self.values.get(first)?, |value, key| value.as_dict()?.get(key))
    }
}

/// Marks the layers that are environment variables among the layers that are files.
const VARIABLE: &str = "$";

/// One layer: values and their name.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

#[derive(Default)]
struct Stack {
    figment: Figment,
    lines: BTreeMap<(String, KeyPath), usize>,
    problems: Vec<Problem>,
}

const READABLE: Option<&str> = Some("make it one that the user may read whom outboxd runs as, or take it away");

impl Stack {
    fn push(&mut self, name: String, values: Dict) {
        self.figment = std::mem::take(&mut self.figment).merge(Layer { name, values });
    }

    fn complain(&mut self, origin: Origin, key: KeyPath, reason: String, remedy: Option<&str>) {
        self.problems.push(Problem { origin, key, reason, remedy: remedy.map(str::to_owned) });
    }

    /// `conf.d/*.toml` in name order.
    fn fragments(&mut self, folder: &Path) -> Vec<PathBuf> {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                let origin = Origin::File { path: folder.to_owned(), line: None };
                self.complain(origin, KeyPath::default(), format!("this folder cannot be read: {error}"), READABLE);
                return Vec::new();
            }
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let mut fragments: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
        fragments.sort();
        fragments
    }

    fn add_file(&mut self, path: &Path) {
        let whole = Origin::File { path: path.to_owned(), line: None };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let remedy = "name the file with -c FILE, or make one with `outboxd init`";
                return self.complain(whole, KeyPath::default(), "there is no such file".into(), Some(remedy));
            }
            Err(error) => {
                let reason = format!("this file cannot be read: {error}");
                return self.complain(whole, KeyPath::default(), reason, READABLE);
            }
        };
        if is_open_to_all(path) {
            let reason = "anybody on this machine may write to this file".to_owned();
            self.complain(whole, KeyPath::default(), reason, Some("chmod o-w it"));
        }
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            let line = error.span().map(|span| line_of(&text, span.start));
            let origin = Origin::File { path: path.to_owned(), line };
            self.complain(
                origin,
                KeyPath::default(),
                format!("this is not TOML: {}", error.message()),
                Some("mend this line; text stands in quotes, a section in [brackets]"),
            );
        }
        let name = path.to_string_lossy().into_owned();
        let mut reader = FileReader { text: &text, name: &name, lines: &mut self.lines };
        let values = reader.table(table.get_ref(), &KeyPath::default());
        self.push(name, values);
    }

    fn add_variables(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut ours = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)).map(str::to_owned) else { continue };
            match value.into_string() {
                Ok(value) => {
                    ours.insert(name, value);
                }
                Err(_) => {
                    let origin = Origin::Variable(name);
                    self.complain(origin, KeyPath::default(), "the value is not valid UTF-8".into(), None);
                }
            }
        }
        for (name, value) in ours {
            self.add_variable(&name, &value);
        }
    }

    /// Variables without `__` are not overrides (an orchestrator makes some, `OUTBOXD_PORT`), unless they look meant as one.
    fn add_variable(&mut self, name: &str, value: &str) {
        let rest = name[PREFIX.len()..].to_lowercase();
        let parts: Vec<String> = rest.split("__").map(str::to_owned).collect();
        let origin = Origin::Variable(name.to_owned());
        if parts.len() < 2 {
            let section = SECTION_NAMES.into_iter().find(|section| rest.starts_with(&format!("{section}_")));
            if section.is_some() {
                let remedy = "join the parts with two underscores: OUTBOXD_DAEMON__ADMIN, OUTBOXD_SINKS__BUS__TOPIC";
                self.complain(
                    origin,
                    KeyPath::default(),
                    "this looks like an override but is not one".into(),
                    Some(remedy),
                );
            }
            return;
        }
        if parts.iter().any(String::is_empty) {
            return self.complain(origin, KeyPath::default(), "one part of this name is empty".into(), None);
        }
        if !SECTION_NAMES.contains(&parts[0].as_str()) {
            let reason = format!("there is no section `{}`", parts[0]);
            let remedy = nearest(&parts[0], SECTION_NAMES).map(|name| format!("did you mean `{name}`?"));
            return self.complain(origin, KeyPath::default(), reason, remedy.as_deref());
        }
        let path = KeyPath(parts);
        let kind = reference::key_at(&path).map_or(Kind::Text, |key| key.kind);
        match variable_value(kind, value) {
            Ok(leaf) => {
                let outer = path.0[1..].iter().rev().fold(leaf, |inner, part| Value::from(dict(part, inner)));
                self.push(format!("{VARIABLE}{name}"), dict(&path.0[0], outer));
            }
            Err(reason) => self.complain(origin, path, reason, None),
        }
    }
}

fn dict(key: &str, value: Value) -> Dict {
    Dict::from([(key.to_owned(), value)])
}

/// Reads a variable's text as the kind that its key wants: a password of digits stays text.
fn variable_value(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Text | Kind::Word | Kind::Secret | Kind::Path | Kind::Duration | Kind::Size => Ok(Value::from(text)),
        Kind::Number => match text.trim().parse::<i64>() {
            Ok(number) => Ok(Value::from(number)),
            Err(_) => Err(format!("{text:?} is not a whole number")),
        },
        Kind::Bool => match text.trim() {
            "true" => Ok(Value::from(true)),
            "false" => Ok(Value::from(false)),
            _ => Err(format!("{text:?} is neither `true` nor `false`")),
        },
        Kind::List if !text.trim_start().starts_with('[') => {
            Ok(Value::from(text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>()))
        }
        Kind::List => toml_value(text).ok_or_else(|| "this is not a TOML list: write a,b or [\"a\", \"b\"]".to_owned()),
        // A plain word is a column's name, or "delete".
        Kind::Field | Kind::Rows if !text.trim_start().starts_with(['[', '{']) => Ok(Value::from(text)),
        Kind::Field if !text.contains('=') => Ok(toml_value(text).unwrap_or_else(|| Value::from(text))),
        Kind::Field | Kind::Rows | Kind::Table | Kind::Named | Kind::Keys(_) => {
            toml_value(text).ok_or_else(|| "this is not a TOML table: write { \"linger.ms\" = 5 }".to_owned())
        }
    }
}

fn toml_value(text: &str) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    let mut reader = FileReader { text, name: "", lines: &mut BTreeMap::new() };
    Some(reader.value(value.get_ref(), &KeyPath::default()))
}

/// Turns a parsed file into values, and notes their lines.
struct FileReader<'a> {
    text: &'a str,
    name: &'a str,
    lines: &'a mut BTreeMap<(String, KeyPath), usize>,
}

impl FileReader<'_> {
    fn table(&mut self, table: &DeTable<'_>, at: &KeyPath) -> Dict {
        let mut values = Dict::new();
        for (key, value) in table {
            let path = at.join(key.get_ref());
            let line = line_of(self.text, Spanned::<DeString<'_>>::span(key).start);
            self.lines.insert((self.name.to_owned(), path.clone()), line);
            values.insert(key.get_ref().to_string(), self.value(value.get_ref(), &path));
        }
        values
    }

    fn value(&mut self, value: &DeValue<'_>, at: &KeyPath) -> Value {
        match value {
            DeValue::String(text) => Value::from(text.as_ref()),
            DeValue::Boolean(value) => Value::from(*value),
            DeValue::Integer(number) => match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(number.as_str()),
            },
            DeValue::Float(number) => match number.as_str().replace('_', "").parse::<f64>() {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(number.as_str()),
            },
            DeValue::Datetime(time) => Value::from(time.to_string()),
            DeValue::Array(items) => {
                Value::from(items.iter().map(|item| self.value(item.get_ref(), at)).collect::<Vec<_>>())
            }
            DeValue::Table(table) => Value::from(self.table(table, at)),
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o002 != 0)
}
