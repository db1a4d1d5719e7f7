//! The doctor's questions to a Kafka cluster: each event of the sample is made a message that is not sent, and the topics that they name are looked at.
//!
//! It asks by the admin interface, and as a client that wants no topic to be made by its question. (A consumer would not do: where no group ever was, its
//! question for a coordinator makes the topic of the offsets.) What is found is judged in `topic`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataTopic;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::Settings;
use super::topic::{self, Client, Configs, Part, Topic, Wanted};
use crate::event::{Event, Reason, Rejection};
use crate::remark::{Remark, word};
use crate::sink::Pick;
use crate::sink::format::{Dress, Value};
use crate::sink::survey::{Refused, Sample};

/// Topics that are looked at.
const TOPICS_MAX: usize = 50;

/// An event as it would be sent.
struct Message {
    topic: String,
    /// Body and key, which the client compares with its own limit.
    content: usize,
    /// The record in a batch of its own, as the broker weighs it before compression.
    weight: usize,
    has_key: bool,
    partition: Option<i32>,
}

/// What may be told where the cluster does not answer: what the events themselves show.
pub(super) async fn survey(settings: &Settings, dress: &Dress, sample: &Sample<'_>, timeout: Duration) -> Vec<Remark> {
    let client = Client::of(settings);
    let mut refused = Refused::default();
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    if let Some(constant) = settings.topic.constant() {
        wanted.insert(constant.to_owned(), Wanted::default());
    }
    for event in &sample.events {
        match compose(settings, dress, event) {
            Err(rejection) => refused.note(event, rejection),
            Ok(message) if message.content > client.message_bytes_max => {
                let detail = format!(
                    "it has {} bytes, and message.max.bytes in `properties` is {}: write properties = {{ \"message.max.bytes\" = {} }}",
                    message.content, client.message_bytes_max, message.weight
                );
                wanted.entry(message.topic.clone()).or_default().note(event.id, message.weight, message.has_key);
                refused.note(event, Rejection::new(Reason::TooLarge, detail));
            }
            Ok(message) => {
                let topic = wanted.entry(message.topic.clone()).or_default();
                topic.note(event.id, message.weight, message.has_key);
                topic.partition = topic.partition.max(message.partition);
            }
        }
    }
    let mut remarks: Vec<Remark> = refused.remark(sample).into_iter().collect();
    let left = wanted.len().saturating_sub(TOPICS_MAX);
    wanted = wanted.into_iter().take(TOPICS_MAX).collect();
    let settings = settings.clone();
    let asking = tokio::task::spawn_blocking(move || ask(&settings, &client, wanted, timeout));
    remarks.extend(match asking.await {
        Ok(Ok(remarks)) => remarks,
        Ok(Err(what)) => vec![unseen(&what)],
        Err(error) => vec![unseen(&error.to_string())],
    });
    if left > 0 {
        remarks.push(Remark::ok(format!("{left} more topics, which these events name, were not looked at")));
    }
    remarks
}

fn unseen(what: &str) -> Remark {
    Remark::advice(format!("not everything was looked at: {what}"), "ask again when the cluster answers")
}

fn compose(settings: &Settings, dress: &Dress, event: &Event<'_>) -> Result<Message, Rejection> {
    let (mut topic, mut key, mut number, mut body) = (String::new(), String::new(), String::new(), Vec::new());
    let source = &dress.source;
    let topic = settings.topic_of(event, source, &mut topic)?.to_owned();
    let key_bytes = settings.key_of(event, source, &mut key)?.map(<[u8]>::len);
    let partition = settings.partition_for(event, source, &mut number)?;
    let mut headers = Vec::new();
    dress.each(event, Pick::first(0), |name, value: Value<'_>| headers.push((name.len(), value.to_string().len())))?;
    let body_bytes = settings.format.body(event, source, &mut body).map(<[u8]>::len);
    Ok(Message {
        topic,
        content: key_bytes.unwrap_or(0) + body_bytes.unwrap_or(0),
        weight: topic::weight(key_bytes, body_bytes, &headers),
        has_key: key_bytes.is_some(),
        partition,
    })
}

/// Blocks.
fn ask(
    settings: &Settings,
    client: &Client,
    wanted: BTreeMap<String, Wanted>,
    timeout: Duration,
) -> Result<Vec<Remark>, String> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let mut config = settings.client("doctor");
    config.set("statistics.interval.ms", "0").set("allow.auto.create.topics", "false");
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|error| told(&error))?;
    let (mut there, mut missing, mut remarks, mut brokers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, wanted) in wanted {
        let metadata = admin.inner().fetch_metadata(Some(&name), left()).map_err(|error| told(&error))?;
        brokers = metadata.brokers().iter().map(|broker| broker.id()).collect();
        let found = metadata.topics().iter().find(|found| found.name() == name);
        match found.map(|found| found.error().map(Code::from)) {
            Some(None) => there.extend(found.map(|found| (name, wanted, parts(found)))),
            Some(Some(Code::UnknownTopicOrPartition | Code::UnknownTopic)) | None => missing.push((name, wanted)),
            // Of the constant one `check` has told the same.
            Some(Some(_)) if settings.topic.constant().is_some() => {}
            Some(Some(Code::TopicAuthorizationFailed)) => remarks.push(topic::denied(&name)),
            Some(Some(code)) => remarks.push(unseen(&format!("topic {name}: {code}"))),
        }
    }
    let tools = tools(settings);
    let options = AdminOptions::new().request_timeout(Some(left()));
    let names: Vec<ResourceSpecifier<'_>> = there.iter().map(|(name, ..)| ResourceSpecifier::Topic(name)).collect();
    let described = if names.is_empty() { Vec::new() } else { describe(&admin, &names, &options)? };
    for (name, wanted, parts) in &there {
        let of =
            |found: &&ConfigResource| matches!(&found.specifier, OwnedResourceSpecifier::Topic(topic) if topic == name);
        let configs = described.iter().find(of).map(|found| Configs::of(|key| value(found, key)));
        let topic = Topic { name, parts, brokers: brokers.len(), configs, wanted, client, tools: &tools };
        remarks.extend(topic::judge(&topic));
    }
    if !missing.is_empty() {
        let defaults = match brokers.first() {
            Some(broker) => describe(&admin, &[ResourceSpecifier::Broker(*broker)], &options)?.pop(),
            None => None,
        };
        let default = |key: &str| value(defaults.as_ref()?, key);
        remarks
            .extend(missing.iter().map(|(name, wanted)| topic::missing(name, wanted, brokers.len(), default, &tools)));
    }
    Ok(remarks)
}

fn value(found: &ConfigResource, key: &str) -> Option<String> {
    found.get(key).and_then(|entry| entry.value.clone())
}

/// Of those that may be seen: the client library tells no error of a single one, but a resource without any settings.
fn describe(
    admin: &AdminClient<DefaultClientContext>,
    what: &[ResourceSpecifier<'_>],
    options: &AdminOptions,
) -> Result<Vec<ConfigResource>, String> {
    // Its own thread polls the client, so that whoever waits need only wait.
    let asked = tokio::runtime::Handle::current().block_on(admin.describe_configs(what, options));
    let told = asked.map_err(|error| error.to_string())?;
    Ok(told.into_iter().flatten().filter(|found| !found.entries.is_empty()).collect())
}

fn parts(topic: &MetadataTopic) -> Vec<Part> {
    let part = |part: &rdkafka::metadata::MetadataPartition| Part {
        id: part.id(),
        has_leader: part.leader() >= 0,
        replicas: part.replicas().len(),
        in_sync: part.isr().len(),
    };
    topic.partitions().iter().map(part).collect()
}

/// What a tool of Kafka's is told to find the cluster.
fn tools(settings: &Settings) -> String {
    let servers = word(&settings.bootstrap_servers.join(","));
    let is_bare = settings.security.tls.is_none() && settings.security.sasl.is_none();
    let security = if is_bare { "" } else { " --command-config admin.properties" };
    format!("--bootstrap-server {servers}{security}")
}
