//! The world in memory, for tests: a clock moved by hand, a bus, a store that fails on demand, a log, and the suites
//! that say what any bus must keep.
//!
//! Promises: every implementer here keeps the doc comments of the seam that it stands for, no more and no less.
//! Never: a normal dependency of anything; a real clock, a socket, a file.

pub mod bus;
pub mod clock;
pub mod conformance;
pub mod event;
pub mod memory_log;
pub mod store;

pub use bus::{MemberId, MemoryBus, MemoryConsumer};
pub use clock::{GENESIS, ManualClock, settle};
pub use event::BusEvent;
pub use memory_log::MemoryLog;
pub use store::{Call, Distance, Fault, FaultyStore, When};
