//! Health, metrics and status are right, above all where others are wrong: a consumer that never started or has stopped is behind.

use std::time::Duration;

use outboxd::telemetry::metric;
use serde_json::Value;

use crate::support::application::{Application, Row};
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::until;

fn lag(daemon: &Daemon, consumer: &str) -> f64 {
    let told = daemon.status(consumer).unwrap()["lag_seconds"].as_f64().unwrap();
    let metric = daemon.metric(&format!("outboxd_lag_seconds{{consumer=\"{consumer}\"}}")).unwrap();
    assert!((metric - told).abs() < 1.0, "the two say the same: {told}, {metric}");
    metric
}

/// The lag is above a second, and a second later it is a second more.
fn falls_behind(daemon: &Daemon, consumer: &str) {
    let first = until(&format!("{consumer} falls behind"), Duration::from_secs(10), || {
        Some(lag(daemon, consumer)).filter(|lag| *lag > 1.0)
    });
    std::thread::sleep(Duration::from_secs(1));
    let then = lag(daemon, consumer);
    assert!((0.8..4.0).contains(&(then - first)), "{consumer}: {first} s, and a second later {then} s");
}

#[test]
fn every_metric_is_there_and_zeros_stand_from_the_start() {
    let _machine = shared_machine();
    let jobs = "\n[jobs.often]\ntype = \"snapshot\"\nsource = \"shop\"\nevery = \"1s\"\nreducers = { a = \"none\" }\n\
                [sources.log]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n\
                [jobs.old]\ntype = \"archive\"\nsource = \"log\"\nevery = \"1s\"\n\
                [jobs.tidy]\ntype = \"retention\"\nsource = \"shop\"\nwhat = \"published\"\nolder_than = \"720h\"\nevery = \"1s\"\n\
                [jobs.safe]\ntype = \"backup\"\nfiles = [\"app.db\"]\nfolder = \"backups\"\ntarget = \"file://THERE\"\nevery = \"1h\"\n";
    let elsewhere = tempfile::tempdir().unwrap();
    let jobs = jobs.replace("THERE", &elsewhere.path().to_string_lossy());
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", ""), &jobs].concat());
    let mut daemon = scene.daemon();
    daemon.until_state("to_lines", "running", Duration::from_secs(10));
    for job in ["often", "old", "tidy"] {
        let done = format!("outboxd_job_runs_total{{job=\"{job}\",result=\"done\"}}");
        until("the job has run", Duration::from_secs(20), || daemon.metric(&done).filter(|runs| *runs > 0.0));
    }
    let (code, before) = daemon.get("/metrics");
    assert_eq!(code, 200);
    let of_consumer = |series: &str| format!("outboxd_{series}{{consumer=\"to_lines\"");
    for series in [
        "held_keys",
        "held_oldest_seconds",
        "dead_letters",
        "lag_seconds",
        "backlog_events",
        "in_flight_events",
        "consumer_position_ahead",
    ] {
        assert!(before.contains(&format!("{}}} 0\n", of_consumer(series))), "{series}:\n{before}");
    }
    for outcome in ["delivered", "retrying", "dead", "skipped", "waiting"] {
        let series = format!("{},outcome=\"{outcome}\"}} 0\n", of_consumer("events_total"));
        assert!(before.contains(&series), "{series}:\n{before}");
    }
    for reason in outboxd::event::Reason::ALL {
        let series = format!("{},reason=\"{}\"}} 0\n", of_consumer("retries_total"), reason.as_str());
        assert!(before.contains(&series), "{series}:\n{before}");
    }
    assert!(before.contains(&format!("{}}} 0\n", of_consumer("redelivered_total"))), "{before}");
    for state in outboxd::consumer::status::State::ALL {
        let value = u8::from(state == "running");
        assert!(
            before.contains(&format!("{},state=\"{state}\"}} {value}\n", of_consumer("consumer_state"))),
            "{before}"
        );
    }

    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(500);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    let (_, after) = daemon.get("/metrics");
    let known: Vec<_> = metric::ALL.iter().map(|metric| metric.name).collect();
    let missing: Vec<_> = known.iter().filter(|name| !after.contains(&format!("# TYPE {name} "))).collect();
    assert!(missing.is_empty(), "{missing:?} are not in\n{after}");
    assert!(after.contains(&format!("{},outcome=\"delivered\"}} 500\n", of_consumer("events_total"))), "{after}");
    assert!(after.contains(&format!("{}}} 500\n", of_consumer("event_to_ack_seconds_count"))), "{after}");
    for line in after.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(known.contains(&name), "{name} is not in the reference");
    }
}

#[test]
fn probes_answer_and_nothing_can_be_changed() {
    let _machine = shared_machine();
    let halted = kafka("bus", "127.0.0.1:9", "shop", "");
    let config = [SHOP, &file("lines"), &relay("lines", ""), &halted, &relay("bus", "")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    daemon.until_state("to_bus", "unavailable", Duration::from_secs(15));
    assert_eq!(daemon.get("/livez"), (200, "ok\n".into()), "an outage is not a hang");
    assert_eq!(daemon.get("/readyz"), (200, "ok\n".into()));
    assert_eq!(daemon.get("/readyz?consumers").0, 200, "nor is it a halt");
    let (code, verbose) = daemon.get("/readyz?verbose");
    assert_eq!(code, 200);
    assert!(verbose.contains("to_lines: running") && verbose.contains("to_bus: unavailable Kafka"), "{verbose}");
    assert_eq!(scene.outboxd(&["health", "--address", &daemon.admin()]).status.code(), Some(0));

    let json = |path: &str| -> Value { serde_json::from_str(&daemon.get(path).1).unwrap() };
    let status = json("/api/v1/status");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["consumers"][0]["name"], "to_bus");
    assert_eq!(status["consumers"][1]["delivered_total"], 10);
    assert_eq!(json("/api/v1/consumers")[1]["name"], "to_lines");
    let none = json("/api/v1/dead-letters");
    assert_eq!((&none["dead_letters"], &none["more"]), (&Value::Array(vec![]), &false.into()), "{none}");
    assert_eq!(daemon.get("/api/v1/dead-letters?consumer=nobody").0, 404);
    assert_eq!(daemon.get("/nowhere").0, 404);
    for path in ["/livez", "/metrics", "/api/v1/status", "/api/v1/dead-letters"] {
        assert_eq!(daemon.request("POST", path).0, 405, "{path}");
    }
    // What commands are told is the same.
    let printed = scene.outboxd(&["status", "--json"]);
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!(printed["consumers"][1]["delivered_total"], 10);
}

#[test]
fn a_halted_consumer_makes_readyz_503_only_when_asked_for_consumers() {
    let _machine = shared_machine();
    let no_start = relay("lines", "").replace("start = \"first\"\n", "");
    let scene = Scene::new(&[SHOP, &file("lines"), &no_start].concat());
    Application::open(&scene.path("app.db"), 5).write(10);
    let mut daemon = scene.daemon();
    let status = daemon.until_state("to_lines", "halted", Duration::from_secs(10));
    assert!(status["detail"].as_str().unwrap().contains("start = "), "{status}");
    assert_eq!(daemon.get("/livez").0, 200);
    assert_eq!(daemon.get("/readyz").0, 200);
    let (code, body) = daemon.get("/readyz?consumers&verbose");
    assert_eq!(code, 503);
    assert!(body.contains("to_lines: halted"), "{body}");
}

#[test]
fn a_consumer_that_never_started_is_behind() {
    let _machine = shared_machine();
    let no_start = relay("lines", "").replace("start = \"first\"\n", "");
    let scene = Scene::new(&[SHOP, &file("lines"), &no_start].concat());
    Application::open(&scene.path("app.db"), 5).write(10);
    let mut daemon = scene.daemon();
    daemon.until_state("to_lines", "halted", Duration::from_secs(10));
    falls_behind(&daemon, "to_lines");
    daemon.kill();

    // And one that never had its broker.
    let sink = amqp("bus", "amqp://127.0.0.1:9", "shop", "{type}", "");
    let scene = Scene::new(&[SHOP, &sink, &relay("bus", "")].concat());
    Application::open(&scene.path("app.db"), 5).write(10);
    let mut daemon = scene.daemon();
    daemon.until_state("to_bus", "unavailable", Duration::from_secs(10));
    falls_behind(&daemon, "to_bus");
    assert_eq!(daemon.metric("outboxd_backlog_events{consumer=\"to_bus\"}"), Some(10.0));
}

#[test]
fn a_paused_consumer_falls_behind_and_resumes() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    assert!(scene.outboxd(&["pause", "to_lines"]).status.success());
    daemon.until_state("to_lines", "paused", Duration::from_secs(5));
    assert_eq!(lag(&daemon, "to_lines"), 0.0, "it has everything");
    application.write(10);
    falls_behind(&daemon, "to_lines");
    assert_eq!(daemon.metric("outboxd_backlog_events{consumer=\"to_lines\"}"), Some(10.0));
    assert!(scene.outboxd(&["resume", "to_lines"]).status.success());
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(5));
    assert_eq!(lag(&daemon, "to_lines"), 0.0);
}

/// It had everything when it was halted; what comes after that is not looked at by anybody, and counts all the same.
#[test]
fn a_consumer_that_was_halted_while_it_was_level_falls_behind() {
    let _machine = shared_machine();
    let config =
        [SHOP, &file("lines"), &relay("lines", "on_reject = \"halt\"\nattempts_max = 1\nevent_bytes_max = \"1KiB\"")]
            .concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    application.commit(&[Row::of("key-1").heavy(2000)]);
    daemon.until_state("to_lines", "halted", Duration::from_secs(10));
    application.write(10);
    falls_behind(&daemon, "to_lines");
}

/// An older copy is put in place while nobody looks; then another table under the same name; then under the running daemon. Each time
/// the gauge says it of that consumer alone, until somebody chooses.
#[test]
fn a_position_ahead_of_its_database_is_told_until_it_is_set() {
    let _machine = shared_machine();
    let other = SHOP.split("[sources.shop]").nth(1).unwrap().replace("app.db", "other.db");
    let config = [
        SHOP,
        "[sources.other]",
        &other,
        &file("lines"),
        &relay("lines", ""),
        &file("others"),
        &relay("others", "").replace("source = \"shop\"", "source = \"other\""),
    ]
    .concat();
    let scene = Scene::new(&config);
    assert!(scene.outboxd(&["init", "other.db"]).status.success());
    let ahead = |daemon: &Daemon| {
        ["to_lines", "to_others"].map(|consumer| {
            daemon.metric(&format!("outboxd_consumer_position_ahead{{consumer=\"{consumer}\"}}")).unwrap()
        })
    };
    let older = scene.path("older.db");
    let put_back = || {
        for end in ["-wal", "-shm"] {
            drop(std::fs::remove_file(scene.path(&format!("app.db{end}"))));
        }
        std::fs::copy(&older, scene.path("coming.db")).unwrap();
        std::fs::rename(scene.path("coming.db"), scene.path("app.db")).unwrap();
    };
    let patience = Duration::from_secs(20);
    let halts = |daemon: &mut Daemon, why: &str| {
        daemon.until("to_lines", why, patience, |status| {
            status["state"] == "halted" && status["detail"].as_str().unwrap().contains(why)
        });
        assert_eq!(ahead(daemon), [1.0, 0.0], "{why}");
        assert_eq!(daemon.metric("outboxd_consumer_state{consumer=\"to_others\",state=\"running\"}"), Some(1.0));
    };
    let chosen = |daemon: &mut Daemon, place: &str, head: i64| {
        assert!(scene.outboxd(&["position", "set", "to_lines", place, "--yes"]).status.success());
        daemon.until_settled("to_lines", head, patience);
        daemon.until_state("to_lines", "running", patience);
        assert_eq!(ahead(daemon), [0.0, 0.0]);
    };

    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    rusqlite::Connection::open(scene.path("app.db"))
        .unwrap()
        .execute("VACUUM INTO ?1", [older.to_str().unwrap()])
        .unwrap();
    // As backups of outboxd's are.
    rusqlite::Connection::open(&older).unwrap().pragma_update(None, "journal_mode", "wal").unwrap();
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", 20, patience);
    daemon.until_state("to_others", "running", patience);
    assert_eq!(ahead(&daemon), [0.0, 0.0]);
    daemon.kill();
    drop(application);

    put_back();
    let mut daemon = scene.daemon();
    daemon.until_state("to_others", "running", patience);
    halts(&mut daemon, "went back");
    assert!(scene.outboxd(&["resume", "to_lines"]).status.success());
    halts(&mut daemon, "went back");
    chosen(&mut daemon, "10", 10);
    daemon.kill();

    // Of the same length, with other events.
    put_back();
    rusqlite::Connection::open(scene.path("app.db"))
        .unwrap()
        .execute("UPDATE outbox SET id = 'new-' || id", [])
        .unwrap();
    let mut daemon = scene.daemon();
    daemon.until_state("to_others", "running", patience);
    halts(&mut daemon, "is not the one that was read");
    chosen(&mut daemon, "head", 10);
    Application::open(&scene.path("app.db"), 5).write(5);
    daemon.until_settled("to_lines", 15, patience);

    // Whether it still fits is known when somebody lets it look.
    put_back();
    let replaced = daemon.until_state("to_lines", "halted", patience);
    assert!(replaced["detail"].as_str().unwrap().contains("replaced by another file"), "{replaced}");
    assert_eq!(ahead(&daemon), [0.0, 0.0]);
    assert!(scene.outboxd(&["resume", "to_lines"]).status.success());
    halts(&mut daemon, "went back");
    chosen(&mut daemon, "first", 10);
}

#[test]
fn logs_are_one_json_object_a_line_when_asked_for() {
    let _machine = shared_machine();
    let shop = SHOP.replace("[daemon]", "[daemon]\nlog_format = \"json\"");
    let sink = amqp("bus", "amqp://127.0.0.1:9", "shop", "{type}", "");
    let scene = Scene::new(&[shop.as_str(), &file("lines"), &relay("lines", ""), &sink, &relay("bus", "")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(10));
    daemon.until_state("to_bus", "unavailable", Duration::from_secs(10));
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    let mut events = Vec::new();
    for line in daemon.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        events.push(line["event"].as_str().unwrap_or_else(|| panic!("no event: {line}")).to_owned());
    }
    for event in
        ["daemon_started", "consumer_started", "sink_up", "sink_unavailable", "daemon_drains", "daemon_stopped"]
    {
        assert!(events.iter().any(|logged| logged == event), "{event} is not among {events:?}");
    }
    assert_eq!(events.iter().filter(|event| *event == "sink_unavailable").count(), 1, "it is counted, not repeated");
}
