//! `type = "drill"`: takes a backup that is stored, from its target where it has one, and unpacks, opens and counts it as a restore would. A backup
//! that nobody has ever taken back is a hope.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::backup::{Backups, Entry, Lies};
use super::keys::job_section;
use super::registry::{self, Sources};
use super::schedule::{Schedule, Times};
use super::{Context, Failure, Job, Report, Settings};
use crate::clock;
use crate::controls::{self, Seam};
use crate::setting::Checker;
use crate::setting::key::Fallback::Required;
use crate::setting::problem::{KeyPath, nearest};
use crate::telemetry::metric;

/// Where nothing is said.
const EVERY: Duration = Duration::from_hours(7 * 24);

job_section! {
    /// Takes the newest backup back, from the target where it lies there, into a folder for a while, and looks through it as a restore would: hashes, integrity,
    /// foreign keys, rows, checkpoints. Every week, if nothing else is said. A backup job that no drill names has one of its own, `<job>_drill`.
    Keys, "[jobs.<name>] with type = \"drill\"" {
        /// The name of the backup job.
        backup: String, Required, r#""nightly""#;
    }
}

/// What a section of this type comes to, and the drill that a backup job has by itself.
#[derive(Debug)]
struct Drill {
    name: String,
    /// The job that makes the backups.
    of: Arc<dyn Job>,
}

impl registry::Keys for Keys {
    fn resolve(&self, _: &str, _: &Sources<'_>, _: &mut Checker<'_>) -> Option<Settings> {
        None
    }

    fn resolve_upon(&self, name: &str, jobs: &[Settings], checker: &mut Checker<'_>) -> Option<Settings> {
        let schedule = self.timing().resolve(name, Some(EVERY), checker);
        let key = KeyPath::of(["jobs", name, "backup"]);
        let said = checker.require(&key, self.backup.as_ref())?;
        let makers = || jobs.iter().filter(|job| job.job.backups().is_some());
        let Some(of) = makers().find(|job| job.name == said) else {
            // What is wrong elsewhere may be why.
            if checker.problems.is_empty() {
                let remedy = match nearest(&said, makers().map(|job| job.name.as_str())) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => "write a section [jobs.X] with type = \"backup\", and its name here".to_owned(),
                };
                checker.refuse(key, format!("there is no job {said:?} that makes backups"), remedy);
            }
            return None;
        };
        Some(settings(name, of, schedule?))
    }

    fn drills(&self) -> Option<&str> {
        self.backup.as_deref()
    }
}

fn settings(name: &str, of: &Settings, schedule: Schedule) -> Settings {
    let job = Arc::new(Drill { name: name.to_owned(), of: of.job.clone() });
    Settings { name: name.to_owned(), kind: "drill", schedule, home: of.home.clone(), job }
}

/// The jobs with their drills: those that are said, and one for each backup job that none names.
pub fn with_drills(
    said: &BTreeMap<String, Option<Box<dyn registry::Keys>>>,
    jobs: Vec<Settings>,
    checker: &mut Checker<'_>,
) -> Vec<Settings> {
    let mut drills: Vec<Settings> =
        said.iter().filter_map(|(name, keys)| keys.as_ref()?.resolve_upon(name, &jobs, checker)).collect();
    let is_named = |job: &str| said.values().flatten().any(|keys| keys.drills() == Some(job));
    for job in jobs.iter().filter(|job| job.job.backups().is_some_and(|backups| backups.is_drilled)) {
        let name = format!("{}_drill", job.name);
        match is_named(&job.name) {
            true => {}
            false if said.contains_key(&name) => {
                let reason = format!("the drill of {} has this name", job.name);
                checker.refuse(KeyPath::of(["jobs", &name]), reason, "choose another, or say drill = false there");
            }
            false => drills.push(settings(&name, job, Schedule::new(&name, Times::Every(EVERY), Duration::ZERO))),
        }
    }
    let mut all: Vec<Settings> = jobs.into_iter().chain(drills).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

impl Drill {
    fn backups(&self) -> &Backups {
        self.of.backups().expect("the config has looked")
    }

    /// The newest, at the target where there is one.
    fn choose(&self, context: &Context) -> Result<Entry, Failure> {
        let everywhere = self.backups().everywhere(context.stop())?;
        if let Some(failure) = everywhere.unseen {
            return Err(failure);
        }
        let mut entries = everywhere.entries;
        entries.retain(|entry| entry.manifest.is_ok());
        let is_there = |entry: &Entry| entry.lies != Lies::Here;
        let newest = entries.iter().rposition(is_there).or(entries.len().checked_sub(1));
        newest.map(|at| entries.swap_remove(at)).ok_or_else(|| {
            Failure::Data(
                "there is no backup that could be taken back. Remedy: `outboxd backup now`, and see why there was none"
                    .into(),
            )
        })
    }
}

impl Job for Drill {
    /// It takes turns with the backups, one of which might be removed under it.
    fn files(&self) -> Vec<PathBuf> {
        self.of.files()
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let entry = self.choose(context)?;
        let is_there = entry.lies != Lies::Here;
        let at_hand = self.backups().at_hand(&entry, is_there, context.stop())?;
        self.backups().look_through(&at_hand.entry, context.stop())?;
        controls::reach(Seam::Drill);
        let manifest = entry.manifest.as_ref().map_err(|what| Failure::Data(what.clone()))?;
        let rows: u64 = manifest.files.iter().flat_map(|file| file.found.tables.values()).sum();
        let place =
            self.backups().target_url().filter(|_| is_there).map_or(String::new(), |url| format!(" from {url}"));
        metric::drilled(&self.name, clock::now_micros());
        Ok(Report(format!(
            "{} was taken{place}, unpacked, opened and checked: {} files, {} bytes, {rows} rows",
            entry.name,
            manifest.files.len(),
            manifest.bytes()
        )))
    }

    fn announce(&self, success: Option<i64>) {
        metric::drilled(&self.name, success.unwrap_or(0));
    }
}
