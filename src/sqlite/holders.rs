//! Who holds the write lock of a file in WAL mode: the kernel tells by `/proc/locks`, and nothing is opened for that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::place;

/// The byte of the `-shm` whose lock a writer holds (WAL_WRITE_LOCK in SQLite's wal.c, from byte 120 on).
const WRITE_BYTE: u64 = 120;

/// A process, where it can be seen from here: not out of another PID namespace.
pub fn of_write_lock(path: &Path) -> Option<u32> {
    let shm = fs::metadata(place::beside(path, "-shm")).ok()?;
    holder(&fs::read_to_string("/proc/locks").ok()?, shm.dev(), shm.ino())
}

/// Lines as `3: POSIX  ADVISORY  WRITE 4711 fe:00:131 120 120`.
fn holder(locks: &str, dev: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(dev), rustix::fs::minor(dev));
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next()? != "POSIX" || words.nth(1)? != "WRITE" {
            return None;
        }
        let pid: i64 = words.next()?.parse().ok()?;
        let (found, from, to) = (words.next()?, words.next()?, words.next()?);
        let to = if to == "EOF" { u64::MAX } else { to.parse().ok()? };
        let holds = found == file && (from.parse::<u64>().ok()?..=to).contains(&WRITE_BYTE);
        (holds && pid > 0).then_some(pid as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: POSIX  ADVISORY  READ  100 fe:00:131 128 128\n2: FLOCK  ADVISORY  WRITE 101 fe:00:131 0 EOF\n\
                         2: -> POSIX  ADVISORY  WRITE 102 fe:00:131 120 120\n3: POSIX  ADVISORY  WRITE 103 fe:00:132 120 120\n\
                         4: POSIX  ADVISORY  WRITE -1 fe:00:133 120 120\n5: POSIX  ADVISORY  WRITE 104 fe:00:131 120 121\n\
                         6: POSIX  ADVISORY  WRITE 105 fe:00:134 0 EOF\nnonsense\n7: POSIX";

    #[test]
    fn the_holder_is_told_by_the_byte_that_it_has_locked() {
        let dev = rustix::fs::makedev(0xfe, 0);
        assert_eq!(
            [131, 132, 133, 134, 135].map(|inode| holder(LOCKS, dev, inode)),
            [Some(104), Some(103), None, Some(105), None]
        );
    }
}
