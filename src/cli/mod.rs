//! The command line: one file a command.
//!
//! Commands that concern a running daemon go through its control socket (`control_client`); when it does not run, they work on the
//! files (`offline`), which answers in the same shapes. A command returns an [`Exit`] or an error; this room prints the
//! error, once, and nothing here ends the process.

mod audit;
mod backup;
mod bar;
mod check;
mod completions;
mod config;
mod consumer;
pub mod control_client;
mod dead_letters;
mod demo;
mod doctor;
mod events;
pub mod exit;
mod health;
mod in_place;
mod init;
mod job;
mod meaning;
mod offline;
mod pause;
mod position;
mod rebuild;
pub mod reference;
mod reload;
mod replay;
mod resume;
mod run;
mod status;
pub mod terminal;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config as configuration;
use crate::config::Loaded;
use control_client::{Answer, Request};
pub use exit::{Exit, Failure};

/// Carries events out of an application's SQLite file to Kafka, RabbitMQ or a file, and loses nothing.
#[derive(Debug, Parser)]
#[command(name = "outboxd", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub context: Context,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command may be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Context {
    /// The configuration file [default: ./outboxd.toml, then /etc/outboxd/outboxd.toml]
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        env = "OUTBOXD_CONFIG",
        hide_env_values = true,
        global = true
    )]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not ask before something that cannot be undone
    #[arg(short = 'y', long, global = true)]
    pub yes: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Run(run::Args),
    /// Show it at work, with nothing to set up: an application, a relay to a file, and a projection into a table
    Demo(demo::Args),
    /// Make outboxd's tables in an application's file, and print a configuration to start from; or make a feed for a table of its own
    Init(init::Args),
    /// Tell what `run` would do, and what would keep it from doing it; change nothing
    Check(check::Args),
    /// Look for what is dangerous, or could be better, about a file and what outboxd is to do with it; change nothing
    ///
    /// With a FILE: any SQLite file, without a configuration. It tells what could be relayed there, and prints a configuration to start from.
    /// Without one: all files, secrets and sinks of the configuration. Each check says ok, advice or danger, with the evidence and
    /// the remedy; lines that begin with $ are commands that carry it out, as they stand. The exit code is that of the worst: 0, 1 for
    /// advice, 65 for a danger, 69 where only sinks are in danger, 78 for a configuration that is wrong. Run it as the user that outboxd is to run as
    Doctor(doctor::Args),
    /// Let the running daemon read its configuration anew, and restart what changed
    Reload(reload::Args),
    /// Tell how the consumers are doing
    Status(status::Args),
    /// Look at events that were rejected, and decide about them
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Stop a consumer from carrying events, also over restarts
    Pause(pause::Args),
    /// Let a paused consumer go on
    Resume(resume::Args),
    /// Look at or set how far a consumer has come
    #[command(subcommand)]
    Position(position::Command),
    /// Look at the consumers that a file knows, accept a changed one, or forget one
    #[command(subcommand)]
    Consumer(consumer::Command),
    /// Look at the jobs, or run one now
    #[command(subcommand)]
    Job(job::Command),
    /// Make, list and verify backups
    #[command(subcommand)]
    Backup(backup::Command),
    /// Take files out of a backup, to a new place or in place, and say what they mean for each consumer; overwrite nothing
    ///
    /// Each is unpacked, compared with the manifest and looked through before it appears under its name, in WAL mode, with the
    /// permissions of the original. With --force it takes the place of the file that stands there, which is kept beside it; the application and
    /// the daemon have to be stopped: a file that any process has open is not replaced, exit code 75
    Restore(backup::RestoreArgs),
    /// Send events once more that were delivered already, marked as such
    Replay(replay::Args),
    /// Tell what a rebuild of a projection would change, and which events it would meet; change nothing
    Plan(rebuild::Args),
    /// Make a projection's tables anew beside the live ones, and swap them in one transaction
    ///
    /// Goes on where it was when it was ended. Readers see the old tables or the new ones. The old ones are kept as outboxd_old_<table> until --drop.
    /// What the statements read of others (`reads`) is taken as it is now
    Rebuild(rebuild::RebuildArgs),
    /// Rebuild a projection into a scratch file and compare: exit code 65 and the rows that differ
    Verify(rebuild::Args),
    /// Compare what a relay's source holds with what its sink really holds; take and change nothing
    ///
    /// Reads Kafka's topics, the lines of a file, or a shadow queue at RabbitMQ (--queue) up to their end of now, and says what is
    /// lost, phantom, reordered or altered; duplicates are counted, and are no fault. Dead letters, what waits behind them and
    /// what is not settled yet are not missing. What cannot be known is said: rows that were deleted from the source, messages
    /// that expired, or others' messages. Only the types that the relay carries now, and the topics that its config names now,
    /// are looked at; a skipped dead letter that was retried late counts as reordered. Exit code 65 when something is wrong. It needs
    /// 64 bytes of memory an event, 64 MB for a million, 640 MB for ten million; twice that for a table read by row
    Audit(audit::Args),
    /// Append events to outboxd's own event log, and read them: for shell scripts, as JSON lines
    #[command(subcommand)]
    Events(events::Command),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Ask the running daemon whether it is healthy; for probes
    Health(health::Args),
    /// Print a script that completes commands in a shell
    Completions(completions::Args),
}

impl Context {
    /// The configuration, or all that is wrong with it.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let file = configuration::find(self.config.as_deref())?;
        Ok(configuration::load(&file)?)
    }

    /// Asks the daemon, or the files when it does not run.
    pub fn ask(&self, request: &Request) -> anyhow::Result<serde_json::Value> {
        let loaded = self.load()?;
        match control_client::ask(&loaded.config.daemon.control, request)? {
            Answer::Given(answer) => Ok(answer),
            Answer::NotRunning => offline::answer(&loaded, request),
        }
    }
}

/// Does what the arguments say, prints what went wrong, and tells how the process is to end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to be told when even this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    match execute(&cli) {
        Ok(exit) => exit,
        Err(error) => {
            // The exit code says it too where stderr cannot be written.
            let _ = writeln!(std::io::stderr(), "{}", told(&error));
            Exit::of(&error)
        }
    }
}

fn execute(cli: &Cli) -> anyhow::Result<Exit> {
    let context = &cli.context;
    match &cli.command {
        Command::Run(args) => run::execute(args, context),
        Command::Demo(args) => demo::execute(args, context),
        Command::Init(args) => init::execute(args, context),
        Command::Check(args) => check::execute(args, context),
        Command::Doctor(args) => doctor::execute(args, context),
        Command::Reload(args) => reload::execute(args, context),
        Command::Status(args) => status::execute(args, context),
        Command::DeadLetters(command) => dead_letters::execute(command, context),
        Command::Pause(args) => pause::execute(args, context),
        Command::Resume(args) => resume::execute(args, context),
        Command::Position(command) => position::execute(command, context),
        Command::Consumer(command) => consumer::execute(command, context),
        Command::Job(command) => job::execute(command, context),
        Command::Backup(command) => backup::execute(command, context),
        Command::Restore(args) => backup::restore(args, context),
        Command::Replay(args) => replay::execute(args, context),
        Command::Plan(args) => rebuild::plan(args, context),
        Command::Rebuild(args) => rebuild::execute(args, context),
        Command::Verify(args) => rebuild::verify(args, context),
        Command::Audit(args) => audit::execute(args, context),
        Command::Events(command) => events::execute(command, context),
        Command::Config(command) => config::execute(command, context),
        Command::Health(args) => health::execute(args, context),
        Command::Completions(args) => completions::execute(args),
    }
}

/// The chain of an error, for a person. What an event or a broker put into it obeys nobody's terminal.
fn told(error: &anyhow::Error) -> String {
    let text = match error.downcast_ref::<configuration::Error>() {
        Some(error) => error.to_string(),
        None => format!("error: {error:#}"),
    };
    text.lines().map(terminal::visible).collect::<Vec<_>>().join("\n")
}
