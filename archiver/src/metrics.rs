//! Every metric of the archiver: names, help and labels in this one file. All names get the prefix `tapedeck_archiver_`.
//! Never: a label taken from an event's content.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tapedeck_common::bus::Deliveries;
use tapedeck_common::commit::{GapCause, Outcome, SegmentRef};
use tapedeck_common::figures::BusFigures;
use tapedeck_common::time::Timestamp;
use tapedeck_storage::log::LogObserver;
use tapedeck_storage::log::protocol::Tally;

use crate::maintain::Done;
use crate::seal::SealReason;
use crate::status::SourceStatus;

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabels {
    source: String,
    topic: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SealLabels {
    source: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    source: String,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GapLabels {
    source: String,
    topic: String,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DutyLabels {
    duty: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    duty: &'static str,
    outcome: &'static str,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    consumed: Family<TopicLabels, Counter>,
    consumed_bytes: Family<TopicLabels, Counter>,
    skipped: Family<TopicLabels, Counter>,
    archived: Family<TopicLabels, Counter>,
    segments: Family<TopicLabels, Counter>,
    segment_size: Family<SourceLabels, Histogram, fn() -> Histogram>,
    seals: Family<SealLabels, Counter>,
    stages: Family<StageLabels, Histogram, fn() -> Histogram>,
    gaps: Family<GapLabels, Counter>,
    halted: Family<TopicLabels, Counter>,
    rebalances: Family<SourceLabels, Counter>,
    reconnects: Family<SourceLabels, Counter>,
    holes: Family<SourceLabels, Counter>,
    redelivered: Family<SourceLabels, Counter>,
    backpressure: Family<SourceLabels, Counter<f64, AtomicU64>>,
    conflicts: Family<SourceLabels, Counter>,
    commit_conflicts: Counter,
    commit_unknown: Counter,
    store_failures: Counter,
    buffered_events: Family<SourceLabels, Gauge>,
    buffered_bytes: Gauge,
    oldest: Family<SourceLabels, Seconds>,
    watermark: Family<TopicLabels, Seconds>,
    last_commit: Family<SourceLabels, Seconds>,
    lag: Family<TopicLabels, Gauge>,
    maintain: Arc<MaintainMetrics>,
}

/// Those of maintenance in the background. They are there once a duty ended.
#[derive(Debug, Default)]
pub struct MaintainMetrics {
    runs: Family<RunLabels, Counter>,
    took: Family<DutyLabels, Counter<f64, AtomicU64>>,
    last_success: Family<DutyLabels, Seconds>,
    merged: Counter,
    merged_to: Counter,
    expired: Counter,
    deleted: Counter,
    deleted_bytes: Counter,
    bytes: Counter,
}

fn seconds_histogram() -> Histogram {
    Histogram::new([0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0])
}

fn size_histogram() -> Histogram {
    Histogram::new([65_536.0, 1_048_576.0, 8_388_608.0, 33_554_432.0, 134_217_728.0, 536_870_912.0])
}

impl Metrics {
    /// Makes all metrics and registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            consumed: Family::default(),
            consumed_bytes: Family::default(),
            skipped: Family::default(),
            archived: Family::default(),
            segments: Family::default(),
            segment_size: Family::new_with_constructor(size_histogram),
            seals: Family::default(),
            stages: Family::new_with_constructor(seconds_histogram),
            gaps: Family::default(),
            halted: Family::default(),
            rebalances: Family::default(),
            reconnects: Family::default(),
            holes: Family::default(),
            redelivered: Family::default(),
            backpressure: Family::default(),
            conflicts: Family::default(),
            commit_conflicts: Counter::default(),
            commit_unknown: Counter::default(),
            store_failures: Counter::default(),
            buffered_events: Family::default(),
            buffered_bytes: Gauge::default(),
            oldest: Family::default(),
            watermark: Family::default(),
            last_commit: Family::default(),
            lag: Family::default(),
            maintain: Arc::default(),
        };
        metrics.register_events(registry);
        metrics.register_state(registry);
        metrics.maintain.register(registry);
        Arc::new(metrics)
    }

    fn register_events(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tapedeck_archiver");
        registry.register("events_consumed", "Events taken from the bus", self.consumed.clone());
        registry.register("bytes_consumed", "Payload bytes taken from the bus", self.consumed_bytes.clone());
        registry.register(
            "events_skipped",
            "Events left out because they are copies that a replay published",
            self.skipped.clone(),
        );
        registry.register("events_archived", "Events in committed records", self.archived.clone());
        registry.register("segments_written", "Segments in committed records", self.segments.clone());
        registry.register_with_unit("segment_size", "Size of committed segments", Unit::Bytes, self.segment_size.clone());
        registry.register("seals", "Batches closed, by reason", self.seals.clone());
        registry.register_with_unit("stage_duration", "Time that a batch spent in a stage", Unit::Seconds, self.stages.clone());
        registry.register("gap_events", "Positions that the bus lost before they were archived: data loss", self.gaps.clone());
        registry.register("lanes_halted", "Lanes stopped: the bus cannot hand over their next event, the log of their table is damaged, or the archive is ahead of the bus", self.halted.clone());
        registry.register("rebalances", "Rebalances served", self.rebalances.clone());
        registry.register("reconnects", "Connections to the broker made after the first", self.reconnects.clone());
        registry.register(
            "stream_holes",
            "Positions of a stream inside of what was read at which the broker handed over nothing",
            self.holes.clone(),
        );
        registry.register("redelivered", "Events that the broker says it handed over before", self.redelivered.clone());
        let help = "Time for which reading waited for room in memory";
        registry.register_with_unit("backpressure", help, Unit::Seconds, self.backpressure.clone());
        registry.register("batches_abandoned", "Batches given up because another member committed first", self.conflicts.clone());
        registry.register("commit_conflicts", "Record numbers that another writer took first", self.commit_conflicts.clone());
        registry.register("commit_unknown", "Commit requests whose outcome had to be read back", self.commit_unknown.clone());
        registry.register(
            "store_failures",
            "Calls to the store by table logs that failed and were repeated",
            self.store_failures.clone(),
        );
    }

    fn register_state(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tapedeck_archiver");
        registry.register("buffered_events", "Events taken in and not yet in the log", self.buffered_events.clone());
        registry.register("buffered_bytes", "Bytes in use of the memory budget", self.buffered_bytes.clone());
        registry.register_with_unit(
            "oldest_unarchived_event_timestamp",
            "Event time of the oldest event that is taken in and not yet in the log; absent if there is none",
            Unit::Seconds,
            self.oldest.clone(),
        );
        registry.register_with_unit(
            "archived_watermark_timestamp",
            "All that the bus held before this moment is in the archive",
            Unit::Seconds,
            self.watermark.clone(),
        );
        registry.register_with_unit(
            "last_commit_timestamp",
            "When a record was last committed",
            Unit::Seconds,
            self.last_commit.clone(),
        );
        registry.register("lag_events", "Positions of the bus that are not in the archive yet", self.lag.clone());
    }

    /// The metrics of one source.
    pub fn source(self: &Arc<Self>, name: &str) -> Arc<SourceMetrics> {
        for reason in SealReason::ALL {
            let _ = self.seals.get_or_create(&SealLabels { source: name.to_owned(), reason: reason.as_str() });
        }
        Arc::new(SourceMetrics { all: Arc::clone(self), source: name.to_owned(), bus: Mutex::default(), shown: Mutex::default() })
    }

    /// Those of maintenance in the background.
    pub fn maintain(&self) -> Arc<MaintainMetrics> {
        Arc::clone(&self.maintain)
    }

    /// What table logs tell their counts to.
    pub fn log_observer(self: &Arc<Self>) -> Arc<dyn LogObserver> {
        Arc::new(LogCounts(Arc::clone(self)))
    }
}

struct LogCounts(Arc<Metrics>);

impl LogObserver for LogCounts {
    fn settled(&self, _table: &str, _took: Duration, tally: Tally, _outcome: &Outcome) {
        self.0.commit_conflicts.inc_by(tally.conflicts);
        self.0.commit_unknown.inc_by(tally.unknown);
    }

    fn store_failed(&self, _table: &str) {
        self.0.store_failures.inc();
    }
}

impl MaintainMetrics {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tapedeck_archiver_maintain");
        registry.register("runs", "Times that a duty of maintenance ended, by outcome", self.runs.clone());
        registry.register_with_unit("duration", "Time spent on a duty", Unit::Seconds, self.took.clone());
        registry.register_with_unit(
            "last_success_timestamp",
            "When a duty last ended well; absent until it did",
            Unit::Seconds,
            self.last_success.clone(),
        );
        registry.register("segments_merged", "Segments that compaction replaced", self.merged.clone());
        registry.register("segments_written", "Segments that replaced them", self.merged_to.clone());
        registry.register("segments_expired", "Segments that left with their hours", self.expired.clone());
        registry.register("files_deleted", "Files that sweeps deleted", self.deleted.clone());
        registry.register_with_unit("deleted", "Size of files that sweeps deleted", Unit::Bytes, self.deleted_bytes.clone());
        registry.register_with_unit("io", "Bytes to and from the store for maintenance", Unit::Bytes, self.bytes.clone());
    }

    /// A duty ended, well or badly. `passed` is all that went to the store and came from there so far.
    pub fn done(&self, duty: &'static str, done: Option<&Done>, took: Duration, now: Timestamp, passed: u64) {
        let outcome = if done.is_some() { "done" } else { "failed" };
        self.runs.get_or_create(&RunLabels { duty, outcome }).inc();
        self.took.get_or_create(&DutyLabels { duty }).inc_by(took.as_secs_f64());
        self.bytes.inc_by(passed.saturating_sub(self.bytes.get()));
        let Some(done) = done else { return };
        self.last_success.get_or_create(&DutyLabels { duty }).set(now.seconds());
        match done {
            Done::Compacted(done) => {
                self.merged.inc_by(done.inputs);
                self.merged_to.inc_by(done.outputs);
            }
            Done::Expired(done) => {
                self.expired.inc_by(done.segments);
            }
            Done::Swept(done) => {
                self.deleted.inc_by(done.orphans + done.removed);
                self.deleted_bytes.inc_by(done.bytes);
            }
        }
    }
}

/// What a consumer had counted when it was last looked at.
#[derive(Debug, Default)]
struct BusCounts {
    of: Option<Arc<BusFigures>>,
    rebalances: u64,
    reconnects: u64,
    holes: u64,
    redelivered: u64,
    backpressure: Duration,
}

/// The metrics of one source.
#[derive(Debug)]
pub struct SourceMetrics {
    all: Arc<Metrics>,
    source: String,
    bus: Mutex<BusCounts>,
    /// Topics whose figures are shown.
    shown: Mutex<BTreeSet<String>>,
}

impl SourceMetrics {
    /// Counts what this consumer counts, from now on.
    pub fn follow(&self, figures: Arc<BusFigures>) {
        *self.bus.lock().unwrap_or_else(PoisonError::into_inner) = BusCounts { of: Some(figures), ..BusCounts::default() };
    }

    fn observe_bus(&self) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(figures) = bus.of.clone() else { return };
        self.add(&self.all.rebalances, figures.rebalances(), &mut bus.rebalances);
        self.add(&self.all.reconnects, figures.reconnects(), &mut bus.reconnects);
        self.add(&self.all.holes, figures.holes(), &mut bus.holes);
        self.add(&self.all.redelivered, figures.redelivered(), &mut bus.redelivered);
        let backpressure = figures.backpressure();
        self.all.backpressure.get_or_create(&self.labels()).inc_by((backpressure - bus.backpressure).as_secs_f64());
        bus.backpressure = backpressure;
    }

    /// What was counted since `before`; nothing is shown of what this bus does not count.
    fn add(&self, shown: &Family<SourceLabels, Counter>, now: Option<u64>, before: &mut u64) {
        let Some(now) = now else { return };
        shown.get_or_create(&self.labels()).inc_by(now - *before);
        *before = now;
    }

    fn topic(&self, topic: &str) -> TopicLabels {
        TopicLabels { source: self.source.clone(), topic: topic.to_owned() }
    }

    fn labels(&self) -> SourceLabels {
        SourceLabels { source: self.source.clone() }
    }

    /// A run of deliveries came in.
    pub fn consumed(&self, run: &Deliveries) {
        let labels = self.topic(&run.topic);
        self.all.consumed.get_or_create(&labels).inc_by(run.events.len() as u64 + run.skipped);
        self.all.consumed_bytes.get_or_create(&labels).inc_by(run.events.payload_bytes() as u64);
        self.all.skipped.get_or_create(&labels).inc_by(run.skipped);
    }

    /// A batch was closed.
    pub fn sealed(&self, reason: SealReason) {
        self.all.seals.get_or_create(&SealLabels { source: self.source.clone(), reason: reason.as_str() }).inc();
    }

    /// A batch spent this long in a stage.
    pub fn stage(&self, stage: &'static str, time: Duration) {
        let labels = StageLabels { source: self.source.clone(), stage };
        self.all.stages.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// These segments became true.
    pub fn archived(&self, segments: &[SegmentRef], now: Timestamp) {
        for segment in segments {
            let labels = self.topic(&segment.topic);
            self.all.archived.get_or_create(&labels).inc_by(segment.rows);
            self.all.segments.get_or_create(&labels).inc();
            self.all.segment_size.get_or_create(&self.labels()).observe(segment.size as f64);
        }
        self.all.last_commit.get_or_create(&self.labels()).set(now.seconds());
    }

    /// Positions are lost.
    pub fn gap(&self, topic: &str, cause: GapCause, positions: u64) {
        let labels = GapLabels { source: self.source.clone(), topic: topic.to_owned(), cause: cause.as_str() };
        self.all.gaps.get_or_create(&labels).inc_by(positions);
    }

    /// A lane was stopped.
    pub fn halted(&self, topic: &str) {
        self.all.halted.get_or_create(&self.topic(topic)).inc();
    }

    /// A batch was refused by the log.
    pub fn conflicted(&self) {
        self.all.conflicts.get_or_create(&self.labels()).inc();
    }

    /// The state of the source, and of the process's memory.
    pub fn observe(&self, status: &SourceStatus, memory_used: usize) {
        let labels = self.labels();
        self.all.buffered_events.get_or_create(&labels).set(status.buffered_events as i64);
        self.all.buffered_bytes.set(memory_used as i64);
        match status.oldest_unarchived {
            Some(oldest) => drop(self.all.oldest.get_or_create(&labels).set(oldest.seconds())),
            None => drop(self.all.oldest.remove(&labels)),
        }
        self.observe_bus();
        self.observe_topics(status);
    }

    fn observe_topics(&self, status: &SourceStatus) {
        // What is not known of one lane is not known of its topic: no figure is better than one that looks well.
        let mut topics: BTreeMap<&str, (Option<Timestamp>, Option<u64>)> = BTreeMap::new();
        for lane in &status.lanes {
            let entry = topics.entry(&lane.topic).or_insert((lane.watermark, Some(0)));
            entry.0 = entry.0.min(lane.watermark);
            entry.1 = entry.1.zip(lane.lag()).map(|(sum, lag)| sum + lag);
        }
        let shown = topics.keys().map(|topic| (*topic).to_owned()).collect();
        let before = std::mem::replace(&mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner), shown);
        for gone in before.iter().filter(|topic| !topics.contains_key(topic.as_str())) {
            let labels = self.topic(gone);
            self.all.lag.remove(&labels);
            self.all.watermark.remove(&labels);
        }
        for (topic, (watermark, lag)) in topics {
            let labels = self.topic(topic);
            match lag {
                Some(lag) => drop(self.all.lag.get_or_create(&labels).set(lag as i64)),
                None => drop(self.all.lag.remove(&labels)),
            }
            match watermark {
                Some(watermark) => drop(self.all.watermark.get_or_create(&labels).set(watermark.seconds())),
                None => drop(self.all.watermark.remove(&labels)),
            }
        }
    }
}
