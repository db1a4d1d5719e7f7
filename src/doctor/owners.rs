//! Whose the files are, as a table, and who would lock out whom.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

use super::Patient;
use crate::remark::{Remark, word};
use crate::source::{StatePlace, inspection};
use crate::sqlite::place::{beside, folder_of};
use crate::sqlite::premises::{self, Use};

const STICKY: u32 = 0o1000;
const BY_OTHERS: u32 = 0o002;

pub(super) fn look(patient: &Patient<'_>) -> Vec<Remark> {
    let found = match patient.source {
        Some(source) => inspection::rights_before_opening(source),
        None => premises::rights_of_file(patient.path, Use::Read),
    };
    let mut told: Vec<Remark> = found.into_iter().map(Remark::from).collect();
    let real = fs::canonicalize(patient.path).unwrap_or_else(|_| patient.path.to_owned());
    let folder = folder_of(&real);
    let mut files = vec![folder.clone(), real.clone()];
    files.extend(["-wal", "-shm"].map(|end| beside(&real, end)));
    files.extend(patient.source.filter(|source| source.state != StatePlace::Inside).map(|source| source.state_path()));
    let open = open_to_all(&files, &folder);
    if !open.is_empty() {
        let names: Vec<String> = open.iter().map(|path| path.display().to_string()).collect();
        let words: Vec<String> = names.iter().map(|name| word(name)).collect();
        let evidence = format!("anybody on this machine may write {}", names.join(", "));
        let remedy = "let only the application and outboxd write: events are what stands there";
        told.push(Remark::advice(evidence, remedy).with([format!("chmod o-w {}", words.join(" "))]));
    }
    if told.is_empty() {
        told.push(Remark::ok("nobody is locked out"));
    }
    if let Some(first) = told.first_mut() {
        first.evidence.push_str(&table(&files));
    }
    told
}

fn open_to_all(files: &[PathBuf], folder: &Path) -> Vec<PathBuf> {
    let is_open = |path: &PathBuf| {
        let mode = fs::metadata(path).map_or(0, |meta| meta.mode());
        mode & BY_OTHERS != 0 && !(path == folder && mode & STICKY != 0)
    };
    files.iter().filter(|path| is_open(path)).cloned().collect()
}

fn table(files: &[PathBuf]) -> String {
    let mut text = String::new();
    for path in files {
        let Ok(meta) = fs::metadata(path) else { continue };
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let kind = if meta.is_dir() { "/" } else { "" };
        text.push_str(&format!(
            "\nuid {:<6} gid {:<6} {:04o}  {name}{kind}",
            meta.uid(),
            meta.gid(),
            meta.mode() & 0o7777
        ));
    }
    text.push_str(&format!("\nuid {:<6} gid {:<6}       who asks now", geteuid().as_raw(), getegid().as_raw()));
    text
}
