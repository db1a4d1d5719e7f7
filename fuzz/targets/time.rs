//! Times as applications write them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::clock;
use outboxd::event::{Event, Position};
use outboxd::sink::format::Format;

fuzz_target!(|text: &str| {
    if let Some(micros) = clock::parse_micros(text) {
        let iso = clock::iso(micros);
        // Beyond the years 0 to 9999 there is no such form.
        if !iso.ends_with("us") && !iso.starts_with('-') {
            assert_eq!(clock::parse_micros(&iso), Some(micros), "{text}: {iso}");
        }
    }
    let event = Event {
        position: Position(1),
        id: "id",
        key: None,
        stream_id: None,
        stream_type: None,
        version: None,
        kind: "T",
        payload: None,
        headers: None,
        time: Some(text),
        time_micros: None,
        death: None,
    };
    let _ = Format::Plain.seconds(&event);
});
