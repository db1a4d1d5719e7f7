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
             a relay carries the events to {0}/events.ndjson, and a projection folds\n\
             them into a table of customers in {0}/shop-read.db.{1}\n\n",
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
            "customers": summary.customers, "customers_wrong": summary.customers_wrong, "folder": folder,
        }))?;
    } else if !args.quiet {
        terminal::print(&told(&summary, &folder))?;
    }
    if summary.is_whole() {
        return Ok(Exit::Ok);
    }
    let reason = format!(
        "the files differ: {} missing, {} repeated, {} out of order, {} unknown; {} customers wrong",
        summary.missing, summary.repeated, summary.out_of_order, summary.unknown, summary.customers_wrong
    );
    Err(Failure::new(Exit::Data, reason, format!("this is a bug: keep {} and report it", folder.display())).into())
}

fn told(summary: &Summary, folder: &Path) -> String {
    let (folder, program) = (folder.display(), program());
    let config = format!("-c {folder}/outboxd.toml");
    format!(
        "\nCounted from all three files: {} events written, {} delivered, {} missing, {} repeated, {} out of order per key;\n\
         the table has {} customers, {} of them other than the application's own orders say.\n\n\
         Look at what was delivered:   tail -n 3 {folder}/events.ndjson\n\
         Look at the log:              {program} events tail shop_events --after 0 --count 3 {config}\n\
         Is the table what they say:   {program} verify customers {config}\n\
         Carry on as a daemon:         {program} run {config}\n\
         ... and, in another terminal: {program} status {config}\n\
         Write an event yourself:      echo '{example}' | {program} events append shop_events --outbox {config}\n",
        summary.written,
        summary.delivered,
        summary.missing,
        summary.repeated,
        summary.out_of_order,
        summary.customers,
        summary.customers_wrong,
        example = EXAMPLE,
    )
}

const EXAMPLE: &str =
    r#"{"stream_id": "order-mine", "stream_type": "Order", "type": "OrderPlaced", "data": {"customer": "me"}}"#;

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
