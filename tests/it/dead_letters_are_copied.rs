//! Each dead letter is copied to the dead-letter sink, at least once, with what is to be said of its end; nothing waits for that.

use std::collections::BTreeMap;
use std::time::Duration;

use outboxd::consumer::OnReject;
use outboxd::event::{Reason, Rejection};
use outboxd::sink::format::Format;
use outboxd::sink::{self, Fault, file};
use serde_json::Value;

use crate::support::application::Application;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::fake;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::relays::{file as file_sink, relay};
use crate::support::rig::{Rig, by_id, eventually, open, poison};

const SOON: Duration = Duration::from_secs(20);

/// A rig whose first refusal is final, with a far side for the copies.
async fn rig() -> (Rig, FarSide) {
    let mut rig = Rig::new().await;
    let graveyard = FarSide::default();
    rig.relay.bounds.attempts_max = 1;
    rig.relay.dead_letter_sink = Some(("graveyard".into(), fake(&graveyard)));
    (rig, graveyard)
}

fn copied(graveyard: &FarSide) -> Vec<String> {
    graveyard.arrivals().into_iter().map(|arrival| arrival.id).collect()
}

fn waits(rig: &Rig, waiting: u64) -> bool {
    rig.status().copies.is_some_and(|copies| copies.waiting == waiting && copies.detail == "gone fishing")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_says_why_and_the_dead_letter_stays() {
    let (mut rig, _) = rig().await;
    let lines = rig.folder.path().join("graveyard.ndjson");
    let settings =
        file::Settings { path: Some(lines.clone()), format: Format::Envelope, rotation: file::Rotation::default() };
    rig.relay.dead_letter_sink = Some(("graveyard".into(), sink::Settings::File(settings)));
    rig.far_side.reject(poison(&["e3"]));
    rig.place(10, 5);
    rig.start();
    rig.is_done_or_held().await;
    eventually("it is copied", || rig.status().copies.is_some_and(|copies| copies.copied == 1)).await;
    assert_eq!(rig.held_ids(), ["e3", "e8"]);
    let text = std::fs::read_to_string(&lines).unwrap();
    let copy: Value = serde_json::from_str(text.trim_end()).unwrap();
    let said = |name: &str| copy["headers"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (copy["id"].as_str(), copy["key"].as_str(), copy["type"].as_str()),
        (Some("e3"), Some("k3"), Some("Placed"))
    );
    assert_eq!(said("outboxd-dead-letter"), "relay");
    assert_eq!(
        (said("outboxd-reason"), said("outboxd-detail"), said("outboxd-attempts")),
        ("refused".into(), "poison".into(), "1".into())
    );
    assert!(said("outboxd-failed-at").starts_with("20"), "{copy}");
    // Tried in vain once more, it has died once more.
    rig.retry(by_id("e3")).await;
    eventually("it is copied again", || rig.status().copies.is_some_and(|copies| copies.copied == 2)).await;
    rig.far_side.mend();
    rig.retry(by_id("e3")).await;
    rig.is_done().await;
    assert_eq!(std::fs::read_to_string(&lines).unwrap().lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_sink_that_is_away_holds_up_nothing_and_gets_all_later() {
    let (mut rig, graveyard) = rig().await;
    graveyard.fault(Some(Fault::unavailable("gone fishing")));
    rig.far_side.reject(poison(&["e3", "e6", "e14"]));
    rig.place(20, 5);
    rig.start();
    rig.is_done_or_held().await;
    eventually("the copies wait", || waits(&rig, 3)).await;
    assert_eq!(rig.status().position, 20);
    // What becomes of the dead letters meanwhile does not matter, nor does a crash.
    rig.discard(by_id("e6"), "no").await.unwrap();
    rig.crash().await;
    rig.start();
    eventually("they are still there", || waits(&rig, 3)).await;
    rig.place(10, 5);
    rig.is_done_or_held().await;
    graveyard.fault(None);
    eventually("they arrive", || rig.status().copies.is_some_and(|copies| copies.waiting == 0)).await;
    assert_eq!(copied(&graveyard), ["e3", "e6", "e14"]);
    assert_eq!(rig.recorded::<i64>("SELECT count(*) FROM outboxd_dead_letter_copy"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_refused_stays_and_the_others_go_on() {
    let (mut rig, graveyard) = rig().await;
    rig.relay.on_reject = OnReject::Skip;
    graveyard.suspect(|event| (event.id == "e6").then(|| Rejection::new(Reason::TooLarge, "too much")));
    rig.far_side.reject(poison(&["e3", "e6", "e14"]));
    rig.place(20, 5);
    rig.start();
    rig.is_done_or_held().await;
    eventually("the others arrive", || copied(&graveyard).iter().any(|id| id == "e14")).await;
    eventually("it is shown", || {
        let copies = rig.status().copies.unwrap();
        copies.waiting == 1 && copies.detail.contains("e6") && copies.detail.contains("too much")
    })
    .await;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    copied(&graveyard).into_iter().for_each(|id| *seen.entry(id).or_default() += 1);
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["e14", "e3"]);
    // After a restart it is tried again.
    graveyard.mend();
    rig.crash().await;
    rig.start();
    eventually("it arrives", || copied(&graveyard).iter().any(|id| id == "e6")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_copied_is_not_copied_again() {
    let (mut rig, graveyard) = rig().await;
    rig.far_side.reject(poison(&["e1"]));
    rig.place(5, 5);
    rig.start();
    eventually("it arrives", || rig.status().copies.is_some_and(|copies| copies.copied == 1)).await;
    rig.drain().await;
    assert_eq!(copied(&graveyard), ["e1"]);
    rig.start();
    rig.is_done_or_held().await;
    // Nothing is copied twice when it was recorded.
    assert_eq!(copied(&graveyard), ["e1"]);
}

#[test]
fn it_is_named_in_the_configuration() {
    let _machine = shared_machine();
    let copies = "dead_letter_sink = \"graveyard\"\nattempts_max = 1";
    let scene = Scene::new(&[SHOP, &file_sink("lines"), &file_sink("graveyard"), &relay("lines", copies)].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let sql = "UPDATE outbox SET stream_type = cast(x'ff' AS TEXT) WHERE position = 4";
    open(&scene.path("app.db")).execute(sql, []).unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), SOON);
    daemon.until("to_lines", "copied", SOON, |status| status["dead_letter_copies"]["copied"] == 1);
    let series = |name: &str| daemon.metric(&format!("{name}{{consumer=\"to_lines\"}}"));
    assert_eq!(series("outboxd_dead_letters_copied_total"), Some(1.0));
    assert_eq!(series("outboxd_dead_letter_copies"), Some(0.0));
    let text = std::fs::read_to_string(scene.path("graveyard.ndjson")).unwrap();
    let copy: Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(copy["headers"]["outboxd-reason"], "undecodable", "{copy}");
    // Its file is nobody else's.
    scene.configure(&[SHOP, &file_sink("lines"), &relay("lines", "dead_letter_sink = \"lines\"")].concat());
    let refused = scene.outboxd(&["check"]);
    let told = String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(78) && told.contains("writes to the same file"), "{told}");
}
