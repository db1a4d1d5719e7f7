//! `outboxd demo`.

use std::path::{Path, PathBuf};

use super::{Context, Exit, Failure, terminal};
use crate::demo::{self, Summary};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after so many events, instead of at Ctrl-C
    #[arg(long, value_name = "COUNT")]
    pub events: Option<u64>,
    /// Events that the application writes each second [default: 200, or as fast as it can with --events]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Print nothing but what went wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// Where to put the files; it must be empty or not there [default: a new folder here, outboxd-demo]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let folder = folder(args.folder.as_deref())?;
    let rate = args.rate.unwrap_or(if args.events.is_some() { 1_000_000 } else { 200 });
    if !args.quiet {
        terminal::print(&format!(
            "An application writes orders into {0}/shop.db, each with its event in one transaction;\n\
             a relay carries the events to {0}/events.ndjson.{1}\n\n",
            folder.display(),
            if args.events.is_none() { " Ctrl-C ends it." } else { "" },
        ))?;
    }
    let options =
        demo::Options { folder: folder.clone(), events: args.events, quiet: args.quiet || context.json, rate };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let summary = runtime.block_on(demo::run(options))?;
    if context.json {
        terminal::print_json(&serde_json::json!({
            "written": summary.written, "delivered": summary.delivered, "missing": summary.missing,
            "repeated": summary.repeated, "out_of_order": summary.out_of_order, "unknown": summary.unknown,
            "folder": folder,
        }))?;
    } else if !args.quiet {
        terminal::print(&told(&summary, &folder))?;
    }
    if summary.is_whole() {
        return Ok(Exit::Ok);
    }
    let reason = format!(
        "the files differ: {} missing, {} repeated, {} out of order, {} unknown",
        summary.missing, summary.repeated, summary.out_of_order, summary.unknown
    );
    Err(Failure::new(Exit::Data, reason, format!("this is a bug: keep {} and report it", folder.display())).into())
}

fn told(summary: &Summary, folder: &Path) -> String {
    format!(
        "\nCounted from both files: {} events written, {} delivered, {} missing, {} repeated, {} out of order per key.\n\n\
         Look at what was delivered:   tail -n 3 {folder}/events.ndjson\n\
         What the relay remembers:     {program} position show -c {folder}/outboxd.toml\n\
         Carry on as a daemon:         {program} run -c {folder}/outboxd.toml\n\
         ... and, in another terminal: {program} status -c {folder}/outboxd.toml\n\
         Write an event yourself:      sqlite3 {folder}/shop.db \"INSERT INTO outbox (stream_id, type, payload) VALUES ('me', 'Hello', '{{}}')\"\n",
        summary.written,
        summary.delivered,
        summary.missing,
        summary.repeated,
        summary.out_of_order,
        folder = folder.display(),
        program = program(),
    )
}

/// How this program is called from here.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "outboxd".to_owned() };
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(&path).display().to_string()
}

/// The folder that was named, or a new one here.
fn folder(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let is_free = |path: &Path| match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    match named {
        Some(path) if is_free(path) => Ok(path.to_owned()),
        Some(path) => {
            Err(Failure::new(Exit::CannotCreate, format!("{} is not empty", path.display()), "name another folder"))
        }
        None => Ok((1..)
            .map(|n| if n == 1 { "outboxd-demo".into() } else { PathBuf::from(format!("outboxd-demo-{n}")) })
            .find(|path| is_free(path))
            .expect("some number is free")),
    }
}
