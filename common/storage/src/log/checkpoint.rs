//! A checkpoint: the state after record n as one Parquet file, so that nobody has to read n records.
//!
//! Promises: `checkpoint(n)` means what replaying records 0 to n means (I8); the head row group holds protocol, metaData
//! and positions alone, so writers never read an add; any Delta reader can use it. A checkpoint that cannot be read is
//! passed over, since the records below it are kept. Never: truth; records are.

use bytes::Bytes;
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

/// Writes the checkpoint of records 0 to `version`, and the hint to it.
pub async fn write_checkpoint(reader: &LogReader, version: u64) -> Result<(), StoreError> {
    let state = reader.replay(LogState::for_reader(), Start::Checkpoint, Some(version), &mut |_, _| {}).await?;
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
    Ok(())
}

/// The checkpoint that `_last_checkpoint` names. Anything unreadable there is no hint.
pub(super) async fn read_hint(reader: &LogReader) -> Result<Option<u64>, StoreError> {
    let key = reader.paths.hint();
    let read = async { reader.store.get(&key).await?.bytes().await };
    match read.await {
        Ok(bytes) => Ok(serde_json::from_slice::<Hint>(&bytes).ok().map(|hint| hint.version)),
        Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
        Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
    }
}

/// The state of the newest checkpoint in `listing` (at most `at`), or `state` as it is if none serves.
pub(super) async fn newest(
    reader: &LogReader,
    listing: &Listing,
    at: Option<u64>,
    state: LogState,
) -> Result<LogState, StoreError> {
    let wanted = |version: &&u64| at.is_none_or(|at| **version <= at);
    let Some(version) = listing.checkpoints.iter().rev().find(wanted).copied() else { return Ok(state) };
    match read_state(reader, version, state.segments().is_some()).await {
        Ok(state) => Ok(state),
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
        Err(error) => {
            warn!(table = %reader.table, version, error = %report(&error), "checkpoint passed over, reading every record");
            Ok(state)
        }
    }
}

pub(super) async fn read_state(reader: &LogReader, version: u64, with_segments: bool) -> Result<LogState, StoreError> {
    let key = reader.paths.checkpoint(version);
    let unreadable = |what: String| StoreError::new(ErrorKind::Corrupt, format!("table {}: {key}: {what}", reader.table));
    let content = if with_segments {
        let bytes = fetch(reader, &key).await?;
        read::all(bytes).map_err(unreadable)?
    } else {
        read::head(reader, &key).await?
    };
    // A checkpoint does not know the hash of its record, which the next record must name.
    let body = reader.get(version).await?;
    let body = body.ok_or_else(|| unreadable(format!("record {version} itself is missing")))?;
    let last = record::decode(&body).map_err(|error| reader.bad(version, &error))?;
    let at = Timestamp::from_millis(last.header.timestamp_ms).unwrap_or_default();
    let tip = Tip { version, hash: last.hash, at };
    let segments = with_segments.then_some(content.segments);
    Ok(LogState::from_checkpoint(tip, content.genesis, content.lanes, segments))
}

async fn fetch(reader: &LogReader, key: &object_store::path::Path) -> Result<Bytes, StoreError> {
    let read = async { reader.store.get(key).await?.bytes().await };
    read.await.map_err(|error| StoreError::request(format!("cannot read {key}"), error))
}
