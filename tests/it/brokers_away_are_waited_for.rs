//! A broker that is away is waited for: nothing is counted, nothing is held, nobody is hurried; and it goes on by itself.
//!
//! The outage lasts 60 s; `OUTBOXD_TEST_OUTAGE_SECONDS` sets another time.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::dice::number;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::referee::{Arrival, judge};
use crate::support::relays::{amqp, file, kafka, relay};
use crate::support::wait::{throughout, until};
use crate::support::{readers, topology};

/// Stands in the place of a broker that is away, and counts who knocks.
struct DeadPort {
    address: SocketAddr,
    knocks: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl DeadPort {
    fn at(port: u16) -> Self {
        let listener =
            until("the broker's port is free", Duration::from_secs(10), || TcpListener::bind(("127.0.0.1", port)).ok());
        let address = listener.local_addr().unwrap();
        let (knocks, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (knocks.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while listener.accept().is_ok() && !end.load(Ordering::Acquire) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { address, knocks, stop, thread }
    }

    fn close(self) -> u32 {
        self.stop.store(true, Ordering::Release);
        // The last one to knock.
        drop(TcpStream::connect(self.address).unwrap());
        self.thread.join().unwrap();
        self.knocks.load(Ordering::Relaxed)
    }
}

/// Seconds of processor time that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn away_and_back(broker: &Broker, config: &str, read: impl FnOnce() -> Vec<Arrival>) {
    let scene = Scene::new(config);
    let mut application = Application::open(&scene.path("app.db"), 50);
    let mut daemon = scene.daemon();
    application.write(500);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));

    broker.run("kill", &[]);
    let dead_port = DeadPort::at(broker.facts["port"].as_u64().unwrap() as u16);
    application.write(100);
    let first_failure = Instant::now();
    let status = daemon.until_state("to_bus", "unavailable", Duration::from_secs(2));
    println!("unavailable after {:?}: {}", first_failure.elapsed(), status["detail"]);
    assert_eq!(status["sink_up"], false);

    let outage = Duration::from_secs(number("OUTBOXD_TEST_OUTAGE_SECONDS").unwrap_or(60));
    let (began, used) = (Instant::now(), cpu_seconds(daemon.pid()));
    throughout("it is unavailable, and nothing is held", outage, || {
        application.commit(&[Row::of("key-1")]);
        let status = daemon.status("to_bus").unwrap();
        (&status["state"], &status["held_keys"], &status["dead_letters"])
            == (&"unavailable".into(), &0.into(), &0.into())
    });
    let status = daemon.status("to_bus").unwrap();
    assert!(status["lag_seconds"].as_f64().unwrap() > outage.as_secs_f64() * 0.9, "the lag grows: {status}");
    let cpu_share = (cpu_seconds(daemon.pid()) - used) / began.elapsed().as_secs_f64();
    let knocks = dead_port.close();
    println!("{knocks} connections in {:?}, {:.1} % of a core", began.elapsed(), cpu_share * 100.0);
    // The first few come faster: the pace grows.
    assert!(f64::from(knocks) <= began.elapsed().as_secs_f64() + 3.0, "{knocks} connections in {outage:?}");
    assert!(cpu_share < 0.1, "it is busy: {cpu_share}");

    let log = daemon.log();
    assert!(log.lines().count() < 20, "what repeats is counted, not repeated:\n{log}");

    broker.restart();
    let back = Instant::now();
    daemon.until("to_bus", "running and settled", Duration::from_secs(5), |status| {
        status["state"] == "running" && status["in_flight_events"] == 0 && status["backlog_events"] == 0
    });
    println!("settled {:?} after the broker was back", back.elapsed());
    assert_eq!(daemon.dead_letters(), Vec::<serde_json::Value>::new());
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    let judgement = judge(&application.ledger, &[], &read());
    println!("{}", judgement.summary());
    assert!(judgement.is_clean(), "{}", judgement.summary());
}

#[test]
fn kafka_away_is_waited_for() {
    let _machine = shared_machine();
    let broker = Broker::start("kafka", &[]);
    broker.topic("shop", 3, &[]);
    let config = [SHOP, &kafka("bus", &broker.text("bootstrap"), "shop", ""), &relay("bus", "")].concat();
    away_and_back(&broker, &config, || readers::arrivals(readers::kafka(&broker, "shop")));
}

#[test]
fn rabbitmq_away_is_waited_for() {
    let _machine = shared_machine();
    let broker = Broker::start("rabbitmq", &[]);
    topology::declare(&broker, "shop", "#");
    let config = [SHOP, &amqp("bus", &broker.text("uri"), "shop", "{type}", ""), &relay("bus", "")].concat();
    away_and_back(&broker, &config, || readers::arrivals(readers::rabbitmq(&broker, "shop")));
}

/// Blocks and unblocks the broker while another relay of the same source writes to a file.
#[test]
fn a_memory_alarm_is_shown_and_waited_for_and_others_flow() {
    let _machine = shared_machine();
    let broker = Broker::start("rabbitmq", &[]);
    topology::declare(&broker, "shop", "#");
    let bus = amqp("bus", &broker.text("uri"), "shop", "{type}", "");
    // Shorter than the alarm lasts: what is in flight is not given up.
    let patience = "ack_timeout = \"2s\"";
    let config = [SHOP, &bus, &relay("bus", patience), &file("lines"), &relay("lines", "")].concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 50);
    let mut daemon = scene.daemon();
    application.write(500);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));

    broker.run("ctl", &["set_vm_memory_high_watermark", "0.0001"]);
    application.write(500);
    let status = daemon.until("to_bus", "blocked", Duration::from_secs(5), |status| !status["sink_blocked"].is_null());
    assert_eq!((&status["state"], &status["dead_letters"]), (&"unavailable".into(), &0.into()), "{status}");
    assert_eq!(daemon.metric("outboxd_sink_blocked{consumer=\"to_bus\"}"), Some(1.0));
    assert_eq!(daemon.metric("outboxd_sink_blocked{consumer=\"to_lines\"}"), Some(0.0));
    throughout("it is blocked", Duration::from_secs(5), || !daemon.status("to_bus").unwrap()["sink_blocked"].is_null());
    application.write(500);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(5));
    assert!(daemon.status("to_bus").unwrap()["position"].as_i64() < Some(application.head()));

    broker.run("ctl", &["set_vm_memory_high_watermark", "absolute", "1GiB"]);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(10));
    let status = daemon.until_state("to_bus", "running", Duration::from_secs(5));
    assert!(status["sink_blocked"].is_null(), "{status}");
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    for arrivals in [readers::arrivals(readers::rabbitmq(&broker, "shop")), readers::lines(&scene.path("lines.ndjson"))]
    {
        let judgement = judge(&application.ledger, &[], &arrivals);
        assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
    }
}

/// The broker stands still, and its connections with it: nothing comes back, not even a refusal.
#[test]
fn a_broker_that_hangs_is_unavailable_after_the_ack_timeout() {
    let _machine = shared_machine();
    for (kind, name) in [("kafka", "to_kafka"), ("rabbitmq", "to_rabbit")] {
        let broker = Broker::start(kind, &[]);
        let sink = if kind == "kafka" {
            broker.topic("shop", 3, &[]);
            kafka("kafka", &broker.text("bootstrap"), "shop", "")
        } else {
            topology::declare(&broker, "shop", "#");
            amqp("rabbit", &broker.text("uri"), "shop", "{type}", "heartbeat = \"60s\"")
        };
        let relay = relay(name.trim_start_matches("to_"), "ack_timeout = \"2s\"");
        let scene = Scene::new(&[SHOP, &sink, &relay].concat());
        let mut application = Application::open(&scene.path("app.db"), 50);
        let mut daemon = scene.daemon();
        application.write(200);
        daemon.until_settled(name, application.head(), Duration::from_secs(20));
        broker.run("pause", &[]);
        application.write(200);
        let status = daemon.until_state(name, "unavailable", Duration::from_secs(4));
        println!("{kind}: {}", status["detail"]);
        throughout("nothing is held", Duration::from_secs(4), || daemon.status(name).unwrap()["held_keys"] == 0);
        broker.run("unpause", &[]);
        daemon.until_settled(name, application.head(), Duration::from_secs(15));
        assert_eq!(daemon.dead_letters(), Vec::<serde_json::Value>::new());
        assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
        let messages =
            if kind == "kafka" { readers::kafka(&broker, "shop") } else { readers::rabbitmq(&broker, "shop") };
        let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
        println!("{kind}: {}", judgement.summary());
        assert!(judgement.is_clean(), "{}", judgement.summary());
    }
}

/// The control: without a listener's answer there is no class either; a daemon that never had its broker waits in the same way.
#[test]
fn a_broker_that_was_never_there_is_waited_for() {
    let _machine = shared_machine();
    let config = [
        SHOP,
        &kafka("kafka", "127.0.0.1:9", "shop", ""),
        &relay("kafka", ""),
        &amqp("rabbit", "amqp://127.0.0.1:9", "shop", "{type}", ""),
        &relay("rabbit", ""),
    ]
    .concat();
    let scene = Scene::new(&config);
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon: Daemon = scene.daemon();
    for name in ["to_kafka", "to_rabbit"] {
        let status = daemon.until_state(name, "unavailable", Duration::from_secs(15));
        println!("{name}: {}", status["detail"]);
        assert_eq!(status["backlog_events"], 10, "{status}");
        daemon.until(name, "behind", Duration::from_secs(5), |status| status["lag_seconds"].as_f64() > Some(1.0));
    }
}
