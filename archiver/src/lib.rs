//! The archiver: bus to bucket.
//!
//! Read `pipeline` first: one loop owns a source's state. `batcher` and `seal` decide, as plain functions; `table` and
//! `upload` carry out; `wiring` builds; `commands` is what the command line can do.

pub mod against_bus;
pub mod batcher;
pub mod cli;
pub mod commands;
pub mod config;
pub mod maintain;
pub mod metrics;
pub mod pipeline;
#[cfg(test)]
mod pipeline_tests;
pub mod seal;
pub mod status;
pub mod supervise;
pub mod table;
pub mod tables;
pub mod upload;
pub mod watermark;
pub mod wiring;
