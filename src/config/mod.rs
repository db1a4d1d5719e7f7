//! The configuration: read, checked, resolved.
//!
//! Layers (the file, `conf.d/*.toml`, the environment) become raw sections (`file`), and these become settings (`resolve`).
//!
//! Invariants:
//! 1. A configuration is taken whole or not at all: one error, and nothing of it leaves this room.
//! 2. All errors are told at once, each with file and line or variable, key, reason and remedy (`tests/it/config_errors.rs`).
//! 3. An unknown key is an error; so is a key whose feature is not in this version or build.
//! 4. No secret is printed: not by `Debug`, `config show`, or an error (`tests/it/config_secrets.rs`).
//! 5. What is replaced while it is read is taken as it was or as it is (`a_config_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one`).
//! 6. docs/CONFIG.md is generated from the structs that serde fills (`tests/it/config_reference.rs`).
//!
//! This room opens no database and no connection; what a file or a broker would show is learnt later. It is the only one
//! that reads the environment. Start reading at [`load`].

mod file;
mod layers;
pub mod preset;
mod read;
pub mod reference;
mod resolve;
mod show;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::setting::problem::{Error, KeyPath, Origin, Problem};
pub use crate::setting::value::{Size, Span};
pub use show::{Line, Shown};

pub use crate::consumer::engine::WhenLocked;
use crate::{consumer, maintenance, sink, source};
use layers::Layers;

/// How often a configuration that changes while it is read is read again.
const READINGS_MAX: u32 = 20;
const READING_PAUSE: Duration = Duration::from_millis(20);

/// Where the file is looked for when nobody names one.
pub const USUAL_PLACES: [&str; 2] = ["outboxd.toml", "/etc/outboxd/outboxd.toml"];

/// Everything that the daemon needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub daemon: Daemon,
    pub sources: BTreeMap<String, source::Settings>,
    pub sinks: BTreeMap<String, sink::Settings>,
    pub relays: Vec<consumer::Settings>,
    pub projections: Vec<consumer::Settings>,
    pub jobs: Vec<maintenance::Settings>,
}

impl Config {
    /// Relays and projections.
    pub fn consumers(&self) -> impl Iterator<Item = &consumer::Settings> {
        self.relays.iter().chain(&self.projections)
    }

    pub fn consumer(&self, name: &str) -> Option<&consumer::Settings> {
        self.consumers().find(|consumer| consumer.name == name)
    }
}

/// A resolved `[daemon]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Always loopback. `None` = not served.
    pub admin: Option<SocketAddr>,
    /// The path of the control socket.
    pub control: PathBuf,
    pub drain_timeout: Duration,
    pub when_locked: WhenLocked,
    pub log_format: LogFormat,
    /// A level or directives, which an `EnvFilter` takes.
    pub log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Logfmt,
    Json,
}

/// A configuration that was taken, and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// The main file.
    pub file: PathBuf,
    /// Every key in force, with where it came from; secrets are hidden.
    pub shown: Shown,
}

/// Reads the file, what stands beside it, and this process's environment.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn load(file: &Path) -> Result<Loaded, Error> {
    load_with(file, std::env::vars_os())
}

/// Reads the file and what stands beside it, under the given environment: again and again until two readings say the same, so that
/// files which are replaced meanwhile are taken as they were or as they are, not half and half.
pub fn load_with(file: &Path, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Loaded, Error> {
    let variables: Vec<_> = variables.into_iter().collect();
    for _ in 0..READINGS_MAX {
        let loaded = read_once(file, &variables);
        // A pipe can be read only once.
        let is_pipe = std::fs::metadata(file).is_ok_and(|metadata| !metadata.is_file());
        if is_pipe || read_once(file, &variables) == loaded {
            return loaded;
        }
        std::thread::sleep(READING_PAUSE);
    }
    Err(Error::new(vec![Problem {
        origin: Origin::File { path: file.to_owned(), line: None },
        key: KeyPath::default(),
        reason: "this file, or one beside it or named in it, changes again and again while it is read".to_owned(),
        remedy: Some("try again when it is written; replace files by renaming a new one into their place".to_owned()),
    }]))
}

fn read_once(file: &Path, variables: &[(OsString, OsString)]) -> Result<Loaded, Error> {
    let (layers, mut problems) = Layers::read(file, variables.iter().cloned());
    // What a file with a fault would have said is not known: complaints about the rest would mislead.
    if !problems.is_empty() {
        return Err(Error::new(problems));
    }
    let raw = read::sections(&layers, &mut problems);
    let config = resolve::resolve(&raw, &layers, &mut problems);
    match problems.is_empty() {
        true => Ok(Loaded { config, file: file.to_owned(), shown: show::shown(&layers) }),
        false => Err(Error::new(problems)),
    }
}

/// Where the daemon of a configuration listens for commands, as far as that can be told: the rest of it may be wrong.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn control_of(file: &Path) -> PathBuf {
    match load(file) {
        Ok(loaded) => loaded.config.daemon.control,
        Err(_) => resolve::control_of(&Layers::read(file, std::env::vars_os()).0),
    }
}

impl Loaded {
    /// Refuses what a running daemon cannot take over from this configuration.
    pub fn refuse_what_stays(&self, running: &Daemon) -> Result<(), Error> {
        let new = &self.config.daemon;
        let stays = [
            ("admin", new.admin != running.admin),
            ("control", new.control != running.control),
            ("log_format", new.log_format != running.log_format),
        ];
        let problem = |name: &str| {
            let key = KeyPath::of(["daemon", name]);
            let line = self.shown.lines.iter().find(|line| line.path == key);
            Problem {
                origin: line.map_or(Origin::File { path: self.file.clone(), line: None }, |line| line.origin.clone()),
                key,
                reason: "this cannot be changed while the daemon runs".to_owned(),
                remedy: Some("restart the daemon, or put the value back that it runs with".to_owned()),
            }
        };
        let problems: Vec<_> = stays.iter().filter(|(_, differs)| *differs).map(|(name, _)| problem(name)).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::new(problems)) }
    }
}

/// The file that was named, or the first of the usual places that is there.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        let [first, second] = USUAL_PLACES;
        Error::new(vec![Problem {
            origin: Origin::File { path: first.into(), line: None },
            key: KeyPath::default(),
            reason: format!("there is no such file, nor is there {second}"),
            remedy: Some("name one with -c FILE or OUTBOXD_CONFIG, or make one with `outboxd init`".to_owned()),
        }])
    })
}
