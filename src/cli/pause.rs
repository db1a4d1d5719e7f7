//! `outboxd pause`.

use super::control_client::Request;
use super::{Context, Exit, terminal};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The consumer's name
    #[arg(value_name = "CONSUMER")]
    pub consumer: String,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let answer = context.ask(&Request::Pause { consumer: args.consumer.clone() })?;
    match context.json {
        true => terminal::print_json(&answer)?,
        false => terminal::print(&format!("{} is paused\n", terminal::visible(&args.consumer)))?,
    }
    Ok(Exit::Ok)
}
