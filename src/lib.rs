//! outboxd carries events out of an application's SQLite file to a broker or a file, and loses nothing.
//!
//! docs/ARCHITECTURE.md says what each room is for, which may use which, and where to start reading.

pub mod admin;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consumer;
pub mod controls;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod event;
pub mod maintenance;
pub mod projection;
pub mod remark;
pub mod retry;
pub mod secret;
pub mod setting;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod sqlite;
pub mod state;
pub mod store;
pub mod telemetry;
