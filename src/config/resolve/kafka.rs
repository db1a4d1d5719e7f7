//! `[sinks.X]` with `type = "kafka"`.

#[cfg(not(feature = "kafka"))]
pub(super) fn resolve(
    name: &str,
    _: &crate::config::file::Kafka,
    checker: &mut super::Checker<'_>,
) -> Option<crate::sink::Settings> {
    super::sink::refuse_missing_feature(name, "kafka", checker);
    None
}

#[cfg(feature = "kafka")]
pub(super) use with_client::resolve;

#[cfg(feature = "kafka")]
mod with_client {
    use std::collections::BTreeMap;

    use crate::config::file;
    use crate::config::problem::KeyPath;
    use crate::config::resolve::{Checker, is_loopback, sink};
    use crate::sink::Settings;
    use crate::sink::kafka;

    const MECHANISMS: [(&str, kafka::Mechanism); 3] = [
        ("PLAIN", kafka::Mechanism::Plain),
        ("SCRAM-SHA-256", kafka::Mechanism::ScramSha256),
        ("SCRAM-SHA-512", kafka::Mechanism::ScramSha512),
    ];

    /// librdkafka's properties that outboxd sets itself, and what to write instead.
    const OWNED: [(&str, &str); 32] = [
        ("bootstrap.servers", "write `bootstrap_servers`"),
        ("metadata.broker.list", "write `bootstrap_servers`"),
        ("security.protocol", "write `tls` and `sasl`"),
        ("sasl.mechanism", "write `sasl.mechanism` in a table `sasl`"),
        ("sasl.mechanisms", "write `mechanism` in a table `sasl`"),
        ("sasl.username", "write `username` in a table `sasl`"),
        ("sasl.password", "write `password` in a table `sasl`"),
        ("ssl.ca.location", "write `ca_file` in a table `tls`"),
        ("ssl.ca.pem", "write `ca_file` in a table `tls`"),
        ("ssl.certificate.location", "write `cert_file` in a table `tls`"),
        ("ssl.certificate.pem", "write `cert_file` in a table `tls`"),
        ("ssl.key.location", "write `key_file` in a table `tls`"),
        ("ssl.key.pem", "write `key_file` in a table `tls`"),
        ("enable.idempotence", "leave it out: it is always on, so that order is kept"),
        ("enable.gapless.guarantee", "leave it out"),
        ("acks", "leave it out: all replicas must acknowledge"),
        ("request.required.acks", "leave it out: all replicas must acknowledge"),
        ("retries", "leave it out: what can be retried is retried for ever"),
        ("message.send.max.retries", "leave it out: what can be retried is retried for ever"),
        ("message.timeout.ms", "leave it out, and set the relay's `ack_timeout`"),
        ("delivery.timeout.ms", "leave it out, and set the relay's `ack_timeout`"),
        ("max.in.flight", "leave it out, and set the relay's `window_events`"),
        ("max.in.flight.requests.per.connection", "leave it out, and set the relay's `window_events`"),
        ("partitioner", "leave it out: keys go where Java producers put them"),
        ("topic.metadata.propagation.max.ms", "leave it out"),
        ("queuing.strategy", "leave it out"),
        ("delivery.report.only.error", "leave it out: every acknowledgement is needed"),
        ("dr_cb", "leave it out"),
        ("dr_msg_cb", "leave it out"),
        ("opaque", "leave it out"),
        ("transactional.id", "leave it out: transactions are not used"),
        ("transaction.timeout.ms", "leave it out: transactions are not used"),
    ];

    pub(in crate::config::resolve) fn resolve(
        name: &str,
        raw: &file::Kafka,
        checker: &mut Checker<'_>,
    ) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let servers = checker.require(&key("bootstrap_servers"), raw.bootstrap_servers.as_ref());
        if let Some(servers) = &servers {
            check_servers(&key("bootstrap_servers"), &servers.0, checker);
        }
        let topic = checker.require(&key("topic"), raw.topic.as_ref());
        let topic = topic.and_then(|text| sink::template(&key("topic"), &text, checker));
        if let Some(constant) = topic.as_ref().and_then(|topic| topic.constant()) {
            check_topic(&key("topic"), constant, checker);
        }
        let message_key = raw.key.as_ref().and_then(|text| sink::template(&key("key"), text, checker));
        let format = sink::format(&key("format"), raw.format.as_ref(), checker);
        let headers = sink::headers(&key("headers"), raw.headers.as_ref(), checker);
        let properties = properties(&key("properties"), raw, checker);
        let tls = raw.tls.as_ref().map(|raw| tls(name, raw, checker));
        let sasl = raw.sasl.as_ref().and_then(|raw| sasl(name, raw, checker));
        let servers = servers?.0;
        if raw.sasl.is_some() && tls.is_none() && raw.allow_plaintext != Some(true) {
            if let Some(server) = servers.iter().find(|server| !is_loopback(host(server))) {
                let place = KeyPath(["sinks", name, "sasl"].map(str::to_owned).to_vec());
                sink::refuse_plaintext_password(place, server, "write tls = {}", checker);
            }
        }
        Some(Settings::Kafka(kafka::Settings {
            bootstrap_servers: servers,
            topic: topic?,
            key: message_key,
            format,
            headers,
            properties,
            tls,
            sasl,
        }))
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

    fn check_topic(key: &KeyPath, topic: &str, checker: &mut Checker<'_>) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !topic.chars().all(allowed) {
            let reason = format!("{topic:?} cannot be a topic's name");
            checker.refuse(key.clone(), reason, "write 1 to 249 letters, digits, dots, _ and -");
        }
    }

    fn properties(key: &KeyPath, raw: &file::Kafka, checker: &mut Checker<'_>) -> BTreeMap<String, String> {
        let properties = raw.properties.clone().unwrap_or_default().0;
        let mut checked = rdkafka::ClientConfig::new();
        for (name, value) in &properties {
            let at = key.join(name);
            if let Some((_, remedy)) = OWNED.into_iter().find(|(owned, _)| owned == name) {
                checker.refuse(at, format!("`{name}` is outboxd's own to set"), remedy);
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

    fn tls(name: &str, raw: &file::Tls, checker: &mut Checker<'_>) -> kafka::Tls {
        let found = sink::certificates(name, raw, checker);
        let (cert_file, key_file) = found.client.unzip();
        kafka::Tls { ca_file: found.ca_file, cert_file, key_file }
    }

    fn sasl(name: &str, raw: &file::Sasl, checker: &mut Checker<'_>) -> Option<kafka::Sasl> {
        let key = |part: &str| KeyPath(["sinks", name, "sasl", part].map(str::to_owned).to_vec());
        let mechanism = checker
            .require(&key("mechanism"), raw.mechanism.as_ref())
            .map(|word| checker.choose(&key("mechanism"), &word, &MECHANISMS));
        let username = checker.require(&key("username"), raw.username.as_ref());
        let password = checker.require(&key("password"), raw.password.as_ref());
        Some(kafka::Sasl { mechanism: mechanism?, username: username?, password: password? })
    }
}
