//! Deletes the files of a table that nobody needs: those of segments that were removed long ago, and those that no record names.
//!
//! Promises: a file that no record names is deleted only once a record says that none ever may, so a writer that slept over it can not
//! bring it to life; a file's age is told by the store's clock; a removal is as old as the younger of what its record says and
//! what the store says of that record, so no keeper's clock makes it older; a pinned table keeps its removed files. Of each
//! segment only a mark is held. Never: touches anything but segments below the table's folder.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tapedeck_common::Timestamp;
use tapedeck_common::commit::SegmentRef;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::log::record::Removed;
use tapedeck_storage::log::rewrite::Rewrite;
use tapedeck_storage::log::{LogReader, TableView};
use tapedeck_storage::pins;
use tapedeck_storage::store::{Outcome, StoreError, classify};

use super::means::REQUEST_BYTES;
use super::{Keeper, MaintainError};

/// A record gives up so many files at most.
const PATHS_PER_RECORD: usize = 500;

/// Files that no record names are remembered until all were listed, at about 200 bytes each; more of them wait for the next sweep.
const ORPHANS_MAX: usize = 50_000;

/// Files of removed segments that are deleted at once. In between it is asked anew whether a replay holds on to them.
const REMOVED_AT_ONCE: usize = 500;

/// What a mark takes in its set.
const MARK_BYTES: usize = 32;

/// How long files are kept that nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepPolicy {
    /// Files that no record names: a batch may be open, and a writer be paused, for so long.
    pub orphans_after: Duration,
    /// Files of removed segments: readers that began before may still read them.
    pub removed_after: Duration,
}

impl Default for SweepPolicy {
    fn default() -> Self {
        let week = Duration::from_secs(7 * 24 * 3600);
        Self { orphans_after: week, removed_after: week }
    }
}

/// What a sweep deleted, or would delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Swept {
    /// Files that no record names, old enough to go.
    pub orphans: u64,
    /// Files of segments that were removed long enough ago.
    pub removed: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Files of removed segments that a replay holds on to.
    pub pinned: u64,
    /// Files that no record names, too young to go.
    pub young: u64,
    /// Files that no record names, left for the next sweep: there were too many.
    pub left: u64,
}

/// What the log says of files, by their marks.
#[derive(Default)]
struct Named {
    /// Of all segments, live and removed.
    all: BTreeSet<u128>,
    /// Of those that were removed long enough ago.
    gone: BTreeSet<u128>,
}

/// A file that may go, with its size.
type OldFile = (String, u64);

impl Keeper {
    /// Deletes what is not needed any more. With `dry_run` it only says what it would delete.
    pub async fn sweep(&mut self, policy: &SweepPolicy, dry_run: bool) -> Result<Swept, MaintainError> {
        let now = self.store_time().await?;
        // Nothing is rewritten until all is listed, so the log stands where this was read.
        let named = self.named(policy, now).await?;
        let _held = self.means.memory().force((named.all.len() + named.gone.len()) * MARK_BYTES);
        let mut swept = Swept::default();
        let orphans = self.look_through(&named, policy, now, dry_run, &mut swept).await?;
        if !dry_run {
            self.sweep_orphans(&orphans, &mut swept).await?;
        }
        Ok(swept)
    }

    /// The time by the store's own clock, which is the one that its objects bear.
    pub(super) async fn store_time(&mut self) -> Result<Timestamp, MaintainError> {
        let key = layout::archive_probe(&fresh_uuid(self.clock.now(), &mut self.chance));
        let store = &self.archive.store.patient;
        let asked = async {
            store.put(&key, "tapedeck asks for the time\n".into()).await?;
            let modified = modified(&store.head(&key).await?);
            // Who may not delete leaves it behind, as every start of an archiver does.
            drop(store.delete(&key).await);
            Ok(modified)
        };
        let failed = |error| StoreError::request(format!("cannot ask the store for its time at {key}"), error);
        Ok(asked.await.map_err(failed)?)
    }

    async fn named(&mut self, policy: &SweepPolicy, now: Timestamp) -> Result<Named, MaintainError> {
        let (store, table, version) = (&self.archive.store, &self.table, self.log.catch_up().await?);
        let live = |all: &mut BTreeSet<u128>, segment: &SegmentRef| {
            all.insert(mark(&segment.path));
        };
        let removed = |all: &mut BTreeSet<u128>, removed: &Removed| {
            all.insert(mark(&removed.path));
        };
        let (_, all) = TableView::tally_with_removed(store, table, Some(version), BTreeSet::new, live, removed).await?;
        let mut gone = BTreeSet::new();
        // The clock of who removed a segment may have been far behind, but not the store's, when it took the record.
        let long_ago = LogReader::new(store, table).newest_at(now - policy.removed_after, version).await?;
        if let Some(long_ago) = long_ago {
            let take = |removed: &Removed| {
                if is_older(Timestamp::from_millis(removed.at_ms).unwrap_or(now), now, policy.removed_after) {
                    gone.insert(mark(&removed.path));
                }
            };
            TableView::visit_removed(store, table, long_ago, take).await?;
        }
        Ok(Named { all, gone })
    }

    /// Lists all files. Those of segments that are gone are deleted at once; answers those that no record names.
    async fn look_through(
        &self,
        named: &Named,
        policy: &SweepPolicy,
        now: Timestamp,
        dry_run: bool,
        swept: &mut Swept,
    ) -> Result<Vec<OldFile>, MaintainError> {
        let folder = Path::from(layout::table_folder(&self.table));
        let (mut orphans, mut gone) = (Vec::new(), Vec::new());
        let mut listed = self.archive.store.patient.list(Some(&folder));
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        while let Some(object) = listed.try_next().await.map_err(failed)? {
            let Some(path) = segment_path(&folder, &object.location) else { continue };
            let mark = mark(&path);
            if named.gone.contains(&mark) {
                gone.push((path, object.size));
            } else if named.all.contains(&mark) {
                continue;
            } else if !is_older(modified(&object), now, policy.orphans_after) {
                swept.young += 1;
            } else if orphans.len() >= ORPHANS_MAX {
                swept.left += 1;
            } else {
                swept.orphans += 1;
                swept.bytes += object.size;
                orphans.push((path, object.size));
            }
            if gone.len() >= REMOVED_AT_ONCE {
                self.delete_removed(&mut gone, now, dry_run, swept).await?;
            }
        }
        self.delete_removed(&mut gone, now, dry_run, swept).await?;
        Ok(orphans)
    }

    async fn delete_removed(
        &self,
        files: &mut Vec<OldFile>,
        now: Timestamp,
        dry_run: bool,
        swept: &mut Swept,
    ) -> Result<(), MaintainError> {
        if files.is_empty() {
            return Ok(());
        }
        if pins::holds(&self.archive.store, &self.table, now).await? {
            swept.pinned += files.len() as u64;
            files.clear();
            return Ok(());
        }
        swept.removed += files.len() as u64;
        swept.bytes += files.iter().map(|(_, bytes)| bytes).sum::<u64>();
        for (path, _) in files.drain(..).filter(|_| !dry_run) {
            self.delete(&path).await?;
        }
        Ok(())
    }

    /// Gives files up, then deletes them.
    async fn sweep_orphans(&mut self, orphans: &[OldFile], swept: &mut Swept) -> Result<(), MaintainError> {
        // All at once, while the log stands where they were looked up: what comes to life from here on makes its record be refused.
        self.log.watch([], orphans.iter().map(|(path, _)| path.clone()));
        for chunk in orphans.chunks(PATHS_PER_RECORD) {
            let paths: Vec<String> = chunk.iter().map(|(path, _)| path.clone()).collect();
            if self.rewrite(&Rewrite::sweep(paths.clone())).await? {
                for path in &paths {
                    self.delete(path).await?;
                }
            } else {
                swept.orphans -= chunk.len() as u64;
                swept.bytes -= chunk.iter().map(|(_, bytes)| bytes).sum::<u64>();
            }
        }
        Ok(())
    }

    async fn delete(&self, path: &str) -> Result<(), MaintainError> {
        self.means.pass(REQUEST_BYTES).await;
        let key = layout::table_object(&self.table, path);
        match self.archive.store.patient.delete(&key).await {
            Err(error) if classify(&error) != Outcome::NotFound => {
                Err(StoreError::request(format!("cannot delete {key}"), error).into())
            }
            _ => Ok(()),
        }
    }
}

/// Stands for a path. No two paths of an archive have one mark, for all that can be built by accident.
fn mark(path: &str) -> u128 {
    let hash = blake3::hash(path.as_bytes());
    hash.as_bytes()[..16].iter().fold(0, |mark, byte| mark << 8 | u128::from(*byte))
}

fn modified(object: &ObjectMeta) -> Timestamp {
    Timestamp::from_micros(object.last_modified.timestamp_micros())
}

fn is_older(at: Timestamp, now: Timestamp, age: Duration) -> bool {
    at < now - age
}

/// The path of a segment as records name it; `None` for anything that is no segment.
fn segment_path(folder: &Path, key: &Path) -> Option<String> {
    let path = key.as_ref().strip_prefix(folder.as_ref())?.strip_prefix('/')?;
    (path.starts_with("topic=") && path.ends_with(".parquet")).then(|| path.to_owned())
}
