//! The integration tests: one binary, whose modules are promises.

mod demo;
mod sink_contract;
mod sink_speed;
mod support;
