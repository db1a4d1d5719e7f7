//! A projection's tables are made anew beside the live ones, and swapped in one transaction; plans and comparisons of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::events::{EVENTS, Shop, TOTALS, standing};
use crate::support::process::{Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;

const PATIENCE: Duration = Duration::from_secs(20);

/// Counts double: another definition of the same tables.
fn double() -> String {
    [EVENTS, &TOTALS.replace("VALUES (:stream_id, 1,", "VALUES (:stream_id, 2,").replace("events + 1", "events + 2")]
        .concat()
}

fn told(scene: &Scene, arguments: &[&str], code: i32) -> String {
    let output = scene.outboxd(arguments);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn json_of(scene: &Scene, arguments: &[&str], code: i32) -> Value {
    let text = told(scene, &[arguments, &["--json"]].concat(), code);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

fn settle(scene: &Scene, shop: &Shop) {
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
}

/// As [`standing`], with what the doubling definition counts.
fn doubled(shop: &Shop, upto: i64) -> Vec<(String, i64, i64, String)> {
    shop.truth(upto).into_iter().map(|(stream, events, amount, seen)| (stream, 2 * events, amount, seen)).collect()
}

fn large(file: &Path) -> i64 {
    open(file).query_row("SELECT count(*) FROM large", [], |row| row.get(0)).unwrap()
}

/// While the daemon runs, and events keep coming: the live tables are there all the time, whole, and go on from where the new ones are.
#[test]
fn a_changed_definition_is_rebuilt_beside_the_live_tables() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(3_000, 7);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    let file = scene.path("read.db");
    // Somebody else's view keeps naming the table, not the one that it was.
    open(&file).execute_batch("CREATE VIEW theirs AS SELECT stream_id, events FROM totals").unwrap();
    scene.reconfigure(&double());
    told(&scene, &["reload"], 0);
    daemon.until_state("totals", "halted", PATIENCE);
    let plan = json_of(&scene, &["plan", "totals"], 0);
    assert_eq!(
        (&plan["changes"], &plan["events"], &plan["rows"]),
        (&json!(["on.Counted"]), &json!(3_000), &json!({ "totals": 7 }))
    );
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = open(&file);
            while !over.load(Ordering::SeqCst) {
                let rows: i64 = reader.query_row("SELECT count(*) FROM totals", [], |row| row.get(0)).unwrap();
                let viewed: i64 = reader.query_row("SELECT count(*) FROM theirs", [], |row| row.get(0)).unwrap();
                assert_eq!((rows, viewed), (7, 7));
            }
        });
        shop.count(500, 7);
        told(&scene, &["rebuild", "totals"], 0);
        over.store(true, Ordering::SeqCst);
    });
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(standing(&file, "totals"), (doubled(&shop, shop.head()), shop.head()));
    assert_eq!(large(&file), 7);
    let kept: i64 = open(&file).query_row("SELECT count(*) FROM outboxd_old_totals", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 7);
    // Another one, while it runs and new events keep coming.
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| {
            let shop = Shop::of(&scene);
            for _ in 0..200 {
                shop.count(5, 7);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        told(&scene, &["rebuild", "totals"], 0);
        flow.join().unwrap();
    });
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(standing(&file, "totals"), (doubled(&shop, shop.head()), shop.head()));
    assert!(json_of(&scene, &["plan", "totals"], 0)["changes"].as_array().unwrap().is_empty());
    assert_eq!(json_of(&scene, &["rebuild", "totals", "--drop", "--yes"], 0)["dropped"], json!(["outboxd_old_totals"]));
    let left: Vec<_> = std::fs::read_dir(scene.path(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("rebuild")), "{left:?}");
}

#[test]
fn a_projection_is_verified_against_a_rebuild() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(1_000, 7);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(json_of(&scene, &["verify", "totals"], 0)["rows"], 0);
    // What stands there now is nobody's work.
    open(&scene.path("read.db"))
        .execute_batch(
            "UPDATE totals SET amount = amount + 1 WHERE stream_id = 's3'; DELETE FROM totals WHERE stream_id = 's5'",
        )
        .unwrap();
    let found = json_of(&scene, &["verify", "totals"], 65);
    assert_eq!(found["rows"], 3, "{found}");
    let difference = &found["differences"][0];
    assert!(difference["only_live"][0].as_str().unwrap().starts_with("'s3'"), "{found}");
    assert!(difference["only_rebuilt"][1].as_str().unwrap().starts_with("'s5'"), "{found}");
    told(&scene, &["rebuild", "totals"], 0);
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
    assert_eq!(json_of(&scene, &["verify", "totals"], 0)["rows"], 0);
}

/// Where that was said, nobody has to ask for it.
#[test]
fn a_changed_definition_rebuilds_itself_where_that_was_said() {
    let _machine = shared_machine();
    let by_itself =
        |config: &str| config.replace("[projections.totals]\n", "[projections.totals]\non_change = \"rebuild\"\n");
    let scene = Scene::new(&by_itself(&[EVENTS, TOTALS].concat()));
    let shop = Shop::of(&scene);
    shop.count(500, 7);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    scene.reconfigure(&by_itself(&double()));
    shop.count(100, 7);
    told(&scene, &["reload"], 0);
    shop.count(100, 7);
    let file = scene.path("read.db");
    daemon.until("totals", "rebuilt", PATIENCE, |status| {
        status["position"].as_i64() == Some(shop.head()) && standing(&file, "totals").0 == doubled(&shop, shop.head())
    });
    // One that refuses events leaves the live tables, and says so.
    let refusing = double().replace("amount INTEGER NOT NULL", "amount INTEGER NOT NULL CHECK (amount < 100)");
    scene.reconfigure(&by_itself(&refusing));
    told(&scene, &["reload"], 0);
    let status = daemon.until_state("totals", "halted", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("could not be made anew"), "{status}");
    assert_eq!(standing(&file, "totals").0, doubled(&shop, shop.head()));
}

/// Where events are refused, the live tables stay, unless that is wanted.
#[test]
fn a_rebuild_that_refuses_events_is_not_swapped_in_unasked() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(100, 7);
    settle(&scene, &shop);
    scene.reconfigure(
        &[EVENTS, &TOTALS.replace("amount INTEGER NOT NULL", "amount INTEGER NOT NULL CHECK (amount < 400)")].concat(),
    );
    let text = told(&scene, &["rebuild", "totals"], 65);
    assert!(text.contains("--with-dead-letters"), "{text}");
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
    told(&scene, &["rebuild", "totals", "--with-dead-letters"], 0);
    let held: i64 =
        open(&scene.path("read.db")).query_row("SELECT count(*) FROM outboxd_held", [], |row| row.get(0)).unwrap();
    assert!(held > 0);
    assert!(told(&scene, &["plan", "nobody"], 64).contains("there are: totals"));
}

/// A rebuild is ended at its first, second, third, ... step: what is live then is whole, the old or the new, and the next one goes on.
#[cfg(feature = "controls")]
#[test]
fn a_crash_at_any_step_of_a_rebuild_leaves_the_old_tables_or_the_new() {
    use std::process::{Command, Stdio};

    let _machine = shared_machine();
    let before = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&before);
    shop.count(12, 3);
    settle(&before, &shop);
    let (next, top) = (AtomicUsize::new(1), AtomicUsize::new(usize::MAX));
    let climber = || {
        let mut seams = Vec::new();
        loop {
            let step = next.fetch_add(1, Ordering::SeqCst);
            if step > top.load(Ordering::SeqCst) {
                return seams;
            }
            let scene = Scene::without_a_file(&double());
            for name in ["app.db", "read.db"] {
                open(&before.path(name)).execute("VACUUM INTO ?1", [scene.path(name).to_str().unwrap()]).unwrap();
                open(&scene.path(name));
            }
            let rebuild = |crash: Option<usize>| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
                command.current_dir(scene.path(".")).args(["rebuild", "totals"]).stdin(Stdio::null());
                crash.map(|step| command.env("CRASH_AT", step.to_string()));
                let output = command.output().unwrap();
                (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
            };
            let (code, said) = rebuild(Some(step));
            let file = scene.path("read.db");
            let (totals, position) = standing(&file, "totals");
            let shop = Shop::of(&scene);
            let (old, new) = (shop.truth(position), doubled(&shop, position));
            assert!(position == 12 && (totals == old || totals == new), "step {step}: {said}");
            assert_eq!(is_new(&file), totals == new, "step {step}: tables and definition are of one transaction");
            large(&file);
            if code == Some(0) {
                top.fetch_min(step, Ordering::SeqCst);
            } else {
                let seam = said.lines().find_map(|line| line.strip_prefix("crashed at "));
                seams.push(seam.unwrap_or_else(|| panic!("step {step}: it ended by itself: {said}")).to_owned());
                let (code, said) = rebuild(None);
                assert_eq!(code, Some(0), "step {step}: {said}");
            }
            assert_eq!(standing(&file, "totals").0, new, "step {step}");
        }
    };
    let seams: Vec<String> = std::thread::scope(|scope| {
        let climbers: Vec<_> = (0..2).map(|_| scope.spawn(climber)).collect();
        climbers.into_iter().flat_map(|climber| climber.join().expect("a rung failed: see above")).collect()
    });
    for seam in ["Apply", "Commit", "Swap"] {
        assert!(seams.iter().any(|reached| reached == seam), "no step at {seam}: {seams:?}");
    }
    Proof::of("crash ladder, rebuild of a projection")
        .tried("crashes", seams.len() as u64)
        .found("half-built, missing or mixed tables", 0);
}

#[cfg(feature = "controls")]
fn is_new(file: &Path) -> bool {
    let connection: Connection = open(file);
    let section = "SELECT value LIKE '%events + 2%' FROM outboxd_meta WHERE name = 'projection:totals'";
    let kept = "SELECT count(*) FROM sqlite_schema WHERE name = 'outboxd_old_totals'";
    let section: bool = connection.query_row(section, [], |row| row.get(0)).unwrap();
    let kept: i64 = connection.query_row(kept, [], |row| row.get(0)).unwrap();
    assert_eq!(section, kept == 1);
    section
}
