//! `outboxd reload`.

use serde::Deserialize;
use serde_json::Value;

use super::control_client::{self, Answer, Request};
use super::{Context, Exit, Failure, configuration, terminal};

/// Let the running daemon read its configuration anew, and restart what changed.
///
/// The new configuration is checked first, and taken whole or not at all: a consumer whose section, source, sink, secrets and
/// certificates stayed the same goes on undisturbed; a changed one drains as at a stop and starts again from its checkpoint.
/// A run of a job that changed is aborted.
/// `daemon.admin`, `daemon.control` and `daemon.log_format` want a restart. SIGHUP does the same.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {}

/// What the daemon did.
#[derive(Debug, Deserialize)]
struct Done {
    started: Vec<String>,
    stopped: Vec<String>,
    restarted: Vec<Restarted>,
    unchanged: Vec<String>,
    jobs: Jobs,
    daemon: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Jobs {
    started: Vec<String>,
    restarted: Vec<String>,
    stopped: Vec<String>,
    unchanged: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Restarted {
    consumer: String,
    changed: Vec<String>,
}

pub fn execute(_args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let file = configuration::find(context.config.as_deref())?;
    // The daemon is asked also when the configuration is wrong: its environment and its rights decide, and its metrics show it.
    let socket = configuration::control_of(&file);
    let answer = match control_client::ask(&socket, &Request::Reload)? {
        Answer::Given(answer) => answer,
        Answer::NotRunning => {
            configuration::load(&file)?;
            let reason = format!("no daemon listens on {}: there is nothing to reload", socket.display());
            let remedy = "start it with `outboxd run`; if `daemon.control` was changed, restart the one that runs";
            return Err(Failure::new(Exit::Unavailable, reason, remedy).into());
        }
    };
    match context.json {
        true => terminal::print_json(&answer)?,
        false => terminal::print(&told(answer)?)?,
    }
    Ok(Exit::Ok)
}

fn told(answer: Value) -> anyhow::Result<String> {
    let done: Done = serde_json::from_value(answer)?;
    let mut text = String::new();
    let mut say = |word: &str, name: &str, more: &str| text.push_str(&format!("{word:<10} {name}{more}\n"));
    done.started.iter().for_each(|name| say("started", name, ""));
    for Restarted { consumer, changed } in &done.restarted {
        say("restarted", consumer, &format!("  (changed: {})", changed.join(", ")));
    }
    for name in &done.stopped {
        say("stopped", name, &format!("  (its checkpoint stays; `outboxd consumer forget {name}` removes it)"));
    }
    done.jobs.started.iter().for_each(|name| say("started", &format!("job {name}"), ""));
    done.jobs.restarted.iter().for_each(|name| say("restarted", &format!("job {name}"), ""));
    done.jobs.stopped.iter().for_each(|name| say("stopped", &format!("job {name}"), ""));
    done.daemon.iter().for_each(|key| say("changed", &format!("daemon.{key}"), ""));
    if text.is_empty() {
        return Ok("nothing changed\n".to_owned());
    }
    for (word, count) in [("consumer", done.unchanged.len()), ("job", done.jobs.unchanged.len())] {
        text.push_str(&match count {
            0 => String::new(),
            1 => format!("1 {word} went on undisturbed\n"),
            count => format!("{count} {word}s went on undisturbed\n"),
        });
    }
    Ok(text)
}
