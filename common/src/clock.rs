//! Time is handed in: whoever needs the clock or waits takes a [`Clock`], so the type system sees who can.

use std::time::Duration;

use async_trait::async_trait;

use crate::time::Timestamp;

/// The clock of a process, or of a simulated world.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump; only ages, names of folders and texts may depend on it, never ownership or order.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment of this process; never jumps back.
    fn monotonic(&self) -> Duration;

    /// Waits until [`Self::monotonic`] has reached `deadline`. Cancel safe.
    async fn sleep_until(&self, deadline: Duration);

    /// Waits for `time`. Cancel safe.
    async fn sleep(&self, time: Duration) {
        self.sleep_until(self.monotonic() + time).await;
    }
}
