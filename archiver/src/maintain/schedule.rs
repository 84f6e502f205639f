//! When a duty is done next. Pure: chance is handed in as a number in [0, 1).
//!
//! Promises: replicas that start together do not go together; a duty that failed is tried again sooner, and ever more slowly; nobody
//! who starts often leaves a rare duty undone.

use std::time::Duration;

use tapedeck_common::backoff::Backoff;

/// The first time comes within so long of the start, however rare the duty is.
const FIRST_WITHIN: Duration = Duration::from_secs(3600);

/// Between two tries of what failed, at first.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The waits of one duty.
#[derive(Debug, Clone)]
pub struct Schedule {
    every: Duration,
    backoff: Backoff,
}

impl Schedule {
    /// A duty that is done so often.
    pub fn every(every: Duration) -> Self {
        Self { every, backoff: Backoff::new(AGAIN_AFTER.min(every), every) }
    }

    /// The wait after the start.
    pub fn first(&self, chance: f64) -> Duration {
        self.every.min(FIRST_WITHIN).mul_f64(chance)
    }

    /// The wait after it was done: three to five quarters of the period.
    pub fn after_success(&mut self, chance: f64) -> Duration {
        self.backoff.reset();
        self.every.mul_f64(0.75 + 0.5 * chance)
    }

    /// The wait after it failed.
    pub fn after_failure(&mut self, chance: f64) -> Duration {
        self.backoff.next_wait(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn waits_are_spread_and_failures_wait_longer_each_time() {
        let mut daily = Schedule::every(24 * HOUR);
        assert_eq!((daily.first(0.0), daily.first(0.5)), (Duration::ZERO, HOUR / 2));
        assert_eq!((daily.after_success(0.0), daily.after_success(0.5)), (18 * HOUR, 24 * HOUR));
        let failures: Vec<u64> = (0..13).map(|_| daily.after_failure(1.0).as_secs()).collect();
        assert_eq!(failures[..3], [60, 120, 240]);
        assert_eq!(failures[12], 24 * 3600, "never longer than the period");
        daily.after_success(0.5);
        assert_eq!(daily.after_failure(1.0).as_secs(), 60);
        assert_eq!(Schedule::every(Duration::from_secs(10)).after_failure(1.0).as_secs(), 10);
    }
}
