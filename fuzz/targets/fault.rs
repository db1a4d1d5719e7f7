//! What a broker says when it refuses.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(name) = outboxd::sink::amqp::exchange_named(text) {
        assert!(text.contains(name));
    }
});
