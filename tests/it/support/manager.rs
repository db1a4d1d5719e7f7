//! The service manager, as the daemon sees it: a socket on which it is told.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

/// What it hears, in order.
pub struct Manager {
    socket: UnixDatagram,
    pub heard: Vec<(Instant, String)>,
}

impl Manager {
    pub fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket, heard: Vec::new() }
    }

    pub fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.heard.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
        }
    }

    pub fn count(&self, word: &str) -> usize {
        self.heard.iter().filter(|(_, line)| line.starts_with(word)).count()
    }
}
