//! One source's way from the bus into the archive: take in, seal, store, commit, acknowledge. One loop owns the state.
//!
//! Promises: nothing is acknowledged before its record is in the log; abandoning at any moment loses nothing, since
//! the log says where every lane goes on. Never: the name of any bus or store, a path, the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{AssignedLane, BusError, Consumer, Deliveries, Incoming, Located, RevokeGuard, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::{Advance, Appended, CommitError, Receipt, Record};
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::metrics::SourceMetrics;
use crate::seal::{Relief, SealPolicy, SealReason, TableLoad, relief};
use crate::status::{LaneStatus, SourceStatus};
use crate::table::{SharedLog, StoreFailure, Stored, StoredBatch, Table};
use crate::upload::Segments;

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
    LookedUp(Vec<LookedUp>, Result<(), CommitError>),
    /// The bus said where these lanes can go on.
    Located(Vec<LookedUp>, Result<Vec<(LaneId, Located)>, BusError>),
    /// Starts and gaps were written, or somebody else was first: look again.
    Written(Vec<(LaneId, u64)>, Result<(), CommitError>),
    /// A batch is in the log, or can never be.
    Stored(Arc<str>, Result<Stored, StoreFailure>),
}

/// A lane whose log is to be read, in one of its assignments.
struct Wanted {
    lane: LaneId,
    topic: Arc<str>,
    assignment: u64,
}

/// Starts and gaps of one table, on their way into its log.
struct Writing {
    log: SharedLog,
    record: Record,
    lanes: Vec<(LaneId, u64)>,
}

struct LookedUp {
    lane: LaneId,
    topic: Arc<str>,
    assignment: u64,
    log: Option<Position>,
    topic_known: bool,
    table_log: SharedLog,
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
        self.background.abort_all();
        self.consumer.close().await;
        result
    }

    async fn work(&mut self, stop: CancellationToken) -> Result<(), PipelineError> {
        let mut draining = false;
        let mut seal_now = self.shared.seal_now.clone();
        seal_now.mark_unchanged();
        loop {
            if draining && self.is_drained() {
                self.publish_status();
                return Ok(());
            }
            let clock = Arc::clone(&self.shared.clock);
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
                incoming = self.consumer.next(), if !draining => self.take(incoming?)?,
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
        for table in self.tables.values_mut() {
            table.feed(&self.shared.segments, &self.shared.budget);
        }
        self.relieve();
        if now >= self.next_status {
            self.next_status = now + STATUS_PER_LANE * self.lanes.len() as u32;
            self.publish_status();
        }
    }

    /// Makes room while memory is short. Each step either shrinks what is held or ends the loop.
    fn relieve(&mut self) {
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
        let names: BTreeSet<_> = lanes.iter().filter_map(|lane| Some(Arc::clone(&self.table_of_lane(lane)?.name))).collect();
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

    /// Reads the logs of these lanes' tables beside the loop. A store that is away delays them, not the other lanes.
    fn look_up(&mut self, lanes: Vec<LaneId>) {
        let mut by_table: BTreeMap<Arc<str>, Vec<Wanted>> = BTreeMap::new();
        for lane in lanes {
            let Some(owned) = self.lanes.get(&lane) else { continue };
            let wanted = Wanted { lane, topic: Arc::clone(&owned.topic), assignment: owned.assignment };
            by_table.entry(self.shared.tables.table_of(&owned.topic)).or_default().push(wanted);
        }
        for lanes in by_table.into_values() {
            let tables = Arc::clone(&self.shared.tables);
            self.background.spawn(async move {
                let mut found = Vec::new();
                let result = look_up_table(&*tables, lanes, &mut found).await;
                Done::LookedUp(found, result)
            });
        }
    }

    async fn take_back(&mut self, done: Done) -> Result<(), PipelineError> {
        match done {
            Done::LookedUp(found, result) => {
                result?;
                self.locate(found);
            }
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

    /// Asks the bus about lanes whose log was read, beside the loop. A bus that does not answer delays them, not the other lanes.
    fn locate(&mut self, mut found: Vec<LookedUp>) {
        found.retain(|lane| self.is_ours(&lane.lane, lane.assignment));
        let questions = found.iter().map(|known| ToLocate {
            lane: known.lane.clone(),
            topic: Arc::clone(&known.topic),
            log: known.log,
            topic_known: known.topic_known,
        });
        let answers = self.consumer.locate(questions.collect());
        self.background.spawn(answers.map(move |answers| Done::Located(found, answers)));
    }

    /// Compares the log with the bus. Lanes that can go on do; starts and gaps are written first, then looked up again.
    async fn located(&mut self, mut found: Vec<LookedUp>, answers: Vec<(LaneId, Located)>) -> Result<(), PipelineError> {
        found.retain(|lane| self.is_ours(&lane.lane, lane.assignment));
        let mut answers: BTreeMap<_, _> = answers.into_iter().collect();
        let (mut resume, mut write) = (Vec::new(), Vec::new());
        for known in found {
            match answers.remove(&known.lane) {
                Some(Located::Continue(at)) => resume.push((known, at)),
                Some(Located::Start(at)) => write.push((start_of(&known.lane, at), known)),
                Some(Located::Gap(span, cause)) => {
                    error!(lane = %known.lane, topic = %known.topic, %span, cause = cause.as_str(), "events are lost on the bus, writing the gap into the log");
                    self.metrics.gap(&known.topic, cause, span.len());
                    write.push((
                        Advance { lane: known.lane.clone(), expected: known.log, span, rows: 0, skipped: 0, gap: Some(cause) },
                        known,
                    ));
                }
                Some(Located::Beyond { log, bus_end }) => self.halt(&known, log, bus_end),
                None => {}
            }
        }
        self.write(write);
        self.resume(resume).await
    }

    fn halt(&mut self, known: &LookedUp, log: Position, bus_end: Position) {
        error!(lane = %known.lane, topic = %known.topic, %log, %bus_end,
            "the archive is ahead of the bus: it lost events, or it is another bus; this lane is halted, nothing is overwritten");
        self.metrics.halted(&known.topic);
        if let Some(owned) = self.lanes.get_mut(&known.lane) {
            owned.halted = true;
        }
    }

    async fn resume(&mut self, lanes: Vec<(LookedUp, Position)>) -> Result<(), PipelineError> {
        if lanes.is_empty() {
            return Ok(());
        }
        let mut again = Vec::new();
        for (known, _) in &lanes {
            let name = self.shared.tables.table_of(&known.topic);
            let table = self.tables.entry(Arc::clone(&name)).or_insert_with(|| Table::new(name, Arc::clone(&known.table_log)));
            if table.batcher.open().is_some_and(|open| open.touches(&known.lane)) {
                // The lane went and came back while its events wait here: they would be read into the same batch once more.
                again.extend(table.abandon());
            }
        }
        for (known, at) in &lanes {
            if let Some(table) = self.tables.get_mut(&self.shared.tables.table_of(&known.topic)) {
                table.batcher.resume(&known.lane, *at);
            }
        }
        self.look_up(again);
        let at = lanes.into_iter().map(|(known, at)| (known.lane, at)).collect();
        Ok(self.consumer.resume(at).await?)
    }

    /// Commits starts and gaps, one record per table, beside the loop.
    fn write(&mut self, steps: Vec<(Advance, LookedUp)>) {
        let mut by_table: BTreeMap<Arc<str>, Writing> = BTreeMap::new();
        for (advance, known) in steps {
            let entry = by_table.entry(self.shared.tables.table_of(&known.topic));
            let log = || Writing { log: Arc::clone(&known.table_log), record: Record::default(), lanes: Vec::new() };
            let writing = entry.or_insert_with(log);
            writing.record.advances.push(advance);
            writing.lanes.push((known.lane, known.assignment));
        }
        for Writing { log, record, lanes } in by_table.into_values() {
            self.background.spawn(async move {
                // Whether it was committed or somebody else was first: the log is looked up again, and that answers both.
                let result = log.lock().await.append(&record).await.map(drop);
                Done::Written(lanes, result)
            });
        }
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

fn start_of(lane: &LaneId, at: Position) -> Advance {
    Advance { lane: lane.clone(), expected: None, span: Span::empty_at(at), rows: 0, skipped: 0, gap: None }
}

async fn look_up_table(tables: &dyn Tables, lanes: Vec<Wanted>, found: &mut Vec<LookedUp>) -> Result<(), CommitError> {
    for Wanted { lane, topic, assignment } in lanes {
        let table_log = tables.open(&topic).await?;
        found.push(LookedUp { lane, topic, assignment, log: None, topic_known: false, table_log });
    }
    let Some(log) = found.first().map(|first| Arc::clone(&first.table_log)) else { return Ok(()) };
    let checkpoint = log.lock().await.checkpoint().await?;
    for known in found {
        known.log = checkpoint.get(&known.lane).copied();
        // A topic that was made again has a new source; in a table of its own any lane tells that its name is known.
        let own_table = !tables.is_shared(&known.topic);
        known.topic_known = checkpoint.keys().any(|lane| own_table || lane.source == known.lane.source);
    }
    Ok(())
}

/// Runs pipelines of one source, one after another: whatever unexpected happens to one, the next begins from the log.
pub async fn supervise<F>(
    mut build: F,
    clock: Arc<dyn Clock>,
    mut chance: fastrand::Rng,
    stop: CancellationToken,
) -> Result<(), PipelineError>
where
    F: AsyncFnMut() -> Result<Pipeline, PipelineError>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let began = clock.monotonic();
        let result = match build().await {
            Ok(pipeline) => pipeline.run(stop.clone()).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Invalid => return Err(error),
            Err(error) => {
                error!(kind = error.kind().as_str(), error = %report(&error), "pipeline failed, beginning again from the log")
            }
        }
        if clock.monotonic() > began + Duration::from_secs(60) {
            backoff.reset();
        }
        let wait = backoff.next_wait(chance.f64());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(wait) => {}
        }
    }
}
