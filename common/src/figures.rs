//! What a consumer counts about itself, for metrics. Numbers that only grow; reading them costs nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a consumer comes by its lanes; it decides which figures there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// As a member of a group. The client keeps the connections up and tells nobody.
    Group,
    /// By a connection of its own.
    Connection,
}

/// Figures of one consumer.
#[derive(Debug)]
pub struct BusFigures {
    share: Share,
    rebalances: AtomicU64,
    reconnects: AtomicU64,
    holes: AtomicU64,
    redelivered: AtomicU64,
    backpressure_micros: AtomicU64,
}

impl BusFigures {
    const fn new(share: Share) -> Self {
        Self {
            share,
            rebalances: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            holes: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
            backpressure_micros: AtomicU64::new(0),
        }
    }

    /// Of a member of a group.
    pub const fn of_group() -> Self {
        Self::new(Share::Group)
    }

    /// Of one that has a connection of its own.
    pub const fn of_connection() -> Self {
        Self::new(Share::Connection)
    }

    fn read(&self, figure: &AtomicU64, of: Share) -> Option<u64> {
        (self.share == of).then(|| figure.load(Ordering::Relaxed))
    }

    /// Rebalances served; `None` where there is no group.
    pub fn rebalances(&self) -> Option<u64> {
        self.read(&self.rebalances, Share::Group)
    }

    /// Connections made after the first; `None` where the client makes them by itself.
    pub fn reconnects(&self) -> Option<u64> {
        self.read(&self.reconnects, Share::Connection)
    }

    /// Positions inside of what was read at which the bus handed over nothing; `None` where that is usual.
    pub fn holes(&self) -> Option<u64> {
        self.read(&self.holes, Share::Connection)
    }

    /// Events that the bus says it handed over before; `None` where it does not tell.
    pub fn redelivered(&self) -> Option<u64> {
        self.read(&self.redelivered, Share::Connection)
    }

    /// How long reading has waited for room in memory or for a slow reader.
    pub fn backpressure(&self) -> Duration {
        Duration::from_micros(self.backpressure_micros.load(Ordering::Relaxed))
    }

    /// A rebalance was served.
    pub fn add_rebalances(&self, more: u64) {
        self.rebalances.fetch_add(more, Ordering::Relaxed);
    }

    /// A connection was made after another.
    pub fn add_reconnects(&self, more: u64) {
        self.reconnects.fetch_add(more, Ordering::Relaxed);
    }

    /// Positions were passed over.
    pub fn add_holes(&self, more: u64) {
        self.holes.fetch_add(more, Ordering::Relaxed);
    }

    /// Events came again.
    pub fn add_redelivered(&self, more: u64) {
        self.redelivered.fetch_add(more, Ordering::Relaxed);
    }

    /// Reading waited.
    pub fn add_backpressure(&self, waited: Duration) {
        self.backpressure_micros.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
    }
}
