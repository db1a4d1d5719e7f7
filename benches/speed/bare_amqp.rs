//! The bare lapin loop: one channel, persistent messages, every confirm awaited, a window of 2,048.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, PublisherConfirm};
use outboxd::event::{Batch, Event};

use crate::load;
use crate::meter::{Beat, Drain, Meter, Pace, monotonic_nanos};

/// Messages that are handed to the client together, and how many such groups may be unconfirmed.
const GROUP: usize = 256;
const GROUPS_MAX: usize = 8;
const PERSISTENT: u8 = 2;

async fn connect(uri: &str) -> (Connection, Channel) {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("RabbitMQ answers");
    let channel = connection.create_channel().await.expect("a channel can be opened");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("RabbitMQ confirms");
    (connection, channel)
}

async fn publish(channel: &Channel, queue: &str, event: &Event<'_>) -> PublisherConfirm {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let properties = BasicProperties::default()
        .with_message_id(event.id.into())
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_type(event.kind.into())
        .with_timestamp(1_795_168_800);
    let payload = event.payload.unwrap_or_default();
    channel.basic_publish("".into(), queue.into(), options, payload, properties).await.expect("the channel is open")
}

async fn confirmed(confirm: PublisherConfirm) {
    assert!(confirm.await.expect("the channel is open").is_ack(), "the broker takes everything");
}

async fn send_all(channel: &Channel, queue: &str, batches: &[Batch]) {
    let mut window: VecDeque<Vec<PublisherConfirm>> = VecDeque::new();
    for batch in batches {
        for start in (0..batch.len()).step_by(GROUP) {
            let group =
                (start..(start + GROUP).min(batch.len())).map(async |n| publish(channel, queue, &batch.event(n)).await);
            window.push_back(join_all(group).await);
            if window.len() >= GROUPS_MAX {
                for confirm in window.pop_front().into_iter().flatten() {
                    confirmed(confirm).await;
                }
            }
        }
    }
    for confirm in window.into_iter().flatten() {
        confirmed(confirm).await;
    }
}

pub async fn drain(uri: &str, queue: &str, bytes: usize, events: usize) -> Drain {
    let batches = load::batches(events, bytes);
    let (warm, rest) = batches.split_at(batches.len() / 50 + 1);
    let (_connection, channel) = connect(uri).await;
    send_all(&channel, queue, warm).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let meter = Meter::start();
    send_all(&channel, queue, rest).await;
    meter.read(rest.iter().map(|batch| batch.len()).sum())
}

pub async fn pace(uri: &str, queue: &str, events: usize, per_second: usize) -> Pace {
    let batches = load::batches(events, 256);
    let (_connection, channel) = connect(uri).await;
    let beat = Beat::new(per_second);
    let mut waiting = Vec::with_capacity(events);
    for (n, event) in batches.iter().flat_map(|batch| batch.events()).enumerate() {
        tokio::time::sleep(beat.wait(n)).await;
        let sent = monotonic_nanos();
        let confirm = publish(&channel, queue, &event).await;
        waiting.push(tokio::spawn(async move {
            confirmed(confirm).await;
            monotonic_nanos() - sent
        }));
    }
    let took = join_all(waiting).await;
    Pace::of(took.into_iter().map(|took| took.expect("waiting does not panic")).collect())
}
