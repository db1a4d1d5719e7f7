//! A file sink's lines, read back: of the files that it has rotated, in their order, and of the last.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::judge::Print;
use super::{Error, Extent, FarSide, Message};
use crate::event::Event;
use crate::sink::Fault;
use crate::sink::file::rotated;
use crate::sink::format::envelope;

pub(super) struct Files {
    /// What people renamed away, oldest first.
    older: Vec<PathBuf>,
    path: PathBuf,
    source: String,
    /// In the order in which they were written, as they were when they were looked at.
    pieces: Vec<Piece>,
    line: Vec<u8>,
}

/// A file, up to a length.
struct Piece {
    path: PathBuf,
    /// The one that is written to stays open: it may be renamed away meanwhile.
    open: Option<File>,
    bytes: u64,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Files {
    pub fn new(older: Vec<PathBuf>, path: PathBuf, source: String) -> Self {
        Self { older, path, source, pieces: Vec::new(), line: Vec::new() }
    }
}

fn unread(path: &Path, error: &io::Error) -> Fault {
    Fault::unavailable(format!("{}: {error}", path.display()))
}

/// What is not there has no lines.
fn if_there<T>(path: &Path, found: io::Result<T>) -> Result<Option<T>, Fault> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unread(path, &error)),
    }
}

impl FarSide for Files {
    fn name(&self) -> String {
        let paths = self.older.iter().chain([&self.path]);
        paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    fn body(&mut self, event: &Event<'_>) -> Print {
        self.line.clear();
        envelope::write(event, &self.source, &mut self.line);
        Print::of(&envelope::unmarked(&self.line))
    }

    fn place(&mut self, _event: &Event<'_>) -> String {
        String::new()
    }

    /// The last file is opened first: whatever is renamed from then on is met by its inode.
    fn mark_end(&mut self) -> Result<(), Error> {
        let open = if_there(&self.path, File::open(&self.path))?;
        let open = open.map(|file| file.metadata().map(|meta| (file, meta))).transpose();
        let open = open.map_err(|error| unread(&self.path, &error))?;
        let rotated = if_there(&self.path, rotated(&self.path))?.unwrap_or_default();
        let mut met = HashSet::new();
        self.pieces.clear();
        for path in self.older.iter().chain(&rotated) {
            let Some(meta) = if_there(path, std::fs::metadata(path))? else { continue };
            if met.insert((meta.dev(), meta.ino())) {
                self.pieces.push(Piece { path: path.clone(), open: None, bytes: meta.len() });
            }
        }
        if let Some((file, meta)) = open.filter(|(_, meta)| !met.contains(&(meta.dev(), meta.ino()))) {
            self.pieces.push(Piece { path: self.path.clone(), open: Some(file), bytes: meta.len() });
        }
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> Result<Extent, Fault> {
        for Piece { path, open, bytes } in self.pieces.drain(..) {
            let unread = |error: io::Error| unread(&path, &error);
            let file = open.map_or_else(|| File::open(&path), Ok).map_err(unread)?;
            let mut reader = BufReader::with_capacity(1 << 20, file.take(bytes));
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
