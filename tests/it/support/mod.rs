//! What several promises stand on.

pub mod broker;
pub mod fake_sink;
pub mod flights;
pub mod rig;
