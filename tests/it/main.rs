//! The integration tests: one binary, whose modules are promises.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "tests stand outside the rooms")]

mod demo;
mod house;
mod cli;
mod cli_control;
mod cli_reference;
mod config;
mod config_errors;
mod config_examples;
mod config_reference;
mod config_secrets;
mod sink_contract;
mod support;
