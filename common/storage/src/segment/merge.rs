//! Merges segments of one hour, topic and source into one, row for row.
//!
//! Promises: the same rows, with the times at which they were archived; rows of a lane keep the order in which they are given;
//! memory stays at one row group and what the writer holds. The digest of what went in proves what comes out.
//! Never: reads or stores anything itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::Header;
use tapedeck_common::{Timestamp, Window};

use super::batch::{EventBatch, EventRow};
use super::writer::{FinishedSegment, SegmentWriter, WriterOptions};

/// A sum over rows that does not depend on their order: BLAKE3 of each row, its halves added up.
/// Two multisets of rows with one digest are the same multiset, for all that can be built by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowDigest {
    rows: u64,
    sums: (u128, u128),
}

impl RowDigest {
    /// Adds all rows of a batch that was read as [`super::Projection::Rows`].
    pub fn add(&mut self, batch: &EventBatch) {
        let mut headers = Vec::new();
        for row in 0..batch.len() {
            batch.headers(row, &mut headers);
            self.add_row(batch, row, &headers);
        }
    }

    fn add_row(&mut self, batch: &EventBatch, row: usize, headers: &[Header<'_>]) {
        let event = batch.row(row);
        let mut hasher = blake3::Hasher::new();
        let numbers = [
            i64::from(event.partition),
            event.position.as_i64(),
            event.time.micros(),
            batch.archived_at(row).micros(),
            event.leader_epoch.map_or(-1, i64::from),
        ];
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        // Each text with its length before it, so that no two rows spell the same bytes; null is a length of its own.
        let mut text = |bytes: Option<&[u8]>| {
            hasher.update(&bytes.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            hasher.update(bytes.unwrap_or_default());
        };
        text(Some(event.time_kind.as_str().as_bytes()));
        text(event.key);
        text(event.value);
        for (name, value) in headers {
            text(Some(name.as_bytes()));
            text(*value);
        }
        for (name, value) in batch.properties(row) {
            text(Some(name.as_bytes()));
            text(Some(value.as_bytes()));
        }
        text(Some(&(headers.len() as u64).to_le_bytes()));
        let hash = hasher.finalize();
        let half = |from: usize| u128::from_le_bytes(hash.as_bytes()[from..from + 16].try_into().expect("16 of 32 bytes"));
        self.rows += 1;
        self.sums = (self.sums.0.wrapping_add(half(0)), self.sums.1.wrapping_add(half(16)));
    }
}

/// A merged segment in the making.
#[derive(Debug)]
pub struct Merger {
    writer: SegmentWriter,
    row_group_bytes: usize,
    /// Rows of the next row group: blocks of one partition and one moment.
    blocks: Vec<(i32, Timestamp, Columns)>,
    /// The last block of each partition.
    newest: BTreeMap<i32, usize>,
    held_bytes: usize,
    /// The most that was ever held: emptied columns keep their memory.
    held_bytes_max: usize,
    idle: Vec<Columns>,
    digest: RowDigest,
}

impl Merger {
    /// A merged segment for `topic` in the hour `window`, all of lanes of `source`.
    pub fn new(topic: Arc<str>, source: Arc<str>, window: Window, options: &WriterOptions) -> Self {
        Self {
            writer: SegmentWriter::merging(topic, source, window, options),
            row_group_bytes: options.row_group_bytes,
            blocks: Vec::new(),
            newest: BTreeMap::new(),
            held_bytes: 0,
            held_bytes_max: 0,
            idle: Vec::new(),
            digest: RowDigest::default(),
        }
    }

    /// Takes the rows of a batch that was read as [`super::Projection::Rows`]. Panics if a lane goes back.
    pub fn take(&mut self, batch: &EventBatch) {
        let mut headers = Vec::new();
        for row in 0..batch.len() {
            batch.headers(row, &mut headers);
            self.digest.add_row(batch, row, &headers);
            self.push(&batch.row(row), batch.archived_at(row), &headers, batch.properties(row));
        }
        if self.held_bytes >= self.row_group_bytes {
            self.write();
        }
    }

    fn push<'a>(
        &mut self,
        event: &EventRow<'_>,
        archived_at: Timestamp,
        headers: &[Header<'a>],
        properties: impl Iterator<Item = (&'a str, &'a str)>,
    ) {
        let known = self.newest.get(&event.partition).copied().filter(|block| self.blocks[*block].1 == archived_at);
        let block = known.unwrap_or_else(|| {
            self.blocks.push((event.partition, archived_at, self.idle.pop().unwrap_or_default()));
            self.newest.insert(event.partition, self.blocks.len() - 1);
            self.blocks.len() - 1
        });
        let columns = &mut self.blocks[block].2;
        let before = columns.memory_bytes();
        let fields = EventFields {
            position: event.position,
            time: event.time,
            time_kind: event.time_kind,
            leader_epoch: event.leader_epoch,
            key: event.key,
            value: event.value,
        };
        columns.push(fields, headers.iter().copied(), properties);
        self.held_bytes += columns.memory_bytes() - before;
        self.held_bytes_max = self.held_bytes_max.max(self.held_bytes);
    }

    /// Bytes held: the rows of the next row group, and what the writer holds.
    pub fn memory_bytes(&self) -> usize {
        self.held_bytes_max + self.writer.memory_bytes()
    }

    fn write(&mut self) {
        self.newest.clear();
        self.held_bytes = 0;
        let emptied = self.writer.write_merged(std::mem::take(&mut self.blocks));
        self.idle.extend(emptied);
    }

    /// Takes finished parts, if there are at least `bytes_min` of them.
    pub fn take_parts(&mut self, bytes_min: usize) -> Vec<Bytes> {
        self.writer.take_parts(bytes_min)
    }

    /// Ends the segment. Answers the digest of the rows that were taken. Panics without a row.
    pub fn finish(mut self) -> (FinishedSegment, RowDigest) {
        self.write();
        (self.writer.finish(), self.digest)
    }
}
