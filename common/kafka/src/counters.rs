//! What a consumer counts about itself, for metrics. Plain numbers that only grow; reading them costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tapedeck_common::figures::BusFigures;

/// Counts of one consumer.
#[derive(Debug)]
pub struct KafkaCounters {
    events: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    stale: AtomicU64,
    last_poll_micros: AtomicU64,
    figures: Arc<BusFigures>,
}

impl Default for KafkaCounters {
    fn default() -> Self {
        let [events, bytes, skipped, stale, last_poll_micros] = Default::default();
        Self { events, bytes, skipped, stale, last_poll_micros, figures: Arc::new(BusFigures::of_group()) }
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $read:ident, $add:ident) => {
        $(#[$doc])*
        pub fn $read(&self) -> u64 {
            self.$read.load(Ordering::Relaxed)
        }

        pub(crate) fn $add(&self, more: u64) {
            self.$read.fetch_add(more, Ordering::Relaxed);
        }
    };
}

impl KafkaCounters {
    counter! {
        /// Events handed over.
        events, add_events
    }
    counter! {
        /// Payload bytes handed over: keys, values, headers.
        bytes, add_bytes
    }
    counter! {
        /// Events left out because a replay published them.
        skipped, add_skipped
    }
    counter! {
        /// Messages dropped because they came twice or belonged to an earlier assignment.
        stale, add_stale
    }
    /// Those that every bus counts.
    pub fn figures(&self) -> Arc<BusFigures> {
        Arc::clone(&self.figures)
    }

    /// How long reading has waited for room in memory or for a slow reader.
    pub fn backpressure(&self) -> Duration {
        self.figures.backpressure()
    }

    pub(crate) fn add_rebalances(&self, more: u64) {
        self.figures.add_rebalances(more);
    }

    pub(crate) fn add_backpressure(&self, waited: Duration) {
        self.figures.add_backpressure(waited);
    }

    /// When the client was last polled, on the monotonic clock: for a watchdog.
    pub fn last_poll(&self) -> Duration {
        Duration::from_micros(self.last_poll_micros.load(Ordering::Relaxed))
    }

    pub(crate) fn polled_at(&self, now: Duration) {
        self.last_poll_micros.store(now.as_micros() as u64, Ordering::Relaxed);
    }
}
