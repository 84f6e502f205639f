//! The clock of the machine: the only place that may ask it.
//!
//! Promises: `monotonic` never jumps back; `now` never panics, whatever the machine believes the year is.
//! Never: used by rooms below, which take a `&dyn Clock`.

#![allow(clippy::disallowed_methods, reason = "the one place that reads the system clock")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tapedeck_common::{Clock, Timestamp};
use tokio::time::Instant;

/// The machine's clock and tokio's timer.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time counts from now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            // A clock before 1970 is a broken one; it must not stop the process.
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Timestamp::from_micros(micros)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }

    async fn sleep_until(&self, deadline: Duration) {
        match self.started.checked_add(deadline) {
            Some(when) => tokio::time::sleep_until(when).await,
            // Past what the machine can count: for ever.
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sleeping_ends_no_earlier_than_its_deadline() {
        let clock = SystemClock::new();
        let deadline = clock.monotonic() + Duration::from_millis(5);
        clock.sleep_until(deadline).await;
        assert!(clock.monotonic() >= deadline);
        assert!(clock.now().is_calendar());
    }
}
