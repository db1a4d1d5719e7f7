//! What can be seen from outside: metrics (a closed set), logs, and how hostile text is shown.

pub mod logs;
pub mod metric;
pub mod visible;
