//! The program: hands the arguments to the command line, and ends the process as it says.

use std::process::ExitCode;

use outboxd::cli::{self, Exit};

fn main() -> ExitCode {
    // The panic's own message has been printed by then.
    std::panic::catch_unwind(|| cli::main(std::env::args_os())).unwrap_or(Exit::Bug).into()
}
