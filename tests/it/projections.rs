//! G5: what a projection's SQL did, what it refused and how far it has come are one transaction, in the read model's file.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::dice::{Dice, number};
use crate::support::disk::SmallDisk;
use crate::support::events::{EVENTS, Shop, TOTALS, standing};
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::rig::open;

const PATIENCE: Duration = Duration::from_secs(20);

/// Fails until there is a row in `mended`, which is not its own.
const CHOOSY: &str = "
[projections.choosy]
source = \"shop\"
path = \"read.db\"
tables = [\"taken\"]
reads = [\"mended\"]
schema = \"CREATE TABLE taken (number INTEGER PRIMARY KEY, id TEXT NOT NULL, stream_id TEXT NOT NULL, how TEXT NOT NULL) STRICT\"
[projections.choosy.on]
Counted = \"INSERT INTO taken (id, stream_id, how) VALUES (:id, :stream_id, 'well')\"
Hard = [
    \"INSERT INTO taken (id, stream_id, how) VALUES (:id, :stream_id, 'half')\",
    \"UPDATE taken SET how = (SELECT how FROM mended) WHERE id = :id\",
]
";

fn choosy(keys: &str) -> Scene {
    let config = CHOOSY.replace("[projections.choosy]\n", &format!("[projections.choosy]\n{keys}\n"));
    let scene = Scene::new(&[EVENTS, &config].concat());
    open(&scene.path("read.db")).execute_batch("CREATE TABLE mended (how TEXT)").unwrap();
    scene
}

fn mend(scene: &Scene) {
    open(&scene.path("read.db")).execute_batch("INSERT INTO mended VALUES ('well')").unwrap();
}

/// The ids in `taken`, in the order in which they were taken, and how.
fn taken(scene: &Scene) -> Vec<String> {
    let connection = open(&scene.path("read.db"));
    let mut statement = connection.prepare("SELECT id || ' ' || how FROM taken ORDER BY number").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn settled(daemon: &mut Daemon, consumer: &str, shop: &Shop) -> Value {
    daemon.until_settled(consumer, shop.head(), PATIENCE)
}

fn told(scene: &Scene, arguments: &[&str], success: bool) -> String {
    let output = scene.outboxd(arguments);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.success(), success, "{arguments:?}: {text}");
    text
}

#[test]
fn a_projection_is_a_consumer_like_any_other() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(500, 7);
    shop.happens("s0", "Unheard", &json!({}));
    assert!(told(&scene, &["check"], true).contains("read.db is not there yet"));
    let mut daemon = scene.daemon();
    let status = settled(&mut daemon, "totals", &shop);
    assert_eq!(
        (&status["kind"], &status["state"], &status["delivered_total"]),
        (&json!("projection"), &json!("running"), &json!(501))
    );
    assert_eq!(status["unhandled"], json!({ "Unheard": 1 }));
    assert_eq!(standing(&scene.path("read.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    assert_eq!(daemon.metric("outboxd_events_total{consumer=\"totals\",outcome=\"delivered\"}"), Some(501.0));
    assert_eq!(daemon.metric("outboxd_sink_up{consumer=\"totals\"}"), Some(1.0));
    // What an application asks before it prunes its events.
    let safe = "SELECT position FROM outboxd_safe_position WHERE source = 'shop'";
    assert_eq!(open(&scene.path("read.db")).query_row(safe, [], |row| row.get(0)), Ok(shop.head()));
    assert!(told(&scene, &["consumer", "list"], true).contains("projection"));
    assert!(told(&scene, &["position", "show"], true).contains("501"));
    assert!(told(&scene, &["replay", "totals", "--all", "--yes"], false).contains("outboxd rebuild"));
    told(&scene, &["pause", "totals"], true);
    shop.count(20, 7);
    daemon.until_state("totals", "paused", PATIENCE);
    told(&scene, &["resume", "totals"], true);
    settled(&mut daemon, "totals", &shop);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
    // Without a daemon, commands work on the files.
    assert!(told(&scene, &["check"], true).contains("every statement fits"));
    assert!(told(&scene, &["position", "show", "totals"], true).contains("521"));
    assert!(told(&scene, &["consumer", "forget", "totals", "--yes"], true).contains("521"));
}

/// The daemon is killed again and again while it counts: whenever one looks, tables and checkpoint tell the same.
/// `OUTBOXD_TEST_PROJECTION_KILLS` says how often.
#[test]
fn kills_leave_a_projection_as_it_would_be_without() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let kills = number("OUTBOXD_TEST_PROJECTION_KILLS").unwrap_or(40);
    let mut dice = Dice::thrown("kills of a projection");
    let seed = dice.seed;
    let shop = Shop::of(&scene);
    shop.count(2_000, 50);
    let (mut last, mut moved) = (0, 0);
    for kill in 0..kills {
        let mut daemon = scene.daemon();
        if kill % 2 == 1 {
            // However slow the machine is: it gets on between every other two.
            shop.count(50, 50);
            daemon.until("totals", "further", PATIENCE, |status| status["position"].as_i64() > Some(last));
        }
        let until = std::time::Instant::now() + dice.between(Duration::from_millis(10), Duration::from_millis(150));
        while std::time::Instant::now() < until {
            shop.count(1 + dice.below(300) as usize, 50);
        }
        daemon.kill();
        if !scene.path("read.db").exists() || !is_made(&scene.path("read.db")) {
            continue;
        }
        let (totals, position) = standing(&scene.path("read.db"), "totals");
        assert_eq!(totals, shop.truth(position), "seed {seed}, at {position}");
        moved += u64::from(position > last);
        last = position;
    }
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    assert_eq!(standing(&scene.path("read.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    assert!(moved * 2 >= kills - 1, "it got on between every other two: {moved}");
    Proof::of("kill -9 of the daemon, projection")
        .seed(seed)
        .tried("kills of the daemon", kills)
        .found("events", shop.head())
        .found("counted twice, not at all or out of order", 0);
}

fn is_made(file: &Path) -> bool {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name IN ('totals', 'outboxd_checkpoint')";
    open(file).query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 2
}

#[test]
fn a_refused_event_holds_its_key_until_it_is_retried_after_a_fix() {
    let _machine = shared_machine();
    let scene = choosy("attempts_max = 1");
    let shop = Shop::of(&scene);
    let happen = |stream: &str, kind: &str| shop.happens(stream, kind, &json!({}));
    for (stream, kind) in
        [("a", "Counted"), ("a", "Hard"), ("b", "Counted"), ("a", "Counted"), ("a", "Hard"), ("b", "Counted")]
    {
        happen(stream, kind);
    }
    let mut daemon = scene.daemon();
    let status = settled(&mut daemon, "choosy", &shop);
    assert_eq!((&status["held_keys"], &status["dead_letters"]), (&json!(1), &json!(1)));
    // Of the one that failed nothing is left, and those behind it wait.
    assert_eq!(taken(&scene), ["a-1 well", "b-1 well", "b-2 well"]);
    let letters = daemon.dead_letters();
    let dead = letters.iter().find(|letter| letter["state"] == "dead").unwrap();
    assert_eq!((&dead["id"], &dead["reason"]), (&json!("a-2"), &json!("projection_error")));
    assert_eq!(dead["detail"], "on Hard, statement 2: NOT NULL constraint failed: taken.how");
    happen("a", "Counted");
    settled(&mut daemon, "choosy", &shop);
    mend(&scene);
    told(&scene, &["dead-letters", "retry", "--id", "a-2", "--yes"], true);
    daemon.until("choosy", "free", PATIENCE, |status| status["held_keys"] == 0);
    assert_eq!(taken(&scene)[3..], ["a-2 well", "a-3 well", "a-4 well", "a-5 well"]);
    assert_eq!(daemon.metric("outboxd_order_violations_total{consumer=\"choosy\"}"), Some(0.0));
}

#[test]
fn attempts_are_counted_and_heal_by_themselves() {
    let _machine = shared_machine();
    let scene = choosy("attempts_max = 9");
    let shop = Shop::of(&scene);
    shop.happens("a", "Hard", &json!({}));
    shop.happens("a", "Counted", &json!({}));
    let mut daemon = scene.daemon();
    daemon.until("choosy", "retrying", PATIENCE, |status| status["retrying"] == 1);
    mend(&scene);
    daemon.until("choosy", "free", PATIENCE, |status| status["held_keys"] == 0 && status["position"] == 2);
    assert_eq!(taken(&scene), ["a-1 well", "a-2 well"]);
}

#[test]
fn a_refused_event_is_skipped_where_that_was_said() {
    let _machine = shared_machine();
    let scene = choosy("attempts_max = 1\non_reject = \"skip\"");
    let shop = Shop::of(&scene);
    for kind in ["Counted", "Hard", "Counted", "Hard", "Counted"] {
        shop.happens("a", kind, &json!({}));
    }
    let mut daemon = scene.daemon();
    let status = settled(&mut daemon, "choosy", &shop);
    assert_eq!(status["held_keys"], 0);
    assert_eq!(taken(&scene), ["a-1 well", "a-3 well", "a-5 well"]);
    mend(&scene);
    told(&scene, &["dead-letters", "retry", "--key", "a", "--yes"], true);
    daemon.until("choosy", "free", PATIENCE, |status| status["held_keys"] == 0 && status["delivered_total"] == 5);
    assert_eq!(taken(&scene)[3..], ["a-2 well", "a-4 well"]);
}

#[test]
fn a_refused_event_halts_it_where_that_was_said() {
    let _machine = shared_machine();
    let scene = choosy("attempts_max = 1\non_reject = \"halt\"");
    let shop = Shop::of(&scene);
    for kind in ["Counted", "Hard", "Counted"] {
        shop.happens("a", kind, &json!({}));
    }
    let mut daemon = scene.daemon();
    let status = daemon.until_state("choosy", "halted", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("a-2"), "{status}");
    assert_eq!(taken(&scene), ["a-1 well"]);
    mend(&scene);
    told(&scene, &["dead-letters", "retry", "--id", "a-2", "--yes"], true);
    told(&scene, &["resume", "choosy"], true);
    daemon.until("choosy", "free", PATIENCE, |status| status["position"] == 3 && status["held_keys"] == 0);
    assert_eq!(taken(&scene), ["a-1 well", "a-2 well", "a-3 well"]);
}

/// Somebody else writes into the read model's file: it is waited for, and no event is to blame.
#[test]
fn a_read_model_that_is_locked_is_waited_for() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(100, 7);
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    let other = open(&scene.path("read.db"));
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    shop.count(100, 7);
    let status = daemon.until_state("totals", "unavailable", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("locked"), "{status}");
    other.execute_batch("COMMIT").unwrap();
    let status = settled(&mut daemon, "totals", &shop);
    assert_eq!((&status["held_keys"], &status["redelivered_total"]), (&json!(0), &json!(100)));
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
}

/// SQL can end the transaction that it runs in: the event is refused, and everything else done anew.
#[test]
fn sql_that_ends_its_transaction_takes_nothing_with_it() {
    let _machine = shared_machine();
    let odd = "
[projections.odd]
source = \"shop\"
path = \"read.db\"
attempts_max = 1
statement_time_max = \"50ms\"
tables = [\"odd\"]
schema = \"CREATE TABLE odd (id TEXT PRIMARY KEY, stream_id TEXT) STRICT\"
[projections.odd.on]
Counted = \"INSERT INTO odd VALUES (:id, :stream_id)\"
Rude = \"INSERT OR ROLLBACK INTO odd VALUES (:data ->> 'id', :stream_id)\"
Endless = \"INSERT INTO odd WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT :id, max(n) FROM c\"
";
    let scene = Scene::new(&[EVENTS, TOTALS, odd].concat());
    let shop = Shop::of(&scene);
    shop.count(20, 5);
    shop.happens("r", "Rude", &json!({ "id": "s0-1" }));
    shop.happens("e", "Endless", &json!({}));
    shop.count(20, 5);
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    let status = settled(&mut daemon, "odd", &shop);
    assert_eq!(status["dead_letters"], 2, "{status}");
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
    let rows: i64 = open(&scene.path("read.db")).query_row("SELECT count(*) FROM odd", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 40);
    let details: Vec<String> =
        daemon.dead_letters().iter().map(|letter| letter["detail"].as_str().unwrap().into()).collect();
    assert!(details.iter().any(|detail| detail.contains("UNIQUE")), "{details:?}");
    assert!(details.iter().any(|detail| detail.contains("longer than 50ms")), "{details:?}");
}

/// What a schema change by a person does: no event is to blame, and it goes on when the table is back.
#[test]
fn statements_that_fit_no_more_halt_it() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(10, 5);
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    let other = open(&scene.path("read.db"));
    other.execute_batch("ALTER TABLE totals RENAME COLUMN seen TO was").unwrap();
    shop.count(10, 5);
    let status = daemon.until_state("totals", "halted", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("on Counted, statement 1"), "{status}");
    other.execute_batch("ALTER TABLE totals RENAME COLUMN was TO seen").unwrap();
    told(&scene, &["resume", "totals"], true);
    let status = settled(&mut daemon, "totals", &shop);
    assert_eq!(status["held_keys"], 0);
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
}

/// Events as nobody would write them: each is taken, or a dead letter that says why.
#[test]
fn hostile_events_are_taken_or_named() {
    let _machine = shared_machine();
    let config = "
[sources.shop]
path = \"app.db\"
preset = \"outboxd\"
read = \"outbox\"
[projections.notes]
source = \"shop\"
path = \"read.db\"
attempts_max = 1
event_bytes_max = \"100kB\"
tables = [\"notes\"]
schema = \"CREATE TABLE notes (id TEXT PRIMARY KEY, size INTEGER NOT NULL, kind TEXT NOT NULL) STRICT\"
[projections.notes.on]
\"*\" = \"INSERT INTO notes VALUES (:id, length(:data ->> 'note'), typeof(:data ->> 'n'))\"
";
    let scene = Scene::new(config);
    let application = open(&scene.path("app.db"));
    let long = format!("{{\"note\":\"{}\"}}", "x".repeat(200_000));
    let payloads: [(&str, &[u8]); 9] = [
        ("plain", br#"{"note":"abc","n":7}"#),
        ("quote", br#"{"note":"'); DROP TABLE notes; --","n":1.5}"#),
        ("large", br#"{"note":"","n":9223372036854775808}"#),
        ("edge", br#"{"note":"","n":9223372036854775807}"#),
        ("missing", br#"{"n":7}"#),
        ("broken", br#"{"note":"#),
        ("nothing", b""),
        ("binary", &[0xff, 0xfe, 0x00, 0x80]),
        ("huge", long.as_bytes()),
    ];
    for (id, payload) in payloads {
        let sql = "INSERT INTO outbox (id, type, payload) VALUES (?1, 'Noted', ?2)";
        application.execute(sql, rusqlite::params![id, payload]).unwrap();
    }
    let mut daemon = scene.daemon();
    let status = daemon.until_settled("notes", 9, PATIENCE);
    assert_eq!(status["dead_letters"], 5, "{status}");
    let connection = open(&scene.path("read.db"));
    let mut statement = connection.prepare("SELECT id || ' ' || size || ' ' || kind FROM notes ORDER BY id").unwrap();
    let rows: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, ["edge 0 integer", "large 0 real", "plain 3 integer", "quote 24 real"]);
    let mut reasons: Vec<String> = daemon
        .dead_letters()
        .iter()
        .map(|letter| format!("{} {}", letter["id"].as_str().unwrap(), letter["reason"].as_str().unwrap()))
        .collect();
    reasons.sort();
    let wrong = ["binary", "broken", "missing", "nothing"].map(|id| format!("{id} projection_error"));
    assert_eq!(reasons, [&wrong[..2], &["huge too_large".to_owned()], &wrong[2..]].concat());
}

/// Order is kept by what was said: here a place in the data.
#[test]
fn a_key_may_stand_in_the_data() {
    let _machine = shared_machine();
    let scene = choosy("attempts_max = 1\nkey = \"$.customer\"");
    let shop = Shop::of(&scene);
    for (stream, kind, customer) in
        [("a", "Hard", "kim"), ("b", "Counted", "kim"), ("a", "Counted", "lee"), ("c", "Counted", "")]
    {
        let data = if customer.is_empty() { json!({}) } else { json!({ "customer": customer }) };
        shop.happens(stream, kind, &data);
    }
    let mut daemon = scene.daemon();
    settled(&mut daemon, "choosy", &shop);
    assert_eq!(taken(&scene), ["a-2 well", "c-1 well"]);
    mend(&scene);
    told(&scene, &["dead-letters", "retry", "--key", "kim", "--yes"], true);
    daemon.until("choosy", "free", PATIENCE, |status| status["held_keys"] == 0);
    assert_eq!(taken(&scene)[2..], ["a-1 well", "b-1 well"]);
}

/// Behind a released event that fails, everything that it held waits on, whatever keys the source has for it.
#[test]
fn what_waits_behind_a_held_event_waits_whatever_its_source_says() {
    let _machine = shared_machine();
    let odd = "Odd = [
    \"INSERT INTO taken (id, stream_id, how) VALUES (:id, :stream_id, 'half')\",
    \"UPDATE taken SET how = (SELECT how FROM mended WHERE how = 'odd') WHERE id = :id\",
]
";
    let keys = "[projections.choosy]\nattempts_max = 1\nkey = \"$.customer\"\n";
    let scene = Scene::new(&[EVENTS, &CHOOSY.replace("[projections.choosy]\n", keys), odd].concat());
    open(&scene.path("read.db")).execute_batch("CREATE TABLE mended (how TEXT)").unwrap();
    let shop = Shop::of(&scene);
    for (stream, kind) in [("a", "Hard"), ("b", "Odd"), ("c", "Counted"), ("d", "Counted")] {
        shop.happens(stream, kind, &json!({ "customer": "kim" }));
    }
    let mut daemon = scene.daemon();
    settled(&mut daemon, "choosy", &shop);
    mend(&scene);
    told(&scene, &["dead-letters", "retry", "--id", "a-1", "--yes"], true);
    let is_next = |status: &Value| status["dead_letters"] == 1 && status["delivered_total"] == 1;
    let status = daemon.until("choosy", "at the next one", PATIENCE, is_next);
    assert_eq!((&status["state"], &status["held_keys"]), (&json!("running"), &json!(1)), "{status}");
    assert_eq!(taken(&scene), ["a-1 well"]);
    open(&scene.path("read.db")).execute_batch("INSERT INTO mended VALUES ('odd')").unwrap();
    told(&scene, &["dead-letters", "retry", "--id", "b-1", "--yes"], true);
    daemon.until("choosy", "free", PATIENCE, |status| status["held_keys"] == 0);
    assert_eq!(taken(&scene), ["a-1 well", "b-1 odd", "c-1 well", "d-1 well"]);
}

/// In the source's own file there is one transaction for all of it, too.
#[test]
fn a_read_model_may_stand_in_the_source() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, &TOTALS.replace("read.db", "app.db")].concat());
    let shop = Shop::of(&scene);
    shop.count(3_000, 7);
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    daemon.kill();
    assert_eq!(standing(&scene.path("app.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    assert!(!scene.path("app.db-outboxd.db").exists() && !scene.path("read.db").exists());
}

/// A definition that has changed does not write into tables that another one has made.
#[test]
fn a_changed_definition_refuses_the_old_tables() {
    let _machine = shared_machine();
    let config = [EVENTS, TOTALS].concat();
    let scene = Scene::new(&config);
    let shop = Shop::of(&scene);
    shop.count(10, 5);
    let mut daemon = scene.daemon();
    settled(&mut daemon, "totals", &shop);
    scene.reconfigure(&config.replace("events + 1", "events + 2"));
    assert!(told(&scene, &["reload"], true).contains("totals"));
    let status = daemon.until_state("totals", "halted", PATIENCE);
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains("outboxd plan totals") && detail.contains("outboxd rebuild totals"), "{detail}");
    shop.count(5, 5);
    scene.reconfigure(&config);
    told(&scene, &["reload"], true);
    settled(&mut daemon, "totals", &shop);
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
}

/// Whoever has written an event asks for its position, and then reads.
#[test]
fn own_writes_can_be_waited_for_and_read() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    let mut daemon = scene.daemon();
    daemon.until_state("totals", "running", PATIENCE);
    for round in 1..=20 {
        shop.count(3, 3);
        let (code, body) = daemon.get(&format!("/api/v1/wait?consumer=totals&position={}&timeout=20s", shop.head()));
        assert_eq!(code, 200, "{body}");
        assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()), "round {round}: {body}");
    }
    let (code, body) = daemon.get("/api/v1/wait?consumer=totals&position=1000&timeout=100ms");
    assert_eq!((code, body.contains("\"reached\":false")), (504, true), "{body}");
    assert_eq!(daemon.get("/api/v1/wait?consumer=nobody&position=1").0, 404);
    assert_eq!(daemon.get("/api/v1/wait?consumer=totals&position=1&timeout=soon").0, 400);
    assert_eq!(daemon.get("/api/v1/wait?consumer=totals").0, 400);
}

/// The disk under the read model is full: nobody is to blame, and nothing of a batch that could not be committed stays.
#[test]
fn a_full_disk_under_a_read_model_is_waited_for() {
    let proof = Proof::of("disk full: a read model's");
    let disk = match SmallDisk::new(2048) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let file = disk.path("read.db");
    let scene = Scene::new(&[EVENTS, &TOTALS.replace("read.db", file.to_str().unwrap())].concat());
    let shop = Shop::of(&scene);
    shop.count(200, 7);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    disk.fill();
    let before = shop.head();
    shop.count(5_000, 1_000);
    daemon.until("totals", "waiting", PATIENCE, |status| {
        ["unavailable", "waiting"].iter().any(|state| status["state"] == *state)
    });
    disk.free();
    let status = daemon.until_settled("totals", shop.head(), Duration::from_secs(60));
    assert_eq!((&status["held_keys"], &status["dead_letters"]), (&json!(0), &json!(0)));
    assert_eq!(standing(&file, "totals"), (shop.truth(shop.head()), shop.head()));
    proof
        .tried("events behind a full disk", (shop.head() - before) as u64)
        .found("counted twice, not at all or dead", 0);
}

/// What a power cut could take from the source is not in a read model beside it.
#[test]
fn a_read_model_apart_always_takes_the_barrier() {
    let _machine = shared_machine();
    for (file, is_synced) in [("read.db", true), ("app.db", false)] {
        let config = [EVENTS, "durability = \"fast\"\n", &TOTALS.replace("read.db", file)].concat();
        let scene = Scene::new(&config);
        let shop = Shop::of(&scene);
        shop.count(50, 7);
        let mut daemon = scene.daemon();
        daemon.until_settled("totals", shop.head(), PATIENCE);
        let syncs = daemon.metric("outboxd_barrier_seconds_count{source=\"shop\"}").unwrap_or(0.0);
        assert_eq!(syncs > 0.0, is_synced, "{file}: {syncs}");
    }
}

/// Tables that nobody knows the origin of are not written.
#[test]
fn tables_without_a_checkpoint_are_not_taken_over() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    open(&scene.path("read.db")).execute_batch("CREATE TABLE totals (a)").unwrap();
    let mut daemon = scene.daemon();
    let status = daemon.until_state("totals", "halted", PATIENCE);
    assert!(status["detail"].as_str().unwrap().contains("has a table or view totals already"), "{status}");
    // They can be replaced, and stay.
    let shop = Shop::of(&scene);
    shop.count(10, 5);
    told(&scene, &["rebuild", "totals"], true);
    settled(&mut daemon, "totals", &shop);
    assert_eq!(standing(&scene.path("read.db"), "totals").0, shop.truth(shop.head()));
    assert_eq!(count(&open(&scene.path("read.db")), "SELECT count(*) FROM pragma_table_info('outboxd_old_totals')"), 1);
}

/// Several projections in one file: each is right, and what one may not do to the other it does not.
#[test]
fn several_projections_share_a_file() {
    let _machine = shared_machine();
    let second =
        TOTALS.replace("projections.totals", "projections.again").replace("totals", "again").replace("large", "huge");
    let joined = "
[projections.joined]
source = \"shop\"
path = \"read.db\"
tables = [\"joined\"]
reads = [\"totals\"]
schema = \"CREATE TABLE joined (stream_id TEXT PRIMARY KEY, known INTEGER NOT NULL) STRICT\"
[projections.joined.on]
Counted = \"INSERT OR REPLACE INTO joined SELECT :stream_id, count(*) FROM totals\"
";
    let scene = Scene::new(&[EVENTS, TOTALS, &second, joined].concat());
    let shop = Shop::of(&scene);
    shop.count(5_000, 7);
    let mut daemon = scene.daemon();
    for name in ["totals", "again", "joined"] {
        settled(&mut daemon, name, &shop);
    }
    let truth = shop.truth(shop.head());
    assert_eq!(standing(&scene.path("read.db"), "totals").0, truth);
    let connection = open(&scene.path("read.db"));
    let same = "SELECT count(*) FROM again JOIN totals USING (stream_id, events, amount, seen)";
    assert_eq!(count(&connection, same), 7);
    assert_eq!(count(&connection, "SELECT count(*) FROM joined"), 7);
}

fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Effect first, checkpoint in a transaction of its own: a crash in between has it counted twice.
#[cfg(feature = "controls")]
#[test]
fn without_one_transaction_a_crash_counts_twice() {
    let _machine = shared_machine();
    for (off, is_right) in [(&[][..], true), (&without("Together")[..], false)] {
        let scene = Scene::new(&[EVENTS, TOTALS].concat());
        let shop = Shop::of(&scene);
        shop.count(100, 7);
        let mut daemon = scene.daemon_with(&[&[("CRASH_AT", "Settle")], off].concat());
        assert_eq!(daemon.wait(PATIENCE).0, None, "it crashed");
        let mut daemon = scene.daemon();
        settled(&mut daemon, "totals", &shop);
        let totals = standing(&scene.path("read.db"), "totals").0;
        assert_eq!(totals == shop.truth(shop.head()), is_right, "{off:?}: {totals:?}");
    }
}

#[cfg(feature = "controls")]
fn without(protection: &'static str) -> [(&'static str, &'static str); 1] {
    [("TURNED_OFF", protection)]
}
