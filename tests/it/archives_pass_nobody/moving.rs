//! Events are moved, and moved back, while everybody reads from the beginning: all arrive, once and in order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use rusqlite::Connection;
use serde_json::Value;

use super::{PATIENCE, RELAY, config, log, run, told};
use crate::support::events::{Shop, TOTALS, standing};
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;

const EVENTS: i64 = 3_000;
const STREAMS: usize = 6;

/// The positions of a file's lines, in their order.
fn positions(scene: &Scene, file: &str) -> Vec<i64> {
    let text = std::fs::read_to_string(scene.path(file)).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap()).collect()
}

fn back(app: &Connection) {
    app.execute_batch(
        "BEGIN IMMEDIATE; CREATE TEMP TABLE back AS SELECT * FROM archived_events; DELETE FROM archived_events;
         INSERT INTO events SELECT * FROM back; DROP TABLE back; COMMIT",
    )
    .unwrap();
}

#[test]
fn everybody_reads_what_moves_meanwhile_once_and_in_order() {
    let _machine = shared_machine();
    let totals = TOTALS.replace("\"shop\"", "\"log\"");
    let again = "[sinks.again]\ntype = \"file\"\npath = \"again.ndjson\"\n";
    let scene = Scene::new(&config("outboxd", &[RELAY, again, &totals].concat()));
    let shop = Shop::of(&scene);
    shop.count(EVENTS as usize, STREAMS);
    let truth = shop.truth(EVENTS);
    shop.connection
        .execute_batch("INSERT INTO snapshots (stream_id, version, state, reducer_hash) SELECT stream_id, version, '{}', 'own' FROM streams")
        .unwrap();
    let before = log(&shop.connection);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", EVENTS, PATIENCE);
    daemon.until_settled("totals", EVENTS, PATIENCE);
    // A relay that the job does not know, which begins at the beginning.
    let other = "[daemon]\ncontrol = \"unix:other.sock\"\n[sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\nstate = \"other-state.db\"\n";
    let other = [other, &RELAY.replace("lines.ndjson", "other.ndjson")].concat();
    scene.write("other.toml", &other);
    let (over, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    // How much moved while something was done.
    let meanwhile = |what: &str, work: &mut dyn FnMut()| {
        let began = moved.load(SeqCst);
        loop {
            work();
            if moved.load(SeqCst) > began + EVENTS as u64 {
                break;
            }
        }
        println!("{what}: {} events moved meanwhile", moved.load(SeqCst) - began);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let app = open(&scene.path("app.db"));
            while !over.load(SeqCst) {
                let said = told(&run(&scene));
                let count: u64 = said.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                moved.fetch_add(count, SeqCst);
                back(&app);
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut from_zero = 0;
            meanwhile("a relay from the beginning", &mut || {
                let mut relay = scene.daemon_of("other.toml");
                relay.until_settled("to_lines", EVENTS, PATIENCE);
                assert_eq!(relay.stop(PATIENCE).0, Some(0));
                from_zero += 1;
                told(&scene.outboxd(&["-c", "other.toml", "position", "set", "to_lines", "first", "--yes"]));
            });
            let all: Vec<i64> = (0..from_zero).flat_map(|_| 1..=EVENTS).collect();
            assert!(positions(&scene, "other.ndjson") == all, "the relay from the beginning");
            meanwhile("rebuild", &mut || {
                told(&scene.outboxd(&["rebuild", "totals"]));
                assert!(standing(&scene.path("read.db"), "totals").0 == truth, "the rebuild");
            });
            meanwhile("verify", &mut || drop(told(&scene.outboxd(&["verify", "totals"]))));
            let mut replays = 0;
            meanwhile("replay", &mut || {
                told(&scene.outboxd(&["replay", "to_lines", "--all", "--to-sink", "again", "--yes"]));
                replays += 1;
            });
            let all: Vec<i64> = (0..replays).flat_map(|_| 1..=EVENTS).collect();
            assert!(positions(&scene, "again.ndjson") == all, "the replays");
            meanwhile("tail", &mut || {
                let lines = told(&scene.outboxd(&["events", "tail", "log", "--after", "0", "--no-follow", "--json"]));
                let found = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64());
                assert!(found.eq((1..=EVENTS).map(Some)), "the tail");
            });
            meanwhile("show", &mut || {
                let lines = told(&scene.outboxd(&["events", "show", "log", "s1", "--json"]));
                assert_eq!(lines.lines().count(), EVENTS as usize / STREAMS);
            });
        }));
        over.store(true, SeqCst);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(log(&shop.connection) == before);
    Proof::of("archive while everybody reads")
        .tried("events moved", moved.load(SeqCst))
        .found("missing, doubled or out of order", 0);
}
