//! outboxd carries events out of an application's SQLite file to a broker or a file, and loses nothing.
//!
//! docs/ARCHITECTURE.md says what each room is for, which may use which, and where to start reading.

pub mod cli;
pub mod config;
pub mod consumer;
pub mod event;
pub mod secret;
pub mod sink;
pub mod source;
