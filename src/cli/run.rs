//! `outboxd run`.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn execute(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let _loaded = context.load()?;
    anyhow::bail!("`run` is not built into this version yet")
}
