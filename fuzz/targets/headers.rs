//! An event's own headers: whatever stands there, nothing that routes or impersonates comes out, for any format and broker.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::event::{Event, Position};
use outboxd::sink::Pick;
use outboxd::sink::format::{Dress, Format, HeaderField, Wire};

fuzz_target!(|input: (&str, &[u8])| {
    let (headers, payload) = input;
    let event = Event {
        position: Position(1),
        id: "id",
        key: None,
        stream_id: None,
        stream_type: None,
        version: None,
        kind: "T",
        payload: Some(payload),
        headers: Some(headers),
        time: None,
        time_micros: None,
        death: None,
    };
    for format in [Format::Plain, Format::EventsourcePy] {
        for wire in [Wire::Kafka, Wire::Amqp] {
            let dress = Dress { format, wire, headers: vec![HeaderField::Event], source: "shop".into() };
            let _ = dress.each(&event, Pick::first(0), |name, value| {
                let value = value.to_string();
                assert!(!name.is_empty() && !name.contains('\0'));
                let is_ours = format == Format::EventsourcePy || matches!(name, "id" | "type" | "traceparent");
                let lower = name.to_lowercase();
                assert!(is_ours || !(lower.starts_with("x-") || lower == "cc" || lower == "bcc" || lower.starts_with("outboxd-")), "{name}={value}");
            });
        }
    }
    let _ = event.header("tenant");
    let _ = Format::EventsourcePy.seconds(&event);
});
