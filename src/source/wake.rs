//! Wakes a reader: a request, a change in the file's folder, or the poll's end, whichever comes first.
//!
//! A change notice is only a hint (it can be lost, or come from elsewhere); the adaptive poll is the truth behind it.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

/// The reader's side.
#[derive(Debug)]
pub struct Wake {
    bell: Arc<OwnedFd>,
    notices: Option<OwnedFd>,
    /// The names whose changes count: the database and its `-wal`.
    names: [Vec<u8>; 2],
}

/// The callers' side.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn ring(&self) {
        // It can fail only when it has been rung 2^64 times unheard.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

impl Wake {
    pub fn new() -> std::io::Result<(Self, Bell)> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let wake = Self { bell: bell.clone(), notices: None, names: Default::default() };
        Ok((wake, Bell(bell)))
    }

    /// Begins to watch the database's folder; where that is not possible, the poll alone does the work.
    pub fn watch(&mut self, database: &Path) {
        let name = database.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        let wal = [&name[..], b"-wal"].concat();
        self.names = [name, wal];
        let folder = database.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let watch = || -> rustix::io::Result<OwnedFd> {
            let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
            inotify::add_watch(&fd, folder, flags)?;
            Ok(fd)
        };
        self.notices = watch().ok();
    }

    /// Waits; says whether it was woken before the time was up.
    pub fn wait(&self, most: Duration) -> bool {
        let mut fds = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        if let Some(notices) = &self.notices {
            fds.push(PollFd::new(notices, PollFlags::IN));
        }
        let deadline = std::time::Instant::now() + most;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => {
                    std::thread::sleep(left);
                    return false;
                }
            }
            let mut count = [0_u8; 8];
            let rung = rustix::io::read(&*self.bell, &mut count).is_ok();
            if self.noticed() || rung {
                return true;
            }
        }
    }

    /// Drains the notices; true when one of them names our file.
    fn noticed(&self) -> bool {
        let Some(notices) = &self.notices else { return false };
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(notices, &mut buffer);
        let mut ours = false;
        while let Ok(event) = reader.next() {
            let overflow = event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            ours |= overflow || event.file_name().is_some_and(|name| self.names.iter().any(|n| n == name.to_bytes()));
        }
        ours
    }
}
