//! The Kafka room against a real Kafka: one broker for all tests, topics and groups of their own for each.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests meet the real clock and the real world"
)]

mod admin;
mod away;
mod conformance;
mod damage;
mod group;
mod located;
mod producing;
mod reading;
mod support;
mod topics;
