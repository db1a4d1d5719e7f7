//! With a protection turned off, the same runs and the same count show what it protects from.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::support::fleet::Read;
use outboxd::consumer::Bounds;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::{State, Status};
use outboxd::controls::{self, Protection, Seam};
use outboxd::event::{Reason, Rejection};
use outboxd::sink::{Fault, Outcome};
use outboxd::source::feed;

use super::course::{BESIDE, COURSES, Course, named};
use super::truth::{Count, count};
use super::{FOLDER, run};
use crate::support::by_hand;
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays};
use crate::support::rig::{Running, eventually, insert, open, relay_to, source_of};

/// Whether some crash, or none, with the protection off shows what it protects from.
async fn shows(off: Protection, wrong: impl Fn(&Count) -> bool) -> bool {
    let course = &COURSES[0];
    for step in [None].into_iter().chain((1..200).map(Some)) {
        let folder = tempfile::tempdir().unwrap();
        course.place(folder.path()).await;
        let untouched = run(course, folder.path(), step, Some(off));
        if !untouched {
            run(course, folder.path(), None, Some(off));
        }
        if wrong(&count(course, folder.path())) {
            return true;
        }
        if untouched && step.is_some() {
            return false;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn control_settling_before_the_acknowledgement_loses() {
    assert!(shows(Protection::Acknowledgement, |found| !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_held_keys_order_is_lost() {
    assert!(shows(Protection::Hold, |found| !found.ends_out_of_order.is_empty() || !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_a_refusal_recorded_apart_from_the_checkpoint_is_lost() {
    assert!(shows(Protection::OneTransaction, |found| !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_sending_what_is_behind_again_the_last_word_is_out_of_order() {
    assert!(shows(Protection::Behind, |found| !found.ends_out_of_order.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_search_for_the_guilty_innocents_are_convicted() {
    assert!(shows(Protection::GuiltyAlone, |found| found.convicted > 0).await);
}

const SCENE: &str = "OUTBOXD_TEST_SCENE";
const EVENTS: usize = BESIDE.events;

/// Another process plays a scene with protections turned off, and says what came of it.
fn plays(scene: &str, offs: &[Protection]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args(["--exact", "crash_ladder::controls::child", "--ignored", "--quiet"]);
    process.env(FOLDER, folder.path()).env(SCENE, scene).stdout(Stdio::null());
    if !offs.is_empty() {
        let names: Vec<String> = offs.iter().map(|off| format!("{off:?}")).collect();
        process.env("TURNED_OFF", names.join(","));
    }
    assert!(process.status().unwrap().success(), "{scene} without {offs:?}");
    fs::read_to_string(folder.path().join("end")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn child() {
    let [folder, scene] = [FOLDER, SCENE].map(|name| std::env::var(name).expect("the others say it"));
    let folder = Path::new(&folder);
    controls::obey_environment();
    let end = match scene.as_str() {
        "another file" => another_file(folder).await,
        "barrier" => barrier(folder).await,
        "two daemons" => two_daemons(folder).await,
        "silence" => silence(folder).await,
        "changed row" => changed_row(folder).await,
        "held rows" => held_rows(folder).await,
        "dropped trigger" => dropped_trigger(folder).await,
        "row gone" => row_gone(folder).await,
        "behind" => behind(folder).await,
        scene => panic!("no scene {scene}"),
    };
    fs::write(folder.join("end"), end).unwrap();
}

async fn start(folder: &Path, side: &FarSide) -> Running {
    if !folder.join("shop.db").exists() {
        named("beside").place(folder).await;
    }
    let sources = BTreeMap::from([("shop".to_owned(), source_of("shop", &folder.join("shop.db")))]);
    let mut relay = relay_to("relay", "shop", side);
    relay.bounds.ack_timeout = Duration::from_millis(500);
    Running::start(&sources, vec![relay], WhenLocked::Wait)
}

/// The daemon's own check of its order counts nothing, and counts when what is behind an event that did not get through stays there.
#[test]
fn control_without_sending_what_is_behind_again_violations_are_counted() {
    assert_eq!(plays("behind", &[]), "0 violations");
    let counted = plays("behind", &[Protection::Behind]);
    assert!(counted != "0 violations" && counted.ends_with(" violations"), "{counted}");
}

async fn behind(folder: &Path) -> String {
    let side = FarSide::default();
    side.script([Outcome::Unavailable(Fault::unavailable("away"))]);
    let running = start(folder, &side).await;
    eventually("it arrives", || running.status("relay").position == EVENTS as i64).await;
    let end = format!("{} violations", running.status("relay").order_violations);
    running.drain().await;
    end
}

#[test]
fn control_without_the_look_at_the_inode_another_file_is_not_noticed() {
    assert_eq!(plays("another file", &[]), "Halted");
    assert_eq!(plays("another file", &[Protection::Inode]), "Running");
}

async fn another_file(folder: &Path) -> String {
    let running = start(folder, &FarSide::default()).await;
    let database = folder.join("shop.db");
    eventually("it arrives", || running.status("relay").position == EVENTS as i64).await;
    let old = open(&database);
    old.execute("VACUUM INTO ?1", [folder.join("new.db").to_str().unwrap()]).unwrap();
    fs::rename(folder.join("new.db"), &database).unwrap();
    // What is written to the old one now is read by nobody who has noticed.
    insert(&old, "e61", "k1");
    let goes_on = || running.status("relay").position > EVENTS as i64;
    eventually("it halts or goes on", || goes_on() || running.status("relay").state == State::Halted).await;
    let end = format!("{:?}", running.status("relay").state);
    running.drain().await;
    end
}

/// Nothing turned off, every batch passes the barrier before anything of it is sent.
#[test]
fn every_batch_passes_the_barrier_and_without_it_none_does() {
    assert_eq!(plays("barrier", &[]), "raised 1, then 2");
    assert_eq!(plays("barrier", &[Protection::Barrier]), "raised 0, then 0");
}

async fn barrier(folder: &Path) -> String {
    let far_side = FarSide::default();
    let running = start(folder, &far_side).await;
    eventually("it arrives", || far_side.arrivals().len() == EVENTS).await;
    let raised = controls::reached(Seam::Barrier);
    insert(&open(&folder.join("shop.db")), "e61", "k1");
    eventually("it arrives", || far_side.arrivals().len() == EVENTS + 1).await;
    let again = controls::reached(Seam::Barrier);
    running.drain().await;
    format!("raised {raised}, then {again}")
}

#[test]
fn control_two_daemons_without_lock_and_compare_and_set_move_one_checkpoint() {
    assert_eq!(plays("two daemons", &[]), "one goes on");
    assert_eq!(plays("two daemons", &[Protection::Lock]), "one goes on");
    assert_eq!(plays("two daemons", &[Protection::Lock, Protection::CompareAndSet]), "both go on");
}

async fn two_daemons(folder: &Path) -> String {
    let sides = [FarSide::default(), FarSide::default()];
    let first = start(folder, &sides[0]).await;
    eventually("the first is done", || first.status("relay").position == EVENTS as i64).await;
    let second = start(folder, &sides[1]).await;
    let settled = |state: State| matches!(state, State::Running | State::Waiting | State::Halted);
    eventually("the second stands", || settled(second.status("relay").state)).await;
    let app = open(&folder.join("shop.db"));
    for n in EVENTS + 1..=EVENTS + 40 {
        insert(&app, &format!("e{n}"), "k1");
        let statuses = || [&first, &second].map(|daemon| daemon.status("relay"));
        // One of them, or each that is still running.
        let is_last = n == EVENTS + 40;
        let settled = |status: &Status| status.position >= n as i64;
        let is_over = |status: &Status| status.state != State::Running || settled(status);
        eventually("it is settled", || statuses().iter().any(settled) && (!is_last || statuses().iter().all(is_over)))
            .await;
    }
    let both = [&first, &second].iter().all(|daemon| daemon.status("relay").state == State::Running);
    for daemon in [first, second] {
        daemon.drain().await;
    }
    if both { "both go on" } else { "one goes on" }.into()
}

/// A far side takes a flight and never says a word about it: without a bound on its silence, nothing goes on for ever.
#[test]
fn control_without_the_bound_on_acknowledgements_silence_lasts_for_ever() {
    assert_eq!(plays("silence", &[]), "all arrive");
    assert_eq!(plays("silence", &[Protection::AckTimeout]), "silence");
}

async fn silence(folder: &Path) -> String {
    let far_side = FarSide::default();
    far_side.delay(Duration::from_millis(50));
    let running = start(folder, &far_side).await;
    eventually("a flight is on its way", || running.status("relay").in_flight == EVENTS as u64).await;
    // Whoever is connected now is never answered again.
    far_side.cut();
    let mut status = running.handle("relay").status.clone();
    let all = status.wait_for(|status| status.position == EVENTS as i64);
    let end = if tokio::time::timeout(Duration::from_secs(5), all).await.is_ok() { "all arrive" } else { "silence" };
    running.fleet.cut().await;
    end.into()
}

fn by_row(folder: &Path, far_side: &FarSide, change: impl FnOnce(&mut Bounds)) -> (rusqlite::Connection, Relays) {
    let database = folder.join("app.db");
    let application = eventsource::make(&database, "g4");
    let mut relay = fleet::relay("r", "r", fleet::fake(far_side));
    change(&mut relay.bounds);
    (application, Relays::start(&[fleet::source("r", &database, Read::Outbox)], vec![relay]))
}

/// What an application decided about its row while it was on its way is not overwritten.
#[test]
fn control_without_its_guard_a_mark_overwrites_what_the_application_wrote() {
    assert_eq!(plays("changed row", &[]), "failed");
    assert_eq!(plays("changed row", &[Protection::RowGuard]), "published");
}

async fn changed_row(folder: &Path) -> String {
    let far_side = FarSide::default();
    far_side.delay(Duration::from_millis(500));
    let (application, relays) = by_row(folder, &far_side, |_| {});
    eventsource::enqueue(&application, &[("a1", "a")]);
    relays.reaches("r", |status| status.in_flight == 1).await;
    application.execute("UPDATE event_outbox SET status = 'failed', last_error = 'by hand'", []).unwrap();
    relays.reaches("r", |status| status.delivered == 1).await;
    relays.stop().await;
    eventsource::row_state(&application, "a1").0
}

/// By row, later rows of a key that was held stand in lists which were made before: sent in their turn, they overtake.
#[test]
fn control_without_passing_over_what_was_read_too_early_a_released_key_is_overtaken() {
    assert_eq!(plays("held rows", &[]), "in order");
    let overtaken = (0..10).any(|_| plays("held rows", &[Protection::Overtaking]) == "overtaken");
    assert!(overtaken, "no key was overtaken in ten runs");
}

async fn held_rows(folder: &Path) -> String {
    const LOT: usize = 202;
    let far_side = FarSide::default();
    // The first event of each lot is refused once. Its key's next ones stand at the end of the lot, and in the next.
    let refused = Mutex::new(HashSet::new());
    far_side.reject(move |event| {
        let number: usize = event.id[2..].parse().unwrap();
        let refuses = number.is_multiple_of(LOT) && refused.lock().unwrap().insert(number);
        refuses.then(|| Rejection::new(Reason::Refused, "once"))
    });
    let (application, relays) = by_row(folder, &far_side, |bounds| {
        *bounds = Bounds {
            batch_events: LOT,
            window_events: 2 * LOT,
            in_flight_per_key: Some(1),
            retry_min: Duration::from_millis(1),
            ..Bounds::default()
        };
    });
    let rows: Vec<(String, &str)> =
        (0..20 * LOT).map(|n| (format!("{n:06}"), if matches!(n % LOT, 0 | 201) { "held" } else { "slow" })).collect();
    eventsource::enqueue(&application, &rows.iter().map(|(row, key)| (row.as_str(), *key)).collect::<Vec<_>>());
    fleet::until("every row is published", || {
        match eventsource::count(&application, "event_outbox WHERE status <> 'published'") {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
    relays.stop().await;
    let mut last: BTreeMap<(Vec<u8>, String), usize> = BTreeMap::new();
    for (at, arrival) in far_side.arrivals().into_iter().enumerate() {
        last.insert((arrival.key, arrival.id), at);
    }
    let entries: Vec<_> = last.into_iter().collect();
    let overtaken = entries.windows(2).any(|pair| pair[0].0.0 == pair[1].0.0 && pair[0].1 > pair[1].1);
    if overtaken { "overtaken" } else { "in order" }.into()
}

/// A table by its feed, with two rows that have arrived.
async fn by_feed(folder: &Path, far_side: &FarSide) -> (rusqlite::Connection, Relays) {
    let database = folder.join("app.db");
    let app = open(&database);
    app.execute_batch("CREATE TABLE t (id TEXT PRIMARY KEY); INSERT INTO t VALUES ('a'), ('b')").unwrap();
    feed::make(&database, "t", None, feed::Run::Make).unwrap();
    let keys = "table = \"t\"\nfeed = true\nid = \"id\"\ntype = \"id\"\npayload = \"id\"";
    let source = by_hand::described(folder, keys).unwrap();
    let mut relay = fleet::relay("r", "app", fleet::fake(far_side));
    relay.bounds.attempts_max = 1;
    let relays = Relays::start(&[source], vec![relay]);
    eventually("both arrive", || far_side.arrivals().len() == 2).await;
    (app, relays)
}

/// A migration rebuilds the table and drops the trigger with it: what is inserted then is in no feed.
#[test]
fn control_without_the_look_at_the_feed_rows_after_a_migration_are_passed_over() {
    assert_eq!(plays("dropped trigger", &[]), "Halted, with a, b");
    assert_eq!(plays("dropped trigger", &[Protection::Feed]), "Running, with a, b, d");
}

async fn dropped_trigger(folder: &Path) -> String {
    let far_side = FarSide::default();
    let (app, relays) = by_feed(folder, &far_side).await;
    app.execute_batch("BEGIN; CREATE TABLE n (id TEXT PRIMARY KEY); INSERT INTO n SELECT * FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT").unwrap();
    // The first is in no feed, the second is put there by hand.
    app.execute_batch("INSERT INTO t VALUES ('c'), ('d'); INSERT INTO outboxd_feed_t (key1) VALUES ('d')").unwrap();
    let arrived = || far_side.arrivals().into_iter().map(|arrival| arrival.id).collect::<Vec<_>>();
    let state = || relays.status("r").state;
    eventually("it halts or goes on", || state() == State::Halted || arrived().len() == 3).await;
    let end = format!("{:?}, with {}", state(), arrived().join(", "));
    relays.stop().await;
    end
}

/// An application deletes a row that was not read yet.
#[test]
fn control_without_the_look_for_its_row_an_event_that_is_gone_is_passed_over() {
    assert_eq!(plays("row gone", &[]), "1 dead");
    assert_eq!(plays("row gone", &[Protection::Gone]), "0 dead");
}

async fn row_gone(folder: &Path) -> String {
    let far_side = FarSide::default();
    let (app, relays) = by_feed(folder, &far_side).await;
    app.execute_batch("BEGIN; INSERT INTO t VALUES ('c'), ('d'); DELETE FROM t WHERE id = 'c'; COMMIT").unwrap();
    eventually("the one behind it arrives", || far_side.arrivals().len() == 3).await;
    let settled = relays.reaches("r", |status| status.position == 4).await;
    relays.stop().await;
    format!("{} dead", settled.dead)
}

/// Starts the other process over a file that has been wrongly changed, and says how it ended.
async fn after(off: Option<Protection>, change: impl Fn(&Path)) -> (String, Count) {
    let course: &Course = &COURSES[0];
    let folder = tempfile::tempdir().unwrap();
    course.place(folder.path()).await;
    assert!(run(course, folder.path(), None, None));
    change(folder.path());
    run(course, folder.path(), None, off);
    (fs::read_to_string(folder.path().join("end")).unwrap(), count(course, folder.path()))
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_fingerprint_a_rebuilt_table_is_passed_over() {
    let rebuild = |folder: &Path| {
        let app = open(&folder.join("shop.db"));
        app.execute_batch("DELETE FROM outbox; DELETE FROM sqlite_sequence WHERE name = 'outbox'").unwrap();
        for n in 1..=EVENTS {
            insert(&app, &format!("e{}", 1000 + n), "k1");
        }
    };
    let (end, _) = after(None, rebuild).await;
    assert!(end.starts_with("Halted") && end.contains("not the one that was read"), "{end}");
    let (end, found) = after(Some(Protection::Fingerprint), rebuild).await;
    assert!(end.starts_with("Running"), "{end}");
    assert!(found.lost.is_empty(), "nothing new arrived at all, and nobody was told");
}
