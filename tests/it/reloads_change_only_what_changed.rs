//! SIGHUP and `outboxd reload`: the new configuration is checked first and taken whole or not at all; who did not change does not
//! notice.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::fleet::Read;
use outboxd::config;
use serde_json::Value;

use crate::sink_contract::rig::unique;
use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::fleet;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::referee::judge;
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::until;
use crate::support::{readers, topology};

const SOON: Duration = Duration::from_secs(10);

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `outboxd reload`: its exit code and what it printed.
fn reload(scene: &Scene) -> (i32, String) {
    let output = scene.outboxd(&["reload"]);
    (output.status.code().unwrap(), text(&output))
}

fn lines_to(names: &[&str]) -> String {
    names.iter().map(|name| [file(name), relay(name, "")].concat()).collect()
}

/// What `outboxd reload` says, word by word, and what becomes of each relay.
#[test]
fn what_changed_restarts_and_nothing_else() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &lines_to(&["a", "b", "c"])].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(100);
    let mut daemon = scene.daemon();
    for name in ["to_a", "to_b", "to_c"] {
        daemon.until_settled(name, application.head(), SOON);
    }
    let before = daemon.status("to_a").unwrap();

    assert_eq!(reload(&scene), (0, "nothing changed\n".into()));

    // b gets another bound, c goes, d comes, a stays.
    let config = [SHOP, &lines_to(&["a"]), &file("b"), &relay("b", "window_events = 500"), &lines_to(&["d"])].concat();
    scene.reconfigure(&config);
    let said = "started    to_d\nrestarted  to_b  (changed: relay)\n\
                stopped    to_c  (its checkpoint stays; `outboxd consumer forget to_c` removes it)\n\
                1 consumer went on undisturbed\n";
    assert_eq!(reload(&scene), (0, said.into()));
    assert_eq!(daemon.status("to_c"), None, "what is gone is not shown");
    application.write(100);
    for name in ["to_a", "to_b", "to_d"] {
        daemon.until_settled(name, application.head(), SOON);
    }
    let after = daemon.status("to_a").unwrap();
    assert_eq!(after["delivered_total"].as_u64(), before["delivered_total"].as_u64().map(|count| count + 100));
    let log = daemon.log();
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!(count("event=consumer_started consumer=to_a"), 1, "{log}");
    assert_eq!(count("event=consumer_started consumer=to_b"), 2, "{log}");
    assert_eq!(count("event=consumer_stopped consumer=to_c"), 1, "{log}");
    assert!(
        log.contains("event=config_reloaded started=to_d restarted=\"to_b (relay)\" stopped=to_c unchanged=1"),
        "{log}"
    );
    let (_, metrics) = daemon.get("/metrics");
    assert!(
        metrics.contains("consumer=\"to_d\"") && !metrics.contains("consumer=\"to_c\""),
        "no series of what is gone"
    );

    // It comes back, and goes on where it had come to.
    scene.reconfigure(&[SHOP, &lines_to(&["a", "b", "c", "d"])].concat());
    assert_eq!(reload(&scene).0, 0);
    for name in ["to_a", "to_b", "to_c", "to_d"] {
        daemon.until_settled(name, application.head(), SOON);
        let path = scene.path(&format!("{}.ndjson", name.trim_start_matches("to_")));
        let judgement = judge(&application.ledger, &[], &readers::lines(&path));
        assert!(judgement.is_clean() && judgement.duplicates == 0, "{name}: {}", judgement.summary());
    }
    assert_eq!(daemon.stop(SOON).0, Some(0));
}

/// Every error at once, each with its remedy; exit 78; the daemon goes on as it was, and says so in its metrics.
#[test]
fn a_wrong_configuration_is_refused_whole() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &lines_to(&["a"])].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut daemon = scene.daemon();
    daemon.until_state("to_a", "running", SOON);
    let at_start = daemon.metric("outboxd_config_last_reload_success_timestamp_seconds").unwrap();
    assert_eq!(daemon.metric("outboxd_config_last_reload_successful"), Some(1.0));

    let wrong = [SHOP, &lines_to(&["b"]), &file("c"), &relay("c", "window_event = 5\nattempts_max = \"x\"")].concat();
    scene.reconfigure(&wrong);
    let (code, said) = reload(&scene);
    assert_eq!(code, 78, "{said}");
    for part in ["goes on with the one it has", "window_event ", "did you mean", "attempts_max", "2 errors", "line "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(daemon.metric("outboxd_config_last_reload_successful"), Some(0.0));
    assert_eq!(daemon.metric("outboxd_config_last_reload_success_timestamp_seconds"), Some(at_start));
    assert!(daemon.log().contains("event=config_refused"), "{}", daemon.log());
    assert!(daemon.status("to_b").is_none(), "all or nothing");
    application.write(50);
    daemon.until_settled("to_a", application.head(), SOON);

    // By signal it is the same; so it is when the file is gone.
    std::fs::remove_file(scene.path("outboxd.toml")).unwrap();
    daemon.hang_up();
    until("the second refusal", SOON, || (daemon.log().matches("config_refused").count() == 2).then_some(()));
    let (code, said) = reload(&scene);
    assert!(code == 78 && said.contains("there is no such file"), "{said}");

    scene.reconfigure(&[SHOP, &lines_to(&["a", "b"])].concat());
    daemon.hang_up();
    daemon.until_settled("to_b", application.head(), SOON);
    assert_eq!(daemon.metric("outboxd_config_last_reload_successful"), Some(1.0));
    assert!(daemon.metric("outboxd_config_last_reload_success_timestamp_seconds") > Some(at_start));
    assert_eq!(daemon.stop(SOON).0, Some(0));

    // Without a daemon there is nothing to reload; a wrong configuration is told all the same.
    assert_eq!(reload(&scene).0, 69);
    scene.reconfigure(&wrong);
    assert_eq!(reload(&scene).0, 78);
}

/// What a running daemon cannot change is told with the remedy, all of it, and nothing else of the configuration is taken on either;
/// what it can change, it does.
#[test]
fn what_wants_a_restart_is_refused_and_the_rest_is_taken_on() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &lines_to(&["a"])].concat());
    let mut daemon = scene.daemon();
    daemon.until_state("to_a", "running", SOON);
    let daemon_keys = |keys: &str| SHOP.replace("admin = \"127.0.0.1:0\"", keys);
    let moved =
        "admin = \"127.0.0.1:1\"\ncontrol = \"unix:elsewhere.sock\"\nlog_format = \"json\"\nlog_level = \"debug\"";
    scene.reconfigure(&[daemon_keys(moved), lines_to(&["a", "b"])].concat());
    daemon.hang_up();
    until("it is refused", SOON, || daemon.log().contains("config_refused").then_some(()));
    let log = daemon.log();
    for part in ["daemon.admin", "daemon.control", "daemon.log_format", "restart the daemon", "3 errors"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(daemon.status("to_b").is_none(), "all or nothing");
    let (code, said) = reload(&scene);
    assert!(code == 69 && said.contains("elsewhere.sock") && said.contains("daemon.control"), "{code} {said}");

    let taken = "admin = \"127.0.0.1:0\"\nlog_level = \"error\"\ndrain_timeout = \"5s\"";
    scene.reconfigure(&[daemon_keys(taken), lines_to(&["a"])].concat());
    assert_eq!(
        reload(&scene),
        (0, "changed    daemon.drain_timeout\nchanged    daemon.log_level\n1 consumer went on undisturbed\n".into())
    );
    let silent = daemon.log();
    scene.reconfigure(&[daemon_keys(taken), lines_to(&["a", "b"])].concat());
    assert_eq!(reload(&scene).0, 0);
    daemon.until_state("to_b", "running", SOON);
    assert_eq!(daemon.log(), silent, "only errors are logged now");
    assert_eq!(daemon.stop(SOON).0, Some(0));
}

/// A secret or a certificate with new content restarts who uses it, and nobody else. No secret is told.
#[test]
fn new_secrets_and_certificates_restart_who_uses_them() {
    let _machine = shared_machine();
    let broker = Broker::rabbitmq();
    let name = unique("reload");
    topology::declare(broker, &name, "#");
    let scene = Scene::without_a_file(SHOP);
    scene.write("uri", &broker.text("uri"));
    scene.write("ca.pem", "not yet a certificate");
    let rabbit = amqp("rabbit", "", &name, "{type}", "").replace("uri = \"\"", "uri_file = \"uri\"");
    let tls = kafka("tls", "127.0.0.1:9", "shop", "tls = { ca_file = \"ca.pem\" }");
    scene.configure(&[SHOP, &rabbit, &relay("rabbit", ""), &tls, &relay("tls", ""), &lines_to(&["a"])].concat());
    scene.init();
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_rabbit", application.head(), SOON);

    scene.write("ca.pem", "another one");
    assert_eq!(
        reload(&scene),
        (0, "restarted  to_tls  (changed: certificates)\n2 consumers went on undisturbed\n".into())
    );
    scene.write("uri", &format!("{}?frame_max=8192", broker.text("uri")));
    assert_eq!(reload(&scene), (0, "restarted  to_rabbit  (changed: sink)\n2 consumers went on undisturbed\n".into()));
    application.write(50);
    daemon.until_settled("to_rabbit", application.head(), SOON);
    // A secret that is wrong halts its relay, and who put it there is told where to look.
    scene.write("uri", "amqp://127.0.0.1:1/?password=canary-word");
    let (code, said) = reload(&scene);
    assert!(!said.contains("canary-word"), "{code} {said}");
    assert!(!daemon.log().contains("canary-word"));
    scene.write("uri", &broker.text("uri"));
    assert_eq!(reload(&scene).0, 0);
    application.write(50);
    daemon.until_settled("to_rabbit", application.head(), SOON);
    assert_eq!(daemon.stop(SOON).0, Some(0));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::rabbitmq(broker, &name)));
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

/// As at a restart: the consumer whose checkpoint means something else halts and says so, the others go on.
#[test]
fn a_changed_mapping_halts_its_consumer_alone() {
    let _machine = shared_machine();
    let other = "[sources.other]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"outbox\"\n";
    let moved = relay("b", "").replace("source = \"shop\"", "source = \"other\"");
    let config = |relay: &str| [SHOP, other, &lines_to(&["a"]), &file("b"), relay].concat();
    let scene = Scene::new(&config(&relay("b", "")));
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_b", application.head(), SOON);
    scene.reconfigure(&config(&moved));
    assert_eq!(
        reload(&scene),
        (0, "restarted  to_b  (changed: relay, source)\n1 consumer went on undisturbed\n".into())
    );
    let status = daemon.until_state("to_b", "halted", SOON);
    assert!(status["detail"].as_str().unwrap().contains("outboxd consumer accept to_b"), "{status}");
    application.write(50);
    daemon.until_settled("to_a", application.head(), SOON);
    // A halted consumer is reloaded like any other.
    scene.reconfigure(&config(&relay("b", "")));
    assert_eq!(reload(&scene).0, 0);
    daemon.until_settled("to_b", application.head(), SOON);
    scene.reconfigure(&config(&moved));
    assert_eq!(reload(&scene).0, 0);
    daemon.until_state("to_b", "halted", SOON);
    let accepted = scene.outboxd(&["consumer", "accept", "to_b"]);
    assert!(accepted.status.success(), "{}", text(&accepted));
    application.write(50);
    daemon.until_settled("to_b", application.head(), SOON);
    let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path("b.ndjson")));
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

/// A removed relay's checkpoint stays until it is forgotten, by the daemon or by a command on the files.
#[test]
fn a_removed_consumer_can_be_forgotten() {
    let _machine = shared_machine();
    let all = [SHOP, &lines_to(&["a", "b", "c"])].concat();
    let scene = Scene::new(&all);
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    for name in ["to_a", "to_b", "to_c"] {
        daemon.until_settled(name, application.head(), SOON);
    }
    scene.reconfigure(&[SHOP, &lines_to(&["a"])].concat());
    assert_eq!(reload(&scene).0, 0);
    let recorded = || {
        let state = rusqlite::Connection::open(scene.path("app.db-outboxd.db")).unwrap();
        let sql = "SELECT group_concat(consumer, ' ') FROM (SELECT consumer FROM outboxd_checkpoint ORDER BY consumer)";
        state.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(recorded(), "to_a to_b to_c");
    let forget = |name: &str| {
        let output = scene.outboxd(&["consumer", "forget", name, "--yes"]);
        (output.status.success(), text(&output))
    };
    let listed = || text(&scene.outboxd(&["consumer", "list"]));
    let is_left_over = |list: &str, name: &str| {
        list.lines().any(|line| line.starts_with(name) && line.split_whitespace().nth(4) == Some("no"))
    };
    let list = listed();
    assert!(is_left_over(&list, "to_b") && is_left_over(&list, "to_c") && !is_left_over(&list, "to_a"), "{list}");
    let (done, said) = forget("to_b");
    let gone = "to_b is forgotten\n  gone: its checkpoint at 50, no held events, 0 copies of dead letters under way\n  \
                the application may prune shop up to position 50 now\n";
    assert!(done && said.contains(gone), "{said}");
    assert_eq!(recorded(), "to_a to_c");
    assert!(!is_left_over(&listed(), "to_b"));
    let (done, said) = forget("to_b");
    assert!(!done && said.contains("nothing to forget"), "{said}");
    assert_eq!(daemon.stop(SOON).0, Some(0));
    assert!(is_left_over(&listed(), "to_c"), "without the daemon as well");
    assert!(forget("to_c").0);
    assert_eq!(recorded(), "to_a");
}

/// What restarts drains within `drain_timeout` also when its broker does not answer; the others do not wait for it. A stop in the
/// middle of that is a stop.
#[test]
fn a_dead_broker_holds_up_a_reload_no_longer_than_the_drain() {
    let _machine = shared_machine();
    let broker = Broker::start("rabbitmq", &[]);
    topology::declare(&broker, "shop", "#");
    let with = |drain: &str, more: &str| {
        let daemon = SHOP.replace("[daemon]", &format!("[daemon]\ndrain_timeout = \"{drain}\""));
        let rabbit = amqp("rabbit", &broker.text("uri"), "shop", "{type}", more);
        [daemon.as_str(), &rabbit, &relay("rabbit", ""), &lines_to(&["a", "b"])].concat()
    };
    let scene = Scene::new(&with("3s", ""));
    let mut application = Application::open(&scene.path("app.db"), 50);
    let mut daemon = scene.daemon();
    application.write(200);
    daemon.until_settled("to_rabbit", application.head(), SOON);
    broker.run("pause", &[]);
    application.write(200);
    daemon.until("to_rabbit", "sending", SOON, |status| status["in_flight_events"].as_u64() > Some(0));
    // The relay to the broker changes, and so does b; a stays.
    scene.reconfigure(
        &with("3s", "persistent = true")
            .replace("[relays.to_b]", "[relays.to_b]\nattempts_max = 7")
            .replace("[sinks.rabbit]", "[sinks.rabbit]\nheartbeat = \"20s\""),
    );
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| {
            let began = Instant::now();
            (reload(&scene), began.elapsed())
        });
        until("the reload has begun", SOON, || {
            daemon.log().contains("event=consumer_stopped consumer=to_b").then_some(())
        });
        application.write(200);
        daemon.until_settled("to_a", application.head(), Duration::from_secs(2));
        daemon.until_settled("to_b", application.head(), Duration::from_secs(2));
        assert!(!reloading.is_finished(), "those that had not to wait did not");
        let ((code, said), took) = reloading.join().unwrap();
        assert!(code == 0 && said.contains("restarted  to_rabbit"), "{code} {said}");
        println!("a reload with a dead broker, drain_timeout 3 s: {took:?}");
        assert!(took < Duration::from_secs(7), "{took:?}");
    });
    broker.run("unpause", &[]);
    daemon.until_settled("to_rabbit", application.head(), Duration::from_secs(30));
    // Once more, with a drain that would last a minute; a stop does not wait for it.
    broker.run("pause", &[]);
    application.write(200);
    daemon.until("to_rabbit", "sending", SOON, |status| status["in_flight_events"].as_u64() > Some(0));
    scene.reconfigure(&with("60s", "mandatory = true"));
    daemon.hang_up();
    let drains = || daemon.log().matches("event=consumer_drains consumer=to_rabbit").count();
    until("it drains", SOON, || (drains() == 2).then_some(()));
    daemon.terminate();
    until("the stop is heard", SOON, || daemon.log().contains("event=daemon_drains").then_some(()));
    // The second one does not wait for a drain.
    daemon.terminate();
    assert_eq!(daemon.wait(SOON).0, Some(0));
    broker.run("unpause", &[]);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_rabbit", application.head(), Duration::from_secs(30));
    assert_eq!(daemon.stop(SOON).0, Some(0));
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::rabbitmq(&broker, "shop")));
    assert!(judgement.is_clean(), "{}", judgement.summary());
    for name in ["a.ndjson", "b.ndjson"] {
        let judgement = judge(&application.ledger, &[], &readers::lines(&scene.path(name)));
        assert!(judgement.is_clean() && judgement.duplicates == 0, "{name}: {}", judgement.summary());
    }
}

/// A relay whose name alone changes, on a table read by row: the new one starts when the old one has ended.
#[tokio::test(flavor = "multi_thread")]
async fn rows_pass_from_one_name_to_the_next_without_coming_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = eventsource::make(&path, "g3");
    let source = fleet::source("app", &path, Read::Outbox);
    let far_side = FarSide::default();
    far_side.delay(Duration::from_millis(20));
    eventsource::enqueue_many(&app, 2_000, 20);
    let rows = eventsource::count(&app, "event_outbox WHERE status = 'pending'") as usize;
    let relay = |name: &str| fleet::relay(name, "app", fleet::fake(&far_side));
    let mut relays = fleet::Relays::start(std::slice::from_ref(&source), vec![relay("r0")]);
    let sources = BTreeMap::from([("app".to_owned(), source)]);
    for n in 1..10 {
        let changes = relays
            .fleet
            .reload(&sources, &BTreeMap::new(), vec![relay(&format!("r{n}"))], SOON)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((changes.started, changes.stopped), (vec![format!("r{n}")], vec![format!("r{}", n - 1)]));
    }
    fleet::arrived(&far_side, rows).await;
    relays.stop().await;
    let arrivals = far_side.arrivals();
    let ids: BTreeSet<_> = arrivals.iter().map(|arrival| &arrival.id).collect();
    assert_eq!((ids.len(), arrivals.len()), (rows, rows), "each once");
}

/// What the service manager hears of a reload.
#[test]
fn the_service_manager_hears_of_a_reload() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &lines_to(&["a"])].concat());
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut daemon = scene.daemon_with(&[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if !text.starts_with("STATUS=") && !text.starts_with("WATCHDOG=") {
                assert!(text.starts_with(wanted), "{wanted}: {text}");
                return text;
            }
        }
    };
    hear("READY=1");
    for config in [[SHOP, &lines_to(&["a", "b"])].concat(), "nonsense".to_owned()] {
        scene.reconfigure(&config);
        daemon.hang_up();
        let text = hear("RELOADING=1");
        let micros = text.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("with the time");
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let age = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000 - micros.parse::<i64>().unwrap();
        assert!((0..10_000_000).contains(&age), "{age} us ago");
        hear("READY=1");
    }
    daemon.terminate();
    hear("STOPPING=1");
    assert_eq!(daemon.wait(SOON).0, Some(0));
}

/// Two files that belong together, replaced at once as Kubernetes does it (a link to a folder), again and again while they are read.
#[test]
fn a_config_that_is_replaced_while_it_is_read_is_the_old_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |n: u64| {
        let version = root.join(format!("v{n}"));
        std::fs::create_dir_all(version.join("conf.d")).unwrap();
        let main = [SHOP, &file("a"), &relay("a", &format!("window_events = {}", 1_000 + n))].concat();
        std::fs::write(version.join("outboxd.toml"), main).unwrap();
        let more = [file("b"), relay("b", &format!("window_events = {}", 1_000 + n))].concat();
        std::fs::write(version.join("conf.d/more.toml"), more).unwrap();
        std::fs::write(version.join("secret"), format!("amqp://127.0.0.1/{n}")).unwrap();
        let _ = std::fs::remove_file(root.join("next"));
        std::os::unix::fs::symlink(&version, root.join("next")).unwrap();
        std::fs::rename(root.join("next"), root.join("data")).unwrap();
    };
    write(0);
    link(root, "outboxd.toml");
    link(root, "conf.d");
    let stop = AtomicBool::new(false);
    let (mut readings, mut versions, mut half, mut errors) = (0_u64, BTreeSet::new(), false, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                write(n);
                if n > 5 {
                    std::fs::remove_dir_all(root.join(format!("v{}", n - 5))).unwrap();
                }
                std::thread::sleep(Duration::from_millis(5 + n % 15));
            }
        });
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            match config::load_with(&root.join("outboxd.toml"), []) {
                Ok(loaded) => {
                    let bounds: Vec<_> = loaded.config.relays.iter().map(|relay| relay.bounds.window_events).collect();
                    half |= bounds != [bounds[0]; 2];
                    versions.insert(bounds[0]);
                }
                Err(error) => errors.push(error.to_string()),
            }
            readings += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!half, "half the old one, half the new one");
    assert_eq!(errors, Vec::<String>::new());
    println!("{readings} readings, {} versions", versions.len());
    assert!(readings > 50 && versions.len() > 20, "{readings} readings, {} versions", versions.len());
}

fn link(root: &Path, name: &str) {
    std::os::unix::fs::symlink(Path::new("data").join(name), root.join(name)).unwrap();
}

/// One waits for its file, one for a lock that somebody else holds: a reload changes them as it does others, and starts what has to wait
/// without ending those that run, also with `when_locked = "refuse"`.
#[test]
fn a_reload_changes_and_starts_consumers_that_wait() {
    let _machine = shared_machine();
    let config = |path: &str, locked: bool| {
        let source = |name: &str, path: &str| {
            format!(
                "[sources.{name}]\npath = \"{path}\"\npreset = \"outboxd\"\nread = \"outbox\"\nstate = \"{name}-state.db\"\n"
            )
        };
        let from = |name: &str| relay(name, "").replace("\"shop\"", &format!("\"{name}\""));
        let mut config = SHOP.replace("[daemon]", "[daemon]\nwhen_locked = \"refuse\"") + &lines_to(&["a"]);
        config += &[source("late", path), file("late"), from("late")].concat();
        if locked {
            config += &[source("locked", "app.db"), file("locked"), from("locked")].concat();
        }
        config
    };
    let scene = Scene::new(&config("not-there.db", false));
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(50);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_a", application.head(), SOON);
    daemon.until_state("to_late", "waiting", SOON);
    let lock = std::fs::File::create(scene.path("locked-state.db-outboxd.lock")).unwrap();
    lock.lock().unwrap();
    scene.reconfigure(&config("app.db", true));
    let said = "started    to_locked\nrestarted  to_late  (changed: source)\n1 consumer went on undisturbed\n";
    assert_eq!(reload(&scene), (0, said.into()));
    daemon.until_settled("to_late", application.head(), SOON);
    daemon.until_state("to_locked", "waiting", SOON);
    application.write(50);
    daemon.until_settled("to_a", application.head(), SOON);
    lock.unlock().unwrap();
    daemon.until_settled("to_locked", application.head(), SOON);
    // What waits is taken out like anything else.
    scene.reconfigure(&config("not-there.db", false));
    assert_eq!(reload(&scene).0, 0);
    daemon.until_state("to_late", "waiting", SOON);
    scene.reconfigure(&[SHOP, &lines_to(&["a"])].concat());
    assert_eq!(reload(&scene).0, 0);
    assert_eq!(daemon.status("to_late"), None);
    assert_eq!(daemon.stop(SOON).0, Some(0));
}

/// The answer to who asks for it in JSON.
#[test]
fn a_reload_answers_in_json_too() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &lines_to(&["a"])].concat());
    let mut daemon = scene.daemon();
    daemon.until_state("to_a", "running", SOON);
    scene.reconfigure(&[SHOP, &lines_to(&["b"])].concat());
    let output = scene.outboxd(&["reload", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&answer["started"][0], &answer["stopped"][0]),
        (&Value::from("to_b"), &Value::from("to_a")),
        "{answer}"
    );
}
