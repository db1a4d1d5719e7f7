//! `outboxd backup` and `outboxd restore`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Context, Exit, Failure, job, terminal};
use crate::admin::answer::Refusal;
use crate::clock;
use crate::config::Loaded;
use crate::controls;
use crate::maintenance::backup::manifest::Copied;
use crate::maintenance::backup::{Backups, Entry, look_at_file, restore};
use crate::maintenance::{self, Stop};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a backup now: the same as `job run`
    Now {
        /// The job's name, where there are several
        #[arg(value_name = "JOB")]
        job: Option<String>,
    },
    /// List the backups
    List {
        /// Of this job alone
        #[arg(value_name = "JOB")]
        job: Option<String>,
    },
    /// Unpack every backup, open it and look through it, or look through a database file that lies somewhere; change nothing
    ///
    /// Exit code 65 where one is not sound.
    Verify {
        /// A job, the name of a backup, or a database file that nobody writes
        #[arg(value_name = "JOB|BACKUP|FILE")]
        what: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The job whose backups are meant, where there are several
    #[arg(value_name = "JOB")]
    job: Option<String>,
    /// The newest backup that was begun by then, in ISO 8601; else the newest of all
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// This file of the backup alone, by its name
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Where it goes: a new file, or a folder where there are several [default: beside the original, with .restored behind its name]
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    match command {
        Command::Now { job } => {
            let loaded = context.load()?;
            let (name, _) = only(&loaded, job.as_deref())?;
            job::execute(&job::Command::Run { name: name.to_owned(), dry_run: false }, context)
        }
        Command::List { job } => list(job.as_deref(), context),
        Command::Verify { what } => verify(what.as_deref(), context),
    }
}

fn list(job: Option<&str>, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let mut all = Vec::new();
    for (name, backups) in jobs(&loaded, job)? {
        all.extend(backups.entries().map_err(refused)?.into_iter().map(|entry| (name, entry)));
    }
    if context.json {
        let shown: Vec<Value> = all.iter().map(|(job, entry)| shown(job, entry)).collect();
        terminal::print_json(&json!({ "backups": shown }))?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|(_, entry)| match &entry.manifest {
            Ok(manifest) => {
                let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
                let size = manifest.compressed_bytes().to_string();
                vec![entry.name.clone(), "verified".to_owned(), size, manifest.bytes().to_string(), names.join(" ")]
            }
            Err(what) => vec![entry.name.clone(), "no backup".to_owned(), "-".to_owned(), "-".to_owned(), what.clone()],
        })
        .collect();
    terminal::print(&terminal::table(&["BACKUP", "STATE", "BYTES", "UNPACKED", "FILES"], &rows))?;
    Ok(Exit::Ok)
}

fn shown(job: &str, entry: &Entry) -> Value {
    json!({
        "job": job,
        "name": entry.name,
        "time": clock::iso(entry.time),
        "manifest": entry.manifest.as_ref().ok(),
        "wrong": entry.manifest.as_ref().err(),
    })
}

fn verify(what: Option<&str>, context: &Context) -> anyhow::Result<Exit> {
    if let Some(file) = what.map(Path::new).filter(|path| path.is_file()) {
        let found = look_at_file(file, &Stop::default()).map_err(refused)?;
        match context.json {
            true => terminal::print_json(&json!({ "ok": true, "file": file, "found": found }))?,
            false => terminal::print(&format!(
                "{}: sound, {} rows in {} tables\n",
                terminal::visible(&file.to_string_lossy()),
                found.tables.values().sum::<u64>(),
                found.tables.len()
            ))?,
        }
        return Ok(Exit::Ok);
    }
    let loaded = context.load()?;
    let is_job = what.is_none_or(|what| loaded.config.jobs.iter().any(|job| job.name == what));
    let mut told = Vec::new();
    for (name, backups) in jobs(&loaded, what.filter(|_| is_job))? {
        let entries = backups.entries().map_err(refused)?;
        for entry in entries.iter().filter(|entry| is_job || Some(entry.name.as_str()) == what) {
            let result = backups.look_through(entry, &Stop::default());
            match &result {
                Ok(()) | Err(maintenance::Failure::Data(_)) => {}
                Err(failure) => return Err(refused(failure.clone())),
            }
            told.push((name, entry.name.clone(), result.err().map(|failure| failure.to_string())));
        }
    }
    if !is_job && told.is_empty() {
        let what = what.unwrap_or_default();
        let remedy = "`outboxd backup list` names the backups";
        return Err(Failure::new(Exit::Data, format!("there is no job, backup or file {what:?}"), remedy).into());
    }
    match context.json {
        true => {
            let backups: Vec<Value> =
                told.iter().map(|(job, name, wrong)| json!({ "job": job, "name": name, "wrong": wrong })).collect();
            terminal::print_json(&json!({ "backups": backups }))?;
        }
        false => {
            for (_, name, wrong) in &told {
                let said = wrong.as_ref().map_or("unpacked, opened and checked", |wrong| wrong.as_str());
                terminal::print(&format!("{}: {}\n", terminal::visible(name), terminal::visible(said)))?;
            }
        }
    }
    Ok(if told.iter().any(|(_, _, wrong)| wrong.is_some()) { Exit::Data } else { Exit::Ok })
}

pub fn restore(args: &RestoreArgs, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    let loaded = context.load()?;
    let (_, backups) = only(&loaded, args.job.as_deref())?;
    let entry = choose(backups, args.at.as_deref())?;
    let manifest = entry.manifest.as_ref().map_err(|what| refused(maintenance::Failure::Data(what.clone())))?;
    let wanted: Vec<&Copied> =
        manifest.files.iter().filter(|file| args.file.as_ref().is_none_or(|name| *name == file.name)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        let reason = format!("{} holds no file {:?}", entry.name, args.file.as_deref().unwrap_or_default());
        return Err(Failure::new(Exit::Usage, reason, format!("it holds {}", names.join(", "))).into());
    }
    if wanted.len() > 1 && args.to.as_ref().is_some_and(|to| !to.is_dir()) {
        let reason = format!("{} holds {} files, and --to is no folder", entry.name, wanted.len());
        return Err(Failure::new(Exit::Usage, reason, "name a folder, or one of the files with --file").into());
    }
    let mut restored = Vec::new();
    for copied in wanted {
        let to = match &args.to {
            Some(to) if to.is_dir() => to.join(&copied.name),
            Some(to) => to.clone(),
            None => copied.path.with_file_name(format!("{}.restored", copied.name)),
        };
        restore::restore(&entry, copied, &to, &Stop::default()).map_err(refused)?;
        restored.push((copied, to));
    }
    match context.json {
        true => {
            let files: Vec<Value> = restored
                .iter()
                .map(|(copied, to)| json!({ "name": copied.name, "to": to, "found": copied.found }))
                .collect();
            terminal::print_json(&json!({ "backup": entry.name, "began": manifest.began, "files": files }))?;
        }
        false => {
            for (copied, to) in restored {
                terminal::print(&told(&entry, copied, &to))?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// What a restored file means for who reads it.
fn told(entry: &Entry, copied: &Copied, to: &Path) -> String {
    let rows: u64 = copied.found.tables.values().sum();
    let mut text = format!("{}: {} of {}, {rows} rows, checked\n", to.display(), copied.name, entry.name);
    for (consumer, stands) in &copied.found.consumers {
        text += &format!(
            "  {consumer} goes on behind position {} of source {}, and sends once more what it had sent since (same ids)\n",
            stands.position, stands.source
        );
    }
    for (consumer, stands) in &copied.found.elsewhere {
        text += &format!(
            "  {consumer} has its checkpoint in another file, which is not in this backup; when this was copied it stood at position {} of source {}. \
             With the restored file it halts until you choose: `outboxd position set {consumer} {}` sends once more what came since; `head` leaves it out\n",
            stands.position, stands.source, stands.position
        );
    }
    text + &format!(
        "  To use it: stop the application and outboxd, move {} and its -wal and -shm away, move this file there, start both\n",
        copied.path.display()
    )
}

fn choose(backups: &Backups, at: Option<&str>) -> anyhow::Result<Entry> {
    let until = match at {
        None => i64::MAX,
        Some(text) => clock::parse_micros(text).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("{text:?} is no time"), "write it as 2026-11-21T03:00:00Z")
        })?,
    };
    let mut entries = backups.entries().map_err(refused)?;
    entries.retain(|entry| entry.time <= until && entry.manifest.is_ok());
    entries.pop().ok_or_else(|| {
        let reason = match at {
            None => "there is no backup".to_owned(),
            Some(at) => format!("there is no backup that was begun by {at}"),
        };
        Failure::new(Exit::Data, reason, "`outboxd backup list` shows those that there are").into()
    })
}

/// The jobs that make backups, or the one that is named.
fn jobs<'a>(loaded: &'a Loaded, job: Option<&str>) -> anyhow::Result<Vec<(&'a str, &'a Backups)>> {
    let all = loaded.config.jobs.iter().filter_map(|job| Some((job.name.as_str(), job.job.backups()?)));
    let found: Vec<_> = all.clone().filter(|(name, _)| job.is_none_or(|job| *name == job)).collect();
    if found.is_empty() {
        let names: Vec<&str> = all.map(|(name, _)| name).collect();
        let (reason, remedy) = match (job, names.is_empty()) {
            (_, true) => {
                ("no job makes backups".to_owned(), "write a section [jobs.X] with type = \"backup\"".to_owned())
            }
            (job, false) => {
                let job = job.unwrap_or_default();
                (format!("there is no job {job:?} that makes backups"), format!("there is {}", names.join(", ")))
            }
        };
        return Err(Failure::new(Exit::Usage, reason, remedy).into());
    }
    Ok(found)
}

fn only<'a>(loaded: &'a Loaded, job: Option<&str>) -> anyhow::Result<(&'a str, &'a Backups)> {
    let found = jobs(loaded, job)?;
    match found.as_slice() {
        [one] => Ok(*one),
        many => {
            let names: Vec<&str> = many.iter().map(|(name, _)| *name).collect();
            let reason = "several jobs make backups";
            Err(Failure::new(Exit::Usage, reason, format!("name one of {}", names.join(", "))).into())
        }
    }
}

fn refused(failure: maintenance::Failure) -> anyhow::Error {
    let refusal = Refusal::from(failure);
    let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
    Failure { exit, reason: refusal.error, remedy: None }.into()
}
