//! What keepers may use: so much memory, and so many bytes a second to and from the store.
//!
//! Promises: all who share the means keep to the rate together, on average; what is held is in the budget. Nothing here waits
//! for anybody but the clock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tapedeck_common::budget::ByteBudget;
use tapedeck_common::clock::Clock;
use tapedeck_common::limits::{PART_BYTES, ROW_GROUP_BYTES};
use tapedeck_storage::segment::{PartPool, WriterOptions};

/// A row group being merged takes this part of the memory: it is there as rows, whose buffers may have grown to twice their
/// size, and once more encoded; beside it come an input's row group and the parts on their way.
const ROW_GROUP_SHARE: usize = 8;

/// What a request costs that moves no bytes to speak of, such as deleting a file.
pub const REQUEST_BYTES: u64 = 16 << 10;

/// Shared by its clones.
#[derive(Clone)]
pub struct Means(Arc<Shared>);

struct Shared {
    memory: ByteBudget,
    writer: WriterOptions,
    /// Bytes a second.
    rate: Option<f64>,
    clock: Arc<dyn Clock>,
    /// When all that was let through is paid for.
    paid_at: Mutex<Duration>,
    passed: AtomicU64,
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Means({} bytes, {:?} bytes/s)", self.0.memory.capacity(), self.0.rate)
    }
}

impl Means {
    /// `memory` bytes, and `rate` bytes a second, or as many as the store takes.
    pub fn new(memory: usize, rate: Option<f64>, clock: Arc<dyn Clock>) -> Self {
        let writer = WriterOptions {
            row_group_bytes: (memory / ROW_GROUP_SHARE).clamp(1 << 20, ROW_GROUP_BYTES),
            parts: Arc::new(PartPool::new(PART_BYTES)),
            ..WriterOptions::default()
        };
        let (paid_at, passed) = (Mutex::new(Duration::ZERO), AtomicU64::new(0));
        Self(Arc::new(Shared { memory: ByteBudget::new(memory), writer, rate, clock, paid_at, passed }))
    }

    /// The memory.
    pub fn memory(&self) -> &ByteBudget {
        &self.0.memory
    }

    /// How merged segments are written in that memory.
    pub fn writer(&self) -> &WriterOptions {
        &self.0.writer
    }

    /// Bytes that were let through so far.
    pub fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` may go to the store or come from there. What was let through before is paid for first.
    pub async fn pass(&self, bytes: u64) {
        self.0.passed.fetch_add(bytes, Ordering::Relaxed);
        let Some(rate) = self.0.rate else { return };
        let begin = {
            let mut paid_at = self.0.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*paid_at).max(self.0.clock.monotonic());
            let cost = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX);
            *paid_at = begin.saturating_add(cost);
            begin
        };
        self.0.clock.sleep_until(begin).await;
    }
}
