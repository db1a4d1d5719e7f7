//! Templates: a topic, an exchange, a routing key or a message key, made from an event's fields.
//!
//! `"shop.{stream_type}"`; fields are `{id} {type} {key} {stream_id} {stream_type} {version} {source} {position}` and
//! `{header.NAME}`; `{{` and `}}` are braces.
//!
//! Invariants:
//! 1. Parsing and rendering never panic, whatever they are given (`nothing_panics`).
//! 2. What is rendered holds exactly the fields' values: a value that is missing or is not text is a [`Rejection`], never an
//!    empty string (`a_missing_value_is_named`).
//!
//! It does not know what a destination may look like: each sink checks that itself.

use std::fmt::{self, Write};

use crate::event::{Event, Reason, Rejection};

/// A parsed template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Literal(String),
    Field(Field),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Field {
    Id,
    Type,
    Key,
    StreamId,
    StreamType,
    Version,
    Source,
    Position,
    Header(String),
}

const FIELDS: [(&str, Field); 8] = [
    ("id", Field::Id),
    ("type", Field::Type),
    ("key", Field::Key),
    ("stream_id", Field::StreamId),
    ("stream_type", Field::StreamType),
    ("version", Field::Version),
    ("source", Field::Source),
    ("position", Field::Position),
];
const HEADER: &str = "header.";

/// What is wrong with a template's text; places are counted in characters from 1.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    #[error("unknown field {{{field}}} at character {at}; {}", hint(nearest))]
    UnknownField { field: String, at: usize, nearest: Option<&'static str> },
    #[error("`{{` at character {at} is never closed; write `{{{{` for a brace")]
    Unclosed { at: usize },
    #[error("`}}` at character {at} closes nothing; write `}}}}` for a brace")]
    Unopened { at: usize },
    #[error("{{header.}} at character {at} names no header")]
    HeaderWithoutName { at: usize },
}

fn hint(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("did you mean {{{name}}}?"),
        None => {
            let known: Vec<_> = FIELDS.iter().map(|f| format!("{{{}}}", f.0)).collect();
            format!("known are {} and {{header.NAME}}", known.join(" "))
        }
    }
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().enumerate().map(|(index, c)| (index + 1, c)).peekable();
        while let Some((at, c)) = chars.next() {
            let doubled = chars.peek().is_some_and(|next| next.1 == c);
            match c {
                '{' | '}' if doubled => {
                    chars.next();
                    literal.push(c);
                }
                '}' => return Err(ParseError::Unopened { at }),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            None | Some((_, '{')) => return Err(ParseError::Unclosed { at }),
                            Some((_, '}')) => break,
                            Some((_, c)) => name.push(c),
                        }
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Field(field(&name, at)?));
                }
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// What it renders to for every event, when it has no fields.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the template, filled from the event.
    pub fn render(&self, event: &Event<'_>, source: &str, out: &mut String) -> Result<(), Rejection> {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field(field) => self.append(field, event, source, out)?,
            }
        }
        Ok(())
    }

    fn append(&self, field: &Field, event: &Event<'_>, source: &str, out: &mut String) -> Result<(), Rejection> {
        let header;
        let text = match field {
            Field::Id => Some(event.id),
            Field::Type => Some(event.kind),
            Field::Key => event.key.and_then(|key| std::str::from_utf8(key).ok()),
            Field::StreamId => event.stream_id,
            Field::StreamType => event.stream_type,
            Field::Source => Some(source),
            Field::Header(name) => {
                header = event.header(name);
                header.as_deref()
            }
            Field::Position => {
                let _ = write!(out, "{}", event.position);
                return Ok(());
            }
            Field::Version => match event.version {
                Some(version) => {
                    let _ = write!(out, "{version}");
                    return Ok(());
                }
                None => None,
            },
        };
        match text {
            Some(text) => out.push_str(text),
            None => return Err(self.missing(field)),
        }
        Ok(())
    }

    fn missing(&self, field: &Field) -> Rejection {
        let detail = match field {
            Field::Header(name) => format!("the event has no header `{name}`, which `{}` needs", self.text),
            Field::Key => format!("the event has no key that is text, which `{}` needs", self.text),
            field => {
                let name = FIELDS.iter().find(|known| known.1 == *field).map_or("", |known| known.0);
                format!("the event has no {name}, which `{}` needs", self.text)
            }
        };
        Rejection::new(Reason::Unroutable, detail)
    }
}

fn field(name: &str, at: usize) -> Result<Field, ParseError> {
    if let Some(header) = name.strip_prefix(HEADER) {
        if header.is_empty() {
            return Err(ParseError::HeaderWithoutName { at });
        }
        return Ok(Field::Header(header.to_owned()));
    }
    if let Some(known) = FIELDS.iter().find(|known| known.0 == name) {
        return Ok(known.1.clone());
    }
    let nearest = FIELDS
        .iter()
        .map(|known| (strsim::jaro_winkler(known.0, name), known.0))
        .filter(|scored| scored.0 > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|scored| scored.1);
    Err(ParseError::UnknownField { field: name.to_owned(), at, nearest })
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Template {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Template::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::Position;

    fn event() -> Event<'static> {
        Event {
            position: Position(7),
            id: "e1",
            key: Some(b"k"),
            stream_id: Some("order-1"),
            stream_type: Some("Order"),
            version: Some(3),
            kind: "OrderPlaced",
            payload: None,
            headers: Some(r#"{"tenant":"blue"}"#),
            time: None,
            time_micros: None,
            death: None,
        }
    }

    fn render(text: &str, event: &Event<'_>) -> Result<String, Rejection> {
        let mut out = String::new();
        Template::parse(text).unwrap().render(event, "shop", &mut out).map(|()| out)
    }

    #[test]
    fn every_field_is_filled() {
        let all = "{id}/{type}/{key}/{stream_id}/{stream_type}/{version}/{source}/{position}/{header.tenant}/{{}}";
        assert_eq!(render(all, &event()).unwrap(), "e1/OrderPlaced/k/order-1/Order/3/shop/7/blue/{}");
    }

    #[test]
    fn a_constant_is_known() {
        assert_eq!(Template::parse("a.{{b}}").unwrap().constant(), Some("a.{b}"));
        assert_eq!(Template::parse("").unwrap().constant(), Some(""));
        assert_eq!(Template::parse("a.{type}").unwrap().constant(), None);
    }

    #[test]
    fn a_missing_value_is_named() {
        let event = Event { stream_type: None, version: None, key: Some(b"\xff"), ..event() };
        for (text, word) in
            [("{stream_type}", "stream_type"), ("{version}", "version"), ("{header.x}", "`x`"), ("{key}", "key")]
        {
            let rejection = render(text, &event).unwrap_err();
            assert_eq!(rejection.reason, Reason::Unroutable);
            assert!(rejection.detail.contains(word), "{}", rejection.detail);
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let unknown = Template::parse("ä.{streamtype}").unwrap_err();
        assert_eq!(
            unknown,
            ParseError::UnknownField { field: "streamtype".into(), at: 3, nearest: Some("stream_type") }
        );
        assert_eq!(unknown.to_string(), "unknown field {streamtype} at character 3; did you mean {stream_type}?");
        assert!(Template::parse("{zzzz}").unwrap_err().to_string().contains("known are {id} {type}"));
        assert_eq!(Template::parse("a{id").unwrap_err(), ParseError::Unclosed { at: 2 });
        assert_eq!(Template::parse("a}").unwrap_err(), ParseError::Unopened { at: 2 });
        assert_eq!(Template::parse("{header.}").unwrap_err(), ParseError::HeaderWithoutName { at: 1 });
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[{}a-z_.ä\\x00]{0,40}", key in proptest::collection::vec(any::<u8>(), 0..8)) {
            if let Ok(template) = Template::parse(&text) {
                let event = Event { key: Some(&key), headers: Some("not json"), ..event() };
                let mut out = String::new();
                let rendered = template.render(&event, "shop", &mut out).is_ok();
                if let Some(constant) = template.constant() {
                    prop_assert!(rendered);
                    prop_assert_eq!(constant, out);
                }
            }
        }

        #[test]
        fn any_text_can_be_written_with_doubled_braces(text in "\\PC{0,40}") {
            let doubled = text.replace('{', "{{").replace('}', "}}");
            let template = Template::parse(&doubled).unwrap();
            prop_assert_eq!(template.constant(), Some(text.as_str()));
        }
    }
}
