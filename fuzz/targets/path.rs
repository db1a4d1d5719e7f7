//! Paths into JSON: what is found is a piece of the text, and JSON itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::source::json_path::JsonPath;
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, json) = input;
    let Ok(path) = JsonPath::parse(text) else { return };
    assert_eq!(path.to_string(), text);
    let Ok(found) = path.find(json) else { return };
    let Some(slice) = found else { return };
    serde_json::from_str::<IgnoredAny>(slice).expect("a piece of JSON");
    assert!(json.as_ptr_range().contains(&slice.as_ptr()), "a piece of the text itself");
    // A whole parser gives up on deep text.
    let Ok(value) = serde_json::from_str::<Value>(slice) else { return };
    if text == "$" {
        assert_eq!(serde_json::from_slice::<Value>(json).unwrap(), value);
    }
});
