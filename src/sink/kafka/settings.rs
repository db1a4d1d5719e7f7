//! What a Kafka sink is told, and the client properties that follow from it.
//!
//! Two kinds of property: those that the guarantees hang on are owned ([`OWNED`], never the user's); all others can be set
//! by the user and win over our defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::ClientConfig;

use crate::event::{Event, Reason, Rejection};
use crate::secret::Secret;
use crate::sink::Fault;
use crate::sink::format::{Format, HeaderField};
use crate::sink::template::Template;
use crate::sink::tls::Tls;

/// A resolved `[sinks.X]` of type `kafka`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub bootstrap_servers: Vec<String>,
    pub topic: Template,
    pub format: Format,
    /// Headers beyond those that are always sent.
    pub headers: Vec<HeaderField>,
    /// The message key; `None` = the event's key.
    pub key: Option<Template>,
    /// The partition; `None` = by the message key.
    pub partition: Option<Template>,
    /// librdkafka properties that outboxd does not own.
    pub properties: BTreeMap<String, String>,
    pub security: Security,
    /// No report for so long is shown as unavailable; when the broker answers a probe all the same, the producer is rebuilt.
    pub ack_timeout: Duration,
}

/// How the connection is protected.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Security {
    /// `None` = no TLS.
    pub tls: Option<Tls>,
    /// `None` = no SASL.
    pub sasl: Option<Sasl>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    pub password: Secret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub const ALL: [(&'static str, Mechanism); 3] = [
        ("PLAIN", Mechanism::Plain),
        ("SCRAM-SHA-256", Mechanism::ScramSha256),
        ("SCRAM-SHA-512", Mechanism::ScramSha512),
    ];

    pub fn as_str(self) -> &'static str {
        Mechanism::ALL.into_iter().find(|known| known.1 == self).map_or("", |known| known.0)
    }
}

/// Properties (and prefixes, with a trailing dot) that users may not set, each with the reason or what to set instead.
pub const OWNED: [(&str, &str); 21] = [
    ("bootstrap.servers", "set `bootstrap_servers`"),
    ("metadata.broker.list", "set `bootstrap_servers`"),
    ("security.protocol", "set `tls` and `sasl`"),
    ("sasl.", "set `sasl`"),
    ("ssl.", "set `tls`"),
    ("enable.ssl.", "set `tls`"),
    ("enable.idempotence", "order and duplicates hang on it: always on"),
    ("enable.gapless.guarantee", "a batch is repeated by outboxd"),
    ("acks", "always \"all\": an event counts as delivered when every in-sync replica has it"),
    ("request.required.acks", "always \"all\""),
    ("max.in.flight", "idempotence sets it"),
    ("max.in.flight.requests.per.connection", "idempotence sets it"),
    ("message.timeout.ms", "an event is tried for ever; set the relay's `ack_timeout`"),
    ("delivery.timeout.ms", "an event is tried for ever; set the relay's `ack_timeout`"),
    ("retries", "an event is tried for ever"),
    ("message.send.max.retries", "an event is tried for ever"),
    ("topic.metadata.propagation.max.ms", "how fast a missing topic is seen"),
    ("statistics.interval.ms", "how fast a client that looks for no broker is seen"),
    ("transactional.id", "transactions are not used"),
    ("delivery.report.only.error", "every report is needed"),
    ("dr_", "every report is needed"),
];

/// Partitioners that keep a key on one partition.
const PARTITIONERS: [&str; 6] =
    ["consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"];

/// What outboxd sets where the user says nothing.
const DEFAULTS: [(&str, &str); 6] = [
    // As the Java client: the same key stands on the same partition, whoever produces it.
    ("partitioner", "murmur2_random"),
    // The window makes batches by itself, because a flight of many events is handed over at once; a longer wait only adds to
    // the time to the acknowledgement.
    ("linger.ms", "1"),
    // The client keeps two ends for a broker, the address it was given and the one it was told: together they knock less than
    // once a second while it is away, and find it at most 4 s (with jitter) after it is back.
    ("reconnect.backoff.ms", "1000"),
    ("reconnect.backoff.max.ms", "2500"),
    // Above the window's 32 MiB, far below librdkafka's own 1 GiB.
    ("queue.buffering.max.kbytes", "131072"),
    ("socket.keepalive.enable", "true"),
];

/// Whether the user may set this property to this value; the error says why not. Unknown names are found by
/// [`Settings::verify`].
pub fn check_property(name: &str, value: &str) -> Result<(), String> {
    let owns = |owned: &str| if owned.ends_with(['.', '_']) { name.starts_with(owned) } else { name == owned };
    if let Some((_, why)) = OWNED.into_iter().find(|(owned, _)| owns(owned)) {
        return Err(format!("`{name}` is outboxd's own: {why}"));
    }
    if name == "partitioner" && !PARTITIONERS.contains(&value) {
        return Err(format!("partitioner `{value}` does not keep a key on one partition; use one of {PARTITIONERS:?}"));
    }
    Ok(())
}

/// Why a text cannot be a topic's name.
pub fn check_topic(topic: &str) -> Result<(), String> {
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match topic {
        "" | "." | ".." => Err(format!("`{topic}` cannot be a topic's name")),
        topic if topic.len() > 249 => {
            Err(format!("a topic's name of {} bytes is too long: 249 is the most", topic.len()))
        }
        topic if !topic.as_bytes().iter().all(is_legal) => {
            Err(format!("the topic's name {topic:?} has characters other than a-z A-Z 0-9 . _ -"))
        }
        _ => Ok(()),
    }
}

/// A partition's number.
pub fn partition_of(text: &str) -> Option<i32> {
    text.parse().ok().filter(|number| *number >= 0)
}

impl Settings {
    /// Where an event goes; the buffer holds the name, where it is made.
    pub fn topic_of<'t>(
        &'t self,
        event: &Event<'_>,
        source: &str,
        buffer: &'t mut String,
    ) -> Result<&'t str, Rejection> {
        if let Some(topic) = self.topic.constant() {
            return Ok(topic);
        }
        buffer.clear();
        self.topic.render(event, source, buffer)?;
        check_topic(buffer).map_err(|why| Rejection::new(Reason::Unroutable, why))?;
        Ok(buffer)
    }

    pub fn key_of<'t>(
        &self,
        event: &Event<'t>,
        source: &str,
        buffer: &'t mut String,
    ) -> Result<Option<&'t [u8]>, Rejection> {
        let Some(template) = &self.key else { return Ok(event.key) };
        buffer.clear();
        template.render(event, source, buffer)?;
        Ok(Some(buffer.as_bytes()))
    }

    /// `None`: the client chooses, by the key.
    pub fn partition_for(
        &self,
        event: &Event<'_>,
        source: &str,
        buffer: &mut String,
    ) -> Result<Option<i32>, Rejection> {
        let Some(template) = &self.partition else { return Ok(None) };
        buffer.clear();
        template.render(event, source, buffer)?;
        let no_partition = || {
            let detail = format!(
                "{buffer:?}, which `{template}` gives, is no partition: a whole number is wanted, not negative"
            );
            Rejection::new(Reason::Unroutable, detail)
        };
        partition_of(buffer).map(Some).ok_or_else(no_partition)
    }

    /// Whether the client library takes all properties; connects nothing.
    pub fn verify(&self) -> Result<(), String> {
        for (name, value) in &self.properties {
            check_property(name, value)?;
        }
        if let Some(topic) = self.topic.constant() {
            check_topic(topic)?;
        }
        self.client("check").create_native_config().map(drop).map_err(|error| error.to_string())
    }

    pub(super) fn client(&self, consumer: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", format!("outboxd-{consumer}"));
        for (name, value) in DEFAULTS {
            config.set(name, value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", self.bootstrap_servers.join(","))
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            .set("topic.metadata.propagation.max.ms", "1000")
            .set("statistics.interval.ms", super::reports::STATISTICS_MILLIS);
        self.security.apply(&mut config);
        config
    }

    /// For reading back what was sent: as a member of no group, and without committing anything.
    pub fn consumer(&self, name: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", name)
            // The client library wants a name for a group that it will not join.
            .set("group.id", name)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_uncommitted")
            .set("allow.auto.create.topics", "false")
            .set("queued.max.messages.kbytes", "32768")
            .set("bootstrap.servers", self.bootstrap_servers.join(","));
        self.security.apply(&mut config);
        config
    }

    /// The fault of a client that could not even be made.
    pub(super) fn cannot_build(error: &rdkafka::error::KafkaError) -> Fault {
        Fault::fatal(format!("the Kafka client cannot be made: {error}"))
    }
}

impl Security {
    fn apply(&self, config: &mut ClientConfig) {
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            if let Some(ca_file) = &tls.ca_file {
                config.set("ssl.ca.location", ca_file.to_string_lossy());
            }
            if let Some(identity) = &tls.identity {
                config.set("ssl.certificate.location", identity.cert_file.to_string_lossy());
                config.set("ssl.key.location", identity.key_file.to_string_lossy());
            }
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", sasl.mechanism.as_str())
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.password.reveal());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(properties: &[(&str, &str)]) -> Settings {
        Settings {
            bootstrap_servers: vec!["127.0.0.1:1".into()],
            topic: Template::parse("shop").unwrap(),
            format: Format::Plain,
            headers: vec![],
            key: None,
            partition: None,
            properties: properties.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            security: Security::default(),
            ack_timeout: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_client_takes_what_we_set_and_users_win_over_defaults() {
        let settings = settings(&[("linger.ms", "7"), ("compression.type", "zstd")]);
        settings.verify().unwrap();
        assert_eq!(settings.client("x").get("linger.ms"), Some("7"));
        assert_eq!(settings.client("x").get("client.id"), Some("outboxd-x"));
    }

    #[test]
    fn owned_unknown_and_dangerous_properties_are_refused() {
        for (name, value, word) in [
            ("acks", "1", "in-sync"),
            ("sasl.password", "x", "set `sasl`"),
            ("ssl.ca.pem", "x", "set `tls`"),
            ("partitioner", "random", "murmur2_random"),
            ("linger", "1", "linger"),
            ("linger.ms", "soon", "soon"),
        ] {
            let error = settings(&[(name, value)]).verify().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn topics_are_checked() {
        assert_eq!(check_topic("shop.Order-1_a"), Ok(()));
        for topic in ["", "..", "a b", "ä", &"a".repeat(250)] {
            assert!(check_topic(topic).is_err(), "{topic}");
        }
    }
}
