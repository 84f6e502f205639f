//! Reading a log for its readers: the listing, the newest checkpoint, and every record above it.
//!
//! Promises: a hole between records is found, never stepped over; a listing is only a hint, the records themselves decide.
//! Never: waits or tries again; that is the caller's patience.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::{ErrorKind, Timestamp};

use super::checkpoint;
use super::paths::{LogFile, LogPaths};
use super::record::{self, LogRecord, RecordError};
use super::state::LogState;
use crate::store::{Outcome, Store, StoreError, classify};

/// Records fetched at once while replaying.
const READ_AHEAD: usize = 16;

/// Where to read one table's log.
#[derive(Debug, Clone)]
pub struct LogReader {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) paths: LogPaths,
    pub(super) table: String,
}

/// What a listing of the log's folder showed, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// The version that it began at.
    pub(super) from: u64,
    pub(super) records: Vec<u64>,
    pub(super) checkpoints: Vec<u64>,
}

/// How far to follow a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stop {
    /// At this record, which must exist; or at the tip.
    pub(super) at: Option<u64>,
    /// Or sooner, where the state holds so many changes of segments.
    pub(super) changes_max: usize,
}

impl Stop {
    /// At this record, or at the tip, however much there is.
    pub(super) fn at(at: Option<u64>) -> Self {
        Self { at, changes_max: usize::MAX }
    }
}

/// Takes in each record as it is applied, with its number.
pub(super) type Seen<'a> = dyn FnMut(u64, &LogRecord) + Send + 'a;

impl LogReader {
    /// Reads the log of `table` in `store`.
    pub fn new(store: &Store, table: &str) -> Self {
        Self { store: Arc::clone(&store.patient), paths: LogPaths::of(table), table: table.to_owned() }
    }

    /// Reads the log in a folder right below the archive's root, whatever table that is.
    pub(crate) fn in_folder(store: &Store, folder: &str) -> Self {
        Self { store: Arc::clone(&store.patient), paths: LogPaths::in_folder(folder), table: folder.to_owned() }
    }

    /// True if anything lies in the log's folder, even if it is only the rest of a log.
    pub(crate) async fn is_there(&self) -> Result<bool, StoreError> {
        let folder = self.paths.folder();
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        Ok(self.store.list(Some(folder)).try_next().await.map_err(failed)?.is_some())
    }

    /// The bytes of record `version`, `None` if there is none.
    pub(crate) async fn get(&self, version: u64) -> Result<Option<Bytes>, StoreError> {
        let key = self.paths.record(version);
        let read = async { self.store.get(&key).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
            Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
        }
    }

    /// The newest record up to `tip` that lay in the store at `time` already, by the store's own clock and nobody else's. Where
    /// the times of records do not grow with their numbers, as after a copy, it may answer one that is older.
    pub async fn newest_at(&self, time: Timestamp, tip: u64) -> Result<Option<u64>, StoreError> {
        // Those below `there` lay in the store, those from `later` on did not.
        let (mut there, mut later) = (0, tip + 1);
        while there < later {
            let middle = there + (later - there) / 2;
            if self.written_at(middle).await? <= time {
                there = middle + 1;
            } else {
                later = middle;
            }
        }
        Ok(there.checked_sub(1))
    }

    async fn written_at(&self, version: u64) -> Result<Timestamp, StoreError> {
        let key = self.paths.record(version);
        match self.store.head(&key).await {
            Ok(object) => Ok(Timestamp::from_micros(object.last_modified.timestamp_micros())),
            Err(error) if classify(&error) == Outcome::NotFound => {
                Err(StoreError::new(ErrorKind::Corrupt, format!("table {}: {key} is missing from its log", self.table)))
            }
            Err(error) => Err(StoreError::request(format!("cannot look at {key}"), error)),
        }
    }

    /// Everything in the log's folder from `version` on.
    pub(super) async fn list(&self, version: u64) -> Result<Listing, StoreError> {
        let folder = self.paths.folder();
        let mut found = self.store.list_with_offset(Some(folder), &self.paths.just_before(version));
        let mut listing = Listing { from: version, ..Listing::default() };
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        while let Some(object) = found.try_next().await.map_err(failed)? {
            match self.paths.parse(&object.location) {
                Some(LogFile::Record(version)) => listing.records.push(version),
                Some(LogFile::Checkpoint(version)) => listing.checkpoints.push(version),
                None => {}
            }
        }
        listing.records.sort_unstable();
        listing.checkpoints.sort_unstable();
        Ok(listing)
    }

    /// A listing that begins at the hinted checkpoint, or at record 0 if the hint leads nowhere.
    pub(super) async fn list_from_hint(&self, at: Option<u64>) -> Result<Listing, StoreError> {
        let hint = checkpoint::read_hint(self).await?;
        if let Some(hint) = hint.filter(|hint| at.is_none_or(|at| *hint <= at)) {
            let listing = self.list(hint).await?;
            if listing.checkpoints.first() == Some(&hint) {
                return Ok(listing);
            }
        }
        self.list(0).await
    }

    /// Applies the records above `state` and reports each of them. `listing` shows at least what lies above it.
    pub(super) async fn follow(
        &self,
        state: &mut LogState,
        listing: &Listing,
        stop: Stop,
        seen: &mut Seen<'_>,
    ) -> Result<(), StoreError> {
        let (at, newest) = (stop.at, listing.records.last().copied());
        if at.is_none() {
            self.check_top(listing).await?;
        }
        if let Some(at) = at.filter(|at| newest.is_some_and(|newest| newest < *at))
            && self.get(at).await?.is_none()
        {
            let what = format!("table {} has no version {at}: {} is not there", self.table, self.paths.record(at));
            return Err(StoreError::new(ErrorKind::Invalid, what));
        }
        if let Some(until) = at.or(newest) {
            self.apply_until(state, until, stop.changes_max, seen).await?;
        }
        // What came after the listing.
        while at.is_none() {
            let version = state.next_version();
            let Some(bytes) = self.get(version).await? else { break };
            seen(version, &self.apply(state, &bytes)?);
        }
        if state.tip().is_none() && self.is_there().await? && self.get(0).await?.is_none() {
            let what = format!("{} is missing, although its folder holds a log", self.paths.record(0));
            return Err(StoreError::new(ErrorKind::Corrupt, format!("table {}: {what}", self.table)));
        }
        Ok(())
    }

    async fn apply_until(
        &self,
        state: &mut LogState,
        until: u64,
        changes_max: usize,
        seen: &mut Seen<'_>,
    ) -> Result<(), StoreError> {
        let versions = futures::stream::iter(state.next_version()..=until);
        let mut bodies = versions.map(|version| async move { self.get(version).await }).buffered(READ_AHEAD);
        while let Some(body) = bodies.try_next().await? {
            let version = state.next_version();
            let bytes = body.ok_or_else(|| self.missing(version, until))?;
            seen(version, &self.apply(state, &bytes)?);
            if state.segments().is_some_and(|segments| segments.changes() >= changes_max) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, state: &mut LogState, bytes: &[u8]) -> Result<LogRecord, StoreError> {
        let version = state.next_version();
        let read = record::decode(bytes).map_err(|error| self.bad(version, &error))?;
        state.apply(&read).map_err(|error| self.bad(version, &error))?;
        Ok(read)
    }

    /// A checkpoint is written after its record, so one above all records means that records were taken away: whoever went on
    /// from the newest that is left would fork the log.
    pub(super) async fn check_top(&self, listing: &Listing) -> Result<(), StoreError> {
        let Some(top) = listing.checkpoints.last().copied() else { return Ok(()) };
        // A listing may lag behind; the record itself decides.
        if listing.records.last().is_none_or(|newest| *newest < top) && self.get(top).await?.is_none() {
            return Err(self.cut_off(top));
        }
        Ok(())
    }

    /// Record `version` is not there, although a checkpoint says that it was.
    pub(super) fn cut_off(&self, version: u64) -> StoreError {
        let what = format!("{} is missing, although {} exists", self.paths.record(version), self.paths.checkpoint(version));
        StoreError::new(ErrorKind::Corrupt, format!("table {}: {what}", self.table))
    }

    fn missing(&self, version: u64, until: u64) -> StoreError {
        let what = format!("{} is missing, although the log goes on to record {until}", self.paths.record(version));
        StoreError::new(ErrorKind::Corrupt, format!("table {}: {what}", self.table))
    }

    /// A record that stopped us, by its key.
    pub(super) fn bad(&self, version: u64, error: &RecordError) -> StoreError {
        let what = format!("table {}: {}: {error}", self.table, self.paths.record(version));
        StoreError::new(error.kind(), what)
    }
}
