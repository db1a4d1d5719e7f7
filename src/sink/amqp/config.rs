//! `[sinks.X]` with `type = "amqp"`: its keys, and what follows from them.

use std::time::Duration;

use super::{Settings, Timestamp};
use crate::event::{Destination, Event};
use crate::secret::Secret;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{List, Size, Span, Word};
use crate::setting::{Bytes, Checker, Nanos, is_loopback};
use crate::sink;
use crate::sink::keys::{self, Tls};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// The protocol counts whole seconds, in 16 bits.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);
/// RabbitMQ admits no more, whatever it is told.
const MESSAGE_BYTES_MOST: u64 = 512 << 20;
/// A short string of the protocol.
const NAME_BYTES_MAX: usize = 255;

section! {
    /// Events go to a RabbitMQ exchange (AMQP 0-9-1).
    Amqp, "[sinks.<name>] with type = \"amqp\"" {
        /// `"amqp"`.
        r#type: String, Required, r#""amqp""#;
        /// Where the broker is, and who we are to it: `amqp://user:password@host:port/vhost`, or `amqps://` for TLS.
        uri: Secret, Required, r#""amqp://127.0.0.1""#;
        /// The exchange; a template over the event's fields. The empty text is the default exchange.
        exchange: String, Required, r#""events""#;
        /// The routing key; a template over the event's fields.
        routing_key: String, Required, r#""{stream_type}.{type}""#;
        /// What the message holds: `"plain"` (the payload's bytes as they are), `"envelope"` or `"eventsource-py"`.
        format: String, Value(r#""plain""#), r#""plain""#;
        /// Headers beyond those that every message carries.
        headers: List, Value("[]"), r#"["stream_id", "time"]"#;
        /// Properties of the message.
        properties: Properties, Absent("type, content type and timestamp, by the event"), r#"{ correlation_id = "{header.order}", priority = 5 }"#;
        /// Whether the broker writes messages to disk.
        persistent: bool, Value("true"), "true";
        /// Whether a message that no queue takes is refused by the broker, and so held, instead of silently dropped.
        mandatory: bool, Value("true"), "true";
        /// Makes the exchange (topic, durable) when it is missing. Otherwise a missing one halts the relay.
        declare: bool, Value("false"), "true";
        /// Certificates for an `amqps://` address.
        tls: Tls, Absent("the system's certificates, for `amqps://`"), r#"{ ca_file = "ca.pem" }"#;
        /// Lets a password travel unencrypted to a host that is not loopback.
        allow_plaintext: bool, Value("false"), "true";
        /// How often the two sides show each other that they live; a dead peer is noticed within two of these.
        heartbeat: Span, Value(r#""10s""#), r#""10s""#;
        /// The broker's `max_message_size`: a larger message would close the channel, and so it is rejected before it is sent.
        message_bytes_max: Size, Value(r#""128MiB""#), r#""16MiB""#;
        /// RabbitMQ's management API, which `outboxd doctor` asks for queues and bindings, as the user of `uri` (who needs the tag `management` there). Nothing else uses it.
        management: String, Absent("not asked"), r#""http://127.0.0.1:15672""#;
    }
}

section! {
    /// Properties of messages, inside an AMQP sink: templates over the event's fields. One that needs what an event does not have is left as if
    /// it were not said; a value that AMQP cannot take (longer than 255 bytes, no number) makes the event a dead letter.
    Properties, "properties" {
        /// The message's `type`.
        r#type: String, Absent("`{type}`; nothing with `format = \"eventsource-py\"`"), r#""shop.{type}""#;
        /// What the message belongs to.
        correlation_id: String, Absent("not sent"), r#""{header.correlation_id}""#;
        /// The body's content type.
        content_type: String, Absent("`application/json` where the body looks like it, else `application/octet-stream`"), r#""application/cloudevents+json""#;
        /// `"event"` (when it happened), `"sent"` (when it was sent) or `"none"`; in whole seconds.
        timestamp: String, Value(r#""event""#), r#""sent""#;
        /// After this long the broker drops a message that nobody took: lost on purpose. A duration, or a template that gives whole milliseconds.
        expiration: String, Absent("never"), r#""1h""#;
        /// 0 to 255: a number, or a template that gives one. Only queues declared with `x-max-priority` heed it, and then not the order of keys.
        priority: Word, Absent("not sent"), r#""{header.priority}""#;
    }
}

keys::told! { Amqp, tls;
    fn destination(&self, event: &Event<'_>, source: &str) -> Destination {
        let (mut exchange, mut routing_key) = (String::new(), String::new());
        let rendered = self.exchange.render(event, source, &mut exchange);
        let rendered = rendered.and_then(|()| self.routing_key.render(event, source, &mut routing_key));
        rendered.map_or(Destination::Unknown, |()| Destination::Exchange { exchange, routing_key })
    }
}

impl sink::Keys for Amqp {
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<sink::Settings> {
        let raw = self;
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let uri = checker.require(&key("uri"), raw.uri.as_ref());
        if let Some(uri) = &uri {
            check_uri(name, uri, raw, checker);
        }
        if let Some(address) = &raw.management {
            check_management(&key("management"), address, raw, checker);
        }
        let mut template = |part: &str, said: Option<&String>| {
            let text = checker.require(&key(part), said)?;
            let template = keys::template(&key(part), &text, checker)?;
            if template.constant().is_some_and(|constant| constant.len() > NAME_BYTES_MAX) {
                let reason = format!("this is longer than the {NAME_BYTES_MAX} bytes that AMQP admits");
                checker.refuse(key(part), reason, "write a shorter one");
            }
            Some(template)
        };
        let exchange = template("exchange", raw.exchange.as_ref());
        let routing_key = template("routing_key", raw.routing_key.as_ref());
        let format = keys::format(&key("format"), raw.format.as_ref(), checker);
        let headers = keys::headers(&key("headers"), raw.headers.as_ref(), checker);
        let tls = raw.tls.as_ref().map(|raw| keys::tls(name, raw, checker));
        let heartbeat = raw.heartbeat.unwrap_or(Span(HEARTBEAT));
        checker.within(&key("heartbeat"), Nanos(heartbeat), Nanos(Span(HEARTBEAT_MIN)), Nanos(Span(HEARTBEAT_MAX)));
        if heartbeat.0.subsec_nanos() != 0 {
            checker.refuse(
                key("heartbeat"),
                "AMQP counts heartbeats in whole seconds",
                "write whole seconds, as in \"10s\"",
            );
        }
        Some(sink::Settings::Amqp(Settings {
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
            ack_timeout: keys::ACK_TIMEOUT,
            message_bytes_max: message_bytes_max(&key("message_bytes_max"), raw.message_bytes_max, checker),
            management: raw.management.clone(),
        }))
    }
}

fn properties(name: &str, raw: &Properties, checker: &mut Checker<'_>) -> super::Properties {
    let key = |part: &str| KeyPath(["sinks", name, "properties", part].map(str::to_owned).to_vec());
    let mut template = |part: &str, said: Option<&String>, is_right: fn(&str) -> bool, wanted: &str| {
        let template = keys::template(&key(part), said?, checker)?;
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
    super::Properties {
        kind: template("type", raw.r#type.as_ref(), is_short, short),
        correlation_id: template("correlation_id", raw.correlation_id.as_ref(), is_short, short),
        content_type: template("content_type", raw.content_type.as_ref(), is_short, short),
        expiration: template(
            "expiration",
            millis.as_ref(),
            super::Properties::is_expiration,
            "a duration of at most 49 days, as in \"1h\", or a template that gives milliseconds",
        ),
        priority: template(
            "priority",
            priority,
            |text| text.parse::<u8>().is_ok(),
            "a number from 0 to 255, or a template that gives one",
        ),
        timestamp: checker.choose_or(&key("timestamp"), raw.timestamp.as_ref(), &Timestamp::ALL, Timestamp::default()),
    }
}

fn message_bytes_max(key: &KeyPath, said: Option<Size>, checker: &mut Checker<'_>) -> usize {
    let size = said.unwrap_or(Size(super::MESSAGE_BYTES_MAX as u64));
    checker.within(key, Bytes(size), Bytes(Size(1)), Bytes(Size(MESSAGE_BYTES_MOST)));
    size.0 as usize
}

/// Says what is wrong with an address, never the address: it may hold a password.
fn check_uri(name: &str, uri: &Secret, raw: &Amqp, checker: &mut Checker<'_>) {
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
    let is_managed = raw.management.as_ref().is_some_and(|address| address.starts_with("https://"));
    if raw.tls.is_some() && !is_encrypted && !is_managed {
        checker.refuse(
            KeyPath::of(["sinks", name, "tls"]),
            "`tls` is said, but the address begins with amqp://",
            "write amqps://",
        );
    } else if user.contains(':') && !is_encrypted && !is_loopback(host) && raw.allow_plaintext != Some(true) {
        keys::refuse_plaintext_password(key, host, "write amqps://", checker);
    }
}

/// It is sent the password that stands in `uri`.
fn check_management(key: &KeyPath, address: &str, raw: &Amqp, checker: &mut Checker<'_>) {
    let shape = "write http://host:15672, or https://host:15671";
    let Some((scheme @ ("http" | "https"), rest)) = address.split_once("://") else {
        return checker.refuse(key.clone(), "this is not an address of HTTP", shape);
    };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host = authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':')).map_or(authority, |(host, _)| host);
    if host.is_empty() || rest.contains(['?', '#']) {
        checker.refuse(key.clone(), "this address cannot be read", shape);
    } else if authority.contains('@') {
        checker.refuse(key.clone(), "there is a user in the address", format!("the one of `uri` is used: {shape}"));
    } else if scheme == "http" && !is_loopback(host) && raw.allow_plaintext != Some(true) {
        keys::refuse_plaintext_password(key.clone(), host, "write https://", checker);
    }
}
