//! One merged segment in the making: rows in, parts out, and the room that they take.
//!
//! Promises: what is held is in the budget, and room is waited for as long as parts on their way can give it back; a row group of an
//! input that finds none even then is let in all the same, since it cannot be split. Encoding and decoding run beside the
//! tasks that wait. Never: touches what it was given.

use std::sync::Arc;

use bytes::Bytes;
use tapedeck_common::budget::BytePermit;
use tapedeck_common::limits::PART_BYTES;
use tapedeck_storage::segment::{
    FinishedSegment, GroupBatches, Merger, Projection, RowDigest, Scan, SegmentError, SegmentReader, SegmentUpload,
};

use super::choose::Merge;
use super::{MaintainError, Means};

/// Rows decoded at once, and the bytes that they should not exceed on average.
const BATCH_ROWS: (u64, u64) = (16, 1_024);
const BATCH_BYTES: u64 = 2 << 20;

/// A merged segment in the making.
pub(super) struct Making {
    means: Means,
    merger: Merger,
    upload: SegmentUpload,
    held: BytePermit,
    memory_max: u64,
}

impl Making {
    pub(super) fn new(merge: &Merge, upload: SegmentUpload, means: &Means) -> Self {
        let merger = Merger::new(Arc::clone(&merge.topic), Arc::clone(&merge.source), merge.window, means.writer());
        Self { means: means.clone(), merger, upload, held: means.memory().force(0), memory_max: 0 }
    }

    /// Takes all rows of an input.
    pub(super) async fn take(mut self, reader: &SegmentReader) -> Result<Self, MaintainError> {
        let mut scan = reader.scan(rows_of(reader));
        while let Some(bytes) = scan.next_group_bytes() {
            let room = self.room(bytes as usize).await?;
            let Some(group) = scan.next_group().await? else { break };
            self.merger = merged(self.merger, group).await?;
            drop(room);
            self.note();
            self.send().await?;
        }
        Ok(self)
    }

    /// Room for `bytes` beside all that is held.
    async fn room(&mut self, bytes: usize) -> Result<BytePermit, MaintainError> {
        let permit = loop {
            if let Some(permit) = self.means.memory().try_reserve(bytes) {
                break permit;
            }
            if self.upload.in_flight_bytes() == 0 {
                break self.means.memory().force(bytes);
            }
            self.upload.settle_one().await?;
        };
        self.memory_max = self.memory_max.max(self.means.memory().used() as u64);
        Ok(permit)
    }

    fn note(&mut self) {
        self.held.resize(self.merger.memory_bytes());
        self.memory_max = self.memory_max.max(self.means.memory().used() as u64);
    }

    /// Sends finished parts to the store.
    async fn send(&mut self) -> Result<(), MaintainError> {
        let parts = self.merger.take_parts(PART_BYTES);
        self.held.resize(self.merger.memory_bytes());
        let memory = self.means.memory().clone();
        let mut room = memory.force(parts.iter().map(Bytes::len).sum());
        for part in parts {
            while memory.used() > memory.capacity() && self.upload.in_flight_bytes() > 0 {
                self.upload.settle_one().await?;
            }
            self.means.pass(part.len() as u64).await;
            let its_room = room.split(part.len());
            self.upload.push(part, Some(its_room)).await?;
        }
        Ok(())
    }

    /// Ends the segment and its upload. Answers it, the digest of the rows that went in, and the most that was held.
    pub(super) async fn finish(mut self) -> Result<(FinishedSegment, RowDigest, u64), MaintainError> {
        let merger = self.merger;
        let (mut finished, taken) = tokio::task::spawn_blocking(move || merger.finish()).await?;
        self.held.resize(finished.memory_bytes());
        self.memory_max = self.memory_max.max(self.means.memory().used() as u64);
        self.means.pass(finished.memory_bytes() as u64).await;
        let size = finished.size();
        self.upload.finish(finished.take_parts(), size).await?;
        Ok((finished, taken, self.memory_max))
    }
}

async fn merged(mut merger: Merger, group: GroupBatches) -> Result<Merger, MaintainError> {
    let merging = tokio::task::spawn_blocking(move || {
        for batch in group {
            merger.take(&batch?);
        }
        Ok::<_, SegmentError>(merger)
    });
    Ok(merging.await??)
}

/// The digest of a segment's rows as the store has them.
pub(super) async fn digest(reader: &SegmentReader, means: &Means) -> Result<RowDigest, MaintainError> {
    let mut found = RowDigest::default();
    let mut scan = reader.scan(rows_of(reader));
    while let Some(bytes) = scan.next_group_bytes() {
        let _room = means.memory().force(bytes as usize);
        let Some(group) = scan.next_group().await? else { break };
        let adding = tokio::task::spawn_blocking(move || {
            for batch in group {
                found.add(&batch?);
            }
            Ok::<_, SegmentError>(found)
        });
        found = adding.await??;
    }
    Ok(found)
}

/// Whole rows, few of them at once where they are large. Nothing is fetched ahead: it would have to be held.
fn rows_of(reader: &SegmentReader) -> Scan {
    let bytes: i64 = reader.footer().row_groups().iter().map(|group| group.total_byte_size()).sum();
    let row_bytes = bytes.unsigned_abs() / reader.rows().max(1);
    let batch_rows = (BATCH_BYTES / row_bytes.max(1)).clamp(BATCH_ROWS.0, BATCH_ROWS.1) as usize;
    Scan { projection: Projection::Rows, batch_rows, ..Scan::default() }
}
