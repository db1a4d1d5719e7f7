//! The vocabulary of settings, for every room that has some: what a key is and what may stand in it, what can be wrong and where.
//!
//! A room that is configured declares its keys with [`key::section!`], which gives the struct that serde fills and the text of the reference,
//! and checks what was said with a [`Checker`]. Where the values come from (files, variables) is `config`'s.

pub mod checker;
pub mod key;
pub mod problem;
pub mod secret_file;
pub mod value;

pub use checker::{Bytes, Checker, Nanos, is_loopback};
