//! The main jobs: an application writes, a relay carries, a projection folds, and all the files are counted.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outboxd::demo;

use crate::support::rig;
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_delivers_every_event_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let options = demo::Options { folder: folder.path().join("demo"), events: Some(5_000), quiet: true, rate: 100_000 };
    let summary = demo::run(options).await.unwrap();
    assert_eq!((summary.written, summary.delivered, summary.customers), (5_000, 5_000, 50));
    assert!(summary.is_whole(), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_sees_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo");
    demo::run(demo::Options { folder: path.clone(), events: Some(1_000), quiet: true, rate: 100_000 }).await.unwrap();
    let file = path.join("events.ndjson");
    let lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    // The orders of the first round are shipped in the second: line 0 and line 200 are of one order.
    let mut doctored = lines.clone();
    doctored.swap(0, 200);
    doctored.remove(5);
    doctored.push(lines[6].clone());
    std::fs::write(&file, doctored.join("\n") + "\n").unwrap();
    // One customer more than there are, one less, and one with a wrong count.
    let sql = "DELETE FROM customers WHERE name = 'customer-1'; UPDATE customers SET placed = placed + 1 WHERE name = 'customer-2'; INSERT INTO customers VALUES ('x', 1, 1)";
    rig::open(&path.join("shop-read.db")).execute_batch(sql).unwrap();
    let summary = demo::count(&path).await.unwrap();
    assert_eq!((summary.missing, summary.repeated, summary.out_of_order), (1, 1, 1), "{summary:?}");
    assert_eq!((summary.customers, summary.customers_wrong), (50, 2), "{summary:?}");
}

/// What it says in the end that one may try does what it says.
#[test]
fn what_the_demo_proposes_works() {
    let folder = tempfile::tempdir().unwrap();
    let outboxd = |script: &str| {
        let output =
            Command::new("sh").args(["-c", script]).current_dir(folder.path()).env_remove("OUTBOXD_CONFIG").output();
        let output = output.unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{script}: {printed}");
        printed
    };
    let told = outboxd(&format!("{} demo --events 1000 --folder shop", env!("CARGO_BIN_EXE_outboxd")));
    assert!(told.contains("1000 events written, 1000 delivered, 0 missing, 0 repeated, 0 out of order"), "{told}");
    assert!(told.contains("50 customers, 0 of them other"), "{told}");
    let proposal = |what: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(what))
            .unwrap_or_else(|| panic!("{what} is not in {told}"))
            .trim()
            .to_owned()
    };
    assert_eq!(outboxd(&proposal("Look at what was delivered:")).lines().count(), 3);
    assert_eq!(outboxd(&proposal("Look at the log:")).lines().count(), 3);
    assert!(outboxd(&proposal("Is the table what they say:")).contains("up to position 1000 comes to the same"));
    assert_eq!(outboxd(&proposal("Write an event yourself:")), "order-mine: version 1\n");
    let run = proposal("Carry on as a daemon:");
    let mut carried_on = Command::new("sh");
    carried_on.args(["-c", &format!("exec {run}")]).current_dir(folder.path()).stderr(Stdio::null());
    let _daemon = Killed(carried_on.spawn().unwrap());
    let read_model = rig::open(&folder.path().join("shop/shop-read.db"));
    until("the daemon folds the event", Duration::from_secs(30), || {
        let sql = "SELECT 1 FROM customers WHERE name = 'me' AND placed = 1";
        read_model.query_row(sql, [], |_| Ok(())).ok()
    });
    let status = outboxd(&proposal("... and, in another terminal:"));
    assert!(status.contains("shop_to_file") && status.contains("customers"), "{status}");
}

/// A process that ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
