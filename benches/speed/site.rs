//! A broker of this run's own, and the places in it that events go to: a fresh one for each measurement.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use outboxd::secret::Secret;
use outboxd::sink::format::Format;
use outboxd::sink::template::Template;
use outboxd::sink::{self, amqp, kafka};
use serde::{Deserialize, Serialize};

use crate::broker::Broker;

const PARTITIONS: u32 = 6;
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Where events go: all that a child has to know.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum FarSide {
    Kafka { bootstrap: String, topic: String, properties: BTreeMap<String, String> },
    Rabbitmq { uri: String, queue: String },
}

impl FarSide {
    /// The relay's sink, as a config without further settings makes it.
    pub fn sink(&self) -> sink::Settings {
        match self {
            FarSide::Kafka { bootstrap, topic, properties } => sink::Settings::Kafka(kafka::Settings {
                bootstrap_servers: vec![bootstrap.clone()],
                topic: Template::parse(topic).expect("a topic's name is a template"),
                format: Format::Plain,
                headers: Vec::new(),
                key: None,
                partition: None,
                properties: properties.clone(),
                security: kafka::Security::default(),
                ack_timeout: ACK_TIMEOUT,
            }),
            FarSide::Rabbitmq { uri, queue } => sink::Settings::Amqp(amqp::Settings {
                uri: Secret::new(uri),
                exchange: Template::parse("").expect("the default exchange"),
                routing_key: Template::parse(queue).expect("a queue's name is a template"),
                format: Format::Plain,
                headers: Vec::new(),
                properties: Default::default(),
                persistent: true,
                mandatory: true,
                declare: false,
                tls: None,
                heartbeat: Duration::from_secs(10),
                ack_timeout: ACK_TIMEOUT,
                message_bytes_max: amqp::MESSAGE_BYTES_MAX,
                management: None,
            }),
        }
    }
}

pub struct Site {
    pub name: &'static str,
    broker: Broker,
    properties: BTreeMap<String, String>,
}

impl Site {
    pub fn kafka(properties: &[String]) -> Self {
        let options = ["--c2", "--heap", "512m", "--prop", "log.segment.delete.delay.ms=1000"];
        let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        let properties = properties.iter().map(|text| pair(text).expect("name=value")).collect();
        Self { name: "Kafka", broker: Broker::start("kafka", &options), properties }
    }

    pub fn rabbitmq() -> Self {
        Self { name: "RabbitMQ", broker: Broker::start("rabbitmq", &[]), properties: BTreeMap::new() }
    }

    /// A new topic or quorum queue.
    pub fn destination(&self) -> FarSide {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if self.name == "Kafka" {
            self.broker.topic(&name, PARTITIONS, &[]);
            let (bootstrap, properties) = (self.broker.text("bootstrap"), self.properties.clone());
            return FarSide::Kafka { bootstrap, topic: name, properties };
        }
        let far_side = FarSide::Rabbitmq { uri: self.broker.text("uri"), queue: name };
        on_channel(&far_side, async |channel, queue| {
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            channel.queue_declare(queue.into(), options, arguments).await.expect("a queue can be declared");
        });
        far_side
    }

    pub fn remove(&self, far_side: &FarSide) {
        match far_side {
            FarSide::Kafka { topic, .. } => drop(self.broker.run("delete-topic", &[topic])),
            FarSide::Rabbitmq { .. } => on_channel(far_side, async |channel, queue| {
                channel
                    .queue_delete(queue.into(), QueueDeleteOptions::default())
                    .await
                    .expect("a queue can be deleted");
            }),
        }
    }
}

fn on_channel(far_side: &FarSide, act: impl AsyncFnOnce(&lapin::Channel, &str)) {
    let FarSide::Rabbitmq { uri, queue } = far_side else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel can be opened");
        act(&channel, queue).await;
        let _ = connection.close(200, "done".into()).await;
    });
}
