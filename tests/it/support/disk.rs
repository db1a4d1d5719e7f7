//! Disks that can be filled and cut off from power: file systems in memory and in files, mounted for one test.
//!
//! All lies under `outboxd-disk-PID-N` in the folder for temporary files. What a process that is gone left mounted there is taken away
//! by the next one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "outboxd-disk-";

/// Runs a command as root.
fn root(words: &[&str]) -> Result<(), String> {
    let is_root = rustix::process::geteuid().is_root();
    let words = if is_root { words.to_vec() } else { [&["sudo", "-n"], words].concat() };
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| format!("{words:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// A mounted file system; dropped, it is unmounted.
struct Mount {
    point: PathBuf,
}

impl Mount {
    fn new(options: &[&str], what: &str, point: PathBuf) -> Result<Self, String> {
        std::fs::create_dir_all(&point).unwrap();
        root(&[&["mount"], options, &[what, &text(&point)]].concat())?;
        let mount = Self { point };
        let owner = format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        root(&["chown", &owner, &text(&mount.point)])?;
        Ok(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.point);
    }
}

/// At once where nothing is open there, else as soon as nothing is.
fn unmount(point: &Path) {
    let point = text(point);
    if root(&["umount", &point]).is_err()
        && let Err(error) = root(&["umount", "-l", &point])
    {
        eprintln!("{error}");
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A folder for one disk; dropped, it is removed.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static TIDY: Once = Once::new();
        TIDY.call_once(tidy_up);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Unmounts and removes what processes that are gone have left.
fn tidy_up() {
    let start = text(&std::env::temp_dir().join(PREFIX));
    let is_left = |path: &str| {
        let pid = path.strip_prefix(&start).and_then(|rest| rest.split('-').next()).unwrap_or_default();
        !pid.is_empty() && !Path::new("/proc").join(pid).exists()
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| is_left(at)).collect();
    points.iter().rev().for_each(|point| unmount(Path::new(point)));
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if is_left(&text(&entry.path())) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A disk that is soon full, in memory.
pub struct SmallDisk {
    mount: Mount,
    _folder: Folder,
}

impl SmallDisk {
    /// The error says why nothing can be mounted here.
    pub fn new(kilobytes: u32) -> Result<Self, String> {
        let folder = Folder::new();
        let size = format!("size={kilobytes}k,mode=700");
        Ok(Self { mount: Mount::new(&["-t", "tmpfs", "-o", &size], "tmpfs", folder.0.join("disk"))?, _folder: folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.point.join(name)
    }

    /// Until not a byte more can be written.
    pub fn fill(&self) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.path("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    pub fn free(&self) {
        std::fs::remove_file(self.path("ballast")).unwrap();
    }

    pub fn read_only(&self, wanted: bool) {
        let how = if wanted { "remount,ro" } else { "remount,rw" };
        root(&["mount", "-o", how, &text(&self.mount.point)]).unwrap();
    }

    pub fn grow(&self, kilobytes: u32) {
        root(&["mount", "-o", &format!("remount,size={kilobytes}k"), &text(&self.mount.point)]).unwrap();
    }
}

/// A folder seen through FUSE (`bindfs`, from Debian).
pub struct Mirror {
    mount: Mount,
    _folder: Folder,
}

impl Mirror {
    /// The error says why nothing can be mounted here.
    pub fn new(of: &Path) -> Result<Self, String> {
        let folder = Folder::new();
        let point = folder.0.join("mirror");
        std::fs::create_dir(&point).unwrap();
        root(&["bindfs", &text(of), &text(&point)])?;
        Ok(Self { mount: Mount { point }, _folder: folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.point.join(name)
    }
}

/// A disk of which a copy can be had as a power cut would leave it, at any instant: an ext4 file system in a file, which lies in an XFS
/// file system. XFS copies the file by reference, at once: what the kernel had not yet written to the disk is not in the copy.
pub struct CutDisk {
    inner: Option<Mount>,
    outer: Mount,
    _folder: Folder,
}

impl CutDisk {
    /// The error says why nothing can be mounted here.
    pub fn new() -> Result<Self, String> {
        let folder = Folder::new();
        let image = |path: PathBuf, bytes: u64| {
            std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
            text(&path)
        };
        let run = |words: &[&str]| {
            let output = Command::new("env").env("PATH", path_with_sbin()).args(words).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() { Ok(()) } else { Err(format!("{}: {}", words.join(" "), said.trim())) }
        };
        let outer = image(folder.0.join("outer.img"), 1 << 30);
        run(&["mkfs.xfs", "-q", "-m", "reflink=1", &outer])?;
        let outer = Mount::new(&["-t", "xfs", "-o", "loop"], &outer, folder.0.join("outer"))?;
        let inner = image(outer.point.join("inner.img"), 192 << 20);
        run(&["mkfs.ext4", "-q", "-F", &inner])?;
        let mut disk = Self { inner: None, outer, _folder: folder };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Result<(), String> {
        let image = text(&self.outer.point.join("inner.img"));
        self.inner = Some(Mount::new(&["-t", "ext4", "-o", "loop"], &image, self.outer.point.with_file_name("disk"))?);
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.inner.as_ref().expect("it is mounted").point.join(name)
    }

    /// The power goes off: what the disk holds at this instant is what [`CutDisk::come_back`] brings.
    pub fn cut(&self) {
        let (image, copy) = (self.outer.point.join("inner.img"), self.outer.point.join("cut.img"));
        root(&["cp", "--reflink=always", &text(&image), &text(&copy)]).unwrap();
    }

    /// The power comes back. Nothing of the disk may be open.
    pub fn come_back(&mut self) {
        drop(self.inner.take());
        let (image, copy) = (self.outer.point.join("inner.img"), self.outer.point.join("cut.img"));
        root(&["mv", &text(&copy), &text(&image)]).unwrap();
        self.mount().unwrap();
    }
}

/// Programs for an administrator may not be in a user's path.
fn path_with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
