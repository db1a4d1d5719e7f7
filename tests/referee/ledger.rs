//! The application's own ledger: a file beside no database, with a line for each event that it was told is committed.

use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::Print;

/// A committed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    pub key: String,
    /// Counts the key's events from 1.
    pub number: u32,
    /// What the payload's bytes are known by.
    pub body: Print,
}

/// Written line by line behind each COMMIT that returned: id, key, number and the first half of the payload's SHA-256, with
/// tabs between them.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    entries: Vec<Entry>,
}

impl Ledger {
    pub fn create(path: &Path) -> Self {
        Self { file: File::create(path).unwrap(), entries: Vec::new() }
    }

    /// The ledger of an application whose database is this.
    pub fn path_of(database: &Path) -> PathBuf {
        database.with_extension("ledger")
    }

    /// What one transaction committed: entries, each with its payload.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let mut lines = String::new();
        for Entry { id, key, number, body } in &entries {
            assert!(![id, key].iter().any(|text| text.contains(['\t', '\n'])), "a ledger's line is one line");
            lines.push_str(&format!("{id}\t{key}\t{number}\t{body}\n"));
        }
        self.file.write_all(lines.as_bytes()).unwrap();
        self.entries.extend(entries);
    }

    /// Reads the file; whoever wrote it may be gone.
    pub fn read(path: &Path) -> Vec<Entry> {
        let text = std::fs::read_to_string(path).unwrap();
        let entry = |line: &str| {
            let [id, key, number, body] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
            let (number, body) = (number.parse().unwrap(), Print::parse(body).unwrap());
            Entry { id: id.into(), key: key.into(), number, body }
        };
        text.lines().map(entry).collect()
    }
}

impl Deref for Ledger {
    type Target = [Entry];

    fn deref(&self) -> &[Entry] {
        &self.entries
    }
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = Ledger::path_of(&folder.path().join("app.db"));
    let entry = |id: &str, number| Entry { id: id.into(), key: "k".into(), number, body: Print::of(id.as_bytes()) };
    let mut ledger = Ledger::create(&path);
    ledger.append(vec![entry("a", 1), entry("b", 2)]);
    ledger.append(vec![entry("c", 3)]);
    assert_eq!(Ledger::read(&path), [entry("a", 1), entry("b", 2), entry("c", 3)]);
    assert_eq!(ledger.len(), 3);
}
