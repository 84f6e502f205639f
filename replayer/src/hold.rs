//! Holds on to what a plan reads: as long as a job may go on, no sweep deletes the files of its segments.
//!
//! Promises: the pin is there before the first segment is read, unless the store does not answer; it outlives a job that pauses or
//! dies by [`PINNED_FOR`], and goes with one that is complete. Never: stops a replay, or makes it wait for long; without a pin
//! it goes on, and says so.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::Clock;
use tapedeck_common::error::report;
use tapedeck_storage::pins::{self, PINNED_FOR, Pin};
use tapedeck_storage::store::Store;
use tracing::warn;

use crate::plan::Plan;

/// How often it is renewed, and how soon it is tried again.
const RENEW_EVERY: Duration = Duration::from_secs(600);
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How long a replay waits for its pin before it goes on, with the pin still being tried beside it.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// One job's hold on the tables of its plan.
pub struct Hold {
    store: Store,
    job: String,
    plan: Arc<Plan>,
    clock: Arc<dyn Clock>,
}

impl Hold {
    /// A hold that is not set yet.
    pub fn new(store: &Store, job: &str, plan: &Arc<Plan>, clock: &Arc<dyn Clock>) -> Self {
        Self { store: store.clone(), job: job.to_owned(), plan: Arc::clone(plan), clock: Arc::clone(clock) }
    }

    /// Sets the pin, before anything is read; true if it is set. Waits for the store a moment, and no longer.
    pub async fn begin(&self) -> bool {
        tokio::select! {
            is_set = self.set() => is_set,
            () = self.clock.sleep(FIRST_WAIT) => {
                warn!(job = self.job, "the plan's files are not pinned yet: the store does not answer; going on, trying again");
                false
            }
        }
    }

    /// Sets or renews the pin; true if it is set.
    async fn set(&self) -> bool {
        let expires = self.clock.now().micros().saturating_add(PINNED_FOR.as_micros() as i64);
        let pin = Pin { holder: self.job.clone(), tables: self.plan.tables.clone(), expires_ms: expires / 1_000 };
        let set = pins::set(&self.store, &self.job, &pin).await;
        if let Err(error) = &set {
            warn!(job = self.job, error = %report(error), "the plan's files are not pinned, trying again");
        }
        set.is_ok()
    }

    /// Renews the pin for ever.
    pub async fn keep(&self, mut is_set: bool) {
        loop {
            self.clock.sleep(if is_set { RENEW_EVERY } else { TRY_AGAIN }).await;
            is_set = self.set().await;
        }
    }

    /// Lets go, if the job is complete.
    pub async fn release(&self) {
        if let Err(error) = pins::release(&self.store, &self.job).await {
            warn!(job = self.job, error = %report(&error), "the pin stays until it runs out");
        }
    }
}
