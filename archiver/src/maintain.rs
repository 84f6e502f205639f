//! Keeps an archive's tables in shape, beside any number of writers and readers: compaction, expiry, the sweep.
//!
//! Promises: every change is one record of the table's log, refused if what it touches has moved meanwhile; a merged segment was read
//! back from the store and holds the same rows before it replaces any; nothing is deleted before the record that allows it is
//! in the log. Never: needs to be the only one that does this; deletes what a reader may still hold on to; holds the
//! segments of a whole table.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::Window;
use tapedeck_common::clock::Clock;
use tapedeck_common::commit::CommitError;
use tapedeck_common::error::ErrorKind;
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::rewrite::{Rewrite, Rewritten};
use tapedeck_storage::log::{Slice, TableLog, TableOptions, TableView};
use tapedeck_storage::segment::SegmentError;
use tapedeck_storage::store::StoreError;

pub mod choose;
mod compact;
pub mod done;
pub mod duties;
mod expire;
mod making;
pub mod means;
pub mod schedule;
mod sweep;

pub use compact::Compacted;
pub use done::Done;
pub use expire::Expired;
pub use means::Means;
pub use sweep::{SweepPolicy, Swept};

use choose::CompactPolicy;

/// Why maintenance of a table stopped. What was done before stands.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// The table log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment cannot be read, or not be written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The table contradicts itself, or a merge came out wrong.
    #[error("table {table}: {what}")]
    Wrong {
        /// The table.
        table: String,
        /// What is wrong.
        what: String,
    },
    /// A piece of work broke.
    #[error("maintenance broke: {0}")]
    Broke(#[from] tokio::task::JoinError),
}

impl MaintainError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Commit(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Segment(error) => error.kind(),
            Self::Wrong { .. } => ErrorKind::Corrupt,
            Self::Broke(_) => ErrorKind::Bug,
        }
    }
}

/// What a keeper is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Merge small segments.
    Compact(CompactPolicy),
    /// Take out hours that have been over for so long.
    Expire(Duration),
    /// Delete files that nobody needs.
    Sweep(SweepPolicy),
}

impl Work {
    /// Its name in commands, configuration, logs and metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Compact(_) => "compact",
            Self::Expire(_) => "expire",
            Self::Sweep(_) => "sweep",
        }
    }
}

/// Maintains one table.
pub struct Keeper {
    archive: Archive,
    table: String,
    clock: Arc<dyn Clock>,
    chance: fastrand::Rng,
    means: Means,
    log: TableLog,
}

impl Keeper {
    /// Opens the log of a table, which exists. Waits for the store without end.
    pub async fn open(
        archive: &Archive,
        table: &str,
        clock: Arc<dyn Clock>,
        mut chance: fastrand::Rng,
        means: Means,
    ) -> Result<Self, MaintainError> {
        let options = TableOptions::of(table, "maintain");
        let log = TableLog::open(&archive.store, options, Arc::clone(&clock), chance.fork(), Arc::new(())).await?;
        Ok(Self { archive: archive.clone(), table: table.to_owned(), clock, chance, means, log })
    }

    /// Does it, once. With `dry_run` it only says what it would do.
    pub async fn work(&mut self, work: &Work, dry_run: bool) -> Result<Done, MaintainError> {
        let done = match work {
            Work::Compact(policy) => Done::Compacted(self.compact(policy, dry_run).await?),
            Work::Expire(keep) => Done::Expired(self.expire(*keep, dry_run).await?),
            Work::Sweep(policy) => Done::Swept(self.sweep(policy, dry_run).await?),
        };
        // Who reached its number owes the checkpoint.
        self.log.finish_checkpoint().await;
        Ok(done)
    }

    /// The hours from `first` to `last` as they are now, at the version that the log then stands at: what is chosen from
    /// them can be watched. Neighbours of theirs may be among the segments.
    async fn hours(&mut self, first: Window, last: Window) -> Result<TableView, MaintainError> {
        let version = self.log.catch_up().await?;
        let slice = Slice { from: Some(first.start()), until: Some(last.end()), ..Slice::default() };
        Ok(TableView::load_matching(&self.archive.store, &self.table, Some(version), &slice).await?)
    }

    /// True if the rewrite is in the log; false if somebody else was first, which is nobody's fault.
    async fn rewrite(&mut self, rewrite: &Rewrite) -> Result<bool, MaintainError> {
        match self.log.rewrite(rewrite).await? {
            Rewritten::Committed { version } => {
                let (operation, table) = (rewrite.operation.as_str(), &self.table);
                tracing::info!(
                    table,
                    version,
                    operation,
                    removes = rewrite.removes.len(),
                    adds = rewrite.adds.len(),
                    "rewritten"
                );
                Ok(true)
            }
            Rewritten::Moved(paths) => {
                let first = paths.first().map_or("", String::as_str);
                tracing::info!(table = self.table, moved = paths.len(), first, "somebody else was first, leaving it");
                Ok(false)
            }
        }
    }
}
