//! `[jobs.X]` with `type = "integrity"`: its keys, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use super::{Check, Integrity as Job, On};
use crate::maintenance::keys::{self, job_section};
use crate::maintenance::schedule::Times;
use crate::maintenance::{Settings, Sources, registry};
use crate::setting::key::Fallback::{Required, Value};
use crate::setting::problem::KeyPath;
use crate::setting::value::{FilePath, Span};
use crate::setting::{Checker, Nanos};
use crate::sqlite::place;

const DAY: Duration = Duration::from_hours(24);
const WEEK: Duration = Duration::from_hours(7 * 24);
const READ_MAX: Span = Span(Duration::from_secs(10));
const READ_LEAST: Span = Span(Duration::from_millis(10));
const READ_MOST: Span = Span(Duration::from_hours(1));

job_section! {
    /// Whether an application's file is sound. It is looked at in a copy; a backup of the file (`type = "backup"`) whose run went well since the last time opened and checked one
    /// already, and counts. Not said when: once a day, `check = "full"` once a week.
    Integrity, "[jobs.<name>] with type = \"integrity\"" {
        /// A source of the file.
        source: String, Required, r#""shop""#;
        /// `"quick"` (`PRAGMA quick_check`), or `"full"` (`integrity_check`: also whether indexes say what their tables say).
        check: String, Value(r#""quick""#), r#""full""#;
        /// `"copy"`: a copy beside the file, made and removed by the run. `"live"`: the file itself, table by table, each in a read transaction of its own.
        on: String, Value(r#""copy""#), r#""live""#;
        /// For `on = "live"`: a table that takes longer is not checked, and the run fails. So long the `-wal` may grow.
        read_max: Span, Value(r#""10s""#), r#""1m""#;
    }
}

impl registry::Keys for Integrity {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["jobs", name, part]);
        let checks = [("quick", Check::Quick), ("full", Check::Full)];
        let check = checker.choose_or(&key("check"), self.check.as_ref(), &checks, Check::Quick);
        let usual = if check == Check::Quick { DAY } else { WEEK };
        let schedule = self.timing().resolve(name, Some(usual), checker);
        let read_max = self.read_max.unwrap_or(READ_MAX);
        checker.within(&key("read_max"), Nanos(read_max), Nanos(READ_LEAST), Nanos(READ_MOST));
        let on = checker.choose_or(
            &key("on"),
            self.on.as_ref(),
            &[("copy", On::Copy), ("live", On::Live(read_max.0))],
            On::Copy,
        );
        if on == On::Copy && self.read_max.is_some() {
            checker.refuse(key("read_max"), "only on = \"live\" asks for this", "leave it out");
        }
        let source = keys::source(name, self.source.as_ref(), sources, checker)?;
        let is_of = |path: &&String| place::is_same(&checker.path(&FilePath((*path).clone())), &source.path);
        let backups = sources.backups.iter().filter(|(_, files)| files.iter().any(|path| is_of(&path)));
        let schedule = schedule?;
        let period = match &schedule.times {
            Times::Every(every) => *every,
            Times::Cron { .. } | Times::ByHand => usual,
        };
        let backups = backups.map(|(backup, _)| backup.clone()).collect();
        let job = Job { source: source.clone(), on, check, backups, period };
        Some(Settings { name: name.to_owned(), kind: "integrity", schedule, home: source, job: Arc::new(job) })
    }
}
