//! The integration tests: one binary, whose modules are promises.

mod sink_contract;
mod sink_speed;
mod support;
