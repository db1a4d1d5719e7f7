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

use super::{Settings, tail};
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
    File { file: File, synced_bytes: u64 },
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
        let written = self.write_lines(target, group);
        if let Err(error) = written {
            target.cut_back();
            return Err(match target {
                Target::Stdout => Fault::fatal(format!("cannot write to stdout: {error}")),
                Target::File { .. } => Fault::unavailable(format!("cannot write to {}: {error}", self.name())),
            });
        }
        controls::reach(Seam::Written);
        if let Err(error) = target.sync() {
            // What may never reach the disk must not stand before what will.
            target.cut_back();
            let fault = Fault::fatal(format!(
                "{} could not be made durable: {error}; check the disk, then restart outboxd",
                self.name()
            ));
            self.spoilt = Some(fault.clone());
            return Err(fault);
        }
        controls::reach(Seam::Synced);
        Ok(())
    }

    fn write_lines(&mut self, target: &mut Target, group: &[Arc<Flight>]) -> io::Result<()> {
        self.buffer.clear();
        for flight in group {
            for slot in 0..flight.len() {
                if let Err(rejection) = self.line(&flight.event(slot), flight.picks[slot]) {
                    flight.fill(slot, Outcome::Rejected(rejection));
                }
                if self.buffer.len() >= BUFFER_BYTES {
                    target.write(&self.buffer)?;
                    self.buffer.clear();
                }
            }
        }
        target.write(&self.buffer)
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
        let Target::File { file, synced_bytes } = self else { return Ok(()) };
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

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().write_all(lines),
            Target::File { file, .. } => file.write_all(lines),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout => io::stdout().lock().flush(),
            Target::File { file, synced_bytes } => {
                file.sync_data()?;
                *synced_bytes = file.metadata()?.len();
                Ok(())
            }
        }
    }

    /// Takes a half-written group away again. What cannot be cut now is cut, as a torn tail, when the file is opened again.
    fn cut_back(&mut self) {
        if let Target::File { file, synced_bytes } = self
            && let Err(error) = file.set_len(*synced_bytes)
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
    let is_new = !path.exists();
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(Fault::fatal(format!("{} is not a regular file; use type = \"stdout\"", path.display())));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => {
            Fault::fatal(format!("{} is locked: another relay writes to it, and a file takes one", path.display()))
        }
        errno => cannot(errno.into()),
    })?;
    let synced_bytes = tail::settle(&file, path, format)?;
    file.sync_all().map_err(cannot)?;
    if is_new && let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;
    }
    Ok(Target::File { file, synced_bytes })
}
