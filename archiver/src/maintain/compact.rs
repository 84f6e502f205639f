//! Makes one segment of many.
//!
//! Promises: inputs are checked against what the log vouches for; the result is read back from the store, and its rows are compared
//! with those of the inputs, before it replaces them. A result that was refused stays as an orphan. Never: deletes an input.

use std::sync::Arc;

use tapedeck_common::commit::SegmentRef;
use tapedeck_common::limits::PART_BYTES;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::log::rewrite::Rewrite;
use tapedeck_storage::segment::SegmentUpload;
use tapedeck_storage::segment::{
    FinishedSegment, Merger, Projection, RowDigest, Scan, SegmentReader, WriterOptions, verify_object,
};

use super::choose::{CompactPolicy, Merge, merges};
use super::{Keeper, MaintainError};

/// Bytes of the next row group that are fetched while one is decoded.
const AHEAD_BYTES: u64 = 16 << 20;

/// What compaction did to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Compacted {
    /// Segments that were merged.
    pub inputs: u64,
    /// Segments that replaced them.
    pub outputs: u64,
    /// Rows in those.
    pub rows: u64,
    /// Bytes of the inputs.
    pub bytes_before: u64,
    /// Bytes of the outputs.
    pub bytes_after: u64,
    /// Merges that somebody else made unnecessary.
    pub refused: u64,
}

impl Keeper<'_> {
    /// What [`Self::compact`] would merge.
    pub async fn plan_compaction(&mut self, policy: &CompactPolicy) -> Result<Vec<Merge>, MaintainError> {
        let view = self.view().await?;
        let live = view.segments.iter().map(|live| &live.segment);
        merges(live, self.clock.now(), policy).map_err(|what| MaintainError::Wrong { table: self.table.clone(), what })
    }

    /// Merges the small segments of closed hours, hour by hour, each in a record of its own.
    pub async fn compact(&mut self, policy: &CompactPolicy) -> Result<Compacted, MaintainError> {
        let merges = self.plan_compaction(policy).await?;
        let inputs: Vec<String> = merges.iter().flat_map(Merge::paths).collect();
        self.log.watch(inputs, []);
        let mut done = Compacted::default();
        for merge in merges {
            let merged = self.merge(&merge).await?;
            let (rows, bytes_after) = (merged.rows, merged.size);
            if self.rewrite(&Rewrite::compact(merge.paths(), vec![merged])).await? {
                done.inputs += merge.inputs.len() as u64;
                done.outputs += 1;
                done.rows += rows;
                done.bytes_before += merge.inputs.iter().map(|input| input.size).sum::<u64>();
                done.bytes_after += bytes_after;
            } else {
                done.refused += 1;
            }
        }
        Ok(done)
    }

    /// Writes and proves one merged segment.
    async fn merge(&mut self, merge: &Merge) -> Result<SegmentRef, MaintainError> {
        let name = fresh_uuid(self.clock.now(), &mut self.chance);
        let path = layout::segment_path(&merge.topic, merge.window, &name);
        let store = self.archive.store.segments(Arc::clone(&self.clock));
        let mut upload = store.upload(layout::table_object(&self.table, &path), self.chance.fork());
        let options = WriterOptions::default();
        let mut merger = Merger::new(Arc::clone(&merge.topic), Arc::clone(&merge.source), merge.window, &options);
        for input in &merge.inputs {
            self.take(input, &mut merger, &mut upload).await?;
        }
        let (mut finished, taken): (FinishedSegment, RowDigest) = merger.finish();
        let size = finished.size();
        upload.finish(finished.take_parts(), size).await?;
        let merged = finished.into_ref(path, self.clock.now());
        self.prove(merge, &merged, taken).await?;
        Ok(merged)
    }

    async fn take(&self, input: &SegmentRef, merger: &mut Merger, upload: &mut SegmentUpload) -> Result<(), MaintainError> {
        let (store, key) = (&self.archive.store.patient, layout::table_object(&self.table, &input.path));
        verify_object(store.as_ref(), &key, input).await?;
        let reader = SegmentReader::open_vouched(Arc::clone(store), key, input).await?;
        let mut scan = reader.scan(Scan { projection: Projection::Rows, ahead_bytes: AHEAD_BYTES, ..Scan::default() });
        while let Some(batch) = scan.next().await? {
            merger.take(&batch);
            for part in merger.take_parts(PART_BYTES) {
                upload.push(part, None).await?;
            }
        }
        Ok(())
    }

    /// Reads the merged segment back from the store: the same rows, or an error.
    async fn prove(&self, merge: &Merge, merged: &SegmentRef, taken: RowDigest) -> Result<(), MaintainError> {
        let (store, key) = (&self.archive.store.patient, layout::table_object(&self.table, &merged.path));
        verify_object(store.as_ref(), &key, merged).await?;
        let reader = SegmentReader::open_vouched(Arc::clone(store), key, merged).await?;
        let mut found = RowDigest::default();
        let mut scan = reader.scan(Scan { projection: Projection::Rows, ahead_bytes: AHEAD_BYTES, ..Scan::default() });
        while let Some(batch) = scan.next().await? {
            found.add(&batch);
        }
        let rows: u64 = merge.inputs.iter().map(|input| input.rows).sum();
        if found != taken || merged.rows != rows {
            let what = format!("merging {} segments into {} did not give the same {rows} rows", merge.inputs.len(), merged.path);
            return Err(MaintainError::Wrong { table: self.table.clone(), what });
        }
        Ok(())
    }
}
