//! `[sinks.X]` with `type = "kafka"`: its keys, and what follows from them.

use std::collections::BTreeMap;

use super::Settings;
use crate::event::{Destination, Event};
use crate::secret::Secret;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{Flat, List, Word};
use crate::setting::{Checker, is_loopback};
use crate::sink;
use crate::sink::keys::{self, Tls};

section! {
    /// Events go to an Apache Kafka topic.
    Kafka, "[sinks.<name>] with type = \"kafka\"" {
        /// `"kafka"`.
        r#type: String, Required, r#""kafka""#;
        /// Where to find the brokers, as `host:port`.
        bootstrap_servers: List, Required, r#"["127.0.0.1:9092"]"#;
        /// The topic; a template over the event's fields.
        topic: String, Required, r#""shop.{stream_type}""#;
        /// The message key; a template over the event's fields.
        key: String, Absent("the event's key"), r#""{stream_id}""#;
        /// The partition: a number, or a template over the event's fields that gives one, such as a column among `headers`. One that the topic
        /// does not have makes the event a dead letter; where a number is said here, it halts the relay. Order is kept within a partition.
        partition: Word, Absent("chosen by the message key, as Kafka's own clients do"), r#""{header.shard}""#;
        /// What the message holds: `"plain"` (the payload's bytes as they are), `"envelope"` or `"eventsource-py"`.
        format: String, Value(r#""plain""#), r#""plain""#;
        /// Headers beyond those that every message carries.
        headers: List, Value("[]"), r#"["stream_id", "time"]"#;
        /// Any librdkafka property that outboxd does not own.
        properties: Flat, Value("{}"), r#"{ "linger.ms" = 5 }"#;
        /// Encryption. `tls = {}` uses the system's certificates.
        tls: Tls, Absent("no encryption"), r#"{ ca_file = "ca.pem" }"#;
        /// Who we are to the brokers.
        sasl: Sasl, Absent("no authentication"), r#"{ mechanism = "SCRAM-SHA-512", username = "shop", password_file = "kafka-password" }"#;
        /// Lets a password travel unencrypted to a host that is not loopback.
        allow_plaintext: bool, Value("false"), "true";
    }
}

section! {
    /// Authentication, inside a Kafka sink.
    Sasl, "sasl" {
        /// `"PLAIN"`, `"SCRAM-SHA-256"` or `"SCRAM-SHA-512"`.
        mechanism: String, Required, r#""SCRAM-SHA-512""#;
        /// The user's name.
        username: String, Required, r#""shop""#;
        /// The password; better given as `password_file`.
        password: Secret, Required, r#""secret""#;
    }
}

keys::told! { Kafka, security.tls;
    fn destination(&self, event: &Event<'_>, source: &str) -> Destination {
        let mut topic = String::new();
        self.topic.render(event, source, &mut topic).map_or(Destination::Unknown, |()| Destination::Topic(topic))
    }
}

impl sink::Keys for Kafka {
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<sink::Settings> {
        let raw = self;
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let servers = checker.require(&key("bootstrap_servers"), raw.bootstrap_servers.as_ref());
        if let Some(servers) = &servers {
            check_servers(&key("bootstrap_servers"), &servers.0, checker);
        }
        let topic = checker.require(&key("topic"), raw.topic.as_ref());
        let topic = topic.and_then(|text| keys::template(&key("topic"), &text, checker));
        if let Some(Err(reason)) = topic.as_ref().and_then(|topic| topic.constant()).map(super::check_topic) {
            checker.refuse(key("topic"), reason, "write 1 to 249 letters, digits, dots, _ and -");
        }
        let message_key = raw.key.as_ref().and_then(|text| keys::template(&key("key"), text, checker));
        let partition = raw.partition.as_ref().and_then(|word| keys::template(&key("partition"), &word.0, checker));
        if let Some(constant) = partition.as_ref().and_then(|template| template.constant())
            && super::partition_of(constant).is_none()
        {
            let reason = format!("{constant:?} is no partition");
            checker.refuse(key("partition"), reason, "write a whole number from 0 on, or a template that gives one");
        }
        let format = keys::format(&key("format"), raw.format.as_ref(), checker);
        let headers = keys::headers(&key("headers"), raw.headers.as_ref(), checker);
        let properties = properties(&key("properties"), raw, checker);
        let tls = raw.tls.as_ref().map(|raw| keys::tls(name, raw, checker));
        let sasl = raw.sasl.as_ref().and_then(|raw| sasl(name, raw, checker));
        let servers = servers?.0;
        let is_bare = raw.sasl.is_some() && tls.is_none() && raw.allow_plaintext != Some(true);
        let is_remote = |server: &&String| !server.contains('@') && !is_loopback(host(server));
        if let Some(server) = servers.iter().find(is_remote).filter(|_| is_bare) {
            keys::refuse_plaintext_password(key("sasl"), server, "write tls = {}", checker);
        }
        Some(sink::Settings::Kafka(Settings {
            bootstrap_servers: servers,
            topic: topic?,
            key: message_key,
            partition,
            format,
            headers,
            properties,
            security: super::Security { tls, sasl },
            // The relay's, when it is known which one it is.
            ack_timeout: keys::ACK_TIMEOUT,
        }))
    }
}

/// `host` of `host:port`, `[::1]:port` or `PROTOCOL://host:port`.
fn host(server: &str) -> &str {
    let server = server.split_once("://").map_or(server, |(_, rest)| rest);
    server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map_or(server, |(host, _)| host)
}

fn check_servers(key: &KeyPath, servers: &[String], checker: &mut Checker<'_>) {
    let example = "write [\"host:9092\"]";
    if servers.is_empty() {
        checker.refuse(key.clone(), "this list is empty", example);
    }
    for server in servers {
        let port = server.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if host(server).is_empty() || port.is_none() || server.contains([' ', ',', '/', '@']) {
            // What looks like it held a password is not repeated.
            let shown = if server.contains('@') { "an entry".to_owned() } else { format!("{server:?}") };
            checker.refuse(key.clone(), format!("{shown} is not a host and a port"), example);
        }
    }
}

fn properties(key: &KeyPath, raw: &Kafka, checker: &mut Checker<'_>) -> BTreeMap<String, String> {
    let properties = raw.properties.clone().unwrap_or_default().0;
    let mut checked = rdkafka::ClientConfig::new();
    for (name, value) in &properties {
        let at = key.join(name);
        if let Err(reason) = super::check_property(name, value) {
            checker.refuse(at, reason, "leave it out");
            continue;
        }
        checked.set(name, value);
        if let Err(error) = checked.create_native_config() {
            checked.remove(name);
            let (reason, remedy) = refused_property(name, &error);
            checker.refuse(at, reason, remedy);
        }
    }
    properties
}

/// librdkafka's words quote the value, which may be a secret: only the kind of the error is told.
fn refused_property(name: &str, error: &rdkafka::error::KafkaError) -> (String, &'static str) {
    use rdkafka::error::KafkaError;
    use rdkafka::types::RDKafkaConfRes;
    let list = "see librdkafka's CONFIGURATION.md for the names and values of properties";
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..) => {
            (format!("librdkafka has no property `{name}`"), list)
        }
        _ => (format!("librdkafka does not take this value for `{name}`"), list),
    }
}

fn sasl(name: &str, raw: &Sasl, checker: &mut Checker<'_>) -> Option<super::Sasl> {
    let key = |part: &str| KeyPath(["sinks", name, "sasl", part].map(str::to_owned).to_vec());
    let mechanism = checker
        .require(&key("mechanism"), raw.mechanism.as_ref())
        .map(|word| checker.choose(&key("mechanism"), &word, &super::Mechanism::ALL));
    let username = checker.require(&key("username"), raw.username.as_ref());
    let password = checker.require(&key("password"), raw.password.as_ref());
    Some(super::Sasl { mechanism: mechanism?, username: username?, password: password? })
}
