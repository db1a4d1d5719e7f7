//! RabbitMQ's side of a test: exchanges and queues, made with the client and made durable at once.

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use super::broker::Broker;

/// A topic exchange and a quorum queue of the same name, which gets what `binding` says. A kill -9 does not undo it.
pub fn declare(broker: &Broker, name: &str, binding: &str) {
    declare_queue(broker, name, name, "quorum", binding);
}

/// The same with a queue of another name and type.
pub fn declare_queue(broker: &Broker, exchange: &str, name: &str, kind: &str, binding: &str) {
    with_channel(broker, async |channel: &Channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(kind)));
        channel.queue_declare(name.into(), durable, arguments).await.unwrap();
        let bind = QueueBindOptions::default();
        channel.queue_bind(name.into(), exchange.into(), binding.into(), bind, FieldTable::default()).await.unwrap();
    });
    broker.run("sync", &[]);
}

/// An exchange of another type than [`declare`] makes.
pub fn declare_fanout(broker: &Broker, name: &str) {
    with_channel(broker, async |channel: &Channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), ExchangeKind::Fanout, durable, FieldTable::default()).await.unwrap();
    });
}

pub fn delete_queue(broker: &Broker, name: &str) {
    with_channel(broker, async |channel: &Channel| {
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    });
}

/// What stands ready in a queue.
pub fn length(broker: &Broker, name: &str) -> u32 {
    let mut length = 0;
    with_channel(broker, async |channel: &Channel| {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        length = channel.queue_declare(name.into(), passive, FieldTable::default()).await.unwrap().message_count();
    });
    length
}

pub fn delete_exchange(broker: &Broker, name: &str) {
    with_channel(broker, async |channel: &Channel| {
        channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.unwrap();
    });
}

fn with_channel(broker: &Broker, work: impl AsyncFnOnce(&Channel)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let talk = async {
        let connection = Connection::connect(&broker.text("uri"), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        work(&channel).await;
        connection.close(200, "done".into()).await.unwrap();
    };
    // Also from tests that are asynchronous themselves.
    tokio::task::block_in_place(|| runtime.block_on(talk));
    runtime.shutdown_background();
}
