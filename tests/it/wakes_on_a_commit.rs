//! A commit wakes the reader: by a change notice at once, and by the poll where notices cannot be had.

use std::time::{Duration, Instant};

use crate::support::fleet::Read;

use crate::support::daemon::{Daemon, lines, one_relay};
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived, until};

const COMMITS: usize = 100;

/// The poll alone would find a commit after tens of milliseconds: it is at 40 to 160 ms after such pauses.
const WITH_NOTICES_MOST: Duration = Duration::from_millis(20);

async fn measure(name: &str, synchronous: &str) {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    application.pragma_update(None, "synchronous", synchronous).unwrap();
    let far_side = FarSide::default();
    let relays = Relays::one(fleet::source("log", &database, Read::Events), fleet::fake(&far_side));
    relays.reaches("r", |status| status.sink_up).await;
    let mut committed = Vec::new();
    for n in 1..=COMMITS {
        tokio::time::sleep(Duration::from_millis(30 + (n as u64 * 7919) % 270)).await;
        eventsource::append(&application, n);
        committed.push(Instant::now());
    }
    let arrivals = arrived(&far_side, COMMITS).await;
    let mut delays: Vec<Duration> =
        arrivals.iter().zip(&committed).map(|(arrival, at)| arrival.at.saturating_duration_since(*at)).collect();
    delays.sort();
    let (p50, p99) = (delays[COMMITS / 2], delays[COMMITS * 99 / 100]);
    println!("commit to arrival, {name}, synchronous={synchronous}, barrier included: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < WITH_NOTICES_MOST, "no notice woke the reader: p50 is {p50:?}");
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_once_by_a_change_notice() {
    measure("from idle", "NORMAL").await;
}

/// The notice comes when the file is written, and the commit is there only after its sync.
#[tokio::test(flavor = "multi_thread")]
async fn at_once_when_the_application_syncs_its_commits() {
    measure("from idle", "FULL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_poll_where_there_are_no_change_notices() {
    let folder = tempfile::tempdir().unwrap();
    let application = eventsource::make(&folder.path().join("app.db"), "g4");
    let no_notices = ["-e", "trace=inotify_init1,inotify_add_watch", "-e", "inject=inotify_init1:error=EMFILE"];
    let mut daemon = Daemon::traced(folder.path(), &one_relay("app.db", "events"), &no_notices);
    daemon.start();
    for n in 1..=5 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        eventsource::append(&application, n);
        until("the poll finds it", || match lines(&folder.path().join("out.ndjson")).len() {
            seen if seen == n => Ok(()),
            seen => Err(format!("{seen} of {n}; {}", daemon.log())),
        })
        .await;
    }
    let trace = daemon.trace();
    assert!(trace.contains("EMFILE") && !trace.contains("inotify_add_watch("), "notices could be had: {trace}");
}
