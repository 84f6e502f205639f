//! One table's batches on their way: the one that is open, and at most one that is being stored and committed.
//!
//! Promises: never two commits of a table in flight; batch n + 1 never overtakes batch n; what is abandoned leaves no trace but orphans.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::RevokeGuard;
use tapedeck_common::commit::{Appended, CommitError, CommitLog, Receipt, SegmentRef};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{BATCH_GROUPS_MAX, CHUNK_BYTES, OPEN_SEGMENTS_MAX};
use tapedeck_common::position::{LaneId, Position};
use tapedeck_common::time::Timestamp;
use tokio::sync::Mutex;
use tracing::info;

use crate::batcher::{Batcher, Chunk, GroupKey, OpenBatch};
use crate::pipeline::Shared;
use crate::seal::{SealPolicy, SealReason, TableLoad};
use crate::status::LaneStatus;
use crate::upload::{OpenSegment, Segments, UploadError};
use crate::watermark::Watermark;

/// A table log that pipelines of one process share: the lock is what keeps commits of a table one at a time.
pub type SharedLog = Arc<Mutex<Box<dyn CommitLog>>>;

/// Below this a chunk is not worth its own pages.
const CHUNK_BYTES_MIN: usize = 256 << 10;

/// Why a batch could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// A segment could not be encoded or put.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The log could not be read or written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl StoreFailure {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Upload(error) => error.kind(),
            Self::Commit(error) => error.kind(),
        }
    }
}

/// How storing a batch ended.
#[derive(Debug)]
pub struct Stored {
    /// Whether its record is in the log.
    pub appended: Appended,
    /// The segments that it wrote.
    pub segments: Vec<SegmentRef>,
    /// From sealing until the last segment was stored.
    pub put_time: Duration,
    /// From there until the record's fate was known.
    pub commit_time: Duration,
}

/// What was known of a batch when it was sealed.
#[derive(Debug)]
pub struct StoredBatch {
    /// Why it was sealed.
    pub reason: SealReason,
    /// Its events.
    pub rows: u64,
    oldest: Timestamp,
    lanes: Vec<LaneId>,
    _guards: Vec<RevokeGuard>,
}

/// One table of a source.
pub struct Table {
    /// Its name.
    pub name: Arc<str>,
    /// What is being collected.
    pub batcher: Batcher,
    log: SharedLog,
    segments: BTreeMap<GroupKey, OpenSegment>,
    /// Segments of the open batch that were finished early to make room for other hours.
    finished: Vec<OpenSegment>,
    guards: Vec<RevokeGuard>,
    seal_wanted: Option<SealReason>,
    storing: Option<StoredBatch>,
    committed: BTreeMap<LaneId, Position>,
    watermarks: BTreeMap<LaneId, Watermark>,
}

impl Table {
    /// A table whose records go to `log`, with memory out of `budget`.
    pub fn new(name: Arc<str>, log: SharedLog, budget: &ByteBudget) -> Self {
        Self {
            name,
            log,
            batcher: Batcher::within(budget.capacity()),
            segments: BTreeMap::new(),
            finished: Vec::new(),
            guards: Vec::new(),
            seal_wanted: None,
            storing: None,
            committed: BTreeMap::new(),
            watermarks: BTreeMap::new(),
        }
    }

    /// Sends every group whose waiting rows make a full chunk to its encoder.
    pub fn feed(&mut self, store: &Segments, budget: &ByteBudget) {
        let Some(open) = self.batcher.open() else { return };
        for key in open.full_groups(self.chunk_bytes(budget)) {
            self.feed_group(&key, store);
        }
    }

    /// Rows that make a chunk: smaller with many segments, so that what waits for chunks to fill stays a share of the memory.
    fn chunk_bytes(&self, budget: &ByteBudget) -> usize {
        (budget.capacity() / 8 / (self.segments.len() + 1)).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES)
    }

    /// Bytes of full chunks whose encoder is busy.
    pub fn backlog(&self, budget: &ByteBudget) -> usize {
        let (open, chunk_bytes) = (self.batcher.open(), self.chunk_bytes(budget));
        let waiting = open.into_iter().flat_map(OpenBatch::waiting);
        waiting.filter(|(key, bytes)| *bytes >= chunk_bytes && !self.can_encode(key)).map(|(_, bytes)| bytes).sum()
    }

    /// The group with the most waiting rows among those whose encoder has room, and their bytes.
    fn fullest_group(&self) -> Option<(&GroupKey, usize)> {
        let waiting = self.batcher.open().into_iter().flat_map(OpenBatch::waiting);
        waiting.filter(|(key, _)| self.can_encode(key)).max_by_key(|(_, bytes)| *bytes)
    }

    fn can_encode(&self, key: &GroupKey) -> bool {
        self.segments.get(key).is_none_or(OpenSegment::has_room)
    }

    /// Sends the fullest group's waiting rows to its encoder. False if there is nothing to send, or no room there.
    pub fn feed_fullest(&mut self, store: &Segments) -> bool {
        let key = self.fullest_group().map(|(key, _)| key.clone());
        key.is_some_and(|key| self.feed_group(&key, store))
    }

    fn feed_group(&mut self, key: &GroupKey, store: &Segments) -> bool {
        let Some(open) = self.batcher.open_mut() else { return false };
        if !self.segments.contains_key(key) {
            if key.lone.is_none() {
                make_room(&mut self.segments, &mut self.finished, open);
            }
            self.segments.insert(key.clone(), store.open(&self.name, key, open.opened_at));
        }
        let segment = self.segments.get_mut(key).expect("inserted above");
        if !segment.has_room() {
            return false;
        }
        let sent = open.take_chunk(key).is_some_and(|chunk| segment.send(chunk));
        if let Some((partition, position)) = key.lone
            && let Some(mut segment) = self.segments.remove(key)
        {
            // Nothing else comes, and its memory is to leave now, not when the batch is sealed.
            segment.close();
            self.finished.push(segment);
            info!(table = %self.name, topic = &*key.topic, partition, %position, "over-size event, stored in a segment of its own");
        }
        sent
    }

    /// What the table holds in memory.
    pub fn load(&self, number: usize) -> TableLoad {
        // What waits for a busy encoder goes by itself.
        let waiting = self.batcher.open().into_iter().flat_map(OpenBatch::waiting);
        TableLoad {
            table: number,
            fullest_group: self.fullest_group().map_or(0, |(_, bytes)| bytes),
            raw: waiting.filter(|(key, _)| self.can_encode(key)).map(|(_, bytes)| bytes).sum(),
            encoded: self.segments.values().map(OpenSegment::held_bytes).sum(),
            storing: self.storing.is_some(),
        }
    }

    /// Why the open batch must close now, if it must.
    pub fn seal_reason(&self, policy: &SealPolicy, now: Duration) -> Option<SealReason> {
        let open = self.batcher.open().filter(|_| self.storing.is_none())?;
        if self.segments.values().any(OpenSegment::has_failed) {
            // Storing the batch fails at once with the segment's own error, and that is handled in one place.
            return Some(SealReason::Bytes);
        }
        if open.groups() >= BATCH_GROUPS_MAX {
            return Some(SealReason::Memory);
        }
        if open.is_window_half_used() {
            return Some(SealReason::Window);
        }
        let encoded = self.segments.values().chain(&self.finished).map(OpenSegment::encoded_bytes).sum();
        policy.reason(encoded, now.saturating_sub(open.opened))
    }

    /// The reason for which the open batch waits to be sealed behind the one that is being stored.
    pub fn seal_wanted(&self) -> Option<SealReason> {
        self.seal_wanted
    }

    /// A lane is read from `at` on, and everything before is in the log.
    pub fn resume(&mut self, lane: &LaneId, at: Position) {
        self.committed.insert(lane.clone(), at);
        self.batcher.resume(lane, at);
    }

    /// True if events of the lane are held or on their way.
    pub fn holds(&self, lane: &LaneId) -> bool {
        self.batcher.open().is_some_and(|open| open.touches(lane))
            || self.storing.as_ref().is_some_and(|storing| storing.lanes.contains(lane))
    }

    /// Keeps the bus waiting until what is held of a lane is stored.
    pub fn hold(&mut self, lane: &LaneId, guard: &RevokeGuard) {
        if self.batcher.open().is_some_and(|open| open.touches(lane)) {
            self.guards.push(guard.clone());
        }
        if let Some(storing) = &mut self.storing
            && storing.lanes.contains(lane)
        {
            storing._guards.push(guard.clone());
        }
    }

    /// True if the open batch holds something of a lane that is to be given up.
    pub fn must_seal_for_revoke(&self) -> bool {
        !self.guards.is_empty()
    }

    /// Closes the open batch. What comes back stores and commits it; `None` if there is nothing to store, or the
    /// previous batch is still on its way: then the wish is remembered.
    pub fn seal(
        &mut self,
        reason: SealReason,
        shared: &Shared,
    ) -> Option<impl Future<Output = Result<Stored, StoreFailure>> + Send + use<>> {
        if self.storing.is_some() {
            self.seal_wanted = self.batcher.open().map(|_| self.seal_wanted.unwrap_or(reason));
            return None;
        }
        self.seal_wanted = None;
        let mut batch = self.batcher.seal()?;
        let mut segments = std::mem::take(&mut self.segments);
        let mut rests = Vec::new();
        for (key, chunk) in batch.take_all() {
            rests.push(match segments.remove(&key) {
                Some(segment) => Rest::Open(segment, Some(chunk)),
                None => Rest::Waiting(key, chunk),
            });
        }
        let early = std::mem::take(&mut self.finished);
        rests.extend(segments.into_values().chain(early).map(|segment| Rest::Open(segment, None)));
        self.storing = Some(StoredBatch {
            reason,
            rows: batch.rows,
            oldest: batch.oldest.unwrap_or(batch.opened_at).min(batch.opened_at),
            lanes: batch.lanes().cloned().collect(),
            _guards: std::mem::take(&mut self.guards),
        });
        Some(store(Arc::clone(&self.name), rests, batch, Arc::clone(&self.log), shared.clone()))
    }

    /// The batch that was being stored is done with, for better or worse. Its guards go with what comes back.
    pub fn settle(&mut self) -> StoredBatch {
        self.storing.take().expect("only a batch that is being stored is ever settled")
    }

    /// Drops the open batch. All lanes that were read must be looked up again; a batch that is being stored goes its way.
    pub fn abandon(&mut self) -> Vec<LaneId> {
        self.segments.clear();
        self.finished.clear();
        self.guards.clear();
        self.seal_wanted = None;
        let lanes = self.batcher.lanes().cloned().collect();
        self.batcher.abandon();
        lanes
    }

    /// Remembers how far the lanes are committed.
    pub fn note_committed(&mut self, receipt: &Receipt) {
        for (lane, span) in receipt.spans().iter() {
            self.committed.insert(lane.clone(), span.until());
        }
    }

    /// True if nothing is held in memory or under way.
    pub fn is_settled(&self) -> bool {
        self.storing.is_none() && self.batcher.open().is_none()
    }

    /// True while a batch is on its way to the store.
    pub fn is_storing(&self) -> bool {
        self.storing.is_some()
    }

    /// Events that are taken in and not yet in the log.
    pub fn buffered_events(&self) -> u64 {
        self.batcher.open().map_or(0, |open| open.rows) + self.storing.as_ref().map_or(0, |storing| storing.rows)
    }

    /// The earliest event time among them.
    pub fn oldest_unarchived(&self) -> Option<Timestamp> {
        let storing = self.storing.as_ref().map(|storing| storing.oldest);
        self.batcher.open().and_then(|open| open.oldest).into_iter().chain(storing).min()
    }

    /// Asked at that moment, the bus ended here for a lane.
    pub fn note_end(&mut self, lane: &LaneId, end: Position, asked: Timestamp) {
        self.watermarks.entry(lane.clone()).or_default().bus_ended(end, asked);
    }

    /// Adds what is known of a lane to its status.
    pub fn describe(&mut self, lane: &LaneId, status: &mut LaneStatus) {
        let holds = self.holds(lane);
        status.reading = self.batcher.reads(lane);
        status.next = self.batcher.next(lane);
        // Behind the last event there may be positions that hold none; they need no record.
        status.committed = if holds { self.committed.get(lane).copied() } else { self.batcher.seen_to(lane) };
        if let Some(mark) = self.watermarks.get_mut(lane) {
            status.committed.into_iter().for_each(|until| mark.archived(until));
            status.watermark = mark.get();
        }
    }
}

/// Past the limit the segment that was not added to for the longest time is finished: uploaded, not yet true.
fn make_room(segments: &mut BTreeMap<GroupKey, OpenSegment>, finished: &mut Vec<OpenSegment>, open: &mut OpenBatch) {
    if segments.len() < OPEN_SEGMENTS_MAX {
        return;
    }
    if let Some(key) = open.stalest_group(segments.keys()).cloned()
        && let Some(mut segment) = segments.remove(&key)
    {
        segment.close();
        finished.push(segment);
    }
}

/// What becomes of a group when its batch is sealed.
enum Rest {
    /// Its segment is being written; the last rows, if there are some, go there.
    Open(OpenSegment, Option<Chunk>),
    /// It was too small for a segment so far.
    Waiting(GroupKey, Chunk),
}

/// Finishes all segments, then asks the log. The log is caught up with while the segments are on their way: with many
/// writers that is what makes the first attempt succeed. A batch may be of thousands of hours: a few segments at a time.
async fn store(
    table: Arc<str>,
    rests: Vec<Rest>,
    batch: OpenBatch,
    log: SharedLog,
    shared: Shared,
) -> Result<Stored, StoreFailure> {
    let began = shared.clock.monotonic();
    let (segments, opened_at) = (&shared.segments, batch.opened_at);
    let finish = |rest| match rest {
        Rest::Open(segment, chunk) => segment.finish(chunk),
        Rest::Waiting(key, chunk) => segments.open(&table, &key, opened_at).finish(Some(chunk)),
    };
    let uploads = stream::iter(rests).map(finish).buffer_unordered(OPEN_SEGMENTS_MAX).try_collect::<Vec<_>>();
    let uploads = async { Ok::<_, StoreFailure>(uploads.await?) };
    // Both are waited for: half a look at the log, left lying, would keep the log locked for ever.
    let catch_up = async { Ok(log.lock().await.checkpoint().await?) };
    let (segments, _) = try_join(uploads, catch_up).await?;
    let segments: Vec<SegmentRef> = segments.into_iter().flatten().collect();
    let uploaded = shared.clock.monotonic();
    tracing::debug!(segments = segments.len(), "segments stored, committing");
    let record = batch.into_record(segments);
    let appended = log.lock().await.append(&record).await?;
    let (put_time, commit_time) = (uploaded.saturating_sub(began), shared.clock.monotonic().saturating_sub(uploaded));
    Ok(Stored { appended, segments: record.segments, put_time, commit_time })
}
