//! Exit codes (sysexits), and how an error finds its own.

use std::fmt;
use std::process::ExitCode;

use crate::config;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    Advice,
    Usage,
    Data,
    Unavailable,
    Bug,
    CannotCreate,
    Io,
    Locked,
    Permission,
    Config,
}

impl Exit {
    pub const ALL: [Exit; 11] = [
        Exit::Ok,
        Exit::Advice,
        Exit::Usage,
        Exit::Data,
        Exit::Unavailable,
        Exit::Bug,
        Exit::CannotCreate,
        Exit::Io,
        Exit::Locked,
        Exit::Permission,
        Exit::Config,
    ];

    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Advice => 1,
            Exit::Usage => 64,
            Exit::Data => 65,
            Exit::Unavailable => 69,
            Exit::Bug => 70,
            Exit::CannotCreate => 73,
            Exit::Io => 74,
            Exit::Locked => 75,
            Exit::Permission => 77,
            Exit::Config => 78,
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "done",
            Exit::Advice => "done, and the doctor has advice; nothing is dangerous",
            Exit::Usage => "the command line is wrong, or a question could not be asked",
            Exit::Data => "what was found in a file is not what it must be",
            Exit::Unavailable => "the daemon, a broker or a file is not there, or not healthy",
            Exit::Bug => "a bug in outboxd",
            Exit::CannotCreate => "a file cannot be made",
            Exit::Io => "reading or writing failed",
            Exit::Locked => "another daemon or command holds the file: try again later",
            Exit::Permission => "not allowed",
            Exit::Config => "the configuration is wrong",
        }
    }

    /// The exit that a daemon's answer names.
    pub fn of_code(code: u64) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| u64::from(exit.code()) == code)
    }

    /// The exit that an error stands for; what is not known is a failed command that may be tried again.
    pub fn of(error: &anyhow::Error) -> Exit {
        if let Some(failure) = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()) {
            return failure.exit;
        }
        if error.chain().any(|cause| cause.is::<config::Error>()) {
            return Exit::Config;
        }
        match error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind) {
            Some(std::io::ErrorKind::PermissionDenied) => Exit::Permission,
            Some(_) => Exit::Io,
            None => Exit::Unavailable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// A failure that knows its exit code, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub reason: String,
    pub remedy: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { exit, reason: reason.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  fix: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
