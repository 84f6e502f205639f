//! Makes the checkpoint of record n from an earlier one and what the records between them changed.
//!
//! Promises: a row group that no change touches is copied byte for byte; live segments stay in order, in groups of at most
//! [`Shape::group_rows`]; what is held is the changes and one row group, however many segments there are. Pure.
//! Never: drops a segment that was not removed, or keeps one that was; where that cannot be told it fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{ErrorKind, limits};

use super::encode;
use super::file::CheckpointFile;
use super::index::{Holds, Place};
use super::writer::CheckpointWriter;
use crate::log::notes::Notes;
use crate::log::record::Removed;
use crate::log::state::LogState;
use crate::log::view::Slice;
use crate::store::StoreError;

/// How checkpoints are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of a row group at most.
    pub group_rows: usize,
    /// Changed segments that are held at once. Where there are more, checkpoints of earlier records are written on the way.
    pub changes_max: usize,
    /// A file larger than this is uploaded in parts of this size.
    pub part_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            group_rows: limits::CHECKPOINT_GROUP_ROWS,
            changes_max: limits::CHECKPOINT_CHANGES_MAX,
            part_bytes: limits::PART_BYTES,
        }
    }
}

/// A checkpoint on its way from one to the next.
pub(super) struct Splice {
    base: Option<Arc<CheckpointFile>>,
    shape: Shape,
    writer: CheckpointWriter,
    /// The numbers of the earlier checkpoint's groups of live segments that something changes in.
    touched: BTreeSet<usize>,
    /// What is still to be added, in order.
    adds: vec::IntoIter<SegmentRef>,
    /// What is still to be found in the earlier checkpoint and taken out.
    removed_below: BTreeSet<String>,
    /// What is still to be noted as removed.
    removes: Vec<Removed>,
    /// Segments of a group that became too small to stand alone: they go in front of the next one.
    carry: Vec<SegmentRef>,
    notes: Notes,
}

/// What a finished checkpoint is.
pub(super) struct Spliced {
    /// What is left to upload.
    pub(super) rest: Vec<Bytes>,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) adds: u64,
}

impl Splice {
    /// Begins with the head. `state` holds what changed since `base`. `everywhere` looks for removed segments in all groups,
    /// not only where their paths say that they stand.
    pub(super) fn begin(
        base: Option<Arc<CheckpointFile>>,
        state: &mut LogState,
        notes: Notes,
        shape: Shape,
        everywhere: bool,
    ) -> Result<Self, StoreError> {
        let mut writer = CheckpointWriter::new(shape.part_bytes)?;
        writer.encode(Holds::Head, &encode::head(state), None)?;
        let changes = state.take_segments().unwrap_or_default();
        let mut adds: Vec<SegmentRef> = changes.live.into_values().map(|live| live.segment).collect();
        adds.sort_by(in_order);
        let mut splice = Self {
            base,
            shape,
            writer,
            touched: BTreeSet::new(),
            removed_below: changes.below.unwrap_or_default(),
            removes: changes.removed.into_values().collect(),
            adds: adds.into_iter(),
            carry: Vec::new(),
            notes,
        };
        splice.touch(everywhere);
        Ok(splice)
    }

    fn touch(&mut self, everywhere: bool) {
        let Some(base) = &self.base else { return };
        let numbers: Vec<usize> = base.holding(Holds::Add).collect();
        let firsts: Vec<Option<&Place>> = numbers.iter().map(|number| base.groups()[*number].first.as_ref()).collect();
        if everywhere {
            self.touched.extend(numbers);
            return;
        }
        let places = self.adds.as_slice().iter().map(Place::of);
        let removed = self.removed_below.iter().filter_map(|path| Place::of_path(path));
        for place in places.chain(removed) {
            // Whatever comes before the first group goes into the first group.
            let after = firsts.partition_point(|first| *first <= Some(&place));
            self.touched.extend(numbers.get(after.saturating_sub(1)));
        }
    }

    /// True if the earlier checkpoint's next row group is only copied.
    pub(super) fn copies(&self, number: usize) -> bool {
        self.removes.is_empty() && self.carry.is_empty() && !self.touched.contains(&number)
    }

    /// Takes the bytes of the earlier checkpoint's next row group: removed segments first, then live ones.
    pub(super) fn take(&mut self, number: usize, bytes: Bytes) -> Result<(), StoreError> {
        let Some(base) = self.base.clone() else { return Ok(()) };
        match base.groups()[number].holds {
            Holds::Head => Ok(()),
            Holds::Remove => self.take_removes(&base, number, bytes),
            Holds::Add => {
                self.end_removes()?;
                self.take_adds(&base, number, bytes)
            }
        }
    }

    /// The parts that are ready for upload.
    pub(super) fn take_parts(&mut self) -> Result<Vec<Bytes>, StoreError> {
        self.writer.take_parts()
    }

    /// Ends the file, once all groups were taken. `None` if a segment that was removed was not met; then look everywhere.
    pub(super) fn finish(mut self) -> Result<Option<Spliced>, StoreError> {
        if !self.removed_below.is_empty() {
            return Ok(None);
        }
        self.end_removes()?;
        let rest = self.adds.by_ref().collect();
        self.put(rest, true)?;
        let (rows, adds) = (self.writer.rows, self.writer.adds);
        let (rest, bytes) = self.writer.finish(&self.notes)?;
        Ok(Some(Spliced { rest, bytes, rows, adds }))
    }

    fn copy(&mut self, base: &CheckpointFile, number: usize, bytes: Bytes) -> Result<(), StoreError> {
        let (group, from) = (base.groups()[number].clone(), base.metadata().row_group(number));
        self.writer.copy(group, from, base.place(number).start, bytes)
    }

    /// Removed segments are only added to, so just the last group of them is ever opened again.
    fn take_removes(&mut self, base: &CheckpointFile, number: usize, bytes: Bytes) -> Result<(), StoreError> {
        let is_last = base.holding(Holds::Remove).last() == Some(number);
        let has_room = (base.metadata().row_group(number).num_rows().unsigned_abs() as usize) < self.shape.group_rows;
        if self.removes.is_empty() || !is_last || !has_room {
            return self.copy(base, number, bytes);
        }
        let earlier = base.removes(number, bytes).map_err(damaged)?;
        self.removes.splice(..0, earlier);
        Ok(())
    }

    fn end_removes(&mut self) -> Result<(), StoreError> {
        for removes in std::mem::take(&mut self.removes).chunks(self.shape.group_rows.max(1)) {
            self.writer.encode(Holds::Remove, &[encode::removes(removes)], None)?;
        }
        Ok(())
    }

    fn take_adds(&mut self, base: &CheckpointFile, number: usize, bytes: Bytes) -> Result<(), StoreError> {
        if self.copies(number) {
            return self.copy(base, number, bytes);
        }
        let mut segments = std::mem::take(&mut self.carry);
        let removed = &mut self.removed_below;
        let mut take = |segment: SegmentRef| {
            if !removed.remove(&segment.path) {
                segments.push(segment);
            }
        };
        base.adds(number, bytes, &Slice::default(), &mut take).map_err(damaged)?;
        let next = base.groups().get(number + 1).and_then(|next| next.first.as_ref());
        let mine = self.adds.as_slice().partition_point(|add| next.is_none_or(|next| Place::of(add) < *next));
        segments.extend(self.adds.by_ref().take(mine));
        segments.sort_by(in_order);
        if let Some(twice) = segments.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(damaged(format!("{} is live already, but is added once more", twice[0].path)));
        }
        if segments.len() < self.shape.group_rows / 4 && next.is_some() {
            self.carry = segments;
            return Ok(());
        }
        self.put(segments, next.is_none())
    }

    /// Encodes groups. At the end of the file they are filled up, since most of what comes later goes there; elsewhere they
    /// are of even size, so that a few late segments do not leave a group of a few behind.
    fn put(&mut self, mut segments: Vec<SegmentRef>, is_last: bool) -> Result<(), StoreError> {
        let most = self.shape.group_rows.max(1);
        let rows = if is_last { most } else { segments.len().div_ceil(segments.len().div_ceil(most).max(1)).max(1) };
        while !segments.is_empty() {
            let rest = segments.split_off(rows.min(segments.len()));
            let first = segments.first().map(Place::of);
            self.writer.encode(Holds::Add, &[encode::adds(&segments)], first)?;
            segments = rest;
        }
        Ok(())
    }
}

fn in_order(a: &SegmentRef, b: &SegmentRef) -> std::cmp::Ordering {
    (a.window, &a.path).cmp(&(b.window, &b.path))
}

/// The earlier checkpoint does not serve.
fn damaged(what: String) -> StoreError {
    StoreError::new(ErrorKind::Corrupt, what)
}
