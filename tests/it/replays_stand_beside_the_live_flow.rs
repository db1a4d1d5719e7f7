//! A replay sends what is settled once more, marked; the live flow does not notice.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd::consumer::control::Operation;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::replay::{Limit, Wanted};
use outboxd::consumer::status::{Replaying, State};
use outboxd::event::{Reason, Rejection};
use outboxd::sink::{self, Fault};
use serde_json::Value;

use crate::support::application::Application;
use crate::support::fake_sink::{Arrival, FarSide};
use crate::support::fleet::fake;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::relays::{file, relay};
use crate::support::rig::{Rig, Running, check, eventually, poison};
use crate::support::wait::until;

const SOON: Duration = Duration::from_secs(20);

fn between(from: i64, to: i64) -> Wanted {
    Wanted { from: Some(Limit::Position(from)), to: Some(Limit::Position(to)), ..Wanted::default() }
}

fn replayed(side: &FarSide) -> Vec<String> {
    side.arrivals().into_iter().filter(|arrival| arrival.pick.replay).map(|arrival| arrival.id).collect()
}

fn live(side: &FarSide) -> Vec<Arrival> {
    side.arrivals().into_iter().filter(|arrival| !arrival.pick.replay).collect()
}

fn ids(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("e{n}")).collect()
}

/// Asks for it, and waits until it ends, one way or the other.
async fn replay(rig: &Rig, wanted: Wanted) -> Replaying {
    let begun = rig.ask(Operation::Replay(wanted)).await.unwrap();
    ended(rig, begun["number"].as_i64().unwrap()).await
}

async fn ended(rig: &Rig, number: i64) -> Replaying {
    let is_over = |replay: &Replaying| replay.number == number && replay.state != "running";
    eventually("the replay ends", || rig.status().replay.as_ref().is_some_and(is_over)).await;
    rig.status().replay.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_sent_once_more_and_marked() {
    let mut rig = Rig::new().await;
    rig.place(60, 5);
    rig.start();
    rig.is_done().await;
    let before = rig.recorded::<String>("SELECT position || event_id || witnesses FROM outboxd_checkpoint");
    let done = replay(&rig, between(11, 30)).await;
    assert_eq!((done.state.as_str(), done.sent, done.left_out), ("done", 20, 0));
    assert_eq!(replayed(&rig.far_side), ids(11..=30));
    assert_eq!(rig.recorded::<String>("SELECT position || event_id || witnesses FROM outboxd_checkpoint"), before);
    // The live flow goes on as if nothing had been, and a second one is a second one.
    rig.place(20, 5);
    rig.is_done().await;
    let again = replay(&rig, between(11, 30)).await;
    assert_eq!((again.number, again.sent), (done.number + 1, 20));
    assert_eq!(check(&live(&rig.far_side), 80), 0);
    assert_eq!(rig.status().order_violations, 0);
    assert_eq!(rig.status().delivered, 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_is_chosen_by_key_id_type_and_time() {
    let mut rig = Rig::new().await;
    rig.place(20, 5);
    rig.app.execute("UPDATE outbox SET type = 'Paid' WHERE position % 10 = 0", []).unwrap();
    rig.app.execute("UPDATE outbox SET time = '2026-01-0' || (1 + position / 10) || 'T00:00:00Z'", []).unwrap();
    rig.start();
    rig.is_done().await;
    let time = |text: &str| Some(Limit::Time(outboxd::clock::parse_micros(text).unwrap()));
    let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (wanted, expected) in [
        (Wanted { keys: list(&["k1"]), ..Wanted::default() }, ids([1, 6, 11, 16])),
        (Wanted { ids: list(&["e3", "e17"]), ..Wanted::default() }, ids([3, 17])),
        (Wanted { types: list(&["Pai*"]), ..Wanted::default() }, ids([10, 20])),
        (
            Wanted { from: time("2026-01-02T00:00:00Z"), to: time("2026-01-02T12:00:00Z"), ..Wanted::default() },
            ids(10..=19),
        ),
        (Wanted { keys: list(&["k1"]), ..between(5, 12) }, ids([6, 11])),
        (between(100, 200), ids([])),
    ] {
        let before = replayed(&rig.far_side).len();
        let done = replay(&rig, wanted.clone()).await;
        assert_eq!((done.state.as_str(), &replayed(&rig.far_side)[before..]), ("done", &expected[..]), "{wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_or_given_up_is_left_out() {
    let mut rig = Rig::new().await;
    rig.relay.bounds.attempts_max = 1;
    rig.far_side.reject(poison(&["e7", "e9"]));
    rig.place(20, 5);
    rig.start();
    rig.is_done_or_held().await;
    rig.discard(crate::support::rig::by_id("e9"), "no").await.unwrap();
    eventually("what waits behind it goes on", || rig.held_ids() == ["e7", "e12", "e17"]).await;
    let done = replay(&rig, Wanted::default()).await;
    assert_eq!((done.state.as_str(), done.sent, done.left_out), ("done", 16, 4));
    let left_out = [7, 9, 12, 17];
    assert_eq!(replayed(&rig.far_side), ids((1..=20).filter(|n| !left_out.contains(n))));
    assert_eq!(rig.held_ids(), ["e7", "e12", "e17"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_a_crash() {
    let mut rig = Rig::new().await;
    rig.place(400, 5);
    rig.start();
    rig.is_done().await;
    let begun = rig.ask(Operation::Replay(Wanted { rate: Some(100), ..Wanted::default() })).await.unwrap();
    eventually("some are sent", || replayed(&rig.far_side).len() >= 30).await;
    let other = rig.ask(Operation::Replay(between(1, 2))).await.unwrap_err();
    assert!(other.contains("is under way") && other.contains("--cancel"), "{other}");
    rig.crash().await;
    let before = replayed(&rig.far_side).len();
    assert!(before < 400);
    rig.start();
    let done = ended(&rig, begun["number"].as_i64().unwrap()).await;
    assert_eq!((done.state.as_str(), done.sent), ("done", 400));
    let all = replayed(&rig.far_side);
    let mut once = all.clone();
    once.dedup();
    assert!(all.len() - 400 <= 20, "a flight of a tenth of a second at the most is repeated: {}", all.len());
    assert!(ids(1..=400).iter().all(|id| once.contains(id)));
    assert_eq!(check(&live(&rig.far_side), 400), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_stops_it_and_it_goes_on_there() {
    let mut rig = Rig::new().await;
    rig.place(20, 5);
    rig.start();
    rig.is_done().await;
    rig.far_side.reject(|event| (event.id == "e13").then(|| Rejection::new(Reason::Refused, "not again")));
    let stopped = replay(&rig, between(5, 20)).await;
    assert_eq!((stopped.state.as_str(), stopped.sent, stopped.place), ("stopped", 8, 12));
    assert!(stopped.detail.contains("e13") && stopped.detail.contains("not again"), "{}", stopped.detail);
    assert!(rig.held().is_empty(), "a replay holds nothing");
    rig.far_side.mend();
    let done = replay(&rig, between(5, 20)).await;
    assert_eq!((done.number, done.state.as_str(), done.sent), (stopped.number + 1, "done", 16));
    assert_eq!(rig.status().state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_to_another_sink_waits_for_it_and_can_be_given_up() {
    let mut rig = Rig::new().await;
    rig.place(30, 5);
    let other = FarSide::default();
    let taken = rig.folder.path().join("taken");
    let lines = sink::Settings::File(sink::file::Settings { path: Some(taken.clone()), ..Default::default() });
    let sources = BTreeMap::from([("shop".to_owned(), rig.source.clone())]);
    let sinks = BTreeMap::from([("other".to_owned(), fake(&other)), ("taken".to_owned(), lines.clone())]);
    rig.relay.dead_letter_sink = Some(("taken".into(), lines));
    rig.running = Some(Running::with_sinks(&sources, &sinks, vec![rig.relay.clone()], WhenLocked::Wait));
    rig.is_done().await;
    let to = |name: &str| Wanted { to_sink: Some(name.into()), ..Wanted::default() };
    let stopped = replay(&rig, to("nowhere")).await;
    assert!(stopped.detail.contains("there are: other, taken"), "{}", stopped.detail);
    let stopped = replay(&rig, to("taken")).await;
    assert!(stopped.detail.contains("a file takes one writer"), "{}", stopped.detail);

    other.fault(Some(Fault::unavailable("gone fishing")));
    let begun = rig.ask(Operation::Replay(to("other"))).await.unwrap();
    let waits =
        |what: &str| rig.status().replay.is_some_and(|replay| replay.state == "running" && replay.detail == what);
    eventually("it waits", || waits("gone fishing")).await;
    // Nobody waits for it.
    rig.place(10, 5);
    rig.is_done().await;
    rig.ask(Operation::CancelReplay).await.unwrap();
    assert_eq!(ended(&rig, begun["number"].as_i64().unwrap()).await.state, "cancelled");
    assert!(rig.ask(Operation::CancelReplay).await.unwrap_err().contains("no replay"));
    other.fault(None);
    assert_eq!(replay(&rig, to("other")).await.sent, 40);
    assert_eq!(replayed(&other), ids(1..=40));
    assert!(replayed(&rig.far_side).is_empty());
}

#[test]
fn it_is_asked_for_at_the_command_line_with_and_without_a_daemon() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &file("others"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), SOON);
    let outboxd = |arguments: &[&str]| {
        let output = scene.outboxd(arguments);
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), told)
    };
    let marked = |name: &str| {
        let text = std::fs::read_to_string(scene.path(name)).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["headers"]["outboxd-replay"] == "true").count()
    };
    assert_eq!(outboxd(&["replay", "to_lines"]).0, Some(64));
    let (code, told) = outboxd(&["replay", "to_lines", "--all", "--to-sink", "others"]);
    assert_eq!((code, told.as_str()), (Some(0), "to_lines: done, 50 sent again\n"));
    assert_eq!((marked("others.ndjson"), marked("lines.ndjson")), (50, 0));
    assert_eq!(daemon.metric("outboxd_replayed_total{consumer=\"to_lines\"}"), Some(50.0));
    assert_eq!(daemon.metric("outboxd_order_violations_total{consumer=\"to_lines\"}"), Some(0.0));
    // Its own file has a writer already.
    let (code, told) = outboxd(&["replay", "to_lines", "--from", "41"]);
    assert!(code == Some(65) && told.contains("takes one writer"), "{code:?} {told}");
    assert_eq!(outboxd(&["replay", "to_lines", "--cancel"]).0, Some(0));

    // Killed in the middle, it goes on by itself.
    let slow = ["replay", "to_lines", "--all", "--to-sink", "others", "--rate", "50"];
    std::thread::scope(|scope| {
        let command = scope.spawn(|| outboxd(&slow));
        until("some are sent", SOON, || (marked("others.ndjson") > 55).then_some(()));
        daemon.kill();
        assert_ne!(command.join().unwrap().0, Some(0));
    });
    let mut daemon = scene.daemon();
    daemon.until("to_lines", "replayed", SOON, |status| status["replay"]["state"] == "done");
    assert!((100..=110).contains(&marked("others.ndjson")), "{}", marked("others.ndjson"));
    assert_eq!(daemon.stop(SOON).0, Some(0));

    let (code, told) = outboxd(&["replay", "to_lines", "--from", "41", "--json"]);
    let replay: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &replay["sent"], &replay["state"]), (Some(0), &Value::from(10), &Value::from("done")));
    assert_eq!(marked("lines.ndjson"), 10);
}
