//! `[sinks.X]` with `type = "file"` or `"stdout"`: their keys, and what follows from them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Rotation, Settings};
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{FilePath, Size, Span};
use crate::setting::{Bytes, Checker, Nanos};
use crate::sink::format::Format;
use crate::sink::{self, Port, Sink, Told};

const ROTATE_BYTES_MIN: Size = Size(1 << 10);
const ROTATE_BYTES_MAX: Size = Size(1 << 40);
const ROTATE_EVERY_MIN: Span = Span(Duration::from_secs(1));
const ROTATE_EVERY_MAX: Span = Span(Duration::from_hours(366 * 24));

section! {
    /// Events go to a file, one JSON object a line. One relay a file. Who reads along takes a line only with its end (what has none yet may
    /// be taken back), reads a file that was renamed to its end, and goes on with the next in the order of names, last of all `path`.
    File, "[sinks.<name>] with type = \"file\"" {
        /// `"file"`.
        r#type: String, Required, r#""file""#;
        /// The file; it is made when it is not there. Its folder must be there.
        path: FilePath, Required, r#""events.ndjson""#;
        /// What a line holds: `"envelope"`.
        format: String, Value(r#""envelope""#), r#""envelope""#;
        /// Before it would grow beyond this, the file is renamed to, say, `events.20261121T024300123456Z.ndjson` (the time, UTC), and a new one
        /// begun. Only a single line that is larger exceeds it. Names are in the order of the lines; outboxd deletes none of these files.
        rotate_bytes: Size, Absent("never"), r#""256MiB""#;
        /// The same before the first line of each new hour, say: periods are counted from 1970 UTC, so that `"1d"` ends at midnight.
        rotate_every: Span, Absent("never"), r#""1h""#;
    }
}

section! {
    /// Events go to standard output, one JSON object a line.
    Stdout, "[sinks.<name>] with type = \"stdout\"" {
        /// `"stdout"`.
        r#type: String, Required, r#""stdout""#;
        /// What a line holds: `"envelope"`.
        format: String, Value(r#""envelope""#), r#""envelope""#;
    }
}

impl Told for Settings {
    fn open(&self, port: Port) -> Box<dyn Sink> {
        Box::new(super::File::new(self.clone(), port))
    }

    fn format(&self) -> Format {
        self.format
    }

    fn destination_file(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl sink::Keys for File {
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<sink::Settings> {
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let path = checker.require(&key("path"), self.path.as_ref());
        let format = line_format(&key("format"), self.format.as_ref(), checker);
        let rotation = rotation(self, name, checker);
        let path = line_file(&key("path"), &path?, checker);
        Some(sink::Settings::File(Settings { path: Some(path), format, rotation }))
    }
}

impl sink::Keys for Stdout {
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<sink::Settings> {
        let format = line_format(&KeyPath::of(["sinks", name, "format"]), self.format.as_ref(), checker);
        Some(sink::Settings::File(Settings { path: None, format, ..Settings::default() }))
    }
}

fn rotation(raw: &File, name: &str, checker: &mut Checker<'_>) -> Rotation {
    let key = |part: &str| KeyPath::of(["sinks", name, part]);
    if let Some(bytes) = raw.rotate_bytes {
        checker.within(&key("rotate_bytes"), Bytes(bytes), Bytes(ROTATE_BYTES_MIN), Bytes(ROTATE_BYTES_MAX));
    }
    if let Some(every) = raw.rotate_every {
        checker.within(&key("rotate_every"), Nanos(every), Nanos(ROTATE_EVERY_MIN), Nanos(ROTATE_EVERY_MAX));
    }
    Rotation { bytes: raw.rotate_bytes.map(|size| size.0), every: raw.rotate_every.map(|span| span.0) }
}

fn line_file(key: &KeyPath, path: &FilePath, checker: &mut Checker<'_>) -> PathBuf {
    if path.0.trim().is_empty() {
        checker.refuse(key.clone(), "the path is empty", "name the file that is to be written");
    }
    checker.path(path)
}

/// A payload may hold a line break, so only the envelope keeps one event on one line.
fn line_format(key: &KeyPath, word: Option<&String>, checker: &mut Checker<'_>) -> Format {
    match word.map(String::as_str) {
        None | Some("envelope") => Format::Envelope,
        Some("plain" | "eventsource-py") => {
            let reason = "a payload as it is may hold a line break, and its line would then be two";
            checker.refuse(key.clone(), reason, "leave `format` out, or write format = \"envelope\"");
            Format::Envelope
        }
        Some(word) => checker.choose(key, word, &[("envelope", Format::Envelope)]),
    }
}
