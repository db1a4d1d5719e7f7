//! What commands do on the files themselves, while no daemon runs.

use serde_json::Value;

use super::control_client::Request;
use super::{Exit, Failure};
use crate::config::Loaded;

/// Answers a request as the daemon would, in the same shapes.
pub fn answer(loaded: &Loaded, _request: &Request) -> anyhow::Result<Value> {
    let socket = loaded.config.daemon.control.display();
    let remedy = format!("start it with `outboxd run -c {}`", loaded.file.display());
    Err(Failure::new(Exit::Unavailable, format!("the daemon does not run: nobody listens at {socket}"), remedy).into())
}
