//! The file beside the read model in which tables are made anew. One maker at a time has it, and nobody else removes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Failed, copy, copy_slice, quoted, run_up_to};
use crate::consumer::status::Status;
use crate::consumer::{Destination, OnReject, Settings};
use crate::event::Position;
use crate::projection::Definition;
use crate::source;
use crate::sqlite::lockfile::{LockError, LockFile};
use crate::sqlite::writer::JobError;
use crate::sqlite::{open, place};
use crate::state::{checkpoint, held, schema_version};

/// What a scratch file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    Rebuild,
    Verify,
}

/// Held until dropped; the file stays then, so that the next one goes on with it.
#[derive(Debug)]
pub struct Scratch {
    /// The same projection, into a file of its own.
    pub settings: Settings,
    definition: Arc<Definition>,
    /// The read model.
    live: PathBuf,
    lock: LockFile,
}

impl Scratch {
    /// An error names who has it.
    pub fn claim(settings: &Settings, purpose: Purpose) -> Result<Self, LockError> {
        let live = settings.destination.tables().expect("only projections are made anew");
        let what = match purpose {
            Purpose::Rebuild => "rebuild",
            Purpose::Verify => "verify",
        };
        let mut base = place::real(&live.path).into_os_string();
        base.push(format!("-{what}-{}", live.name));
        let lock = LockFile::take(Path::new(&base))?;
        base.push(".db");
        let definition = Arc::new(Definition { path: base.into(), ..(**live).clone() });
        let mut bounds = settings.bounds;
        // What fails does so because of what stands in the event and the tables: a second attempt would fail, too.
        bounds.attempts_max = 1;
        let settings = Settings {
            destination: Destination::Tables(definition.clone()),
            bounds,
            paused: false,
            // How many are refused is told at the end.
            on_reject: if settings.on_reject == OnReject::Halt { OnReject::Hold } else { settings.on_reject },
            ..settings.clone()
        };
        Ok(Self { settings, definition, live: live.path.clone(), lock })
    }

    pub fn path(&self) -> &Path {
        &self.definition.path
    }

    /// Goes on with what an earlier maker has left where that comes to the same: it was ended on its way, by this definition. Where
    /// events were refused, or nothing is known, all is made anew.
    pub fn take_over(&self) {
        let is_whole = || -> Result<bool, JobError> {
            let (left, name) = (open::visitor(self.path())?, &self.settings.name);
            if schema_version(&left)?.is_none() {
                return Ok(false);
            }
            let is_its_own = checkpoint::section(&left, name)? == Some(self.definition.as_json());
            Ok(is_its_own && held::counts(&left, name)?.iter().sum::<u64>() == 0)
        };
        if !self.path().exists() || !is_whole().unwrap_or(false) {
            self.empty();
        }
    }

    /// Nothing is there afterwards: the file itself, and what SQLite and the lock put beside it.
    pub fn empty(&self) {
        for end in ["", "-wal", "-shm", "-outboxd.lock"] {
            // What is not there need not be removed.
            let _ = fs::remove_file(PathBuf::from(format!("{}{end}", self.path().display())));
        }
    }

    /// The last thing that its maker does.
    pub fn remove(self) {
        self.empty();
        self.lock.remove();
    }

    /// Makes the tables until all is applied, up to a position or to the end; `look` is told how far it is.
    pub async fn make(
        &self,
        source: &source::Settings,
        until: Option<Position>,
        look: &mut (dyn FnMut(&Status) + Send),
    ) -> Result<(), Failed> {
        let is_left_over = self.path().exists();
        match self.go_on(source, until, look).await {
            // It may be that it does not fit any more (another mapping, another source): then nobody could ever go on with it.
            Err(Failed::Halted(_)) if is_left_over => {
                self.empty();
                self.go_on(source, until, look).await
            }
            made => made,
        }
    }

    async fn go_on(
        &self,
        source: &source::Settings,
        until: Option<Position>,
        look: &mut (dyn FnMut(&Status) + Send),
    ) -> Result<(), Failed> {
        let (live, definition) = (self.live.clone(), self.definition.clone());
        let brought = tokio::task::spawn_blocking(move || bring_reads(&live, &definition)).await;
        let brought = brought.expect("it does not panic");
        brought.map_err(|error| Failed::Halted(format!("what it reads of others cannot be had: {error}")))?;
        run_up_to(source, &self.settings, until, look).await
    }
}

/// Brings what the statements read, as it is now, into the file in which they are going to run.
fn bring_reads(live: &Path, definition: &Definition) -> Result<(), JobError> {
    if definition.reads.is_empty() || !live.exists() {
        return Ok(());
    }
    let (from, to) = (open::visitor(live)?, open::state_file(&definition.path)?);
    to.execute_batch("BEGIN IMMEDIATE")?;
    for table in &definition.reads {
        let columns = open::columns(&from, table)?;
        if columns.is_empty() || !open::columns(&to, table)?.is_empty() {
            continue;
        }
        let typed: Vec<String> = columns.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        let strict = "SELECT EXISTS (SELECT 1 FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE AND strict)";
        let is_strict: bool = from.query_row(strict, [table], |row| row.get(0))?;
        let strict = if is_strict { " STRICT" } else { "" };
        to.execute_batch(&format!("CREATE TABLE {} ({}){strict}", quoted(table), typed.join(", ")))?;
        // Whoever writes there is not kept from checkpoints for long: each slice is a look of its own.
        let mut next = Some(i64::MIN);
        while let Some(rowid) = next {
            next = match copy_slice(&from, &to, table, rowid)? {
                Some(next) => next,
                None => {
                    copy(&from, &to, table, table)?;
                    None
                }
            };
        }
    }
    to.execute_batch("COMMIT")?;
    Ok(())
}
