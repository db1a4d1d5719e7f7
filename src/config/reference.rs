//! The reference of all keys, generated from the structs that read them.

use std::fmt::Write;

use super::file;
use crate::setting::key::{Fallback, Key, Kind, Section};
use crate::setting::problem::KeyPath;
use crate::{maintenance, sink};

/// The key that a path names, whatever names the user chose on the way.
pub fn key_at(path: &KeyPath) -> Option<&'static Key> {
    let parts: Vec<&str> = path.0.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["daemon", rest @ ..] => key_in(&file::Daemon::SECTION, rest),
        ["sources", _, rest @ ..] => key_in(&file::Source::SECTION, rest),
        ["relays", _, rest @ ..] => key_in(&file::Relay::SECTION, rest),
        ["projections", _, rest @ ..] => key_in(&file::Projection::SECTION, rest),
        ["jobs", _, rest @ ..] => maintenance::types().find_map(|known| key_in(&known.section, rest)),
        ["sinks", _, rest @ ..] => sink::types().find_map(|known| key_in(&known.section, rest)),
        _ => None,
    }
}

fn key_in(section: &Section, path: &[&str]) -> Option<&'static Key> {
    let (first, rest) = path.split_first()?;
    let key = section.key(first)?;
    match (key.kind, rest) {
        (_, []) => Some(key),
        (Kind::Keys(inner), rest) => key_in(inner, rest),
        // A key of the user's own table.
        (Kind::Table, _) => None,
        _ => None,
    }
}

const HEAD: &str = include_str!("reference_head.md");

/// The text of docs/CONFIG.md.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    let sinks = sink::types().map(|known| &known.section);
    let jobs = maintenance::types().filter(|known| known.is_for_users()).map(|known| &known.section);
    let sections = [&file::Daemon::SECTION, &file::Source::SECTION].into_iter();
    let sections = sections.chain(sinks).chain([&file::Relay::SECTION, &file::Projection::SECTION]).chain(jobs);
    for section in sections {
        push_section(&mut text, section, "##");
        for key in section.keys {
            if let Kind::Keys(inner) = key.kind {
                let heading = format!("{}: `{}`", section.heading, inner.heading);
                push_section(&mut text, &Section { heading: "", ..*inner }, &format!("### {heading}"));
            }
        }
    }
    text
}

fn push_section(text: &mut String, section: &Section, marks: &str) {
    let heading = if section.heading.is_empty() { String::new() } else { format!(" `{}`", section.heading) };
    let about: Vec<&str> = section.about.iter().map(|line| line.trim()).collect();
    // Writing to a String cannot fail.
    let _ = write!(text, "\n{marks}{heading}\n\n{}\n\n", about.join(" "));
    text.push_str("| key | type | default | meaning | example |\n|---|---|---|---|---|\n");
    for key in section.keys {
        let meaning: Vec<&str> = key.meaning.iter().map(|line| line.trim()).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | `{}` |",
            key.name(),
            key.kind.name(),
            fallback(key.fallback),
            meaning.join(" "),
            key.example
        );
    }
}

fn fallback(fallback: Fallback) -> String {
    match fallback {
        Fallback::Required => "**must be said**".to_owned(),
        Fallback::Value(value) => format!("`{value}`"),
        Fallback::Absent(words) => words.to_owned(),
    }
}
