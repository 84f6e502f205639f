//! A checkpoint: the state after record n as one Parquet file, so that nobody has to read n records.
//!
//! Promises: `checkpoint(n)` means what replaying records 0 to n means (I8); the head row group holds protocol, metaData
//! and positions alone, so writers never read an add; any Delta reader can use it. One is made from the one before it and the
//! records between them, in memory that does not grow with the table. A checkpoint that is damaged or foreign is passed over
//! for an older one, since the records below it are kept; one whose own record is gone stops everybody.
//! Never: truth; records are.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};
use tapedeck_common::error::report;
use tapedeck_common::{ErrorKind, LaneId, Position, Timestamp};
use tracing::{info, warn};

use self::index::Holds;
use self::splice::{Splice, Spliced};
use self::upload::Upload;
use super::genesis::Genesis;
use super::record;
use super::snapshot::{Above, Snapshot, Start};
use super::state::{LogState, Segments, Tip};
use super::tail::{Listing, LogReader, Stop};
use super::view::Slice;
use crate::store::{Outcome, StoreError, classify};

mod columns;
mod encode;
mod file;
mod index;
mod rows;
mod splice;
mod stats;
mod upload;
mod writer;

pub(super) use file::CheckpointFile;
pub use splice::Shape;

/// Row groups of the earlier checkpoint that are fetched ahead.
const GROUPS_AHEAD: usize = 4;

/// `_last_checkpoint`, as Delta spells it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hint {
    version: u64,
    size: u64,
    #[serde(default)]
    size_in_bytes: u64,
    #[serde(default)]
    num_of_add_files: u64,
}

/// A checkpoint that serves.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) tip: Tip,
    pub(super) genesis: Genesis,
    /// Each lane, where it stands, and when it last moved.
    pub(super) lanes: Vec<(LaneId, Position, i64)>,
    pub(super) file: CheckpointFile,
}

/// Writes the checkpoint of records 0 to `version`, and the hint to it.
pub async fn write_checkpoint(reader: &LogReader, version: u64, shape: Shape) -> Result<(), StoreError> {
    let (mut passed_over, mut everywhere) = (BTreeSet::new(), false);
    loop {
        let Snapshot { base, mut above } = Snapshot::begin(reader, Start::Checkpoint, Some(version), &mut passed_over).await?;
        let stop = Stop { at: Some(version), changes_max: shape.changes_max.max(1) };
        above.follow(reader, stop, &mut |_, _| {}).await?;
        let from = base.as_ref().map(|base| base.version);
        let plan = Plan { shape, everywhere, passed_over: &passed_over };
        match write_above(reader, base.map(Arc::new), above, plan).await {
            Ok(Some(hint)) => {
                write_hint(reader, &hint).await?;
                if hint.version >= version {
                    return Ok(());
                }
                passed_over.remove(&hint.version);
                everywhere = false;
            }
            Ok(None) => everywhere = true,
            Err(error) if error.kind() == ErrorKind::Corrupt && from.is_some() => {
                warn!(table = %reader.table, version = from, error = %report(&error), "checkpoint passed over");
                passed_over.extend(from);
                everywhere = false;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How to write one.
#[derive(Clone, Copy)]
struct Plan<'a> {
    shape: Shape,
    /// Look for removed segments in all row groups.
    everywhere: bool,
    /// Those that do not serve: they are written over.
    passed_over: &'a BTreeSet<u64>,
}

/// Writes the checkpoint of the record that `above` ends at. `None` if a removed segment was not met where its path says that
/// it stands.
async fn write_above(
    reader: &LogReader,
    base: Option<Arc<CheckpointFile>>,
    mut above: Above,
    plan: Plan<'_>,
) -> Result<Option<Hint>, StoreError> {
    let version = above.state.tip().map_or(0, |tip| tip.version);
    if let Some(base) = base.as_ref().filter(|base| base.version == version) {
        // It is there, and serves.
        let rows = base.metadata().file_metadata().num_rows().unsigned_abs();
        return Ok(Some(Hint { version, size: rows, size_in_bytes: base.size, num_of_add_files: base.rows(Holds::Add) }));
    }
    let splice = Splice::begin(base.clone(), &mut above.state, above.notes, plan.shape, plan.everywhere)?;
    let place = Upload::new(reader, reader.paths.checkpoint(version), plan.passed_over.contains(&version));
    match send(reader, base.as_deref(), splice, place).await? {
        None if plan.everywhere => Err(StoreError::new(ErrorKind::Corrupt, "a segment that was removed later is not in it")),
        None => Ok(None),
        Some(Spliced { rows, bytes, adds, .. }) => {
            info!(table = %reader.table, version, adds, bytes, "checkpoint written");
            Ok(Some(Hint { version, size: rows, size_in_bytes: bytes, num_of_add_files: adds }))
        }
    }
}

async fn send(
    reader: &LogReader,
    base: Option<&CheckpointFile>,
    mut splice: Splice,
    mut upload: Upload<'_>,
) -> Result<Option<Spliced>, StoreError> {
    if let Some(base) = base {
        let fetch = |group| async move { Ok::<_, StoreError>((group, base.fetch(reader, group).await?)) };
        let groups = base.holding(Holds::Remove).chain(base.holding(Holds::Add));
        let mut fetched = futures::stream::iter(groups).map(fetch).buffered(GROUPS_AHEAD);
        while let Some((group, bytes)) = fetched.try_next().await? {
            if splice.copies(group) {
                splice.take(group, bytes)?;
            } else {
                // Encoding takes its time.
                splice = aside(move || splice.take(group, bytes).map(|()| splice)).await?;
            }
            for part in splice.take_parts()? {
                upload.push(part).await?;
            }
        }
    }
    let Some(mut spliced) = aside(move || splice.finish()).await? else { return Ok(None) };
    upload.finish(std::mem::take(&mut spliced.rest)).await?;
    Ok(Some(spliced))
}

/// Runs what computes for long beside the tasks that wait.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::new(ErrorKind::Bug, format!("a checkpoint stopped: {error}"))))
}

async fn write_hint(reader: &LogReader, hint: &Hint) -> Result<(), StoreError> {
    let text = serde_json::to_vec(hint).expect("plain data always serialises");
    let key = reader.paths.hint();
    let hinted = reader.store.put(&key, text.into()).await;
    hinted.map(drop).map_err(|error| StoreError::request(format!("cannot write {key}"), error))
}

/// The checkpoint that `_last_checkpoint` names. Anything unreadable there is no hint.
pub(super) async fn read_hint(reader: &LogReader) -> Result<Option<u64>, StoreError> {
    let key = reader.paths.hint();
    let read = async { reader.store.get(&key).await?.bytes().await };
    match read.await {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().map(|hint: Hint| hint.version)),
        Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
        Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
    }
}

/// The newest checkpoint of ours up to `at` that can be read and is none of `passed_over`, which grows by those that cannot.
pub(super) async fn newest(
    reader: &LogReader,
    listing: &Listing,
    at: Option<u64>,
    passed_over: &mut BTreeSet<u64>,
) -> Result<Option<Found>, StoreError> {
    let (mut candidates, mut from) = (listing.checkpoints.clone(), listing.from);
    loop {
        let Some(version) = candidates.pop() else {
            if from == 0 {
                return Ok(None);
            }
            // The listing began at the one that was hinted at.
            candidates = reader.list(0).await?.checkpoints;
            candidates.retain(|older| *older < from);
            from = 0;
            continue;
        };
        if at.is_some_and(|at| version > at) || passed_over.contains(&version) {
            continue;
        }
        // Without its record a checkpoint proves that the log was cut, so this is no reason to look at another.
        let (tip, opened) = futures::join!(tip_at(reader, version), CheckpointFile::open(reader, version));
        let tip = tip?;
        match opened {
            Ok(Some((file, head))) => return Ok(Some(Found { tip, genesis: head.genesis, lanes: head.lanes, file })),
            Ok(None) => warn!(table = %reader.table, version, "checkpoint passed over: another program wrote it"),
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            Err(error) => warn!(table = %reader.table, version, error = %report(&error), "checkpoint passed over"),
        }
        passed_over.insert(version);
    }
}

/// Record `version`, which a checkpoint does not hold the hash of, though the next record must name it.
pub(super) async fn tip_at(reader: &LogReader, version: u64) -> Result<Tip, StoreError> {
    let body = reader.get(version).await?.ok_or_else(|| reader.cut_off(version))?;
    let last = record::decode(&body).map_err(|error| reader.bad(version, &error))?;
    let at = Timestamp::from_millis(last.header.timestamp_ms).unwrap_or_default();
    Ok(Tip { version, hash: last.hash, at })
}

/// All that the checkpoint at `tip` says; `None` if another program wrote it. `Corrupt` means that it does not serve.
pub(super) async fn read_state(reader: &LogReader, tip: Tip) -> Result<Option<LogState>, StoreError> {
    let Some((file, head)) = CheckpointFile::open(reader, tip.version).await? else { return Ok(None) };
    let mut segments = Segments::default();
    file.visit(reader, &Slice::default(), &mut |segment| segments.add(segment)).await?;
    Ok(Some(LogState::from_checkpoint(tip, head.genesis, head.lanes, Some(segments))))
}
