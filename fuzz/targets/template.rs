//! Templates: parsed or refused, rendered or refused; a text with doubled braces is itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::event::{Event, Position};
use outboxd::sink::template::Template;

fuzz_target!(|input: (&str, &str, Option<&[u8]>)| {
    let (text, headers, key) = input;
    let event = Event {
        position: Position(-1),
        id: text,
        key,
        stream_id: None,
        stream_type: Some(headers),
        version: None,
        kind: "T",
        payload: None,
        headers: Some(headers),
        time: None,
        time_micros: None,
        death: None,
    };
    let doubled = Template::parse(&text.replace('{', "{{").replace('}', "}}")).expect("doubled braces are text");
    assert_eq!(doubled.constant(), Some(text));
    match Template::parse(text) {
        Ok(template) => {
            let mut out = String::new();
            let rendered = template.render(&event, "shop", &mut out);
            if let Some(constant) = template.constant() {
                assert!(rendered.is_ok() && out == constant);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
