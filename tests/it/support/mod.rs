//! What several promises stand on.

pub mod application;
pub mod broker;
pub mod daemon;
pub mod fake_sink;
pub mod flights;
pub mod relays;
