//! Everything that a test or a bench needs from the outside world: real servers, real processes, seeded events, a judge.
//!
//! It promises that nothing outlives the test: every server and every process hangs on a [`leash`], even when the test itself
//! is killed. It promises that events depend on their seed alone. A server that can't be had is an error, never a skip.
//! It must never become a normal dependency of a product crate.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests meet the real clock and the real world here, so that nobody else has to"
)]

pub mod admin;
pub mod azurite_server;
pub mod events;
pub mod fault_proxy;
pub mod kafka_server;
pub mod leash;
pub mod memory_limit;
pub mod mock_brokers;
pub mod oracle;
pub mod plain_s3;
pub mod ports;
pub mod produce;
pub mod program;
pub mod rabbitmq;
pub mod read;
pub mod rgw_server;
pub mod s3_server;
mod scripted;
pub mod slow_link;
mod wait;
pub mod wall_clock;
pub mod witness;

pub use admin::Admin;
pub use azurite_server::AzuriteServer;
pub use events::{Event, Generator, Workload};
pub use fault_proxy::{FaultProxy, HttpFault, Reply, Seen, TestCa, Which};
pub use kafka_server::{KafkaOptions, KafkaServer, shared_kafka};
pub use memory_limit::MemoryLimit;
pub use mock_brokers::MockBrokers;
pub use oracle::{Report, Truth};
pub use plain_s3::{Manners, PlainS3};
pub use produce::{Loader, Transactions};
pub use program::{Ended, Program, Running};
pub use rabbitmq::{RabbitAdmin, RabbitEvent, RabbitLoader, RabbitOptions, RabbitServer, has_rabbitmq, shared_rabbitmq};
pub use read::{Isolation, Received, read_all, read_each};
pub use rgw_server::{RgwKind, RgwServer};
pub use s3_server::{S3Server, shared_s3};
pub use slow_link::{SlowLink, Weather};
pub use wait::wait_until;
pub use wall_clock::WallClock;
pub use witness::Witness;
