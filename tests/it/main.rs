//! The integration tests: one binary, whose modules are promises.

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "tests stand outside the rooms")]

mod a_bad_network_loses_nothing;
mod a_doctor_finds_faults;
mod a_doctor_looks_at_sinks;
mod a_forgetful_kafka_is_found_again;
mod an_upgrade_goes_on;
mod archives_pass_nobody;
mod audits;
mod backups_are_whole;
#[cfg(feature = "s3")]
mod backups_leave_the_host;
mod backups_of_large_and_busy_files;
mod bad_input_by_name;
mod barrier_comes_before_sending;
mod brokers_are_killed_under_load;
mod brokers_away_are_waited_for;
mod cli;
mod cli_control;
mod cli_reference;
mod clocks_are_set_at_will;
mod config;
mod config_errors;
mod config_examples;
mod config_properties;
mod config_reference;
mod config_secrets;
mod connections_are_protected;
#[cfg(feature = "controls")]
mod crash_ladder;
mod damage_is_found;
mod dead_letters_are_copied;
mod dead_letters_are_operated;
mod demo;
mod disks_fill_and_fail;
mod event_store;
mod eventsource_consumers_go_on;
mod eventsource_dead_letters_are_understood;
mod eventsource_outbox_marks_rows;
mod eventsource_tables_are_read;
mod example;
mod faults_of_kafka_show_and_heal;
mod faults_of_rabbitmq_show_and_heal;
mod files_are_measured;
mod files_are_rotated;
mod files_are_written_anew;
mod files_come_late_and_locks_pass;
mod fingerprint;
mod free_pages_go_back;
mod good_neighbour;
mod guilty_only_alone;
mod held_keys_slow_nobody;
mod hostile_rows;
mod hostile_sql;
mod house;
mod idle_writes_nothing;
#[cfg(feature = "controls")]
mod jobs_run_on_schedule;
mod kills_lose_nothing;
mod neighbours_share_a_transaction;
mod one_daemon_a_file;
mod only_the_guilty_are_refused;
mod ops;
mod outage_dead_letters_nothing;
mod poison_holds_its_key;
mod power_cuts_send_nothing_that_is_undone;
mod presets_carry_real_files;
#[cfg(feature = "controls")]
mod projection_ladder;
mod projections;
mod pruning_is_safe_below_the_safe_position;
mod rebuilds;
mod rebuilds_take_nothing_from_others;
#[path = "../referee/mod.rs"]
mod referee;
mod refusals;
mod relays_keep_to_what_was_said;
mod reloads_change_only_what_changed;
mod reloads_lose_nothing;
mod replays_and_copies_reach_the_brokers;
mod replays_stand_beside_the_live_flow;
#[cfg(feature = "controls")]
mod restores_in_place;
mod retention_takes_nothing_needed;
mod secrets_and_payloads_are_never_told;
mod sink_contract;
#[cfg(feature = "controls")]
mod snapshots_are_true;
#[cfg(feature = "controls")]
mod snapshots_bear_what_happens_meanwhile;
mod support;
mod tables_are_marked_by_hand;
mod tables_are_read_by_feed;
mod tables_are_read_by_hand;
mod the_admin_tells_the_truth;
mod the_application_hardly_notices;
#[cfg(feature = "controls")]
mod the_controls_fail_without_their_protection;
mod the_daemon_lives_and_ends_well;
mod the_long_run_is_flat;
mod two_daemons_move_nothing_twice;
mod wakes_on_a_commit;
mod what_a_sink_refuses_halts_and_heals;
mod what_an_application_does_to_its_file;
