//! `outboxd run`.

use super::{Context, Exit, Failure};
use crate::config::{Config, LogFormat};
use crate::controls;
use crate::daemon;
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn execute(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    controls::obey_environment();
    let loaded = context.load()?;
    let level = start_logging(&loaded.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(daemon::run(loaded, level));
    // What still runs (a probe of a broker that does not answer) must not keep the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(Exit::Ok),
        Err(daemon::Error::Locked(locked)) => {
            Err(Failure { exit: Exit::Locked, reason: locked.0, remedy: None }.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn start_logging(config: &Config) -> anyhow::Result<logs::Level> {
    let format = match config.daemon.log_format {
        LogFormat::Json => logs::Format::Json,
        // By default too: people and journald read it alike.
        LogFormat::Logfmt | LogFormat::Auto => logs::Format::Logfmt,
    };
    logs::install(format, &config.daemon.log_level).map_err(|error| {
        Failure::new(Exit::Config, error, "set daemon.log_level to error, warn, info, debug or trace").into()
    })
}
