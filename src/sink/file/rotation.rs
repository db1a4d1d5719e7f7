//! Full files: when one is renamed away, what it is called then, and in which order they were written.
//!
//! `events.ndjson` becomes `events.20261121T024300123456Z.ndjson`, after the instant of the rotation. Names only grow: a clock that is set back
//! gives one that follows the newest there is, so that their order is the order of their lines.
//!
//! Nothing is ever deleted here.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;

/// When a file is full. Nothing said: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// It would grow beyond this.
    pub bytes: Option<u64>,
    /// It was last written to in an earlier one of these, counted from 1970 UTC.
    pub every: Option<Duration>,
}

impl Rotation {
    pub(super) fn is_too_long(self, bytes: u64) -> bool {
        self.bytes.is_some_and(|most| bytes > most)
    }

    pub(super) fn is_over(self, written_micros: i64, now_micros: i64) -> bool {
        let period = |micros: i64, every: Duration| micros.div_euclid(every.as_micros() as i64);
        self.every.is_some_and(|every| period(written_micros, every) != period(now_micros, every))
    }
}

/// `20261121T024300123456Z`.
fn stamp(micros: i64) -> String {
    clock::iso(micros).replace(['-', ':', '.'], "")
}

fn micros_of(stamp: &str) -> Option<i64> {
    let is_one = stamp.len() == 22
        && stamp.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            21 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    let part = |from: usize, to: usize| &stamp[from..to];
    let iso = || {
        let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
        let (hour, minute, second) = (part(9, 11), part(11, 13), part(13, 15));
        format!("{year}-{month}-{day}T{hour}:{minute}:{second}.{}", part(15, 22))
    };
    is_one.then(iso).and_then(|iso| clock::parse_micros(&iso))
}

/// What stands before and behind the stamp.
fn around(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = text(path.file_stem()).unwrap_or_default();
    (format!("{stem}."), text(path.extension()).map_or_else(String::new, |extension| format!(".{extension}")))
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn stamps(path: &Path) -> io::Result<Vec<(i64, PathBuf)>> {
    let (before, behind) = around(path);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder_of(path))? {
        let name = entry?.file_name();
        let stamp = name.to_str().and_then(|name| name.strip_prefix(&*before)?.strip_suffix(&*behind));
        if let Some(micros) = stamp.and_then(micros_of) {
            found.push((micros, path.with_file_name(name)));
        }
    }
    found.sort();
    Ok(found)
}

/// The full files of a sink that writes to `path`, in the order of their lines.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(stamps(path)?.into_iter().map(|(_, path)| path).collect())
}

/// A name that none has, and that sorts behind all of them.
pub(super) fn next_name(path: &Path, now_micros: i64) -> io::Result<PathBuf> {
    let newest = stamps(path)?.last().map(|(micros, _)| *micros);
    let micros = newest.map_or(now_micros, |newest| now_micros.max(newest + 1));
    let (before, behind) = around(path);
    Ok(path.with_file_name(format!("{before}{}{behind}", stamp(micros))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_they_were_written_whatever_the_clock_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        let mut made = Vec::new();
        for now in [1_795_000_000_123_456, 1_795_000_000_123_456, 0, 1_795_000_000_000_000, 1_800_000_000_000_001] {
            made.push(next_name(&path, now).unwrap());
            std::fs::write(made.last().unwrap(), "").unwrap();
        }
        for other in [
            "events.ndjson",
            "events.x.ndjson",
            "events.20261121T024300123456Z.txt",
            "other.20261121T024300123456Z.ndjson",
        ] {
            std::fs::write(folder.path().join(other), "").unwrap();
        }
        assert_eq!(rotated(&path).unwrap(), made);
        assert!(made.is_sorted());
        assert_eq!(made[0].file_name().unwrap(), "events.20261118T110640123456Z.ndjson");
        let bare = folder.path().join("lines");
        assert_eq!(next_name(&bare, 0).unwrap().file_name().unwrap(), "lines.19700101T000000000000Z");
    }

    #[test]
    fn periods_begin_with_the_hour_and_sizes_are_not_exceeded() {
        let hour = Duration::from_secs(3600);
        let rotation = Rotation { bytes: Some(10), every: Some(hour) };
        let micros = |seconds: i64| seconds * 1_000_000;
        assert!(!rotation.is_over(micros(3600), micros(7199)));
        assert!(rotation.is_over(micros(7199), micros(7200)));
        assert!(rotation.is_over(micros(7200), micros(7199)));
        assert!(!rotation.is_too_long(10) && rotation.is_too_long(11));
        assert!(!Rotation::default().is_over(0, i64::MAX) && !Rotation::default().is_too_long(u64::MAX));
    }
}
