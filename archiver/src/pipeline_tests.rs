//! Scenarios of the pipeline: real logs and segments, a bus, a store and a clock in memory (see `world`).
//!
//! Each test is a claim, told as a story. Whatever happens in one, the committed view at its end is held against all that
//! the bus ever showed: nothing is missing below the lanes' positions, nothing is there twice, nothing came from nowhere.

mod batches;
mod commits;
mod duties;
mod lanes;
mod maintenance;
mod pressure;
mod rebalances;
mod sharing;
mod storm;
mod watermarks;
mod world;

use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
