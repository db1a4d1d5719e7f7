//! The configuration: read, checked, resolved.
//!
//! Layers (the file, `conf.d/*.toml`, the environment) become raw sections (`file`), and these become settings (`resolve`).
//!
//! Invariants:
//! 1. A configuration is taken whole or not at all: one error, and nothing of it leaves this room.
//! 2. All errors are told at once, each with file and line or variable, key, reason and remedy (`tests/it/config_errors.rs`).
//! 3. An unknown key is an error; so is a key whose feature is not in this version or build.
//! 4. No secret is printed: not by `Debug`, `config show`, or an error (`tests/it/config_secrets.rs`).
//! 5. docs/CONFIG.md is generated from the structs that serde fills (`tests/it/config_reference.rs`).
//!
//! This room opens no database and no connection; what a file or a broker would show is learnt later. It is the only one
//! that reads the environment. Start reading at [`load`].

mod file;
mod key;
mod layers;
pub mod preset;
mod problem;
mod read;
pub mod reference;
mod resolve;
mod secret;
mod show;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use problem::{Error, KeyPath, Origin, Problem};
pub use show::{Line, Shown};
pub use value::{Size, Span};

pub use crate::consumer::engine::WhenLocked;
use crate::{consumer, source};
use layers::Layers;

/// Where the file is looked for when nobody names one.
pub const USUAL_PLACES: [&str; 2] = ["outboxd.toml", "/etc/outboxd/outboxd.toml"];

/// Everything that the daemon needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub daemon: Daemon,
    pub sources: BTreeMap<String, source::Settings>,
    pub relays: Vec<consumer::Settings>,
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
#[derive(Clone, Debug)]
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

/// Reads the file and what stands beside it, under the given environment.
pub fn load_with(file: &Path, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Loaded, Error> {
    let (layers, mut problems) = Layers::read(file, variables);
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

/// A path by which the same file is known, also before it is there.
fn same_file(path: &Path) -> PathBuf {
    let canonical = path.canonicalize().ok();
    let by_folder = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    canonical.or_else(by_folder).unwrap_or_else(|| path.to_owned())
}
