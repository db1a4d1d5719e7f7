//! Copies of backups off the host, one suite for a folder and a real S3 server: sent whole or not at all, pruned by the calendar, restored from there
//! alone; a target that is dead costs nothing here; what was changed there comes to nobody. And drills, which take backups back on a schedule.

mod dead;
mod drills;
mod far;

use std::fs;
use std::time::Duration;

use rusqlite::Connection;

use self::far::{Far, config, kept, listed, on_day};
use crate::support::application::Application;
use crate::support::process::{SHOP, Scene, ended_with, told};
use crate::support::proof::Proof;
use crate::support::readers;
use crate::support::referee::judge;
use crate::support::relays::{file, relay};
use crate::support::rig::open;
use crate::the_controls_fail_without_their_protection::without;

const PATIENCE: Duration = Duration::from_secs(30);

/// Declares a test for each kind of target.
macro_rules! for_both {
    ($($test:ident;)*) => {
        mod to_a_folder { $(#[test] fn $test() { super::$test(super::Far::folder()); })* }
        mod to_s3 { $(#[test] fn $test() { super::$test(super::Far::s3()); })* }
    };
}

for_both! {
    a_lost_host_is_made_anew_from_the_target_alone;
    whatever_ends_a_run_leaves_whole_backups_at_the_target;
    a_copy_that_is_not_what_was_sent_is_refused;
    control_without_hashes_what_was_forged_comes_out;
    nothing_that_is_there_is_overwritten;
}

/// The host is gone, with its folder: an empty one has the configuration and the target.
fn a_lost_host_is_made_anew_from_the_target_alone(far: Far) {
    let relays =
        [SHOP.replace("[sources.shop]", "[sources.shop]\nstate = \"inside\""), file("lines"), relay("lines", "")]
            .concat();
    let config =
        [relays.as_str(), &far::nightly(&far.keys(), "target_piece = \"4KiB\"\nkeep = { daily = 2 }")].concat();
    let lost = Scene::new(&config);
    let mut application = Application::open(&lost.path("app.db"), 5);
    application.write(300);
    let mut daemon = lost.daemon();
    daemon.until_settled("to_lines", application.head(), PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    for day in 0..4 {
        let said = told(&on_day(&lost, day, &["backup", "now"], &[]));
        assert!(said.contains("1 sent to"), "{said}");
    }
    let both = |name: &str| (name.to_owned(), "both".to_owned());
    let [older, newer] = ["nightly-20260103T030000", "nightly-20260104T030000"];
    let list = listed(&lost);
    assert!(list[0].0.starts_with(older) && list[1].0.starts_with(newer), "{list:?}");
    assert_eq!(list, [both(&list[0].0), both(&list[1].0)], "older ones went, here and there");
    let newest = list[1].0.clone();
    let pieces = far.objects().keys().filter(|key| key.starts_with(&format!("{newest}/app.db.zst."))).count();
    assert!(pieces >= 2, "it was sent in pieces: {:?}", far.objects());
    let ledger = application.ledger[..].to_vec();
    let lines = lost.path("lines.ndjson");
    let arrived = readers::lines(&lines);
    drop((application, lost));

    let found = Scene::without_a_file(&config);
    assert_eq!(listed(&found).into_iter().map(|(_, lies)| lies).collect::<Vec<_>>(), ["there", "there"]);
    assert!(told(&found.outboxd(&["backup", "verify"])).contains("unpacked, opened and checked"));
    let said = told(&found.outboxd(&["restore", "--to", "app.db"]));
    assert!(said.contains(&newest) && said.contains("to_lines goes on behind position 300"), "{said}");
    assert_eq!(kept(&found), Vec::<String>::new(), "what was brought here is gone again");
    let app = open(&found.path("app.db"));
    // Else the daemon would make up for the night that the machine's own clock says was missed.
    app.execute("DELETE FROM outboxd_job_run", []).unwrap();
    app.execute("INSERT INTO outbox (id, stream_id, type, payload) VALUES ('after', 'key-1', 'Happened', 'x')", [])
        .unwrap();
    let mut daemon = found.daemon();
    daemon.until_settled("to_lines", 301, PATIENCE);
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let mut arrivals = [arrived, readers::lines(&found.path("lines.ndjson"))].concat();
    assert!(arrivals.iter().any(|arrival| arrival.id == "after"));
    arrivals.retain(|arrival| arrival.id != "after");
    let judgement = judge(&ledger, &[], &arrivals);
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
    // A run there goes on with what lies at the target.
    told(&on_day(&found, 4, &["backup", "now"], &[]));
    let list = listed(&found);
    assert_eq!(list.iter().map(|(_, lies)| lies.as_str()).collect::<Vec<_>>(), ["there", "both"], "{list:?}");
}

fn whatever_ends_a_run_leaves_whole_backups_at_the_target(far: Far) {
    let scene = Scene::new(&config(&far.keys(), "target_piece = \"4KiB\"\nkeep = { daily = 1 }"));
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(500);
    let (mut day, mut crashes, mut at_the_target) = (0, 0, 0);
    told(&on_day(&scene, day, &["backup", "now"], &[]));
    for step in 1.. {
        day += 1;
        let crashed = on_day(&scene, day, &["backup", "now"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            told(&crashed);
            break;
        };
        crashes += 1;
        // What comes before has a ladder of its own.
        if seam != "Upload" && seam != "Withdraw" {
            continue;
        }
        at_the_target += 1;
        let (whole, _) = far.backups();
        assert!(!whole.is_empty(), "one lies there at any moment: step {step}, {seam}");
        told(&scene.outboxd(&["backup", "verify", "--from-target"]));
        // The next run sends on what was begun, and leaves nothing half.
        day += 1;
        told(&on_day(&scene, day, &["backup", "now"], &[]));
        let (whole, half) = far.backups();
        assert_eq!(half, Vec::<String>::new(), "step {step}, {seam}");
        assert_eq!(whole, kept(&scene), "step {step}, {seam}");
        assert_eq!(whole.len(), 1);
    }
    assert!(at_the_target >= 6, "the ladder has rungs there: {at_the_target} of {crashes}");
    for name in ["Bring", "Drill"] {
        let words: &[&str] = if name == "Bring" {
            &["restore", "--from-target", "--to", "new.db"]
        } else {
            &["job", "run", "nightly_drill"]
        };
        let crashed = scene.outboxd_with(words, &[("CRASH_AT", name)]);
        assert!(String::from_utf8_lossy(&crashed.stderr).contains("crashed at"), "{crashed:?}");
        assert!(!scene.path("new.db").exists());
    }
    assert!(kept(&scene).iter().any(|name| name.ends_with(".brought")), "{:?}", kept(&scene));
    told(&on_day(&scene, day + 1, &["backup", "now"], &[]));
    assert_eq!(kept(&scene), far.backups().0, "what was being brought is gone");
    Proof::of("crash ladder, backups at a target").tried("crashes", crashes).found("lost or half", 0);
}

/// Other rows, as many of them, in as many bytes: sound by itself, and not what was sent.
fn forged(good: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged.db");
    fs::write(&path, zstd::decode_all(good).unwrap()).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.execute("UPDATE outbox SET payload = '{\"total\": 1000000}' WHERE position = 7", []).unwrap();
    drop(connection);
    let mut bytes = zstd::encode_all(&fs::read(&path).unwrap()[..], 19).unwrap();
    let rest = good.len().checked_sub(bytes.len() + 8).expect("it is compressed harder");
    // A frame that is skipped.
    bytes.extend([0x50, 0x2a, 0x4d, 0x18]);
    bytes.extend((rest as u32).to_le_bytes());
    bytes.resize(good.len(), 0);
    bytes
}

fn a_copy_that_is_not_what_was_sent_is_refused(far: Far) {
    let scene = Scene::new(&config(&far.keys(), ""));
    Application::open(&scene.path("app.db"), 5).write(500);
    told(&scene.outboxd(&["backup", "now"]));
    let (names, _) = far.backups();
    let key = format!("{}/app.db.zst", names[0]);
    let good = far.get(&key);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let forged = forged(&good);
    let trials = [
        ("a bit", Some(flipped), "SHA-256"),
        ("cut short", Some(good[..good.len() - 9].to_vec()), "the manifest says"),
        ("more behind it", Some([&good[..], b"more"].concat()), "the manifest says"),
        ("gone", None, "0 bytes, and the manifest says"),
        ("forged", Some(forged), "SHA-256"),
    ];
    for (what, bytes, says) in trials {
        match bytes {
            Some(bytes) => far.put(&key, bytes),
            None => far.delete(&key),
        }
        let said = ended_with(&scene.outboxd(&["backup", "verify", "--from-target"]), 65);
        assert!(said.contains(says), "{what}: {said}");
        ended_with(&scene.outboxd(&["restore", "--from-target", "--to", "new.db"]), 65);
        ended_with(&scene.outboxd(&["job", "run", "nightly_drill"]), 65);
        assert!(!scene.path("new.db").exists() && kept(&scene).len() == 1, "{what}: {:?}", kept(&scene));
        told(&scene.outboxd(&["backup", "verify"]));
    }
    // A manifest that is none is not taken for one, nor taken away.
    far.put(&format!("{}/manifest.json", names[0]), b"{".to_vec());
    let said = ended_with(&scene.outboxd(&["backup", "now"]), 65);
    assert!(said.contains("it is no manifest") || said.contains("none of ours"), "{said}");
    assert!(far.objects().contains_key(&format!("{}/manifest.json", names[0])));
    Proof::of("hostile copies at a target").tried("kinds", 6).found("taken", 0);
}

/// With the checks of hashes off, other rows are taken for ours.
fn control_without_hashes_what_was_forged_comes_out(far: Far) {
    let scene = Scene::new(&config(&far.keys(), ""));
    Application::open(&scene.path("app.db"), 5).write(500);
    told(&scene.outboxd(&["backup", "now"]));
    let key = format!("{}/app.db.zst", far.backups().0[0]);
    far.put(&key, forged(&far.get(&key)));
    let restore = ["restore", "--from-target", "--to", "new.db"];
    ended_with(&scene.outboxd(&restore), 65);
    told(&scene.outboxd_with(&restore, &without("Hashes")));
    let sql = "SELECT payload FROM outbox WHERE position = 7";
    let payload: String = open(&scene.path("new.db")).query_row(sql, [], |row| row.get(0)).unwrap();
    assert!(payload.contains("1000000"), "{payload}");
}

/// What somebody else has put there, under the name of one that is here.
fn nothing_that_is_there_is_overwritten(far: Far) {
    let scene = Scene::new(&config("", ""));
    Application::open(&scene.path("app.db"), 5).write(50);
    told(&on_day(&scene, 0, &["backup", "now"], &[]));
    let [name] = &kept(&scene)[..] else { panic!("there is one") };
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(scene.path("kept").join(name).join("manifest.json")).unwrap()).unwrap();
    manifest["files"][0]["sha256"] = "00".into();
    far.put(&format!("{name}/manifest.json"), manifest.to_string().into_bytes());
    far.put(&format!("{name}/app.db.zst"), b"another's".to_vec());
    scene.configure(&config(&far.keys(), ""));
    let said = ended_with(&on_day(&scene, 1, &["backup", "now"], &[]), 65);
    assert!(said.contains("none of ours") && said.contains("there is another than here"), "{said}");
    assert_eq!(far.get(&format!("{name}/app.db.zst")), b"another's");
    // What lies here under that name is what is restored.
    told(&scene.outboxd(&["restore", "--at", "2026-01-01T12:00:00Z", "--to", "new.db"]));
    let rows: i64 = open(&scene.path("new.db")).query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 50);
    // By its name, too, although a newer one is there.
    assert!(kept(&scene).len() > 1);
    let said = told(&scene.outboxd(&["restore", "--at", name, "--to", "named.db"]));
    assert!(said.contains(&**name), "{said}");
    let said = ended_with(&scene.outboxd(&["restore", "--at", "nightly", "--to", "nowhere.db"]), 64);
    assert!(said.contains("no backup has this name"), "{said}");
}
