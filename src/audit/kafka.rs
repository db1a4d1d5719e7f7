//! Topics, read back by a consumer that joins no group and commits nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::judge::Print;
use super::{Error, Extent, FarSide, Message};
use crate::event::Event;
use crate::sink::Fault;
use crate::sink::format::Format;
use crate::sink::kafka::Settings;

const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Nothing came for so long although there is more: the audit is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);

pub(super) struct Kafka {
    settings: Settings,
    source: String,
    topics: BTreeSet<String>,
    parts: Vec<Part>,
    body: Vec<u8>,
}

/// A partition, and its first and its next offset when it was looked at.
struct Part {
    topic: String,
    number: i32,
    low: i64,
    high: i64,
}

impl Kafka {
    pub fn new(settings: Settings, source: String) -> Self {
        let topics = settings.topic.constant().map(str::to_owned).into_iter().collect();
        Self { settings, source, topics, parts: Vec::new(), body: Vec::new() }
    }

    fn consumer(&self) -> Result<BaseConsumer, Fault> {
        let consumer = self.settings.consumer("outboxd-audit").create();
        consumer.map_err(|error| Fault::fatal(format!("the Kafka client cannot be made: {error}")))
    }

    /// One topic from first to last.
    fn read_topic(&self, topic: &str, each: &mut dyn FnMut(Message<'_>), extent: &mut Extent) -> Result<(), Fault> {
        let unread = |error: KafkaError| Fault::unavailable(format!("topic {topic} cannot be read: {error}"));
        let mut left = BTreeSet::new();
        let mut wanted = TopicPartitionList::new();
        for part in self.parts.iter().filter(|part| part.topic == topic && part.low < part.high) {
            wanted.add_partition_offset(topic, part.number, Offset::Offset(part.low)).map_err(unread)?;
            left.insert(part.number);
        }
        let consumer = self.consumer()?;
        consumer.assign(&wanted).map_err(unread)?;
        let mut counts = vec![0; self.parts.len()];
        let mut heard = Instant::now();
        let is_of = |part: &Part, number: i32| part.topic == topic && part.number == number;
        let id_name = if self.settings.format == Format::EventsourcePy { "event_id" } else { "id" };
        while !left.is_empty() {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let Some(at) = self.parts.iter().position(|part| is_of(part, message.partition())) else {
                        continue;
                    };
                    if message.offset() < self.parts[at].high {
                        counts[at] += 1;
                        let header = message.headers().and_then(|all| all.iter().find(|one| one.key == id_name));
                        let id = header.and_then(|header| std::str::from_utf8(header.value?).ok());
                        let body = Print::of(message.payload().unwrap_or_default());
                        each(Message { id, lane: at as u16, body });
                    }
                    if message.offset() + 1 >= self.parts[at].high {
                        left.remove(&message.partition());
                    }
                }
                // What stood before the end was taken away.
                Some(Err(KafkaError::PartitionEOF(number))) => drop(left.remove(&number)),
                Some(Err(error)) if heard.elapsed() > SILENCE_MAX => return Err(unread(error)),
                None if heard.elapsed() > SILENCE_MAX => {
                    return Err(Fault::unavailable(format!("topic {topic}: nothing came for {SILENCE_MAX:?}")));
                }
                Some(Err(_)) | None => {}
            }
        }
        for (at, part) in self.parts.iter().enumerate().filter(|(_, part)| part.topic == topic) {
            extent.has_gaps |= counts[at] < part.high - part.low;
            if part.low > 0 {
                extent.cut.insert(at as u16);
            }
        }
        Ok(())
    }
}

impl FarSide for Kafka {
    fn name(&self) -> String {
        format!("Kafka topic {}", self.settings.topic)
    }

    fn body(&mut self, event: &Event<'_>) -> Print {
        Print::of(self.settings.format.body(event, &self.source, &mut self.body).unwrap_or_default())
    }

    fn place(&mut self, event: &Event<'_>) -> String {
        let mut topic = String::new();
        // What cannot be rendered became a dead letter.
        if self.settings.topic.render(event, &self.source, &mut topic).is_ok() && !self.topics.contains(&topic) {
            self.topics.insert(topic.clone());
        }
        if let Some(partition) = &self.settings.partition {
            topic.push('\0');
            let _ = partition.render(event, &self.source, &mut topic);
        }
        topic
    }

    fn mark_end(&mut self) -> Result<(), Error> {
        let consumer = self.consumer()?;
        for topic in &self.topics {
            let unread = |error: KafkaError| Fault::unavailable(format!("topic {topic}: {error}"));
            let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WAIT).map_err(unread)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let partitions = found.filter(|found| found.error().is_none()).map(|found| found.partitions());
            let Some(partitions) = partitions else {
                return Err(Fault::unavailable(format!("there is no topic {topic}, or it may not be read")).into());
            };
            for number in partitions.iter().map(|partition| partition.id()) {
                let (low, high) = consumer.fetch_watermarks(topic, number, ANSWER_WAIT).map_err(unread)?;
                self.parts.push(Part { topic: topic.clone(), number, low, high });
            }
        }
        Ok(())
    }

    fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> Result<Extent, Fault> {
        let topics: BTreeSet<String> = self.parts.iter().map(|part| part.topic.clone()).collect();
        let mut extent = Extent::default();
        for topic in topics {
            self.read_topic(&topic, each, &mut extent)?;
        }
        Ok(extent)
    }
}
