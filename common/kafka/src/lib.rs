//! Kafka as a bus: reads topics by a consumer group with explicit positions, publishes, and answers what tools ask of a cluster.
//!
//! Promises: what the seams of `tapedeck_common::bus` promise, on a real Kafka. Offsets in the broker are a courtesy; the only
//! positions that count are those that the caller names in `resume`.
//! Never: storage, tables, files; `unsafe` outside `ffi.rs`.

pub mod admin;
pub mod config;
pub mod consumer;
pub mod counters;
pub mod producer;

mod desk;
mod ffi;
mod group;
mod lanes;
mod park;
mod poll_thread;
mod reading;
mod rebalance;
