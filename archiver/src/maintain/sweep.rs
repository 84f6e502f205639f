//! Deletes the files of a table that nobody needs: those of segments that were removed long ago, and those that no record names.
//!
//! Promises: a file that no record names is deleted only once a record says that none ever may, so a writer that slept over it can not
//! bring it to life; a file's age is told by the store's clock, the time since a removal by the clock of who removed it and the
//! store's; a pinned table keeps its removed files. Never: touches anything but segments below the table's folder.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::Timestamp;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::log::rewrite::Rewrite;
use tapedeck_storage::log::view::TableView;
use tapedeck_storage::pins;
use tapedeck_storage::store::{Outcome, StoreError, classify};

use super::{Keeper, MaintainError};

/// A record gives up so many files at most.
const PATHS_PER_RECORD: usize = 500;

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

/// What a sweep found, and did unless it was only to look.
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
}

/// Files that may go.
#[derive(Default)]
struct Found {
    orphans: Vec<(String, u64)>,
    removed: Vec<(String, u64)>,
    young: u64,
}

impl Keeper<'_> {
    /// Deletes what is not needed any more. With `dry_run` it only says what it would delete.
    pub async fn sweep(&mut self, policy: &SweepPolicy, dry_run: bool) -> Result<Swept, MaintainError> {
        let now = self.store_time().await?;
        let view = self.view().await?;
        let found = self.find(&view, policy, now).await?;
        let pinned = pins::holds(&self.archive.store, &self.table, now).await?;
        let bytes = |files: &[(String, u64)]| files.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut swept = Swept { young: found.young, orphans: found.orphans.len() as u64, ..Swept::default() };
        swept.bytes = bytes(&found.orphans);
        if pinned {
            swept.pinned = found.removed.len() as u64;
        } else {
            swept.removed = found.removed.len() as u64;
            swept.bytes += bytes(&found.removed);
        }
        if dry_run {
            return Ok(swept);
        }
        // All at once, while the log stands where the view was read: what comes to life from here on makes its record be refused.
        self.log.watch([], found.orphans.iter().map(|(path, _)| path.clone()));
        for chunk in found.orphans.chunks(PATHS_PER_RECORD) {
            let paths: Vec<String> = chunk.iter().map(|(path, _)| path.clone()).collect();
            if self.rewrite(&Rewrite::sweep(paths.clone())).await? {
                self.delete(&paths).await?;
            } else {
                swept.orphans -= chunk.len() as u64;
            }
        }
        if !pinned {
            let paths: Vec<String> = found.removed.into_iter().map(|(path, _)| path).collect();
            self.delete(&paths).await?;
        }
        Ok(swept)
    }

    /// The time by the store's own clock, which is the one that its objects bear.
    async fn store_time(&mut self) -> Result<Timestamp, MaintainError> {
        let key = layout::archive_probe(&fresh_uuid(self.clock.now(), &mut self.chance));
        let store = &self.archive.store.patient;
        let asked = async {
            store.put(&key, "tapedeck asks for the time\n".into()).await?;
            let modified = store.head(&key).await?.last_modified.timestamp_micros();
            store.delete(&key).await?;
            Ok(Timestamp::from_micros(modified))
        };
        let failed = |error| StoreError::request(format!("cannot ask the store for its time at {key}"), error);
        Ok(asked.await.map_err(failed)?)
    }

    async fn find(&self, view: &TableView, policy: &SweepPolicy, now: Timestamp) -> Result<Found, MaintainError> {
        let folder = Path::from(layout::table_folder(&self.table));
        let live: BTreeSet<&str> = view.segments.iter().map(|live| live.segment.path.as_str()).collect();
        let old =
            |at: i64, after: Duration| now.micros().saturating_sub(at) > i64::try_from(after.as_micros()).unwrap_or(i64::MAX);
        let mut found = Found::default();
        let mut listed = self.archive.store.patient.list(Some(&folder));
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        while let Some(object) = listed.try_next().await.map_err(failed)? {
            let Some(path) = segment_path(&folder, &object.location).filter(|path| !live.contains(path.as_str())) else {
                continue;
            };
            match view.removed.get(&path) {
                Some(removed) if old(removed.at_ms.saturating_mul(1_000), policy.removed_after) => {
                    found.removed.push((path, object.size));
                }
                Some(_) => {}
                None if old(object.last_modified.timestamp_micros(), policy.orphans_after) => {
                    found.orphans.push((path, object.size))
                }
                None => found.young += 1,
            }
        }
        Ok(found)
    }

    async fn delete(&self, paths: &[String]) -> Result<(), MaintainError> {
        for path in paths {
            let key = layout::table_object(&self.table, path);
            match self.archive.store.patient.delete(&key).await {
                Err(error) if classify(&error) != Outcome::NotFound => {
                    return Err(StoreError::request(format!("cannot delete {key}"), error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The path of a segment as records name it; `None` for anything that is no segment.
fn segment_path(folder: &Path, key: &Path) -> Option<String> {
    let path = key.as_ref().strip_prefix(folder.as_ref())?.strip_prefix('/')?;
    (path.starts_with("topic=") && path.ends_with(".parquet")).then(|| path.to_owned())
}
