//! The doctor's questions to RabbitMQ: each event of the sample is made a message that is not sent, and the exchanges and queues that they name are
//! looked for.
//!
//! AMQP itself tells only whether an exchange, or a queue, of a name is there (a passive declaration). What stands behind an exchange, and what a queue
//! does with what it holds, the management API tells, where `management` names it (`management`, judged in `queue`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::fault::{Answer, answer};
use super::link::Link;
use super::{Settings, message};
use crate::event::Event;
use crate::remark::{Remark, word};
use crate::sink::format::Dress;
use crate::sink::survey::{Refused, Sample};
use crate::sink::{Fault, Pick};

/// Exchanges, and queues, that are asked for one by one.
pub(super) const NAMES_MAX: usize = 50;

/// Where events of the sample go: how many, by exchange and routing key.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub exchanges: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Wanted {
    fn note(&mut self, exchange: &str, routing_key: &str) {
        let keys = self.exchanges.entry(exchange.to_owned()).or_default();
        *keys.entry(routing_key.to_owned()).or_default() += 1;
    }

    /// How many exchanges, without the default one.
    fn names(&self) -> usize {
        self.exchanges.keys().filter(|name| !name.is_empty()).count()
    }
}

pub(super) async fn survey(
    settings: &Settings,
    dress: &Dress,
    link: Result<Arc<Link>, Fault>,
    sample: &Sample<'_>,
    timeout: Duration,
) -> Vec<Remark> {
    // Why there is no connection, `check` has told.
    let Ok(link) = link else { return Vec::new() };
    let mut wanted = Wanted::default();
    if let Some(exchange) = settings.exchange.constant() {
        let keys = wanted.exchanges.entry(exchange.to_owned()).or_default();
        keys.extend(settings.routing_key.constant().map(|key| (key.to_owned(), 0)));
    }
    let mut refused = Refused::default();
    for event in &sample.events {
        match composed(settings, dress, &link, event) {
            Ok((exchange, routing_key)) => wanted.note(&exchange, &routing_key),
            Err(rejection) => refused.note(event, rejection),
        }
    }
    let mut remarks: Vec<Remark> = refused.remark(sample).into_iter().collect();
    let looked = tokio::time::timeout(timeout, missing(settings, &link, &wanted)).await;
    let missing = match looked {
        Ok(Ok(missing)) => missing,
        Ok(Err(fault)) => {
            remarks.push(unseen(&fault.detail));
            return remarks;
        }
        Err(_) => {
            remarks.push(unseen(&format!("no answer within {timeout:?}")));
            return remarks;
        }
    };
    remarks.extend(missing.remarks);
    remarks.extend(left_out(wanted.names(), "exchanges"));
    remarks.extend(left_out(wanted.exchanges.get("").map_or(0, BTreeMap::len), "queues of the default exchange"));
    wanted.exchanges.retain(|exchange, _| !missing.exchanges.contains(exchange));
    if let Some(keys) = wanted.exchanges.get_mut("") {
        keys.retain(|queue, _| !missing.queues.contains(queue));
    }
    remarks.extend(behind(settings, &wanted, timeout).await);
    remarks
}

fn unseen(why: &str) -> Remark {
    Remark::advice(format!("exchanges and queues were not looked at: {why}"), "ask again when RabbitMQ answers")
}

fn composed(
    settings: &Settings,
    dress: &Dress,
    link: &Link,
    event: &Event<'_>,
) -> Result<(String, String), crate::event::Rejection> {
    let message = message::compose(settings, dress, link.frame_bytes_max(), event, Pick::first(0), 0)?;
    Ok((message.envelope.exchange.to_string(), message.envelope.routing_key.to_string()))
}

/// What is not there.
#[derive(Default)]
struct Missing {
    exchanges: BTreeSet<String>,
    queues: BTreeSet<String>,
    remarks: Vec<Remark>,
}

async fn missing(settings: &Settings, link: &Link, wanted: &Wanted) -> Result<Missing, Fault> {
    let mut missing = Missing::default();
    let vhost = vhost(settings);
    for (exchange, keys) in wanted.exchanges.iter().filter(|(exchange, _)| !exchange.is_empty()).take(NAMES_MAX) {
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let Ok(name) = ShortString::try_new(exchange.as_str()) else { continue };
        let asked = link
            .ask(|channel: Channel| async move {
                channel.exchange_declare(name, ExchangeKind::Topic, passive, FieldTable::default()).await
            })
            .await?;
        match asked.as_ref().map_err(answer) {
            Ok(()) => {}
            Err(Answer::NotFound) => {
                missing.exchanges.insert(exchange.clone());
                missing.remarks.push(no_exchange(exchange, keys, &vhost));
            }
            Err(_) => missing.remarks.push(not_told("exchange", exchange, asked.err())),
        }
    }
    for queue in wanted.exchanges.get("").into_iter().flat_map(BTreeMap::keys).take(NAMES_MAX) {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let Ok(name) = ShortString::try_new(queue.as_str()) else { continue };
        let asked = link
            .ask(|channel: Channel| async move { channel.queue_declare(name, passive, FieldTable::default()).await })
            .await?;
        match asked.as_ref().map_err(answer) {
            Ok(_) => {}
            Err(Answer::NotFound) => {
                missing.queues.insert(queue.clone());
                missing.remarks.push(no_queue(settings, queue, &vhost));
            }
            Err(_) => missing.remarks.push(not_told("queue", queue, asked.err())),
        }
    }
    Ok(missing)
}

fn no_exchange(exchange: &str, keys: &BTreeMap<String, usize>, vhost: &str) -> Remark {
    let evidence = format!("exchange {exchange} is not there: {} would be refused", of_these(keys.values().sum()));
    let remedy = "make it, of the type that is wanted, with the bindings of the queues that are to take its events";
    Remark::danger(evidence, remedy).with([declared_exchange(exchange, "topic", vhost)])
}

fn no_queue(settings: &Settings, queue: &str, vhost: &str) -> Remark {
    let fate = lost(settings);
    let evidence = format!(
        "queue {queue} is not there, to which the default exchange gives what has its name as routing key: events would be {fate}"
    );
    Remark::danger(evidence, "make it").with([declared_queue(queue, vhost)])
}

fn not_told(what: &str, name: &str, error: Option<lapin::Error>) -> Remark {
    let why = error.map_or_else(String::new, |error| format!(" ({error})"));
    let remedy = format!(
        "let the user of `uri` see it; the relay itself needs to write to the exchange, and no more. Without that it is not known whether the {what} is there"
    );
    Remark::advice(format!("{what} {name} may not be asked for{why}"), remedy)
}

/// Of so many only the first are looked at.
pub(super) fn left_out(count: usize, what: &str) -> Option<Remark> {
    let left = count.saturating_sub(NAMES_MAX);
    (left > 0).then(|| Remark::ok(format!("{left} more {what}, to which these events lead, were not looked at")))
}

/// None of them, where the configuration alone says where to.
pub(super) fn of_these(count: usize) -> String {
    if count == 0 { "events".to_owned() } else { format!("{count} of these events") }
}

/// What becomes of a message that no queue takes.
pub(super) fn lost(settings: &Settings) -> &'static str {
    if settings.mandatory { "returned, and held or made dead letters" } else { "dropped silently (mandatory = false)" }
}

pub(super) fn vhost(settings: &Settings) -> String {
    settings.uri.reveal().parse::<lapin::uri::AMQPUri>().map_or_else(|_| "/".to_owned(), |uri| uri.vhost)
}

pub(super) fn declared_exchange(name: &str, kind: &str, vhost: &str) -> String {
    format!(
        "rabbitmqadmin --vhost={} declare exchange {} {} durable=true",
        word(vhost),
        word(&format!("name={name}")),
        word(&format!("type={kind}"))
    )
}

pub(super) fn declared_queue(name: &str, vhost: &str) -> String {
    let arguments = r#"arguments={"x-queue-type": "quorum"}"#;
    format!(
        "rabbitmqadmin --vhost={} declare queue {} durable=true {}",
        word(vhost),
        word(&format!("name={name}")),
        word(arguments)
    )
}

/// What stands behind the exchanges.
#[cfg(feature = "http")]
async fn behind(settings: &Settings, wanted: &Wanted, timeout: Duration) -> Vec<Remark> {
    if settings.management.is_none() {
        return vec![not_seen("name RabbitMQ's management API")];
    }
    super::management::look(settings, wanted, timeout).await
}

#[cfg(not(feature = "http"))]
async fn behind(_: &Settings, _: &Wanted, _: Duration) -> Vec<Remark> {
    vec![not_seen("take a build with the feature `http`, and name RabbitMQ's management API")]
}

fn not_seen(how: &str) -> Remark {
    Remark::ok(format!(
        "AMQP does not tell whether a queue takes these events, and what it does with them: to have that looked at, {how} \
         (management = \"http://127.0.0.1:15672\")"
    ))
}
