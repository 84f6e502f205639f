//! Builds the components of one replay from the settings, and starts them again when the world was away.
//!
//! Promises: whatever fails, the cursor tells how far it came; a bus or store that is away is waited for. Never: decide what
//! is published.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::backoff::Backoff;
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::{ByteBudget, Clock};
use tapedeck_daemon::shutdown::Shutdown;
use tapedeck_storage::store::Store;
use tracing::warn;

use crate::cursor::{Cursor, State};
use crate::pacer::Limits;
use crate::plan::Plan;
use crate::progress::Counters;
use crate::replay::{self, Ended, Ledger, LedgerError, ReplayError, Run};
use crate::stream::{self, Source};
use crate::target::TargetBus;

/// All that one replay is built from.
pub struct Replay {
    /// The job.
    pub job: String,
    /// The plan.
    pub plan: Arc<Plan>,
    /// How fast.
    pub limits: Limits,
    /// Where the archive lies.
    pub store: Store,
    /// Where it goes.
    pub target: Arc<dyn TargetBus>,
    /// Where cursors are kept.
    pub ledger: Arc<dyn Ledger>,
    /// Memory for objects and events on their way.
    pub budget: ByteBudget,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Chance for waits.
    pub rng: fastrand::Rng,
    /// What is shown.
    pub counters: Arc<Counters>,
    /// When to stop.
    pub shutdown: Shutdown,
}

impl Replay {
    /// Runs to the end, or to a stop, or to an error that waiting does not cure. The cursor that is answered has its final
    /// state, and is not saved yet.
    pub async fn run(mut self, mut cursor: Cursor) -> (Result<Ended, ReplayError>, Cursor) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
        loop {
            let confirmed_before = cursor.events();
            let (ended, at) = self.run_once(cursor).await;
            cursor = at;
            let error = match ended {
                Err(error) if error.kind() == ErrorKind::Unavailable => error,
                ended => return (ended, cursor),
            };
            if cursor.events() > confirmed_before {
                backoff.reset();
            }
            let wait = backoff.next_wait(self.rng.f64());
            warn!(job = self.job, attempt = backoff.attempts(), wait_ms = wait.as_millis() as u64, error = %report(&error), "the replay is interrupted and goes on from its cursor");
            match self.wait_alive(wait, &mut cursor).await {
                Ok(true) => {}
                Ok(false) => return (Ok(Ended::Stopped), cursor),
                Err(error) => return (Err(error.into()), cursor),
            }
        }
    }

    async fn run_once(&mut self, cursor: Cursor) -> (Result<Ended, ReplayError>, Cursor) {
        let mut producer = match self.target.start(&self.plan, self.limits) {
            Ok(producer) => producer,
            Err(error) => return (Err(error.into()), cursor),
        };
        let mut chunks = stream::open(self.source(&cursor));
        let run = Run {
            job: self.job.clone(),
            plan: Arc::clone(&self.plan),
            cursor,
            limits: self.limits,
            producer: producer.as_mut(),
            ledger: Arc::clone(&self.ledger),
            clock: self.clock.as_ref(),
            counters: Arc::clone(&self.counters),
        };
        let ended = replay::run(run, &mut chunks, self.shutdown.stopping().cancelled()).await;
        // Dropping a producer purges its queue and may wait for the client's threads.
        let _ = tokio::task::spawn_blocking(move || drop(producer)).await;
        ended
    }

    fn source(&mut self, cursor: &Cursor) -> Source {
        let resume_at = self.plan.lanes.iter().map(|lane| cursor.of(&lane.id()).map(|at| at.next).unwrap_or_default()).collect();
        Source {
            plan: Arc::clone(&self.plan),
            resume_at,
            store: self.store.clone(),
            budget: self.budget.clone(),
            clock: Arc::clone(&self.clock),
            rng: self.rng.fork(),
            counters: Arc::clone(&self.counters),
        }
    }

    /// Waits, with signs of life so that nobody takes the job over meanwhile, and at least until the cursor is saved: what
    /// may come twice is counted from there. Answers false if it is to stop.
    async fn wait_alive(&self, wait: Duration, cursor: &mut Cursor) -> Result<bool, LedgerError> {
        let until = self.clock.monotonic() + wait;
        let mut is_saved = false;
        while self.clock.monotonic() < until || !is_saved {
            cursor.beat += 1;
            cursor.at = Some(self.clock.now());
            match self.ledger.save(Cursor { state: State::Running, ..cursor.clone() }).await {
                Ok(()) => is_saved = true,
                Err(error @ LedgerError::Fenced { .. }) => return Err(error),
                Err(error) => warn!(error = %report(&error), "the cursor is not saved, trying again"),
            }
            let second = self.clock.monotonic() + Duration::from_secs(1);
            tokio::select! {
                () = self.shutdown.stopping().cancelled() => return Ok(false),
                () = self.clock.sleep_until(if is_saved { second.min(until) } else { second }) => {}
            }
        }
        Ok(true)
    }
}
