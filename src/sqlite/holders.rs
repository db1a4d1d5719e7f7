//! Who else has a database file open: by the locks that the kernel tells of (`/proc/locks`), and by the descriptors that processes hold
//! (`/proc/<pid>/fd`). Files are known by their inode, whatever they are called; none is opened here.
//!
//! In WAL mode a connection that has read holds a lock for as long as it is open. One in another mode, or that has read nothing yet, shows by
//! its descriptor alone; and that is seen of processes that this one may look into. A process in another container shows by nothing but the lock
//! itself, which [`super::sole`] cannot get then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::place::beside;

/// Of a command so much is told.
const COMMAND_MAX: usize = 160;

/// A process that has a file open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub pid: u32,
    /// As it was started, where that may be seen.
    pub command: String,
}

impl Holder {
    pub fn of(pid: u32) -> Self {
        Self { pid, command: command(pid) }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command.is_empty() {
            true => write!(f, "process {}", self.pid),
            false => write!(f, "process {} ({})", self.pid, self.command),
        }
    }
}

type Inode = (u64, u64);

/// Other processes that have the database, its `-wal` or its `-shm` open, by their numbers.
pub fn of(database: &Path) -> Vec<Holder> {
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let wanted: Vec<Inode> = ["", "-wal", "-shm"].iter().filter_map(|end| inode(&beside(database, end))).collect();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut found: BTreeMap<u32, Holder> = BTreeMap::new();
    let descriptors = processes().filter(|pid| has_open(*pid, &wanted));
    for pid in locked_by(&locks, &wanted).into_iter().chain(descriptors).filter(|pid| *pid != std::process::id()) {
        found.entry(pid).or_insert_with(|| Holder::of(pid));
    }
    found.into_values().collect()
}

/// A line of `/proc/locks`, as `1: POSIX  ADVISORY  READ 4711 fe:01:1234 1073741826 1073742335`; behind `->` stand those who wait for it.
struct Lock {
    pid: u32,
    inode: Inode,
    is_held: bool,
    is_posix: bool,
    is_write: bool,
    bytes: RangeInclusive<u64>,
}

/// Locks without a process that can be seen from here have a number below one, and are left out.
fn locks(text: &str) -> impl Iterator<Item = Lock> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1).peekable();
        let is_held = words.next_if_eq(&"->").is_none();
        let is_posix = words.next()? == "POSIX";
        let is_write = words.nth(1)? == "WRITE";
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let (device, inode) = words.next()?.rsplit_once(':')?;
        let (major, minor) = device.split_once(':')?;
        let number = |hex: &str| u32::from_str_radix(hex, 16).ok();
        let inode = (rustix::fs::makedev(number(major)?, number(minor)?), inode.parse().ok()?);
        let (from, to) = (words.next()?.parse().ok()?, words.next()?);
        let to = if to == "EOF" { u64::MAX } else { to.parse().ok()? };
        Some(Lock { pid, inode, is_held, is_posix, is_write, bytes: from..=to })
    })
}

fn locked_by(text: &str, wanted: &[Inode]) -> Vec<u32> {
    locks(text).filter(|lock| wanted.contains(&lock.inode)).map(|lock| lock.pid).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn has_open(pid: u32, wanted: &[Inode]) -> bool {
    // Where the folder cannot be read, nothing is known by it.
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut inodes = descriptors.filter_map(|entry| fs::metadata(entry.path()).ok());
    inodes.any(|found| wanted.contains(&(found.dev(), found.ino())))
}

/// In one line, and not longer than one can read.
fn command(pid: u32) -> String {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let line = |bytes: Vec<u8>| {
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(COMMAND_MAX).collect::<String>()
    };
    let words = line(read("cmdline"));
    if words.is_empty() { line(read("comm")) } else { words }
}

/// The bytes of the `-shm` of which a read transaction locks one (WAL_READ_LOCK in SQLite's wal.c): what it reads is not copied over.
const READ_BYTES: RangeInclusive<u64> = 123..=127;

/// Other processes that read at this moment, as far as they can be seen from here, by their numbers.
pub fn of_read_marks(path: &Path) -> Vec<Holder> {
    let Ok(shm) = fs::metadata(beside(path, "-shm")) else { return Vec::new() };
    let text = fs::read_to_string("/proc/locks").unwrap_or_default();
    let found: BTreeSet<u32> = readers(&text, (shm.dev(), shm.ino())).collect();
    let others = found.into_iter().filter(|pid| *pid != std::process::id());
    others.map(Holder::of).collect()
}

fn readers(text: &str, shm: Inode) -> impl Iterator<Item = u32> {
    let held = locks(text).filter(move |lock| lock.is_held && lock.is_posix && !lock.is_write && lock.inode == shm);
    // Locks of neighbouring bytes are told as one.
    held.filter(|lock| READ_BYTES.clone().any(|byte| lock.bytes.contains(&byte))).map(|lock| lock.pid)
}

/// The byte of the `-shm` whose lock a writer holds (WAL_WRITE_LOCK in SQLite's wal.c, from byte 120 on).
const WRITE_BYTE: u64 = 120;

/// A process, where it can be seen from here: not out of another PID namespace.
pub fn of_write_lock(path: &Path) -> Option<u32> {
    let shm = fs::metadata(beside(path, "-shm")).ok()?;
    writer(&fs::read_to_string("/proc/locks").ok()?, (shm.dev(), shm.ino()))
}

fn writer(text: &str, shm: Inode) -> Option<u32> {
    let mut held = locks(text).filter(|lock| lock.is_held && lock.is_posix && lock.is_write && lock.inode == shm);
    held.find(|lock| lock.bytes.contains(&WRITE_BYTE)).map(|lock| lock.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_by_device_and_inode() {
        let locks = "\
1: POSIX  ADVISORY  READ 4711 fe:01:1234 1073741826 1073742335
1: -> POSIX  ADVISORY  WRITE 12 fe:01:1234 0 EOF
2: OFDLCK ADVISORY  READ -1 fe:01:1234 128 128
3: FLOCK  ADVISORY  WRITE 99 fe:01:1235 0 EOF
4: POSIX  ADVISORY  WRITE 77 00:2a:1234 0 EOF
";
        let device = rustix::fs::makedev(0xfe, 1);
        assert_eq!(locked_by(locks, &[(device, 1234)]), [4711, 12]);
        assert_eq!(locked_by("nonsense\n: :\n1: a:b:c\n", &[(device, 1234)]), [0; 0]);
    }

    #[test]
    fn who_has_it_open_is_found_without_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("a.db");
        fs::write(&database, "").unwrap();
        // A process that another test is just starting has this one's descriptors for a moment.
        while !of(&database).is_empty() {
            std::thread::yield_now();
        }
        let mut reader = std::process::Command::new("sleep");
        let reader = reader.arg("60").stdin(fs::File::open(&database).unwrap()).spawn();
        let mut reader = reader.unwrap();
        // Until then it has no command line of its own.
        while !command(reader.id()).starts_with("sleep 60") {
            std::thread::yield_now();
        }
        let found = of(&database);
        reader.kill().unwrap();
        reader.wait().unwrap();
        let told = found.iter().find(|holder| holder.pid == reader.id()).map(Holder::to_string);
        assert_eq!(told, Some(format!("process {} (sleep 60)", reader.id())));
    }

    const LOCKS: &str = "1: POSIX  ADVISORY  READ  100 fe:00:131 128 128\n2: FLOCK  ADVISORY  WRITE 101 fe:00:131 0 EOF\n\
                         2: -> POSIX  ADVISORY  WRITE 102 fe:00:131 120 120\n3: POSIX  ADVISORY  WRITE 103 fe:00:132 120 120\n\
                         4: POSIX  ADVISORY  WRITE -1 fe:00:133 120 120\n5: POSIX  ADVISORY  WRITE 104 fe:00:131 120 121\n\
                         6: POSIX  ADVISORY  WRITE 105 fe:00:134 0 EOF\nnonsense\n7: POSIX";

    #[test]
    fn who_reads_is_told_by_the_byte_that_it_has_locked() {
        let line = |kind: &str, from: u64, to: u64| format!("2: POSIX  ADVISORY  {kind} 101 fe:00:131 {from} {to}");
        let of = |line: &str| readers(line, (rustix::fs::makedev(0xfe, 0), 131)).count();
        assert_eq!([of(&line("READ", 123, 123)), of(&line("READ", 127, 128))], [1, 1]);
        // Being there, writing, another file, and nonsense are no reading.
        let other = line("READ", 124, 124).replace("131", "132");
        assert_eq!([of(&line("READ", 128, 128)), of(&line("WRITE", 124, 124)), of(&other), of("2: x")], [0; 4]);
    }

    #[test]
    fn the_holder_is_told_by_the_byte_that_it_has_locked() {
        let dev = rustix::fs::makedev(0xfe, 0);
        assert_eq!(
            [131, 132, 133, 134, 135].map(|inode| writer(LOCKS, (dev, inode))),
            [Some(104), Some(103), None, Some(105), None]
        );
    }
}
