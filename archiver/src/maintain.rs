//! Keeps an archive's tables in shape, beside any number of writers and readers: compaction, expiry, the sweep.
//!
//! Promises: every change is one record of the table's log, refused if what it touches has moved meanwhile; a merged segment was read
//! back from the store and holds the same rows before it replaces any; nothing is deleted before the record that allows it is
//! in the log. Never: needs to be the only one that does this; deletes what a reader may still hold on to.

use std::sync::Arc;

use tapedeck_common::clock::Clock;
use tapedeck_common::commit::CommitError;
use tapedeck_common::error::ErrorKind;
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::rewrite::{Rewrite, Rewritten};
use tapedeck_storage::log::{History, TableLog, TableOptions, TableView};
use tapedeck_storage::segment::SegmentError;
use tapedeck_storage::store::StoreError;

pub mod choose;
mod compact;
mod expire;
mod sweep;

pub use compact::Compacted;
pub use expire::Expired;
pub use sweep::{SweepPolicy, Swept};

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
}

impl MaintainError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Commit(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Segment(error) => error.kind(),
            Self::Wrong { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Maintains one table.
pub struct Keeper<'a> {
    archive: &'a Archive,
    table: String,
    clock: Arc<dyn Clock>,
    chance: fastrand::Rng,
    log: TableLog,
}

impl<'a> Keeper<'a> {
    /// Opens the log of a table, which exists. Waits for the store without end.
    pub async fn open(
        archive: &'a Archive,
        table: &str,
        clock: Arc<dyn Clock>,
        mut chance: fastrand::Rng,
    ) -> Result<Self, MaintainError> {
        let options = TableOptions::of(table, "maintain");
        let log = TableLog::open(&archive.store, options, Arc::clone(&clock), chance.fork(), Arc::new(())).await?;
        Ok(Self { archive, table: table.to_owned(), clock, chance, log })
    }

    /// The table as it is now, at the version that the log then stands at: what is chosen from it can be watched.
    async fn view(&mut self) -> Result<TableView, MaintainError> {
        let version = self.log.catch_up().await?;
        Ok(TableView::load(&self.archive.store, &self.table, Some(version), History::Recent).await?)
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
