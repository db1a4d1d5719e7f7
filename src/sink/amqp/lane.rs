//! One channel and the task that publishes on it, a chunk at a time.
//!
//! lapin hands a returned message to whichever confirm completes next, so a confirm says nothing about its own message as long as
//! others are open. The protocol that is safe: publish a chunk with distinct message ids, await *every* confirm of it, gather
//! the ids of all returned messages whatever confirm they came with, and only then, with nothing else in flight on the
//! channel, decide. When the channel fails in the middle, even what was acknowledged is unknown: it may have been returned.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Error};
use tokio::sync::mpsc::UnboundedReceiver;

use super::fault::{self, Answer};
use super::link::Link;
use super::message::{Message, compose};
use crate::controls::{self, Protection};
use crate::event::{Reason, Rejection};
use crate::sink::{Fault, Flight, Outcome};

/// Some events of one flight, no id twice among them, for one channel.
pub(super) struct Chunk {
    pub flight: Arc<Flight>,
    pub slots: Vec<u32>,
}

impl Chunk {
    fn fill(&self, slot: usize, outcome: Outcome) {
        self.flight.fill(slot, outcome);
    }

    pub fn fill_all(&self, outcome: &Outcome) {
        self.slots.iter().for_each(|slot| self.fill(*slot as usize, outcome.clone()));
    }
}

pub(super) struct Lane {
    pub channel: Channel,
    pub link: Arc<Link>,
}

/// What came back for a chunk.
enum Answers {
    /// One for each message, in order.
    All(Vec<Result<Confirmation, Error>>),
    /// None in time, or the connection was cut by us.
    None(Fault),
}

impl Lane {
    pub async fn run(self, mut inbox: UnboundedReceiver<Chunk>) {
        while let Some(chunk) = inbox.recv().await {
            match self.link.broken() {
                Some(fault) => self.settle_all(&chunk, &Outcome::Unavailable(fault)),
                None => self.carry(&chunk).await,
            }
        }
    }

    async fn carry(&self, chunk: &Chunk) {
        let link = &*self.link;
        let mut messages = Vec::with_capacity(chunk.slots.len());
        for slot in chunk.slots.iter().map(|slot| *slot as usize) {
            let event = chunk.flight.event(slot);
            match compose(&link.settings, &link.dress, link.frame_bytes_max(), &event, chunk.flight.picks[slot], slot) {
                Ok(message) => messages.push(message),
                Err(rejection) => chunk.fill(slot, Outcome::Rejected(rejection)),
            }
        }
        if messages.is_empty() {
            return;
        }
        let was_alone = link.enter();
        let answers = self.publish(&mut messages).await;
        let was_alone = link.leave() && was_alone && messages.len() == 1;
        if link.is_closed() {
            return;
        }
        match answers {
            Answers::None(fault) => {
                link.break_with(fault.clone());
                self.settle_all(chunk, &Outcome::Unavailable(fault));
            }
            Answers::All(answers) => match answers.iter().find_map(|answer| answer.as_ref().err()) {
                Some(error) => self.settle_failure(chunk, &messages, error, was_alone),
                None => self.settle(chunk, &messages, answers.into_iter().flatten().collect()),
            },
        }
    }

    async fn publish(&self, messages: &mut [Message<'_>]) -> Answers {
        let options = BasicPublishOptions { mandatory: self.link.settings.mandatory, immediate: false };
        let publishing = async {
            // Polled together: the client's thread then writes them in one go, which costs a sixth of the CPU.
            let confirms = join_all(messages.iter_mut().map(|message| {
                let envelope = std::mem::take(&mut message.envelope);
                let (exchange, routing_key) = (envelope.exchange, envelope.routing_key);
                self.channel.basic_publish(exchange, routing_key, options, &message.body, envelope.properties)
            }))
            .await;
            let mut answers = Vec::with_capacity(confirms.len());
            for confirm in confirms {
                answers.push(match confirm {
                    Ok(confirm) => confirm.await,
                    Err(error) => Err(error),
                });
            }
            answers
        };
        tokio::select! {
            answers = publishing => Answers::All(answers),
            fault = self.link.out_of_patience() => Answers::None(fault),
        }
    }

    /// Every confirm came: the only state in which they say something.
    fn settle(&self, chunk: &Chunk, messages: &[Message<'_>], confirms: Vec<Confirmation>) {
        let is_nack: Vec<bool> = confirms.iter().map(|confirm| !confirm.is_ack()).collect();
        let name = |sent: &Message<'_>, returned: &BasicReturnMessage| {
            if controls::is_off(Protection::Returned) {
                return chunk.flight.event(sent.slot).id.to_owned();
            }
            returned.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let returned: HashMap<String, BasicReturnMessage> = confirms
            .into_iter()
            .zip(messages)
            .filter_map(|(confirm, sent)| Some((sent, confirm.take_message()?)))
            .map(|(sent, message)| (name(sent, &message), message))
            .collect();
        let is_any_nack = is_nack.contains(&true);
        let mut returns = 0;
        let mut outcomes = Vec::with_capacity(messages.len());
        for (message, is_nack) in messages.iter().zip(is_nack) {
            // Almost always there are none, and then nobody's id is looked at.
            let own = if returned.is_empty() { None } else { returned.get(chunk.flight.event(message.slot).id) };
            outcomes.push(match own {
                Some(message) => {
                    returns += 1;
                    self.returned(message)
                }
                None if is_nack => Outcome::Unavailable(nack()),
                None => Outcome::Delivered,
            });
        }
        if returns != returned.len() {
            // Cannot be, because a channel carries one chunk at a time; if it is, none of the confirms can be believed.
            let fault = Fault::unavailable("RabbitMQ returned a message that was not sent on this channel");
            self.link.break_with(fault.clone());
            return self.settle_all(chunk, &Outcome::Unavailable(fault));
        }
        if is_any_nack {
            // A quorum queue that was full goes on refusing a channel after its limit was lifted, until something is consumed; a new channel
            // is asked anew.
            self.link.break_with(nack());
        }
        messages.iter().zip(outcomes).for_each(|(message, outcome)| chunk.fill(message.slot, outcome));
    }

    fn returned(&self, message: &BasicReturnMessage) -> Outcome {
        let place = format!("exchange `{}` with routing key `{}`", message.exchange, message.routing_key);
        let why = format!("{} {}", message.reply_code, message.reply_text);
        let settings = &self.link.settings;
        if settings.exchange.constant().is_some() && settings.routing_key.constant().is_some() {
            return Outcome::Unavailable(Fault::fatal(format!("no queue is bound to {place}: {why}; bind one")));
        }
        Outcome::Rejected(Rejection::new(Reason::Unroutable, format!("no queue is bound to {place}: {why}")))
    }

    /// The channel or the connection failed under the chunk.
    fn settle_failure(&self, chunk: &Chunk, messages: &[Message<'_>], error: &Error, was_alone: bool) {
        let fault = fault::fault("publishing", error);
        let away = Fault::unavailable(fault.detail.clone());
        let is_exchange_constant = self.link.settings.exchange.constant().is_some();
        let named = fault::missing_exchange(error).filter(|_| !is_exchange_constant);
        let is_named = |message: &Message<'_>| {
            let mut exchange = String::new();
            let event = chunk.flight.event(message.slot);
            let rendered = self.link.settings.exchange.render(&event, &self.link.dress.source, &mut exchange);
            rendered.is_ok() && named.as_deref() == Some(&exchange)
        };
        let outcome = |message: &Message<'_>| match fault::answer(error) {
            Answer::NotFound if is_named(message) => {
                Outcome::Rejected(Rejection::new(Reason::Unroutable, away.detail.clone()))
            }
            // It stood in the way of others: the error names it, and not them.
            Answer::NotFound if named.is_some() => Outcome::Unavailable(away.clone()),
            Answer::Refused if was_alone => Outcome::Rejected(Rejection::new(Reason::Refused, away.detail.clone())),
            Answer::Refused => Outcome::Suspect(Rejection::new(Reason::Refused, away.detail.clone())),
            Answer::NotFound | Answer::Denied | Answer::Away => Outcome::Unavailable(fault.clone()),
        };
        let blames_message = named.is_some() || fault::answer(error) == Answer::Refused;
        self.link.break_with(if blames_message { away.clone() } else { fault.clone() });
        messages.iter().for_each(|message| chunk.fill(message.slot, outcome(message)));
    }

    fn settle_all(&self, chunk: &Chunk, outcome: &Outcome) {
        if !self.link.is_closed() {
            chunk.fill_all(outcome);
        }
    }
}

fn nack() -> Fault {
    Fault::unavailable("RabbitMQ did not take the message (nack): a full queue, or an error there")
}
