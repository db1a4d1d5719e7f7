//! The integration tests: one binary, whose modules are promises.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "tests stand outside the rooms")]

mod an_upgrade_goes_on;
mod barrier_comes_before_sending;
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
#[cfg(feature = "controls")]
mod crash_ladder;
mod dead_letters_are_operated;
mod demo;
mod eventsource_consumers_go_on;
mod eventsource_outbox_marks_rows;
mod eventsource_tables_are_read;
mod files_come_late_and_locks_pass;
mod fingerprint;
mod good_neighbour;
mod guilty_only_alone;
mod held_keys_slow_nobody;
mod house;
mod idle_writes_nothing;
mod kills_lose_nothing;
mod one_daemon_a_file;
mod only_the_guilty_are_refused;
mod outage_dead_letters_nothing;
mod poison_holds_its_key;
mod presets_carry_real_files;
mod pruning_is_safe_below_the_safe_position;
mod relays_keep_to_what_was_said;
mod secrets_and_payloads_are_never_told;
mod sink_contract;
mod support;
mod tables_are_marked_by_hand;
mod tables_are_read_by_hand;
mod the_admin_tells_the_truth;
#[cfg(feature = "controls")]
mod the_controls_fail_without_their_protection;
mod the_daemon_lives_and_ends_well;
mod the_long_run_is_flat;
mod wakes_on_a_commit;
mod what_a_sink_refuses_halts_and_heals;
