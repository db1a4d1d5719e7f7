//! The headers of eventsource-py's own publishers, so that consumers written with its buses work unchanged.
//!
//! They are taken from the event's JSON, which that library's outbox and event tables hold as the message body; where a field
//! is not there, the event's columns answer. Names, order and types are those of its `adapters/kafka/publisher.py` and
//! `adapters/rabbitmq/serialization.py` (0.15.1; the same in 0.8.1).

use std::borrow::Cow;

use serde::Deserialize;

use super::{Value, Wire};
use crate::event::{Death, Destination, Event, Reason, Rejection};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body<'a> {
    #[serde(borrow)]
    event_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    aggregate_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    aggregate_type: Option<Cow<'a, str>>,
    aggregate_version: Option<i64>,
    #[serde(borrow)]
    occurred_at: Option<Cow<'a, str>>,
    #[serde(borrow)]
    correlation_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tenant_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    causation_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    actor_id: Option<Cow<'a, str>>,
}

pub(super) fn each(event: &Event<'_>, wire: Wire, put: &mut impl FnMut(&str, Value<'_>)) -> Result<(), Rejection> {
    let undecodable = |error: String| {
        Rejection::new(Reason::Undecodable, format!("the payload is not an event of eventsource-py: {error}"))
    };
    let mut payload = event.payload.unwrap_or_default();
    if event.death.is_some() && payload.is_empty() {
        // Of what could not be kept there is a copy without a body.
        payload = b"{}";
    }
    // A sequence too can be read into a struct.
    if payload.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
        return Err(undecodable("it is no JSON object".into()));
    }
    let body: Body<'_> = serde_json::from_slice(payload).map_err(|error| undecodable(error.to_string()))?;
    let fields = Fields { event, body };
    match wire {
        Wire::Kafka | Wire::Http => fields.kafka(put),
        Wire::Amqp => fields.amqp(put),
    }
    Ok(())
}

/// As the library's own consumers say it of what they give up (`adapters/kafka/consumer.py`, `adapters/rabbitmq/consumer.py`): its own commands
/// list it, and send it to where it was to go. An event that was never in a topic has no partition and no offset there.
pub(super) fn put_death(death: &Death, wire: Wire, put: &mut impl FnMut(&str, Value<'_>)) {
    let group = format!("relay:{}", death.consumer);
    let time = python_isoformat(&death.at);
    match wire {
        Wire::Kafka | Wire::Http => {
            let message: String = death.detail.chars().take(1000).collect();
            put("dlq_reason", Value::Text("max_retries_exceeded"));
            put("dlq_error_type", Value::Text(&death.reason));
            put("dlq_error_message", Value::Text(&message));
            put("dlq_retry_count", Value::Integer(death.attempts.into()));
            put("dlq_timestamp", Value::Text(&time));
            if let Destination::Topic(topic) = &death.destination {
                put("dlq_original_topic", Value::Text(topic));
            }
            put("dlq_consumer_group", Value::Text(&group));
        }
        Wire::Amqp => {
            put("x-dlq-reason", Value::Text(&death.detail));
            put("x-dlq-error-type", Value::Text(&death.reason));
            put("x-dlq-retry-count", Value::Integer(death.attempts.into()));
            put("x-dlq-timestamp", Value::Text(&time));
            if let Destination::Exchange { routing_key, .. } = &death.destination {
                put("x-original-routing-key", Value::Text(routing_key));
            }
            put("x-dlq-consumer", Value::Text(&group));
        }
    }
}

/// When the event happened by its own word, in microseconds since 1970.
pub(super) fn occurred_micros(event: &Event<'_>) -> Option<i64> {
    let body: Body<'_> = serde_json::from_slice(event.payload?).ok()?;
    super::envelope::micros(body.occurred_at.as_deref()?)
}

struct Fields<'a, 'e> {
    event: &'a Event<'e>,
    body: Body<'e>,
}

impl Fields<'_, '_> {
    fn kafka(&self, put: &mut impl FnMut(&str, Value<'_>)) {
        let body = &self.body;
        put("event_id", Value::Text(body.event_id.as_deref().unwrap_or(self.event.id)));
        put("event_type", Value::Text(self.event_type()));
        put_some("aggregate_id", self.aggregate_id(), put);
        put_some("aggregate_type", self.aggregate_type(), put);
        self.put_version(put);
        if let Some(time) = body.occurred_at.as_deref().or(self.event.time) {
            put("occurred_at", Value::Text(&python_isoformat(time)));
        }
        put_some("correlation_id", body.correlation_id.as_deref(), put);
        put_some("tenant_id", body.tenant_id.as_deref(), put);
        put_some("causation_id", body.causation_id.as_deref(), put);
        put_some("actor_id", body.actor_id.as_deref(), put);
    }

    fn amqp(&self, put: &mut impl FnMut(&str, Value<'_>)) {
        put("event_type", Value::Text(self.event_type()));
        put_some("aggregate_type", self.aggregate_type(), put);
        put_some("aggregate_id", self.aggregate_id(), put);
        self.put_version(put);
        put("x-retry-count", Value::Integer(0));
        put_some("tenant_id", self.body.tenant_id.as_deref(), put);
        put_some("correlation_id", self.body.correlation_id.as_deref(), put);
        put_some("causation_id", self.body.causation_id.as_deref(), put);
    }

    fn put_version(&self, put: &mut impl FnMut(&str, Value<'_>)) {
        if let Some(version) = self.body.aggregate_version.or(self.event.version) {
            put("aggregate_version", Value::Integer(version));
        }
    }

    fn event_type(&self) -> &str {
        self.body.event_type.as_deref().unwrap_or(self.event.kind)
    }

    fn aggregate_id(&self) -> Option<&str> {
        self.body.aggregate_id.as_deref().or(self.event.stream_id)
    }

    fn aggregate_type(&self) -> Option<&str> {
        self.body.aggregate_type.as_deref().or(self.event.stream_type)
    }
}

/// The library leaves out what is unset or empty.
fn put_some(name: &str, value: Option<&str>, put: &mut impl FnMut(&str, Value<'_>)) {
    if let Some(text) = value.filter(|text| !text.is_empty()) {
        put(name, Value::Text(text));
    }
}

/// Its header is Python's `isoformat()`, its body pydantic's JSON: they differ in how they write UTC.
fn python_isoformat(time: &str) -> Cow<'_, str> {
    match time.strip_suffix('Z') {
        Some(local) => Cow::Owned(format!("{local}+00:00")),
        None => Cow::Borrowed(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Position;

    const PAYLOAD: &str = r#"{"event_id":"7fd6","event_type":"StockReceived","event_version":1,
        "occurred_at":"2026-11-17T21:41:08.907547Z","aggregate_id":"e544","aggregate_type":"StockItem",
        "aggregate_version":4,"correlation_id":"c1","causation_id":null,"tenant_id":"t1","actor_id":"svc","sku":"a"}"#;

    fn event(payload: &'static str) -> Event<'static> {
        Event {
            position: Position(1),
            id: "column-id",
            key: None,
            stream_id: Some("column-stream"),
            stream_type: None,
            version: Some(9),
            kind: "ColumnType",
            payload: Some(payload.as_bytes()),
            headers: None,
            time: None,
            time_micros: None,
            death: None,
        }
    }

    fn list(payload: &'static str, wire: Wire) -> Vec<String> {
        let mut seen = Vec::new();
        each(&event(payload), wire, &mut |name: &str, value: Value<'_>| seen.push(format!("{name}={value:?}")))
            .unwrap();
        seen
    }

    #[test]
    fn kafka_headers_are_the_librarys() {
        assert_eq!(
            list(PAYLOAD, Wire::Kafka),
            [
                r#"event_id=Text("7fd6")"#,
                r#"event_type=Text("StockReceived")"#,
                r#"aggregate_id=Text("e544")"#,
                r#"aggregate_type=Text("StockItem")"#,
                "aggregate_version=Integer(4)",
                r#"occurred_at=Text("2026-11-17T21:41:08.907547+00:00")"#,
                r#"correlation_id=Text("c1")"#,
                r#"tenant_id=Text("t1")"#,
                r#"actor_id=Text("svc")"#,
            ]
        );
    }

    #[test]
    fn rabbitmq_headers_are_the_librarys() {
        assert_eq!(
            list(PAYLOAD, Wire::Amqp),
            [
                r#"event_type=Text("StockReceived")"#,
                r#"aggregate_type=Text("StockItem")"#,
                r#"aggregate_id=Text("e544")"#,
                "aggregate_version=Integer(4)",
                "x-retry-count=Integer(0)",
                r#"tenant_id=Text("t1")"#,
                r#"correlation_id=Text("c1")"#,
            ]
        );
    }

    #[test]
    fn columns_answer_for_missing_fields_and_another_payload_is_rejected() {
        assert_eq!(
            list("{}", Wire::Amqp),
            [
                r#"event_type=Text("ColumnType")"#,
                r#"aggregate_id=Text("column-stream")"#,
                "aggregate_version=Integer(9)",
                "x-retry-count=Integer(0)",
            ]
        );
        let rejection = each(&event("[1]x"), Wire::Kafka, &mut |_: &str, _: Value<'_>| {}).unwrap_err();
        assert_eq!(rejection.reason, Reason::Undecodable);
    }
}
