//! Vacuum: free pages go back to the file system, and the application hardly notices, or was asked; Litestream is left in charge.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::dice::Dice;
use crate::support::eventsource::count;
use crate::support::process::{SHOP, Scene, ended_with, refused, shared_machine, told};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::support::wait::until;
use crate::the_controls_fail_without_their_protection::without;

const PATIENCE: Duration = Duration::from_secs(30);

fn config(keys: &str) -> String {
    format!("{SHOP}\n[jobs.shrink]\ntype = \"vacuum\"\nsource = \"shop\"\n{keys}\n")
}

/// A window that is open now, or is not, and a long busy timeout.
fn full(app: &Connection, is_open: bool, keys: &str) -> String {
    let (from, to) = if is_open { ("-1 hour", "+2 hours") } else { ("+2 hours", "+4 hours") };
    let time = |when: &str| -> String {
        app.query_row("SELECT strftime('%H:%M', 'now', ?1)", [when], |row| row.get(0)).unwrap()
    };
    config(&format!("mode = \"full\"\nwindow = \"{}-{}\"\n{keys}", time(from), time(to)))
}

fn run(scene: &Scene) -> Output {
    scene.outboxd(&["job", "run", "shrink"])
}

/// So many rows of two kilobytes, of which the first go again.
fn grow(app: &Connection, rows: i64, gone: i64) {
    app.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS big (n INTEGER PRIMARY KEY, b BLOB);
         WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) INSERT OR REPLACE INTO big SELECT n, randomblob(2000) FROM c;
         DELETE FROM big WHERE n <= {gone}"
    ))
    .unwrap();
}

fn scene(mode: i64, rows: i64, gone: i64) -> (Scene, Connection) {
    let scene = Scene::new(&config(""));
    let app = open(&scene.path("app.db"));
    app.execute_batch(&format!("PRAGMA auto_vacuum = {mode}; VACUUM")).unwrap();
    grow(&app, rows, gone);
    (scene, app)
}

fn pragma(app: &Connection, name: &str) -> i64 {
    app.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap()
}

fn held(app: &Connection) -> (i64, i64) {
    app.query_row("SELECT count(*), sum(n * unicode(hex(b))) FROM big", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
}

/// Runs a job while the application writes; any error of its own is a failed test. Says what the job said, how many commits it was and the slowest.
pub fn beside_an_application(scene: &Scene, app: &Connection, busy: Duration, job: &str) -> (Output, u64, Duration) {
    app.busy_timeout(busy).unwrap();
    let (mut slowest, mut n) = (Duration::ZERO, 0);
    let output = std::thread::scope(|scope| {
        let running = scope.spawn(|| scene.outboxd(&["job", "run", job]));
        until("the run ends", PATIENCE, || {
            let asked = Instant::now();
            app.execute("INSERT INTO outbox (type) VALUES ('T')", []).unwrap();
            slowest = slowest.max(asked.elapsed());
            n += 1;
            running.is_finished().then_some(())
        });
        running.join().unwrap()
    });
    (output, n, slowest)
}

#[test]
fn the_application_hardly_notices_an_incremental_vacuum() {
    let _machine = shared_machine();
    let (scene, app) = scene(2, 6_000, 4_000);
    let (before, pages, free) = (held(&app), pragma(&app, "page_count"), pragma(&app, "freelist_count"));
    assert!(free > 1_900, "{free} of {pages}");
    let dry = told(&scene.outboxd(&["job", "run", "shrink", "--dry-run"]));
    assert!(dry.contains(&format!("would give back {free} pages; {free} of {pages} pages are free")), "{dry}");
    assert_eq!(pragma(&app, "freelist_count"), free);
    let (output, commits, slowest) = beside_an_application(&scene, &app, Duration::from_secs(1), "shrink");
    let said = told(&output);
    assert!(said.contains(" pages given back"), "{said}");
    assert!(pragma(&app, "page_count") < pages - free + 200 && pragma(&app, "freelist_count") < 50);
    assert_eq!(held(&app), before);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let bytes = std::fs::metadata(scene.path("app.db")).unwrap().len() as i64;
    assert_eq!(bytes, pragma(&app, "page_count") * pragma(&app, "page_size"));
    assert!(told(&run(&scene)).contains("nothing to do: "));
    Proof::of("incremental vacuum beside an application")
        .tried("pages given back", free as u64)
        .tried("commits of the application", commits)
        .found("errors", 0)
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}

#[test]
fn a_file_whose_pages_cannot_be_given_back_is_told_how_to_switch() {
    let (scene, app) = scene(0, 600, 400);
    let said = refused(&run(&scene));
    assert!(
        said.contains("auto_vacuum is NONE") && said.contains("PRAGMA auto_vacuum = INCREMENTAL; VACUUM"),
        "{said}"
    );
    assert!(refused(&scene.outboxd(&["job", "run", "shrink", "--dry-run"])).contains("auto_vacuum is NONE"));
    scene.configure(&config("min_free = \"90 %\""));
    assert!(told(&run(&scene)).contains("nothing to do: "), "too little is free");
    app.execute_batch("PRAGMA auto_vacuum = FULL; VACUUM").unwrap();
    grow(&app, 600, 400);
    scene.configure(&config("min_free = \"0 %\""));
    assert!(told(&run(&scene)).contains("nothing to do: 0 of "), "it has none");
}

#[test]
fn a_full_vacuum_happens_in_its_window_alone() {
    let _machine = shared_machine();
    let (scene, app) = scene(0, 4_000, 2_000);
    let (before, free) = (held(&app), pragma(&app, "freelist_count"));
    let keys = "application_busy_timeout = \"20s\"\nmake_incremental = true";
    scene.configure(&full(&app, false, keys));
    let said = ended_with(&run(&scene), 69);
    assert!(said.contains("outside of its window the file is not vacuumed"), "{said}");
    // It would take too long for the application.
    scene.configure(&full(&app, true, "application_busy_timeout = \"100ms\"\n"));
    let said = refused(&run(&scene));
    assert!(said.contains("all of it under the write lock, and the application waits for 100ms"), "{said}");
    assert_eq!(pragma(&app, "freelist_count"), free);
    scene.configure(&full(&app, true, keys));
    let dry = told(&scene.outboxd(&["job", "run", "shrink", "--dry-run"]));
    assert!(
        dry.contains(&format!("would give back {free} pages"))
            && dry.contains("under the write lock, of the 20s that the application waits"),
        "{dry}"
    );
    // An application that waits as long as was said sees nothing of it.
    let (output, commits, slowest) = beside_an_application(&scene, &app, Duration::from_secs(20), "shrink");
    let said = told(&output);
    assert!(said.contains(" pages given back") && said.contains("the write lock was held for"), "{said}");
    assert_eq!((held(&app), pragma(&app, "freelist_count") < 20), (before, true));
    // The connection learns it when it reads the file's first page anew.
    drop(app);
    assert_eq!(pragma(&open(&scene.path("app.db")), "auto_vacuum"), 2);
    Proof::of("full vacuum in its window, beside an application")
        .tried("commits of the application", commits)
        .found("errors", 0)
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}

/// Its tables as it makes them, and a write-ahead log that is long enough to be checkpointed.
fn with_litestream(folder_only: bool) -> (Scene, Connection) {
    let (scene, app) = scene(2, 600, 400);
    match folder_only {
        true => std::fs::create_dir(scene.path(".app.db-litestream")).unwrap(),
        false => app
            .execute_batch("CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER); CREATE TABLE _litestream_lock (id INTEGER)")
            .unwrap(),
    }
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    app.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    grow(&app, 2_400, 2_300);
    (scene, app)
}

/// The `-wal` is long, and nothing of it stands in the file: one that was checkpointed as a whole begins anew.
fn is_left_alone(app: &Connection) -> bool {
    let sql = "PRAGMA wal_checkpoint(NOOP)";
    let (frames, done): (i64, i64) = app.query_row(sql, [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
    frames > 1_000 && done == 0
}

#[test]
fn litestream_is_left_in_charge() {
    for folder_only in [false, true] {
        let (scene, app) = with_litestream(folder_only);
        let before = held(&app);
        assert!(is_left_alone(&app));
        // In slices, and without a checkpoint of ours.
        assert!(told(&run(&scene)).contains(" pages given back"));
        assert!(is_left_alone(&app));
        assert_eq!(held(&app), before);
        grow(&app, 2_400, 2_300);
        scene.configure(&full(&app, true, "application_busy_timeout = \"60s\""));
        let said = refused(&run(&scene));
        assert!(said.contains("Litestream is at work here"), "{said}");
        scene.configure(&config("mode = \"into\""));
        assert!(refused(&run(&scene)).contains("Litestream is at work here"));
    }
}

#[test]
fn control_without_the_look_for_its_owner_the_wal_is_checkpointed() {
    let (scene, app) = with_litestream(false);
    told(&scene.outboxd_with(&["job", "run", "shrink"], &without("CheckpointOwner")));
    assert!(!is_left_alone(&app));
    grow(&app, 2_400, 2_300);
    scene.configure(&full(&app, true, "application_busy_timeout = \"60s\""));
    told(&scene.outboxd_with(&["job", "run", "shrink"], &without("CheckpointOwner")));
}

fn climb(scene: &Scene, app: &Connection) -> BTreeMap<String, u64> {
    let mut seams = BTreeMap::<String, u64>::new();
    for step in 1.. {
        grow(app, 120, 80);
        let before = held(app);
        let crashed = scene.outboxd_with(&["job", "run", "shrink"], &[("CRASH_AT", &step.to_string())]);
        assert_eq!(app.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        assert_eq!(held(app), before, "after step {step}");
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
    }
    told(&run(scene));
    assert!(pragma(app, "freelist_count") < 5);
    seams
}

#[test]
fn a_crash_anywhere_leaves_a_whole_file() {
    let (scene, app) = scene(2, 10, 0);
    let seams = climb(&scene, &app);
    assert!(seams["Vacuum"] >= 1 && seams["Commit"] >= 3, "{seams:?}");
    scene.configure(&full(&app, true, "application_busy_timeout = \"60s\"\nmin_free = \"0 %\""));
    let whole = climb(&scene, &app);
    assert_eq!(whole["Vacuum"], 2, "before and behind it: {whole:?}");
    let crashes = seams.values().chain(whole.values()).sum::<u64>();
    Proof::of("crash ladder, vacuum").tried("crashes", crashes).found("files that held something else", 0);
}

/// Killed at any instant of a VACUUM, from before it to behind it.
#[test]
fn a_kill_at_any_instant_leaves_a_whole_file() {
    let _machine = shared_machine();
    let (scene, app) = scene(0, 4_000, 1_500);
    scene.configure(&full(&app, true, "application_busy_timeout = \"60s\"\nmin_free = \"0 %\""));
    let mut dice = Dice::thrown("kills of a vacuum");
    let (mut killed, mut ended) = (0, 0);
    for _ in 0..10 {
        grow(&app, 4_000, 1_500);
        let before = held(&app);
        let after = dice.between(Duration::from_millis(1), Duration::from_millis(150));
        match scene.killed(&["job", "run", "shrink"], after) {
            true => killed += 1,
            false => ended += 1,
        }
        assert_eq!(held(&app), before, "seed {}", dice.seed);
        assert_eq!(app.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    }
    assert_eq!(count(&app, "big"), 2_500);
    Proof::of("kills of a vacuum")
        .tried("killed", killed)
        .tried("ended before that", ended)
        .found("files that held something else", 0);
}

#[test]
fn what_is_said_wrong_is_refused() {
    for (keys, key, what) in [
        ("mode = \"into\"\nevery = \"1h\"", "every", "it is done by hand alone"),
        ("mode = \"into\"\njitter = \"1m\"", "jitter", "it is done by hand alone"),
        ("mode = \"into\"\nwindow = \"02:00-03:00\"", "window", "only mode = \"full\" asks for this"),
        ("make_incremental = true", "make_incremental", "only mode = \"full\" and \"into\" ask for this"),
        ("mode = \"all\"", "mode", "\"all\" is not a choice here"),
        ("mode = \"full\"", "window", "must be said"),
        ("mode = \"full\"\nwindow = \"2-3\"\napplication_busy_timeout = \"5s\"", "window", "is no time of the day"),
        ("min_free = \"20\"", "min_free", "this is no share"),
        ("window = \"02:00-03:00\"", "window", "only mode = \"full\" asks for this"),
    ] {
        let scene = Scene::without_a_file(&config(keys));
        let said = ended_with(&scene.outboxd(&["check"]), 78);
        assert!(said.contains(&format!("jobs.shrink.{key}")) && said.contains(what), "{keys}: {said}");
    }
}
