//! RabbitMQ as a bus, over AMQP 0-9-1: reads a stream from explicit positions, and a queue at least once.
//!
//! Promises: what the seams of `tapedeck_common::bus` promise, on a real RabbitMQ. The only positions of a stream that count are
//! those that the caller names in `resume`; of a queue nothing is acknowledged that is not in the log.
//! Never: storage, tables, files, the environment; the client's own recovery, which would go on behind our back.

pub mod address;
pub mod admin;
pub mod config;
pub mod consumer;
pub mod names;
pub mod table;

mod convert;
mod greeting;
mod intake;
mod keeper;
mod link;
mod queue;
mod sources;
mod streams;
mod tags;
mod trouble;
mod window;
mod wire;
