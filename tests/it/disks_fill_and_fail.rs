//! Disks that are full, fail or are slow: nothing is lost, nothing half-written counts, at most the window is sent beyond what is recorded,
//! and it goes on by itself, except where a failed sync leaves nothing to trust.
//!
//! `OUTBOXD_TEST_DISK_EVENTS`: how many events stand there when a disk is full (default 3000). Small disks need root, or `sudo` without
//! a password; errors and delays are injected by strace.

use std::path::Path;
use std::time::Duration;

use crate::support::application::Application;
use crate::support::dice::number;
use crate::support::disk::SmallDisk;
use crate::support::process::{Daemon, Scene};
use crate::support::proof::Proof;
use crate::support::readers::lines;
use crate::support::referee::judge;
use crate::support::wait::{throughout, until};

const WINDOW: i64 = 200;
const PATIENCE: Duration = Duration::from_secs(60);

fn events() -> usize {
    number("OUTBOXD_TEST_DISK_EVENTS").unwrap_or(3000) as usize
}

/// One relay from `database` to `out`, with a small window.
fn config(database: &Path, state: &str, out: &Path) -> String {
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\ndrain_timeout = \"3s\"\n\n\
         [sources.shop]\npath = \"{}\"\npreset = \"outboxd\"\nread = \"outbox\"\nstate = \"{state}\"\n\n\
         [sinks.out]\ntype = \"file\"\npath = \"{}\"\n\n\
         [relays.to_out]\nsource = \"shop\"\nsink = \"out\"\nstart = \"first\"\nwindow_events = {WINDOW}\n",
        database.display(),
        out.display(),
    )
}

/// A folder, with the application's file at `database`.
fn scene(database: &Path, state: &str, out: &Path) -> Scene {
    let scene = Scene::without_a_file(&config(database, state, out));
    let made = scene.outboxd(&["init", database.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    scene
}

/// The same with everything in the folder.
fn plain_scene() -> Scene {
    let scene = Scene::without_a_file("");
    scene.configure(&config(&scene.path("app.db"), "beside", &scene.path("out.ndjson")));
    scene.init();
    scene
}

fn small_disk(proof: Proof, kilobytes: u32) -> Option<(Proof, SmallDisk)> {
    match SmallDisk::new(kilobytes) {
        Ok(disk) => Some((proof, disk)),
        Err(why) => {
            proof.not_run(&format!("file systems cannot be mounted here: {why}"));
            None
        }
    }
}

fn position(daemon: &Daemon) -> i64 {
    daemon.status("to_out").and_then(|status| status["position"].as_i64()).unwrap_or(0)
}

/// The newest position that has been sent. Ids count from `event-0`, positions from 1.
fn sent(out: &Path) -> i64 {
    whole_lines(out).iter().map(|id| id["event-".len()..].parse::<i64>().unwrap() + 1).max().unwrap_or(0)
}

/// The ids of the lines that have ended; each is whole.
fn whole_lines(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out).unwrap_or_default();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    whole.lines().map(id).collect()
}

/// Everything has arrived, in order, and nothing was given up. Says how many came twice.
fn all_is_well(proof: Proof, application: &Application, daemon: &mut Daemon, out: &Path) -> (Proof, usize) {
    daemon.until_settled("to_out", application.head(), PATIENCE);
    assert_eq!(daemon.dead_letters().len(), 0, "a disk dead-letters nothing");
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    let judgement = judge(&application.ledger, &[], &lines(out));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    let proof = proof
        .tried("events", application.ledger.len() as u64)
        .found("lost", judgement.lost.len())
        .found("out of order", judgement.out_of_order.len())
        .found("duplicates", judgement.duplicates);
    (proof, judgement.duplicates)
}

#[test]
fn a_full_disk_under_the_application_costs_only_what_it_cannot_commit() {
    let Some((proof, disk)) = small_disk(Proof::of("disk full: the source's"), 4096) else { return };
    let folder = Scene::without_a_file("");
    let (database, out) = (disk.path("app.db"), folder.path("out.ndjson"));
    let scene = scene(&database, folder.path("state.db").to_str().unwrap(), &out);
    let mut application = Application::open(&database, 20);
    application.write(500);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_out", application.head(), PATIENCE);
    disk.fill();
    let other = rusqlite::Connection::open(&database).unwrap();
    let refused = other.execute_batch("CREATE TABLE junk AS SELECT randomblob(8000000) AS x").unwrap_err();
    assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
    throughout("it runs", Duration::from_secs(2), || daemon.status("to_out").unwrap()["state"] == "running");
    disk.free();
    application.write(500);
    let (_proof, duplicates) = all_is_well(proof.tried("disks filled", 1), &application, &mut daemon, &out);
    assert_eq!(duplicates, 0);
}

/// The disk with the state is full while a backlog is there.
fn progress_cannot_be_recorded(
    proof: Proof,
    disk: &SmallDisk,
    scene: &Scene,
    database: &Path,
    out: &Path,
) -> (Proof, usize) {
    let mut application = Application::open(database, 20);
    application.write(100);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_out", application.head(), PATIENCE);
    daemon.freeze();
    // A reader, so that a `-wal` is not used from its start again.
    let pin = rusqlite::Connection::open(database).unwrap();
    pin.execute_batch("BEGIN; SELECT count(*) FROM outbox").unwrap();
    application.write(events());
    disk.fill();
    daemon.signal(rustix::process::Signal::CONT);
    let status = daemon.until_state("to_out", "waiting", PATIENCE);
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains("progress cannot be recorded") && detail.contains("SQLite code 13"), "{detail}");
    let recorded = position(&daemon);
    let mut most = 0;
    let mut stays_within_the_window = || {
        throughout("within the window", Duration::from_secs(2), || {
            most = most.max(sent(out) - recorded);
            most <= WINDOW
        });
    };
    stays_within_the_window();
    // A crash meanwhile sends the same once more, and no more than that.
    daemon.kill();
    daemon = scene.daemon();
    daemon.until_state("to_out", "waiting", PATIENCE);
    stays_within_the_window();
    // A stop ends in time, although nothing can be recorded.
    daemon.stop(Duration::from_secs(10));
    daemon = scene.daemon();
    daemon.until_state("to_out", "waiting", PATIENCE);
    stays_within_the_window();
    disk.free();
    drop(pin);
    let proof = proof
        .tried("disks filled", 1)
        .tried("kills meanwhile", 1)
        .tried("stops meanwhile", 1)
        .found("most sent beyond what is recorded", most);
    all_is_well(proof, &application, &mut daemon, out)
}

#[test]
fn a_full_disk_under_the_state_sends_no_more_than_the_window() {
    let Some((proof, disk)) = small_disk(Proof::of("disk full: the state's"), 2048) else { return };
    let folder = Scene::without_a_file("");
    let (database, out) = (folder.path("app.db"), folder.path("out.ndjson"));
    let scene = scene(&database, disk.path("state.db").to_str().unwrap(), &out);
    let (_proof, duplicates) = progress_cannot_be_recorded(proof, &disk, &scene, &database, &out);
    assert!(duplicates as i64 <= 2 * WINDOW, "a window each time that it was ended: {duplicates}");
}

#[test]
fn a_full_disk_under_the_source_with_the_state_inside_sends_no_more_than_the_window() {
    let Some((proof, disk)) = small_disk(Proof::of("disk full: the source's, state inside"), 8192) else { return };
    let folder = Scene::without_a_file("");
    let (database, out) = (disk.path("app.db"), folder.path("out.ndjson"));
    let scene = scene(&database, "inside", &out);
    let (_proof, duplicates) = progress_cannot_be_recorded(proof, &disk, &scene, &database, &out);
    assert!(duplicates as i64 <= 2 * WINDOW, "a window each time that it was ended: {duplicates}");
}

#[test]
fn a_full_disk_under_the_file_sink_counts_nothing_half_written() {
    let Some((proof, disk)) = small_disk(Proof::of("disk full: the file sink's"), 256) else { return };
    let folder = Scene::without_a_file("");
    let (database, out) = (folder.path("app.db"), disk.path("out.ndjson"));
    let scene = scene(&database, "beside", &out);
    let mut application = Application::open(&database, 20);
    application.write(events());
    let mut daemon = scene.daemon();
    let status = daemon.until_state("to_out", "unavailable", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("No space left"), "{status}");
    throughout("what counts is there, whole", Duration::from_secs(3), || {
        let position = position(&daemon);
        whole_lines(&out).len() as i64 >= position && position > 0
    });
    daemon.kill();
    daemon = scene.daemon();
    daemon.until_state("to_out", "unavailable", PATIENCE);
    disk.grow(8192);
    let proof = proof.tried("disks filled", 1).tried("kills meanwhile", 1);
    let (_proof, duplicates) = all_is_well(proof, &application, &mut daemon, &out);
    assert!(duplicates as i64 <= WINDOW, "{duplicates}");
}

/// `redirection`: where stderr goes.
fn logs_cannot_be_written(redirection: &str) {
    let scene = plain_scene();
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(100);
    let script = format!("exec \"$@\" 2> {redirection}");
    let mut daemon = scene.daemon_under("bash", &["-c", &script, "bash"]);
    daemon.until_settled("to_out", application.head(), PATIENCE);
    // What makes it say something: the sink's file is renamed away, and a stop.
    std::fs::rename(scene.path("out.ndjson"), scene.path("old.ndjson")).unwrap();
    application.write(100);
    daemon.until_settled("to_out", application.head(), PATIENCE);
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    assert_eq!(whole_lines(&scene.path("old.ndjson")).len() + whole_lines(&scene.path("out.ndjson")).len(), 200);
    // And where it cannot start, its exit code still says why.
    scene.configure("[nonsense]\n");
    let mut daemon = scene.daemon_under("bash", &["-c", &script, "bash"]);
    assert_eq!(daemon.wait(Duration::from_secs(10)).0, Some(78));
}

#[test]
fn a_full_disk_under_the_logs_stops_nobody() {
    let Some((proof, disk)) = small_disk(Proof::of("disk full: the logs'"), 64) else { return };
    disk.fill();
    let log = disk.path("log");
    logs_cannot_be_written(log.to_str().unwrap());
    assert_eq!(std::fs::metadata(log).unwrap().len(), 0, "the disk was not full");
    drop(proof.tried("disks filled", 1).tried("events", 200).found("lost", 0));
}

#[test]
fn a_closed_pipe_under_the_logs_stops_nobody() {
    logs_cannot_be_written(">(exec true)");
    drop(Proof::of("closed pipe: the logs'").tried("pipes closed", 1).tried("events", 200).found("lost", 0));
}

/// The system call fails, on that file, for these of its calls.
fn fails(what: &str, file: &str, call: &str, when: &str) {
    let scene = plain_scene();
    let mut application = Application::open(&scene.path("app.db"), 20);
    let path = scene.path(file).display().to_string();
    let inject = format!("inject={call}:error=EIO:when={when}");
    let mut daemon = scene.daemon_traced(&["-P", &path, "-e", &format!("trace={call}"), "-e", &inject]);
    for round in 1..=40 {
        application.write(25);
        daemon.until("to_out", "on its way", PATIENCE, |status| status["position"].as_i64() >= Some(25 * (round - 4)));
    }
    let out = scene.path("out.ndjson");
    let (proof, duplicates) = all_is_well(Proof::of(&format!("EIO: {what}")), &application, &mut daemon, &out);
    assert!(duplicates as i64 <= WINDOW, "{duplicates}");
    let injected = std::fs::read_to_string(scene.path("trace")).unwrap().matches("(INJECTED)").count();
    assert!(injected > 0, "nothing was injected");
    drop(proof.tried("errors", injected as u64));
}

#[test]
fn errors_of_the_states_disk_are_waited_out() {
    fails("sync of the state", "app.db-outboxd.db-wal", "fsync", "4..8");
    fails("write of the state", "app.db-outboxd.db-wal", "pwrite64", "20..30");
}

/// SQLite takes a read that fails for a damaged file, and so do we.
#[test]
fn a_source_that_cannot_be_read_halts_until_it_is_resumed() {
    let scene = plain_scene();
    let mut application = Application::open(&scene.path("app.db"), 20);
    let wal = scene.path("app.db-wal").display().to_string();
    let inject = ["-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=30..32"];
    let mut daemon = scene.daemon_traced(&[&["-P", &wal][..], &inject].concat());
    for _ in 0..40 {
        application.write(25);
        // So that each is read by itself.
        until("it is read, or cannot be", PATIENCE, || {
            let status = daemon.status("to_out")?;
            (status["state"] == "halted" || status["position"].as_i64() == Some(application.head())).then_some(())
        });
    }
    let mut halts = 0;
    let mut look = || {
        let status = daemon.status("to_out").unwrap();
        if status["state"] == "halted" {
            assert!(status["detail"].as_str().unwrap().contains("disk cannot be read"), "{status}");
            halts += 1;
            assert!(scene.outboxd(&["resume", "to_out"]).status.success());
        }
        (status["position"].as_i64() == Some(application.head())).then_some(())
    };
    until("it goes on where it was", PATIENCE, &mut look);
    assert!(halts > 0, "nothing was injected");
    let proof = Proof::of("EIO: read of the source").tried("errors", 3).found("halts", halts);
    let (_proof, duplicates) = all_is_well(proof, &application, &mut daemon, &scene.path("out.ndjson"));
    assert!(duplicates as i64 <= WINDOW, "{duplicates}");
}

#[test]
fn errors_of_the_file_sinks_disk_are_waited_out() {
    fails("write of the file sink", "out.ndjson", "write", "3..6");
}

/// Every sync takes so long.
fn slow(delay: Duration, events: usize) {
    let scene = plain_scene();
    let mut application = Application::open(&scene.path("app.db"), 20);
    application.write(events);
    let inject = format!("inject=fdatasync,fsync:delay_enter={}", delay.as_micros());
    let mut daemon = scene.daemon_traced(&["-e", "trace=fdatasync,fsync", "-e", &inject]);
    let out = scene.path("out.ndjson");
    let mut most = 0;
    daemon.until("to_out", "under way", PATIENCE, |status| status["position"].as_i64() > Some(0));
    until("all is settled", Duration::from_secs(180), || {
        let sent = sent(&out);
        most = most.max(sent - position(&daemon));
        let status = daemon.status("to_out").unwrap();
        // Who is silent for a second and a half is shown so, and loses nothing by it.
        let is_silent = status["state"] == "unavailable" && delay > Duration::from_millis(1500);
        assert!(status["state"] == "running" || is_silent, "{status}");
        assert!(most <= WINDOW, "{status} {most}");
        (position(&daemon) >= application.head()).then_some(())
    });
    let suite = format!("every sync takes {delay:?}");
    let proof = Proof::of(&suite).found("most sent beyond what is recorded", most);
    let (_proof, duplicates) = all_is_well(proof, &application, &mut daemon, &out);
    assert_eq!(duplicates, 0);
}

#[test]
fn slow_syncs_cost_time_only() {
    slow(Duration::from_millis(200), 2000);
    slow(Duration::from_secs(2), 400);
}

/// The kernel may have dropped what it could not write: a later sync that succeeds would prove nothing.
#[test]
fn a_failed_sync_of_the_file_sink_halts_it_until_a_restart() {
    let scene = plain_scene();
    let (out, other) = (scene.path("out.ndjson"), scene.path("other.ndjson"));
    let second = format!(
        "\n[sinks.other]\ntype = \"file\"\npath = \"{}\"\n\n[relays.to_other]\nsource = \"shop\"\nsink = \"other\"\nstart = \"first\"\n",
        other.display()
    );
    scene.configure(&(config(&scene.path("app.db"), "beside", &out) + &second));
    let mut application = Application::open(&scene.path("app.db"), 20);
    let arguments = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2"];
    let mut daemon = scene.daemon_traced(&[&["-P", out.to_str().unwrap()][..], &arguments].concat());
    application.write(100);
    daemon.until_settled("to_out", 100, PATIENCE);
    application.write(100);
    let status = daemon.until_state("to_out", "halted", PATIENCE);
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains("could not be made durable") && detail.contains("restart outboxd"), "{detail}");
    // Neither time nor a person's word mends a disk.
    let resumed = scene.outboxd(&["resume", "to_out"]);
    println!("resume: {}", String::from_utf8_lossy(&resumed.stdout));
    application.write(100);
    daemon.until_settled("to_other", 300, PATIENCE);
    throughout("halted, with the lines that are sure", Duration::from_secs(4), || {
        let status = daemon.status("to_out").unwrap();
        status["state"] == "halted" && status["position"] == 100 && whole_lines(&out).len() == 100
    });
    assert_eq!(
        std::fs::read_to_string(scene.path("trace")).unwrap().matches("fdatasync(").count(),
        2,
        "it was tried again"
    );
    daemon.kill();
    daemon = scene.daemon();
    let proof = Proof::of("failed sync: the file sink's").tried("failed syncs", 1);
    let (_proof, duplicates) = all_is_well(proof, &application, &mut daemon, &out);
    assert_eq!(duplicates, 0);
    assert_eq!(whole_lines(&other).len(), 300, "others go on");
}
