//! A target that is dead: what lies here is made, checked, kept and restored as if nothing were; the run says so, and the next one sends what is missing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::drills::jobs;
use super::far::{Far, config, kept, listed, on_day, s3_keys};
use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::dice::Dice;
use crate::support::process::{Scene, ended_with, told};
use crate::support::proof::Proof;
use crate::support::proxy::{Direction, Proxy, Weather};
use crate::support::rig::open;
use crate::support::s3::Bucket;
use crate::support::wait::until;

const PATIENCE: Duration = Duration::from_secs(30);

/// Answers everything with this; ends with the process.
fn answering(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 16 << 10];
            // A list has no body: its head comes in one piece.
            let _ = stream.read(&mut request);
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        }
    });
    endpoint
}

fn closed() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_dead_target_keeps_no_backup_from_being_made_and_gets_what_it_missed() {
    let bucket = Bucket::new(&unique("late").replace('_', "-"));
    let hanging = Proxy::new(Dice::of(7));
    hanging.lead_to(bucket.port);
    hanging.weather(Weather::Frozen);
    let denied = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>";
    let busy = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let trials = [
        ("refused", s3_keys(&closed(), &bucket.name), "see that it can be reached"),
        ("hanging", s3_keys(&format!("http://127.0.0.1:{}", hanging.port), &bucket.name), "Remedy"),
        ("503", s3_keys(&answering("503 Slow Down", busy), &bucket.name), "SlowDown"),
        ("403", s3_keys(&answering("403 Forbidden", denied), &bucket.name), "look at access_key_id"),
        ("no bucket", s3_keys(&bucket.endpoint, "there-is-none"), "make the bucket"),
        ("no folder", "target = \"file:///var/lib/outboxd-not-mounted\"".to_owned(), "mount it, or make the folder"),
    ];
    let scene = Scene::new(&config("", ""));
    Application::open(&scene.path("app.db"), 5).write(50);
    for (day, (what, far, says)) in trials.iter().enumerate() {
        scene.configure(&config(far, "target_timeout = \"400ms\""));
        let began = Instant::now();
        let said = ended_with(&on_day(&scene, day as u32, &["backup", "now"], &[]), 69);
        assert!(began.elapsed() < PATIENCE, "{what} holds it up");
        assert!(said.contains("opened and checked") && said.contains("it lies here alone"), "{what}: {said}");
        assert!(said.contains(says) && said.contains("Remedy") && !said.contains("hidden-word"), "{what}: {said}");
        assert_eq!(kept(&scene).len(), day + 1, "{what}");
        let listed = scene.outboxd(&["backup", "list"]);
        let said = ended_with(&listed, 69);
        assert!(
            said.contains(says) && said.lines().filter(|line| line.starts_with("nightly-")).count() == day + 1,
            "{said}"
        );
    }
    // What lies here is restored all the same.
    let restored = scene.outboxd(&["restore", "--to", "new.db"]);
    assert!(String::from_utf8_lossy(&restored.stderr).contains("is not seen"), "{restored:?}");
    told(&restored);
    scene.configure(&config(&s3_keys(&bucket.endpoint, &bucket.name), ""));
    let said = told(&on_day(&scene, 6, &["backup", "now"], &[]));
    assert!(said.contains("7 sent to"), "{said}");
    let list = listed(&scene);
    assert!(list.len() == 7 && list.iter().all(|(_, lies)| lies == "both"), "{list:?}");
    Proof::of("dead targets").tried("kinds", trials.len() as u64).found("local backups kept from being made", 0);
}

/// Rows that do not get smaller.
fn fill(scene: &Scene, bytes: usize) {
    let app = open(&scene.path("app.db"));
    app.execute_batch(&format!("CREATE TABLE ballast (b BLOB); INSERT INTO ballast VALUES (randomblob({bytes}))"))
        .unwrap();
}

#[test]
fn an_upload_that_was_cut_is_sent_on_and_not_anew() {
    const BYTES: usize = 800_000;
    let bucket = Bucket::new(&unique("cut").replace('_', "-"));
    let proxy = Proxy::new(Dice::of(8));
    proxy.lead_to(bucket.port);
    let keys = s3_keys(&format!("http://127.0.0.1:{}", proxy.port), &bucket.name);
    let scene = Scene::new(&config(&keys, "target_piece = \"64KiB\"\ntarget_timeout = \"2s\""));
    fill(&scene, BYTES);
    proxy.weather(Weather::Delay(Duration::from_millis(60)));
    let cut = std::thread::scope(|scope| {
        let run = scope.spawn(|| on_day(&scene, 0, &["backup", "now"], &[]));
        until("some of it has passed", PATIENCE, || (proxy.passed(Direction::ToBroker) > 300_000).then_some(()));
        proxy.weather(Weather::Frozen);
        proxy.lose_peers();
        run.join().unwrap()
    });
    ended_with(&cut, 69);
    let far = Far::S3(bucket);
    let (whole, half) = far.backups();
    assert!(whole.is_empty() && half.len() == 1, "{whole:?} {half:?}");
    proxy.weather(Weather::Fair);
    let before = proxy.passed(Direction::ToBroker);
    assert!(told(&on_day(&scene, 1, &["backup", "now"], &[])).contains("2 sent to"));
    let sent = proxy.passed(Direction::ToBroker) - before;
    let all: u64 = far.objects().values().sum();
    assert!(all > 2 * BYTES as u64 && sent < all - 150_000, "{sent} of {all} bytes were sent");
    assert_eq!(far.backups(), (kept(&scene), Vec::new()));
    told(&scene.outboxd(&["backup", "verify", "--from-target"]));
}

#[test]
fn a_stop_ends_an_upload_that_hangs() {
    let bucket = Bucket::new(&unique("stop").replace('_', "-"));
    let proxy = Proxy::new(Dice::of(9));
    proxy.lead_to(bucket.port);
    proxy.weather(Weather::Frozen);
    let keys = s3_keys(&format!("http://127.0.0.1:{}", proxy.port), &bucket.name);
    let scene = Scene::new(&config(&keys, ""));
    Application::open(&scene.path("app.db"), 5).write(50);
    let mut daemon = scene.daemon();
    jobs(&daemon);
    let took = std::thread::scope(|scope| {
        let run = scope.spawn(|| scene.outboxd(&["backup", "now"]));
        until("it is on its way", PATIENCE, || proxy.attempts().first().copied());
        let (code, took) = daemon.stop(PATIENCE);
        assert_eq!(code, Some(0));
        run.join().unwrap();
        took
    });
    // The run has heard it: it was not let go of.
    let state = open(&scene.path("app.db-outboxd.db"));
    let sql = "SELECT result FROM outboxd_job_run WHERE job = 'nightly' ORDER BY rowid DESC";
    assert_eq!(state.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap(), "aborted", "after {took:?}");
    assert_eq!(kept(&scene).len(), 1, "what was made here stays");
}

#[test]
fn what_is_wrong_with_a_target_is_told_with_its_place() {
    let s3 = "s3 = { endpoint = \"http://127.0.0.1:9\", access_key_id = \"a\", secret_access_key = \"hidden-word\" }";
    let trials = [
        ("target = \"s3://bucket/x\"".to_owned(), "s3.access_key_id", "must be said"),
        ("target = \"s3://bucket/x\"".to_owned(), "s3.secret_access_key", "must be said"),
        (format!("target = \"s3:///x\"\n{s3}"), "target", "no name of a bucket"),
        (format!("target = \"s3://b/a//x\"\n{s3}"), "target", "cannot stand before names"),
        (format!("target = \"s3://b/x\"\n{}", s3.replace("127.0.0.1:9", "s3.example.net")), "s3.endpoint", "in between"),
        (format!("target = \"s3://b/x\"\n{}", s3.replace("http://", "")), "s3.endpoint", "it is no address"),
        ("target = \"gs://bucket/x\"".to_owned(), "target", "knows no gs://"),
        ("target = \"kept\"".to_owned(), "target", "this is `folder` itself"),
        (format!("target = \"s3://b/x\"\n{s3}\ntarget_piece = \"1B\""), "target_piece", "out of bounds"),
        ("target = \"far\"\n[jobs.nightly_drill]\ntype = \"backup\"\nfiles = [\"x.db\"]\ntarget = \"y\"\nevery = \"1h\"\ndrill = false".to_owned(), "", "the drill of nightly has this name"),
        ("target = \"far\"\n[jobs.d]\ntype = \"drill\"\nbackup = \"nigthly\"".to_owned(), "", "did you mean \"nightly\"?"),
    ];
    for (far, place, says) in trials {
        let scene = Scene::without_a_file(&config(&far, ""));
        let said = ended_with(&scene.outboxd(&["config", "show"]), 78);
        let place = if place.is_empty() { "jobs.".to_owned() } else { format!("jobs.nightly.{place}") };
        assert!(said.contains(&place) && said.contains(says) && !said.contains("hidden-word"), "{far}: {said}");
    }
    let scene = Scene::without_a_file(&config(&format!("target = \"s3://b/x\"\n{s3}"), ""));
    let said = told(&scene.outboxd(&["config", "show"]));
    assert!(said.contains("jobs.nightly.s3") || said.contains("s3.secret_access_key = ***"), "{said}");
    assert!(!said.contains("hidden-word"), "{said}");
    // By file, which others may not read, and by environment.
    let by_file = s3.replace("secret_access_key = \"hidden-word\"", "secret_access_key_file = \"key\"");
    let scene = Scene::without_a_file(&config(&format!("target = \"s3://b/x\"\n{by_file}"), ""));
    scene.write("key", "hidden-word\n");
    told(&scene.outboxd(&["config", "show"]));
    let by_nothing = s3.replace(", secret_access_key = \"hidden-word\"", "");
    let scene = Scene::without_a_file(&config(&format!("target = \"s3://b/x\"\n{by_nothing}"), ""));
    let variable = [("OUTBOXD_JOBS__NIGHTLY__S3__SECRET_ACCESS_KEY", "hidden-word")];
    assert!(!told(&scene.outboxd_with(&["config", "show"], &variable)).contains("hidden-word"));
}
