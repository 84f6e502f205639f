//! What lies in the bucket: names, columns, segments, and the log that makes them true.
//!
//! Promises: nothing becomes visible but by a commit record; whatever is not exactly what the format says is refused by name.
//! Never: a bus, the system clock, or a cleverness about time.

pub mod archive;
pub mod gap_table;
pub mod ids;
pub mod layout;
pub mod log;
pub mod pins;
pub mod probe;
pub mod schema;
pub mod segment;
pub mod store;
