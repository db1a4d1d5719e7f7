//! A message's properties beside its headers: what is told of them, and what that gives for one event.

use lapin::BasicProperties;
use lapin::types::ShortString;

use super::message::short;
use crate::clock;
use crate::event::{Event, Reason, Rejection};
use crate::sink::format::{Dress, Format, looks_like_json};
use crate::sink::template::Template;

/// What is told. A template's value that an event does not have leaves its property as if nothing were told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// `None` = the event's type.
    pub kind: Option<Template>,
    pub correlation_id: Option<Template>,
    /// `None` = as the body looks.
    pub content_type: Option<Template>,
    pub timestamp: Timestamp,
    /// In whole milliseconds.
    pub expiration: Option<Template>,
    /// From 0 to 255.
    pub priority: Option<Template>,
}

/// What the property `timestamp` says, in whole seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timestamp {
    /// When the event happened, where that is known.
    #[default]
    Event,
    /// When it was sent, this time.
    Sent,
    None,
}

impl Timestamp {
    pub const ALL: [(&'static str, Timestamp); 3] =
        [("event", Timestamp::Event), ("sent", Timestamp::Sent), ("none", Timestamp::None)];

    fn seconds(self, event: &Event<'_>, format: Format) -> Option<u64> {
        match self {
            Timestamp::Event => format.seconds(event),
            Timestamp::Sent => u64::try_from(clock::now_micros() / 1_000_000).ok(),
            Timestamp::None => None,
        }
    }
}

impl Properties {
    /// Whether the text is an expiration.
    pub fn is_expiration(text: &str) -> bool {
        text.parse::<u32>().is_ok()
    }

    /// Sets them all, but for the headers.
    pub(super) fn put(
        &self,
        event: &Event<'_>,
        dress: &Dress,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<BasicProperties, Rejection> {
        let said = |template: &Option<Template>| -> Option<(String, String)> {
            let template = template.as_ref()?;
            let mut text = String::new();
            template.render(event, &dress.source, &mut text).ok().map(|()| (text, template.to_string()))
        };
        let word = |template: &Option<Template>, what: &str| -> Result<Option<ShortString>, Rejection> {
            said(template).map(|(text, _)| short(Reason::Undecodable, what, text)).transpose()
        };
        let guessed = || match dress.format == Format::EventsourcePy || looks_like_json(body) {
            true => "application/json".into(),
            false => "application/octet-stream".into(),
        };
        let content_type = word(&self.content_type, "content type")?.unwrap_or_else(guessed);
        let mut properties = properties.with_content_type(content_type);
        // That library leaves `type` unset and says the encoding.
        let own = dress.format == Format::EventsourcePy;
        match word(&self.kind, "type")? {
            Some(kind) => properties = properties.with_type(kind),
            None if own => {}
            None => properties = properties.with_type(short(Reason::Undecodable, "type", event.kind)?),
        }
        if own {
            properties = properties.with_content_encoding("utf-8".into());
        }
        if let Some(id) = word(&self.correlation_id, "correlation id")? {
            properties = properties.with_correlation_id(id);
        }
        if let Some(seconds) = self.timestamp.seconds(event, dress.format) {
            properties = properties.with_timestamp(seconds);
        }
        let wrong = |text: &str, template: &str, wanted: &str| {
            Rejection::new(Reason::Undecodable, format!("{text:?}, which `{template}` gives, is no {wanted}"))
        };
        if let Some((text, template)) = said(&self.expiration) {
            if !Self::is_expiration(&text) {
                return Err(wrong(&text, &template, "expiration in whole milliseconds"));
            }
            properties = properties.with_expiration(text.into());
        }
        if let Some((text, template)) = said(&self.priority) {
            let priority = text.parse().map_err(|_| wrong(&text, &template, "priority from 0 to 255"))?;
            properties = properties.with_priority(priority);
        }
        Ok(properties)
    }
}
