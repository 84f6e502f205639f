//! A small archive for the tests: a log in memory that accepts each step of a lane once, and members that read into it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{BusError, Confirmed, Consumer, Deliveries, Incoming, Located, Producer, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::{
    Advance, Appended, Checkpoint, CommitError, CommitLog, GapCause, Outcome, Receipt, Record, StaleLane,
};
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;
use tapedeck_kafka::config::{ClusterSettings, GroupProtocol, KafkaSettings, Membership, Replayed, Start, TopicSelector};
use tapedeck_kafka::consumer::KafkaConsumer;
use tapedeck_kafka::producer::KafkaProducer;
use tapedeck_testbed::{Admin, Event, shared_kafka};
use tokio::task::JoinHandle;

/// Longer than anything here may take, a broker's patience with a member included; only a failing test waits that long.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// One broker for all tests. Its sessions are as short as those that [`settings`] asks for: with the protocol of KIP-848 they are the
/// broker's to set.
pub(crate) fn broker() -> String {
    shared_kafka().bootstrap()
}

pub(crate) fn admin() -> Admin {
    Admin::new(&broker()).expect("an admin client")
}

/// A topic of this test's own.
pub(crate) fn topic(name: &str, partitions: i32) -> String {
    topic_with(name, partitions, &[])
}

pub(crate) fn topic_with(name: &str, partitions: i32, settings: &[(&str, &str)]) -> String {
    admin().create_topic(name, partitions, settings).expect("a topic");
    name.to_owned()
}

pub(crate) fn event(value: &str) -> Event {
    Event { key: None, value: Some(value.as_bytes().to_vec()), headers: Vec::new(), timestamp: 1_760_000_000_000 }
}

/// Puts numbered values into a partition.
pub(crate) fn produce(topic: &str, partition: i32, numbers: std::ops::Range<u64>) {
    let loader = tapedeck_testbed::Loader::new(&broker(), &[]).expect("a producer");
    for number in numbers {
        loader.send(topic, Some(partition), &event(&format!("{topic} {number}"))).expect("sent");
    }
    loader.finish().expect("delivered");
}

pub(crate) fn cluster() -> ClusterSettings {
    ClusterSettings { brokers: vec![broker()], client: BTreeMap::new() }
}

/// What comes next, but for where the bus ends: that is told all the time.
pub(crate) async fn next(consumer: &mut KafkaConsumer) -> Result<Incoming, BusError> {
    loop {
        match consumer.next().await {
            Ok(Incoming::Ends(..)) => {}
            other => return other,
        }
    }
}

/// Waits until everything published is confirmed.
pub(crate) async fn drain(producer: &mut KafkaProducer) -> Result<Vec<Confirmed>, BusError> {
    let drained = async {
        loop {
            let confirmed = producer.confirmed()?;
            if producer.unconfirmed() == 0 {
                return Ok(confirmed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, drained).await.expect("in time")
}

/// Settings that make a group react quickly.
pub(crate) fn settings(group: &str, topics: &[&str]) -> KafkaSettings {
    let quick = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "300"), ("topic.metadata.refresh.interval.ms", "500")];
    let client = quick.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    KafkaSettings {
        cluster: ClusterSettings { brokers: vec![broker()], client },
        group: group.to_owned(),
        membership: Membership::default(),
        topics: topics.iter().map(|text| TopicSelector::parse(text).expect("a topic")).collect(),
        start: Start::Earliest,
        replayed: Replayed::Skip,
        mark: String::new(),
    }
}

/// The same as a member by this protocol.
pub(crate) fn settings_by(protocol: GroupProtocol, group: &str, topics: &[&str]) -> KafkaSettings {
    let mut settings = settings(group, topics);
    settings.membership.protocol = protocol;
    if protocol == GroupProtocol::Consumer {
        settings.cluster.client.retain(|name, _| !["session.timeout.ms", "heartbeat.interval.ms"].contains(&name.as_str()));
    }
    settings
}

/// A name of this test's own, where a test runs with each protocol.
pub(crate) fn named(protocol: GroupProtocol, name: &str) -> String {
    format!("{name}-{}", if protocol == GroupProtocol::Classic { "classic" } else { "consumer" })
}

/// The real clock.
pub(crate) struct RealClock(Instant);

impl RealClock {
    pub(crate) fn shared() -> Arc<dyn Clock> {
        Arc::new(Self(Instant::now()))
    }
}

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        Timestamp::from_micros(i64::try_from(since.as_micros()).expect("before the end of time"))
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep_until(&self, deadline: Duration) {
        tokio::time::sleep_until((self.0 + deadline).into()).await;
    }
}

/// One committed event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub lane: LaneId,
    pub offset: i64,
    pub value: String,
}

#[derive(Debug, Default)]
pub(crate) struct Archive {
    pub positions: Checkpoint,
    pub rows: Vec<Row>,
    pub gaps: Vec<(LaneId, Span, GapCause)>,
    /// Records that were refused since another member was first.
    pub refused: usize,
    version: u64,
}

/// The log that members share.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedArchive(Arc<Mutex<Archive>>);

impl SharedArchive {
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Archive) -> T) -> T {
        at(&self.0.lock().expect("unpoisoned"))
    }

    pub(crate) fn rows(&self) -> usize {
        self.look(|archive| archive.rows.len())
    }

    /// Every value that was produced is there once, and nothing else.
    pub(crate) fn assert_holds_once(&self, expected: impl IntoIterator<Item = String>) {
        let mut found: Vec<String> = self.look(|archive| archive.rows.iter().map(|row| row.value.clone()).collect());
        found.sort();
        let mut expected: Vec<String> = expected.into_iter().collect();
        expected.sort();
        let (found_set, expected_set): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), expected.iter().collect());
        let missing: Vec<_> = expected_set.difference(&found_set).take(5).collect();
        let extra: Vec<_> = found_set.difference(&expected_set).take(5).collect();
        assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, extra {extra:?}");
        assert_eq!(found.len(), expected.len(), "some came twice");
    }

    /// Makes a step of a lane true if the lane stands where it begins.
    pub(crate) async fn append(&mut self, advance: Advance, rows: Vec<Row>) -> Appended {
        let record = Record { advances: vec![advance], segments: Vec::new() };
        let appended = self.clone().append_through(&record).await;
        if let Appended::Committed(_) = appended {
            self.0.lock().expect("unpoisoned").rows.extend(rows);
        }
        appended
    }

    async fn append_through(mut self, record: &Record) -> Appended {
        CommitLog::append(&mut self, record).await.expect("memory does not fail")
    }
}

#[async_trait]
impl CommitLog for SharedArchive {
    async fn checkpoint(&mut self) -> Result<Checkpoint, CommitError> {
        Ok(self.look(|archive| archive.positions.clone()))
    }

    async fn append_record(&mut self, record: &Record) -> Result<Outcome, CommitError> {
        let mut archive = self.0.lock().expect("unpoisoned");
        let stale: Vec<StaleLane> = record
            .advances
            .iter()
            .map(|advance| (advance, archive.positions.get(&advance.lane).copied()))
            .filter(|(advance, found)| *found != advance.expected)
            .map(|(advance, found)| StaleLane { lane: advance.lane.clone(), expected: advance.expected, found })
            .collect();
        if !stale.is_empty() {
            archive.refused += 1;
            return Ok(Outcome::Stale(stale));
        }
        for advance in &record.advances {
            archive.positions.insert(advance.lane.clone(), advance.span.until());
            archive.gaps.extend(advance.gap.map(|cause| (advance.lane.clone(), advance.span, cause)));
        }
        archive.version += 1;
        Ok(Outcome::Committed { version: archive.version })
    }
}

/// How far a lane was taken in since it was last resumed, as the pipeline's batcher keeps it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    next: Position,
    /// Where the bus said that it has nothing more.
    idle: Option<Position>,
}

/// A member of a group, as the pipeline would use it: everything is committed at once.
pub(crate) struct Member {
    pub consumer: KafkaConsumer,
    pub archive: SharedArchive,
    pub lanes: BTreeMap<LaneId, Arc<str>>,
    /// Lanes that are being read. One whose step turned out stale is not, until it is resumed: what still comes is dropped.
    pub reading: BTreeMap<LaneId, Standing>,
    pub halted: Vec<(LaneId, BusError)>,
    pub gaps: usize,
}

impl Member {
    pub(crate) fn join(settings: KafkaSettings, archive: &SharedArchive) -> Self {
        Self::join_within(settings, archive, &ByteBudget::new(64 << 20))
    }

    pub(crate) fn join_within(settings: KafkaSettings, archive: &SharedArchive, budget: &ByteBudget) -> Self {
        let consumer = consumer(settings, budget);
        Self { consumer, archive: archive.clone(), lanes: BTreeMap::new(), reading: BTreeMap::new(), halted: Vec::new(), gaps: 0 }
    }

    pub(crate) async fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Deliveries(runs) => {
                for run in runs {
                    self.commit(run).await;
                }
            }
            Incoming::Assigned(lanes) => {
                self.lanes.extend(lanes.iter().map(|lane| (lane.lane.clone(), Arc::clone(&lane.topic))));
                self.look_up(lanes.into_iter().map(|lane| lane.lane).collect()).await;
            }
            Incoming::Revoking(lanes, _) | Incoming::Lost(lanes) => {
                self.lanes.retain(|lane, _| !lanes.contains(lane));
                self.reading.retain(|lane, _| !lanes.contains(lane));
            }
            Incoming::Idle(lanes) => {
                for (lane, end) in lanes {
                    self.reading.entry(lane).and_modify(|standing| standing.idle = Some(end));
                }
            }
            Incoming::Halted(lane, error) => self.halted.push((lane, error)),
            Incoming::Ends(..) => {}
        }
    }

    async fn commit(&mut self, run: Deliveries) {
        let Some(Standing { next, idle }) = self.reading.get(&run.lane).copied() else { return };
        let value = |row| String::from_utf8_lossy(run.events.values.get(row).unwrap_or_default()).into_owned();
        let rows: Vec<Row> = (0..run.events.len())
            .map(|row| Row { lane: run.lane.clone(), offset: run.events.positions[row], value: value(row) })
            .collect();
        let offsets: Vec<i64> = run.events.positions.clone();
        assert!(offsets.is_sorted(), "positions grow");
        assert!(offsets.iter().all(|offset| run.span.contains(Position::new(*offset as u64))), "events lie in the span");
        // A run begins where the one before ended, or where the bus said it had nothing more.
        let from = run.span.from();
        assert!(from == next || idle == Some(from), "{}: stands at {next}, idle at {idle:?}, run {}", run.lane, run.span);
        let span = Span::empty_at(next).stretched_to(run.span.until());
        self.reading.insert(run.lane.clone(), Standing { next: span.until(), idle: None });
        let advance = Advance {
            lane: run.lane.clone(),
            expected: Some(next),
            span,
            rows: rows.len() as u64,
            skipped: run.skipped,
            gap: None,
        };
        match self.archive.append(advance, rows).await {
            Appended::Committed(receipt) => self.acknowledge(&receipt).await,
            Appended::Stale(_) => {
                self.reading.remove(&run.lane);
                self.look_up(vec![run.lane]).await;
            }
        }
    }

    async fn acknowledge(&mut self, receipt: &Receipt) {
        self.consumer.acknowledge(receipt).await;
    }

    /// Lanes that are new to the log get their start record, gaps are written, and all go on where the log stands.
    pub(crate) async fn look_up(&mut self, lanes: Vec<LaneId>) {
        let mut open = lanes;
        while !open.is_empty() {
            let positions = self.archive.look(|archive| archive.positions.clone());
            let questions = open.iter().filter_map(|lane| {
                let topic = Arc::clone(self.lanes.get(lane)?);
                let topic_known = positions.keys().any(|known| known.source == lane.source);
                Some(ToLocate {
                    lane: lane.clone(),
                    topic,
                    log: positions.get(lane).copied(),
                    topic_known,
                    table: Arc::default(),
                })
            });
            let answers = self.consumer.locate(questions.collect()).await.expect("located");
            open.clear();
            let mut resume = Vec::new();
            for (lane, located) in answers {
                let (span, gap) = match located {
                    Located::Continue(at) => {
                        resume.push((lane, at));
                        continue;
                    }
                    Located::Start(at) => (Span::empty_at(at), None),
                    Located::Gap(span, cause) => (span, Some(cause)),
                    Located::Beyond { log, bus_end } => panic!("{lane}: log at {log}, bus ends at {bus_end}"),
                };
                self.gaps += usize::from(gap.is_some());
                let expected = positions.get(&lane).copied();
                drop(
                    self.archive
                        .append(Advance { lane: lane.clone(), expected, span, rows: 0, skipped: 0, gap }, Vec::new())
                        .await,
                );
                open.push(lane);
            }
            self.reading.extend(resume.iter().map(|(lane, next)| (lane.clone(), Standing { next: *next, idle: None })));
            self.consumer.resume(resume).await.expect("resumed");
        }
    }

    /// Goes on until `done` holds.
    pub(crate) async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            match tokio::time::timeout(Duration::from_millis(100), self.consumer.next()).await {
                Ok(incoming) => self.take(incoming.expect("no failure")).await,
                Err(_) => continue,
            }
        }
    }

    /// Goes on in the background until told to stop; then leaves the group.
    pub(crate) fn run(mut self) -> Running {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let owned = Arc::new(Mutex::new(BTreeSet::new()));
        let shown = Arc::clone(&owned);
        let task = tokio::spawn(async move {
            loop {
                *shown.lock().expect("unpoisoned") = self.lanes.keys().cloned().collect();
                tokio::select! {
                    _ = &mut stopped => break,
                    incoming = self.consumer.next() => self.take(incoming.expect("no failure")).await,
                }
            }
            Box::new(self.consumer).close().await;
        });
        Running { stop, task, owned }
    }
}

/// A member in the background.
pub(crate) struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<()>,
    owned: Arc<Mutex<BTreeSet<LaneId>>>,
}

impl Running {
    pub(crate) fn lanes(&self) -> usize {
        self.owned.lock().expect("unpoisoned").len()
    }

    pub(crate) async fn leave(self) {
        let _ = self.stop.send(());
        self.task.await.expect("the member did not fail");
    }

    /// Dropped in the middle of whatever it does.
    pub(crate) fn drop_it(self) {
        self.task.abort();
    }
}

pub(crate) fn consumer(settings: KafkaSettings, budget: &ByteBudget) -> KafkaConsumer {
    KafkaConsumer::start(settings, budget, Arc::new(ColumnsPool::new(16 << 20)), RealClock::shared()).expect("a consumer")
}

/// Waits for a condition of the real world.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
