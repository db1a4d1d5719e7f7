//! What is wrong with a configuration, and who may read its secrets.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Found;
use crate::config::{Error, Loaded};
use crate::remark::{Remark, word};
use crate::setting::problem::Origin;

const CHECK: &str = "configuration";
const HIDDEN: &str = "***";

/// Of one that was refused: everything.
pub fn refused(error: &Error) -> Vec<Found> {
    let told = error.problems.iter().map(|problem| {
        let remedy = problem.remedy.clone().unwrap_or_else(|| "see docs/CONFIG.md".to_owned());
        let key = if problem.key.0.is_empty() { String::new() } else { format!("{}: ", problem.key) };
        // A remedy that is a command begins with it.
        let command = remedy.starts_with("chmod ").then(|| remedy.split(" (").next().unwrap_or(&remedy).to_owned());
        let mut remark = Remark::danger(format!("{key}{}", problem.reason), remedy);
        remark.commands.extend(command);
        Found { check: CHECK, subject: problem.origin.to_string(), remark }
    });
    told.collect()
}

/// Of one that was taken. A secret's own file that others may read is refused before (`setting::secret_file`).
pub fn taken(loaded: &Loaded) -> Vec<Found> {
    let secrets = loaded.shown.lines.iter().filter(|line| line.value == HIDDEN);
    let mut files: Vec<_> = secrets
        .filter_map(|line| match &line.origin {
            Origin::File { path, .. } => Some(path.clone()),
            _ => None,
        })
        .collect();
    files.sort();
    files.dedup();
    let is_open = |path: &std::path::PathBuf| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o004 != 0);
    let mut told: Vec<Remark> = files
        .iter()
        .filter(|path| is_open(path))
        .map(|path| {
            let evidence = format!("secrets stand in {}, which anybody on this machine may read", path.display());
            let remedy = "let only outboxd read it, or put each secret into a file of its own (`password_file = ...`)";
            Remark::danger(evidence, remedy).with([format!("chmod o-rwx {}", word(&path.display().to_string()))])
        })
        .collect();
    if told.is_empty() {
        told.push(Remark::ok("it is right, and nobody else may read its secrets"));
    }
    let subject = loaded.file.display().to_string();
    told.into_iter().map(|remark| Found { check: CHECK, subject: subject.clone(), remark }).collect()
}
