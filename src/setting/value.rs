//! Values with units, secrets and lists, as they stand in the configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::key::{Keyed, Kind};
use crate::secret::Secret;

/// `"30s"`, `"5ms"`, `"1h30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// `"64MiB"`, `"500B"`: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A path, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(pub String);

/// Text, or a whole number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word(pub String);

/// A list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

/// A table of the user's own keys; nested tables are flattened to dotted keys.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flat(pub BTreeMap<String, String>);

/// SQL by event type: one statement, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statements(pub BTreeMap<String, Vec<String>>);

const DURATION_UNITS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl Span {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a duration: write a number and a unit, as in \"30s\", \"5ms\" or \"2h\"");
        let mut rest = text.trim();
        let mut nanos = 0_u64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, unit, after) = quantity(rest).ok_or_else(wrong)?;
            let (_, factor) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            nanos = number.checked_mul(factor).and_then(|part| nanos.checked_add(part)).ok_or_else(wrong)?;
            rest = after.trim_start();
        }
        Ok(Self(Duration::from_nanos(nanos)))
    }
}

/// In the largest unit that says it exactly.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let exact = DURATION_UNITS.into_iter().rev().find(|(_, factor)| nanos.is_multiple_of(u128::from(*factor)));
        match exact {
            Some((unit, factor)) if nanos > 0 => write!(f, "{}{unit}", nanos / u128::from(factor)),
            _ => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl Size {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a size: write a number and a unit, as in \"64MiB\", \"500kB\" or \"100B\"");
        let (number, unit, after) = quantity(text.trim()).ok_or_else(wrong)?;
        let (_, factor) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let bytes = number.checked_mul(factor).filter(|_| after.is_empty()).ok_or_else(wrong)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS.into_iter().rev().filter(|(unit, _)| unit.contains('i'));
        match binary.into_iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Splits `30s rest` into 30, `s` and ` rest`.
fn quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    Some((number, &rest[..letters], &rest[letters..]))
}

/// The values may hold secrets (`ssl.key.password`), so only the keys are shown.
impl fmt::Debug for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Keyed for Span {
    const KIND: Kind = Kind::Duration;
}

impl Keyed for Size {
    const KIND: Kind = Kind::Size;
}

impl Keyed for Secret {
    const KIND: Kind = Kind::Secret;
}

impl Keyed for FilePath {
    const KIND: Kind = Kind::Path;
}

impl Keyed for Word {
    const KIND: Kind = Kind::Word;
}

impl Keyed for List {
    const KIND: Kind = Kind::List;
}

impl Keyed for Statements {
    const KIND: Kind = Kind::Named;
}

impl<'de> Deserialize<'de> for Statements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "SQL in quotes, or a list of it, for each event type")]
        enum Said {
            One(String),
            Several(Vec<String>),
        }
        let said = BTreeMap::<String, Said>::deserialize(deserializer)?;
        let list = |said| match said {
            Said::One(sql) => vec![sql],
            Said::Several(list) => list,
        };
        Ok(Self(said.into_iter().map(|(kind, said)| (kind, list(said))).collect()))
    }
}

impl Keyed for Flat {
    const KIND: Kind = Kind::Table;
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("a duration in quotes, as in \"30s\"", Span::parse))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("a size in quotes, as in \"64MiB\"", Size::parse))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("text in quotes", |text| Ok(Secret::new(text))))
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("a path in quotes", |text| Ok(FilePath(text.to_owned()))))
    }
}

/// Takes text only: what it expects, and how it is parsed.
struct Text<T>(&'static str, fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes or a whole number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                Ok(Word(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> Visitor<'de> for Items {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, as in [\"a\", \"b\"]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element::<String>()? {
                    list.push(item);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_any(Items)
    }
}

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut flat = Flat::default();
        match Node::deserialize(deserializer)? {
            Node::Table(table) => flatten("", table, &mut flat.0).map_err(de::Error::custom)?,
            Node::Leaf(_) => {
                return Err(de::Error::custom("a table of properties is wanted, as in { \"linger.ms\" = 5 }"));
            }
        }
        Ok(flat)
    }
}

enum Node {
    Leaf(String),
    Table(BTreeMap<String, Node>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true or false, or a table of these")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Leaf(text.to_owned()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Leaf(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Leaf(value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Leaf(value.to_string()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Leaf(value.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((key, node)) = map.next_entry()? {
                    table.insert(key, node);
                }
                Ok(Node::Table(table))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

fn flatten(prefix: &str, table: BTreeMap<String, Node>, into: &mut BTreeMap<String, String>) -> Result<(), String> {
    for (key, node) in table {
        let dotted = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match node {
            Node::Leaf(text) => {
                if into.insert(dotted.clone(), text).is_some() {
                    return Err(format!("`{dotted}` is said twice: once dotted, once as a nested table"));
                }
            }
            Node::Table(inner) => flatten(&dotted, inner, into)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_their_unit() {
        assert_eq!(Span::parse("30s"), Ok(Span(Duration::from_secs(30))));
        assert_eq!(Span::parse("5ms"), Ok(Span(Duration::from_millis(5))));
        assert_eq!(Span::parse(" 1h 30m "), Ok(Span(Duration::from_secs(5_400))));
        assert_eq!(Span::parse("250us"), Ok(Span(Duration::from_micros(250))));
        for wrong in ["", "30", "s", "30 parsecs", "-1s", "1.5s", "99999999999999d"] {
            assert!(Span::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn sizes_carry_their_unit() {
        assert_eq!(Size::parse("64MiB"), Ok(Size(64 << 20)));
        assert_eq!(Size::parse("500 kB"), Ok(Size(500_000)));
        for wrong in ["", "64", "MiB", "64 MiBs", "1MiB2", "99999999999TiB"] {
            assert!(Size::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in ["30s", "5ms", "2h", "90s", "1d", "7us", "0s"] {
            let span = Span::parse(text).unwrap();
            assert_eq!(Span::parse(&span.to_string()), Ok(span));
        }
        for text in ["64MiB", "1000B", "3GiB", "0B"] {
            let size = Size::parse(text).unwrap();
            assert_eq!(Size::parse(&size.to_string()), Ok(size));
        }
    }
}
