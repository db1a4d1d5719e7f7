//! Which file a path names: the same one through symbolic links and `./`, also before it is there.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Symbolic links in a row to a file that is not there yet: as many as Linux follows.
const LINKS_MAX: usize = 40;

/// The one path by which it is known.
pub fn real(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        let (folder, Some(name)) = (path.parent().unwrap_or(Path::new("")), path.file_name()) else { return path };
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let Ok(folder) = here.canonicalize() else { return path };
        match fs::read_link(&path) {
            // It is made where the link leads to.
            Ok(target) => path = folder.join(target),
            Err(_) => return folder.join(name),
        }
    }
    path
}

/// Whether both name one file. One file under two names of its own (a hard link) is one, too.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    real(one) == real(other) || inode(one).is_some_and(|one| inode(other) == Some(one))
}

/// The folder that it stands in.
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Bytes that may still be written to the file system that a folder stands on.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What stands beside it under its name with this end, as `-wal`.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_whatever_name_and_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data")).unwrap();
        std::os::unix::fs::symlink("data/a.db", at("link.db")).unwrap();
        std::os::unix::fs::symlink("link.db", at("again.db")).unwrap();
        std::os::unix::fs::symlink("loop.db", at("loop.db")).unwrap();
        let names = ["data/a.db", "data/../data/./a.db", "link.db", "again.db"];
        for is_there in [false, true] {
            for name in names {
                assert_eq!(real(&at(name)), real(&at("data/a.db")), "{name}, there: {is_there}");
                assert!(!is_same(&at(name), &at("data/b.db")));
            }
            fs::write(at("data/a.db"), "").unwrap();
        }
        fs::hard_link(at("data/a.db"), at("hard.db")).unwrap();
        assert!(real(&at("hard.db")) != real(&at("link.db")) && is_same(&at("hard.db"), &at("link.db")));
        assert_eq!(real(&at("nowhere/a.db")), at("nowhere/a.db"));
        real(&at("loop.db"));
    }
}
