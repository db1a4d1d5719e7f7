//! `[sinks.X]` with `type = "amqp"`.

#[cfg(not(feature = "amqp"))]
pub(super) fn resolve(
    name: &str,
    _: &crate::config::file::Amqp,
    checker: &mut super::Checker<'_>,
) -> Option<crate::sink::Settings> {
    super::sink::refuse_missing_feature(name, "amqp", checker);
    None
}

#[cfg(feature = "amqp")]
pub(super) use with_client::resolve;

#[cfg(feature = "amqp")]
mod with_client {
    use std::time::Duration;

    use crate::config::file;
    use crate::config::problem::KeyPath;
    use crate::config::resolve::{Bytes, Checker, Nanos, broker, is_loopback};
    use crate::config::value::{Size, Span};
    use crate::consumer::Bounds;
    use crate::secret::Secret;
    use crate::sink::Settings;
    use crate::sink::amqp::{self, Properties, Timestamp};

    const HEARTBEAT: Duration = Duration::from_secs(10);
    /// The protocol counts whole seconds, in 16 bits.
    const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
    const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);
    /// RabbitMQ admits no more, whatever it is told.
    const MESSAGE_BYTES_MOST: u64 = 512 << 20;
    /// A short string of the protocol.
    const NAME_BYTES_MAX: usize = 255;

    pub(in crate::config::resolve) fn resolve(
        name: &str,
        raw: &file::Amqp,
        checker: &mut Checker<'_>,
    ) -> Option<Settings> {
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let uri = checker.require(&key("uri"), raw.uri.as_ref());
        if let Some(uri) = &uri {
            check_uri(name, uri, raw, checker);
        }
        let mut template = |part: &str, said: Option<&String>| {
            let text = checker.require(&key(part), said)?;
            let template = broker::template(&key(part), &text, checker)?;
            if template.constant().is_some_and(|constant| constant.len() > NAME_BYTES_MAX) {
                let reason = format!("this is longer than the {NAME_BYTES_MAX} bytes that AMQP admits");
                checker.refuse(key(part), reason, "write a shorter one");
            }
            Some(template)
        };
        let exchange = template("exchange", raw.exchange.as_ref());
        let routing_key = template("routing_key", raw.routing_key.as_ref());
        let format = broker::format(&key("format"), raw.format.as_ref(), checker);
        let headers = broker::headers(&key("headers"), raw.headers.as_ref(), checker);
        let tls = raw.tls.as_ref().map(|raw| broker::tls(name, raw, checker));
        let heartbeat = raw.heartbeat.unwrap_or(Span(HEARTBEAT));
        checker.within(&key("heartbeat"), Nanos(heartbeat), Nanos(Span(HEARTBEAT_MIN)), Nanos(Span(HEARTBEAT_MAX)));
        if heartbeat.0.subsec_nanos() != 0 {
            checker.refuse(
                key("heartbeat"),
                "AMQP counts heartbeats in whole seconds",
                "write whole seconds, as in \"10s\"",
            );
        }
        Some(Settings::Amqp(amqp::Settings {
            uri: uri?,
            exchange: exchange?,
            routing_key: routing_key?,
            format,
            headers,
            properties: raw.properties.as_ref().map(|raw| properties(name, raw, checker)).unwrap_or_default(),
            persistent: raw.persistent.unwrap_or(true),
            mandatory: raw.mandatory.unwrap_or(true),
            declare: raw.declare.unwrap_or(false),
            tls,
            heartbeat: heartbeat.0,
            // The relay's, when it is known which one it is.
            ack_timeout: Bounds::default().ack_timeout,
            message_bytes_max: message_bytes_max(&key("message_bytes_max"), raw.message_bytes_max, checker),
        }))
    }

    fn properties(name: &str, raw: &file::Properties, checker: &mut Checker<'_>) -> Properties {
        let key = |part: &str| KeyPath(["sinks", name, "properties", part].map(str::to_owned).to_vec());
        let mut template = |part: &str, said: Option<&String>, is_right: fn(&str) -> bool, wanted: &str| {
            let template = broker::template(&key(part), said?, checker)?;
            if let Some(constant) = template.constant().filter(|constant| !is_right(constant)) {
                let reason = format!("{constant:?} cannot be this property");
                checker.refuse(key(part), reason, format!("write {wanted}"));
            }
            Some(template)
        };
        let is_short = |text: &str| text.len() <= NAME_BYTES_MAX;
        let short = "at most 255 bytes";
        // In the configuration a duration, on the wire milliseconds.
        let millis = raw.expiration.as_ref().map(|text| match Span::parse(text) {
            Ok(span) => span.0.as_millis().to_string(),
            Err(_) => text.clone(),
        });
        let priority = raw.priority.as_ref().map(|word| &word.0);
        Properties {
            kind: template("type", raw.r#type.as_ref(), is_short, short),
            correlation_id: template("correlation_id", raw.correlation_id.as_ref(), is_short, short),
            content_type: template("content_type", raw.content_type.as_ref(), is_short, short),
            expiration: template(
                "expiration",
                millis.as_ref(),
                Properties::is_expiration,
                "a duration of at most 49 days, as in \"1h\", or a template that gives milliseconds",
            ),
            priority: template(
                "priority",
                priority,
                |text| text.parse::<u8>().is_ok(),
                "a number from 0 to 255, or a template that gives one",
            ),
            timestamp: checker.choose_or(
                &key("timestamp"),
                raw.timestamp.as_ref(),
                &Timestamp::ALL,
                Timestamp::default(),
            ),
        }
    }

    fn message_bytes_max(key: &KeyPath, said: Option<Size>, checker: &mut Checker<'_>) -> usize {
        let size = said.unwrap_or(Size(amqp::MESSAGE_BYTES_MAX as u64));
        checker.within(key, Bytes(size), Bytes(Size(1)), Bytes(Size(MESSAGE_BYTES_MOST)));
        size.0 as usize
    }

    /// Says what is wrong with an address, never the address: it may hold a password.
    fn check_uri(name: &str, uri: &Secret, raw: &file::Amqp, checker: &mut Checker<'_>) {
        let key = KeyPath::of(["sinks", name, "uri"]);
        let shape = "write amqp://user:password@host:5672/vhost, or amqps:// for TLS; in a name or password write %40 for @, %2f for /";
        let Some((scheme, rest)) = uri.reveal().split_once("://") else {
            return checker.refuse(key, "this is not an address", shape);
        };
        let is_encrypted = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => return checker.refuse(key, "this is not an address of AMQP", shape),
        };
        let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let host = place.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')).map_or(place, |(host, _)| host);
        if host.is_empty() || uri.reveal().parse::<lapin::uri::AMQPUri>().is_err() {
            return checker.refuse(key, "this address cannot be read", shape);
        }
        if raw.tls.is_some() && !is_encrypted {
            checker.refuse(
                KeyPath::of(["sinks", name, "tls"]),
                "`tls` is said, but the address begins with amqp://",
                "write amqps://",
            );
        } else if user.contains(':') && !is_encrypted && !is_loopback(host) && raw.allow_plaintext != Some(true) {
            broker::refuse_plaintext_password(key, host, "write amqps://", checker);
        }
    }
}
