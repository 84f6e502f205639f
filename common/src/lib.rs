//! The words of the house: what both wings and every room below them mean by an event, a lane, a span, a record.
//!
//! Promises: plain data and the traits of the seams, nothing that acts. Never: spawn, sleep, read the environment,
//! a clock, a file or a socket; never the name of a bus, a file format or a store.

pub mod backoff;
pub mod budget;
pub mod bus;
pub mod clock;
pub mod columns;
pub mod commit;
pub mod error;
pub mod event;
pub mod figures;
pub mod limits;
pub mod position;
pub mod time;

pub use budget::{ByteBudget, BytePermit};
pub use clock::Clock;
pub use error::ErrorKind;
pub use position::{LaneId, Position, Span, SpanSet};
pub use time::{Timestamp, Window};
