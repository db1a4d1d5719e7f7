//! The file system that the file lies on, and the traps of containers: a layer that goes with the container, a file mounted by itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Patient;
use crate::remark::{Remark, word};
use crate::sqlite::{place, premises};

/// Types of `statfs` (linux/magic.h).
const KNOWN: [(u32, &str); 6] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683E, "Btrfs"),
    (0x2FC1_2FC1, "ZFS"),
    (TMPFS, "tmpfs"),
    (OVERLAY, "overlayfs"),
];
const TMPFS: u32 = 0x0102_1994;
const OVERLAY: u32 = 0x794C_7630;

pub(super) fn look(patient: &Patient<'_>) -> Vec<Remark> {
    let Ok(real) = fs::canonicalize(patient.path) else { return Vec::new() };
    let allow = patient.source.is_some_and(|source| source.allow_network_filesystem);
    let mut told: Vec<Remark> = premises::network(&real, allow).map(Remark::from).into_iter().collect();
    let kind = rustix::fs::statfs(&real).map_or(0, |stat| stat.f_type as u32);
    let name = KNOWN
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or(format!("statfs type {kind:#x}"), |(_, name)| (*name).into());
    let path = real.display();
    const VOLUME: &str = "keep its folder on a disk or a volume of its own, which application and outboxd both mount";
    if kind == OVERLAY {
        told.push(Remark::advice(format!("{path} lies in a layer of a container ({name}), and goes with it"), VOLUME));
    }
    if kind == TMPFS {
        told.push(Remark::advice(format!("{path} lies in memory ({name}), and is gone with the next start"), VOLUME));
    }
    if is_mounted_alone(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), &real) {
        let evidence =
            format!("{path} is mounted by itself: the -wal and -shm beside it are others than the application's");
        told.push(Remark::danger(evidence, "mount its folder, for the application and for outboxd"));
    }
    let names = fs::metadata(&real).map_or(1, |found| found.nlink());
    if names > 1 {
        let evidence = format!(
            "{path} has {names} names (hard links): whoever opens it by another one writes another -wal, and damages it"
        );
        let find = format!(
            "find {} -xdev -samefile {} ! -name {}",
            word(&place::folder_of(&real).display().to_string()),
            word(&real.display().to_string()),
            word(&real.file_name().unwrap_or_default().to_string_lossy())
        );
        told.push(
            Remark::danger(
                evidence,
                "remove all but the one that the application uses; this finds those in its folder",
            )
            .with([find]),
        );
    }
    if told.is_empty() {
        told.push(Remark::ok(name));
    }
    told
}

/// Of lines as `36 35 98:0 /mnt1 /mnt2 rw,noatime ...`, in which white space is written as `\040`.
fn is_mounted_alone(mounts: &str, path: &Path) -> bool {
    let escaped = path
        .to_string_lossy()
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(escaped.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_mounted_by_itself_is_told() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n36 22 254:0 /x/app.db /data/my\\040app.db rw - ext4 /dev/vda rw\n\
                      37 22 254:0 /y /volume rw - ext4 /dev/vda rw\n";
        assert!(is_mounted_alone(mounts, Path::new("/data/my app.db")));
        assert!(!is_mounted_alone(mounts, Path::new("/volume/app.db")));
        assert!(!is_mounted_alone("", Path::new("/volume/app.db")));
    }
}
