//! `outboxd backup` and `outboxd restore`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Context, Exit, Failure, in_place, job, terminal};
use crate::admin::answer::Refusal;
use crate::clock;
use crate::config::Loaded;
use crate::controls;
use crate::maintenance::backup::manifest::{Copied, Manifest};
use crate::maintenance::backup::{Backups, Entry, Everywhere, Lies, look_at_file, restore};
use crate::maintenance::{self, Stop};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a backup now: the same as `job run`
    Now {
        /// The job's name, where there are several
        #[arg(value_name = "JOB")]
        job: Option<String>,
    },
    /// List the backups, and where each lies: in the job's folder (here), at its target (there), or both
    ///
    /// Exit code 69 where a target cannot be asked; what lies here is listed all the same.
    List {
        /// Of this job alone
        #[arg(value_name = "JOB")]
        job: Option<String>,
    },
    /// Unpack every backup, open it and look through it, or look through a database file that lies somewhere; change nothing
    ///
    /// What lies only at a target is brought here for that.
    ///
    /// Exit code 65 where one is not sound.
    Verify {
        /// A job, the name of a backup, or a database file that nobody writes
        #[arg(value_name = "JOB|BACKUP|FILE")]
        what: Option<String>,
        /// What lies at the target, also where a backup lies here as well
        #[arg(long)]
        from_target: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The job whose backups are meant, where there are several
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
    /// The newest backup that was begun by then, in ISO 8601, or the one of this name; else the newest of all
    #[arg(long, value_name = "TIME|BACKUP")]
    pub at: Option<String>,
    /// This file of the backup alone, by its name
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Where it goes: a new file, or a folder where there are several [default: beside the original, with .restored behind its name]
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Bring it from the target, also where it lies here
    #[arg(long)]
    pub from_target: bool,
    /// In place: the file that stands there is kept under another name. Only when no process has it open
    #[arg(long, conflicts_with = "to")]
    pub force: bool,
    /// Set consumers that are ahead of the restored file to where they stood when the backup was made; alone, no file is restored
    #[arg(long, conflicts_with_all = ["to", "file"])]
    pub reset_positions: bool,
}

pub fn execute(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    match command {
        Command::Now { job } => {
            let loaded = context.load()?;
            let (name, _) = only(&loaded, job.as_deref())?;
            job::run(name, context)
        }
        Command::List { job } => list(job.as_deref(), context),
        Command::Verify { what, from_target } => verify(what.as_deref(), *from_target, context),
    }
}

fn list(job: Option<&str>, context: &Context) -> anyhow::Result<Exit> {
    let loaded = context.load()?;
    let (mut all, mut unseen) = (Vec::new(), Vec::new());
    for (name, backups) in jobs(&loaded, job)? {
        let everywhere = backups.everywhere(&Stop::default()).map_err(refused)?;
        all.extend(everywhere.entries.into_iter().map(|entry| (name, entry)));
        unseen.extend(everywhere.unseen);
    }
    if context.json {
        let shown: Vec<Value> = all.iter().map(|(job, entry)| shown(job, entry)).collect();
        let unseen: Vec<String> = unseen.iter().map(|failure| failure.to_string()).collect();
        terminal::print_json(&json!({ "backups": shown, "unseen": unseen }))?;
    } else {
        terminal::print(&table(&all))?;
    }
    match unseen.into_iter().next() {
        None => Ok(Exit::Ok),
        Some(failure) => Err(refused(failure)),
    }
}

fn table(all: &[(&str, Entry)]) -> String {
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|(_, entry)| match &entry.manifest {
            Ok(manifest) => {
                let place = place(entry.lies).to_owned();
                let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
                let size = manifest.compressed_bytes().to_string();
                let bytes = manifest.bytes().to_string();
                vec![entry.name.clone(), "verified".to_owned(), place, size, bytes, names.join(" ")]
            }
            Err(what) => {
                let none = || "-".to_owned();
                let place = place(entry.lies).to_owned();
                vec![entry.name.clone(), "no backup".to_owned(), place, none(), none(), what.clone()]
            }
        })
        .collect();
    terminal::table(&["BACKUP", "STATE", "LIES", "BYTES", "UNPACKED", "FILES"], &rows)
}

fn place(lies: Lies) -> &'static str {
    match lies {
        Lies::Here => "here",
        Lies::There => "there",
        Lies::Both => "both",
    }
}

fn shown(job: &str, entry: &Entry) -> Value {
    json!({
        "job": job,
        "name": entry.name,
        "time": clock::iso(entry.time),
        "lies": place(entry.lies),
        "manifest": entry.manifest.as_ref().ok(),
        "wrong": entry.manifest.as_ref().err(),
    })
}

fn verify(what: Option<&str>, from_target: bool, context: &Context) -> anyhow::Result<Exit> {
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
        let entries = seen(backups)?;
        let is_meant = |entry: &&Entry| {
            let is_named = is_job || Some(entry.name.as_str()) == what;
            is_named && (!from_target || entry.lies != Lies::Here)
        };
        for entry in entries.iter().filter(is_meant) {
            let stop = Stop::default();
            let at_hand = backups.at_hand(entry, from_target, &stop);
            let result = at_hand.and_then(|at_hand| backups.look_through(&at_hand.entry, &stop));
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
    if args.force || args.reset_positions {
        return in_place::execute(args, context);
    }
    let loaded = context.load()?;
    let (_, backups) = only(&loaded, args.job.as_deref())?;
    let entry = choose(backups, args.at.as_deref(), args.from_target)?;
    let manifest = entry.manifest.as_ref().map_err(|what| refused(maintenance::Failure::Data(what.clone())))?;
    let wanted = wanted(args, &entry, manifest)?;
    if wanted.len() > 1 && args.to.as_ref().is_some_and(|to| !to.is_dir()) {
        let reason = format!("{} holds {} files, and --to is no folder", entry.name, wanted.len());
        return Err(Failure::new(Exit::Usage, reason, "name a folder, or one of the files with --file").into());
    }
    let mut restored = Vec::new();
    let at_hand = backups.at_hand(&entry, args.from_target, &Stop::default()).map_err(refused)?;
    for copied in wanted {
        let to = match &args.to {
            Some(to) if to.is_dir() => to.join(&copied.name),
            Some(to) => to.clone(),
            None => copied.path.with_file_name(format!("{}.restored", copied.name)),
        };
        restore::restore(&at_hand.entry, copied, &to, &Stop::default()).map_err(refused)?;
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

/// The files of a backup that are asked for, in its order.
pub fn wanted<'a>(args: &RestoreArgs, entry: &Entry, manifest: &'a Manifest) -> anyhow::Result<Vec<&'a Copied>> {
    let wanted: Vec<&Copied> =
        manifest.files.iter().filter(|file| args.file.as_ref().is_none_or(|name| *name == file.name)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
        let reason = format!("{} holds no file {:?}", entry.name, args.file.as_deref().unwrap_or_default());
        return Err(Failure::new(Exit::Usage, reason, format!("it holds {}", names.join(", "))).into());
    }
    Ok(wanted)
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

pub fn choose(backups: &Backups, at: Option<&str>, from_target: bool) -> anyhow::Result<Entry> {
    let mut entries = seen(backups)?;
    entries.retain(|entry| entry.manifest.is_ok() && (!from_target || entry.lies != Lies::Here));
    if let Some(named) = entries.iter().rposition(|entry| Some(&*entry.name) == at) {
        return Ok(entries.swap_remove(named));
    }
    let until = match at {
        None => i64::MAX,
        Some(text) => clock::parse_micros(text).ok_or_else(|| {
            let reason = format!("{text:?} is no time, and no backup has this name");
            Failure::new(
                Exit::Usage,
                reason,
                "write it as 2026-11-21T03:00:00Z, or take a name of `outboxd backup list`",
            )
        })?,
    };
    entries.retain(|entry| entry.time <= until);
    entries.pop().ok_or_else(|| {
        let reason = match at {
            None => "there is no backup".to_owned(),
            Some(at) => format!("there is no backup that was begun by {at}"),
        };
        Failure::new(Exit::Data, reason, "`outboxd backup list` shows those that there are").into()
    })
}

/// What there is; where a target cannot be asked, that is said, and what lies here is taken.
fn seen(backups: &Backups) -> anyhow::Result<Vec<Entry>> {
    let Everywhere { entries, unseen } = backups.everywhere(&Stop::default()).map_err(refused)?;
    if let Some(failure) = unseen {
        if entries.is_empty() {
            return Err(refused(failure));
        }
        eprintln!("outboxd: what lies at the target is not seen: {failure}");
    }
    Ok(entries)
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

pub fn only<'a>(loaded: &'a Loaded, job: Option<&str>) -> anyhow::Result<(&'a str, &'a Backups)> {
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

pub fn refused(failure: maintenance::Failure) -> anyhow::Error {
    let refusal = Refusal::from(failure);
    let exit = Exit::of_code(u64::from(refusal.exit)).unwrap_or(Exit::Unavailable);
    Failure { exit, reason: refusal.error, remedy: None }.into()
}
