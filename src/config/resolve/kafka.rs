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
    use crate::config::resolve::{Checker, broker, is_loopback};
    use crate::consumer::Bounds;
    use crate::sink::Settings;
    use crate::sink::kafka;

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
        let topic = topic.and_then(|text| broker::template(&key("topic"), &text, checker));
        if let Some(Err(reason)) = topic.as_ref().and_then(|topic| topic.constant()).map(kafka::check_topic) {
            checker.refuse(key("topic"), reason, "write 1 to 249 letters, digits, dots, _ and -");
        }
        let message_key = raw.key.as_ref().and_then(|text| broker::template(&key("key"), text, checker));
        let partition = raw.partition.as_ref().and_then(|word| broker::template(&key("partition"), &word.0, checker));
        if let Some(constant) = partition.as_ref().and_then(|template| template.constant())
            && kafka::partition_of(constant).is_none()
        {
            let reason = format!("{constant:?} is no partition");
            checker.refuse(key("partition"), reason, "write a whole number from 0 on, or a template that gives one");
        }
        let format = broker::format(&key("format"), raw.format.as_ref(), checker);
        let headers = broker::headers(&key("headers"), raw.headers.as_ref(), checker);
        let properties = properties(&key("properties"), raw, checker);
        let tls = raw.tls.as_ref().map(|raw| broker::tls(name, raw, checker));
        let sasl = raw.sasl.as_ref().and_then(|raw| sasl(name, raw, checker));
        let servers = servers?.0;
        let is_bare = raw.sasl.is_some() && tls.is_none() && raw.allow_plaintext != Some(true);
        let is_remote = |server: &&String| !server.contains('@') && !is_loopback(host(server));
        if let Some(server) = servers.iter().find(is_remote).filter(|_| is_bare) {
            broker::refuse_plaintext_password(key("sasl"), server, "write tls = {}", checker);
        }
        Some(Settings::Kafka(kafka::Settings {
            bootstrap_servers: servers,
            topic: topic?,
            key: message_key,
            partition,
            format,
            headers,
            properties,
            security: kafka::Security { tls, sasl },
            // The relay's, when it is known which one it is.
            ack_timeout: Bounds::default().ack_timeout,
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

    fn properties(key: &KeyPath, raw: &file::Kafka, checker: &mut Checker<'_>) -> BTreeMap<String, String> {
        let properties = raw.properties.clone().unwrap_or_default().0;
        let mut checked = rdkafka::ClientConfig::new();
        for (name, value) in &properties {
            let at = key.join(name);
            if let Err(reason) = kafka::check_property(name, value) {
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

    fn sasl(name: &str, raw: &file::Sasl, checker: &mut Checker<'_>) -> Option<kafka::Sasl> {
        let key = |part: &str| KeyPath(["sinks", name, "sasl", part].map(str::to_owned).to_vec());
        let mechanism = checker
            .require(&key("mechanism"), raw.mechanism.as_ref())
            .map(|word| checker.choose(&key("mechanism"), &word, &kafka::Mechanism::ALL));
        let username = checker.require(&key("username"), raw.username.as_ref());
        let password = checker.require(&key("password"), raw.password.as_ref());
        Some(kafka::Sasl { mechanism: mechanism?, username: username?, password: password? })
    }
}
