//! Reads a plan's events back in the order in which they are to be published.
//!
//! Promises: each lane in the order of its positions, from its resume position on; no event leaves before the whole object
//! that holds it had the checksum that the log vouches for; memory follows the budget, not the size of the archive. A
//! store that is away is waited for, without end. Never: guess around damage; the first that is met ends the stream.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::error::{BoxError, report};
use tapedeck_common::{ByteBudget, BytePermit, Clock, ErrorKind, Position, Span, Timestamp, Window};
use tapedeck_storage::layout;
use tapedeck_storage::segment::{EventBatch, GroupBatches, Scan, SegmentError, SegmentReader, SegmentScan, verify_object};
use tapedeck_storage::store::{Outcome, Store, classify};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::merge::{Merge, Mismatch, Piece, Rows, Share, Step};
use crate::plan::{Plan, PlannedSegment};
use crate::progress::Counters;

#[cfg(test)]
mod flips;

/// Rows that travel together to whoever publishes them.
const CHUNK_ROWS: usize = 512;

/// Chunks decoded ahead of the publisher.
const CHUNKS_AHEAD: usize = 4;

/// Rows decoded at once, and the bytes that they should not exceed on average.
const BATCH_ROWS: (u64, u64) = (16, 1_024);
const BATCH_BYTES: u64 = 4 << 20;

/// Objects fetched ahead at the same time.
const FETCHES: usize = 4;

/// Row groups up to this size are fetched while the one before is decoded.
const GROUP_AHEAD_BYTES: u64 = 24 << 20;

/// The share of the budget up to which an object is fetched whole: one in use and three ahead.
pub fn whole_object_max(budget: &ByteBudget) -> u64 {
    budget.capacity() as u64 / 4
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A segment could not be read, or is not what the log vouches for.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// An object is not what the log vouches for.
    #[error("segment {key}: {what}")]
    Damaged {
        /// The object's key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// An object is not there any more.
    #[error(
        "segment {key} is gone: if `archiver maintain` ran since the plan was made, at {made}, its events were merged into another \
         segment or have expired, and a new plan, under another --job, finds what is left of them; if not, the archive lost it, \
         and `archiver verify` says so"
    )]
    Gone {
        /// The object's key.
        key: String,
        /// When the plan was made.
        made: Timestamp,
    },
    /// A segment's rows are not what the plan counted.
    #[error("segment {key}: {mismatch}")]
    Rows {
        /// The object's key.
        key: String,
        /// What is wrong.
        mismatch: Mismatch,
    },
    /// Reading stopped by itself.
    #[error("reading stopped: {0}")]
    Stopped(BoxError),
}

impl StreamError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Segment(error) => error.kind(),
            Self::Damaged { .. } | Self::Gone { .. } | Self::Rows { .. } => ErrorKind::Corrupt,
            Self::Stopped(_) => ErrorKind::Bug,
        }
    }
}

/// A decoded batch with the room that it takes, which each value on its way out holds too.
#[derive(Debug)]
pub struct Batch {
    /// The events.
    pub events: EventBatch,
    /// Only events with this key are selected, if there is one.
    key: Option<Arc<[u8]>>,
    _room: Arc<BytePermit>,
}

impl Rows for Batch {
    fn len(&self) -> usize {
        self.events.len()
    }

    fn partition(&self, row: usize) -> i32 {
        self.events.place(row).0
    }

    fn position(&self, row: usize) -> i64 {
        self.events.place(row).1.as_i64()
    }

    fn is_selected(&self, row: usize) -> bool {
        self.key.as_deref().is_none_or(|key| self.events.row(row).key == Some(key))
    }
}

/// Events on their way to the publisher, in order.
pub type Chunk = Vec<Piece<Batch>>;

/// What a stream needs.
pub struct Source {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Where each lane goes on, by number.
    pub resume_at: Vec<Position>,
    /// Where the archive lies.
    pub store: Store,
    /// The memory for objects and batches.
    pub budget: ByteBudget,
    /// Waits between tries.
    pub clock: Arc<dyn Clock>,
    /// Chance for those waits.
    pub rng: fastrand::Rng,
    /// What is counted on the way.
    pub counters: Arc<Counters>,
}

/// Starts reading; chunks come in order, and after an error nothing comes. Dropping the receiver stops it.
pub fn open(source: Source) -> mpsc::Receiver<Result<Chunk, StreamError>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let (handle, to_reader) = (Handle::current(), chunks.clone());
    let reading = tokio::task::spawn_blocking(move || Reader::new(source, handle, to_reader).run());
    tokio::spawn(async move {
        // An end without an error must mean that all has been read, so a reader that broke says so as well.
        let error = match reading.await {
            Ok(Ok(()) | Err(Stop::Unheard)) => return,
            Ok(Err(Stop::Failed(error))) => error,
            Err(error) => StreamError::Stopped(Box::new(error)),
        };
        // A receiver that is gone has stopped for reasons of its own.
        let _ = chunks.send(Err(error)).await;
    });
    receiver
}

enum Stop {
    Failed(StreamError),
    /// Nobody listens any more.
    Unheard,
}

impl From<StreamError> for Stop {
    fn from(error: StreamError) -> Self {
        Self::Failed(error)
    }
}

/// An object whose checksum was right.
struct Object {
    reader: SegmentReader,
    permit: BytePermit,
    is_held: bool,
}

/// A segment that is being decoded.
enum Decoding {
    Held(Box<dyn Iterator<Item = Result<EventBatch, SegmentError>> + Send>),
    Ranged(Box<Ranges>),
}

/// A segment that is fetched a row group at a time.
struct Ranges {
    scan: SegmentScan,
    group: Option<GroupBatches>,
}

struct Opened {
    decoding: Decoding,
    row_bytes: u64,
    /// The room of the object: kept while it is read.
    _permit: BytePermit,
}

struct Reader {
    source: Source,
    key: Option<Arc<[u8]>>,
    handle: Handle,
    chunks: mpsc::Sender<Result<Chunk, StreamError>>,
    /// Segments to come, in order, and those that are fetched ahead.
    upcoming: VecDeque<usize>,
    fetching: BTreeMap<usize, JoinHandle<Result<Object, StreamError>>>,
    chunk: Chunk,
    chunk_rows: usize,
}

impl Reader {
    fn new(source: Source, handle: Handle, chunks: mpsc::Sender<Result<Chunk, StreamError>>) -> Self {
        let key = source.plan.selection.key_bytes().ok().flatten().map(Arc::from);
        let (upcoming, fetching) = (VecDeque::new(), BTreeMap::new());
        Self { source, key, handle, chunks, upcoming, fetching, chunk: Vec::new(), chunk_rows: 0 }
    }

    fn run(&mut self) -> Result<(), Stop> {
        let plan = Arc::clone(&self.source.plan);
        let numbers = plan.lane_numbers();
        let shares = |segment: &PlannedSegment| -> Vec<Share> {
            let share = |share: &crate::plan::PlannedShare| {
                let lane = numbers[&segment.lane(share)];
                Share {
                    lane,
                    partition: share.partition,
                    first: share.first.as_i64(),
                    last: share.last.as_i64(),
                    rows: share.events,
                    resume_at: self.source.resume_at[lane as usize].as_i64(),
                }
            };
            segment.lanes.iter().map(share).collect()
        };
        let runs: Vec<Vec<(usize, Vec<Share>)>> = plan
            .runs()
            .into_iter()
            .map(|run| run.into_iter().map(|segment| (segment, shares(&plan.segments[segment]))).collect::<Vec<_>>())
            .map(|run| run.into_iter().filter(|(_, shares)| shares.iter().any(|share| share.last >= share.resume_at)).collect())
            .filter(|run: &Vec<_>| !run.is_empty())
            .collect();
        self.upcoming = runs.iter().flatten().map(|(segment, _)| *segment).collect();
        for run in runs {
            self.merge(&plan, &run)?;
        }
        self.flush()
    }

    fn merge(&mut self, plan: &Plan, run: &[(usize, Vec<Share>)]) -> Result<(), Stop> {
        let shares: Vec<Vec<Share>> = run.iter().map(|(_, shares)| shares.clone()).collect();
        let mut merge: Merge<Batch> = Merge::new(&shares);
        let mut open: Vec<Option<Opened>> = run.iter().map(|_| None).collect();
        let mut last_read = 0;
        loop {
            let failed = |member: usize| {
                let key = key_of(&plan.segments[run[member].0]).to_string();
                move |mismatch| Stop::Failed(StreamError::Rows { key, mismatch })
            };
            match merge.step().map_err(failed(last_read))? {
                Step::Done => return Ok(()),
                Step::Publish(piece) => self.push(piece)?,
                Step::Read(member) => {
                    last_read = member;
                    let (segment, shares) = &run[member];
                    if open[member].is_none() {
                        self.flush()?;
                        open[member] = Some(self.open_segment(*segment, shares)?);
                    }
                    let opened = open[member].as_mut().expect("opened just above");
                    match next_batch(&self.handle, opened).map_err(StreamError::from)? {
                        Some(mut events) => {
                            let room = Arc::new(self.source.budget.force(events.len() * opened.row_bytes as usize));
                            events.lend(&room);
                            self.source.counters.read(events.len() as u64);
                            let batch = Arc::new(Batch { events, key: self.key.clone(), _room: room });
                            merge.add(member, &batch).map_err(failed(member))?;
                        }
                        None => merge.end(member).map_err(failed(member))?,
                    }
                }
            }
        }
    }

    fn push(&mut self, piece: Piece<Batch>) -> Result<(), Stop> {
        self.chunk_rows += piece.rows.len();
        self.chunk.push(piece);
        if self.chunk_rows >= CHUNK_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.chunk_rows = 0;
        self.chunks.blocking_send(Ok(std::mem::take(&mut self.chunk))).map_err(|_| Stop::Unheard)
    }

    /// Opens the segment that the merge needs, whatever the budget says, and fetches ahead what it allows.
    fn open_segment(&mut self, segment: usize, shares: &[Share]) -> Result<Opened, Stop> {
        let fetched = match self.fetching.remove(&segment) {
            Some(fetching) => fetching,
            None => {
                self.upcoming.retain(|other| *other != segment);
                let permit = self.source.budget.force(self.room_for(segment));
                self.fetch(segment, permit)
            }
        };
        self.fetch_ahead();
        let chunks = self.chunks.clone();
        let object = self.handle.block_on(async {
            tokio::select! {
                object = fetched => Some(object),
                () = chunks.closed() => None,
            }
        });
        let object = object.ok_or(Stop::Unheard)?.map_err(|error| StreamError::Stopped(Box::new(error)))??;
        let planned = &self.source.plan.segments[segment];
        Ok(opened(object, planned, shares, self.source.plan.selection.partitions.is_empty(), self.time_range(planned)))
    }

    fn fetch_ahead(&mut self) {
        while self.fetching.len() < FETCHES
            && let Some(segment) = self.upcoming.front().copied()
            && let Some(permit) = self.source.budget.try_reserve(self.room_for(segment))
        {
            self.upcoming.pop_front();
            let fetching = self.fetch(segment, permit);
            self.fetching.insert(segment, fetching);
        }
    }

    /// Room for an object: all of it, or a row group and the next one.
    fn room_for(&self, segment: usize) -> usize {
        let size = self.source.plan.segments[segment].size;
        if size <= whole_object_max(&self.source.budget) { size as usize } else { 2 * GROUP_AHEAD_BYTES as usize }
    }

    fn fetch(&mut self, segment: usize, permit: BytePermit) -> JoinHandle<Result<Object, StreamError>> {
        let (store, clock) = (self.source.store.clone(), Arc::clone(&self.source.clock));
        let planned = self.source.plan.segments[segment].clone();
        let whole = planned.size <= whole_object_max(&self.source.budget);
        let (made, mut rng) = (self.source.plan.made.unwrap_or_default(), self.source.rng.fork());
        self.handle.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
            let reader = loop {
                let fetched = if whole { fetch_whole(&store, &planned).await } else { fetch_checked(&store, &planned).await };
                match fetched {
                    Err(error) if error.kind() == ErrorKind::Unavailable => {
                        let wait = backoff.next_wait(rng.f64());
                        warn!(object_key = %key_of(&planned), attempt = backoff.attempts(), error = %report(&error), "the store is away, trying again");
                        clock.sleep(wait).await;
                    }
                    other => break other.map_err(|error| gone(error, made))?,
                }
            };
            Ok(Object { reader, permit, is_held: whole })
        })
    }

    /// The times to filter by, where rows of a segment have to be looked at.
    fn time_range(&self, planned: &PlannedSegment) -> Option<(Timestamp, Timestamp)> {
        let selection = &self.source.plan.selection;
        let (from, until) = (selection.from, selection.until);
        let ends = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        (!planned.whole && (from.is_some() || until.is_some())).then(|| (from.unwrap_or(ends.0), until.unwrap_or(ends.1)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.fetching.values().for_each(JoinHandle::abort);
    }
}

/// Begins to decode; rows of other lanes, times and positions are left out by the scan where there can be any.
fn opened(
    object: Object,
    planned: &PlannedSegment,
    shares: &[Share],
    all_lanes: bool,
    times: Option<(Timestamp, Timestamp)>,
) -> Opened {
    let (rows, bytes) = planned.lanes.iter().fold((0, 0), |(rows, bytes), lane| (rows + lane.events, bytes + lane.bytes));
    let row_bytes = bytes / rows.max(1) + 64;
    let resumed = shares.iter().any(|share| share.resume_at > share.first);
    let span = |share: &Share| {
        let position = |at: i64| Position::from_i64(at).unwrap_or_default();
        let (from, until) = (position(share.first.max(share.resume_at)), position(share.last).next());
        (share.partition, Span::new(from.min(until), until).expect("from was cut to until"))
    };
    let lanes = (!planned.whole || !all_lanes || resumed).then(|| shares.iter().map(span).collect());
    let batch_rows = (BATCH_BYTES / row_bytes).clamp(BATCH_ROWS.0, BATCH_ROWS.1) as usize;
    let scan = Scan { times, lanes, batch_rows, ahead_bytes: GROUP_AHEAD_BYTES, ..Scan::default() };
    let decoding = if object.is_held {
        Decoding::Held(Box::new(object.reader.batches(scan)))
    } else {
        Decoding::Ranged(Box::new(Ranges { scan: object.reader.scan(scan), group: None }))
    };
    Opened { decoding, row_bytes, _permit: object.permit }
}

fn next_batch(handle: &Handle, opened: &mut Opened) -> Result<Option<EventBatch>, SegmentError> {
    match &mut opened.decoding {
        Decoding::Held(batches) => batches.next().transpose(),
        Decoding::Ranged(ranges) => loop {
            if let Some(batch) = ranges.group.as_mut().and_then(Iterator::next) {
                return batch.map(Some);
            }
            ranges.group = handle.block_on(ranges.scan.next_group())?;
            if ranges.group.is_none() {
                return Ok(None);
            }
        },
    }
}

/// The key of a planned segment.
pub(crate) fn key_of(planned: &PlannedSegment) -> Path {
    layout::table_object(&planned.table, &planned.path)
}

async fn fetch_whole(store: &Store, planned: &PlannedSegment) -> Result<SegmentReader, StreamError> {
    let key = key_of(planned);
    let damaged = |what: String| StreamError::Damaged { key: key.to_string(), what };
    let fetched = async { store.patient.get(&key).await?.bytes().await };
    let bytes = fetched.await.map_err(|error| unreadable(&key, error))?;
    if bytes.len() as u64 != planned.size {
        return Err(damaged(format!("it has {} bytes, the log says {}", bytes.len(), planned.size)));
    }
    let (name, planned) = (key.to_string(), planned.clone());
    let verified = tokio::task::spawn_blocking(move || verify(&name, &planned, bytes)).await;
    verified.map_err(|error| StreamError::Stopped(Box::new(error)))?
}

fn verify(key: &str, planned: &PlannedSegment, bytes: Bytes) -> Result<SegmentReader, StreamError> {
    let (hash, expected) = (blake3::hash(&bytes).to_hex(), &planned.blake3);
    if hash.as_str() != expected {
        return Err(StreamError::Damaged { key: key.to_owned(), what: format!("its BLAKE3 is {hash}, the log says {expected}") });
    }
    of_topic(SegmentReader::from_bytes(key, bytes)?, key, planned)
}

/// Under the wrong topic whole events would go where they never belonged.
fn of_topic(reader: SegmentReader, key: &str, planned: &PlannedSegment) -> Result<SegmentReader, StreamError> {
    if reader.topic() == Some(planned.topic.as_str()) {
        return Ok(reader);
    }
    let what = format!("it is of topic {:?}, the log says {}", reader.topic(), planned.topic);
    Err(StreamError::Damaged { key: key.to_owned(), what })
}

/// For objects too large to hold: proves it first, then reads it by ranges.
async fn fetch_checked(store: &Store, planned: &PlannedSegment) -> Result<SegmentReader, StreamError> {
    let (key, vouched) = (key_of(planned), vouched(planned));
    verify_object(store.patient.as_ref(), &key, &vouched).await?;
    let name = key.to_string();
    of_topic(SegmentReader::open_vouched(Arc::clone(&store.patient), key, &vouched).await?, &name, planned)
}

fn unreadable(key: &Path, error: object_store::Error) -> StreamError {
    let (what, kind) = match classify(&error) {
        Outcome::NotFound => ("the store does not have it", ErrorKind::Corrupt),
        // A store that refuses for good would be asked for ever.
        Outcome::Denied => ("cannot be read", ErrorKind::Invalid),
        _ => ("cannot be read", ErrorKind::Unavailable),
    };
    StreamError::Segment(SegmentError { key: key.to_string(), what: what.to_owned(), kind, source: Some(Box::new(error)) })
}

/// Says of an object that is not there what may have become of it.
fn gone(error: StreamError, made: Timestamp) -> StreamError {
    match error {
        StreamError::Segment(error) if is_not_found(&error) => StreamError::Gone { key: error.key, made },
        other => other,
    }
}

fn is_not_found(error: &SegmentError) -> bool {
    let cause = error.source.as_ref().and_then(|cause| cause.downcast_ref::<object_store::Error>());
    cause.is_some_and(|cause| classify(cause) == Outcome::NotFound)
}

/// What the log said about a planned segment, as far as reading needs it.
pub(crate) fn vouched(planned: &PlannedSegment) -> SegmentRef {
    let times = (planned.earliest.unwrap_or_default(), planned.latest.unwrap_or_default());
    SegmentRef {
        path: planned.path.clone(),
        source: planned.source.as_str().into(),
        topic: planned.topic.as_str().into(),
        window: Window::of(times.0),
        rows: planned.rows,
        size: planned.size,
        blake3: planned.blake3.clone(),
        modified: Timestamp::default(),
        times,
        null_keys: 0,
        null_values: 0,
        lanes: Vec::new(),
    }
}
