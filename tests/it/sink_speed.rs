//! How fast the sinks are beside the bare clients, in the same process and run. `cargo test -- --ignored sink_speed --nocapture`.
