//! The shell of a process: configuration, logs, signals, the admin endpoint, the system clock and exit codes.
//!
//! Promises: what operators meet is the same in every program of the house.
//! Never: knows what the program does; never a store or a bus.

pub mod admin;
pub mod config;
pub mod exit;
pub mod memory;
pub mod run;
pub mod shutdown;
pub mod system_clock;
pub mod telemetry;
pub mod throttle;
pub mod units;

pub use exit::{Exit, Failure, ending};
pub use shutdown::Shutdown;
pub use system_clock::SystemClock;
pub use throttle::Throttle;
