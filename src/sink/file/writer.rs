//! The thread behind the file sink: groups, appends, syncs, fills.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

use super::rotation::{self, Rotation};
use super::{Settings, tail};
use crate::clock;
use crate::controls::{self, Seam};
use crate::event::{Event, Reason, Rejection};
use crate::sink::format::{Format, envelope};
use crate::sink::{Fault, Flight, Outcome, Pick};

/// Lines are handed to the kernel in pieces of about this size.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) enum Command {
    Write(Arc<Flight>),
    Check(oneshot::Sender<Result<(), Fault>>),
}

pub(super) struct Writer {
    settings: Settings,
    source: String,
    /// Set by `close`: from then on nobody is told anything.
    closed: Arc<AtomicBool>,
    open: Option<Target>,
    /// A sync failed: nothing that this process writes to the file can be trusted any more.
    spoilt: Option<Fault>,
    buffer: Vec<u8>,
}

enum Target {
    Stdout,
    File(Open),
}

struct Open {
    file: File,
    /// Handed to the kernel.
    bytes: u64,
    synced_bytes: u64,
    /// When it was last written to.
    written_micros: i64,
}

impl Writer {
    pub(super) fn new(settings: Settings, source: String, closed: Arc<AtomicBool>) -> Self {
        Self { settings, source, closed, open: None, spoilt: None, buffer: Vec::new() }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        let mut next = inbox.recv().ok();
        while let Some(command) = next.take() {
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            match command {
                Command::Check(reply) => {
                    let _ = reply.send(self.check());
                    next = inbox.recv().ok();
                }
                Command::Write(flight) => {
                    let mut group = vec![flight];
                    next = loop {
                        match inbox.try_recv() {
                            Ok(Command::Write(flight)) => group.push(flight),
                            Ok(check) => break Some(check),
                            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break None,
                        }
                    };
                    self.commit(&group);
                    next = next.or_else(|| inbox.recv().ok());
                }
            }
        }
    }

    fn check(&mut self) -> Result<(), Fault> {
        if let Some(fault) = &self.spoilt {
            return Err(fault.clone());
        }
        if let (Some(target), Some(path)) = (&self.open, &self.settings.path) {
            if target.is_as_left(path).is_ok() {
                return Ok(());
            }
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(match &self.settings.path {
                None => Target::Stdout,
                Some(path) => open(path, self.settings.format)?,
            });
        }
        Ok(())
    }

    /// Writes the group's lines, syncs once, and fills every slot.
    fn commit(&mut self, group: &[Arc<Flight>]) {
        let result = match (&self.spoilt, self.open.take()) {
            (Some(fault), _) => Err(fault.clone()),
            (None, None) => Err(Fault::unavailable("the file is not open")),
            (None, Some(mut target)) => {
                let result = self.append(&mut target, group);
                if result.is_ok() {
                    self.open = Some(target);
                }
                result
            }
        };
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let outcome = result.map_or_else(Outcome::Unavailable, |()| Outcome::Delivered);
        group.iter().for_each(|flight| flight.fill_rest(&outcome));
    }

    fn append(&mut self, target: &mut Target, group: &[Arc<Flight>]) -> Result<(), Fault> {
        if let Some(path) = &self.settings.path {
            target.is_as_left(path).map_err(Fault::unavailable)?;
        }
        let result = self.write_and_sync(target, group);
        if result.is_err() {
            // What may never reach the disk must not stand before what will.
            target.cut_back();
        }
        result
    }

    fn write_and_sync(&mut self, target: &mut Target, group: &[Arc<Flight>]) -> Result<(), Fault> {
        if let Target::File(open) = &*target
            && open.bytes > 0
            && self.settings.rotation.is_over(open.written_micros, clock::now_micros())
        {
            self.rotate(target)?;
        }
        self.buffer.clear();
        for flight in group {
            for slot in 0..flight.len() {
                let start = self.buffer.len();
                if let Err(rejection) = self.line(&flight.event(slot), flight.picks[slot]) {
                    flight.fill(slot, Outcome::Rejected(rejection));
                }
                if target.is_full(self.settings.rotation, start, self.buffer.len()) {
                    let line = self.buffer.split_off(start);
                    self.put(target)?;
                    self.sync(target)?;
                    self.rotate(target)?;
                    self.buffer = line;
                } else if self.buffer.len() >= BUFFER_BYTES {
                    self.put(target)?;
                }
            }
        }
        self.put(target)?;
        controls::reach(Seam::Written);
        self.sync(target)?;
        controls::reach(Seam::Synced);
        Ok(())
    }

    /// Hands the buffer to the kernel.
    fn put(&mut self, target: &mut Target) -> Result<(), Fault> {
        let written = target.write(&self.buffer);
        self.buffer.clear();
        written.map_err(|error| match target {
            Target::Stdout => Fault::fatal(format!("cannot write to stdout: {error}")),
            Target::File(_) => Fault::unavailable(format!("cannot write to {}: {error}", self.name())),
        })
    }

    fn sync(&mut self, target: &mut Target) -> Result<(), Fault> {
        target.sync().map_err(|error| {
            let fault = Fault::fatal(format!(
                "{} could not be made durable: {error}; check the disk, then restart outboxd",
                self.name()
            ));
            self.spoilt = Some(fault.clone());
            fault
        })
    }

    /// Renames the file away, which is whole and synced, and begins a new one. Nothing is written to that before both names are durable.
    fn rotate(&self, target: &mut Target) -> Result<(), Fault> {
        let path = self.settings.path.as_ref().expect("only a file is rotated");
        let cannot = |error: io::Error| Fault::unavailable(format!("cannot rename {}: {error}", path.display()));
        let name = rotation::next_name(path, clock::now_micros()).map_err(cannot)?;
        controls::reach(Seam::Rotate);
        std::fs::rename(path, &name).map_err(cannot)?;
        controls::reach(Seam::Rotate);
        *target = open(path, self.settings.format)?;
        controls::reach(Seam::Rotate);
        tracing::info!(event = "file_rotated", path = %path.display(), name = %name.display());
        Ok(())
    }

    fn line(&mut self, event: &Event<'_>, pick: Pick) -> Result<(), Rejection> {
        if self.settings.format == Format::Envelope {
            envelope::write_marked(event, &self.source, pick, &mut self.buffer);
        } else {
            let payload = event.payload.unwrap_or_default();
            let start = self.buffer.len();
            self.buffer.extend_from_slice(payload);
            if payload.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
                if serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_err() {
                    self.buffer.truncate(start);
                    return Err(Rejection::new(
                        Reason::Refused,
                        "a payload with line breaks that is not JSON cannot be one line; use format = \"envelope\"",
                    ));
                }
                self.buffer[start..].iter_mut().filter(|b| matches!(b, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
            }
        }
        self.buffer.push(b'\n');
        Ok(())
    }

    fn name(&self) -> String {
        self.settings.path.as_ref().map_or_else(|| "stdout".to_owned(), |path| path.display().to_string())
    }
}

impl Target {
    /// Whether the path still leads to our file, and nobody else wrote to it.
    fn is_as_left(&self, path: &Path) -> Result<(), String> {
        let Target::File(Open { file, synced_bytes, .. }) = self else { return Ok(()) };
        let cannot = |error: io::Error| format!("{}: {error}", path.display());
        let ours = file.metadata().map_err(cannot)?;
        let there = std::fs::metadata(path).map_err(cannot)?;
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(format!("{} was replaced by another file; it is opened anew", path.display()));
        }
        if ours.len() != *synced_bytes {
            return Err(format!(
                "{} holds {} bytes where {synced_bytes} were written; it is opened anew",
                path.display(),
                ours.len()
            ));
        }
        Ok(())
    }

    /// Whether the line at the end of a buffer, from `start` on, belongs into a new file: never the first of one.
    fn is_full(&self, rotation: Rotation, start: usize, end: usize) -> bool {
        let Target::File(open) = self else { return false };
        open.bytes + start as u64 > 0 && end > start && rotation.is_too_long(open.bytes + end as u64)
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().write_all(lines),
            Target::File(open) => {
                open.file.write_all(lines)?;
                open.bytes += lines.len() as u64;
                Ok(())
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().flush(),
            Target::File(open) => {
                open.file.sync_data()?;
                open.synced_bytes = open.file.metadata()?.len();
                open.bytes = open.synced_bytes;
                open.written_micros = clock::now_micros();
                Ok(())
            }
        }
    }

    /// Takes a half-written group away again. What cannot be cut now is cut, as a torn tail, when the file is opened again.
    fn cut_back(&mut self) {
        if let Target::File(open) = self
            && let Err(error) = open.file.set_len(open.synced_bytes)
        {
            tracing::warn!(%error, "a half-written group of lines could not be taken back");
        }
    }
}

fn open(path: &Path, format: Format) -> Result<Target, Fault> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Fault::fatal(format!("{} may not be written: {error}", path.display())),
        io::ErrorKind::IsADirectory => Fault::fatal(format!("{} is a directory", path.display())),
        io::ErrorKind::NotFound => {
            Fault::fatal(format!("the directory of {} is not there; create it: {error}", path.display()))
        }
        _ => Fault::unavailable(format!("cannot open {}: {error}", path.display())),
    };
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if !found.is_file() {
        return Err(Fault::fatal(format!("{} is not a regular file; use type = \"stdout\"", path.display())));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => {
            Fault::fatal(format!("{} is locked: another relay writes to it, and a file takes one", path.display()))
        }
        errno => cannot(errno.into()),
    })?;
    let bytes = tail::settle(&file, path, format)?;
    file.sync_all().map_err(cannot)?;
    // Its name, and that of the one before it, which may have been renamed away just before a crash.
    File::open(rotation::folder_of(path)).and_then(|folder| folder.sync_all()).map_err(cannot)?;
    let written_micros = clock::micros_of(found.modified().map_err(cannot)?);
    Ok(Target::File(Open { file, bytes, synced_bytes: bytes, written_micros }))
}
