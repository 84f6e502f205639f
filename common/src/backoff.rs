//! How long to wait before trying again. Pure: chance is handed in as a number.

use std::time::Duration;

/// Doubling waits with full jitter between half and all of the step (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// Waits that begin at `first` and never exceed `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempts: 0 }
    }

    /// The next wait. `chance` lies in [0, 1).
    pub fn next_wait(&mut self, chance: f64) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempts.min(20)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        step.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// How many waits there have been since the last success.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Begins again after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.attempts(), 6);
        backoff.reset();
        assert_eq!(backoff.next_wait(0.0), Duration::from_millis(50));
    }

    #[test]
    fn no_number_of_attempts_overflows() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        assert!((0..10_000).map(|_| backoff.next_wait(0.5)).all(|wait| wait <= Duration::from_secs(30)));
    }
}
