//! The plan of the house is kept: rooms use only rooms of a lower rank, no file grows into a monster, and what is generated is true.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use outboxd::controls::Protection;
use outboxd::telemetry::metric;

/// docs/ARCHITECTURE.md explains them.
const RANKS: [(&str, u8); 26] = [
    ("clock", 0),
    ("controls", 0),
    ("event", 0),
    ("remark", 0),
    ("retry", 0),
    ("secret", 0),
    ("shutdown", 0),
    ("sqlite", 2),
    ("setting", 1),
    ("telemetry", 1),
    ("sink", 3),
    ("source", 3),
    ("projection", 4),
    ("state", 4),
    ("store", 4),
    ("consumer", 5),
    ("maintenance", 5),
    ("admin", 6),
    ("audit", 6),
    ("config", 6),
    ("daemon", 7),
    ("demo", 7),
    ("doctor", 7),
    ("cli", 8),
    ("lib", 9),
    ("main", 10),
];
const LINES_MAX: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    assert!(found.len() > 40, "the sources were found");
    found
}

fn room_of(path: &Path) -> String {
    let inner = path.strip_prefix(root().join("src")).unwrap();
    inner.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Names after `crate::` in a line of code, also in braces.
fn rooms_used(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            rooms.push(name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
        }
    }
    rooms
}

/// What breaks the ranks in a text that stands in a room.
fn breaches(room: &str, text: &str) -> Vec<String> {
    let ranks: BTreeMap<&str, u8> = RANKS.into_iter().collect();
    let own = *ranks
        .get(room)
        .unwrap_or_else(|| panic!("the room {room} has no rank: give it one, and say why in docs/ARCHITECTURE.md"));
    text.lines()
        .flat_map(rooms_used)
        .filter(|used| used != room)
        .filter(|used| ranks.get(used.as_str()).is_none_or(|rank| *rank >= own))
        .collect()
}

#[test]
fn rooms_use_only_rooms_of_a_lower_rank() {
    let mut wrong = Vec::new();
    for path in all_sources() {
        let room = room_of(&path);
        if room == "lib" || room == "main" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        wrong.extend(breaches(&room, &text).into_iter().map(|used| format!("{} uses {used}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_breach_of_the_ranks_is_seen() {
    assert_eq!(breaches("sqlite", "use crate::consumer::Settings;"), ["consumer"]);
    assert_eq!(breaches("sink", "use crate::{clock, source};"), ["source"]);
    assert!(breaches("consumer", "use crate::sink::{self, Port}; // crate::cli").is_empty());
}

/// Who judges shares no code with what is judged: of this crate the referee uses the pure judge alone, and that uses nothing of it.
#[test]
fn the_referee_shares_no_code_with_the_engine() {
    let mut referee = Vec::new();
    sources(&root().join("tests/referee"), &mut referee);
    assert!(referee.len() >= 3, "the referee was found");
    for path in referee {
        let text = fs::read_to_string(&path).unwrap();
        let foreign: Vec<&str> =
            text.split("outboxd::").skip(1).filter(|rest| !rest.starts_with("audit::judge")).collect();
        assert!(foreign.is_empty(), "{} uses the engine", path.display());
    }
    let judge = fs::read_to_string(root().join("src/audit/judge.rs")).unwrap();
    let code = judge.split("#[cfg(test)]").next().unwrap();
    assert!(code.len() > 1000 && !code.contains("crate::") && !code.contains("super::"), "the judge is pure");
}

#[test]
fn no_file_is_a_monster() {
    let long: Vec<String> = all_sources()
        .into_iter()
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_document_of_metrics_is_what_the_program_says() {
    let written = fs::read_to_string(root().join("docs/METRICS.md")).unwrap_or_default();
    assert!(
        written == metric::reference(),
        "docs/METRICS.md is out of date: run `outboxd config reference --metrics > docs/METRICS.md`"
    );
}

/// The tests that a document names in backticks, all of which must exist.
fn tests_named_in(document: &str) -> Vec<String> {
    let mut tests = Vec::new();
    sources(&root().join("tests/it"), &mut tests);
    sources(&root().join("tests/referee"), &mut tests);
    tests.extend(all_sources());
    let code: String = tests.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = document.split('`').skip(1).step_by(2).filter(|name| {
        name.contains('_') && !name.starts_with("outboxd") && !name.contains(['.', ' ', '/', '=', '<', '-'])
    });
    let named: Vec<String> = named.map(str::to_owned).collect();
    // In a table of tests, a row begins with its name.
    let is_there = |name: &str| code.contains(&format!("fn {name}")) || code.contains(&format!("\n    {name}: |"));
    let missing: Vec<&String> = named.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "tests are named that are not there: {missing:?}");
    named
}

/// Every test that docs/GUARANTEES.md names is there, and every promise names one and its control.
#[test]
fn every_promise_is_owned_by_a_test() {
    let document = fs::read_to_string(root().join("docs/GUARANTEES.md")).unwrap();
    assert!(tests_named_in(&document).len() >= 12, "the document names its tests");
    for promise in ["G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8"] {
        assert!(document.contains(promise), "docs/GUARANTEES.md says what is promised of {promise}");
    }
}

/// Every protection is turned off by some test, which then has to fail, and the document says which that is.
#[test]
fn every_protection_has_its_control() {
    let mut files = Vec::new();
    sources(&root().join("tests/it"), &mut files);
    let code: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let document = fs::read_to_string(root().join("docs/GUARANTEES.md")).unwrap();
    for protection in Protection::ALL {
        let is_turned_off = code.contains(&format!("Protection::{protection:?}"))
            || code.contains(&format!("without(\"{protection:?}\")"));
        assert!(is_turned_off, "no test turns {protection:?} off");
        let row = document.lines().find(|line| line.starts_with(&format!("| {protection:?} |")));
        let row = row.unwrap_or_else(|| panic!("docs/GUARANTEES.md does not name the control of {protection:?}"));
        assert!(row.contains("control_") || row.contains("without"), "{row}");
    }
}

/// Every row of docs/FAILURES.md comes from a test that ran.
#[test]
fn every_failure_is_owned_by_a_test() {
    let document = fs::read_to_string(root().join("docs/FAILURES.md")).unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what happens |"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_end_matches('|').split('|').skip(1).collect();
        assert_eq!(cells.len(), 5, "five cells: {row}");
        assert!(!tests_named_in(cells[4]).is_empty(), "no test is named: {row}");
        count += 1;
    }
    assert!(count > 20, "the document has its rows");
}

/// What a heading is called in a link.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let heading = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    heading.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Links between documents lead somewhere, and to a heading that is there.
#[test]
fn links_lead_somewhere() {
    let mut documents = ["README.md", "CHANGELOG.md", "RELIABILITY.md"].map(|name| root().join(name)).to_vec();
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut broken = Vec::new();
    for document in documents.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(document).unwrap();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (target, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if target.is_empty() { document.clone() } else { document.parent().unwrap().join(target) };
            let is_there = |target: &Path| {
                let text = fs::read_to_string(target).unwrap();
                text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !target.exists() || !heading.is_empty() && !is_there(&target) {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
