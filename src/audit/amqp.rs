//! A shadow queue at RabbitMQ, looked through without taking anything from it.
//!
//! A stream is read from its first message, which takes nothing. From a classic queue everything is fetched and nothing is acknowledged;
//! when the channel closes, all of it goes back to its place, marked as redelivered. A quorum queue counts that as a failed delivery of
//! each message (RabbitMQ before 4.3) and, at its delivery limit (20 by default from 4.0 on), throws the message away: it is refused,
//! before anything is fetched from it. So is a queue that somebody consumes from: what they have in hand would seem to be missing.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::runtime::Runtime;

use super::judge::Print;
use super::{Error, Extent, FarSide, Message};
use crate::event::Event;
use crate::sink::Fault;
use crate::sink::amqp::{Settings, connect};

const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A queue that says that it holds more, and hands out nothing for so long.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a stream's end is looked for; an empty one has none.
const END_WAIT: Duration = Duration::from_secs(2);
/// A stream hands out no more than so many before it hears of them.
const STREAM_PREFETCH: u16 = 1_000;
const STREAM_OFFSET: &str = "x-stream-offset";

pub(super) struct Amqp {
    settings: Settings,
    source: String,
    queue: String,
    /// Of its own, with a thread: the connection lives on while the source is read.
    runtime: Runtime,
    open: Option<(Connection, End)>,
}

/// Up to where it is read.
#[derive(Clone, Copy)]
enum End {
    /// So many messages.
    Count(u64),
    /// The last offset; `None` for an empty stream.
    Offset(Option<i64>),
}

impl Amqp {
    pub fn new(settings: Settings, source: String, queue: String) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        Ok(Self { settings, source, queue, runtime, open: None })
    }
}

fn fault(doing: &str, error: &lapin::Error) -> Fault {
    Fault::unavailable(format!("{doing}: {error}"))
}

/// Connects, and finds out what kind of queue it is and where it ends.
async fn look(settings: &Settings, queue: &str) -> Result<(Connection, End), Error> {
    let connection = connect(settings, "outboxd audit").await?;
    let name = ShortString::try_new(queue).map_err(|_| Fault::fatal("a queue's name has at most 255 bytes"))?;
    let channel = channel(&connection).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(name.clone(), passive, FieldTable::default()).await;
    let found = found.map_err(|error| fault(&format!("looking for queue {queue}"), &error))?;
    let end = match kind(&connection, name).await?.as_str() {
        "stream" => End::Offset(last_offset(&connection, queue).await?),
        "classic" if found.consumer_count() > 0 => {
            return Err(Error::Usage(
                format!("somebody consumes from queue {queue}: what they have in hand would seem to be missing"),
                "bind one that nobody consumes from".into(),
            ));
        }
        "classic" => End::Count(found.message_count().into()),
        other => {
            return Err(Error::Usage(
                format!(
                    "queue {queue} is of type {other}: it counts how often a message was handed out and, at its delivery limit, \
                     throws it away; nothing was fetched from it"
                ),
                "bind a stream (x-queue-type = stream) or a classic queue".into(),
            ));
        }
    };
    Ok((connection, end))
}

async fn channel(connection: &Connection) -> Result<Channel, Fault> {
    connection.create_channel().await.map_err(|error| fault("opening a channel", &error))
}

/// AMQP does not tell a queue's type; but it refuses a declaration of a queue that is there with another one, and says which it has.
async fn kind(connection: &Connection, name: ShortString) -> Result<String, Fault> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("stream")));
    let refusal = match channel(connection).await?.queue_declare(name, durable, stream).await {
        Ok(_) => return Ok("stream".into()),
        Err(error) => error.to_string(),
    };
    // A stream or quorum queue is always durable; a classic one may have been declared without a type.
    let current = refusal.split("current is").nth(1).unwrap_or_default();
    let known = ["stream", "quorum", "classic"].into_iter().find(|kind| current.contains(kind));
    match known {
        Some("stream") => Ok("stream".into()),
        Some(kind) => Ok(kind.into()),
        None if refusal.contains("inequivalent arg 'durable'") || current.contains("none") => Ok("classic".into()),
        None => Err(Fault::fatal(format!("the queue's type cannot be found out: {refusal}"))),
    }
}

async fn consume(channel: &Channel, queue: &str, offset: Option<&str>) -> Result<Consumer, Fault> {
    let cannot = |error: lapin::Error| fault(&format!("reading queue {queue}"), &error);
    let mut arguments = FieldTable::default();
    if let Some(offset) = offset {
        channel.basic_qos(STREAM_PREFETCH, BasicQosOptions::default()).await.map_err(cannot)?;
        arguments.insert(STREAM_OFFSET.into(), AMQPValue::LongString(LongString::from(offset)));
    }
    let name = ShortString::try_new(queue).map_err(|_| Fault::fatal("a queue's name has at most 255 bytes"))?;
    channel.basic_consume(name, "outboxd-audit".into(), BasicConsumeOptions::default(), arguments).await.map_err(cannot)
}

fn offset_of(delivery: &Delivery) -> Option<i64> {
    match delivery.properties.headers().as_ref()?.inner().get(STREAM_OFFSET)? {
        AMQPValue::LongLongInt(offset) => Some(*offset),
        AMQPValue::LongInt(offset) => Some((*offset).into()),
        _ => None,
    }
}

/// Of the newest message that a stream holds: it hands out the last chunk, and then what comes.
async fn last_offset(connection: &Connection, queue: &str) -> Result<Option<i64>, Fault> {
    let channel = channel(connection).await?;
    let mut consumer = consume(&channel, queue, Some("last")).await?;
    let mut last = None;
    let deadline = tokio::time::Instant::now() + END_WAIT;
    while let Ok(Some(delivery)) = tokio::time::timeout_at(deadline, consumer.next()).await {
        let delivery = delivery.map_err(|error| fault("looking for the stream's end", &error))?;
        last = last.max(offset_of(&delivery));
        let _ = delivery.ack(BasicAckOptions::default()).await;
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(last)
}

async fn read(connection: &Connection, queue: &str, end: End, each: &mut dyn FnMut(Message<'_>)) -> Result<(), Fault> {
    let (offset, mut left) = match end {
        End::Count(0) | End::Offset(None) => return Ok(()),
        End::Count(count) => (None, count),
        End::Offset(Some(_)) => (Some("first"), u64::MAX),
    };
    let channel = channel(connection).await?;
    let mut consumer = consume(&channel, queue, offset).await?;
    while left > 0 {
        let delivery = match tokio::time::timeout(SILENCE_MAX, consumer.next()).await {
            Ok(Some(delivery)) => delivery.map_err(|error| fault("reading the queue", &error))?,
            Ok(None) => return Err(Fault::unavailable(format!("queue {queue} was closed while it was read"))),
            Err(_) => return Err(Fault::unavailable(format!("queue {queue}: nothing came for {SILENCE_MAX:?}"))),
        };
        let id = delivery.properties.message_id().as_ref().map(ShortString::as_str);
        match (end, offset_of(&delivery)) {
            (End::Offset(Some(last)), Some(offset)) if offset > last => break,
            (End::Offset(Some(last)), Some(offset)) if offset == last => left = 1,
            _ => {}
        }
        each(Message { id, lane: 0, body: Print::of(&delivery.data) });
        left -= 1;
        if matches!(end, End::Offset(_)) {
            // Takes nothing from a stream: it says that more may come.
            delivery.ack(BasicAckOptions::default()).await.map_err(|error| fault("reading the stream", &error))?;
        }
    }
    // Everything that was not acknowledged goes back to its place.
    channel.close(200, "done".into()).await.map_err(|error| fault("giving the messages back", &error))
}

impl FarSide for Amqp {
    fn name(&self) -> String {
        format!("RabbitMQ queue {}", self.queue)
    }

    fn body(&mut self, event: &Event<'_>) -> Print {
        Print::of(&self.settings.format.body_owned(event, &self.source).unwrap_or_default())
    }

    /// One queue has one order, wherever its messages came from.
    fn place(&mut self, _event: &Event<'_>) -> String {
        String::new()
    }

    fn mark_end(&mut self) -> Result<(), Error> {
        let (settings, queue) = (&self.settings, &self.queue);
        let look = async { tokio::time::timeout(ANSWER_WAIT, look(settings, queue)).await };
        let looked = self.runtime.block_on(look);
        self.open = Some(looked.map_err(|_| Fault::unavailable("RabbitMQ did not answer"))??);
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> Result<Extent, Fault> {
        let (connection, end) = self.open.take().expect("the end is marked first");
        let queue = &self.queue;
        self.runtime.block_on(async {
            let read = read(&connection, queue, end, each).await;
            let _ = tokio::time::timeout(ANSWER_WAIT, connection.close(200, "done".into())).await;
            read.map(|()| Extent::default())
        })
    }
}
