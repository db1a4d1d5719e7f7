//! Reloads under load, every other one invalid: nothing lost, nothing doubled, order kept, and whoever did not change keeps its connection.
//! And the process ended at any step of a reload.
//!
//! Sizes: `OUTBOXD_TEST_RELOADS` (200), `OUTBOXD_TEST_RELOAD_RATE` (events a second, 3,000), `OUTBOXD_TEST_RELOAD_STEPS` (the longest
//! ladder, 60); the seed: `OUTBOXD_TEST_SEED`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, relay};
use crate::support::wait::until;
use crate::support::{readers, topology};

const SOON: Duration = Duration::from_secs(20);
const SUCCESSFUL: &str = "outboxd_config_last_reload_successful";
const TAKEN_AT: &str = "outboxd_config_last_reload_success_timestamp_seconds";

/// What the valid configurations differ in.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variant {
    window: u32,
    heartbeat: u32,
    /// A relay on a source and a state file of its own.
    extra: bool,
}

impl Variant {
    /// Never the same again.
    fn next(self, dice: &mut Dice) -> Self {
        match dice.below(3) {
            0 => Self { window: self.window % 2_000 + 500, ..self },
            1 => Self { heartbeat: self.heartbeat % 50 + 10, ..self },
            _ => Self { extra: !self.extra, ..self },
        }
    }

    /// `steady` never changes; `bus` ends in the broker too.
    fn config(self, uri: &str, steady: &str, bus: &str) -> String {
        // A lock that a source has let go of is free at once: waiting is not allowed.
        let mut config = SHOP.replace("[daemon]", "[daemon]\nwhen_locked = \"refuse\"");
        config += &[amqp("steady", uri, steady, "{type}", ""), relay("steady", "")].concat();
        config += &amqp("bus", uri, bus, "{type}", &format!("heartbeat = \"{}s\"", self.heartbeat));
        config += &[relay("bus", ""), file("lines")].concat();
        config += &relay("lines", &format!("window_events = {}", self.window));
        if self.extra {
            config += "[sources.extra]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"outbox\"\nstate = \"extra-state.db\"\n";
            config += &[file("extra"), relay("extra", "").replace("\"shop\"", "\"extra\"")].concat();
        }
        config
    }
}

/// What can be wrong, and a word of what is said about it.
const WRONGS: [(&str, &str); 9] = [
    ("syntax error", "not TOML"),
    ("unknown key", "no such key"),
    ("missing secret", "cannot be read"),
    ("wrong type", "wanted is"),
    ("no file", "no such file"),
    ("a fragment that vanishes", "no such file"),
    ("unknown sink", "no section"),
    ("admin address", "while the daemon runs"),
    ("no relay", "no relay"),
];

/// Puts it there; the valid configuration stands below it.
fn spoil(scene: &Scene, wrong: usize, valid: &str) {
    let config = match wrong {
        0 => format!("{valid}\n[relays.x\n"),
        1 => valid.replace("window_events", "windows_event"),
        2 => valid.replacen(
            "[sinks.bus]\ntype = \"amqp\"\nuri = ",
            "[sinks.bus]\ntype = \"amqp\"\nuri_file = \"gone\"\n#",
            1,
        ),
        3 => format!("{valid}\n[relays.x]\nsource = 5\nsink = \"lines\"\n"),
        4 => return std::fs::remove_file(scene.path("outboxd.toml")).unwrap(),
        5 => {
            std::fs::create_dir_all(scene.path("conf.d")).unwrap();
            return std::os::unix::fs::symlink("gone", scene.path("conf.d/more.toml")).unwrap();
        }
        6 => valid.replace("sink = \"bus\"", "sink = \"buss\""),
        7 => valid.replace("127.0.0.1:0", "127.0.0.1:1"),
        _ => SHOP.to_owned(),
    };
    scene.reconfigure(&config);
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Footprint {
    fn of(daemon: &Daemon) -> Self {
        let count = |folder: &str| std::fs::read_dir(format!("/proc/{}/{folder}", daemon.pid())).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Self { kib: kib.unwrap(), descriptors: count("fd"), threads: count("task") }
    }
}

/// The TCP sockets of a process, by inode: a connection that was made anew has another one.
fn connections(daemon: &Daemon) -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap() + &std::fs::read_to_string("/proc/net/tcp6").unwrap();
    let established: BTreeSet<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"01"))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let links = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
    links
        .filter_map(|link| Some(std::fs::read_link(link.path()).ok()?.to_string_lossy().into_owned()))
        .filter(|target| established.contains(target))
        .collect()
}

/// Reloads by command or by signal, and waits until it is done; says whether the configuration was taken.
fn reload(scene: &Scene, daemon: &Daemon, by_signal: bool) -> (bool, String) {
    if !by_signal {
        let output = scene.outboxd(&["-c", "outboxd.toml", "reload"]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!([Some(0), Some(78)].contains(&output.status.code()), "{:?} {said}", output.status);
        return (output.status.success(), said);
    }
    let ends = |line: &&str| line.contains("event=config_reloaded") || line.contains("event=config_refused");
    let before = daemon.log().lines().filter(ends).count();
    daemon.hang_up();
    let last = until("the reload is done", SOON, || {
        let log = daemon.log();
        log.lines().filter(ends).nth(before).map(str::to_owned)
    });
    (last.contains("event=config_reloaded"), last)
}

#[test]
fn two_hundred_reloads_under_load_lose_and_double_nothing() {
    let _machine = shared_machine();
    let reloads = number("OUTBOXD_TEST_RELOADS").unwrap_or(200);
    let rate = number("OUTBOXD_TEST_RELOAD_RATE").unwrap_or(3_000);
    let mut dice = Dice::thrown("reloads");
    let broker = Broker::rabbitmq();
    let (steady, bus) = (unique("steady"), unique("bus"));
    topology::declare(broker, &steady, "#");
    topology::declare(broker, &bus, "#");
    let uri = broker.text("uri");
    let mut variant = Variant { window: 1_000, heartbeat: 20, extra: true };
    let valid = |variant: Variant| variant.config(&uri, &steady, &bus);
    let scene = Scene::new(&valid(variant));
    let application = Application::open(&scene.path("app.db"), 200);
    // For about a reload in 150 ms.
    let events = (reloads * rate * 150 / 1_000) as usize;
    let flow = application.flow(events, rate as f64, Dice::of(dice.next()));
    let mut daemon = scene.daemon();
    let all = ["to_steady", "to_bus", "to_lines", "to_extra"];
    for name in all {
        daemon.until_state(name, "running", SOON);
    }

    let began = Instant::now();
    let mut wrongs = [0_u64; WRONGS.len()];
    let mut slowest = Duration::ZERO;
    let (mut early, mut kept, mut delivered) = (None, None, 0);
    let mut taken_at = daemon.metric(TAKEN_AT);
    for n in 0..reloads {
        let by_signal = dice.below(2) == 0;
        let is_valid = n % 2 == 1;
        let wrong = dice.below(WRONGS.len() as u64) as usize;
        if is_valid {
            let before = variant;
            variant = variant.next(&mut dice);
            assert_ne!(variant, before);
            scene.reconfigure(&valid(variant));
        } else {
            spoil(&scene, wrong, &valid(variant.next(&mut dice)));
            wrongs[wrong] += 1;
        }
        // Anywhere between two bursts, or in the middle of one.
        std::thread::sleep(dice.between(Duration::ZERO, Duration::from_millis(100)));
        let asked = Instant::now();
        let (taken, said) = reload(&scene, &daemon, by_signal);
        slowest = slowest.max(asked.elapsed());
        assert_eq!(taken, is_valid, "reload {n}, {}: {said}", WRONGS[wrong].0);
        assert!(is_valid || said.contains(WRONGS[wrong].1), "{}: {said}", WRONGS[wrong].0);
        let _ = std::fs::remove_file(scene.path("conf.d/more.toml"));
        assert_eq!(daemon.metric(SUCCESSFUL), Some(f64::from(u8::from(is_valid))), "reload {n}");
        let now_at = daemon.metric(TAKEN_AT);
        assert!(if is_valid { now_at > taken_at } else { now_at == taken_at }, "reload {n}: {taken_at:?}, {now_at:?}");
        taken_at = now_at;
        assert_eq!(daemon.status("to_extra").is_some(), variant.extra, "reload {n}: {said}");
        // Who never changes is never disturbed.
        let status = daemon.status("to_steady").unwrap();
        assert_eq!(status["state"], "running", "{status}");
        let count = status["delivered_total"].as_u64().unwrap();
        assert!(count >= delivered, "its counter does not begin anew: {status}");
        delivered = count;
        // When memory has taken its shape.
        if n == reloads / 4 {
            (early, kept) = (Some(Footprint::of(&daemon)), Some(connections(&daemon)));
        }
    }
    let under_load = if flow.is_finished() { "part of the time" } else { "all the time" };
    let took = began.elapsed();
    let application = flow.join().unwrap();
    let footprint = Footprint::of(&daemon);
    scene.reconfigure(&valid(Variant { extra: true, ..variant }));
    assert!(reload(&scene, &daemon, false).0);
    for name in all {
        daemon.until_settled(name, application.head(), Duration::from_secs(60));
    }
    let kept = kept.unwrap().intersection(&connections(&daemon)).count();
    assert!(kept >= 1, "the connection of the relay that never changed is the one it had");
    let log = daemon.log();
    let starts = log.lines().filter(|line| line.contains("event=consumer_started consumer=to_steady")).count();
    assert_eq!(starts, 1);
    assert_eq!(log.matches("event=drain_unclean").count() + log.matches("event=drain_cut").count(), 0, "{log}");
    assert_eq!(daemon.dead_letters().len(), 0);
    assert_eq!(daemon.stop(SOON).0, Some(0));

    let early = early.unwrap();
    println!("reloads: {reloads} in {took:?}, under load {under_load}, the slowest {slowest:?}");
    println!("reloads: after a quarter {early:?}, at the end {footprint:?}");
    let mut proof = Proof::of("reloads under load, every other one invalid").seed(dice.seed);
    for ((what, _), count) in WRONGS.iter().zip(wrongs) {
        proof = proof.tried(&format!("invalid: {what}"), count);
    }
    let mut sums = [0; 4];
    for name in all {
        let arrivals = match name {
            "to_steady" => readers::arrivals(readers::rabbitmq(broker, &steady)),
            "to_bus" => readers::arrivals(readers::rabbitmq(broker, &bus)),
            _ => readers::lines(&scene.path(&format!("{}.ndjson", name.trim_start_matches("to_")))),
        };
        let judgement = judge(&application.ledger, &[], &arrivals);
        println!("{name}: {}", judgement.summary());
        assert!(judgement.is_clean() && judgement.duplicates == 0, "{name}: {}", judgement.summary());
        let faults =
            [judgement.lost.len(), judgement.phantom.len(), judgement.out_of_order.len(), judgement.duplicates];
        sums = std::array::from_fn(|n| sums[n] + faults[n]);
    }
    assert!(footprint.descriptors <= early.descriptors + 8, "{early:?} {footprint:?}");
    assert!(footprint.threads <= early.threads + 4, "{early:?} {footprint:?}");
    assert!(footprint.kib <= early.kib + (16 << 10), "{early:?} {footprint:?}");
    let _proof = proof
        .tried("reloads", reloads)
        .tried("events", application.ledger.len() as u64)
        .found("under load", under_load)
        .found("lost", sums[0])
        .found("phantom", sums[1])
        .found("out of order", sums[2])
        .found("duplicates", sums[3])
        .found("slowest reload", format!("{} ms", slowest.as_millis()))
        .found("RSS after a quarter and at the end", format!("{} and {} KiB", early.kib, footprint.kib))
        .found(
            "descriptors after a quarter and at the end",
            format!("{} and {}", early.descriptors, footprint.descriptors),
        );
}

/// The process ends itself at step 1, 2, 3, ... of a reload that changes, adds and removes, until one is through with it.
#[cfg(feature = "controls")]
#[test]
fn a_crash_at_any_step_of_a_reload_loses_nothing() {
    let _machine = shared_machine();
    let most = number("OUTBOXD_TEST_RELOAD_STEPS").unwrap_or(60);
    let window = 500;
    let before = |n: u64| {
        let bound = format!("window_events = {}", window - n % 2);
        [
            SHOP,
            &file("changed"),
            &relay("changed", &bound),
            &file("gone"),
            &relay("gone", ""),
            &file("same"),
            &relay("same", ""),
        ]
        .concat()
    };
    let after = |n: u64| {
        let bound = format!("window_events = {}", window - 1 - n % 2);
        [
            SHOP,
            &file("changed"),
            &relay("changed", &bound),
            &file("new"),
            &relay("new", ""),
            &file("same"),
            &relay("same", ""),
        ]
        .concat()
    };
    let scene = Scene::new(&before(0));
    let mut application = Application::open(&scene.path("app.db"), 20);
    let (mut crashes, mut through) = (0, None);
    for step in 1..=most {
        scene.reconfigure(&before(step));
        let mut daemon = scene.daemon_with(&[("CRASH_IN_RELOAD", &step.to_string())]);
        daemon.until_state("to_changed", "running", SOON);
        application.write(1_000);
        scene.reconfigure(&after(step));
        let answer = daemon.ask(&serde_json::json!({ "command": "reload" }));
        if answer.is_some_and(|answer| answer["ok"] == true) {
            through = Some(step);
            daemon.kill();
            break;
        }
        let (code, _) = daemon.wait(SOON);
        assert_eq!(code, None, "it ended by a signal: {}", daemon.log_tail());
        crashes += 1;
    }
    println!("a crash at {crashes} steps of a reload; the first that came through: {through:?}");
    let everything = [before(0), file("new"), relay("new", "")].concat();
    scene.reconfigure(&everything);
    let mut daemon = scene.daemon();
    let names = ["changed", "gone", "new", "same"];
    for name in names {
        daemon.until_settled(&format!("to_{name}"), application.head(), SOON);
    }
    assert_eq!(daemon.stop(SOON).0, Some(0));
    let mut repeated = 0;
    for name in names {
        let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path(&format!("{name}.ndjson"))));
        println!("{name}: {}", judgement.summary());
        assert!(judgement.is_clean(), "{name}: {}", judgement.summary());
        repeated = repeated.max(judgement.duplicates);
    }
    assert!(crashes >= 5, "the ladder has rungs");
    assert!(repeated <= crashes as usize * 10_000);
    let _proof = Proof::of("a crash at any step of a reload")
        .tried("crashes", crashes)
        .found("lost", 0)
        .found("out of order", 0)
        .found("most duplicates of a relay, all crashes together", repeated);
}
