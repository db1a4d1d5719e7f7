//! Projections of one file share its writer: what one of them takes, and how it ends, costs the others, and the application, next to nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outboxd::config;
use outboxd::consumer::Settings;
use outboxd::consumer::engine::WhenLocked;
use rusqlite::Connection;
use serde_json::json;

use crate::support::events::{EVENTS, Shop, TOTALS, standing};
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::rig::{Running, eventually, open};

const PATIENCE: Duration = Duration::from_secs(30);
/// What the slow statement takes at least, on a machine that does nothing else.
const SLOW: Duration = Duration::from_secs(2);
/// SQL that counts up to a number.
const COUNTS: &str =
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {n}) SELECT max(n) FROM c";

/// Another source, `other.db`, and a projection of it into the same file whose one statement takes its time.
fn slow() -> String {
    let began = Instant::now();
    let counted = COUNTS.replace("{n}", "1000000");
    let scratch = tempfile::NamedTempFile::new().unwrap();
    open(scratch.path()).query_row(&counted, [], |row| row.get::<_, i64>(0)).unwrap();
    let steps = 1e6 * SLOW.as_secs_f64() / began.elapsed().as_secs_f64();
    format!(
        "
[sources.other]
path = \"other.db\"
preset = \"outboxd\"
read = \"events\"

[projections.slow]
source = \"other\"
path = \"read.db\"
statement_time_max = \"600s\"
tables = [\"slow\"]
schema = \"CREATE TABLE slow (id TEXT PRIMARY KEY, n INTEGER) STRICT\"
[projections.slow.on]
Slow = \"INSERT INTO slow SELECT :id, ({})\"
",
        COUNTS.replace("{n}", &format!("{steps:.0}"))
    )
}

/// Both are there and at their ends; then the slow statement begins.
fn in_the_middle(config: &str) -> (Scene, Shop, Shop, Daemon) {
    let scene = Scene::new(config);
    open(&scene.path("app.db")).execute("VACUUM INTO ?1", [scene.path("other.db").to_str().unwrap()]).unwrap();
    let (shop, other) = (Shop::of(&scene), Shop::open(&scene.path("other.db")));
    shop.count(50, 7);
    other.count(3, 1);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    daemon.until_settled("slow", other.head(), PATIENCE);
    other.happens("s", "Slow", &json!({}));
    daemon.until("slow", "in the middle of it", PATIENCE, |status| status["in_flight_events"] == 1);
    (scene, shop, other, daemon)
}

fn rows(scene: &Scene) -> i64 {
    open(&scene.path("read.db")).query_row("SELECT count(*) FROM slow", [], |row| row.get(0)).unwrap()
}

fn goes_on(scene: &Scene, shop: &Shop, daemon: &mut Daemon) {
    shop.count(50, 7);
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(standing(&scene.path("read.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    assert_eq!(rows(scene), 0, "what nobody records is undone");
}

#[test]
fn a_projection_that_is_cut_off_between_its_two_steps_stops_no_neighbour() {
    let _machine = shared_machine();
    let alone = [&EVENTS.replace("[daemon]\n", "[daemon]\ndrain_timeout = \"100ms\"\n"), TOTALS].concat();
    let both = [&*alone, &slow()].concat();
    let (scene, shop, other, mut daemon) = in_the_middle(&both);
    let reload = |config: &str| {
        scene.reconfigure(config);
        let output = scene.outboxd(&["reload"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    reload(&alone);
    goes_on(&scene, &shop, &mut daemon);
    reload(&both);
    daemon.until_settled("slow", other.head(), PATIENCE);
    assert_eq!(rows(&scene), 1);
}

#[test]
fn nor_does_one_whose_source_halts() {
    let _machine = shared_machine();
    let (scene, shop, other, mut daemon) = in_the_middle(&[EVENTS, TOTALS, &slow()].concat());
    other.connection.execute_batch("ALTER TABLE events RENAME TO gone").unwrap();
    daemon.until_state("slow", "halted", PATIENCE);
    goes_on(&scene, &shop, &mut daemon);
    other.connection.execute_batch("ALTER TABLE gone RENAME TO events").unwrap();
    assert!(scene.outboxd(&["resume", "slow"]).status.success());
    daemon.until_settled("slow", other.head(), PATIENCE);
    assert_eq!(rows(&scene), 1);
}

/// The file is let go when its statement has ended, and whoever comes next goes on from what was committed.
#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_that_is_aborted() {
    let scene = Scene::new(&[EVENTS, TOTALS, &slow()].concat());
    open(&scene.path("app.db")).execute("VACUUM INTO ?1", [scene.path("other.db").to_str().unwrap()]).unwrap();
    let (shop, other) = (Shop::of(&scene), Shop::open(&scene.path("other.db")));
    shop.count(50, 7);
    let config = config::load_with(&scene.path("outboxd.toml"), Vec::new()).unwrap().config;
    let start = || {
        let (sources, consumers): (BTreeMap<_, _>, Vec<Settings>) =
            (config.sources.clone(), config.consumers().cloned().collect());
        Running::start(&sources, consumers, WhenLocked::Wait)
    };
    let running = start();
    eventually("it has begun", || running.status("totals").position == shop.head()).await;
    other.happens("s", "Slow", &json!({}));
    eventually("it is in the middle", || running.status("slow").in_flight == 1).await;
    running.fleet.cut().await;
    shop.count(50, 7);
    let running = start();
    let ended = || running.status("totals").position == shop.head() && running.status("slow").position == other.head();
    let until = Instant::now() + 2 * PATIENCE;
    while !ended() {
        assert!(Instant::now() < until, "{:?} {:?}", running.status("totals"), running.status("slow"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.drain().await;
    assert_eq!((standing(&scene.path("read.db"), "totals").0, rows(&scene)), (shop.truth(shop.head()), 1));
}

/// In an application's file nobody is held up for long: not by the first flight, of which nothing is known yet, not by what waits behind a
/// held event, and not by its release.
#[test]
fn what_one_transaction_does_in_an_applications_file_is_bounded() {
    let _machine = shared_machine();
    let config = format!(
        "{EVENTS}
[projections.taken]
source = \"shop\"
path = \"app.db\"
attempts_max = 1
batch_events = 5000
tables = [\"taken\"]
reads = [\"mended\"]
schema = \"CREATE TABLE taken (id TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT\"
[projections.taken.on]
Counted = \"INSERT INTO taken SELECT :id, ({})\"
Hard = \"INSERT INTO taken SELECT :id, (SELECT n FROM mended)\"
",
        COUNTS.replace("{n}", "5000")
    );
    let scene = Scene::new(&config);
    let app = open(&scene.path("app.db"));
    app.execute_batch("CREATE TABLE mended (n INTEGER)").unwrap();
    let mut daemon = scene.daemon();
    daemon.until_state("taken", "running", PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    app.execute_batch(
        "CREATE TABLE spied (what TEXT, at INTEGER);
         CREATE TRIGGER spy_moves AFTER UPDATE OF position ON outboxd_checkpoint WHEN new.position > old.position
             BEGIN INSERT INTO spied VALUES ('move', new.position - old.position); END;
         CREATE TRIGGER spy_holds AFTER INSERT ON outboxd_held
             BEGIN INSERT INTO spied SELECT 'hold', position FROM outboxd_checkpoint; END;
         CREATE TRIGGER spy_frees AFTER DELETE ON outboxd_held
             BEGIN INSERT INTO spied SELECT 'free', count(*) FROM taken; END;",
    )
    .unwrap();
    let shop = Shop::of(&scene);
    for _ in 0..20 {
        shop.happens("b", "Counted", &json!({}));
    }
    shop.happens("a", "Hard", &json!({}));
    let transaction = shop.connection.unchecked_transaction().unwrap();
    for _ in 0..1_200 {
        shop.happens("a", "Counted", &json!({}));
    }
    transaction.commit().unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("taken", shop.head(), PATIENCE);
    let most = |sql: &str| app.query_row::<i64, _, _>(sql, [], |row| row.get(0)).unwrap();
    let first = most("SELECT at FROM spied WHERE what = 'move' LIMIT 1");
    assert!(first <= 8, "the first flight takes {first}");
    let held = most("SELECT max(n) FROM (SELECT count(*) AS n FROM spied WHERE what = 'hold' GROUP BY at)");
    assert!((500..1_100).contains(&held), "{held} held events in one transaction");
    app.execute_batch("INSERT INTO mended VALUES (1)").unwrap();
    assert!(scene.outboxd(&["dead-letters", "retry", "--id", "a-1", "--yes"]).status.success());
    daemon.until("taken", "free", 2 * PATIENCE, |status| status["held_keys"] == 0);
    assert_eq!(count(&app), 1_221);
    // As many as fit into 2 ms; a counting takes a good part of one.
    let freed = most("SELECT max(n) FROM (SELECT count(*) AS n FROM spied WHERE what = 'free' GROUP BY at)");
    assert!(freed < 60, "{freed} released events in one transaction");
}

fn count(app: &Connection) -> i64 {
    app.query_row("SELECT count(*) FROM taken", [], |row| row.get(0)).unwrap()
}
