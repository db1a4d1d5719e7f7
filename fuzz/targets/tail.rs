//! The end of a file sink's file: what is called good ends with a line, and stays good when it is looked at again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::sink::file::good_length;
use outboxd::sink::format::Format;

fuzz_target!(|input: (bool, bool, &[u8])| {
    let (is_whole, is_envelope, tail) = input;
    let format = if is_envelope { Format::Envelope } else { Format::Plain };
    let Some(good) = good_length(tail, is_whole, format) else { return };
    assert!(good == 0 || tail[good - 1] == b'\n');
    assert_eq!(good_length(&tail[..good], is_whole, format), Some(good).filter(|good| *good > 0 || is_whole));
});
