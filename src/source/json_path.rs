//! A path into JSON text, and the slice of the text that it leads to, byte for byte.
//!
//! `$.order.lines[0]."unit price"`. Nothing is parsed twice and nothing is copied; depth costs nothing, because what is not on the
//! path is passed over without recursion.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A parsed path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JsonPath {
    text: String,
    steps: Vec<Step>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Member(String),
    Index(usize),
}

impl JsonPath {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a path: write one as in \"$.order.lines[0]\"");
        let mut rest = text.strip_prefix('$').ok_or_else(wrong)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let step;
            (step, rest) = if let Some(after) = rest.strip_prefix(".\"") {
                let end = after.find('"').ok_or_else(wrong)?;
                (Step::Member(after[..end].to_owned()), &after[end + 1..])
            } else if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                (Step::Member(after[..end].to_owned()), &after[end..])
            } else {
                let after = rest.strip_prefix('[').ok_or_else(wrong)?;
                let end = after.find(']').ok_or_else(wrong)?;
                (Step::Index(after[..end].parse().map_err(|_| wrong())?), &after[end + 1..])
            };
            if matches!(&step, Step::Member(name) if name.is_empty()) {
                return Err(wrong());
            }
            steps.push(step);
        }
        Ok(Self { text: text.to_owned(), steps })
    }

    /// The value at the path as it stands in the text; `None` where there is none. The whole text is checked to be JSON.
    pub fn find<'a>(&self, json: &'a [u8]) -> Result<Option<&'a str>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let found = Walk(&self.steps).deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(found.map(RawValue::get))
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

struct Walk<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(deserializer).map(Some);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = members.next_key_seed(NameIs(self.0))? {
            if is_it && found.is_none() {
                found = Some(members.next_value_seed(Walk(&self.0[1..]))?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found.flatten())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut index = 0;
        loop {
            if self.0[0] == Step::Index(index) {
                let Some(item) = items.next_element_seed(Walk(&self.0[1..]))? else { break };
                found = item;
            } else if items.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
            index += 1;
        }
        Ok(found)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a member's name is the one that the first step wants.
struct NameIs<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for NameIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(matches!(&self.0[0], Step::Member(wanted) if wanted == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, json: &str) -> Result<Option<String>, String> {
        let path = JsonPath::parse(path)?;
        path.find(json.as_bytes()).map(|found| found.map(str::to_owned)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_slice_is_untouched() {
        let json = r#" {"a" : { "b": [1, 2.50 , {"c d":"\u00e9"}] }, "a": 1, "big":12345678901234567890123} "#;
        for (path, found) in [
            ("$.a.b[1]", Some("2.50")),
            ("$.a.b[2]", Some(r#"{"c d":"\u00e9"}"#)),
            (r#"$.a.b[2]."c d""#, Some(r#""\u00e9""#)),
            ("$.big", Some("12345678901234567890123")),
            ("$.none", None),
            ("$.a[0]", None),
            ("$.a.b.c", None),
            ("$.a.b[7]", None),
            ("$.a.b[0].x", None),
        ] {
            assert_eq!(find(path, json), Ok(found.map(str::to_owned)), "{path}");
        }
        assert_eq!(find("$", "[1]"), Ok(Some("[1]".to_owned())));
    }

    #[test]
    fn what_is_no_json_is_said() {
        for json in ["", "{", r#"{"a":1} x"#, r#"{"b":nul,"a":1}"#, "plain"] {
            assert!(find("$.a", json).is_err(), "{json}");
        }
        assert!(JsonPath::parse("$.a").unwrap().find(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = format!(r#"{{"x":{}{},"a":7}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(find("$.a", &deep), Ok(Some("7".to_owned())));
        assert_eq!(find("$.x", &deep).unwrap().map(|x| x.len()), Some(20_000));
    }

    #[test]
    fn a_mistaken_path_is_refused() {
        for path in ["", "a", "$a", "$.", "$..a", "$[x]", "$[1", "$.\"a", "$[-1]"] {
            assert!(JsonPath::parse(path).is_err(), "{path:?} was taken");
        }
    }
}
