//! Brings a segment's bytes into the store under a fresh name.
//!
//! Promises: small segments in one request, large ones in parts while they are still being written; every step is repeated
//! until the store has it; after an unknown outcome the object itself is asked. Done means that an object of the right size
//! lies at the key. Never: deletes an object that may be complete; says done on a guess.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartId, ObjectStore, ObjectStoreExt, PutPayload};
use tapedeck_common::backoff::Backoff;
use tapedeck_common::error::report;
use tapedeck_common::{BytePermit, Clock, ErrorKind, limits};
use tokio::task::JoinSet;
use tracing::warn;

use super::error::SegmentError;
use super::parts::HeldParts;
use crate::store::is_upload_lost;

/// Waits between attempts.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_LONGEST: Duration = Duration::from_secs(10);

/// Attempts of a step after which the store is asked whether it still knows the upload. One that does not may close the
/// connection in the middle of a part, so that its answer is never read, or word it as a failure of its own.
const ASK_AFTER: u32 = 3;

/// The number of the part that asks; no segment has so many. A part that the completion does not name is no part of the object.
const ASKING_PART: usize = 9_999;

/// A store that stays away is told of this often, not at every attempt.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Where segments are put. Cheap to clone.
#[derive(Clone)]
pub struct SegmentStore {
    objects: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    clock: Arc<dyn Clock>,
    part_bytes: usize,
}

impl fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentStore({})", self.objects)
    }
}

impl SegmentStore {
    /// A store, and its multipart uploads (see [`super::parts`]). Neither needs to retry by itself.
    pub fn new(objects: Arc<dyn ObjectStore>, parts: Arc<dyn MultipartStore>, clock: Arc<dyn Clock>) -> Self {
        Self { objects, parts, clock, part_bytes: limits::PART_BYTES }
    }

    /// A store whose multipart uploads are held in memory until they are complete: for tests and simulated worlds.
    pub fn holding_parts(objects: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>) -> Self {
        Self::new(Arc::clone(&objects), Arc::new(HeldParts::new(objects)), clock)
    }

    /// Segments of at most this size go in one request. The same as the writer's part size.
    #[must_use]
    pub fn with_part_bytes(self, part_bytes: usize) -> Self {
        Self { part_bytes, ..self }
    }

    /// Begins an upload to `key`, a fresh name. `rng` draws the waits.
    pub fn upload(&self, key: Path, rng: fastrand::Rng) -> SegmentUpload {
        SegmentUpload {
            patience: Patience::new(self.clone(), key, rng),
            begun: None,
            in_flight: JoinSet::new(),
            in_flight_bytes: 0,
            stored: Vec::new(),
        }
    }
}

/// Waits out a store that is away.
struct Patience {
    store: SegmentStore,
    key: Path,
    rng: fastrand::Rng,
    backoff: Backoff,
    warned: Option<Duration>,
}

impl Patience {
    fn new(store: SegmentStore, key: Path, rng: fastrand::Rng) -> Self {
        Self { store, key, rng, backoff: Backoff::new(WAIT_FIRST, WAIT_LONGEST), warned: None }
    }

    fn fork(&mut self) -> Self {
        Self::new(self.store.clone(), self.key.clone(), self.rng.fork())
    }

    async fn wait(&mut self, step: &str, error: &Error) {
        let wait = self.backoff.next_wait(self.rng.f64());
        let now = self.store.clock.monotonic();
        if self.warned.is_none_or(|warned| now >= warned + WARN_EVERY) {
            self.warned = Some(now);
            let attempt = self.backoff.attempts();
            let wait_ms = wait.as_millis() as u64;
            warn!(segment = %self.key, step, attempt, wait_ms, error = %report(error), "the store refuses a segment, trying again");
        }
        self.store.clock.sleep(wait).await;
    }

    fn lost(&self, what: &str, error: Error) -> SegmentError {
        SegmentError::new(ErrorKind::Stale, self.key.as_ref(), what).because(error)
    }

    async fn put(&mut self, whole: PutPayload) {
        // The same bytes under a name that nobody else has: repeating it is safe whatever became of the attempt before.
        while let Err(error) = self.store.objects.put(&self.key, whole.clone()).await {
            self.wait("put", &error).await;
        }
    }

    async fn begin(&mut self) -> MultipartId {
        loop {
            match self.store.parts.create_multipart(&self.key).await {
                Ok(id) => return id,
                Err(error) => self.wait("begin", &error).await,
            }
        }
    }

    async fn put_part(mut self, id: MultipartId, number: usize, part: Bytes) -> Result<PartId, SegmentError> {
        let part = PutPayload::from_bytes(part);
        loop {
            match self.store.parts.put_part(&self.key, &id, number, part.clone()).await {
                Ok(part) => return Ok(part),
                Err(error) if is_upload_lost(&error) => return Err(self.lost("the store forgot its upload", error)),
                Err(error) if self.backoff.attempts() >= ASK_AFTER && self.is_forgotten(&id).await => {
                    return Err(self.lost("the store forgot its upload", error));
                }
                Err(error) => self.wait("part", &error).await,
            }
        }
    }

    /// Asks with a part that holds nothing, whose answer is read in any case.
    async fn is_forgotten(&self, id: &MultipartId) -> bool {
        let asked = self.store.parts.put_part(&self.key, id, ASKING_PART, PutPayload::new()).await;
        asked.is_err_and(|error| is_upload_lost(&error))
    }

    async fn complete(&mut self, id: &MultipartId, parts: Vec<PartId>, size: u64) -> Result<(), SegmentError> {
        loop {
            let completed = self.store.parts.complete_multipart(&self.key, id, parts.clone()).await;
            // Even a success is looked at: some stores answer it and store nothing.
            let found = self.stored_size().await;
            match (completed, found) {
                (_, Some(found)) if found == size => return Ok(()),
                (_, Some(found)) => {
                    let what = format!("the store holds {found} bytes of {size}");
                    return Err(SegmentError::new(ErrorKind::Stale, self.key.as_ref(), what));
                }
                (Err(error), None) if is_upload_lost(&error) => {
                    return Err(self.lost("the store forgot its upload", error));
                }
                // Ceph answers 500 where it has no such upload. It may be gone because it was completed just now.
                (Err(error), None) if self.backoff.attempts() >= ASK_AFTER && self.is_forgotten(id).await => {
                    if self.stored_size().await != Some(size) {
                        return Err(self.lost("the store forgot its upload", error));
                    }
                }
                (Err(error), None) => self.wait("complete", &error).await,
                (Ok(_), None) => {
                    let error = Error::Generic { store: "segment", source: "completed, but the store does not have it".into() };
                    self.wait("complete", &error).await;
                }
            }
        }
    }

    /// Asks the object itself: its size, `None` if it is not there.
    async fn stored_size(&mut self) -> Option<u64> {
        loop {
            match self.store.objects.head(&self.key).await {
                Ok(object) => return Some(object.size),
                Err(Error::NotFound { .. }) => return None,
                Err(error) => self.wait("look", &error).await,
            }
        }
    }
}

type Stored = (usize, usize, Result<PartId, SegmentError>);

/// One segment on its way. Dropping it cancels what is in flight and forgets the parts, as well as the store lets it.
pub struct SegmentUpload {
    patience: Patience,
    begun: Option<MultipartId>,
    in_flight: JoinSet<Stored>,
    in_flight_bytes: usize,
    /// By part number.
    stored: Vec<Option<PartId>>,
}

impl fmt::Debug for SegmentUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentUpload({}, {} parts)", self.patience.key, self.stored.len())
    }
}

impl SegmentUpload {
    /// The object's key.
    pub fn key(&self) -> &Path {
        &self.patience.key
    }

    /// Bytes of parts that the store does not have yet.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Sends the next part, and gives its room back once the store has it. Waits while [`limits::PARTS_IN_FLIGHT`] parts
    /// are on their way. `Stale` if the store forgot the upload: the segment must be written anew from the bus.
    pub async fn push(&mut self, part: Bytes, room: Option<BytePermit>) -> Result<(), SegmentError> {
        let id = match &self.begun {
            Some(id) => id.clone(),
            None => self.begun.insert(self.patience.begin().await).clone(),
        };
        while self.in_flight.len() >= limits::PARTS_IN_FLIGHT {
            self.settle_one().await?;
        }
        let (number, bytes) = (self.stored.len(), part.len());
        self.stored.push(None);
        self.in_flight_bytes += bytes;
        let patience = self.patience.fork();
        self.in_flight.spawn(async move {
            let stored = patience.put_part(id, number, part).await;
            drop(room);
            (number, bytes, stored)
        });
        Ok(())
    }

    /// Sends what is left of the segment and ends the upload: afterwards an object of `size` bytes lies at the key.
    pub async fn finish(mut self, last: Vec<Bytes>, size: u64) -> Result<(), SegmentError> {
        if self.begun.is_none() && size <= self.patience.store.part_bytes as u64 {
            self.patience.put(last.into_iter().collect()).await;
            return Ok(());
        }
        for part in last {
            self.push(part, None).await?;
        }
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
        }
        let parts = self.stored.iter_mut().map(|part| part.take().expect("settled just now")).collect();
        let id = self.begun.clone().expect("more than one part was pushed");
        self.patience.complete(&id, parts, size).await?;
        self.begun = None;
        Ok(())
    }

    /// Waits until the store has one more of the parts that are on their way, if there are any.
    pub async fn settle_one(&mut self) -> Result<(), SegmentError> {
        let Some(settled) = self.in_flight.join_next().await else { return Ok(()) };
        let (number, bytes, stored) = settled
            .map_err(|error| SegmentError::new(ErrorKind::Bug, self.patience.key.as_ref(), "an upload stopped").because(error))?;
        self.in_flight_bytes -= bytes;
        self.stored[number] = Some(stored?);
        Ok(())
    }
}

impl Drop for SegmentUpload {
    fn drop(&mut self) {
        // Only what was begun and never completed: its parts cost money and are invisible.
        let Some(id) = self.begun.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (parts, key) = (Arc::clone(&self.patience.store.parts), self.patience.key.clone());
        runtime.spawn(async move { parts.abort_multipart(&key, &id).await });
    }
}
