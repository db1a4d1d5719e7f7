//! The file sink: one line an event, appended to a file (or written to stdout), and made durable before it is acknowledged.
//!
//! One thread owns the file. It takes whatever flights are queued, writes all their lines, syncs once, and only then fills the
//! slots: a group commit, so that many small flights cost one `fdatasync`.
//!
//! Invariants:
//! 1. `Delivered` only after an `fdatasync` that began after the line was written (stdout: after a flush).
//! 2. The file never keeps a torn line before a good one: what an error (a failed sync too) left behind is cut back to the synced
//!    length before anything is appended, and a torn tail is cut when the file is opened (`tail`).
//! 3. One relay a file, by `flock`; what was renamed or deleted under us is never written to again.
//!
//! A full file is renamed away, whole and synced, between two lines (`rotation`); what others rename away is left, too, and a new one begun. How it fails: a write error is
//! *unavailable*; a failed sync is *fatal* for as long as the process lives, because a later sync proves nothing about
//! pages that the kernel has dropped. Start reading at `writer`.

pub mod config;
mod rotation;
mod tail;
mod writer;

/// For fuzzing.
#[cfg(feature = "controls")]
pub use tail::good_length;

pub use rotation::{Rotation, rotated};

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::format::Format;
use super::{BoxFuture, Fault, Flight, Outcome, Port, Sink};
use writer::{Command, Writer};

/// How long `close` waits for the thread to let go of the file.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A resolved `[sinks.X]` of type `file` or `stdout`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `None` = stdout.
    pub path: Option<PathBuf>,
    /// `Envelope` by default; with any other each line is a payload as it is.
    pub format: Format,
    pub rotation: Rotation,
}

pub struct File {
    settings: Settings,
    source: String,
    thread: Option<Thread>,
}

struct Thread {
    commands: mpsc::Sender<Command>,
    ended: oneshot::Receiver<()>,
    closed: Arc<AtomicBool>,
}

impl File {
    pub fn new(settings: Settings, port: Port) -> Self {
        Self { settings, source: port.source, thread: None }
    }

    fn thread(&mut self) -> Result<&Thread, Fault> {
        if self.thread.is_none() {
            self.thread = Some(self.spawn()?);
        }
        Ok(self.thread.as_ref().expect("it was just put there"))
    }

    fn spawn(&self) -> Result<Thread, Fault> {
        let (commands, inbox) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let closed = Arc::new(AtomicBool::new(false));
        let writer = Writer::new(self.settings.clone(), self.source.clone(), closed.clone());
        std::thread::Builder::new()
            .name("file-sink".into())
            .spawn(move || {
                writer.run(&inbox);
                let _ = end.send(());
            })
            .map_err(|error| Fault::unavailable(format!("cannot start a thread to write the file: {error}")))?;
        Ok(Thread { commands, ended, closed })
    }
}

impl Sink for File {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let gone = || Fault::unavailable("the thread that writes the file has ended");
            let sent = self.thread()?.commands.send(Command::Check(reply));
            if sent.is_err() {
                self.thread = None;
                return Err(gone());
            }
            match tokio::time::timeout(timeout, answer).await {
                Ok(answer) => answer.unwrap_or_else(|_| Err(gone())),
                Err(_) => Err(Fault::unavailable(format!("the file did not answer within {timeout:?}"))),
            }
        })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let Some(thread) = &self.thread else {
            return flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("the file is not open")));
        };
        if let Err(mpsc::SendError(Command::Write(flight))) = thread.commands.send(Command::Write(flight)) {
            flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("the thread that writes the file has ended")));
        }
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(thread) = self.thread else { return };
            thread.closed.store(true, Ordering::Release);
            drop(thread.commands);
            // A write that hangs (a full pipe, a dead disk) must not hang the daemon: the lock then goes with the process.
            let _ = tokio::time::timeout(CLOSE_WAIT, thread.ended).await;
        })
    }
}
