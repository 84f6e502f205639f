//! What the benches share: paired rounds on the process's CPU clock, seeded rows, a broker in a process of its own, yardsticks.
//!
//! Promises: subject and yardstick see the same rows in the same memory, take turns in one process, and count CPU time of all
//! its threads; ratios are of pairs, absolutes are only shown. Never: a normal dependency of a product crate; a figure without
//! the command that made it.
#![allow(clippy::disallowed_methods, reason = "benches measure the real world and its clock")]

pub mod broker;
pub mod catalog;
pub mod inflow;
pub mod meter;
pub mod outflow;
pub mod pairs;
pub mod rival;
pub mod rows;
pub mod table;
pub mod yardstick;
