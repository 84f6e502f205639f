//! The table log: numbered records in the bucket, and nothing else, decide what is archived.
//!
//! [`record`] is the exact text of a record, [`rewrite`] of those that move or take out what is there, [`form`] the seam at which
//! records become bytes, [`state`] what a log of them means, [`protocol`] how one more is added (pure), [`driver`] the same
//! against a real store, [`checkpoint`] its shortcut, `snapshot` both as one, [`view`] what readers see, [`reach`] how far its
//! lanes have come, [`verify`] the proof that all of it holds.

pub mod checkpoint;
mod decode;
pub mod driver;
pub mod form;
pub mod genesis;
mod notes;
mod paths;
pub mod protocol;
pub mod reach;
pub mod record;
pub mod rewrite;
mod snapshot;
pub mod state;
mod tail;
pub mod verify;
pub mod view;
mod wire;

pub use driver::{LogObserver, TableLog, TableOptions};
pub use paths::LogPaths;
pub use tail::LogReader;

pub use verify::{VerifyOptions, verify_table};
pub use view::{History, Slice, TableView};
