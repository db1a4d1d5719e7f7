//! The integration tests: one binary, whose modules are promises.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "tests stand outside the rooms")]

mod demo;
mod crash_ladder;
mod dead_letters_are_operated;
mod files_come_late_and_locks_pass;
mod fingerprint;
mod guilty_only_alone;
mod held_keys_slow_nobody;
mod one_daemon_a_file;
mod outage_dead_letters_nothing;
mod poison_holds_its_key;
mod pruning_is_safe_below_the_safe_position;
mod relays_keep_to_what_was_said;
mod cli;
mod cli_control;
mod cli_reference;
mod config;
mod config_errors;
mod config_examples;
mod config_reference;
mod config_secrets;
mod sink_contract;
mod sink_speed;
mod support;
