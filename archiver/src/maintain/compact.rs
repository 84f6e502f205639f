//! Makes one segment of many, an hour after the other.
//!
//! Promises: inputs are checked against what the log vouches for; the result is read back from the store, and its rows are compared
//! with those of the inputs, before it replaces them. A result that was refused stays as an orphan. Only one hour's segments
//! are held at a time. Never: deletes an input.

use std::collections::BTreeSet;
use std::sync::Arc;

use tapedeck_common::Window;
use tapedeck_common::commit::SegmentRef;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::rewrite::Rewrite;
use tapedeck_storage::segment::{RowDigest, SegmentReader, verify_object};

use super::choose::{CompactPolicy, Merge, SmallSegments, is_over, merges};
use super::making::{Making, digest};
use super::{Keeper, MaintainError};

/// What compaction did to a table, or would do.
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
    /// Merges that somebody else made unnecessary. After one the table is left to them.
    pub refused: u64,
    /// The most memory that was in use.
    pub memory_max: u64,
}

impl Keeper {
    /// Merges the small segments of closed hours, each merge in a record of its own. With `dry_run` it only says what it would
    /// merge.
    pub async fn compact(&mut self, policy: &CompactPolicy, dry_run: bool) -> Result<Compacted, MaintainError> {
        let mut done = Compacted::default();
        for hour in self.hours_to_merge(policy).await? {
            for merge in self.merges_of(hour, policy).await? {
                if !dry_run && !self.replace(&merge, &mut done).await? {
                    done.refused += 1;
                    return Ok(done);
                }
                done.inputs += merge.inputs.len() as u64;
                done.outputs += 1;
                done.rows += merge.inputs.iter().map(|input| input.rows).sum::<u64>();
                done.bytes_before += merge.bytes();
            }
        }
        Ok(done)
    }

    async fn hours_to_merge(&mut self, policy: &CompactPolicy) -> Result<BTreeSet<Window>, MaintainError> {
        let (version, now) = (self.log.catch_up().await?, self.clock.now());
        let add = |small: &mut SmallSegments, segment: &SegmentRef| {
            if segment.size < policy.small_below && is_over(segment.window, now, policy.closed_for) {
                small.add(segment);
            }
        };
        let store = &self.archive.store;
        let (_, small) = TableView::tally(store, &self.table, Some(version), SmallSegments::default, add).await?;
        Ok(small.into_hours())
    }

    /// What is to be merged in an hour. From here on it is watched.
    async fn merges_of(&mut self, hour: Window, policy: &CompactPolicy) -> Result<Vec<Merge>, MaintainError> {
        let view = self.hours(hour, hour).await?;
        let live = view.segments.iter().map(|live| &live.segment).filter(|segment| segment.window == hour);
        let merges = merges(live, self.clock.now(), policy);
        let merges = merges.map_err(|what| MaintainError::Wrong { table: self.table.clone(), what })?;
        self.log.watch(merges.iter().flat_map(Merge::paths), []);
        Ok(merges)
    }

    /// True if the merged segment replaced its inputs.
    async fn replace(&mut self, merge: &Merge, done: &mut Compacted) -> Result<bool, MaintainError> {
        let (merged, memory_max) = self.merge(merge).await?;
        let bytes_after = merged.size;
        done.memory_max = done.memory_max.max(memory_max);
        let is_done = self.rewrite(&Rewrite::compact(merge.paths(), vec![merged])).await?;
        done.bytes_after += if is_done { bytes_after } else { 0 };
        Ok(is_done)
    }

    /// Writes and proves one merged segment. Answers it, and the most memory that was in use.
    async fn merge(&mut self, merge: &Merge) -> Result<(SegmentRef, u64), MaintainError> {
        let name = fresh_uuid(self.clock.now(), &mut self.chance);
        let path = layout::segment_path(&merge.topic, merge.window, &name);
        let store = self.archive.store.segments(Arc::clone(&self.clock));
        let upload = store.upload(layout::table_object(&self.table, &path), self.chance.fork());
        let mut making = Making::new(merge, upload, &self.means);
        for input in &merge.inputs {
            making = making.take(&self.checked(input).await?).await?;
        }
        let (finished, taken, memory_max) = making.finish().await?;
        let merged = finished.into_ref(path, self.clock.now());
        self.prove(merge, &merged, taken).await?;
        Ok((merged, memory_max))
    }

    /// Opens a segment after it was checked against what is vouched for: it comes from the store twice.
    async fn checked(&self, segment: &SegmentRef) -> Result<SegmentReader, MaintainError> {
        let (store, key) = (&self.archive.store.patient, layout::table_object(&self.table, &segment.path));
        self.means.pass(2 * segment.size).await;
        verify_object(store.as_ref(), &key, segment).await?;
        Ok(SegmentReader::open_vouched(Arc::clone(store), key, segment).await?)
    }

    /// Reads the merged segment back from the store: the same rows, or an error.
    async fn prove(&self, merge: &Merge, merged: &SegmentRef, taken: RowDigest) -> Result<(), MaintainError> {
        let found = digest(&self.checked(merged).await?, &self.means).await?;
        let rows: u64 = merge.inputs.iter().map(|input| input.rows).sum();
        if found != taken || merged.rows != rows {
            let what = format!("merging {} segments into {} did not give the same {rows} rows", merge.inputs.len(), merged.path);
            return Err(MaintainError::Wrong { table: self.table.clone(), what });
        }
        Ok(())
    }
}
