//! One event as an AMQP message: where it goes, its properties and its headers.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::Settings;
use crate::event::{Event, Reason, Rejection};
use crate::sink::Pick;
use crate::sink::format::{Dress, Value};
use crate::sink::template::Template;

/// A message, ready to be published.
pub(super) struct Message<'a> {
    pub slot: usize,
    /// Taken out when it is published.
    pub envelope: Envelope,
    pub body: Cow<'a, [u8]>,
}

/// What goes around the body.
#[derive(Default)]
pub(super) struct Envelope {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub properties: BasicProperties,
}

/// AMQP's own limit for names, ids and keys, in bytes.
const SHORT_BYTES_MAX: usize = 255;
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// What a frame has besides the properties, with something to spare.
const FRAME_BYTES: usize = 64;

/// Makes the message, or says why the event cannot be one. Its properties and headers go in one frame of `frame_bytes_max`.
pub(super) fn compose<'a>(
    settings: &Settings,
    dress: &Dress,
    frame_bytes_max: usize,
    event: &Event<'a>,
    pick: Pick,
    slot: usize,
) -> Result<Message<'a>, Rejection> {
    let place = |template: &Template, what: &str| {
        let mut text = String::new();
        template.render(event, &dress.source, &mut text)?;
        short(Reason::Unroutable, what, text)
    };
    let body = dress.format.body_owned(event, &dress.source).unwrap_or_default();
    if body.len() > settings.message_bytes_max {
        let detail =
            format!("{} bytes are more than the {} that the broker admits", body.len(), settings.message_bytes_max);
        return Err(Rejection::new(Reason::TooLarge, detail));
    }
    Ok(Message {
        slot,
        envelope: Envelope {
            exchange: place(&settings.exchange, "exchange")?,
            routing_key: place(&settings.routing_key, "routing key")?,
            properties: properties(settings, dress, frame_bytes_max, event, pick, &body)?,
        },
        body,
    })
}

fn properties(
    settings: &Settings,
    dress: &Dress,
    frame_bytes_max: usize,
    event: &Event<'_>,
    pick: Pick,
    body: &[u8],
) -> Result<BasicProperties, Rejection> {
    let properties = BasicProperties::default()
        .with_message_id(short(Reason::Undecodable, "id", event.id)?)
        .with_delivery_mode(if settings.persistent { PERSISTENT } else { TRANSIENT });
    let properties = settings.properties.put(event, dress, body, properties)?;
    let mut headers = FieldTable::default();
    // Ids, type, content type, encoding and expiration are short strings.
    let mut bytes = FRAME_BYTES + 6 * (SHORT_BYTES_MAX + 1);
    dress.each(event, pick, |name, value| {
        let Ok(name) = ShortString::try_new(name) else { return };
        bytes += name.as_str().len() + 2;
        let value = match value {
            Value::Text(text) | Value::Json(text) => {
                bytes += text.len() + 4;
                AMQPValue::LongString(LongString::from(text))
            }
            Value::Integer(number) => {
                bytes += 8;
                i32::try_from(number).map_or(AMQPValue::LongLongInt(number), AMQPValue::LongInt)
            }
        };
        headers.insert(name, value);
    })?;
    if bytes > frame_bytes_max {
        let detail =
            format!("headers of {bytes} bytes do not fit into one frame: the connection takes {frame_bytes_max}");
        return Err(Rejection::new(Reason::TooLarge, detail));
    }
    Ok(if headers.inner().is_empty() { properties } else { properties.with_headers(headers) })
}

/// The client library panics on a longer one.
pub(super) fn short(reason: Reason, what: &str, text: impl Into<String>) -> Result<ShortString, Rejection> {
    let text = text.into();
    let bytes = text.len();
    ShortString::try_new(text)
        .map_err(|_| Rejection::new(reason, format!("a {what} of {bytes} bytes: AMQP takes {SHORT_BYTES_MAX}")))
}
