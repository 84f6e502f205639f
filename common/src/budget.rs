//! One budget of bytes for a process. Room is reserved before memory is used; dropping the permit, on any path, gives it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Debug)]
struct Shared {
    capacity: usize,
    used: AtomicUsize,
    /// The part of it that is in use for good.
    aside: AtomicUsize,
    freed: Notify,
}

/// A share of memory that all rooms of the process draw from.
#[derive(Debug, Clone)]
pub struct ByteBudget(Arc<Shared>);

impl ByteBudget {
    /// A budget of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        let (used, aside) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Shared { capacity, used, aside, freed: Notify::new() }))
    }

    /// Its size in bytes.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Bytes in use. May exceed the capacity by what was forced.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Acquire)
    }

    /// Reserves `bytes` if there is room now. Something larger than the whole budget gets in when nothing is in use but what was
    /// set aside: one giant event must not block its lane for ever.
    pub fn try_reserve(&self, bytes: usize) -> Option<BytePermit> {
        let aside = self.0.aside.load(Ordering::Acquire);
        let fits = |used: usize| (used <= aside || used.saturating_add(bytes) <= self.0.capacity).then(|| used + bytes);
        self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        Some(BytePermit { budget: self.clone(), bytes })
    }

    /// Waits for room. Cancel safe: a dropped call holds nothing.
    pub async fn reserve(&self, bytes: usize) -> BytePermit {
        loop {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that room freed in between is not missed.
            freed.as_mut().enable();
            if let Some(permit) = self.try_reserve(bytes) {
                return permit;
            }
            freed.await;
        }
    }

    /// Reserves without waiting, over the capacity if need be: for memory that exists already and is about to shrink.
    pub fn force(&self, bytes: usize) -> BytePermit {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
        BytePermit { budget: self.clone(), bytes }
    }

    /// Reserves for as long as somebody works at all, such as a client's own queue: it keeps nobody out who would else be alone.
    pub fn set_aside(&self, bytes: usize) -> Aside {
        self.0.aside.fetch_add(bytes, Ordering::AcqRel);
        Aside { _permit: self.force(bytes), bytes, budget: self.clone() }
    }

    fn free(&self, bytes: usize) {
        if bytes > 0 {
            self.0.used.fetch_sub(bytes, Ordering::AcqRel);
            self.0.freed.notify_waiters();
        }
    }
}

/// Bytes that are set aside until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives its bytes back"]
pub struct Aside {
    budget: ByteBudget,
    bytes: usize,
    _permit: BytePermit,
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.budget.0.aside.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Bytes that are reserved until this is dropped.
#[derive(Debug)]
#[must_use = "dropping a permit gives its bytes back"]
pub struct BytePermit {
    budget: ByteBudget,
    bytes: usize,
}

impl BytePermit {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it hold `bytes`, over the budget's capacity if need be.
    pub fn resize(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.0.used.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        } else {
            self.budget.free(self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Takes over another permit's bytes.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Splits `bytes` off (all of it, if it holds less).
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes }
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        self.budget.free(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_keeps_no_giant_out() {
        let budget = ByteBudget::new(100);
        let (one, two) = (budget.set_aside(20), budget.set_aside(20));
        let small = budget.try_reserve(60).expect("room");
        assert!(budget.try_reserve(1).is_none());
        drop(small);
        drop(budget.try_reserve(1_000).expect("it is alone"));
        drop(two);
        assert_eq!(budget.used(), 20);
        drop(one);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn dropping_gives_back_on_every_path() {
        let budget = ByteBudget::new(100);
        let mut first = budget.try_reserve(60).expect("room");
        assert!(budget.try_reserve(60).is_none());
        let second = first.split(20);
        first.resize(10);
        assert_eq!(budget.used(), 30);
        first.merge(second);
        assert_eq!((first.bytes(), budget.used()), (30, 30));
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_giant_gets_in_alone() {
        let budget = ByteBudget::new(10);
        let giant = budget.try_reserve(1_000).expect("nothing else is in use");
        assert!(budget.try_reserve(1).is_none());
        drop(giant);
        assert!(budget.try_reserve(1).is_some());
    }
}
