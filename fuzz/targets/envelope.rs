//! Envelopes: any bytes are read or refused, and what was read comes back from what is written of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::sink::format::envelope;

fuzz_target!(|line: &[u8]| {
    let Ok(kept) = envelope::read(line) else { return };
    let mut exact = Vec::new();
    envelope::keep(&kept.columns(), &kept.source, &mut exact);
    assert_eq!(envelope::read(&exact).expect("what was kept can be read"), kept);
    let mut line = Vec::new();
    envelope::write(&kept.columns(), &kept.source, &mut line);
    assert!(!line.contains(&b'\n') && envelope::read(&line).is_ok());
});
