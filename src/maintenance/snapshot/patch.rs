//! JSON Merge Patch (RFC 7396), on text: what is not an object is carried over byte by byte, so that no number loses a digit.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Deeper is refused, not followed.
const DEPTH_MAX: usize = 100;

/// A JSON value, taken apart only where it is an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    Object(BTreeMap<String, Node>),
    Leaf(Box<str>),
}

impl Node {
    /// `{}`.
    pub fn empty() -> Self {
        Node::Object(BTreeMap::new())
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_at(text, 0)
    }

    fn parse_at(text: &str, depth: usize) -> Result<Self, String> {
        let text = text.trim_ascii();
        if depth > DEPTH_MAX {
            return Err(format!("objects are nested in more than {DEPTH_MAX} others"));
        }
        if !text.starts_with('{') {
            // What stands in an object was looked at with the object.
            if depth == 0 {
                serde_json::from_str::<&RawValue>(text).map_err(|error| error.to_string())?;
            }
            return Ok(Node::Leaf(text.into()));
        }
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let fields = fields.into_iter().map(|(name, value)| Ok((name, Self::parse_at(value.get(), depth + 1)?)));
        Ok(Node::Object(fields.collect::<Result<_, String>>()?))
    }

    /// Takes a field away.
    pub fn remove(&mut self, name: &str) {
        if let Node::Object(fields) = self {
            fields.remove(name);
        }
    }

    /// `MergePatch(self, patch)` of the RFC.
    pub fn merge(&mut self, patch: Node) {
        let Node::Object(changes) = patch else {
            *self = patch;
            return;
        };
        if !matches!(self, Node::Object(_)) {
            *self = Node::empty();
        }
        let Node::Object(fields) = self else { unreachable!("it was just made one") };
        for (name, change) in changes {
            match change {
                Node::Leaf(text) if &*text == "null" => {
                    fields.remove(&name);
                }
                Node::Leaf(_) => {
                    fields.insert(name, change);
                }
                Node::Object(_) => fields.entry(name).or_insert_with(Node::empty).merge(change),
            }
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        let fields = match self {
            Node::Leaf(leaf) => return text.push_str(leaf),
            Node::Object(fields) => fields,
        };
        text.push('{');
        for (n, (name, value)) in fields.iter().enumerate() {
            if n > 0 {
                text.push(',');
            }
            text.push_str(&serde_json::to_string(name).expect("text is always JSON"));
            text.push(':');
            value.write(text);
        }
        text.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(target: &str, patch: &str) -> String {
        let mut node = Node::parse(target).unwrap();
        node.merge(Node::parse(patch).unwrap());
        node.text()
    }

    /// Appendix A of RFC 7396, all of it.
    #[test]
    fn the_examples_of_the_rfc_come_out_as_it_says() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(target, patch), result, "{target} {patch}");
        }
    }

    #[test]
    fn no_number_loses_a_digit() {
        let patch =
            r#"{ "big" : 123456789012345678901234567890, "price":19.90, "t": {"e":1E400, "nested":[1.0, {"x":null}]}}"#;
        let expected =
            r#"{"big":123456789012345678901234567890,"price":19.90,"t":{"e":1E400,"nested":[1.0, {"x":null}]}}"#;
        assert_eq!(merged("{}", patch), expected);
    }

    #[test]
    fn what_is_no_json_is_told_and_what_is_too_deep_is_not_followed() {
        for wrong in ["", "{", "{\"a\":}", "nul", "{\"a\":1}x", "{\"a\":tru}"] {
            assert!(Node::parse(wrong).is_err(), "{wrong:?} was taken");
        }
        let deep = format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
        assert!(Node::parse(&deep).is_err());
        assert!(Node::parse(&format!("{}1{}", "[".repeat(100), "]".repeat(100))).is_ok());
    }
}
