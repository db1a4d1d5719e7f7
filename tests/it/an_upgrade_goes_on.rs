//! Another version of the daemon, whose state tables this one finds, is replaced while events flow, again and again: nothing is lost.
//!
//! `OUTBOXD_TEST_PREVIOUS` names its binary (`make soak` builds the previous commit's); without it this version replaces itself.
//! `OUTBOXD_TEST_UPGRADES` (6), half of them by kill -9.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::application::Application;
use crate::support::dice::{Dice, number};
use crate::support::process::{SHOP, Scene};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{file, relay};

#[test]
fn with_its_predecessors_tables() {
    let previous = std::env::var_os("OUTBOXD_TEST_PREVIOUS").map(PathBuf::from);
    let upgrades = number("OUTBOXD_TEST_UPGRADES").unwrap_or(6);
    let mut dice = Dice::thrown("upgrade");
    let seed = dice.seed;
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let application = Application::open(&scene.path("app.db"), 100);
    let flow = application.flow(upgrades as usize * 4000, 4000.0, Dice::of(dice.next()));
    for upgrade in 0..upgrades {
        for binary in [previous.as_deref(), None] {
            let mut daemon = scene.daemon_from(binary);
            daemon.until_state("to_lines", "running", Duration::from_secs(20));
            std::thread::sleep(dice.between(Duration::from_millis(50), Duration::from_millis(800)));
            if upgrade % 2 == 0 {
                daemon.kill();
            } else {
                assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
            }
        }
    }
    let application = flow.join().unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path("lines.ndjson")));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    Proof::of("an upgrade while events flow")
        .seed(seed)
        .tried("events", application.ledger.len() as u64)
        .tried("changes of version", 2 * upgrades)
        .found("predecessor", if previous.is_some() { "the previous commit" } else { "this version" })
        .found("lost", judgement.lost.len())
        .found("out of order", judgement.out_of_order.len())
        .found("duplicates", judgement.duplicates);
}
