//! `[jobs.X]` with `type = "backup"`: its keys, and what follows from them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;

use super::calendar::Policy;
use super::shelf::Shelf;
use super::target::{self, S3, Said, Target};
use super::{Backups, Database};
use crate::maintenance::keys::job_section;
use crate::maintenance::schedule::Times;
use crate::maintenance::{Settings, Sources, registry};
use crate::setting::Checker;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{FilePath, List, Size, Span};
use crate::sqlite::place;

/// Of a tier, more are not kept.
const KEPT_MAX: u64 = 10_000;
const USUAL: Policy = Policy { daily: 7, weekly: 4, monthly: 12, yearly: 0 };

job_section! {
    /// Copies database files into a folder while they are written, opens and checks each copy, counts its rows, and only then calls it a
    /// backup. Older ones are removed by the calendar, after a run that went well. docs/BACKUP.md tells what stands where.
    Backup, "[jobs.<name>] with type = \"backup\"" {
        /// The database files. Those of consumers (read models, state beside a source) are copied before those of sources, whatever their order here.
        files: List, Required, r#"["shop.db", "shop.db-outboxd.db"]"#;
        /// The folder that backups are made in and stand in, one folder each. It belongs to outboxd's user, and nobody else may write it; it is
        /// made when it is not there.
        folder: FilePath, Absent("`target`, where that is a folder"), r#""/var/backups/shop""#;
        /// Without `folder`: the folder. Beside it: where each backup is sent when it stands there, off this host: `file://` (a mounted folder) or `s3://`.
        /// Nothing that is there is overwritten, and one that cannot be reached keeps no backup from being made. One target for one job of one host.
        target: String, Absent("backups stand in `folder` alone"), r#""s3://bucket/shop""#;
        /// How an `s3://` target is reached.
        s3: S3, Absent("needed by `s3://`"), r#"{ endpoint = "https://s3.example.net", access_key_id = "key", secret_access_key_file = "s3.key" }"#;
        /// What is larger goes to the target in pieces of this size. A piece is held in memory, and is not sent twice.
        target_piece: Size, Value(r#""16MiB""#), r#""64MiB""#;
        /// How long one request to the target may take, with its repetitions; the bound on a piece.
        target_timeout: Span, Value(r#""60s""#), r#""5m""#;
        /// Takes the newest backup back every week to see that it can be restored, where no job of `type = "drill"` does.
        drill: bool, Value("true"), "false";
        /// Which backups stay. What is not said here is none; the newest always stays.
        keep: Keep, Value("{ daily = 7, weekly = 4, monthly = 12 }"), "{ daily = 14, monthly = 24 }";
    }
}

section! {
    /// Of how many days, weeks, months and years the newest backup stays, by the calendar of `time_zone`. Only those that have a backup are counted.
    Keep, "keep" {
        /// Days.
        daily: u64, Value("0"), "7";
        /// Weeks, which begin on Monday.
        weekly: u64, Value("0"), "4";
        /// Months.
        monthly: u64, Value("0"), "12";
        /// Years.
        yearly: u64, Value("0"), "3";
    }
}

impl registry::Keys for Backup {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let schedule = self.timing().resolve(name, None, checker);
        let files = self.databases(&key("files"), sources, checker);
        let places = self.places(name, checker);
        let policy = self.keep.as_ref().map_or(USUAL, |keep| policy(keep, &key("keep"), checker));
        let (schedule, files, (folder, target)) = (schedule?, files?, places?);
        let sources_of = |path: &Path| {
            let mut all = sources.resolved.values();
            all.find(|source| place::is_same(&source.path, path) || place::is_same(&source.state_path(), path))
        };
        let home = files.iter().rev().find_map(|file| sources_of(&file.path)).or(sources.resolved.values().next());
        let Some(home) = home else {
            if sources.named.is_empty() {
                let reason = "a job's runs are recorded in the state of a source, and there is none";
                checker.refuse(key("files"), reason, "write a section [sources.X] for one of these files");
            }
            return None;
        };
        let zone = match &schedule.times {
            Times::Cron { zone, .. } => *zone,
            Times::Every(_) | Times::ByHand => Tz::UTC,
        };
        let shelf = Shelf { folder, job: name.to_owned() };
        let job = Backups { files, shelf, policy, zone, target, is_drilled: self.drill.unwrap_or(true) };
        Some(Settings { name: name.to_owned(), kind: "backup", schedule, home: home.clone(), job: Arc::new(job) })
    }

    fn backed_up(&self) -> &[String] {
        self.files.as_ref().map_or(&[], |files| &files.0)
    }
}

impl Backup {
    /// Where backups stand, and where they are sent.
    fn places(&self, name: &str, checker: &mut Checker<'_>) -> Option<(PathBuf, Option<Target>)> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let Some(folder) = &self.folder else {
            let said = checker.require(&key("target"), self.target.as_ref())?;
            if said.starts_with("s3://") {
                let reason = "backups are made and checked on this host, and sent there then";
                checker.refuse(key("folder"), reason, "say where they stand here: folder = \"/var/backups/shop\"");
                return None;
            }
            let of_a_target = [
                ("s3", self.s3.is_some()),
                ("target_piece", self.target_piece.is_some()),
                ("target_timeout", self.target_timeout.is_some()),
            ];
            for (part, _) in of_a_target.iter().filter(|(_, is_said)| *is_said) {
                checker.refuse(
                    key(part),
                    "there is no target off this host",
                    "say `folder` and `target`, or leave it out",
                );
            }
            return Some((target::folder(&said, &key("target"), checker)?, None));
        };
        let folder = checker.path(folder);
        let Some(said) = &self.target else { return Some((folder, None)) };
        let said = Said { target: said, s3: self.s3.as_ref(), piece: self.target_piece, timeout: self.target_timeout };
        let target = target::resolve(name, &said, checker)?;
        if target.is_folder(&folder) {
            checker.refuse(key("target"), "this is `folder` itself", "name another, off this host, or leave it out");
            return None;
        }
        Some((folder, Some(target)))
    }

    /// Consumers' files first: no restored checkpoint is ahead of its source.
    fn databases(&self, key: &KeyPath, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Vec<Database>> {
        let said = checker.require(key, self.files.as_ref())?.0;
        if said.is_empty() {
            checker.refuse(key.clone(), "it names no file", "for example: files = [\"shop.db\"]");
            return None;
        }
        let paths: Vec<PathBuf> = said.iter().map(|path| checker.path(&FilePath(path.clone()))).collect();
        let mut names = BTreeSet::new();
        for path in &paths {
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_none() || !names.insert(name) {
                let reason =
                    format!("{} has no name of its own, by which it could stand in the backup", path.display());
                checker.refuse(key.clone(), reason, "make a job of its own for it");
                return None;
            }
        }
        let mut files: Vec<Database> = paths
            .iter()
            .map(|path| {
                let of = || sources.resolved.values().filter(|source| place::is_same(&source.path, path));
                let is_elsewhere = |state: &PathBuf| !paths.iter().any(|path| place::is_same(path, state));
                Database {
                    path: path.clone(),
                    is_source: of().next().is_some(),
                    allow_network_filesystem: of().any(|source| source.allow_network_filesystem),
                    states: of().map(|source| source.state_path()).filter(is_elsewhere).collect(),
                }
            })
            .collect();
        files.sort_by_key(|file| file.is_source);
        Some(files)
    }
}

fn policy(keep: &Keep, key: &KeyPath, checker: &mut Checker<'_>) -> Policy {
    let mut number = |name: &str, said: Option<u64>| checker.within(&key.join(name), said.unwrap_or(0), 0, KEPT_MAX);
    Policy {
        daily: number("daily", keep.daily),
        weekly: number("weekly", keep.weekly),
        monthly: number("monthly", keep.monthly),
        yearly: number("yearly", keep.yearly),
    }
}
