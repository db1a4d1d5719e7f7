//! A way to Kafka on which the cluster says, for as long as it is told to, that it has no brokers: so does a single node for an instant
//! while it shuts down. All else passes as it is.

use std::collections::HashSet;
use std::io::{Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const METADATA: u16 = 3;

pub struct Forgetful {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    upstream: AtomicU16,
    forgets: AtomicBool,
    forgotten: AtomicU64,
}

impl Forgetful {
    /// Listens, until the process ends.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let listening = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = listening.clone();
                std::thread::spawn(move || shared.carry(client));
            }
        });
        Self { port, shared }
    }

    pub fn lead_to(&self, port: u16) {
        self.shared.upstream.store(port, Ordering::Release);
    }

    pub fn forget(&self, forgets: bool) {
        self.shared.forgets.store(forgets, Ordering::Release);
    }

    /// How many answers named no brokers.
    pub fn forgotten(&self) -> u64 {
        self.shared.forgotten.load(Ordering::Acquire)
    }
}

impl Shared {
    fn carry(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.upstream.load(Ordering::Acquire))) else { return };
        let asked: Arc<Mutex<HashSet<[u8; 4]>>> = Arc::default();
        let (from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let asking = asked.clone();
        std::thread::spawn(move || {
            let _ = each_frame(from, &mut to, |frame| {
                if u16::from_be_bytes([frame[0], frame[1]]) == METADATA {
                    asking.lock().unwrap().insert(frame[4..8].try_into().unwrap());
                }
                frame
            });
        });
        let mut to = client;
        let _ = each_frame(server, &mut to, |frame| {
            let is_metadata = asked.lock().unwrap().remove(&frame[..4]);
            if !is_metadata || !self.forgets.load(Ordering::Acquire) {
                return frame;
            }
            self.forgotten.fetch_add(1, Ordering::AcqRel);
            without_brokers(&frame)
        });
    }
}

/// Carries frames (a length of four bytes, and so many bytes) to the end of either side, and ends the other.
fn each_frame(mut from: TcpStream, to: &mut TcpStream, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Result<()> {
    let mut carry = || -> Result<()> {
        loop {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            from.read_exact(&mut frame)?;
            let frame = change(frame);
            to.write_all(&(frame.len() as u32).to_be_bytes())?;
            to.write_all(&frame)?;
        }
    };
    let end = carry();
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
    end
}

/// An answer to Metadata, version 9 or later, as a cluster gives it that has no brokers: correlation id, tags, throttle time, brokers (id, host, port, rack, tags).
fn without_brokers(frame: &[u8]) -> Vec<u8> {
    let mut at = 4 + 1 + 4;
    let brokers = varint(frame, &mut at) - 1;
    let mut rest = at;
    for _ in 0..brokers {
        rest += 4;
        rest += varint(frame, &mut rest).saturating_sub(1);
        rest += 4;
        rest += varint(frame, &mut rest).saturating_sub(1);
        assert_eq!(varint(frame, &mut rest), 0, "no tags are known");
    }
    [&frame[..9], &[1], &frame[rest..]].concat()
}

fn varint(bytes: &[u8], at: &mut usize) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}
