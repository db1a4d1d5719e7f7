//! Query strings of the admin address.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|query: &str| outboxd::admin::http::read_query(query));
