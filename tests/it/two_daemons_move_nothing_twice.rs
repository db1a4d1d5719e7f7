//! Two daemons on one file, as processes: the second waits for as long as the first lives, even when it is stopped in the middle; and
//! where the lock was taken away by hand, the checkpoint still moves for one of them only.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::application::Application;
use crate::support::dice::Dice;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{file, relay};
use crate::support::wait::{throughout, until};

/// A scene for two; the second writes to a file of its own, because the sink's file has a lock too.
fn scene() -> Scene {
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let second = [SHOP, &file("lines"), &relay("lines", "")].concat();
    let second =
        second.replace("[daemon]", "[daemon]\ncontrol = \"unix:second.sock\"").replace("lines.ndjson", "second.ndjson");
    scene.write("second.toml", &second);
    scene
}

fn signal(daemon: &Daemon, signal: Signal) {
    kill_process(Pid::from_raw(daemon.pid() as i32).unwrap(), signal).unwrap();
}

fn lock_files(scene: &Scene) -> Vec<PathBuf> {
    let folder = scene.path("");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.to_string_lossy().ends_with("-outboxd.lock")).collect()
}

fn position(state: &Path) -> i64 {
    let state = Connection::open(state).unwrap();
    state.busy_timeout(Duration::from_secs(5)).unwrap();
    state.query_row("SELECT position FROM outboxd_checkpoint", [], |row| row.get(0)).unwrap()
}

#[test]
fn the_second_waits_while_the_first_is_stopped_and_takes_over_at_once_when_it_is_killed() {
    let _machine = shared_machine();
    let mut slowest = Duration::ZERO;
    for is_stopped in [false, true] {
        let scene = scene();
        let mut application = Application::open(&scene.path("app.db"), 5);
        let mut first = scene.daemon();
        application.write(100);
        first.until_settled("to_lines", application.head(), Duration::from_secs(20));
        let mut second = scene.daemon_of("second.toml");
        second.until_state("to_lines", "waiting", Duration::from_secs(10));
        if is_stopped {
            signal(&first, Signal::STOP);
        }
        throughout("the second waits while the first lives", Duration::from_secs(3), || {
            application.write(10);
            second.status("to_lines").is_some_and(|status| status["state"] == "waiting")
        });
        let began = Instant::now();
        first.kill();
        second.until_state("to_lines", "running", Duration::from_secs(10));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        slowest = slowest.max(took);
        second.until_settled("to_lines", application.head(), Duration::from_secs(20));
        let mut arrivals = readers::lines(&scene.path("lines.ndjson"));
        arrivals.extend(readers::lines(&scene.path("second.ndjson")));
        let judgement = judge(&application.ledger, &[], &arrivals);
        assert!(judgement.is_clean(), "{}", judgement.summary());
    }
    Proof::of("two daemons, the first running or stopped and then killed")
        .tried("takeovers", 2)
        .found("lost, out of order", 0)
        .found("slowest takeover", format!("{} ms", slowest.as_millis()));
}

#[test]
fn a_lock_file_deleted_by_hand_lets_nobody_move_the_checkpoint_twice() {
    let _machine = shared_machine();
    for is_stopped in [false, true] {
        let scene = scene();
        let state = scene.path("app.db-outboxd.db");
        let mut application = Application::open(&scene.path("app.db"), 20);
        let mut first = scene.daemon();
        application.write(500);
        first.until_settled("to_lines", application.head(), Duration::from_secs(20));
        if is_stopped {
            signal(&first, Signal::STOP);
        }
        let locks = lock_files(&scene);
        assert!(!locks.is_empty());
        locks.iter().for_each(|lock| std::fs::remove_file(lock).unwrap());
        let flow = application.flow(6_000, 2_000.0, Dice::of(7));
        let mut second = scene.daemon_of("second.toml");
        if is_stopped {
            // It comes to itself when the other has long gone on.
            second.until("to_lines", "further", Duration::from_secs(20), |status| {
                status["position"].as_i64() > Some(600)
            });
            signal(&first, Signal::CONT);
        }
        let is_halted = |daemon: &Daemon| {
            daemon
                .status("to_lines")
                .filter(|status| status["state"] == "halted")
                .map(|status| status["detail"].to_string())
        };
        let mut furthest = 0;
        let detail =
            until("one of them is halted, and the checkpoint never goes back", Duration::from_secs(30), || {
                let now = position(&state);
                assert!(now >= furthest, "from {furthest} back to {now}");
                furthest = now;
                is_halted(&first).or_else(|| is_halted(&second))
            });
        assert!(detail.contains("somebody else moved it") && detail.contains("Remedy"), "{detail}");
        let application = flow.join().unwrap();
        let (winner, loser) = if is_halted(&first).is_some() { (&mut second, &first) } else { (&mut first, &second) };
        assert!(!is_stopped || is_halted(loser).is_some());
        winner.until_settled("to_lines", application.head(), Duration::from_secs(30));
        assert!(is_halted(winner).is_none() && is_halted(loser).is_some(), "one goes on, one is halted");
        assert_eq!(position(&state), application.head());
        // Each sent in order; what both sent came twice.
        let [one, other] = ["lines.ndjson", "second.ndjson"].map(|name| readers::lines(&scene.path(name)));
        let both = judge(&application.ledger, &[], &[one, other].concat());
        assert!(both.lost.is_empty() && both.phantom.is_empty(), "{}", both.summary());
    }
    Proof::of("two daemons without a lock")
        .tried("lock files deleted under a daemon", 2)
        .found("lost", 0)
        .found("checkpoint moved back or by both", 0);
}
