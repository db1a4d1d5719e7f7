//! Retention: rows whose time is over go, and none that a consumer, a held key, a dead letter or a replay still needs.

mod tables;
mod times;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::support::dice::Dice;
use crate::support::eventsource::count;
use crate::support::process::{SHOP, Scene, shared_machine};
pub use crate::support::process::{refused, told};
use crate::support::proof::Proof;
use crate::support::rig::open;
use crate::support::wait::until;
use crate::the_controls_fail_without_their_protection::without;

pub const PATIENCE: Duration = Duration::from_secs(30);
const OLD: &str = "2020-01-01T00:00:00.000000Z";

/// The job, and a relay to a file for each name.
pub fn config(source: &str, keys: &str, relays: &[&str]) -> String {
    let relay = |name: &&str| {
        format!(
            "[sinks.{name}]\ntype = \"file\"\npath = \"{name}.ndjson\"\n[relays.to_{name}]\nsource = \"shop\"\nsink = \"{name}\"\nstart = \"first\"\n"
        )
    };
    let relays: String = relays.iter().map(relay).collect();
    format!("{source}\n[jobs.tidy]\ntype = \"retention\"\nsource = \"shop\"\n{keys}\n{relays}")
}

pub fn run(scene: &Scene) -> Output {
    scene.outboxd(&["job", "run", "tidy"])
}

pub fn settle(scene: &Scene, consumer: &str, head: i64) {
    let mut daemon = scene.daemon();
    daemon.until_settled(consumer, head, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
}

fn add(app: &Connection, rows: i64, time: &str) {
    let transaction = app.unchecked_transaction().unwrap();
    for _ in 0..rows {
        transaction.execute("INSERT INTO outbox (type, key, time) VALUES ('T', 'k', ?1)", [time]).unwrap();
    }
    transaction.commit().unwrap();
}

fn positions(app: &Connection) -> BTreeSet<i64> {
    let mut statement = app.prepare("SELECT position FROM outbox").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The state's file, with its tables.
fn state(scene: &Scene) -> Connection {
    drop(run(scene));
    open(&scene.path("app.db-outboxd.db"))
}

fn checkpoint(state: &Connection, consumer: &str, position: i64) {
    let sql = "INSERT OR REPLACE INTO outboxd_checkpoint (consumer, source, definition, position, event_id, witnesses, dirty, updated_at)
               VALUES (?1, 'shop', 'table=outbox row=position id=id key=key payload=payload', ?2, 'e', '[]', 0, '')";
    state.execute(sql, params![consumer, position]).unwrap();
}

fn hold(state: &Connection, consumer: &str, position: i64, kind: &str) {
    let sql = "INSERT INTO outboxd_held (consumer, key, ordinal, position, event_id, state, attempts, held_at)
               VALUES (?1, ?4, 0, ?2, 'e', ?3, 5, '2026-11-21T00:00:00Z')";
    state.execute(sql, params![consumer, position, kind, position.to_be_bytes()]).unwrap();
}

fn replay(state: &Connection, consumer: &str, place: i64, how: &str) {
    let sql = "INSERT OR REPLACE INTO outboxd_replay (consumer, number, wanted, state, first, place, upto, sent, left_out, detail, updated_at)
               VALUES (?1, 1, '{}', ?3, 0, ?2, 1000000, 0, 0, '', '')";
    state.execute(sql, params![consumer, place, how]).unwrap();
}

/// Consumers move on and back, hold, replay, are forgotten; rows come, young and old: after each run exactly those are there that the model keeps.
#[test]
fn random_histories_lose_nothing_that_is_needed() {
    let mut dice = Dice::thrown("retention");
    let scene = Scene::new(&config(SHOP, "what = \"published\"\nolder_than = \"24h\"\nkeep_newest = 3", &["a", "b"]));
    let app = open(&scene.path("app.db"));
    let state = state(&scene);
    let (mut model, mut young) = (BTreeSet::<i64>::new(), BTreeSet::<i64>::new());
    let (mut deleted, mut rounds) = (0, 0);
    for round in 0..30 {
        let head = model.last().copied().unwrap_or(0).max(count_given_out(&app));
        let count = 1 + dice.below(40) as i64;
        let is_young = dice.below(4) == 0;
        let now: String = app.query_row("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", [], |row| row.get(0)).unwrap();
        add(&app, count, if is_young { &now } else { OLD });
        model.extend(head + 1..=head + count);
        if is_young {
            young.extend(head + 1..=head + count);
        }
        let head = head + count;
        let mut limit = i64::MAX;
        state
            .execute_batch("DELETE FROM outboxd_held; DELETE FROM outboxd_checkpoint; DELETE FROM outboxd_replay")
            .unwrap();
        // `gone` is not in the configuration any more.
        for consumer in ["to_a", "to_b", "gone"] {
            let has_begun = dice.below(8) > 0;
            let at = dice.below(head as u64 + 1) as i64;
            if has_begun {
                checkpoint(&state, consumer, at);
            }
            match (has_begun, consumer) {
                (true, _) => limit = limit.min(at),
                (false, "gone") => {}
                (false, _) => limit = 0,
            }
            if at > 0 && dice.below(3) == 0 {
                let (position, kind) = (
                    1 + dice.below(at as u64) as i64,
                    ["retrying", "waiting", "dead", "skipped"][dice.below(4) as usize],
                );
                hold(&state, consumer, position, kind);
                limit = limit.min(position - 1);
            }
            if dice.below(4) == 0 {
                let (place, how) = (
                    dice.below(head as u64 + 1) as i64,
                    ["running", "stopped", "done", "cancelled"][dice.below(4) as usize],
                );
                replay(&state, consumer, place, how);
                if matches!(how, "running" | "stopped") && consumer != "gone" {
                    limit = limit.min(place);
                }
            }
        }
        let newest: BTreeSet<i64> = model.iter().rev().take(3).copied().collect();
        let goes = |row: &i64| *row <= limit && !young.contains(row) && !newest.contains(row);
        let expected = model.iter().filter(|row| goes(row)).count();
        let would = told(&scene.outboxd(&["job", "run", "tidy", "--dry-run"]));
        assert!(
            would.contains(&format!(": {expected} rows of outbox would be deleted")),
            "round {round}, seed {}: {would}",
            dice.seed
        );
        assert_eq!(positions(&app), model, "a dry run changes nothing");
        let said = told(&run(&scene));
        assert!(
            said.contains(&format!(": {expected} rows of outbox deleted")),
            "round {round}, seed {}: {said}",
            dice.seed
        );
        model.retain(|row| !goes(row));
        assert_eq!(positions(&app), model, "round {round}, seed {}, up to {limit}: {said}", dice.seed);
        deleted += expected as u64;
        rounds += 1;
    }
    Proof::of("retention by random histories")
        .tried("histories", rounds)
        .tried("rows deleted", deleted)
        .found("rows deleted that were needed", 0)
        .found("rows left whose time was over", 0);
}

fn count_given_out(app: &Connection) -> i64 {
    app.query_row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'", [], |row| row.get(0))
        .unwrap()
}

/// Without the question, rows go that a relay which has never started was to carry.
#[test]
fn control_without_the_question_a_needed_row_is_deleted() {
    let scene = Scene::new(&config(SHOP, "what = \"published\"\nkeep_newest = 0", &["a"]));
    let app = open(&scene.path("app.db"));
    add(&app, 10, OLD);
    let said = told(&run(&scene));
    assert!(said.contains(": 0 rows of outbox deleted; 10 held back by to_a, which has never started"), "{said}");
    told(&scene.outboxd_with(&["job", "run", "tidy"], &without("Needed")));
    assert_eq!(count(&app, "outbox"), 0);
}

#[test]
fn what_holds_rows_back_is_told() {
    let scene = Scene::new(&config(SHOP, "what = \"published\"\nkeep_newest = 0", &["a", "b"]));
    let app = open(&scene.path("app.db"));
    add(&app, 20, OLD);
    let state = state(&scene);
    let says = |what: &str| {
        let said = told(&run(&scene));
        assert!(said.contains(what), "{said}");
        assert!(told(&scene.outboxd(&["job", "list", "--json"])).contains("held back by"));
    };
    says("20 held back by to_a, which has never started");
    for consumer in ["to_a", "to_b"] {
        checkpoint(&state, consumer, 16);
    }
    replay(&state, "to_b", 2, "stopped");
    says(": 2 rows of outbox deleted; 18 held back by a replay of to_b, which has come to 2");
    replay(&state, "to_b", 2, "cancelled");
    hold(&state, "to_a", 5, "dead");
    says(": 2 rows of outbox deleted; 16 held back by an event that to_a holds at position 5 (`outboxd dead-letters`)");
    state.execute("DELETE FROM outboxd_held", []).unwrap();
    checkpoint(&state, "older", 9);
    says(": 5 rows of outbox deleted; 11 held back by older, which is at position 9 and not in the configuration");
    state.execute("DELETE FROM outboxd_checkpoint WHERE consumer = 'older'", []).unwrap();
    says(": 7 rows of outbox deleted; 4 held back by to_a, which is at position 16");
    // And all of it is where it was for who reads on.
    assert_eq!(positions(&app), (17..=20).collect());
}

/// The application deletes nothing itself: a table without AUTOINCREMENT keeps its newest row, and so no position comes again.
const REUSED: &str = "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\ntable = \"jobs\"\nposition = \"n\"\nid = \"name\"\n\
                      type = { constant = \"T\" }\npayload = \"name\"\nallow_reused_positions = true\n";

fn reused() -> (Scene, Connection) {
    let scene = Scene::without_a_file(&config(REUSED, "what = \"published\"\nkeep_newest = 0", &["a"]));
    let app = open(&scene.path("app.db"));
    app.execute_batch(
        "CREATE TABLE jobs (n INTEGER PRIMARY KEY, name TEXT); INSERT INTO jobs (name) VALUES ('1'), ('2'), ('3')",
    )
    .unwrap();
    settle(&scene, "to_a", 3);
    (scene, app)
}

fn next(app: &Connection) -> i64 {
    app.execute("INSERT INTO jobs (name) VALUES ('next')", []).unwrap();
    app.last_insert_rowid()
}

#[test]
fn a_position_is_not_given_out_again() {
    let _machine = shared_machine();
    let (scene, app) = reused();
    let said = told(&run(&scene));
    assert!(said.contains(": 2 rows of jobs deleted; 1 stay"), "{said}");
    assert_eq!(next(&app), 4);
    settle(&scene, "to_a", 4);
    let lines = std::fs::read_to_string(scene.path("a.ndjson")).unwrap();
    assert_eq!(lines.lines().count(), 4);
}

/// Without it, what the application writes next has a position that was passed.
#[test]
fn control_without_the_newest_row_a_position_comes_again() {
    let _machine = shared_machine();
    let (scene, app) = reused();
    told(&scene.outboxd_with(&["job", "run", "tidy"], &without("Tail")));
    assert_eq!(next(&app), 1);
}

#[test]
fn a_crash_anywhere_deletes_rows_whole_or_not() {
    let scene = Scene::new(&config(SHOP, "what = \"published\"\nkeep_newest = 0", &["a"]));
    let app = open(&scene.path("app.db"));
    let state = state(&scene);
    let mut seams = BTreeMap::<String, u64>::new();
    let mut head = 0;
    for step in 1.. {
        add(&app, 3, OLD);
        head += 3;
        checkpoint(&state, "to_a", head);
        let crashed = scene.outboxd_with(&["job", "run", "tidy"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let left = positions(&app);
        assert!(left.iter().all(|row| (head - 2..=head).contains(row)), "{left:?}");
        assert_eq!(app.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        told(&run(&scene));
        assert_eq!(count(&app, "outbox"), 0, "after step {step}, {seam}");
    }
    assert!(seams["Retention"] >= 1 && seams["Commit"] >= 3, "{seams:?}");
    Proof::of("crash ladder, retention").tried("crashes", seams.values().sum::<u64>()).found("rows half deleted", 0);
}

/// Beside an application with a busy timeout of a second that writes all the while: no error, and short locks only.
#[test]
fn the_application_hardly_notices_retention() {
    let _machine = shared_machine();
    let scene = Scene::new(&config(SHOP, "what = \"published\"\nkeep_newest = 0\nevery = \"1s\"", &["a"]));
    let app = open(&scene.path("app.db"));
    add(&app, 20_000, OLD);
    checkpoint(&state(&scene), "to_a", 20_000);
    let first = count(&app, "outbox");
    // Only the job is at work, and it is asked by hand while the application writes.
    app.busy_timeout(Duration::from_secs(1)).unwrap();
    let (mut slowest, mut n) = (Duration::ZERO, 0_u64);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&scene));
        until("all is deleted", PATIENCE, || {
            let asked = Instant::now();
            add(&app, 1, OLD);
            slowest = slowest.max(asked.elapsed());
            n += 1;
            running.is_finished().then_some(())
        });
        let said = told(&running.join().unwrap());
        assert!(said.contains(": 20000 rows of outbox deleted"), "{said}");
    });
    assert_eq!((first, count(&app, "outbox")), (20_000, n as i64));
    Proof::of("retention beside an application")
        .tried("commits of the application", n)
        .found("errors", 0)
        .found("slowest commit", format!("{} ms", slowest.as_millis()));
}
