//! `outboxd completions`.

use clap::CommandFactory;

use super::{Cli, Exit, terminal};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

pub fn execute(args: &Args) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "outboxd", &mut script);
    terminal::print(&String::from_utf8(script)?)?;
    Ok(Exit::Ok)
}
