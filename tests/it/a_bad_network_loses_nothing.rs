//! Between the daemon and the broker stands a network that delays, trickles, freezes, resets, half closes, loses the peer, and cuts after
//! any byte: nothing hangs, memory stays bounded, nothing is lost or out of order.
//!
//! The cuts are made under the sinks themselves, through their port, with one sink for all cuts of an exchange: a daemon for each byte would
//! take hours. `OUTBOXD_TEST_CUT_STEP`: in the handshake every so manieth byte is cut (7; every one of a publish exchange is, always).

use std::time::{Duration, Instant};

use outboxd::sink::amqp::Amqp;
use outboxd::sink::kafka::Kafka;
use outboxd::sink::{FaultClass, News, Outcome, Sink};

use crate::sink_contract;
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::dice::{Dice, number};
use crate::support::flights::{Draft, Tower, recover};
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::proxy::{Direction, Proxy, Weather};
use crate::support::referee::judge;
use crate::support::relays::{amqp, kafka, relay};
use crate::support::trial::{Fault, Trial};
use crate::support::wait::throughout;
use crate::support::{readers, topology};

const BOTH: [Direction; 2] = [Direction::ToBroker, Direction::ToClient];
/// What nobody may take who is answered at once.
const HANG: Duration = Duration::from_secs(5);

fn amqp_uri(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

/// A broker of each kind with a topic or an exchange and queue `shop`, and the way to it.
fn kafka_behind_a_proxy(dice: Dice) -> (Broker, Proxy) {
    let proxy = Proxy::new(dice);
    let broker = Broker::start("kafka", &["--behind-proxy", &proxy.port.to_string()]);
    proxy.lead_to(broker.number("behind_proxy_port"));
    broker.topic("shop", 1, &[]);
    (broker, proxy)
}

fn rabbitmq_behind_a_proxy(dice: Dice) -> (Broker, Proxy) {
    let proxy = Proxy::new(dice);
    let broker = Broker::start("rabbitmq", &[]);
    proxy.lead_to(broker.number("port"));
    topology::declare(&broker, "shop", "#");
    (broker, proxy)
}

fn amqp_sink(proxy: &Proxy, tower: &Tower, heartbeat: Duration) -> Box<dyn Sink> {
    let settings = sink_contract::amqp::settings(&amqp_uri(proxy.port), "shop", "{type}");
    Box::new(Amqp::new(outboxd::sink::amqp::Settings { heartbeat, ..settings }, tower.port.clone()))
}

/// It reconnects at once, else a cut would cost seconds.
fn kafka_sink(proxy: &Proxy, tower: &Tower) -> Box<dyn Sink> {
    let mut settings = sink_contract::kafka::settings(format!("127.0.0.1:{}", proxy.port), "shop");
    for (name, millis) in [("reconnect.backoff.ms", "5"), ("reconnect.backoff.max.ms", "20"), ("retry.backoff.ms", "5")]
    {
        settings.properties.insert(name.into(), millis.into());
    }
    Box::new(Kafka::new(settings, tower.port.clone()))
}

/// Events one by one through a sink, each until it is delivered.
struct Exchange<'a> {
    proxy: &'a Proxy,
    tower: Tower,
    sink: Box<dyn Sink>,
    sent: usize,
    repeated: usize,
    slowest: Duration,
}

impl Exchange<'_> {
    async fn recover(&mut self) {
        for fault in recover(&mut *self.sink, HANG).await {
            assert_eq!(fault.class, FaultClass::Unavailable, "a cut is an outage and nothing else: {fault:?}");
        }
    }

    /// Sends the next event with the wire cut so far from here.
    async fn send_with_a_cut(&mut self, cut: Option<(Direction, usize)>) {
        self.recover().await;
        let draft = Draft { key: "k".into(), ..Draft::nth("cut", self.sent) };
        self.sent += 1;
        if let Some((direction, bytes)) = cut {
            self.proxy.cut_after(direction, bytes);
        }
        let start = Instant::now();
        loop {
            let outcomes = self.tower.send(&mut *self.sink, std::slice::from_ref(&draft)).await;
            match &outcomes[..] {
                [Outcome::Delivered] => break,
                [Outcome::Unavailable(fault)] if fault.class == FaultClass::Unavailable => {
                    self.repeated += 1;
                    self.proxy.disarm();
                    self.recover().await;
                }
                other => panic!("cut {cut:?}: {other:?}"),
            }
        }
        self.proxy.disarm();
        self.slowest = self.slowest.max(start.elapsed());
        assert!(start.elapsed() < HANG, "cut {cut:?}: {:?}", start.elapsed());
    }

    /// How many bytes one event's exchange takes each way.
    async fn lengths(&mut self) -> [usize; 2] {
        let mut least = [u64::MAX; 2];
        for _ in 0..5 {
            self.recover().await;
            // What the probe has still to say is no part of it.
            self.proxy.stands_still(HANG).await;
            let before = BOTH.map(|direction| self.proxy.passed(direction));
            self.send_with_a_cut_of_none().await;
            for (least, direction) in least.iter_mut().zip(BOTH) {
                *least = (*least).min(self.proxy.passed(direction) - before[direction as usize]);
            }
        }
        least.map(|bytes| bytes as usize)
    }

    async fn send_with_a_cut_of_none(&mut self) {
        let draft = Draft { key: "k".into(), ..Draft::nth("cut", self.sent) };
        self.sent += 1;
        assert_eq!(self.tower.send(&mut *self.sink, &[draft]).await, [Outcome::Delivered]);
    }
}

/// Cuts one event's exchange after every byte, both ways. Says how many cuts there were, how many made the event come again from here, and
/// the longest time to its acknowledgement.
async fn cut_everywhere(exchange: &mut Exchange<'_>) -> u64 {
    let lengths = exchange.lengths().await;
    println!("an exchange takes {} bytes to the broker, {} back", lengths[0], lengths[1]);
    let mut cuts = 0;
    for (direction, length) in BOTH.into_iter().zip(lengths) {
        for bytes in 0..=length {
            exchange.send_with_a_cut(Some((direction, bytes))).await;
            cuts += 1;
        }
    }
    cuts
}

/// Cuts the way from the first byte of a connection to a probe that succeeds. Says how many cuts there were. Each has to be noticed by
/// itself, well before the probe's own limit.
async fn cut_the_handshake(proxy: &Proxy, dice: &mut Dice, make: impl Fn(&Tower) -> Box<dyn Sink>) -> u64 {
    let tower = Tower::new("cuts");
    let before = BOTH.map(|direction| proxy.passed(direction));
    let mut sink = make(&tower);
    sink.check(HANG).await.unwrap();
    let lengths = BOTH.map(|direction| (proxy.passed(direction) - before[direction as usize]) as usize);
    sink.close().await;
    let step = number("OUTBOXD_TEST_CUT_STEP").unwrap_or(7).max(1) as usize;
    let (mut cuts, mut slowest) = (0, Duration::ZERO);
    for (direction, length) in BOTH.into_iter().zip(lengths) {
        for bytes in (dice.below(step as u64) as usize..length).step_by(step) {
            proxy.cut_after(direction, bytes);
            let mut sink = make(&tower);
            let start = Instant::now();
            if let Err(fault) = sink.check(HANG).await {
                assert_eq!(fault.class, FaultClass::Unavailable, "cut after {bytes} {direction:?}: {fault:?}");
            }
            assert!(start.elapsed() < HANG / 2, "cut after {bytes} {direction:?}: {:?}", start.elapsed());
            slowest = slowest.max(start.elapsed());
            proxy.disarm();
            cuts += 1;
            sink.close().await;
        }
    }
    println!(
        "a handshake takes {} bytes to the broker, {} back; the slowest of {cuts}: {slowest:?}",
        lengths[0], lengths[1]
    );
    cuts
}

/// The first deliveries are all there and in order.
fn all_in_order(messages: &[readers::Message], sent: usize) -> usize {
    let numbers = messages.iter().map(|message| message.id.rsplit('-').next().unwrap().parse::<usize>().unwrap());
    let mut next = 0;
    for number in numbers {
        assert!(number <= next, "{number} came before {next}");
        next = next.max(number + 1);
    }
    assert_eq!(next, sent, "the last ones are lost");
    messages.len() - sent
}

async fn cuts(what: &str, broker: &Broker, proxy: &Proxy, mut dice: Dice, make: impl Fn(&Tower) -> Box<dyn Sink>) {
    let start = Instant::now();
    let tower = Tower::new("cuts");
    let sink = make(&tower);
    let mut exchange = Exchange { proxy, tower, sink, sent: 0, repeated: 0, slowest: Duration::ZERO };
    let in_exchange = cut_everywhere(&mut exchange).await;
    println!("{what}: {in_exchange} cuts in {:?}", start.elapsed());
    let in_handshake = cut_the_handshake(proxy, &mut dice, make).await;
    println!("{what}: with {in_handshake} cuts in handshakes {:?}", start.elapsed());
    let Exchange { sink, sent, repeated, slowest, .. } = exchange;
    sink.close().await;
    let messages = if what == "Kafka" { readers::kafka(broker, "shop") } else { readers::rabbitmq(broker, "shop") };
    let duplicates = all_in_order(&messages, sent);
    drop(
        Proof::of(&format!("connection cut after every byte, {what}"))
            .seed(dice.seed)
            .tried("cuts in a publish exchange, one for each byte", in_exchange)
            .tried("cuts in a handshake", in_handshake)
            .found("lost", 0)
            .found("out of order", 0)
            .found("events given back to be sent again", repeated)
            .found("duplicates", duplicates)
            .found("longest time to the acknowledgement", format!("{} ms", slowest.as_millis())),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_after_any_byte_loses_nothing_at_kafka() {
    let mut dice = Dice::thrown("cuts at Kafka");
    let (broker, proxy) = kafka_behind_a_proxy(Dice::of(dice.next()));
    cuts("Kafka", &broker, &proxy, dice, |tower| kafka_sink(&proxy, tower)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_after_any_byte_loses_nothing_at_rabbitmq() {
    let mut dice = Dice::thrown("cuts at RabbitMQ");
    let (broker, proxy) = rabbitmq_behind_a_proxy(Dice::of(dice.next()));
    cuts("RabbitMQ", &broker, &proxy, dice, |tower| amqp_sink(&proxy, tower, Duration::from_secs(60))).await;
}

/// A peer that is gone without a word, with nothing in flight: only heartbeats can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_noticed_within_two_heartbeats_at_rabbitmq() {
    let heartbeat = Duration::from_secs(4);
    let (_broker, proxy) = rabbitmq_behind_a_proxy(Dice::thrown("a dead peer"));
    let mut tower = Tower::new("dead peer");
    let mut sink = amqp_sink(&proxy, &tower, heartbeat);
    sink.check(HANG).await.unwrap();
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("p", 0)]).await, [Outcome::Delivered]);
    proxy.lose_peers();
    let lost = Instant::now();
    tower
        .hear(heartbeat * 2, |news| matches!(news, News::Trouble(fault) if fault.class == FaultClass::Unavailable))
        .await;
    println!("noticed after {:?}", lost.elapsed());
    let noticed = format!("{:.1} s", lost.elapsed().as_secs_f64());
    drop(Proof::of("dead peer, RabbitMQ").tried("dead peers, heartbeat 4 s", 1).found("noticed after", noticed));
    sink.check(HANG).await.unwrap();
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("p", 1)]).await, [Outcome::Delivered]);
    sink.close().await;
}

/// A peer that is gone without a word, with events in flight: librdkafka by itself clings to the connection for half a minute and more.
/// Says whether everything is settled within the time.
pub fn a_lost_peer_of_kafka_is_left(environment: &[(&str, &str)], time: Duration) -> bool {
    let _machine = shared_machine();
    let (broker, proxy) = kafka_behind_a_proxy(Dice::thrown("a lost peer"));
    let bus = kafka("bus", &format!("127.0.0.1:{}", proxy.port), "shop", "");
    let scene = Scene::new(&[SHOP, &bus, &relay("bus", "ack_timeout = \"2s\"")].concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut daemon = scene.daemon_with(environment);
    application.write(100);
    daemon.until_settled("to_bus", application.head(), Duration::from_secs(20));
    proxy.lose_peers();
    application.write(100);
    let settled = scene.settles("to_bus", application.head(), time);
    daemon.kill();
    if settled {
        let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::kafka(&broker, "shop")));
        assert!(judgement.is_clean(), "{}", judgement.summary());
    }
    settled
}

/// A probe of the client that does not find its broker any more, and one of a new one, behind `ack_timeout`.
pub const CLIENT_REPLACED: Duration = Duration::from_secs(20);

#[test]
fn a_kafka_client_that_does_not_find_its_broker_is_replaced() {
    assert!(a_lost_peer_of_kafka_is_left(&[], CLIENT_REPLACED));
}

/// One daemon through all kinds of weather; `dead_peer` is the time in which a peer that is gone must be found out under load.
fn all_weathers(
    suite: &str,
    bus: &str,
    proxy: &Proxy,
    dead_peer: Duration,
) -> (crate::support::referee::Ledger, Proof) {
    let mut trial = Trial::new(suite, bus, "ack_timeout = \"5s\"", 1000);
    proxy.weather(Weather::Delay(Duration::from_millis(100)));
    let slow = trial.heals("a delay of 100 to 150 ms", Duration::from_secs(10));
    trial.note("a delay of 100 to 150 ms", &format!("what stood there is settled after {:.1} s", slow.as_secs_f64()));
    proxy.weather(Weather::Fair);
    let fair = || proxy.weather(Weather::Fair);
    trial.suffers(&Fault::unavailable("1 byte a second", ""), || proxy.weather(Weather::Trickle(1)), fair);
    trial.suffers(&Fault::unavailable("a freeze", ""), || proxy.weather(Weather::Frozen), fair);
    let mut passes = |name: &str, strike: &dyn Fn(), within: Duration| {
        strike();
        let healed = trial.heals(name, within);
        trial.note(name, &format!("healed after {:.1} s", healed.as_secs_f64()));
    };
    passes("a reset of all connections", &|| proxy.reset(), HANG);
    passes("a half close to the broker", &|| proxy.half_close(Direction::ToBroker), HANG);
    passes("a half close to the client", &|| proxy.half_close(Direction::ToClient), HANG);
    passes("a dead peer", &|| proxy.lose_peers(), dead_peer + HANG);
    let (ledger, proof) = trial.end();
    (ledger, proof.found("lost", 0).found("out of order", 0))
}

#[test]
fn a_daemon_and_kafka_live_through_all_weathers() {
    let _machine = shared_machine();
    let mut dice = Dice::thrown("weathers at Kafka");
    let (broker, proxy) = kafka_behind_a_proxy(Dice::of(dice.next()));
    let patience = "properties = { \"request.timeout.ms\" = 4000, \"socket.timeout.ms\" = 4000 }";
    let bus = kafka("bus", &format!("127.0.0.1:{}", proxy.port), "shop", patience);
    let (ledger, proof) = all_weathers("all weathers, Kafka", &bus, &proxy, Duration::from_secs(8));
    let judgement = judge(&ledger, &[], &readers::arrivals(readers::kafka(&broker, "shop")));
    println!("{}", judgement.summary());
    assert!(judgement.is_clean(), "{}", judgement.summary());
    drop(proof.seed(dice.seed).tried("events", ledger.len() as u64).found("duplicates", judgement.duplicates));
}

#[test]
fn a_daemon_and_rabbitmq_live_through_all_weathers() {
    let _machine = shared_machine();
    let mut dice = Dice::thrown("weathers at RabbitMQ");
    let (broker, proxy) = rabbitmq_behind_a_proxy(Dice::of(dice.next()));
    let bus = amqp("bus", &amqp_uri(proxy.port), "shop", "{type}", "heartbeat = \"4s\"");
    let (ledger, proof) = all_weathers("all weathers, RabbitMQ", &bus, &proxy, Duration::from_secs(8));
    let judgement = judge(&ledger, &[], &readers::arrivals(readers::rabbitmq(&broker, "shop")));
    println!("{}", judgement.summary());
    assert!(judgement.is_clean(), "{}", judgement.summary());
    drop(proof.seed(dice.seed).tried("events", ledger.len() as u64).found("duplicates", judgement.duplicates));
}

/// The window is bounded in bytes, so that a backlog of any size behind a network that stands still costs no more memory.
#[test]
fn memory_stays_bounded_behind_a_network_that_stands_still() {
    const BYTES_MAX: u64 = 256 << 20;
    let _machine = shared_machine();
    let mut dice = Dice::thrown("memory");
    let (of_kafka, to_kafka) = kafka_behind_a_proxy(Dice::of(dice.next()));
    let (of_rabbitmq, to_rabbitmq) = rabbitmq_behind_a_proxy(Dice::of(dice.next()));
    let config = [
        SHOP.to_owned(),
        kafka("kafka", &format!("127.0.0.1:{}", to_kafka.port), "shop", "") + &relay("kafka", ""),
        amqp("rabbitmq", &amqp_uri(to_rabbitmq.port), "shop", "{type}", "") + &relay("rabbitmq", ""),
    ];
    let scene = Scene::new(&config.concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    let mut daemon = scene.daemon();
    application.write(100);
    let relays = ["to_kafka", "to_rabbitmq"];
    for relay in relays {
        daemon.until_settled(relay, application.head(), Duration::from_secs(20));
    }
    for weather in [Weather::Trickle(1), Weather::Frozen] {
        [&to_kafka, &to_rabbitmq].iter().for_each(|proxy| proxy.weather(weather));
        let heavy: Vec<Row> = (0..50).map(|n| Row::of(&format!("key-{}", n % 5)).heavy(100_000)).collect();
        (0..16).for_each(|_| drop(application.commit(&heavy)));
        for relay in relays {
            daemon.until_state(relay, "unavailable", Duration::from_secs(5));
        }
        throughout("it answers", Duration::from_secs(4), || daemon.status("to_kafka").is_some());
        [&to_kafka, &to_rabbitmq].iter().for_each(|proxy| proxy.weather(Weather::Fair));
        for relay in relays {
            daemon.until_settled(relay, application.head(), Duration::from_secs(60));
        }
    }
    let most = peak_bytes(daemon.pid());
    println!("at most {} MiB resident", most >> 20);
    assert!(most < BYTES_MAX, "{most} bytes resident");
    assert_eq!(daemon.dead_letters(), Vec::<serde_json::Value>::new());
    assert_eq!(daemon.stop(Duration::from_secs(5)).0, Some(0));
    for messages in [readers::kafka(&of_kafka, "shop"), readers::rabbitmq(&of_rabbitmq, "shop")] {
        let judgement = judge(&application.ledger, &[], &readers::arrivals(messages));
        assert!(judgement.is_clean(), "{}", judgement.summary());
    }
    drop(
        Proof::of("memory behind a network that stands still")
            .seed(dice.seed)
            .tried("MB of backlog", 160)
            .found("most resident", format!("{} MiB", most >> 20)),
    );
}

/// What was resident at most so far.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
