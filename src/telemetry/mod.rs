//! What can be seen from outside: metrics (a closed set), logs.

pub mod logs;
pub mod metric;
