//! The AMQP sink's rig, and what only RabbitMQ can do.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use outboxd::event::Reason;
use outboxd::secret::Secret;
use outboxd::sink::amqp::{Amqp, Properties, Settings, Timestamp};
use outboxd::sink::format::Format;
use outboxd::sink::template::Template;
use outboxd::sink::{FaultClass, News, Outcome, Port, Sink};
use serde_json::{Value, json};

use super::rig::{Case, Message, Rig, unique};
use crate::support::broker::Broker;
use crate::support::flights::{Draft, Tower, recover};
use crate::support::readers;

crate::sink_contract!(AmqpRig);

enum Held {
    Shared(&'static Broker),
    Own(Broker),
}

impl Deref for Held {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        match self {
            Held::Shared(broker) => broker,
            Held::Own(broker) => broker,
        }
    }
}

pub struct AmqpRig {
    broker: Held,
    pub exchange: String,
}

pub fn settings(uri: &str, exchange: &str, routing_key: &str) -> Settings {
    Settings {
        uri: Secret::new(uri),
        exchange: Template::parse(exchange).unwrap(),
        routing_key: Template::parse(routing_key).unwrap(),
        format: Format::Plain,
        headers: vec![],
        properties: Default::default(),
        persistent: true,
        mandatory: true,
        declare: false,
        tls: None,
        heartbeat: Duration::from_secs(10),
        ack_timeout: Duration::from_secs(10),
        message_bytes_max: outboxd::sink::amqp::MESSAGE_BYTES_MAX,
        management: None,
    }
}

impl AmqpRig {
    pub fn uri(&self) -> String {
        self.broker.text("uri")
    }

    /// An exchange, and a durable queue that gets what begins with `good.`.
    async fn with(broker: Held, arguments: FieldTable) -> Self {
        let rig = Self { broker, exchange: unique("x") };
        let connection = Connection::connect(&rig.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let name = rig.exchange.as_str();
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(name.into(), name.into(), "good.#".into(), bind, FieldTable::default()).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
        rig
    }
}

impl Rig for AmqpRig {
    async fn new() -> Self {
        Self::with(Held::Shared(Broker::rabbitmq()), FieldTable::default()).await
    }

    async fn alone() -> Self {
        let rig = Self::with(Held::Own(Broker::start("rabbitmq", &[])), FieldTable::default()).await;
        rig.broker.run("sync", &[]);
        rig
    }

    fn open(&self, port: Port, case: Case) -> Box<dyn Sink> {
        let mut settings = settings(&self.uri(), &self.exchange, "{stream_type}.{type}");
        match case {
            Case::Ordinary => settings.routing_key = Template::parse("good.{type}").unwrap(),
            Case::Small => settings.message_bytes_max = 1000,
            Case::Nowhere => settings.exchange = Template::parse("nowhere").unwrap(),
            Case::Routing => {}
        }
        Box::new(Amqp::new(settings, port))
    }

    fn make_unroutable(&self, draft: &mut Draft) {
        draft.stream_type = "missing".into();
    }

    fn make_oversize(&self, draft: &mut Draft) -> bool {
        draft.payload = vec![b'x'; 3000];
        true
    }

    async fn arrived(&self, least: usize) -> Vec<Message> {
        let connection = Connection::connect(&self.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let mut messages = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let got = channel.basic_get(self.exchange.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
            let Some(got) = got else {
                if messages.len() >= least || Instant::now() > deadline {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let text = |value: &AMQPValue| match value {
                AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().into()).unwrap(),
                AMQPValue::LongInt(number) => number.to_string(),
                other => panic!("{other:?}"),
            };
            let headers = got.properties.headers().clone().unwrap_or_default();
            let id = got.properties.message_id().clone().unwrap().to_string();
            assert_eq!(*got.properties.delivery_mode(), Some(2));
            assert_eq!(*got.properties.timestamp(), Some(1_795_168_800));
            messages.push(Message {
                key: format!("key-{}", id.rsplit('-').next().unwrap().parse::<usize>().unwrap() % 10),
                id,
                kind: got.properties.kind().clone().unwrap().to_string(),
                headers: headers
                    .inner()
                    .iter()
                    .map(|(name, value)| (name.to_string(), text(value)))
                    .collect::<BTreeMap<_, _>>(),
                body: got.delivery.data,
            });
        }
        connection.close(200, "done".into()).await.unwrap();
        messages
    }

    async fn stop(&self) {
        self.broker.run("stop-app", &[]);
    }

    async fn start(&self) {
        self.broker.run("start-app", &[]);
    }

    async fn pause(&self) {
        self.broker.run("pause", &[]);
    }
}

async fn opened(settings: Settings, tower: &Tower) -> Box<dyn Sink> {
    let mut sink: Box<dyn Sink> = Box::new(Amqp::new(settings, tower.port.clone()));
    sink.check(Duration::from_secs(10)).await.unwrap();
    sink
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_exchange_of_a_template_is_named_and_nobody_else() {
    let rig = AmqpRig::new().await;
    let mut tower = Tower::new("contract");
    let exchange = rig.exchange.replace('x', "");
    let mut sink = opened(settings(&rig.uri(), &format!("{{stream_id}}{exchange}"), "good.x"), &tower).await;
    let draft = |n: usize, key: &str| Draft { key: key.into(), ..Draft::nth("m", n) };
    let drafts = [draft(0, "x"), draft(1, "no-such-"), draft(2, "x")];
    let outcomes = tower.send(&mut *sink, &drafts).await;
    assert!(matches!(&outcomes[1], Outcome::Rejected(r) if r.reason == Reason::Unroutable), "{outcomes:?}");
    for innocent in [0, 2] {
        assert!(matches!(&outcomes[innocent], Outcome::Delivered | Outcome::Unavailable(_)), "{outcomes:?}");
    }
    recover(&mut *sink, Duration::from_secs(10)).await;
    assert_eq!(tower.send(&mut *sink, &drafts[2..]).await, [Outcome::Delivered]);
    sink.close().await;
}

/// The client library gives a returned message to whichever confirm completes next. Transient messages and many
/// acknowledgements at a time bring that about: an implementation that believes single confirms fails here within a few rounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_returned_message_is_never_taken_for_its_neighbour() {
    let rig = AmqpRig::new().await;
    let mut tower = Tower::new("contract");
    let transient = Settings { persistent: false, ..settings(&rig.uri(), &rig.exchange, "{stream_type}.{type}") };
    let mut sink = opened(transient, &tower).await;
    for round in 0..10 {
        let mut drafts: Vec<_> = (0..1000).map(|n| Draft::nth(&format!("w{round}"), n)).collect();
        let is_guilty = |n: usize| n * 2_654_435_761 % 97 < 30;
        drafts.iter_mut().enumerate().filter(|(n, _)| is_guilty(*n)).for_each(|(_, draft)| rig.make_unroutable(draft));
        let outcomes = tower.send(&mut *sink, &drafts).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            assert_eq!(matches!(outcome, Outcome::Rejected(_)), is_guilty(n), "round {round}, {n}: {outcome:?}");
        }
    }
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nack_is_unavailable() {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString(LongString::from("reject-publish")));
    let rig = AmqpRig::with(Held::Shared(Broker::rabbitmq()), arguments).await;
    let mut tower = Tower::new("contract");
    let mut sink = opened(settings(&rig.uri(), &rig.exchange, "good.x"), &tower).await;
    let drafts: Vec<_> = (0..50).map(|n| Draft::nth("n", n)).collect();
    for draft in &drafts[..5] {
        tower.send(&mut *sink, std::slice::from_ref(draft)).await;
    }
    let outcomes = tower.send(&mut *sink, &drafts[5..]).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unavailable(_))), "{outcomes:?}");
    sink.close().await;
}

/// Read back by a client that is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn every_property_arrives_and_what_cannot_be_one_is_a_refusal() {
    let rig = AmqpRig::new().await;
    let mut tower = Tower::new("contract");
    let template = |text: &str| Some(Template::parse(text).unwrap());
    let all = Properties {
        kind: template("shop.{type}"),
        correlation_id: template("{header.traceparent}"),
        content_type: template("application/cloudevents+json"),
        timestamp: Timestamp::Sent,
        expiration: template("3600000"),
        priority: template("{stream_type}"),
    };
    let absent = Properties {
        kind: template("{header.none}"),
        correlation_id: template("{header.none}"),
        content_type: template("{header.none}"),
        timestamp: Timestamp::None,
        expiration: template("{header.none}"),
        priority: template("{header.none}"),
    };
    let with = |properties| Settings { properties, ..settings(&rig.uri(), &rig.exchange, "good.x") };
    let of =
        |id: &str, stream_type: &str| Draft { id: id.into(), stream_type: stream_type.into(), ..Draft::nth("q", 0) };
    let before = outboxd::clock::now_micros() / 1_000_000;
    for (properties, drafts) in [
        (all.clone(), vec![of("all", "7")]),
        (absent, vec![of("absent", "7")]),
        (Properties::default(), vec![of("usual", "7")]),
    ] {
        let mut sink = opened(with(properties), &tower).await;
        assert_eq!(tower.send(&mut *sink, &drafts).await, [Outcome::Delivered]);
        sink.close().await;
    }
    for (properties, stream_type, word) in [
        (all.clone(), "256", "priority from 0 to 255"),
        (all.clone(), "high", "priority from 0 to 255"),
        (
            Properties { expiration: template("{stream_type}"), ..Properties::default() },
            "-1",
            "expiration in whole milliseconds",
        ),
        (
            Properties { expiration: template("{stream_type}"), ..Properties::default() },
            "5s",
            "expiration in whole milliseconds",
        ),
        (
            Properties { correlation_id: template("{stream_type}"), ..Properties::default() },
            &*"c".repeat(256),
            "a correlation id of 256 bytes",
        ),
        (
            Properties { kind: template("{stream_type}"), ..Properties::default() },
            &*"c".repeat(256),
            "a type of 256 bytes",
        ),
    ] {
        let mut sink = opened(with(properties), &tower).await;
        let outcomes = tower.send(&mut *sink, &[of("wrong", stream_type)]).await;
        let [Outcome::Rejected(rejection)] = &outcomes[..] else { panic!("{stream_type}: {outcomes:?}") };
        assert!(rejection.reason == Reason::Undecodable && rejection.detail.contains(word), "{rejection:?}");
        sink.close().await;
    }
    let uri = rig.uri();
    let lines = readers::read("read_amqp.py", &[&uri, &rig.exchange, "--count", "3", "--timeout", "60"]);
    let line = |id: &str| lines.iter().find(|line| line["message_id"] == id).unwrap();
    let told = |id: &str| {
        ["type", "correlation_id", "content_type", "expiration", "priority"].map(|name| line(id)[name].clone())
    };
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(
        told("all"),
        [json!("shop.Happened"), json!(trace), json!("application/cloudevents+json"), json!("3600000"), json!(7)]
    );
    let usual = [json!("Happened"), Value::Null, json!("application/json"), Value::Null, Value::Null];
    assert_eq!((told("absent"), told("usual")), (usual.clone(), usual));
    let at = |id: &str| line(id)["timestamp"].as_i64();
    assert_eq!((at("absent"), at("usual")), (None, Some(1_795_168_800)));
    assert!(at("all").is_some_and(|at| (before..=before + 60).contains(&at)), "{:?}", at("all"));
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_routing_that_leads_nowhere_is_fatal() {
    let rig = AmqpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = opened(settings(&rig.uri(), &rig.exchange, "missing"), &tower).await;
    let outcomes = tower.send(&mut *sink, &[Draft::nth("c", 0)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Unavailable(f)] if f.class == FaultClass::Fatal), "{outcomes:?}");
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_blocks_and_what_is_in_flight_waits_for_its_end() {
    let rig = AmqpRig::alone().await;
    let mut tower = Tower::new("contract");
    let impatient = Settings { ack_timeout: Duration::from_secs(1), ..settings(&rig.uri(), &rig.exchange, "good.x") };
    let mut sink = opened(impatient, &tower).await;
    rig.broker.run("ctl", &["set_vm_memory_high_watermark", "0.0001"]);
    let flight = tower.flight(&[Draft::nth("b", 0)]);
    sink.send(flight.clone());
    tower.hear(Duration::from_secs(5), |news| matches!(news, News::Blocked(Some(_)))).await;
    assert!(tower.land(&flight, Duration::from_secs(2)).await.is_err(), "it is not given up while blocked");
    assert_eq!(sink.check(Duration::from_secs(2)).await.unwrap_err().class, FaultClass::Unavailable);
    rig.broker.run("ctl", &["set_vm_memory_high_watermark", "absolute", "1GiB"]);
    tower.hear(Duration::from_secs(10), |news| matches!(news, News::Blocked(None))).await;
    assert_eq!(tower.land(&flight, Duration::from_secs(10)).await.unwrap(), [Outcome::Delivered]);
    assert_eq!(rig.arrived(1).await.len(), 1);
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_fatal_and_a_closed_port_is_not() {
    let rig = AmqpRig::new().await;
    let tower = Tower::new("contract");
    for (uri, class) in [
        (rig.uri().replace("guest:guest", "guest:wrong"), FaultClass::Fatal),
        (rig.uri().replace("%2f", "no-such-vhost"), FaultClass::Fatal),
        ("amqp://guest:guest@127.0.0.1:1/%2f".to_owned(), FaultClass::Unavailable),
        ("nonsense://guest:hidden@x".to_owned(), FaultClass::Fatal),
    ] {
        let mut sink = Amqp::new(settings(&uri, &rig.exchange, "good.x"), tower.port.clone());
        let fault = sink.check(Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(fault.class, class, "{fault:?}");
        assert!(!fault.detail.contains("wrong") && !fault.detail.contains("hidden"), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_and_a_stranger_is_fatal() {
    let broker = Broker::start("rabbitmq", &["--tls-client"]);
    let tower = Tower::new("contract");
    let with = |tls| Settings { tls: Some(tls), ..settings(&broker.text("tls_uri"), "amq.topic", "good.x") };
    let mut right = Amqp::new(with(broker.tls("ca", Some("client"))), tower.port.clone());
    right.check(Duration::from_secs(10)).await.unwrap();
    for wrong in [broker.tls("stranger_ca", Some("client")), broker.tls("ca", Some("stranger")), broker.tls("ca", None)]
    {
        let fault = Amqp::new(with(wrong), tower.port.clone()).check(Duration::from_secs(10)).await.unwrap_err();
        println!("{fault:?}");
        // With TLS 1.3 a broker that refuses our certificate may close before its alert is read; a reset alone could be an outage.
        let is_cut = fault.class == FaultClass::Unavailable && fault.detail.contains("reset");
        assert!(fault.class == FaultClass::Fatal || is_cut, "{fault:?}");
    }
}
