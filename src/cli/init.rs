//! `outboxd init`.

use std::path::PathBuf;

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The application's SQLite file; it is made when it is not there
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Make nothing; print what would be made
    #[arg(long)]
    pub dry_run: bool,
}

pub fn execute(_args: &Args, _context: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`init` is not built into this version yet")
}
