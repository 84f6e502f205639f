//! What a consumer counts about itself, for metrics. Plain numbers that only grow; reading them costs nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of one consumer.
#[derive(Debug, Default)]
pub struct KafkaCounters {
    events: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    stale: AtomicU64,
    rebalances: AtomicU64,
    backpressure_micros: AtomicU64,
    last_poll_micros: AtomicU64,
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
    counter! {
        /// Rebalances served.
        rebalances, add_rebalances
    }

    /// How long reading has waited for room in memory or for a slow reader.
    pub fn backpressure(&self) -> Duration {
        Duration::from_micros(self.backpressure_micros.load(Ordering::Relaxed))
    }

    pub(crate) fn add_backpressure(&self, waited: Duration) {
        self.backpressure_micros.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
    }

    /// When the client was last polled, on the monotonic clock: for a watchdog.
    pub fn last_poll(&self) -> Duration {
        Duration::from_micros(self.last_poll_micros.load(Ordering::Relaxed))
    }

    pub(crate) fn polled_at(&self, now: Duration) {
        self.last_poll_micros.store(now.as_micros() as u64, Ordering::Relaxed);
    }
}
