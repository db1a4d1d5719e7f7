//! What follows from how a topic is set. Pure.

use super::Settings;
use crate::remark::{Remark, word};

/// Kafka's own default for `max.message.bytes`.
const MESSAGE_BYTES: usize = 1_048_588;
/// librdkafka's defaults for `message.max.bytes` and `batch.size`.
const CLIENT_BYTES: usize = 1_000_000;
/// A batch of records, before the first one.
const BATCH_HEAD: usize = 61;

/// What the sample wants of a topic.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The largest message, and the id of its event.
    pub largest: Option<(usize, String)>,
    pub keyless: Option<String>,
    pub keyed: bool,
    /// The highest that an event says.
    pub partition: Option<i32>,
}

impl Wanted {
    pub fn note(&mut self, id: &str, weight: usize, has_key: bool) {
        if self.largest.as_ref().is_none_or(|largest| largest.0 < weight) {
            self.largest = Some((weight, id.to_owned()));
        }
        self.keyed |= has_key;
        if !has_key && self.keyless.is_none() {
            self.keyless = Some(id.to_owned());
        }
    }
}

/// What our own client is set to.
#[derive(Debug)]
pub(super) struct Client {
    pub message_bytes_max: usize,
    pub batch_bytes: usize,
    pub compresses: bool,
}

impl Client {
    pub fn of(settings: &Settings) -> Self {
        let number = |name: &str| settings.properties.get(name).and_then(|value| value.parse().ok());
        let message_bytes_max = number("message.max.bytes").unwrap_or(CLIENT_BYTES);
        let codec = ["compression.type", "compression.codec"].iter().find_map(|name| settings.properties.get(*name));
        Self {
            message_bytes_max,
            batch_bytes: number("batch.size").unwrap_or(CLIENT_BYTES).min(message_bytes_max),
            compresses: codec.is_some_and(|codec| codec != "none"),
        }
    }
}

/// A partition as the cluster tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub id: i32,
    pub has_leader: bool,
    pub replicas: usize,
    pub in_sync: usize,
}

/// Those settings of a topic that are looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Configs {
    /// `None`: it is not told.
    pub min_in_sync: Option<usize>,
    pub message_bytes_max: Option<usize>,
    pub is_compacted: bool,
    pub elects_unclean: bool,
}

impl Configs {
    pub fn of(value: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| value(name).and_then(|text| text.parse().ok());
        Self {
            min_in_sync: number("min.insync.replicas"),
            message_bytes_max: number("max.message.bytes"),
            is_compacted: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
            elects_unclean: value("unclean.leader.election.enable").is_some_and(|text| text == "true"),
        }
    }
}

pub(super) struct Topic<'a> {
    pub name: &'a str,
    pub parts: &'a [Part],
    /// How many the cluster has.
    pub brokers: usize,
    /// `None`: they may not be seen.
    pub configs: Option<Configs>,
    pub wanted: &'a Wanted,
    pub client: &'a Client,
    /// What a tool is told to find the cluster.
    pub tools: &'a str,
}

/// How many bytes a record has in a batch of its own, not compressed (Kafka's record batch, version 2).
pub(super) fn weight(key: Option<usize>, value: Option<usize>, headers: &[(usize, usize)]) -> usize {
    let sized = |bytes: Option<usize>| bytes.map_or(1, |bytes| varint(bytes) + bytes);
    let headers_bytes: usize = headers.iter().map(|(name, value)| sized(Some(*name)) + sized(Some(*value))).sum();
    // Attributes and two deltas of a byte each.
    let record = 3 + sized(key) + sized(value) + varint(headers.len()) + headers_bytes;
    BATCH_HEAD + varint(record) + record
}

/// Signed numbers in sevens of bits: the sign takes one.
fn varint(number: usize) -> usize {
    let bits = usize::BITS - (number << 1).leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

pub(super) fn denied(name: &str) -> Remark {
    let remedy = "let this user write to the topic, if it is there: Kafka does not tell of topics that one may not see";
    Remark::danger(format!("topic {name} may not be written to, nor seen"), remedy)
}

pub(super) fn missing(
    name: &str,
    wanted: &Wanted,
    brokers: usize,
    default: impl Fn(&str) -> Option<String>,
    tools: &str,
) -> Remark {
    let replicas = brokers.clamp(1, 3);
    let parts = wanted.partition.map_or(3, |partition| (partition + 1).max(3));
    let create = format!(
        "kafka-topics.sh {tools} --create --topic {} --partitions {parts} --replication-factor {replicas}",
        word(name)
    );
    let is_made = default("auto.create.topics.enable");
    let evidence = format!("topic {name} is not there");
    let remedy = "make it, with as many partitions as it is to have: a key's order holds only while that number stays";
    match is_made.as_deref() {
        Some("true") => {
            let of = |key: &str| default(key).unwrap_or_else(|| "?".to_owned());
            let evidence = format!(
                "{evidence}; the cluster makes topics by itself (auto.create.topics.enable), this one with {} partitions, {} replicas and \
                 min.insync.replicas {}",
                of("num.partitions"),
                of("default.replication.factor"),
                of("min.insync.replicas")
            );
            Remark::advice(evidence, remedy)
        }
        Some(_) => Remark::danger(format!("{evidence}, and the cluster makes none by itself: events to it are refused"), remedy),
        None => {
            let evidence = format!("{evidence}; whether the cluster makes topics by itself may not be seen by this user");
            Remark::danger(evidence, remedy)
        }
    }
    .with([create])
}

/// What is wrong with it, or that nothing is.
pub(super) fn judge(topic: &Topic<'_>) -> Vec<Remark> {
    let mut remarks: Vec<Remark> =
        [partitions(topic), leaderless(topic), copies(topic)].into_iter().flatten().collect();
    match &topic.configs {
        None => remarks.push(unseen(topic)),
        Some(configs) => {
            let asked =
                [in_sync(topic, configs), unclean(topic, configs), compaction(topic, configs), size(topic, configs)];
            remarks.extend(asked.into_iter().flatten());
            if remarks.is_empty() {
                remarks.push(fine(topic, configs));
            }
        }
    }
    remarks
}

impl Topic<'_> {
    fn replicas(&self) -> usize {
        self.parts.iter().map(|part| part.replicas).min().unwrap_or(0)
    }

    fn alter(&self, config: &str) -> [String; 1] {
        let name = word(self.name);
        [format!(
            "kafka-configs.sh {} --entity-type topics --entity-name {name} --alter --add-config {config}",
            self.tools
        )]
    }

    fn numbers(&self, is_it: impl Fn(&Part) -> bool) -> String {
        let numbers: Vec<String> =
            self.parts.iter().filter(|part| is_it(part)).map(|part| part.id.to_string()).collect();
        numbers.join(", ")
    }
}

fn fine(topic: &Topic<'_>, configs: &Configs) -> Remark {
    let Topic { name, brokers, wanted, .. } = topic;
    let told = |number: Option<usize>| number.map_or_else(|| "(not told)".to_owned(), |number| number.to_string());
    let largest = match &wanted.largest {
        Some((bytes, _)) => format!(", the largest of these events would have {bytes}"),
        None => String::new(),
    };
    let copies = match (brokers, topic.replicas()) {
        (1, _) => "on the only broker, so that what it loses is lost".to_owned(),
        (_, replicas) => {
            let least = told(configs.min_in_sync);
            format!("{replicas} replicas on {brokers} brokers, min.insync.replicas {least}")
        }
    };
    Remark::ok(format!(
        "topic {name}: {} partitions, {copies}; max.message.bytes {}{largest}",
        topic.parts.len(),
        told(configs.message_bytes_max)
    ))
}

fn unseen(topic: &Topic<'_>) -> Remark {
    let name = topic.name;
    let remedy = "let its user describe the settings of the topic (USER stands for its name); the relay itself does not need that";
    let command = format!(
        "kafka-acls.sh {} --add --allow-principal User:USER --operation DescribeConfigs --topic {}",
        topic.tools,
        word(name)
    );
    let evidence =
        format!("how topic {name} is set may not be seen: min.insync.replicas, max.message.bytes, cleanup.policy");
    Remark::advice(evidence, remedy).with([command])
}

fn partitions(topic: &Topic<'_>) -> Option<Remark> {
    let (wanted, count) = (topic.wanted.partition?, topic.parts.len());
    (wanted as usize >= count).then(|| {
        let evidence =
            format!("an event says partition {wanted}, and topic {} has {count} (the first is 0)", topic.name);
        let remedy =
            "add partitions, or mend what `partition` is made of; events that say one that is not there are refused";
        let command =
            format!("kafka-topics.sh {} --alter --topic {} --partitions {}", topic.tools, word(topic.name), wanted + 1);
        Remark::danger(evidence, remedy).with([command])
    })
}

fn leaderless(topic: &Topic<'_>) -> Option<Remark> {
    let numbers = topic.numbers(|part| !part.has_leader);
    (!numbers.is_empty()).then(|| {
        let evidence = format!("topic {}: partitions {numbers} have no leader, and take nothing", topic.name);
        Remark::danger(evidence, "bring the brokers back that hold them; relays wait for that")
    })
}

fn copies(topic: &Topic<'_>) -> Option<Remark> {
    let Topic { name, brokers, tools, .. } = topic;
    (topic.replicas() == 1 && *brokers > 1).then(|| {
        let evidence = format!("topic {name} has one replica, on a cluster of {brokers} brokers: its events are lost with one broker");
        let remedy = format!(
            "give it {} replicas: `kafka-reassign-partitions.sh {tools} --generate` plans that, `--execute` carries it out; then \
             min.insync.replicas = 2 where there are three",
            brokers.min(&3)
        );
        Remark::advice(evidence, remedy)
    })
}

fn in_sync(topic: &Topic<'_>, configs: &Configs) -> Option<Remark> {
    let (name, replicas, least) = (topic.name, topic.replicas(), configs.min_in_sync?);
    if least > replicas {
        let evidence = format!(
            "topic {name} has {replicas} replicas and min.insync.replicas {least}: nothing is ever acknowledged"
        );
        let right = if replicas > 2 { 2 } else { 1 };
        return Some(
            Remark::danger(evidence, "ask for fewer than there are, or add replicas")
                .with(topic.alter(&format!("min.insync.replicas={right}"))),
        );
    }
    let short = topic.numbers(|part| part.has_leader && part.in_sync < least);
    if !short.is_empty() {
        let evidence = format!(
            "topic {name}: partitions {short} have fewer replicas in sync than min.insync.replicas {least}, and take nothing"
        );
        return Some(Remark::danger(
            evidence,
            "bring the missing brokers back; relays wait for that, and lose nothing",
        ));
    }
    if replicas > 1 && least == replicas {
        let evidence = format!(
            "topic {name} has {replicas} replicas and min.insync.replicas {least}: with one broker away nothing is acknowledged"
        );
        return Some(match replicas {
            2 => Remark::advice(
                evidence,
                "give it a third replica (`kafka-reassign-partitions.sh`): with two, either one broker halts it, or one can lose events",
            ),
            _ => Remark::advice(evidence, "ask for one fewer than there are")
                .with(topic.alter(&format!("min.insync.replicas={}", replicas - 1))),
        });
    }
    if replicas > 1 && least == 1 {
        let evidence = format!(
            "topic {name} has {replicas} replicas and min.insync.replicas 1: while the others are behind, an event is acknowledged that is lost with one broker"
        );
        return Some(match replicas {
            2 => Remark::advice(
                evidence,
                "give it a third replica (`kafka-reassign-partitions.sh`), and then min.insync.replicas = 2",
            ),
            _ => Remark::advice(evidence, "ask for two").with(topic.alter("min.insync.replicas=2")),
        });
    }
    None
}

fn unclean(topic: &Topic<'_>, configs: &Configs) -> Option<Remark> {
    configs.elects_unclean.then(|| {
        let evidence = format!(
            "topic {}: unclean.leader.election.enable lets a replica lead that is behind, and what it has not is lost, although it was acknowledged",
            topic.name
        );
        Remark::advice(evidence, "turn it off: the partition then waits for a replica that has everything")
            .with(topic.alter("unclean.leader.election.enable=false"))
    })
}

fn compaction(topic: &Topic<'_>, configs: &Configs) -> Option<Remark> {
    if !configs.is_compacted {
        return None;
    }
    let name = topic.name;
    let delete = topic.alter("cleanup.policy=delete");
    if let Some(id) = &topic.wanted.keyless {
        let evidence =
            format!("topic {name} is compacted (cleanup.policy), and takes no event without a key; one is {id}");
        let remedy = "give events a key (`key`), or let the topic keep all of them, for as long as `retention.ms` says";
        return Some(Remark::danger(evidence, remedy).with(delete));
    }
    let evidence = format!("topic {name} is compacted (cleanup.policy): of the events of a key only the newest stays");
    let remedy = "right where each event holds the whole state of its key; otherwise let the topic keep all of them, for as long as `retention.ms` says";
    topic.wanted.keyed.then(|| Remark::advice(evidence, remedy).with(delete))
}

fn size(topic: &Topic<'_>, configs: &Configs) -> Option<Remark> {
    let (name, most) = (topic.name, configs.message_bytes_max?);
    let batch = topic.client.batch_bytes;
    let raise = |bytes: usize| topic.alter(&format!("max.message.bytes={}", bytes.max(MESSAGE_BYTES)));
    if let Some((bytes, id)) = topic.wanted.largest.as_ref().filter(|largest| largest.0 > most) {
        let evidence =
            format!("event {id} would have {bytes} bytes, and topic {name} takes {most} (max.message.bytes)");
        return Some(match topic.client.compresses {
            true => Remark::advice(format!("{evidence} after compression"), "let it take more").with(raise(*bytes)),
            false => Remark::danger(
                format!("{evidence}: it would be refused, and held or made a dead letter"),
                "let it take more",
            )
            .with(raise(*bytes)),
        });
    }
    (batch > most && !topic.client.compresses).then(|| {
        let evidence = format!(
            "topic {name} takes {most} bytes at once (max.message.bytes), and the client makes batches of up to {batch}: they are refused whole, and \
             each of their events is sent again by itself"
        );
        let remedy = format!("let it take more, or write properties = {{ \"batch.size\" = {most} }}");
        Remark::advice(evidence, remedy).with(raise(batch))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remark::Verdict::{self, Advice, Danger};

    const PART: Part = Part { id: 0, has_leader: true, replicas: 3, in_sync: 3 };

    fn configs() -> Configs {
        Configs { min_in_sync: Some(2), message_bytes_max: Some(MESSAGE_BYTES), ..Configs::default() }
    }

    fn told(part: Part, brokers: usize, configs: Configs, wanted: &Wanted) -> Vec<Remark> {
        let client = Client { message_bytes_max: CLIENT_BYTES, batch_bytes: CLIENT_BYTES, compresses: false };
        let parts = [part];
        let tools = "--bootstrap-server x:1";
        judge(&Topic { name: "t", parts: &parts, brokers, configs: Some(configs), wanted, client: &client, tools })
    }

    #[test]
    fn each_fault_is_one_remark() {
        let nothing = Wanted::default();
        let copies = |replicas, least| {
            let part = Part { replicas, in_sync: replicas, ..PART };
            told(part, 3, Configs { min_in_sync: Some(least), ..configs() }, &nothing)
        };
        for (replicas, least, verdict, words) in [
            (3, 2, Verdict::Ok, "3 replicas on 3 brokers"),
            (3, 1, Advice, "lost with one broker"),
            (3, 3, Advice, "with one broker away"),
            (3, 4, Danger, "nothing is ever acknowledged"),
            (2, 1, Advice, "lost with one broker"),
            (2, 2, Advice, "with one broker away"),
            (1, 1, Advice, "has one replica"),
        ] {
            let remarks = copies(replicas, least);
            assert!(remarks.len() == 1, "{replicas} {least}: {remarks:#?}");
            assert!(remarks[0].verdict == verdict && remarks[0].evidence.contains(words), "{remarks:#?}");
        }
        let alone = Part { replicas: 1, in_sync: 1, ..PART };
        assert_eq!(told(alone, 1, Configs { min_in_sync: Some(1), ..configs() }, &nothing)[0].verdict, Verdict::Ok);
        for (part, words) in [
            (Part { in_sync: 1, ..PART }, "fewer replicas in sync"),
            (Part { has_leader: false, in_sync: 0, ..PART }, "no leader"),
        ] {
            let remarks = told(part, 3, configs(), &nothing);
            assert!(remarks.len() == 1 && remarks[0].verdict == Danger, "{remarks:#?}");
            assert!(remarks[0].evidence.contains(words), "{remarks:#?}");
        }
    }

    #[test]
    fn what_compaction_and_size_mean_depends_on_the_events() {
        let mut wanted = Wanted::default();
        let compacted = Configs { is_compacted: true, ..configs() };
        assert_eq!(told(PART, 3, compacted.clone(), &wanted)[0].verdict, Verdict::Ok, "nothing is sent there");
        wanted.note("e1", 100, true);
        assert_eq!(told(PART, 3, compacted.clone(), &wanted)[0].verdict, Advice);
        wanted.note("e2", 300, false);
        assert!(told(PART, 3, compacted, &wanted)[0].evidence.ends_with("one is e2"));
        let small = |bytes| told(PART, 3, Configs { message_bytes_max: Some(bytes), ..configs() }, &wanted).remove(0);
        assert_eq!(
            (small(299).verdict, small(300).verdict, small(CLIENT_BYTES).verdict),
            (Danger, Advice, Verdict::Ok)
        );
        assert!(small(299).commands[0].ends_with("--add-config max.message.bytes=1048588"));
    }

    #[test]
    fn numbers_are_written_in_sevens_of_bits() {
        assert_eq!([0, 63, 64, 8_191, 8_192].map(varint), [1, 1, 2, 2, 3]);
    }
}
