//! RabbitMQ as a bus: reads a stream from explicit positions over AMQP 0-9-1.
//!
//! Promises: what the seams of `tapedeck_common::bus` promise, on a real RabbitMQ. The only positions that count are those that
//! the caller names in `resume`; the broker is never asked to remember one.
//! Never: storage, tables, files, the environment; the client's own recovery, which would go on behind our back.

pub mod address;
pub mod admin;
pub mod config;
pub mod consumer;
pub mod names;
pub mod table;

mod convert;
mod greeting;
mod keeper;
mod link;
mod sources;
mod streams;
mod trouble;
mod window;
mod wire;
