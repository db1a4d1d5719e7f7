//! What several promises stand on.

pub mod application;
pub mod broker;
pub mod dice;
pub mod fake_sink;
pub mod flights;
pub mod process;
pub mod readers;
pub mod referee;
pub mod relays;
pub mod rig;
pub mod topology;
pub mod wait;
