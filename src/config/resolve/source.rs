//! `[sources.X]`.

use std::path::{Path, PathBuf};

use super::Checker;
use crate::config::file;
use crate::config::problem::{KeyPath, nearest};
use crate::source::{Durability, Preset, Read, Settings, StatePlace};

const READS: [(&str, Read); 2] = [("outbox", Read::Outbox), ("events", Read::Events)];
const DURABILITIES: [(&str, Durability); 2] = [("strict", Durability::Strict), ("fast", Durability::Fast)];

/// Whether progress is marked in the application's own rows.
pub(super) fn is_read_by_row(settings: &Settings) -> bool {
    settings.preset == Preset::EventsourcePy && settings.read == Read::Outbox
}

pub(super) fn resolve(name: &str, raw: &file::Source, checker: &mut Checker<'_>) -> Option<Settings> {
    let key = |part: &str| KeyPath::of(["sources", name, part]);
    let path = checker.require(&key("path"), raw.path.as_ref()).map(|path| database(&path, &key("path"), checker));
    let preset = checker
        .require(&key("preset"), raw.preset.as_ref())
        .map(|word| checker.choose(&key("preset"), &word, &Preset::ALL));
    let read = checker.require(&key("read"), raw.read.as_ref()).map(|word| checker.choose(&key("read"), &word, &READS));
    let durability = checker.choose_or(&key("durability"), raw.durability.as_ref(), &DURABILITIES, Durability::Strict);
    let (path, preset, read) = (path?, preset?, read?);
    let mut settings = Settings { name: name.to_owned(), path, preset, read, durability, state: StatePlace::Beside };
    settings.state = state(raw.state.as_deref(), &settings, &key("state"), checker);
    Some(settings)
}

fn database(path: &crate::config::value::FilePath, key: &KeyPath, checker: &mut Checker<'_>) -> PathBuf {
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
    let always_inside = if is_read_by_row(settings) {
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
    let path = checker.layers.folder.join(text);
    if path == source {
        checker.refuse(key.clone(), "this is the source's own file", "write state = \"inside\"");
    }
    StatePlace::At(path)
}
