//! Keeps a repeated warning from drowning the log. Pure: the time is handed in.
//! Law: what is suppressed is counted, and the count is told with the next warning that passes.

use std::time::Duration;

/// Lets one warning through per period.
#[derive(Debug, Clone)]
pub struct Throttle {
    period: Duration,
    next: Option<Duration>,
    suppressed: u64,
}

impl Throttle {
    /// At most one warning in each `period`.
    pub const fn new(period: Duration) -> Self {
        Self { period, next: None, suppressed: 0 }
    }

    /// `Some(suppressed)` if the warning may be logged now, with how many were held back since the last one.
    /// `monotonic` is [`tapedeck_common::Clock::monotonic`].
    pub fn admit(&mut self, monotonic: Duration) -> Option<u64> {
        if self.next.is_some_and(|next| monotonic < next) {
            self.suppressed += 1;
            return None;
        }
        self.next = Some(monotonic.saturating_add(self.period));
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Begins again after a success: the next failure is news.
    pub fn reset(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_told_later() {
        let mut throttle = Throttle::new(Duration::from_secs(10));
        let admitted: Vec<_> = [0, 1, 9, 10, 11, 25].map(|second| throttle.admit(Duration::from_secs(second))).into();
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
        throttle.reset();
        assert_eq!(throttle.admit(Duration::from_secs(26)), Some(0));
    }
}
