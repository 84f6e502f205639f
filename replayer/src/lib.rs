//! The replayer: puts a chosen slice of the archive back onto a bus, in order, at a rate, resumable to the event.
//!
//! Promises: what `plan` says is what `run` does; nothing is lost, and what may come twice is stated and marked.
//! Never: change what was archived.

pub mod alive;
pub mod cat;
pub mod cli;
pub mod commands;
pub mod config;
pub mod cursor;
pub mod digest;
pub mod hold;
pub mod job;
pub mod markers;
pub mod merge;
pub mod metrics;
pub mod order;
pub mod pacer;
pub mod plan;
pub mod planner;
pub mod progress;
pub mod proof;
pub mod render;
pub mod replay;
pub mod report;
pub mod request;
pub mod select;
pub mod show;
pub mod sift;
pub mod stream;
pub mod target;
pub mod verify;
pub mod wiring;
