//! A checkpoint: the state after record n as one Parquet file, so that nobody has to read n records.
//!
//! Promises: `checkpoint(n)` means what replaying records 0 to n means (I8); the head row group holds protocol, metaData
//! and positions alone, so writers never read an add; any Delta reader can use it. A checkpoint that is damaged or foreign is
//! passed over for an older one, since the records below it are kept; one whose own record is gone stops everybody.
//! None is written of more segments than fit into memory beside everything else. Never: truth; records are.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};
use tapedeck_common::error::report;
use tapedeck_common::{ErrorKind, Timestamp};
use tracing::{info, warn};

use super::record;
use super::state::{LogState, Tip};
use super::tail::{Listing, LogReader, Start};
use crate::store::{Outcome, StoreError, classify};

mod columns;
mod read;
mod write;

/// Marks the files whose head row group may be trusted to hold everything but adds.
const MARK: (&str, &str) = ("tapedeck.checkpoint", "1");

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

/// What became of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It lies in the store.
    Written,
    /// The table has more live segments than a checkpoint may hold.
    TooMany,
}

/// Writes the checkpoint of records 0 to `version`, and the hint to it, if that has `most` live segments at most.
pub async fn write_checkpoint(reader: &LogReader, version: u64, most: usize) -> Result<Written, StoreError> {
    // The hint tells of a file too large to be read, before it is.
    if hint(reader).await?.is_some_and(|hint| hint.num_of_add_files > most as u64) {
        return Ok(Written::TooMany);
    }
    let state = reader.replay(LogState::for_checkpoint(most), Start::Checkpoint, Some(version), &mut |_, _| {}).await?;
    if state.segments().is_none() {
        return Ok(Written::TooMany);
    }
    let file = write::encode(&state)?;
    let hint = Hint {
        version,
        size: file.actions,
        size_in_bytes: file.bytes.len() as u64,
        num_of_add_files: state.segments().map_or(0, |segments| segments.live.len() as u64),
    };
    let key = reader.paths.checkpoint(version);
    let create = PutOptions::from(PutMode::Create);
    match reader.store.put_opts(&key, PutPayload::from(file.bytes), create).await {
        // Somebody else wrote the same.
        Err(error) if classify(&error) != Outcome::Exists => {
            return Err(StoreError::request(format!("cannot write {key}"), error));
        }
        _ => {}
    }
    let text = serde_json::to_vec(&hint).expect("plain data always serialises");
    let key = reader.paths.hint();
    let hinted = reader.store.put(&key, text.into()).await;
    hinted.map_err(|error| StoreError::request(format!("cannot write {key}"), error))?;
    info!(table = %reader.table, version, adds = hint.num_of_add_files, bytes = hint.size_in_bytes, "checkpoint written");
    Ok(Written::Written)
}

/// The checkpoint that `_last_checkpoint` names. Anything unreadable there is no hint.
pub(super) async fn read_hint(reader: &LogReader) -> Result<Option<u64>, StoreError> {
    Ok(hint(reader).await?.map(|hint| hint.version))
}

async fn hint(reader: &LogReader) -> Result<Option<Hint>, StoreError> {
    let key = reader.paths.hint();
    let read = async { reader.store.get(&key).await?.bytes().await };
    match read.await {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
        Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
    }
}

/// The state of the newest checkpoint (at most `at`) that serves, or `state` as it is if none does.
pub(super) async fn newest(
    reader: &LogReader,
    listing: &Listing,
    at: Option<u64>,
    state: LogState,
) -> Result<LogState, StoreError> {
    let mut candidates = listing.checkpoints.clone();
    candidates.retain(|version| at.is_none_or(|at| *version <= at));
    while let Some(version) = candidates.pop() {
        // Without its record a checkpoint proves that the log was cut, so this is no reason to look at another.
        let tip = tip_at(reader, version).await?;
        match read_state(reader, tip, state.segments().is_some()).await {
            Ok(found) => return Ok(found.within_limits_of(&state)),
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            Err(error) => warn!(table = %reader.table, version, error = %report(&error), "checkpoint passed over"),
        }
        if candidates.is_empty() {
            // The listing may have begun at the one that was hinted at.
            candidates = reader.list(0).await?.checkpoints;
            candidates.retain(|older| *older < version);
        }
    }
    Ok(state)
}

/// Record `version`, which a checkpoint does not hold the hash of, though the next record must name it.
pub(super) async fn tip_at(reader: &LogReader, version: u64) -> Result<Tip, StoreError> {
    let body = reader.get(version).await?.ok_or_else(|| reader.cut_off(version))?;
    let last = record::decode(&body).map_err(|error| reader.bad(version, &error))?;
    let at = Timestamp::from_millis(last.header.timestamp_ms).unwrap_or_default();
    Ok(Tip { version, hash: last.hash, at })
}

/// The state of the checkpoint at `tip`. `Corrupt` means that this checkpoint does not serve, and nothing worse.
pub(super) async fn read_state(reader: &LogReader, tip: Tip, with_segments: bool) -> Result<LogState, StoreError> {
    let key = reader.paths.checkpoint(tip.version);
    let content = if with_segments {
        let bytes = fetch(reader, &key).await?;
        read::all(bytes).map_err(|what| unreadable(reader, &key, what))?
    } else {
        read::head(reader, &key).await?
    };
    let segments = with_segments.then_some(content.segments);
    Ok(LogState::from_checkpoint(tip, content.genesis, content.lanes, segments))
}

fn unreadable(reader: &LogReader, key: &Path, what: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Corrupt, format!("table {}: {key}: {}", reader.table, what.into()))
}

/// A checkpoint that was not answered: one that is gone does not serve, everything else is the store's trouble.
fn unanswered(reader: &LogReader, key: &Path, error: object_store::Error) -> StoreError {
    match classify(&error) {
        Outcome::NotFound => unreadable(reader, key, "it is gone"),
        _ => StoreError::request(format!("cannot read {key}"), error),
    }
}

async fn fetch(reader: &LogReader, key: &Path) -> Result<Bytes, StoreError> {
    let read = async { reader.store.get(key).await?.bytes().await };
    read.await.map_err(|error| unanswered(reader, key, error))
}
