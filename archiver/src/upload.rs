//! Encodes one group's chunks on the CPU pool and streams the finished parts out while the batch is still open.
//!
//! Promises: full row groups leave memory as parts; what is held is in the budget; dropping an open segment stops its work
//! and leaves at most an orphan. Never: decide when a batch closes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tapedeck_common::budget::{ByteBudget, BytePermit};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{PART_BYTES, ROW_GROUP_BYTES};
use tapedeck_common::time::Timestamp;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::segment::{SegmentError, SegmentStore, SegmentUpload, SegmentWriter, WriterOptions};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::batcher::{Chunk, GroupKey};

/// Chunks that may wait for a busy encoder; more of them wait in the batcher.
const CHUNKS_WAITING: usize = 1;

/// Below this a row group is not worth its own statistics.
const ROW_GROUP_BYTES_MIN: usize = 1 << 20;

/// A segment that gets nothing for so long packs its open pages, so that quiet hours cost little memory.
const QUIET_AFTER: Duration = Duration::from_secs(5);

/// A failure that trying again inside did not cure.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The work ended without an answer: the process is going down.
    #[error("the work on segment {path} was stopped")]
    Stopped {
        /// The object.
        path: String,
    },
}

impl UploadError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Segment(error) => error.kind(),
            Self::Stopped { .. } => ErrorKind::Stale,
        }
    }
}

/// Opens segments. Cheap to clone; all clones share the CPU pool and the count of open segments.
#[derive(Clone)]
pub struct Segments(Arc<Inner>);

struct Inner {
    store: SegmentStore,
    clock: Arc<dyn Clock>,
    budget: ByteBudget,
    pool: Arc<ColumnsPool>,
    encoders: Semaphore,
    open: AtomicUsize,
    seeds: AtomicU64,
    options: WriterOptions,
    /// Counts up when an encoder has room again.
    progress: watch::Sender<u64>,
}

impl Segments {
    /// Segments go to `store`, written as `options` say; at most `encoders` chunks are encoded at once.
    pub fn new(
        store: SegmentStore,
        options: WriterOptions,
        clock: Arc<dyn Clock>,
        budget: ByteBudget,
        pool: Arc<ColumnsPool>,
        encoders: usize,
        seed: u64,
    ) -> Self {
        let (encoders, open, seeds) = (Semaphore::new(encoders), AtomicUsize::new(0), AtomicU64::new(seed));
        let progress = watch::Sender::new(0);
        Self(Arc::new(Inner { store, clock, budget, pool, encoders, open, seeds, options, progress }))
    }

    /// Changes when an encoder has room again.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.0.progress.subscribe()
    }

    /// Begins a segment of a table, under a fresh name. Nothing is written before its first chunk.
    pub fn open(&self, table: &str, key: &GroupKey, archived_at: Timestamp) -> OpenSegment {
        let (chunks, inbox) = mpsc::channel(CHUNKS_WAITING);
        let gauge = Arc::new(Gauge::default());
        let inner = Arc::clone(&self.0);
        let mut chance = fastrand::Rng::with_seed(inner.seeds.fetch_add(1, Ordering::Relaxed));
        let name = fresh_uuid(inner.clock.now(), &mut chance);
        let path = layout::segment_path(&key.topic, key.window, &name);
        let object = layout::table_object(table, &path);
        let upload = Some(inner.store.upload(object, chance));
        let writer = SegmentWriter::new(Arc::clone(&key.topic), Arc::clone(&key.source), key.window, archived_at, &inner.options);
        inner.open.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&inner));
        let worker = Worker {
            held: inner.budget.force(0),
            inner,
            gauge: Arc::clone(&gauge),
            writer: Some(writer),
            upload,
            path: path.clone(),
            _counted: counted,
        };
        OpenSegment { path, chunks: Some(chunks), gauge, work: AbortOnDropHandle::new(tokio::spawn(worker.run(inbox))) }
    }
}

/// Counts a segment as open for as long as it holds memory.
struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Gauge {
    encoded: AtomicU64,
    held: AtomicUsize,
    ended: AtomicBool,
}

/// A segment that is being written. Dropping it abandons it.
#[derive(Debug)]
pub struct OpenSegment {
    path: String,
    chunks: Option<mpsc::Sender<Chunk>>,
    gauge: Arc<Gauge>,
    work: AbortOnDropHandle<Result<Option<SegmentRef>, UploadError>>,
}

impl OpenSegment {
    /// True if a chunk sent now would be accepted.
    pub fn has_room(&self) -> bool {
        self.chunks.as_ref().is_some_and(|chunks| !chunks.is_closed() && chunks.capacity() > 0)
    }

    /// Sends a chunk to the encoder. Call only after [`Self::has_room`]; false if the work has failed.
    pub fn send(&mut self, chunk: Chunk) -> bool {
        self.chunks.as_ref().is_some_and(|chunks| chunks.try_send(chunk).is_ok())
    }

    /// No more chunks come: the segment is finished in the background.
    pub fn close(&mut self) {
        self.chunks = None;
    }

    /// Encoded bytes so far, those of the row group in progress estimated.
    pub fn encoded_bytes(&self) -> u64 {
        self.gauge.encoded.load(Ordering::Relaxed)
    }

    /// Bytes that it holds until its row group is full; parts on their way leave by themselves and are not counted.
    pub fn held_bytes(&self) -> usize {
        self.gauge.held.load(Ordering::Relaxed)
    }

    /// True if the work ended although more chunks may come: it failed, and [`Self::finish`] tells how.
    pub fn has_failed(&self) -> bool {
        self.chunks.is_some() && self.gauge.ended.load(Ordering::Acquire)
    }

    /// Sends the last rows, finishes the object and waits until the store has it. `None` if no row ever came.
    pub async fn finish(mut self, rest: Option<Chunk>) -> Result<Option<SegmentRef>, UploadError> {
        if let (Some(chunk), Some(chunks)) = (rest, &self.chunks) {
            // Refused only if the work has failed; then its answer below says how.
            let _ = chunks.send(chunk).await;
        }
        self.chunks = None;
        match self.work.await {
            Ok(answer) => answer,
            Err(stopped) if stopped.is_panic() => std::panic::resume_unwind(stopped.into_panic()),
            Err(_) => Err(UploadError::Stopped { path: self.path }),
        }
    }
}

struct Worker {
    inner: Arc<Inner>,
    gauge: Arc<Gauge>,
    /// Away only while a chunk is being encoded.
    writer: Option<SegmentWriter>,
    /// Away once it is finished.
    upload: Option<SegmentUpload>,
    held: BytePermit,
    path: String,
    _counted: Counted,
}

impl Worker {
    async fn run(mut self, inbox: mpsc::Receiver<Chunk>) -> Result<Option<SegmentRef>, UploadError> {
        let answer = self.work(inbox).await;
        self.gauge.ended.store(true, Ordering::Release);
        answer
    }

    async fn work(&mut self, mut inbox: mpsc::Receiver<Chunk>) -> Result<Option<SegmentRef>, UploadError> {
        let mut rows = false;
        while let Some(chunk) = self.next(&mut inbox).await? {
            rows = true;
            self.inner.progress.send_modify(|count| *count += 1);
            self.encode(chunk).await?;
            let parts = self.writer().take_parts(PART_BYTES);
            // What the writer let go of is held by the upload from here on, also what waits for its turn there.
            let parts: Vec<_> = parts.into_iter().map(|part| (self.inner.budget.force(part.len()), part)).collect();
            self.account();
            for (room, part) in parts {
                self.upload.as_mut().expect("not finished yet").push(part, Some(room)).await?;
            }
        }
        if !rows {
            return Ok(None);
        }
        let writer = self.writer.take().expect("the writer is back between chunks");
        let mut finished = self.blocking(move || writer.finish()).await?;
        self.held.resize(finished.memory_bytes());
        let upload = self.upload.take().expect("not finished yet");
        upload.finish(finished.take_parts(), finished.size()).await?;
        let segment = finished.into_ref(self.path.clone(), self.inner.clock.now());
        self.held.resize(0);
        self.gauge.encoded.store(segment.size, Ordering::Relaxed);
        self.gauge.held.store(0, Ordering::Relaxed);
        Ok(Some(segment))
    }

    /// Waits for the next chunk; a wait that gets long is used to pack what is held.
    async fn next(&mut self, inbox: &mut mpsc::Receiver<Chunk>) -> Result<Option<Chunk>, UploadError> {
        let clock = Arc::clone(&self.inner.clock);
        tokio::select! {
            biased;
            chunk = inbox.recv() => return Ok(chunk),
            () = clock.sleep(QUIET_AFTER) => {}
        }
        let mut writer = self.writer.take().expect("the writer is back between chunks");
        let packed = self.blocking(move || {
            writer.shrink();
            writer
        });
        self.writer = Some(packed.await?);
        self.account();
        Ok(inbox.recv().await)
    }

    async fn encode(&mut self, chunk: Chunk) -> Result<(), UploadError> {
        let Chunk { blocks, permit } = chunk;
        let open = self.inner.open.load(Ordering::Relaxed).max(1);
        let row_group_bytes = (self.inner.budget.capacity() / (4 * open)).clamp(ROW_GROUP_BYTES_MIN, ROW_GROUP_BYTES);
        let mut writer = self.writer.take().expect("the writer is back between chunks");
        writer.set_row_group_bytes(row_group_bytes);
        let encoded = self.blocking(move || {
            let used = writer.write_chunk(blocks);
            (writer, used)
        });
        let (writer, used) = encoded.await?;
        self.writer = Some(writer);
        used.into_iter().for_each(|columns| self.inner.pool.give_back(columns));
        // The encoded rows are counted before the raw ones are let go, so that the bus never sees room that is not there.
        self.account();
        drop(permit);
        Ok(())
    }

    fn writer(&mut self) -> &mut SegmentWriter {
        self.writer.as_mut().expect("the writer is back between chunks")
    }

    fn account(&mut self) {
        let writer = self.writer.as_ref().expect("the writer is back between chunks");
        let held = writer.memory_bytes();
        self.gauge.encoded.store(writer.encoded_bytes(), Ordering::Relaxed);
        self.gauge.held.store(held, Ordering::Relaxed);
        self.held.resize(held);
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, UploadError> {
        let _turn = self.inner.encoders.acquire().await.expect("never closed");
        match tokio::task::spawn_blocking(work).await {
            Ok(answer) => Ok(answer),
            Err(stopped) if stopped.is_panic() => std::panic::resume_unwind(stopped.into_panic()),
            Err(_) => Err(UploadError::Stopped { path: self.path.clone() }),
        }
    }
}
