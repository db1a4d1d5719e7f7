//! Hour after hour at a steady rate: memory, descriptors, threads and files do not grow, and nothing is lost.
//!
//! `OUTBOXD_TEST_ENDURANCE_SECONDS` (45; the soak: 1,800), `OUTBOXD_TEST_ENDURANCE_RATE` (2,000 events a second). Memory's slope is judged
//! where there is enough to fit a line to (15 minutes); below that the second half must stay where the first one was.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::{readers, topology};

const RELAYS: [&str; 3] = ["to_lines", "to_stream", "to_queue"];
const MIB: f64 = 1024.0 * 1024.0;

/// What is looked at once a second.
#[derive(Clone, Copy, Debug)]
struct Sample {
    hours: f64,
    resident_mib: f64,
    descriptors: usize,
    threads: usize,
    /// The application's file with its `-wal`.
    source_mib: f64,
    wal_mib: f64,
    state_mib: f64,
}

impl Sample {
    fn of(daemon: &Daemon, scene: &Scene, began: Instant) -> Self {
        let process = format!("/proc/{}", daemon.pid());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let of = |name: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{status}"));
            line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
        };
        let size = |name: &str| std::fs::metadata(scene.path(name)).map_or(0.0, |meta| meta.len() as f64 / MIB);
        Self {
            hours: began.elapsed().as_secs_f64() / 3600.0,
            resident_mib: of("VmRSS") / 1024.0,
            threads: of("Threads") as usize,
            descriptors: std::fs::read_dir(format!("{process}/fd")).unwrap().count(),
            source_mib: size("app.db"),
            wal_mib: size("app.db-wal"),
            state_mib: size("app.db-outboxd.db") + size("app.db-outboxd.db-wal"),
        }
    }
}

/// Deletes what every relay has settled, as an application may.
fn prune(connection: &Connection, scene: &Scene) {
    let positions: Option<Vec<_>> = RELAYS.iter().map(|name| scene.status(name)?["position"].as_i64()).collect();
    if let Some(settled) = positions.and_then(|positions| positions.into_iter().min()) {
        connection.execute("DELETE FROM outbox WHERE position < ?1", [settled]).unwrap();
    }
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

/// Least squares: how fast it grows, per hour.
fn slope(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let mean = |value: &dyn Fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / count;
    let (x, y) = (mean(&|sample| sample.hours), mean(&|sample| of(sample)));
    let covariance: f64 = samples.iter().map(|sample| (sample.hours - x) * (of(sample) - y)).sum();
    let variance: f64 = samples.iter().map(|sample| (sample.hours - x).powi(2)).sum();
    covariance / variance
}

fn most(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).fold(0.0, f64::max)
}

fn least(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).fold(f64::INFINITY, f64::min)
}

#[test]
fn nothing_grows_while_events_flow() {
    let _machine = shared_machine();
    let time = Duration::from_secs(number("OUTBOXD_TEST_ENDURANCE_SECONDS").unwrap_or(45));
    let rate = number("OUTBOXD_TEST_ENDURANCE_RATE").unwrap_or(2000);
    let (kafka_node, rabbitmq) = (Broker::start("kafka", &[]), Broker::start("rabbitmq", &[]));
    kafka_node.topic("shop", 6, &["retention.bytes=16777216", "segment.bytes=4194304"]);
    topology::declare(&rabbitmq, "shop", "#");
    let policy = r#"{"max-length": 1000, "overflow": "drop-head"}"#;
    rabbitmq.run("ctl", &["set_policy", "short", "^shop$", policy, "--apply-to", "queues"]);
    let scene = Scene::new(
        &[
            SHOP,
            &file("lines"),
            &kafka("stream", &kafka_node.text("bootstrap"), "shop", ""),
            &amqp("queue", &rabbitmq.text("uri"), "shop", "{type}", ""),
            &relay("lines", ""),
            &relay("stream", ""),
            &relay("queue", ""),
        ]
        .concat(),
    );
    let application = Application::open(&scene.path("app.db"), 1000);
    let mut daemon = scene.daemon();
    let mut dice = Dice::thrown("endurance");
    let seed = dice.seed;
    let count = (time.as_secs() * rate) as usize;
    let flow = application.flow(count, rate as f64, Dice::of(dice.next()));
    let pruning = open(&scene.path("app.db"));
    let began = Instant::now();
    let mut samples = Vec::new();
    while !flow.is_finished() {
        std::thread::sleep(Duration::from_secs(1));
        assert!(daemon.ended().is_none(), "it ended:\n{}", daemon.log_tail());
        prune(&pruning, &scene);
        samples.push(Sample::of(&daemon, &scene, began));
    }
    let application = flow.join().unwrap();
    for relay in RELAYS {
        daemon.until_settled(relay, application.head(), Duration::from_secs(60));
    }
    assert_eq!(daemon.dead_letters(), Vec::<serde_json::Value>::new());
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));

    let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path("lines.ndjson")));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    assert_eq!(judgement.duplicates, 0, "{}", judgement.summary());

    // Everything has been allocated, and the brokers' first answers are in, after a fifth of the time.
    let steady = &samples[samples.len() / 5..];
    let (first, second) = steady.split_at(steady.len() / 2);
    let growth = slope(steady, |sample| sample.resident_mib);
    let last = steady.last().unwrap();
    println!("{last:?}, memory {growth:.2} MiB an hour");
    let is_long = time >= Duration::from_secs(900);
    if is_long {
        assert!(growth <= 1.0, "memory grows by {growth:.2} MiB an hour: {last:?}");
    }
    // One at a time comes and goes (a status that is asked for): what leaks does not go.
    for (what, more, of) in [
        ("memory (MiB)", 8.0, (|sample| sample.resident_mib) as fn(&Sample) -> f64),
        ("descriptors", 4.0, |sample| sample.descriptors as f64),
        ("threads", 1.0, |sample| sample.threads as f64),
    ] {
        let (before, after) = ((least(first, of), most(first, of)), (least(second, of), most(second, of)));
        assert!(after.0 <= before.1 && after.1 <= before.1 + more, "{what} grew from {before:?} to {after:?}");
    }
    for (what, bound, of) in [
        ("the application's file", 64.0, (|sample| sample.source_mib) as fn(&Sample) -> f64),
        ("its -wal", 64.0, |sample| sample.wal_mib),
        ("the state", 8.0, |sample| sample.state_mib),
    ] {
        assert!(most(&samples, of) <= bound, "{what} reached {:.0} MiB", most(&samples, of));
    }
    Proof::of("a long run, file, Kafka and RabbitMQ at once")
        .seed(seed)
        .tried("seconds", time.as_secs())
        .tried("events", 3 * count as u64)
        .found("lost", judgement.lost.len())
        .found("duplicates", judgement.duplicates)
        .found("memory's slope", if is_long { format!("{growth:.2} MiB/h") } else { "not judged".into() })
        .found("most memory", format!("{:.0} MiB", most(&samples, |sample| sample.resident_mib)))
        .found("most descriptors", format!("{:.0}", most(&samples, |sample| sample.descriptors as f64)))
        .found("largest -wal", format!("{:.1} MiB", most(&samples, |sample| sample.wal_mib)))
        .found("largest state", format!("{:.1} MiB", most(&samples, |sample| sample.state_mib)));
}
