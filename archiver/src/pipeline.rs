//! One source's way from the bus into the archive: take in, seal, store, commit, acknowledge. One loop owns the state.
//!
//! Promises: nothing is acknowledged before its record is in the log; abandoning at any moment loses nothing, since
//! the log says where every lane goes on. Never: the name of any bus or store, a path, the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{AssignedLane, BusError, Consumer, Deliveries, Incoming, Located, RevokeGuard};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::{Appended, CommitError, Receipt};
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::position::LaneId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::metrics::SourceMetrics;
use crate::seal::{Relief, SealPolicy, SealReason, TableLoad, relief};
use crate::status::{LaneStatus, SourceStatus};
use crate::table::{SharedLog, StoreFailure, Stored, StoredBatch, Table};
use crate::upload::Segments;
use locate::LookedUp;
pub use locate::OnGap;

mod locate;

/// How often ages, memory and gauges are looked at while the bus is quiet.
const TICK: Duration = Duration::from_millis(100);

/// With many lanes their picture is drawn less often: each adds this much to the time between two.
const STATUS_PER_LANE: Duration = Duration::from_micros(100);

/// Where tables come from: opens the log of a topic's table, made if need be. Waits out an absent store.
#[async_trait::async_trait]
pub trait Tables: Send + Sync {
    /// The table's name for a topic; no I/O.
    fn table_of(&self, topic: &str) -> Arc<str>;

    /// True if the topic shares its table with other topics.
    fn is_shared(&self, topic: &str) -> bool;

    /// The log of the table of a topic.
    async fn open(&self, topic: &str) -> Result<SharedLog, CommitError>;

    /// True if the archive met the topic before this source of it: the topic had its table before this process asked for it, or was
    /// made anew since. When in doubt it is true: then more is archived than was asked for, never less.
    async fn met_before(&self, topic: &str, source: &str) -> bool;
}

/// Why a pipeline ended early. It is then built anew from the log.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The table log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Storing segments.
    #[error(transparent)]
    Store(#[from] StoreFailure),
}

impl PipelineError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bus(error) => error.kind(),
            Self::Commit(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

/// What all pipelines of a process share.
#[derive(Clone)]
pub struct Shared {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The memory of the process.
    pub budget: ByteBudget,
    /// Used column buffers.
    pub pool: Arc<ColumnsPool>,
    /// Where table logs come from.
    pub tables: Arc<dyn Tables>,
    /// Where segments go.
    pub segments: Arc<Segments>,
    /// When batches close.
    pub policy: SealPolicy,
    /// What happens where the bus lost events.
    pub on_gap: OnGap,
    /// Counts up when somebody asks to seal now.
    pub seal_now: watch::Receiver<u64>,
}

/// One source's pipeline.
pub struct Pipeline {
    shared: Shared,
    consumer: Box<dyn Consumer>,
    metrics: Arc<SourceMetrics>,
    status: Arc<watch::Sender<SourceStatus>>,
    pulse: Arc<dyn Fn() + Send + Sync>,
    tables: BTreeMap<Arc<str>, Table>,
    lanes: BTreeMap<LaneId, Owned>,
    background: JoinSet<Done>,
    /// Grows with each assignment of a lane, so that late answers about an earlier one are told apart.
    assignments: u64,
    joined: bool,
    next_tick: Duration,
    next_status: Duration,
}

/// A lane that the bus gave us.
struct Owned {
    topic: Arc<str>,
    assignment: u64,
    halted: bool,
}

/// Work that went on beside the loop.
enum Done {
    /// The logs of these lanes' tables were read: where each stands, and whether its topic is known.
    LookedUp(Vec<(LaneId, u64)>, Result<Vec<LookedUp>, CommitError>),
    /// The bus said where these lanes can go on.
    Located(Vec<LookedUp>, Result<Vec<(LaneId, Located)>, BusError>),
    /// Starts and gaps were written, or somebody else was first: look again.
    Written(Vec<(LaneId, u64)>, Result<(), CommitError>),
    /// A batch is in the log, or can never be.
    Stored(Arc<str>, Result<Stored, StoreFailure>),
}

impl Pipeline {
    /// A pipeline that reads `consumer` until it is told to stop, and calls `pulse` as long as it goes round.
    pub fn new(
        shared: Shared,
        consumer: Box<dyn Consumer>,
        metrics: Arc<SourceMetrics>,
        status: Arc<watch::Sender<SourceStatus>>,
        pulse: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            next_tick: shared.clock.monotonic(),
            next_status: shared.clock.monotonic(),
            shared,
            consumer,
            metrics,
            status,
            pulse,
            tables: BTreeMap::new(),
            lanes: BTreeMap::new(),
            background: JoinSet::new(),
            assignments: 0,
            joined: false,
        }
    }

    /// Archives until `stop`; then seals, stores, commits, acknowledges and leaves the bus. How long that may take is the caller's question.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PipelineError> {
        let result = self.work(stop).await;
        if result.is_err() {
            // Until the next one has looked around, nothing is known and nothing is ready.
            self.status.send_replace(SourceStatus::default());
        }
        self.background.abort_all();
        self.consumer.close().await;
        result
    }

    async fn work(&mut self, stop: CancellationToken) -> Result<(), PipelineError> {
        let mut draining = false;
        let mut seal_now = self.shared.seal_now.clone();
        seal_now.mark_unchanged();
        let mut progress = self.shared.segments.progress();
        loop {
            if draining && self.is_drained() {
                self.publish_status();
                return Ok(());
            }
            let clock = Arc::clone(&self.shared.clock);
            let behind = self.is_behind();
            tokio::select! {
                biased;
                () = stop.cancelled(), if !draining => {
                    draining = true;
                    self.seal_all(SealReason::Shutdown);
                }
                Some(done) = self.background.join_next(), if !self.background.is_empty() => {
                    let done = done.expect("background work never panics, and is never aborted while the loop runs");
                    self.take_back(done).await?;
                    if draining {
                        self.seal_all(SealReason::Shutdown);
                    }
                }
                Ok(()) = seal_now.changed(), if !draining => self.seal_all(SealReason::Manual),
                () = clock.sleep_until(self.next_tick) => self.tick(),
                Ok(()) = progress.changed(), if behind => self.feed(),
                incoming = self.consumer.next(), if !draining && !behind => self.take(incoming?)?,
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.tables.values().all(|table| table.is_settled())
    }

    fn take(&mut self, incoming: Incoming) -> Result<(), PipelineError> {
        match incoming {
            Incoming::Deliveries(runs) => runs.into_iter().for_each(|run| self.take_in(run)),
            Incoming::Assigned(lanes) => self.assigned(lanes),
            Incoming::Revoking(lanes, guard) => self.revoking(&lanes, &guard),
            Incoming::Lost(lanes) => self.lost(&lanes),
            Incoming::Halted(lane, error) => {
                error!(%lane, error = %report(&error), "the bus cannot hand over the next event, this lane is halted");
                self.halt(&lane);
            }
            Incoming::Idle(lanes) => {
                for (lane, position) in lanes {
                    if let Some(table) = self.table_of_lane(&lane) {
                        table.batcher.note_idle(&lane, position);
                    }
                }
            }
            Incoming::Ends(lanes, asked) => {
                for (lane, end) in lanes {
                    if let Some(table) = self.table_of_lane(&lane) {
                        table.note_end(&lane, end, asked);
                    }
                }
            }
        }
        Ok(())
    }

    fn table_of_lane(&mut self, lane: &LaneId) -> Option<&mut Table> {
        let name = self.shared.tables.table_of(&self.lanes.get(lane)?.topic);
        self.tables.get_mut(&name)
    }

    fn take_in(&mut self, run: Deliveries) {
        self.metrics.consumed(&run);
        let lane = run.lane.clone();
        let now = (self.shared.clock.now(), self.shared.clock.monotonic());
        let shared = self.shared.clone();
        let Some(table) = self.table_of_lane(&lane) else { return };
        let was_open = table.batcher.open().is_some();
        if let Err(error) = table.batcher.take_in(run, now, &shared.pool) {
            // A stray run is never fitted in: the log says where the lane goes on, so look there.
            error!(%lane, %error, "deliveries do not meet, abandoning the batch and looking up the log");
            let lanes = table.abandon();
            self.look_up(lanes);
            return;
        }
        if !was_open {
            debug!(table = %table.name, "batch opened");
        }
        table.feed(&shared.segments, &shared.budget);
        self.relieve();
        self.seal_if_due(&lane);
    }

    fn seal_if_due(&mut self, lane: &LaneId) {
        let now = self.shared.clock.monotonic();
        let policy = self.shared.policy;
        if let Some(table) = self.table_of_lane(lane)
            && let Some(reason) = table.seal_reason(&policy, now)
        {
            let name = Arc::clone(&table.name);
            self.seal(&name, reason);
        }
    }

    fn tick(&mut self) {
        let now = self.shared.clock.monotonic();
        self.next_tick = now + TICK;
        (self.pulse)();
        let policy = self.shared.policy;
        let due: Vec<_> =
            self.tables.values().filter_map(|table| Some((Arc::clone(&table.name), table.seal_reason(&policy, now)?))).collect();
        for (name, reason) in due {
            self.seal(&name, reason);
        }
        self.feed();
        self.relieve();
        if now >= self.next_status {
            self.next_status = now + STATUS_PER_LANE * self.lanes.len() as u32;
            self.publish_status();
        }
    }

    /// Gives the encoders what waits for them.
    fn feed(&mut self) {
        for table in self.tables.values_mut() {
            table.feed(&self.shared.segments, &self.shared.budget);
        }
    }

    /// True while the encoders cannot keep up. Rows that wait in memory are not archived sooner, and what is no longer in the
    /// CPU's cache, or in memory that was used before, costs more to encode.
    fn is_behind(&self) -> bool {
        let budget = &self.shared.budget;
        budget.used() > budget.capacity() / 8
            && self.tables.values().map(|table| table.backlog(budget)).sum::<usize>() >= budget.capacity() / 8
    }

    /// Makes room while memory is short. Each step either shrinks what is held or ends the loop.
    fn relieve(&mut self) {
        if self.shared.budget.used() < self.shared.budget.capacity() / 2 {
            return;
        }
        for _ in 0..self.tables.len() * 4 {
            let names: Vec<_> = self.tables.keys().cloned().collect();
            let loads: Vec<TableLoad> = self.tables.values().enumerate().map(|(number, table)| table.load(number)).collect();
            let encode_min = self.shared.budget.capacity() / 256;
            match relief(&loads, self.shared.budget.used(), self.shared.budget.capacity(), encode_min) {
                None => return,
                Some(Relief::EncodeFullest(number)) => {
                    let table = self.tables.get_mut(&names[number]).expect("numbered a moment ago");
                    if !table.feed_fullest(&self.shared.segments) {
                        return;
                    }
                }
                Some(Relief::Seal(number)) => {
                    self.seal(&names[number], SealReason::Memory);
                    return;
                }
            }
        }
    }

    fn seal_all(&mut self, reason: SealReason) {
        let names: Vec<_> = self.tables.keys().cloned().collect();
        for name in names {
            self.seal(&name, reason);
        }
    }

    /// Closes a table's batch and sends it on its way, unless the one before is still under way: then it waits for that.
    fn seal(&mut self, name: &Arc<str>, reason: SealReason) {
        let Some(table) = self.tables.get_mut(name) else { return };
        let Some(storing) = table.seal(reason, &self.shared) else { return };
        self.metrics.sealed(reason);
        debug!(table = %name, seal_reason = reason.as_str(), "batch sealed, storing");
        let name = Arc::clone(name);
        self.background.spawn(storing.map(move |result| Done::Stored(name, result)));
    }

    fn assigned(&mut self, lanes: Vec<AssignedLane>) {
        if !lanes.is_empty() || !self.joined {
            info!(lanes = lanes.len(), "assigned, looking up the log");
        }
        self.joined = true;
        let ids: Vec<_> = lanes.iter().map(|lane| lane.lane.clone()).collect();
        for AssignedLane { lane, topic } in lanes {
            self.assignments += 1;
            self.lanes.insert(lane, Owned { topic, assignment: self.assignments, halted: false });
        }
        self.look_up(ids);
    }

    fn revoking(&mut self, lanes: &[LaneId], guard: &RevokeGuard) {
        info!(lanes = lanes.len(), "revoked, committing what is held");
        let mut touched = BTreeSet::new();
        for lane in lanes {
            if let Some(table) = self.table_of_lane(lane) {
                table.hold(lane, guard);
                touched.insert(Arc::clone(&table.name));
                table.batcher.forget(lane);
            }
            self.lanes.remove(lane);
        }
        for name in touched {
            if self.tables[&name].must_seal_for_revoke() {
                self.seal(&name, SealReason::Revoke);
            }
        }
    }

    fn lost(&mut self, lanes: &[LaneId]) {
        warn!(lanes = lanes.len(), "lanes were lost, abandoning what is held of their tables");
        // Lanes that were revoked too slowly are not ours any more, and their events are still held.
        let held = self.tables.values().filter(|table| lanes.iter().any(|lane| table.batcher.reads(lane) || table.holds(lane)));
        let names: BTreeSet<_> = held.map(|table| Arc::clone(&table.name)).collect();
        for lane in lanes {
            self.lanes.remove(lane);
        }
        for name in names {
            self.abandon(&name);
        }
    }

    /// Drops a table's open batch; every lane of it that is still ours goes on where the log stands.
    fn abandon(&mut self, name: &Arc<str>) {
        let Some(table) = self.tables.get_mut(name) else { return };
        let lanes = table.abandon();
        self.look_up(lanes);
    }

    async fn take_back(&mut self, done: Done) -> Result<(), PipelineError> {
        match done {
            Done::LookedUp(asked, found) => self.looked_up(asked, found)?,
            Done::Located(found, answers) => self.located(found, answers?).await?,
            Done::Written(lanes, result) => {
                result?;
                let still_ours = lanes.into_iter().filter(|(lane, assignment)| self.is_ours(lane, *assignment));
                let again = still_ours.map(|(lane, _)| lane).collect();
                self.look_up(again);
            }
            Done::Stored(name, result) => self.stored(&name, result).await?,
        }
        Ok(())
    }

    fn is_ours(&self, lane: &LaneId, assignment: u64) -> bool {
        self.lanes.get(lane).is_some_and(|owned| owned.assignment == assignment)
    }

    async fn stored(&mut self, name: &Arc<str>, result: Result<Stored, StoreFailure>) -> Result<(), PipelineError> {
        let table = self.tables.get_mut(name).expect("a table lives as long as its pipeline");
        let batch = table.settle();
        match result {
            Ok(Stored { appended: Appended::Committed(receipt), segments, put_time, commit_time }) => {
                self.metrics.stage("put", put_time);
                self.metrics.stage("commit", commit_time);
                self.metrics.archived(&segments, self.shared.clock.now());
                self.committed(name, &receipt, &batch).await;
            }
            Ok(Stored { appended: Appended::Stale(lanes), .. }) => {
                let lane = lanes.first().map(ToString::to_string).unwrap_or_default();
                info!(table = %name, stale = lanes.len(), lane, "another member committed first, abandoning the batch");
                self.metrics.conflicted();
                self.abandon(name);
            }
            Err(failure) if failure.kind() == ErrorKind::Stale => {
                warn!(table = %name, error = %report(&failure), "a segment was lost on its way, abandoning the batch");
                self.abandon(name);
            }
            Err(failure) => return Err(failure.into()),
        }
        if let Some(reason) = self.tables.get(name).and_then(Table::seal_wanted) {
            self.seal(name, reason);
        }
        Ok(())
    }

    async fn committed(&mut self, name: &Arc<str>, receipt: &Receipt, batch: &StoredBatch) {
        info!(table = %name, version = receipt.version(), rows = batch.rows, lanes = receipt.spans().len(),
            seal_reason = batch.reason.as_str(), "committed");
        let began = self.shared.clock.monotonic();
        self.consumer.acknowledge(receipt).await;
        self.metrics.stage("acknowledge", self.shared.clock.monotonic().saturating_sub(began));
        debug!(table = %name, "acknowledged");
        if let Some(table) = self.tables.get_mut(name) {
            table.note_committed(receipt);
        }
    }

    fn publish_status(&mut self) {
        let mut lanes = Vec::with_capacity(self.lanes.len());
        for (lane, owned) in &self.lanes {
            let table = self.tables.get_mut(&self.shared.tables.table_of(&owned.topic));
            let mut status = LaneStatus::new(lane, &owned.topic, owned.halted, self.consumer.bounds(lane));
            if let Some(table) = table {
                table.describe(lane, &mut status);
            }
            lanes.push(status);
        }
        let buffered_events = self.tables.values().map(Table::buffered_events).sum();
        let oldest = self.tables.values().filter_map(Table::oldest_unarchived).min();
        let storing = self.tables.values().any(Table::is_storing);
        let status = SourceStatus { joined: self.joined, lanes, buffered_events, oldest_unarchived: oldest, storing };
        self.metrics.observe(&status, self.shared.budget.used());
        self.status.send_replace(status);
    }
}
