//! What several promises stand on.

pub mod application;
pub mod broker;
pub mod by_hand;
pub mod daemon;
pub mod dice;
pub mod disk;
pub mod events;
pub mod eventsource;
pub mod fake_sink;
pub mod fleet;
pub mod flights;
pub mod forgetful;
pub mod manager;
pub mod process;
pub mod proof;
pub mod proxy;
pub mod readers;
pub mod relays;
pub mod rig;
#[cfg(feature = "s3")]
pub mod s3;
pub mod topology;
pub mod trial;
pub mod wait;

pub(crate) use crate::referee;
