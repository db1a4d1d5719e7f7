//! `outboxd doctor`.

use std::path::{Path, PathBuf};

use super::{Context, Exit, Failure, init, terminal};
use crate::config as configuration;
use crate::config::Loaded;
use crate::doctor::{self, Found, Patient, sinks};
use crate::remark::Verdict;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Any SQLite file; without it, what the configuration names
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Connect to no broker
    #[arg(long)]
    pub offline: bool,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let (found, proposal) = match &args.file {
        Some(file) => of_file(file)?,
        None => (of_configuration(context, args.offline)?, None),
    };
    let worst = found.iter().map(|found| found.remark.verdict).max().unwrap_or(Verdict::Ok);
    if context.json {
        terminal::print_json(&serde_json::json!({ "verdict": worst, "findings": found, "proposal": proposal }))?;
    } else {
        terminal::print(&text(&found, proposal.as_deref()))?;
    }
    Ok(match worst {
        Verdict::Ok => Exit::Ok,
        Verdict::Advice => Exit::Advice,
        Verdict::Danger => danger(&found),
    })
}

fn danger(found: &[Found]) -> Exit {
    let dangers = || found.iter().filter(|found| found.remark.verdict == Verdict::Danger);
    if dangers().any(|found| found.check == "configuration") {
        Exit::Config
    } else if dangers().all(|found| found.check == "sink") {
        Exit::Unavailable
    } else {
        Exit::Data
    }
}

/// A file that no configuration names, and a configuration for it.
fn of_file(file: &Path) -> anyhow::Result<(Vec<Found>, Option<String>)> {
    if let Err(error) = std::fs::metadata(file)
        && error.kind() == std::io::ErrorKind::NotFound
    {
        let reason = format!("{} is not there", file.display());
        return Err(Failure::new(Exit::Unavailable, reason, "name the application's SQLite file").into());
    }
    let report = doctor::examine(&Patient { path: file, source: None });
    // What an application means to be sent, before what it keeps.
    let first = report.readable.iter().find(|(_, read)| read == "outbox").or(report.readable.first());
    let proposal = first.map(|first| {
        let others = report.readable.iter().filter(|other| *other != first);
        let others =
            others.map(|(preset, read)| format!("# It could also be preset = \"{preset}\", read = \"{read}\".\n"));
        others.collect::<String>() + &init::proposal(file, first.0, &first.1)
    });
    Ok((report.found, proposal))
}

fn of_configuration(context: &Context, offline: bool) -> anyhow::Result<Vec<Found>> {
    let file = configuration::find(context.config.as_deref())?;
    let loaded = match configuration::load(&file) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(doctor::configuration::refused(&error)),
    };
    let mut found = doctor::configuration::taken(&loaded);
    for source in loaded.config.sources.values() {
        found.extend(doctor::examine(&Patient { path: &source.path, source: Some(source) }).found);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    found.extend(runtime.block_on(of_sinks(&loaded, offline)));
    runtime.shutdown_background();
    Ok(found)
}

async fn of_sinks(loaded: &Loaded, offline: bool) -> Vec<Found> {
    let mut found = Vec::new();
    for relay in &loaded.config.relays {
        if let Some(source) = loaded.config.sources.get(&relay.source) {
            found.extend(sinks::look(relay, source, offline).await);
        }
    }
    found
}

/// Where what a check says begins.
const MARGIN: &str = "                         ";

fn text(found: &[Found], proposal: Option<&str>) -> String {
    let mut text = String::new();
    let mut subject = "";
    for Found { check, subject: of, remark } in found {
        if subject != of {
            subject = of;
            text.push_str(&format!("{}\n", terminal::visible(of)));
        }
        let verdict = match remark.verdict {
            Verdict::Ok => "ok",
            Verdict::Advice => "advice",
            Verdict::Danger => "DANGER",
        };
        let mut lines = remark.evidence.lines().map(terminal::visible);
        text.push_str(&format!("  {verdict:6}  {check:15}{}\n", lines.next().unwrap_or_default()));
        lines.for_each(|line| text.push_str(&format!("{MARGIN}{line}\n")));
        if let Some(remedy) = &remark.remedy {
            text.push_str(&format!("          {:15}{}\n", "remedy:", terminal::visible(remedy)));
        }
        for command in &remark.commands {
            // Further lines belong to a word in quotes: they stand as they are.
            let lines: Vec<String> = command.lines().map(terminal::visible).collect();
            text.push_str(&format!("{MARGIN}$ {}\n", lines.join("\n")));
        }
    }
    let count = |verdict| found.iter().filter(|found| found.remark.verdict == verdict).count();
    let (dangers, advice, fine) = (count(Verdict::Danger), count(Verdict::Advice), count(Verdict::Ok));
    text.push_str(&format!("danger: {dangers}, advice: {advice}, ok: {fine}\n"));
    if let Some(proposal) = proposal {
        text.push_str(&format!("\n# What could be relayed here:\n{proposal}"));
    }
    text
}
