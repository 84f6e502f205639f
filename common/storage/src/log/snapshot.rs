//! A version of a table as it is read: the newest checkpoint that serves, and what the records above it change.
//!
//! Promises: holds in memory what the records change and no more; the checkpoint's own segments are visited where they lie.
//! Never: decides what a reader wants of them.

use std::collections::BTreeSet;

use super::checkpoint::{self, CheckpointFile, Found};
use super::notes::Notes;
use super::record::LogRecord;
use super::state::{LogState, Segments};
use super::tail::{Listing, LogReader, Seen, Stop};
use crate::store::StoreError;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At the newest checkpoint that serves.
    Checkpoint,
    /// At record 0.
    Beginning,
}

/// One version of one table.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) base: Option<CheckpointFile>,
    pub(super) above: Above,
}

/// What the records above the checkpoint change, or all that there is.
#[derive(Debug)]
pub(super) struct Above {
    pub(super) state: LogState,
    /// Those of the checkpoint too.
    pub(super) notes: Notes,
    listing: Listing,
}

impl Snapshot {
    /// Begins at the newest checkpoint up to `at` that serves and is none of `passed_over`, which grows by those that do not.
    pub(super) async fn begin(
        reader: &LogReader,
        start: Start,
        at: Option<u64>,
        passed_over: &mut BTreeSet<u64>,
    ) -> Result<Self, StoreError> {
        let (listing, found) = match start {
            Start::Beginning => (reader.list(0).await?, None),
            Start::Checkpoint => {
                let listing = reader.list_from_hint(at).await?;
                let found = checkpoint::newest(reader, &listing, at, passed_over).await?;
                (listing, found)
            }
        };
        let Some(Found { tip, genesis, lanes, file }) = found else {
            let above = Above { state: LogState::for_reader(), notes: Notes::default(), listing };
            return Ok(Self { base: None, above });
        };
        let state = LogState::from_checkpoint(tip, genesis, lanes, Some(Segments::above_checkpoint()));
        let above = Above { state, notes: file.notes().clone(), listing };
        Ok(Self { base: Some(file), above })
    }
}

impl Above {
    /// Applies the records above the checkpoint.
    pub(super) async fn follow(&mut self, reader: &LogReader, stop: Stop, seen: &mut Seen<'_>) -> Result<(), StoreError> {
        let Self { state, notes, listing } = self;
        let mut take = |version, record: &LogRecord| {
            notes.take(version, record);
            seen(version, record);
        };
        reader.follow(state, listing, stop, &mut take).await
    }

    /// The segments that those records added, and what they took out of the checkpoint.
    pub(super) fn segments(&self) -> &Segments {
        self.state.segments().expect("a snapshot is read with its segments")
    }

    /// What they took out of the checkpoint.
    pub(super) fn removed_below(&self) -> BTreeSet<String> {
        self.segments().below.clone().unwrap_or_default()
    }
}
