//! A clock that moves only when a test says so.
//!
//! Promises: sleepers wake in the order of their deadlines, each at its own moment, with all work that follows done
//! before time goes on. Needs a paused runtime of one thread (`#[tokio::test(start_paused = true)]`): there the runtime
//! itself knows when nothing is left to do, encoders on other threads included. Never: reads a real clock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::clock::Clock;
use tapedeck_common::time::Timestamp;
use tokio::sync::Notify;

/// Where simulated worlds begin: 2026-11-20T10:00:00Z, on an hour so that windows are easy to count.
pub const GENESIS: Timestamp = Timestamp::from_micros(1_795_168_800_000_000);

/// A clock that is moved by hand. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    times: Mutex<Times>,
    moved: Notify,
}

#[derive(Debug)]
struct Times {
    wall: Timestamp,
    monotonic: Duration,
    /// Deadlines that somebody waits for, told apart by a number.
    sleepers: BTreeSet<(Duration, u64)>,
    numbered: u64,
}

impl Inner {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::at(GENESIS)
    }
}

impl ManualClock {
    /// A clock whose wall time is `wall`.
    pub fn at(wall: Timestamp) -> Self {
        // Not zero: code that takes "never" for zero is to be found out.
        let monotonic = Duration::from_secs(1_000);
        let times = Times { wall, monotonic, sleepers: BTreeSet::new(), numbered: 0 };
        Self(Arc::new(Inner { times: Mutex::new(times), moved: Notify::new() }))
    }

    /// Sets the wall clock, forwards or back. The monotonic time stays.
    pub fn set_wall(&self, wall: Timestamp) {
        self.0.times().wall = wall;
    }

    /// The next moment for which somebody waits.
    pub fn next_wake(&self) -> Option<Duration> {
        let times = self.0.times();
        times.sleepers.iter().map(|(deadline, _)| *deadline).find(|deadline| *deadline > times.monotonic)
    }

    /// Lets `time` pass: every sleeper on the way wakes at its own moment, and what it sets off is done before time goes on.
    pub async fn advance(&self, time: Duration) {
        self.advance_until(time, || false).await;
    }

    /// Lets time pass until `done` holds, at most `limit`. Says whether it holds.
    pub async fn advance_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let end = self.monotonic() + limit;
        loop {
            settle().await;
            if done() {
                return true;
            }
            match self.next_wake() {
                Some(wake) if wake <= end => self.move_to(wake),
                _ if self.monotonic() < end => self.move_to(end),
                _ => return false,
            }
        }
    }

    fn move_to(&self, monotonic: Duration) {
        let mut times = self.0.times();
        times.wall = times.wall + monotonic.saturating_sub(times.monotonic);
        times.monotonic = monotonic;
        drop(times);
        self.0.moved.notify_waiters();
    }

    fn register(&self, deadline: Duration) -> Sleeper<'_> {
        let mut times = self.0.times();
        times.numbered += 1;
        let entry = (deadline, times.numbered);
        times.sleepers.insert(entry);
        Sleeper { clock: self, entry }
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.times().wall
    }

    fn monotonic(&self) -> Duration {
        self.0.times().monotonic
    }

    async fn sleep_until(&self, deadline: Duration) {
        let _registered = self.register(deadline);
        loop {
            let mut moved = std::pin::pin!(self.0.moved.notified());
            moved.as_mut().enable();
            if self.monotonic() >= deadline {
                return;
            }
            moved.await;
        }
    }
}

/// Somebody who waits; dropped when it wakes or gives up.
struct Sleeper<'a> {
    clock: &'a ManualClock,
    entry: (Duration, u64),
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.clock.0.times().sleepers.remove(&self.entry);
    }
}

/// Waits until every task of this runtime waits for something, work on blocking threads included.
///
/// A paused runtime moves its own time only then, so the shortest sleep of that time is the sign. Nothing of ours
/// sleeps on the runtime's time, so it stands for nothing else.
///
/// # Panics
/// On a runtime that is not paused: its time says nothing about idleness.
#[allow(clippy::disallowed_methods, reason = "a paused runtime's time is no real time")]
pub async fn settle() {
    const STEP: Duration = Duration::from_millis(1);
    let before = tokio::time::Instant::now();
    tokio::time::sleep(STEP).await;
    let passed = before.elapsed();
    assert!(
        passed.subsec_nanos().is_multiple_of(1_000_000),
        "settle needs a paused runtime: #[tokio::test(start_paused = true)]"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleepers_wake_in_order_and_at_their_own_moment() {
        let clock = ManualClock::default();
        let woken = Arc::new(Mutex::new(Vec::new()));
        for seconds in [5, 2, 9] {
            let (clock, woken) = (clock.clone(), Arc::clone(&woken));
            let began = clock.monotonic();
            tokio::spawn(async move {
                clock.sleep(Duration::from_secs(seconds)).await;
                woken.lock().unwrap().push((clock.monotonic() - began).as_secs());
                clock.sleep(Duration::from_secs(1)).await;
                woken.lock().unwrap().push((clock.monotonic() - began).as_secs());
            });
        }
        clock.advance(Duration::from_secs(8)).await;
        assert_eq!(*woken.lock().unwrap(), [2, 3, 5, 6]);
        assert_eq!(clock.now(), GENESIS + Duration::from_secs(8));
        assert_eq!(clock.next_wake(), Some(clock.monotonic() + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn settling_waits_for_work_on_other_threads() {
        let worked = tokio::spawn(async {
            let gate =
                tokio::task::spawn_blocking(|| (0..20_000_000_u64).fold(0, |sum, number| sum ^ number.wrapping_mul(sum | 1)));
            gate.await
        });
        settle().await;
        assert!(worked.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_that_is_dropped_is_forgotten() {
        let clock = ManualClock::default();
        drop(clock.sleep(Duration::from_secs(1)));
        let mut polled = Box::pin(clock.sleep(Duration::from_secs(1)));
        assert!(futures::poll!(polled.as_mut()).is_pending());
        assert!(clock.next_wake().is_some());
        drop(polled);
        assert_eq!(clock.next_wake(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_jumps_alone() {
        let clock = ManualClock::default();
        let before = clock.monotonic();
        clock.set_wall(Timestamp::from_micros(0));
        assert_eq!((clock.now(), clock.monotonic()), (Timestamp::from_micros(0), before));
    }
}
