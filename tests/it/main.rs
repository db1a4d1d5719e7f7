//! One binary; its modules are promises.

mod demo;
