//! A real RabbitMQ for tests: the broker itself, its management, what loads it and what reads it back.
//!
//! Nothing here shares code with the products: the reader is the truth that they are judged by. The types of AMQP are lapin's own,
//! handed on from here, since products and their tests may not lean on lapin themselves.

pub mod admin;
mod ask;
mod client;
pub mod event;
pub mod load;
pub mod raw;
pub mod read;
pub mod server;

pub use admin::{Depth, QueueKind, RabbitAdmin};
pub use event::RabbitEvent;
pub use lapin::{BasicProperties, types};
pub use load::RabbitLoader;
pub use raw::{RawEvent, publish_raw};
pub use read::{Taken, read_queue, read_stream, read_stream_while};
pub use server::{RabbitOptions, RabbitServer, shared_rabbitmq};

/// False where the machine is known to have no RabbitMQ for us; then it was said where all is summed up.
pub fn has_rabbitmq() -> bool {
    let without = std::env::var("TAPEDECK_BUSES_WITHOUT").unwrap_or_default();
    let has = !without.split_whitespace().any(|name| name == "rabbitmq");
    if !has {
        println!("not tested: RabbitMQ, since TAPEDECK_BUSES_WITHOUT names it");
    }
    has
}
