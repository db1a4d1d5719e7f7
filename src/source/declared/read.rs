//! Reading of what is declared from TOML: each mistake is told with what could stand there.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Form, Literal, Mark, Pending, Piece, Take, Test, Word};
use crate::source::decode::FORMS;
use crate::source::json_path::JsonPath;

const WORDS: [(&str, Word); 8] = [
    ("{now}", Word::Now),
    ("{now_space}", Word::NowSpace),
    ("{now_s}", Word::NowSeconds),
    ("{now_ms}", Word::NowMillis),
    ("{now_us}", Word::NowMicros),
    ("{error}", Word::Error),
    ("{+1}", Word::Plus),
    ("{-1}", Word::Minus),
];

const COMPARISONS: [(&str, &str); 5] =
    [("above", ">"), ("at_least", ">="), ("below", "<"), ("at_most", "<="), ("not", "<>")];

impl Take {
    /// `"column"`, or `"{a}:{b}"`.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the name of a column is wanted here".to_owned());
        }
        if !text.contains(['{', '}']) {
            return Ok(Take::column(text));
        }
        let wrong =
            || format!("{text:?} is not a template: write columns in braces, as in \"{{stream_id}}:{{version}}\"");
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            if open > 0 {
                pieces.push(Piece::Literal(rest[..open].to_owned()));
            }
            let after = rest[open..].strip_prefix('{').ok_or_else(wrong)?;
            let close = after.find(['{', '}']).filter(|close| *close > 0 && after[*close..].starts_with('}'));
            let close = close.ok_or_else(wrong)?;
            pieces.push(Piece::Column(after[..close].to_owned()));
            rest = &after[close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        Ok(Take::Template(pieces))
    }
}

impl<'de> Deserialize<'de> for Take {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TakeVisitor)
    }
}

struct TakeVisitor;

impl<'de> Visitor<'de> for TakeVisitor {
    type Value = Take;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column, as in \"stream_id\", or a table such as { column = \"data\", path = \"$.type\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Take, E> {
        Take::parse(text).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Take, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = items.next_element::<String>()? {
            names.push(name);
        }
        if names.is_empty() {
            return Err(de::Error::custom("this list names no column"));
        }
        Ok(Take::First(names))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Take, A::Error> {
        let (mut column, mut path, mut form, mut constant, mut fields) = (None, None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "column" => column = Some(map.next_value::<String>()?),
                "path" => path = Some(JsonPath::parse(&map.next_value::<String>()?).map_err(de::Error::custom)?),
                "as" => form = Some(form_of(&map.next_value::<String>()?).map_err(de::Error::custom)?),
                "constant" => constant = Some(map.next_value::<String>()?),
                "fields" => fields = Some(map.next_value::<Fields>()?.0),
                other => {
                    let what = format!("`{other}` is not known here: known are column, path, as, constant and fields");
                    return Err(de::Error::custom(what));
                }
            }
        }
        match (column, constant, fields) {
            (Some(name), None, None) => Ok(Take::Column { name, path, form }),
            (None, Some(text), None) if path.is_none() && form.is_none() => Ok(Take::Constant(text)),
            (None, None, Some(fields)) if path.is_none() && form.is_none() => Ok(Take::Fields(fields)),
            _ => Err(de::Error::custom(
                "say one of `column` (with `path` and `as` where they are needed), `constant` or `fields`",
            )),
        }
    }
}

fn form_of(word: &str) -> Result<Form, String> {
    let known = FORMS.into_iter().find(|(name, _)| *name == word).map(|(_, form)| form);
    let names = || FORMS.map(|(name, _)| name).join(", ");
    known.ok_or_else(|| format!("{word:?} is not a form: write one of {}", names()))
}

/// A table in its order, read pair by pair.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                if pairs.is_empty() {
                    return Err(de::Error::custom("this table is empty"));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_any(Any(std::marker::PhantomData))
    }
}

type Fields = Pairs<Take>;

impl<'de> Deserialize<'de> for Literal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Literal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true or false, or a word such as \"{now}\"")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Literal, E> {
                Ok(Literal::Integer(value.into()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Literal, E> {
                Ok(Literal::Integer(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Literal, E> {
                i64::try_from(value).map(Literal::Integer).map_err(|_| E::custom("this number is too large"))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Literal, E> {
                Ok(Literal::Real(value))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Literal, E> {
                if text == "{null}" {
                    return Ok(Literal::Null);
                }
                match WORDS.into_iter().find(|(word, _)| *word == text) {
                    Some((_, word)) => Ok(Literal::Word(word)),
                    None if text.starts_with('{') && text.ends_with('}') => {
                        let known = WORDS.map(|(word, _)| word).join(" ");
                        Err(E::custom(format!("{text:?} is not a word known here: known are {known} {{null}}")))
                    }
                    None => Ok(Literal::Text(text.to_owned())),
                }
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Test {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Test;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, a list of values, or a test such as { null = true } or { above = 0 }")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Test, E> {
                Ok(Test::In(vec![Literal::Integer(value.into())]))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Test, E> {
                Ok(Test::In(vec![Literal::Integer(value)]))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Test, E> {
                i64::try_from(value)
                    .map(|value| Test::In(vec![Literal::Integer(value)]))
                    .map_err(|_| E::custom("this number is too large"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Test, E> {
                Ok(Test::In(vec![Literal::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Test, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = items.next_element()? {
                    values.push(value);
                }
                if values.is_empty() {
                    return Err(de::Error::custom("this list is empty: no row would be pending"));
                }
                Ok(Test::In(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Test, A::Error> {
                let Some(word) = map.next_key::<String>()? else {
                    return Err(de::Error::custom("this test is empty"));
                };
                let test = match COMPARISONS.into_iter().find(|(name, _)| *name == word) {
                    Some((_, operator)) => Test::Compare(operator, map.next_value()?),
                    None if word == "null" => Test::Null(map.next_value()?),
                    None => {
                        let known = COMPARISONS.map(|(name, _)| name).join(", ");
                        return Err(de::Error::custom(format!("`{word}` is not a test: known are null, {known}")));
                    }
                };
                match map.next_key::<String>()? {
                    None => Ok(test),
                    Some(_) => Err(de::Error::custom("one test a column: use `pending_sql` for more")),
                }
            }
        }

        deserializer.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Pending {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Pairs::deserialize(deserializer).map(|pairs| Pending::All(pairs.0))
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Mark;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"delete\", { set = { status = \"sent\" } } or { archive = \"table\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mark, E> {
                match text {
                    "delete" => Ok(Mark::Delete),
                    _ => Err(E::custom(format!(
                        "{text:?} is not known here: write \"delete\", {{ set = {{ status = \"sent\" }} }} or {{ archive = \"table\" }}"
                    ))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Mark, A::Error> {
                let mark = match map.next_key::<String>()?.as_deref() {
                    Some("set") => Mark::Set(map.next_value::<Pairs<Literal>>()?.0),
                    Some("archive") => Mark::Archive(map.next_value()?),
                    _ => return Err(de::Error::custom("say `set` or `archive`, or write \"delete\"")),
                };
                match map.next_key::<String>()? {
                    None => Ok(mark),
                    Some(_) => Err(de::Error::custom("say one of `set` and `archive`")),
                }
            }
        }

        deserializer.deserialize_any(Any)
    }
}
