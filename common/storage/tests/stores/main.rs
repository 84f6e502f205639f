//! Stores behind the store client: one suite that each of them must pass, ways to reach them, and what they survive.
//!
//! Credentials come from the environment only, so a test that needs some starts this program once more with them in place
//! (`kit::again`). A store whose server cannot be had fails its test, unless `TAPEDECK_STORES_WITHOUT` names it.
#![allow(clippy::disallowed_methods, reason = "real servers need a real clock")]

mod access;
mod azure;
mod faults;
mod gcs;
mod kit;
mod s3;
mod suite;
mod tables;
