//! Header names and values, whatever an event brings along. Pure.

use std::borrow::Cow;

use reqwest::header::{HeaderName, HeaderValue};

/// Header names as HTTP has them: a hyphen where ours have `_`, which many servers drop. `None` for what is no name, and for
/// what belongs to the connection.
pub(super) fn field_name(name: &str) -> Option<HeaderName> {
    const OF_THE_CONNECTION: [&str; 14] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let name = name.replace('_', "-").to_ascii_lowercase();
    if OF_THE_CONNECTION.contains(&name.as_str()) {
        return None;
    }
    HeaderName::from_bytes(name.as_bytes()).ok()
}

/// What is not printable ASCII stands percent-encoded as UTF-8 (`%` too where anything does), so that no value can end its line.
pub(super) fn field_value(text: &str) -> HeaderValue {
    let is_plain = |byte: u8| (0x20..=0x7e).contains(&byte);
    let is_bare = |text: &str| text.bytes().all(is_plain) && text.trim_ascii().len() == text.len();
    let encoded: Cow<'_, str> = if is_bare(text) {
        Cow::Borrowed(text)
    } else {
        let encode = |byte: u8| match byte {
            b'%' | b' ' => format!("%{byte:02X}"),
            _ if is_plain(byte) => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        text.bytes().map(encode).collect::<String>().into()
    };
    HeaderValue::from_str(&encoded).expect("printable ASCII is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_ends_its_line() {
        for (text, value) in [
            ("a b%c", "a b%c"),
            ("a\r\nSet-Cookie: b", "a%0D%0ASet-Cookie:%20b"),
            ("größe", "gr%C3%B6%C3%9Fe"),
            (" edge", "%20edge"),
            ("100%\0", "100%25%00"),
        ] {
            assert_eq!(field_value(text), value, "{text:?}");
        }
    }

    #[test]
    fn names_are_those_of_http_and_none_of_the_connection() {
        assert_eq!(field_name("stream_id").unwrap(), "stream-id");
        for name in ["Content_Length", "HOST", "Authorization", "a b", "", "a\r\n"] {
            assert_eq!(field_name(name), None, "{name:?}");
        }
    }
}
