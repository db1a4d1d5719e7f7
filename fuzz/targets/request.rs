//! Requests on the control socket: what is understood says the same when it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outboxd::admin::request::Request;

fuzz_target!(|line: &[u8]| {
    let Ok(request) = serde_json::from_slice::<Request>(line) else { return };
    let _ = (request.consumer(), request.operation());
    let again = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request);
});
