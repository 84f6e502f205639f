//! The world of the scenarios: one bus, one store, one clock, and processes of ours that come and go.
//!
//! Promises: everything but bus, store and clock is the real thing; each process has its own view of the store, so what
//! dies with it can be told from what it left behind. [`World::check`] holds the committed view against all that the bus ever showed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use prometheus_client::registry::Registry;
use tapedeck_common::Timestamp;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::position::{LaneId, Position};
use tapedeck_sim::bus::{MemberId, MemberOptions, MemoryBus, StartAt};
use tapedeck_sim::{BusEvent, FaultyStore, GENESIS, ManualClock, settle};
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::layout;
use tapedeck_storage::log::verify::LaneReport;
use tapedeck_storage::log::view::History;
use tapedeck_storage::log::{TableView, VerifyOptions, verify_table};
use tapedeck_storage::segment::{Scan, SegmentReader, SegmentStore, WriterOptions};
use tapedeck_storage::store::Store;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{RawTableRule, TableRules};
use crate::metrics::Metrics;
use crate::pipeline::{OnGap, Pipeline, PipelineError, Shared};
use crate::seal::SealPolicy;
use crate::status::SourceStatus;
use crate::tables::OpenTables;
use crate::upload::Segments;

/// How old a batch grows in these stories.
pub(super) const AGE_MAX: Duration = Duration::from_secs(60);

/// Longer than the pipeline looks away from its ages.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Long enough for every wait of ours to end: back-offs, time-outs, rebalances.
pub(super) const LONG: Duration = Duration::from_secs(180);

/// How a world is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) begins: Timestamp,
    pub(super) budget_bytes: usize,
    pub(super) policy: SealPolicy,
    pub(super) start: StartAt,
    pub(super) on_gap: OnGap,
    /// All topics share one table.
    pub(super) one_table: bool,
    pub(super) run_events: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 7,
            begins: GENESIS,
            budget_bytes: 64 << 20,
            policy: SealPolicy { bytes_max: 64 << 20, age_max: AGE_MAX },
            start: StartAt::Earliest,
            on_gap: OnGap::Record,
            one_table: false,
            run_events: 256,
        }
    }
}

pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) clock: ManualClock,
    pub(super) bus: MemoryBus,
    /// Only looked through by the tests themselves; each process has a view of its own.
    store: FaultyStore,
    chance: fastrand::Rng,
}

/// A process of ours: what all its pipelines share.
pub(super) struct Process {
    pub(super) store: FaultyStore,
    pub(super) budget: ByteBudget,
    shared: Shared,
    seal: watch::Sender<u64>,
    pub(super) metrics: Arc<Metrics>,
    registry: Registry,
}

/// A pipeline at work.
pub(super) struct Running {
    pub(super) member: MemberId,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<Result<(), PipelineError>>,
    pub(super) status: watch::Receiver<SourceStatus>,
    pub(super) rounds: Arc<AtomicU64>,
}

/// The committed view of all tables.
#[derive(Debug, Default)]
pub(super) struct Archived {
    pub(super) events: BTreeMap<(LaneId, Position), BusEvent>,
    pub(super) lanes: BTreeMap<LaneId, LaneReport>,
    /// Records of all tables, the one that makes a table left out.
    pub(super) records: u64,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let clock = ManualClock::at(setup.begins);
        let bus = MemoryBus::new(clock.clone());
        Self { setup, clock, bus, store: FaultyStore::default(), chance: fastrand::Rng::with_seed(setup.seed) }
    }

    /// A world with one topic of so many partitions, and a process that reads all of them.
    pub(super) async fn reading(setup: Setup, partitions: i32) -> (Self, Process, Running) {
        let mut world = Self::new(setup);
        world.bus.make_topic("orders", partitions);
        let process = world.process().await;
        let running = process.read_all(&world).await;
        (world, process, running)
    }

    /// Starts a process. Nothing is read yet.
    pub(super) async fn process(&mut self) -> Process {
        let store = self.store.other_view();
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let archive = Archive::open_or_create(Store::of(Arc::new(store.clone())), TABLE_PER_TOPIC, &*clock, &mut self.chance);
        let archive = archive.await.expect("no fault is injected yet");
        let budget = ByteBudget::new(self.setup.budget_bytes);
        let pool = Arc::new(ColumnsPool::new(self.setup.budget_bytes / 8));
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let tables = OpenTables::new(archive, "test".to_owned(), Arc::clone(&clock), metrics.log_observer(), self.chance.fork());
        let objects = SegmentStore::new(Arc::new(store.clone()), Arc::new(store.clone()), Arc::clone(&clock));
        let segments = Segments::new(
            objects,
            WriterOptions::default(),
            Arc::clone(&clock),
            budget.clone(),
            Arc::clone(&pool),
            2,
            self.chance.u64(..),
        );
        let (seal, seal_now) = watch::channel(0);
        let tables = Arc::new(Arc::new(tables).of_source(self.rules()));
        let shared = Shared {
            clock,
            budget: budget.clone(),
            pool,
            tables,
            segments: Arc::new(segments),
            policy: self.setup.policy,
            on_gap: self.setup.on_gap,
            seal_now,
        };
        Process { store, budget, shared, seal, metrics, registry }
    }

    fn rules(&self) -> TableRules {
        let all = RawTableRule { topics: "^.+$".to_owned(), table: "everything".to_owned() };
        TableRules::parse(if self.setup.one_table { std::slice::from_ref(&all) } else { &[] }).expect("a good rule")
    }

    /// The store as one more process sees it.
    pub(super) fn other_view(&self) -> FaultyStore {
        self.store.other_view()
    }

    /// The store as it is, without any process's view of it.
    pub(super) fn below(&self) -> Arc<dyn ObjectStore> {
        self.store.below()
    }

    pub(super) async fn advance(&self, time: Duration) {
        self.clock.advance(time).await;
    }

    /// Publishes events `0..count` to each partition of a topic.
    pub(super) fn publish(&self, topic: &str, count: usize) {
        for lane in self.bus.lanes(topic) {
            let begin = self.bus.bounds(topic, &lane).expect("it exists").until();
            for number in 0..count as u64 {
                let value = format!("{topic}/{}/{}", lane.partition, begin.get() + number);
                self.bus.publish(topic, lane.partition, BusEvent::of(value).key("k").header("h", None));
            }
        }
    }

    /// Reads everything back that is committed, and panics unless it is exactly what the bus showed, as far as the log says.
    pub(super) async fn check(&self) -> Archived {
        // Looked at first: work goes on while the archive is read.
        let acknowledged = self.bus.acknowledged();
        let store = Store::of(self.store.below());
        let archive = Archive::open(store.clone()).await.expect("the archive exists");
        let mut archived = Archived::default();
        for table in archive.tables().await.expect("it can be listed") {
            let deep = VerifyOptions { deep: true, ..VerifyOptions::default() };
            let report = verify_table(&store, &table, &deep).await.expect("it can be read");
            assert!(report.is_complete(), "seed {}: {:#?}", self.setup.seed, report.findings);
            archived.records += report.version;
            read_table(&store, &table, report.version, &mut archived.events).await;
            for lane in report.lanes {
                let id = LaneId::parse(&lane.lane).expect("a lane's name");
                assert!(archived.lanes.insert(id, lane).is_none(), "a lane goes to one table");
            }
        }
        self.compare(&archived);
        for (lane, at) in acknowledged {
            let next = archived.lanes.get(&lane).map_or(0, |lane| lane.next);
            assert!(at.get() <= next, "seed {}: {lane} is acknowledged to {at} and committed to {next}", self.setup.seed);
        }
        archived
    }

    fn compare(&self, archived: &Archived) {
        let expected = self.bus.published().into_iter().filter(|((lane, position), event)| {
            let Some(lane) = archived.lanes.get(lane) else { return false };
            let position = position.get();
            let is_lost = lane.gaps.iter().any(|gap| (gap.from..gap.until).contains(&position));
            (lane.from..lane.next).contains(&position) && !is_lost && !event.is_replayed()
        });
        let expected: BTreeMap<_, _> = expected.collect();
        let beyond = |these: &BTreeMap<(LaneId, Position), BusEvent>, those: &BTreeMap<(LaneId, Position), BusEvent>| {
            let beyond = these.iter().filter(|(place, event)| those.get(*place) != Some(*event));
            beyond.map(|((lane, position), _)| format!("{lane}/{position}")).collect::<Vec<_>>()
        };
        let (missing, foreign) = (beyond(&expected, &archived.events), beyond(&archived.events, &expected));
        let seed = self.setup.seed;
        assert!(
            missing.is_empty() && foreign.is_empty(),
            "seed {seed}: missing or changed {missing:?}, not from the bus {foreign:?}"
        );
    }

    /// As [`Self::check`], and nothing that the bus shows is missing.
    pub(super) async fn check_all_archived(&self) -> Archived {
        let archived = self.check().await;
        let last = self.bus.published().into_keys().collect::<BTreeMap<_, _>>();
        for (lane, position) in last {
            let next = archived.lanes.get(&lane).map_or(0, |lane| lane.next);
            assert!(
                next > position.get(),
                "seed {}: {lane} is committed to {next}, its last event is {position}",
                self.setup.seed
            );
        }
        archived
    }
}

async fn read_table(store: &Store, table: &str, version: u64, events: &mut BTreeMap<(LaneId, Position), BusEvent>) {
    let view = TableView::load(store, table, Some(version), History::Recent).await.expect("it can be read");
    for live in view.segments {
        let segment = live.segment;
        let key = layout::table_object(table, &segment.path);
        let reader = SegmentReader::open_vouched(Arc::clone(&store.store), key, &segment).await.expect("it can be opened");
        let mut scan = reader.scan(Scan::default());
        while let Some(batch) = scan.next().await.expect("it can be decoded") {
            let mut headers = Vec::new();
            for number in 0..batch.len() {
                let row = batch.row(number);
                batch.headers(number, &mut headers);
                let event = BusEvent {
                    time: Some(row.time),
                    key: row.key.map(<[u8]>::to_vec),
                    value: row.value.map(<[u8]>::to_vec),
                    headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec))).collect(),
                };
                let place = (LaneId::new(Arc::clone(&segment.source), row.partition), row.position);
                assert_eq!(events.insert(place.clone(), event), None, "{place:?} is there twice");
            }
        }
    }
}

impl Process {
    /// A pipeline that is a member of the group and has no lanes yet.
    pub(super) fn pipeline(&self, world: &World) -> Running {
        let options = MemberOptions {
            pool: Arc::clone(&self.shared.pool),
            run_events: world.setup.run_events,
            start: world.setup.start,
            ..MemberOptions::drawing_from(&self.budget)
        };
        let consumer = world.bus.join(options);
        let member = consumer.id();
        let (status, watched) = watch::channel(SourceStatus::default());
        let rounds = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&rounds);
        let pulse = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let source = self.metrics.source("bus");
        let pipeline = Pipeline::new(self.shared.clone(), Box::new(consumer), source, Arc::new(status), pulse);
        let stop = CancellationToken::new();
        let task = tokio::spawn(pipeline.run(stop.clone()));
        Running { member, stop, task, status: watched, rounds }
    }

    /// A pipeline that reads every lane that nobody owns.
    pub(super) async fn read_all(&self, world: &World) -> Running {
        let running = self.pipeline(world);
        world.bus.rebalance();
        settle().await;
        running
    }

    /// Asks all pipelines to seal what they have been shown.
    pub(super) async fn seal(&self) {
        settle().await;
        self.seal.send_modify(|orders| *orders += 1);
        settle().await;
    }

    /// A request to the store must be waiting for its answer now.
    pub(super) async fn must_hang(&self) {
        settle().await;
        assert!(self.store.hanging() > 0, "nothing waits for the store");
    }

    /// The sum of a metric over all its labels that contain `label`.
    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text can be written");
        let prefix = format!("tapedeck_archiver_{name}");
        let lines = text.lines().filter(|line| line.starts_with(&prefix) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

impl Running {
    /// kill -9: the process is gone at this very point.
    pub(super) async fn crash(self, process: Process) {
        self.task.abort();
        drop(self.task.await);
        drop(process);
        settle().await;
    }

    /// Asks it to leave, lets time pass until it has, and says how it ended.
    pub(super) async fn leave(mut self, world: &World) -> Result<(), PipelineError> {
        self.stop.cancel();
        let task = &mut self.task;
        assert!(world.clock.advance_until(LONG, || task.is_finished()).await, "it never left");
        self.task.await.expect("no panic")
    }

    /// How often its loop went round.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}
