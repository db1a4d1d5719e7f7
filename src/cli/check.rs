//! `outboxd check`.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Look at the configuration and the files only; connect to no broker
    #[arg(long)]
    pub offline: bool,
}

pub fn execute(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let _loaded = context.load()?;
    anyhow::bail!("`check` is not built into this version yet")
}
