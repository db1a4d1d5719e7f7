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
mod barrier_comes_before_sending;
mod eventsource_consumers_go_on;
mod eventsource_outbox_marks_rows;
mod eventsource_tables_are_read;
mod good_neighbour;
mod idle_writes_nothing;
mod sink_contract;
mod sink_speed;
mod support;
mod wakes_on_a_commit;
