//! The configuration: read, checked, resolved.
