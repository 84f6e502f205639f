//! Pins: a replay in progress says that it reads a version of a table, so that no sweep deletes what was removed since.
//!
//! Promises: a pin that ran out binds nobody, so a replay that died holds nothing for ever; one that can not be read holds, since
//! deleting is the one thing that no one can undo; so does one that was written of late by the store's clock, however far behind
//! the holder's may be. Never: keeps anybody from committing.

use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tapedeck_common::{ErrorKind, Timestamp};

use crate::layout;
use crate::store::{Outcome, Store, StoreError, classify};

/// What one replay reads, and until when that is to be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Who reads, for people.
    pub holder: String,
    /// The tables' true names, and the newest record of each that is read.
    pub tables: std::collections::BTreeMap<String, u64>,
    /// Milliseconds since 1970 UTC, by the holder's clock; renewed long before.
    pub expires_ms: i64,
}

/// How long a pin is good for: a job that was paused is resumed within a day, or planned again.
pub const PINNED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Clocks of pods may differ by so much.
const CLOCKS_DIFFER_MS: i64 = 3_600_000;

/// Sets a pin, or renews it.
pub async fn set(store: &Store, holder: &str, pin: &Pin) -> Result<(), StoreError> {
    let key = layout::archive_pin(holder);
    let text = serde_json::to_vec(pin).expect("plain data always serialises");
    let put = store.patient.put(&key, text.into()).await;
    put.map(drop).map_err(|error| StoreError::request(format!("cannot write {key}"), error))
}

/// Takes a pin away.
pub async fn release(store: &Store, holder: &str) -> Result<(), StoreError> {
    let key = layout::archive_pin(holder);
    match store.patient.delete(&key).await {
        Err(error) if classify(&error) != Outcome::NotFound => Err(StoreError::request(format!("cannot delete {key}"), error)),
        _ => Ok(()),
    }
}

/// True if some pin that has not run out by `now`, the store's time, holds the table.
pub async fn holds(store: &Store, table: &str, now: Timestamp) -> Result<bool, StoreError> {
    let folder = Path::from("_archive/pins");
    let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
    let mut listed = store.patient.list(Some(&folder));
    while let Some(object) = listed.try_next().await.map_err(failed)? {
        match read(store, &object.location).await {
            Ok(Some(pin)) => {
                let written = Timestamp::from_micros(object.last_modified.timestamp_micros());
                let live = pin.expires_ms.saturating_add(CLOCKS_DIFFER_MS) > now.millis_floor();
                if (live || written + PINNED_FOR > now) && pin.tables.contains_key(table) {
                    return Ok(true);
                }
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// A pin, unless it went away since it was listed.
async fn read(store: &Store, key: &Path) -> Result<Option<Pin>, StoreError> {
    let read = async { store.patient.get(key).await?.bytes().await };
    match read.await {
        Ok(bytes) => {
            let unreadable = |error| StoreError::new(ErrorKind::Corrupt, format!("{key}: {error}"));
            serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
        }
        Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
        Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
    }
}
