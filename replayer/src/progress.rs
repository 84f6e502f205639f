//! What a running replay shows of itself: counters that the loop writes and the terminal, the metrics and the report read.
//!
//! Promises: writing is cheap enough for the hot path. Never: decide anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why publishing waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttled {
    /// The limits that were asked for.
    Limit,
    /// The bus took no more, or had stopped confirming.
    Broker,
    /// The cursor was not saved yet.
    Cursor,
}

impl Throttled {
    /// All causes.
    pub const ALL: [Self; 3] = [Self::Limit, Self::Broker, Self::Cursor];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Broker => "broker",
            Self::Cursor => "cursor",
        }
    }
}

/// The counters of one run.
#[derive(Debug, Default)]
pub struct Counters {
    read: AtomicU64,
    published: AtomicU64,
    published_bytes: AtomicU64,
    confirmed: AtomicU64,
    unconfirmed: AtomicU64,
    /// Events that earlier runs of the job had confirmed.
    before: AtomicU64,
    cursor_micros: AtomicU64,
    throttled_micros: [AtomicU64; 3],
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events decoded.
    pub read: u64,
    /// Events handed to the bus.
    pub published: u64,
    /// Their payload bytes, without markers.
    pub published_bytes: u64,
    /// Events that the bus confirmed.
    pub confirmed: u64,
    /// Events of which the bus has not spoken yet.
    pub unconfirmed: u64,
    /// Events that earlier runs of the job had confirmed.
    pub before: u64,
    /// When the last cursor was saved, in microseconds since 1970; 0 if none was.
    pub cursor_micros: u64,
}

impl Counters {
    /// Events were decoded.
    pub fn read(&self, events: u64) {
        self.read.fetch_add(events, Ordering::Relaxed);
    }

    /// Events were handed to the bus.
    pub fn published(&self, events: u64, bytes: u64) {
        self.published.fetch_add(events, Ordering::Relaxed);
        self.published_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What the bus has confirmed, and what it has not.
    pub fn confirmed(&self, events: u64, unconfirmed: u64) {
        self.confirmed.store(events, Ordering::Relaxed);
        self.unconfirmed.store(unconfirmed, Ordering::Relaxed);
    }

    /// What earlier runs had confirmed.
    pub fn begin_at(&self, before: u64) {
        self.before.store(before, Ordering::Relaxed);
    }

    /// A cursor was saved.
    pub fn cursor_saved(&self, at_micros: i64) {
        self.cursor_micros.store(at_micros.max(0) as u64, Ordering::Relaxed);
    }

    /// Publishing waited.
    pub fn throttled(&self, cause: Throttled, time: Duration) {
        self.throttled_micros[cause as usize].fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// How long publishing waited for one cause.
    pub fn throttled_for(&self, cause: Throttled) -> Duration {
        Duration::from_micros(self.throttled_micros[cause as usize].load(Ordering::Relaxed))
    }

    /// The counters now.
    pub fn now(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            read: load(&self.read),
            published: load(&self.published),
            published_bytes: load(&self.published_bytes),
            confirmed: load(&self.confirmed),
            unconfirmed: load(&self.unconfirmed),
            before: load(&self.before),
            cursor_micros: load(&self.cursor_micros),
        }
    }
}
