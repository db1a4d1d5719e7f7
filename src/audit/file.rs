//! A file sink's lines, read back.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use serde::Deserialize;

use super::judge::Print;
use super::{Error, Extent, FarSide, Message};
use crate::event::Event;
use crate::sink::Fault;
use crate::sink::format::envelope;

pub(super) struct Files {
    /// In the order in which they were written.
    paths: Vec<PathBuf>,
    source: String,
    /// How long each was when it was looked at.
    bytes: Vec<u64>,
    line: Vec<u8>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Files {
    pub fn new(paths: Vec<PathBuf>, source: String) -> Self {
        Self { paths, source, bytes: Vec::new(), line: Vec::new() }
    }
}

impl FarSide for Files {
    fn name(&self) -> String {
        self.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    fn body(&mut self, event: &Event<'_>) -> Print {
        self.line.clear();
        envelope::write(event, &self.source, &mut self.line);
        Print::of(&envelope::unmarked(&self.line))
    }

    fn place(&mut self, _event: &Event<'_>) -> String {
        String::new()
    }

    fn mark_end(&mut self) -> Result<(), Error> {
        let length = |path: &PathBuf| match std::fs::metadata(path) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(Fault::unavailable(format!("{}: {error}", path.display()))),
        };
        self.bytes = self.paths.iter().map(length).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> Result<Extent, Fault> {
        for (path, bytes) in self.paths.iter().zip(&self.bytes).filter(|(_, bytes)| **bytes > 0) {
            let unread = |error: io::Error| Fault::unavailable(format!("{}: {error}", path.display()));
            let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(unread)?.take(*bytes));
            loop {
                self.line.clear();
                reader.read_until(b'\n', &mut self.line).map_err(unread)?;
                // A line without its end is torn, or being written.
                if self.line.pop() != Some(b'\n') {
                    break;
                }
                let line: Option<Line<'_>> = serde_json::from_slice(&self.line).ok();
                let body = Print::of(&envelope::unmarked(&self.line));
                each(Message { id: line.as_ref().map(|line| &*line.id), lane: 0, body });
            }
        }
        Ok(Extent::default())
    }
}
