//! While nothing happens, nothing is written and hardly any processor time is used: by checkpoint and by row, with a job that waits.

use std::time::Duration;

use crate::support::daemon::{Daemon, lines, relay};
use crate::support::eventsource;
use crate::support::fleet::until;

const IDLE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn for_thirty_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let application = eventsource::make(&folder.path().join("app.db"), "g3");
    let config =
        [relay("log", "app.db", "events", "log.ndjson"), relay("outbox", "app.db", "outbox", "outbox.ndjson")].concat();
    let job =
        "[jobs.daily]\ntype = \"snapshot\"\nsource = \"log\"\nevery = \"1d\"\nreducers = { Thing = \"merge-patch\" }\n";
    let mut daemon = Daemon::new(folder.path(), &(config + job));
    daemon.start();
    until("both relays have caught up", || {
        let sent = ["log", "outbox"].map(|name| lines(&folder.path().join(format!("{name}.ndjson"))).len());
        let pending = eventsource::count(&application, "event_outbox WHERE status = 'pending'");
        if sent == [6, 6] && pending == 0 {
            Ok(())
        } else {
            Err(format!("{sent:?} sent, {pending} pending; {}", daemon.log()))
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let (written, ticks) = (daemon.write_bytes(), daemon.ticks());
    tokio::time::sleep(IDLE).await;
    let (written_after, used) = (daemon.write_bytes(), daemon.ticks() - ticks);
    println!("idle for {IDLE:?}: {} bytes written, {} ms of processor time", written_after - written, used * 10);
    assert_eq!(written_after, written, "nothing is written while idle");
    assert!(used * 10 <= 30, "{} ms of processor time in {IDLE:?} of idleness", used * 10);

    // It was asleep, not dead.
    eventsource::append(&application, 7);
    until("it wakes", || {
        let sent = lines(&folder.path().join("log.ndjson")).len();
        if sent == 7 { Ok(()) } else { Err(format!("{sent}")) }
    })
    .await;
}
