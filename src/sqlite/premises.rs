//! Where a database file lies and whom it belongs to, looked at before it is opened: what is wrong is told with evidence and remedy.
//!
//! Nothing is opened, made or changed here. SQLite gives `-wal` and `-shm` the mode of the database, and as owner and group those of whoever
//! comes first (root hands them to the database's owner: `findCreateFileMode`, `robust_open`, `robustFchown` in `os_unix.c`): a relay that
//! comes before the application can lock it out of its own file.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::process::{getegid, geteuid};

use super::place::{beside, folder_of};
use crate::controls::{self, Protection};

/// What was found, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub weight: Weight,
    pub evidence: String,
    pub remedy: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// The file is not opened.
    Refusal,
    Warning,
}

impl Finding {
    pub fn refusal(evidence: String, remedy: impl Into<String>) -> Self {
        Self { weight: Weight::Refusal, evidence, remedy: remedy.into() }
    }

    pub fn warning(evidence: String, remedy: impl Into<String>) -> Self {
        Self { weight: Weight::Warning, evidence, remedy: remedy.into() }
    }

    pub fn is_refusal(&self) -> bool {
        self.weight == Weight::Refusal
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. Remedy: {}", self.evidence, self.remedy)
    }
}

/// What is done with an application's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    Read,
    /// Rows are marked in it, or state stands in it.
    Write,
}

/// Of an application's file. One that is not there yet has nothing wrong with it.
pub fn of_file(path: &Path, usage: Use, allow_network: bool) -> Vec<Finding> {
    let real = fs::canonicalize(path).ok().filter(|real| real.is_file());
    let mut found: Vec<Finding> = real.and_then(|real| network(&real, allow_network)).into_iter().collect();
    found.extend(rights_of_file(path, usage));
    found
}

/// Of the rights to it alone.
pub fn rights_of_file(path: &Path, usage: Use) -> Vec<Finding> {
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return vec![Finding::refusal(
                format!("{} cannot be reached: {error}; {}", path.display(), we()),
                "run outboxd as the application's user, or let its user into every folder on the way (x); then `outboxd resume`",
            )];
        }
        Err(_) => return Vec::new(),
    };
    let Ok(meta) = fs::metadata(&real) else { return Vec::new() };
    if !meta.is_file() {
        let remedy = "name the application's SQLite file itself; then `outboxd resume`";
        return vec![Finding::refusal(format!("{} is no file", path.display()), remedy)];
    }
    rights(&real, &meta, usage).into_iter().chain(locked_out(&real, &meta)).collect()
}

/// Of a file of our own, which is made when it is not there.
pub fn of_own(path: &Path, allow_network: bool) -> Vec<Finding> {
    const ELSEWHERE: &str = "give outboxd's user the right to it, or give the state a place of its own, as in \
                             state = \"/var/lib/outboxd/NAME.db\"; then `outboxd resume`";
    let folder = folder_of(path);
    let Ok(meta) = fs::metadata(&folder) else {
        let evidence =
            format!("the state cannot be made: the folder {} is not there, or cannot be entered", folder.display());
        return vec![Finding::refusal(evidence, "make it, for the user that outboxd runs as; then `outboxd resume`")];
    };
    let mut found: Vec<Finding> = network(&folder, allow_network).into_iter().collect();
    if let Err(error) = access(&folder, Access::WRITE_OK | Access::EXEC_OK) {
        let evidence = format!(
            "the state {} cannot be written: nothing can be made in its folder {} ({error}); {}",
            path.display(),
            owner_of(&meta),
            we()
        );
        found.push(Finding::refusal(evidence, ELSEWHERE));
    }
    for file in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm"), beside(path, "-outboxd.lock")] {
        let Ok(meta) = fs::metadata(&file) else { continue };
        if let Err(error) = access(&file, Access::READ_OK | Access::WRITE_OK) {
            let evidence = format!("{} {} cannot be written ({error}); {}", file.display(), owner_of(&meta), we());
            found.push(Finding::refusal(evidence, ELSEWHERE));
        }
    }
    found
}

/// Why a file in WAL mode cannot be read until its application opens it: reading needs `-wal` and `-shm`, and we may not make them.
pub fn waits_for_application(path: &Path) -> Option<String> {
    let real = fs::canonicalize(path).ok()?;
    if ["-wal", "-shm"].iter().all(|end| beside(&real, end).exists()) {
        return None;
    }
    let folder = folder_of(&real);
    let error = access(&folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(format!(
        "{} has no -wal and -shm beside it, which its application makes when it opens the file, and outboxd cannot make them in {} ({error}; \
         {}). It goes on when the application has it open. Remedy, where that is not to be waited for: run outboxd as the application's user",
        path.display(),
        folder.display(),
        we()
    ))
}

/// Types of `statfs` (linux/magic.h and the file systems' own headers) whose locks or shared memory do not hold between machines.
const NETWORK: [(u32, &str); 10] = [
    (0x0000_6969, "NFS"),
    (0x0000_517B, "SMB"),
    (0xFF53_4D42, "SMB (CIFS)"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
    (0x7375_7245, "Coda"),
    (0x786F_4256, "VirtualBox shared folder"),
];

fn network_named(magic: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

/// Of the file system that it lies on.
pub fn network(path: &Path, allowed: bool) -> Option<Finding> {
    let magic = rustix::fs::statfs(path).ok()?.f_type as u32;
    let name = network_named(magic)?;
    let evidence = format!(
        "{} lies on a {name} file system (statfs type {magic:#x}), where neither SQLite's locks nor the memory that WAL mode shares can be \
         relied on: files are damaged by it",
        path.display()
    );
    let remedy = "keep the file on a local disk, and run outboxd on the machine that has it; when you know that one kernel serves everybody who \
                  opens it, allow_network_filesystem = true";
    Some(if allowed { Finding::warning(evidence, remedy) } else { Finding::refusal(evidence, remedy) })
}

fn rights(path: &Path, meta: &Metadata, usage: Use) -> Option<Finding> {
    let as_who = "run outboxd as the application's user, or make the folder setgid (2770) with a shared group, and the file 0660; then \
                  `outboxd resume`";
    let told = |what: &str, place: &Path, meta: &Metadata, error: rustix::io::Errno| {
        let remedy = match error {
            rustix::io::Errno::ROFS => "mount it so that it can be written; then `outboxd resume`",
            _ => as_who,
        };
        Finding::refusal(format!("{} {} cannot be {what} ({error}); {}", place.display(), owner_of(meta), we()), remedy)
    };
    if let Err(error) = access(path, Access::READ_OK) {
        return Some(told("read", path, meta, error));
    }
    for end in ["-wal", "-shm"] {
        let side = beside(path, end);
        if let (Ok(meta), Err(error)) = (fs::metadata(&side), access(&side, Access::READ_OK)) {
            return Some(told("read", &side, &meta, error));
        }
    }
    if usage == Use::Read {
        return None;
    }
    if let Err(error) = access(path, Access::WRITE_OK) {
        return Some(told("written, where the state is to stand", path, meta, error));
    }
    let folder = folder_of(path);
    let error = access(&folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(told("written, where files beside the database are to be made", &folder, &fs::metadata(&folder).ok()?, error))
}

/// Whose a file is, and what others may do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owner {
    fn of(meta: &Metadata) -> Self {
        Self { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o777 }
    }

    /// Of a file that we let SQLite make beside the database. Without root's rights the group is ours, or the folder's where that is setgid.
    fn of_made(database: &Owner, folder: &Metadata) -> Self {
        let gid = if folder.mode() & 0o2000 != 0 { folder.gid() } else { getegid().as_raw() };
        Self { uid: geteuid().as_raw(), gid, mode: database.mode }
    }
}

/// Who may write the database and could not write this file beside it.
fn shut_out(database: &Owner, side: &Owner) -> Option<String> {
    let may = |owner: &Owner, bits: u32| owner.mode & bits == bits;
    let by_group = side.gid == database.gid && may(side, 0o060);
    let by_all = may(side, 0o006);
    // Root writes everything.
    let owner_writes = may(database, 0o200) && database.uid != 0;
    let by_owner = side.uid == database.uid && may(side, 0o600);
    if owner_writes && !by_owner && !by_group && !by_all {
        return Some(format!("its owner (uid {})", database.uid));
    }
    if may(database, 0o020) && !by_group && !by_all {
        return Some(format!("its group (gid {})", database.gid));
    }
    (may(database, 0o002) && !by_all).then(|| "others".to_owned())
}

/// The files beside the database that are there, or that would be made now, keep somebody from writing who may write the database.
fn locked_out(path: &Path, meta: &Metadata) -> Option<Finding> {
    if controls::is_off(Protection::Permissions) {
        return None;
    }
    let database = Owner::of(meta);
    let folder = folder_of(path);
    let makes = !hands_over() && access(&folder, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    for end in ["-wal", "-shm"] {
        let side = beside(path, end);
        let (owner, is_there) = match fs::metadata(&side) {
            Ok(meta) => (Owner::of(&meta), true),
            Err(_) if !makes => continue,
            Err(_) => (Owner::of_made(&database, &fs::metadata(&folder).ok()?), false),
        };
        // Rights by access control lists are not in the mode.
        let ruled_by_list = if is_there {
            has_list(&side, "system.posix_acl_access")
        } else {
            has_list(&folder, "system.posix_acl_default")
        };
        let Some(who) = shut_out(&database, &owner).filter(|_| !ruled_by_list) else { continue };
        let known = format!("{} {}", path.display(), owner_of(meta));
        let theirs = format!("uid {}, gid {}, mode {:04o}", owner.uid, owner.gid, owner.mode);
        let same = "run outboxd as the application's user; or make the folder setgid (chmod 2775) with the database's group, and the \
                    database writable for it (chmod 664)";
        return Some(if is_there {
            let evidence = format!("{} ({theirs}) cannot be written by {who}, who may write {known}", side.display());
            let remedy = format!(
                "stop outboxd, let `chown --reference` and `chmod --reference` give it what the database has, then {same}"
            );
            match owner.uid == database.uid {
                // The application made it so itself, before it changed the database's mode.
                true => Finding::warning(evidence, remedy),
                false => Finding::refusal(evidence, remedy),
            }
        } else {
            let evidence = format!(
                "opening {known} now would make {} ({theirs}), and lock {who} out of the database. Nothing was opened",
                side.display()
            );
            Finding::refusal(evidence, format!("{same}; then `outboxd resume`"))
        });
    }
    None
}

/// Root gives what SQLite makes to the database's owner, unless that right was taken from it (`--cap-drop=ALL`).
fn hands_over() -> bool {
    const CAP_CHOWN: u64 = 1;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    geteuid().is_root() && effective.is_none_or(|bits| bits & CAP_CHOWN != 0)
}

fn has_list(path: &Path, name: &str) -> bool {
    let mut room = [0_u8; 4];
    matches!(rustix::fs::getxattr(path, name, &mut room[..]), Ok(_) | Err(rustix::io::Errno::RANGE))
}

/// What the effective user may do, which is what counts when SQLite opens it.
fn access(path: &Path, wanted: Access) -> rustix::io::Result<()> {
    rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS)
}

fn owner_of(meta: &Metadata) -> String {
    format!("(uid {}, gid {}, mode {:04o})", meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn we() -> String {
    format!("outboxd runs as uid {}, gid {}", geteuid().as_raw(), getegid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_type() {
        for (magic, name) in [
            (0x6969, "NFS"),
            (0xFF53_4D42, "SMB (CIFS)"),
            (0xFE53_4D42, "SMB2"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "FUSE"),
        ] {
            assert_eq!(network_named(magic), Some(name));
        }
        // ext4, XFS, btrfs, tmpfs, overlayfs, ZFS.
        for local in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1] {
            assert_eq!(network_named(local), None, "{local:#x}");
        }
    }

    /// The table of what was measured with SQLite itself; tests/it/refusals/rights.rs tries it with real users.
    #[test]
    fn who_is_shut_out() {
        let owner = |uid, gid, mode| Owner { uid, gid, mode };
        let out = |database: Owner, side: Owner| shut_out(&database, &side);
        // The application's own user, and its group.
        assert_eq!(out(owner(1, 1, 0o644), owner(1, 1, 0o644)), None);
        assert_eq!(out(owner(1, 9, 0o664), owner(1, 9, 0o664)), None);
        // Another one, in the database's group.
        assert_eq!(out(owner(1, 9, 0o664), owner(2, 9, 0o664)), None);
        assert_eq!(out(owner(1, 9, 0o644), owner(2, 9, 0o644)).as_deref(), Some("its owner (uid 1)"));
        assert_eq!(out(owner(1, 9, 0o664), owner(2, 2, 0o664)).as_deref(), Some("its owner (uid 1)"));
        // The owner comes first, and the group is another one.
        assert_eq!(out(owner(1, 9, 0o664), owner(1, 1, 0o664)).as_deref(), Some("its group (gid 9)"));
        // Everybody may write.
        assert_eq!(out(owner(1, 9, 0o666), owner(2, 2, 0o666)), None);
        assert_eq!(out(owner(1, 9, 0o666), owner(1, 9, 0o664)).as_deref(), Some("others"));
        // A file that nobody writes, and one of root.
        assert_eq!(out(owner(1, 1, 0o444), owner(2, 2, 0o444)), None);
        assert_eq!(out(owner(0, 0, 0o644), owner(2, 2, 0o644)), None);
    }

    #[test]
    fn what_is_no_file_is_refused_and_what_is_not_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let told: Vec<String> = of_file(folder.path(), Use::Read, false).iter().map(Finding::to_string).collect();
        assert!(told[0].contains("is no file. Remedy: "), "{told:?}");
        assert_eq!(of_file(&folder.path().join("late.db"), Use::Write, false), []);
        assert_eq!(of_own(&folder.path().join("state.db"), false), []);
        let nowhere = of_own(&folder.path().join("nowhere/state.db"), false);
        assert!(nowhere[0].is_refusal() && nowhere[0].evidence.contains("is not there"), "{nowhere:?}");
    }
}
