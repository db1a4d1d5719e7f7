//! G4: what was read is made durable before it is sent; a barrier that fails stops its source for good, and no other.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::fleet::Read;

use crate::support::daemon::{Daemon, lines, one_relay, relay};
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived, until};
use crate::support::wait::throughout;

/// What a trace shows, in order.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A sync of the application's `-wal` has come back well.
    Barrier,
    /// A line of the sink's file was begun to be written.
    Sent(usize),
}

/// Reads `strace -f -y`: a call that is interrupted by another thread's stands on two lines.
fn steps(trace: &str) -> Vec<Step> {
    let mut syncing: HashMap<&str, bool> = HashMap::new();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if call.starts_with("fdatasync(") {
            let ours = call.contains("app.db-wal>");
            if call.contains("<unfinished") {
                syncing.insert(thread, ours);
            } else if ours && call.ends_with("= 0") {
                steps.push(Step::Barrier);
            }
        } else if call.starts_with("<... fdatasync resumed")
            && syncing.remove(thread) == Some(true)
            && call.ends_with("= 0")
        {
            steps.push(Step::Barrier);
        } else if call.contains("out.ndjson>, ") && call.contains("write") {
            for part in call.split(r#"{\"n\": "#).skip(1) {
                steps.push(Step::Sent(part.split('}').next().unwrap().parse().unwrap()));
            }
        }
    }
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn for_every_commit_that_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let application = eventsource::make(&folder.path().join("app.db"), "g4");
    application.execute_batch("PRAGMA synchronous = OFF").unwrap();
    let arguments = ["-s", "4096", "-e", "trace=openat,fdatasync,write,writev,pwrite64,pwritev"];
    let mut daemon = Daemon::traced(folder.path(), &one_relay("app.db", "events"), &arguments);
    daemon.start();
    let out = folder.path().join("out.ndjson");
    for n in 1..=20 {
        eventsource::append(&application, n);
        until("it is sent", || match lines(&out).len() {
            seen if seen == n => Ok(()),
            seen => Err(format!("{seen} of {n}; {}", daemon.log())),
        })
        .await;
    }
    throughout("nothing changes, and nothing is synced", Duration::from_secs(1), || steps(&daemon.trace()).len() <= 40);
    daemon.kill();
    let trace = daemon.trace();
    // An error that another's sync met is told to a descriptor that was open by then, and to none that is opened later.
    let opened = trace.lines().filter(|line| line.contains("app.db-wal\", O_RDONLY")).count();
    assert_eq!(opened, 1, "the -wal stays open for the barrier");
    let steps = steps(&trace);
    for n in 1..=20 {
        let sent = steps.iter().position(|step| *step == Step::Sent(n)).unwrap_or_else(|| panic!("{n} in {steps:?}"));
        let before = steps[..sent].iter().filter(|step| **step == Step::Barrier).count();
        assert_eq!(before, n, "one barrier for each snapshot, before its event is sent: {steps:?}");
    }
    assert_eq!(steps.len(), 40, "and none without need: {steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn and_where_it_fails_nothing_more_is_sent_from_that_source() {
    let folder = tempfile::tempdir().unwrap();
    let (bad, good) = (folder.path().join("bad.db"), folder.path().join("good.db"));
    let (bad, good) = (eventsource::make(&bad, "g4"), eventsource::make(&good, "g4"));
    let config =
        [relay("bad", "bad.db", "events", "bad.ndjson"), relay("good", "good.db", "events", "good.ndjson")].concat();
    let wal = folder.path().join("bad.db-wal").display().to_string();
    // The second barrier fails, and a third would succeed.
    let arguments = ["-P", &wal, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2"];
    let mut daemon = Daemon::traced(folder.path(), &config, &arguments);
    daemon.start();
    let sent = |name: &str| lines(&folder.path().join(name)).len();
    let reaches = async |name: &str, count: usize| {
        until(
            "lines",
            || if sent(name) == count { Ok(()) } else { Err(format!("{} of {count} in {name}", sent(name))) },
        )
        .await;
    };
    eventsource::append(&bad, 1);
    eventsource::append(&good, 1);
    reaches("bad.ndjson", 1).await;
    eventsource::append(&bad, 2);
    until("it halts", || if daemon.log().contains("cannot be made durable") { Ok(()) } else { Err(daemon.log()) })
        .await;
    eventsource::append(&bad, 3);
    for n in 2..=20 {
        eventsource::append(&good, n);
    }
    reaches("good.ndjson", 20).await;
    // A person's word does not mend a disk.
    let resumed = std::process::Command::new(env!("CARGO_BIN_EXE_outboxd"))
        .args(["-c", "outboxd.toml", "resume", "bad"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    println!("resume: {}", String::from_utf8_lossy(&resumed.stdout));
    throughout("nothing that may not be durable is sent", Duration::from_secs(1), || sent("bad.ndjson") == 1);
    assert!(daemon.trace().contains("EIO"), "the fault was not injected");
    assert_eq!(daemon.trace().matches("fdatasync").count(), 2, "the sync was not tried again: {}", daemon.trace());
}

/// Size, time of change and content.
fn facts(path: &Path) -> (u64, SystemTime, Vec<u8>) {
    let meta = std::fs::metadata(path).unwrap();
    (meta.len(), meta.modified().unwrap(), std::fs::read(path).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn and_an_applications_file_that_is_read_by_checkpoint_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let wal = folder.path().join("app.db-wal");
    let application = eventsource::make(&database, "g4");
    (1..=100).for_each(|n| eventsource::append(&application, n));
    let before = (facts(&database), facts(&wal));
    for _ in 0..2 {
        let far_side = FarSide::default();
        let relays = Relays::one(fleet::source("log", &database, Read::Events), fleet::fake(&far_side));
        if far_side.arrivals().is_empty() && !folder.path().join("app.db-outboxd.db").exists() {
            arrived(&far_side, 100).await;
        }
        relays.reaches("r", |status| status.sink_up && status.position == 100).await;
        relays.stop().await;
    }
    assert!((facts(&database), facts(&wal)) == before, "the application's file or its -wal was written");
    eventsource::append(&application, 101);
    assert_eq!(application.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
}

/// SQLite keeps the `-wal` beside the file that a symbolic link leads to.
#[tokio::test(flavor = "multi_thread")]
async fn also_behind_a_symbolic_link() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let application = eventsource::make(&folder.path().join("data/app.db"), "g4");
    std::os::unix::fs::symlink("data/app.db", folder.path().join("link.db")).unwrap();
    let arguments = ["-e", "trace=fdatasync"];
    let mut daemon = Daemon::traced(folder.path(), &one_relay("link.db", "events"), &arguments);
    daemon.start();
    eventsource::append(&application, 1);
    until(
        "it is sent",
        || if lines(&folder.path().join("out.ndjson")).len() == 1 { Ok(()) } else { Err(daemon.log()) },
    )
    .await;
    daemon.kill();
    assert!(daemon.trace().contains("data/app.db-wal>"), "no barrier: {}", daemon.trace());
}
