//! `outboxd demo`.

use std::path::PathBuf;

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after so many events, instead of at Ctrl-C
    #[arg(long, value_name = "COUNT")]
    pub events: Option<u64>,
    /// Orders that are placed each second
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    pub rate: u64,
    /// Print the result only
    #[arg(short, long)]
    pub quiet: bool,
    /// Where to put the files; it must be empty or not there [default: a new folder among the temporary ones]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

pub fn execute(_args: &Args, _context: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`demo` is not built into this version yet")
}
