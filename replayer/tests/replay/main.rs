//! The replayer against a real archive in memory and a broker that a seed drives: what is promised about order, pace,
//! resuming and ownership. Where the clock jumps everything runs on one thread, so that a run depends on its seed alone.

#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

mod kit;
mod ownership;
mod planning;
mod reading;
mod resuming;
mod sending;
