//! Drills: a stored backup is taken back on a schedule, from the target where it lies there; what is not sound is told.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::far::{Far, config, kept};
use crate::support::application::Application;
use crate::support::process::{Daemon, Scene, ended_with, told};
use crate::support::wait::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// Those that there are, when all wait for their time.
pub fn jobs(daemon: &Daemon) -> Vec<Value> {
    let listed = || daemon.ask(&json!({ "command": "job", "action": "list" }));
    until("the jobs are known", PATIENCE, || {
        let jobs = listed()?["jobs"].as_array()?.clone();
        jobs.iter().all(|job| job["state"] == "scheduled").then_some(jobs)
    })
}

#[test]
fn a_backup_job_is_drilled_every_week_from_its_target() {
    let far = Far::s3();
    let scene = Scene::new(&config(&far.keys(), ""));
    Application::open(&scene.path("app.db"), 5).write(200);
    let daemon = scene.daemon();
    let known: Vec<(Value, Value, Value)> = jobs(&daemon)
        .into_iter()
        .map(|job| (job["name"].clone(), job["type"].clone(), job["schedule"].clone()))
        .collect();
    let nightly = (json!("nightly"), json!("backup"), json!("0 3 * * * (UTC)"));
    assert_eq!(known, [nightly, (json!("nightly_drill"), json!("drill"), json!("every 7d"))]);
    let metric = |name: &str, job: &str| daemon.metric(&format!("outboxd_{name}_timestamp_seconds{{job=\"{job}\"}}"));
    assert_eq!(metric("drill", "nightly_drill"), Some(0.0));
    assert_eq!((metric("backup_verified", "nightly"), metric("backup_at_target", "nightly")), (Some(0.0), Some(0.0)));
    let said = ended_with(&scene.outboxd(&["job", "run", "nightly_drill"]), 65);
    assert!(said.contains("there is no backup that could be taken back"), "{said}");
    told(&scene.outboxd(&["backup", "now"]));
    assert!(metric("backup_verified", "nightly") > Some(1.7e9) && metric("backup_at_target", "nightly") > Some(1.7e9));
    let said = told(&scene.outboxd(&["job", "run", "nightly_drill"]));
    assert!(said.contains("was taken from s3://") && said.contains("rows"), "{said}");
    assert!(metric("drill", "nightly_drill") > Some(1.7e9));
    assert_eq!(kept(&scene).len(), 1, "nothing is left of it: {:?}", kept(&scene));
    // What lies at the target is what is taken back.
    let (names, _) = far.backups();
    far.put(&format!("{}/app.db.zst", names[0]), b"nothing".to_vec());
    let before = metric("drill", "nightly_drill");
    ended_with(&scene.outboxd(&["job", "run", "nightly_drill"]), 65);
    assert_eq!(metric("drill", "nightly_drill"), before);
    drop(daemon);
    // After a start it is known still.
    let daemon = scene.daemon();
    let results: Vec<Value> = jobs(&daemon).iter().map(|job| job["last"]["result"].clone()).collect();
    assert_eq!(results, [json!("done"), json!("failed")]);
    let drilled = daemon.metric("outboxd_drill_timestamp_seconds{job=\"nightly_drill\"}");
    assert!(
        drilled > Some(1.7e9)
            && daemon.metric("outboxd_backup_verified_timestamp_seconds{job=\"nightly\"}") > Some(1.7e9)
    );
}

#[test]
fn a_drill_is_declared_or_turned_off() {
    let declared = "[jobs.sunday]\ntype = \"drill\"\nbackup = \"nightly\"\nschedule = \"0 5 * * 0\"";
    for (more, names) in [(declared, &["nightly", "sunday"][..]), ("drill = false", &["nightly"])] {
        let scene = Scene::new(&config("", more));
        Application::open(&scene.path("app.db"), 5).write(20);
        told(&scene.outboxd(&["backup", "now"]));
        let daemon = scene.daemon();
        assert_eq!(jobs(&daemon).iter().map(|job| job["name"].clone()).collect::<Vec<_>>(), names);
        if let [_, drill] = names {
            // Without a target, of what lies here.
            assert!(told(&scene.outboxd(&["job", "run", drill])).contains("was taken, unpacked"));
            let [name] = &kept(&scene)[..] else { panic!("there is one") };
            fs::write(scene.path("kept").join(name).join("app.db.zst"), b"nothing").unwrap();
            ended_with(&scene.outboxd(&["job", "run", drill]), 65);
        }
    }
}
