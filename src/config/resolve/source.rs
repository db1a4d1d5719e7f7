//! `[sources.X]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Checker;
use super::declared::declared;
use crate::config::{file, preset};
use crate::setting::problem::{KeyPath, either, nearest};
use crate::source::declared::Declared;
use crate::source::{Durability, Settings, StatePlace};
use crate::sqlite::place;

const DURABILITIES: [(&str, Durability); 2] = [("strict", Durability::Strict), ("fast", Durability::Fast)];

pub(super) fn resolve(name: &str, raw: &file::Source, checker: &mut Checker<'_>) -> Option<Settings> {
    let key = |part: &str| KeyPath::of(["sources", name, part]);
    let path = checker.require(&key("path"), raw.path.as_ref()).map(|path| database(&path, &key("path"), checker));
    let tables = tables(name, raw, checker);
    let durability = checker.choose_or(&key("durability"), raw.durability.as_ref(), &DURABILITIES, Durability::Strict);
    let (path, tables) = (path?, tables?);
    let preset = raw.preset.clone();
    let mut settings = Settings {
        name: name.to_owned(),
        path,
        preset,
        tables,
        durability,
        state: StatePlace::Beside,
        allow_network_filesystem: raw.allow_network_filesystem.unwrap_or(false),
    };
    settings.state = state(raw.state.as_deref(), &settings, &key("state"), checker);
    Some(settings)
}

/// The table as it is described, or a preset's with what is said over it.
fn tables(name: &str, raw: &file::Source, checker: &mut Checker<'_>) -> Option<Arc<[Declared]>> {
    let key = |part: &str| KeyPath::of(["sources", name, part]);
    let Some(preset) = &raw.preset else {
        if raw.table.is_none() && raw.query.is_none() {
            checker.require(&key("preset"), raw.preset.as_ref());
            return None;
        }
        if raw.read.is_some() && (raw.table.is_some() || raw.query.is_some()) {
            checker.refuse(key("read"), "this chooses among a preset's tables, and there is no preset", "leave it out");
        }
        return described(name, raw, checker).map(|declared| Arc::from([declared]));
    };
    let Some(mut sections) = preset::sections(preset) else {
        let choices: Vec<(&str, ())> = preset::names().map(|name| (name, ())).collect();
        checker.choose(&key("preset"), preset, &choices);
        return None;
    };
    let reads: Vec<String> = sections.keys().cloned().collect();
    let read = match (&raw.read, reads.as_slice()) {
        (None, [only]) => only.clone(),
        (None, _) => {
            checker.require(&key("read"), raw.read.as_ref());
            return None;
        }
        (Some(read), _) => read.clone(),
    };
    let Some(generations) = sections.remove(&read) else {
        let remedy = match nearest(&read, reads.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("write {}", either(reads.iter().map(String::as_str))),
        };
        checker.refuse(key("read"), format!("{read:?} is not a choice here"), remedy);
        return None;
    };
    let mut tables = Vec::new();
    for generation in generations {
        tables.push(described(name, &raw.clone().or(generation), checker)?);
    }
    Some(tables.into())
}

fn described(name: &str, section: &file::Source, checker: &mut Checker<'_>) -> Option<Declared> {
    declared(section, &mut |part, reason, remedy| {
        let key = KeyPath::of(["sources", name, part]);
        if !checker.is_refused(&key) {
            checker.refuse(key, reason, remedy);
        }
    })
}

fn database(path: &crate::setting::value::FilePath, key: &KeyPath, checker: &mut Checker<'_>) -> PathBuf {
    let text = path.0.trim();
    if text.is_empty() {
        checker.refuse(key.clone(), "the path is empty", "name the application's SQLite file");
    } else if text.contains(":memory:") || text.contains("mode=memory") {
        let reason = "a database in memory belongs to one process: nobody else can read it";
        checker.refuse(key.clone(), reason, "let the application write to a file, and name that");
    } else if text.starts_with("file:") {
        checker.refuse(key.clone(), "a URI is not taken here", "write the plain path of the file");
    }
    checker.path(path)
}

fn state(said: Option<&str>, settings: &Settings, key: &KeyPath, checker: &mut Checker<'_>) -> StatePlace {
    let always_inside = if settings.is_by_row() {
        Some(
            "this table is read by row: progress is marked in the application's own file, and so state stands there too",
        )
    } else if settings.durability == Durability::Fast {
        Some(
            "with durability = \"fast\" state stands in the application's own file, so that a power cut takes both back together",
        )
    } else {
        None
    };
    let place = match said {
        None if always_inside.is_some() => StatePlace::Inside,
        None | Some("beside") => StatePlace::Beside,
        Some("inside") => StatePlace::Inside,
        Some(text) => at_path(text, &settings.path, key, checker),
    };
    if let (Some(reason), true) = (always_inside, place != StatePlace::Inside && said.is_some()) {
        checker.refuse(key.clone(), reason, "leave `state` out, or write state = \"inside\"");
    }
    place
}

fn at_path(text: &str, source: &Path, key: &KeyPath, checker: &mut Checker<'_>) -> StatePlace {
    if !text.contains(['/', '.']) {
        let remedy = match nearest(text, ["beside", "inside"]) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "write \"beside\", \"inside\", or a path such as \"state/shop.db\"".to_owned(),
        };
        checker.refuse(key.clone(), format!("{text:?} is neither a word known here nor a path"), remedy);
    }
    let path = checker.places.folder().join(text);
    if place::is_same(&path, source) {
        checker.refuse(key.clone(), "this is the source's own file", "write state = \"inside\"");
    }
    StatePlace::At(path)
}
