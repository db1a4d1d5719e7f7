//! The integration tests: one binary, whose modules are promises.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "tests stand outside the rooms")]

mod brokers_away_are_waited_for;
mod cli;
mod cli_control;
mod cli_reference;
mod config;
mod config_errors;
mod config_examples;
mod config_reference;
mod config_secrets;
mod connections_are_protected;
mod dead_letters_are_operated;
mod demo;
mod guilty_only_alone;
mod held_keys_slow_nobody;
mod house;
mod kills_lose_nothing;
mod only_the_guilty_are_refused;
mod outage_dead_letters_nothing;
mod poison_holds_its_key;
mod secrets_and_payloads_are_never_told;
mod sink_contract;
mod sink_speed;
mod support;
mod the_admin_tells_the_truth;
#[cfg(feature = "controls")]
mod the_controls_fail_without_their_protection;
mod the_daemon_lives_and_ends_well;
mod what_a_sink_refuses_halts_and_heals;
