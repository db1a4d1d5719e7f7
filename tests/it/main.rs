//! The integration tests: one binary, whose modules are promises.

mod config;
mod config_errors;
mod config_examples;
mod config_reference;
mod config_secrets;
mod sink_contract;
mod sink_speed;
mod support;
