//! Segments: the immutable Parquet objects that hold events of one topic and hour.
//!
//! Promises: what was written reads back byte for byte; every byte that leaves is covered by the segment's BLAKE3.
//! Never: decides when a segment ends or becomes true; that is the archiver's batch and the table's log.

mod batch;
mod encode;
mod error;
mod fetch;
mod merge;
pub mod parts;
mod reader;
mod sink;
mod stats;
mod upload;
mod writer;

pub use batch::{EventBatch, EventRow};
pub use encode::codec::Codecs;
pub use error::SegmentError;
pub use fetch::verify_object;
pub use merge::{Merger, RowDigest};
pub use reader::{GroupBatches, Projection, Scan, SegmentReader, SegmentScan};
pub use sink::PartPool;
pub use upload::{SegmentStore, SegmentUpload};
pub use writer::{FinishedSegment, SegmentWriter, WriterOptions};
