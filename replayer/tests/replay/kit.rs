//! A small archive made with the storage crate, a clock that jumps ahead, and a broker that a seed drives.

#![allow(dead_code, unreachable_pub, reason = "each of the test programs uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use replayer::cursor::Cursor;
use replayer::markers;
use replayer::plan::Plan;
use replayer::planner::{Ask, PlannerError, plan};
use replayer::progress::Counters;
use replayer::replay::{Ledger, LedgerError};
use replayer::select::Selection;
use replayer::stream::{Chunk, Source, StreamError, open};
use replayer::target::Target;
use tapedeck_common::bus::{BusError, Confirmed, Outgoing, Producer};
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::commit::{Advance, Appended, CommitLog as _, Record, SegmentRef};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{ByteBudget, Clock, ErrorKind, LaneId, Position, Span, Timestamp, Window};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::log::{TableLog, TableOptions};
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};
use tapedeck_storage::store::Store;
use tokio::sync::{Notify, mpsc};

pub(crate) const SOURCE: &str = "kafka/cluster/AAAAAAAAAAAAAAAAAAAAAA/0";
/// 2026-11-20T10:00:00Z.
pub(crate) const TEN: i64 = 1_795_168_800_000_000;
pub(crate) const HOUR: i64 = 3_600_000_000;
pub(crate) const MINUTE: i64 = 60_000_000;

/// A clock on which waiting is what lets time pass.
#[derive(Debug, Default)]
pub(crate) struct JumpClock(AtomicU64);

#[async_trait]
impl Clock for JumpClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(TEN + self.0.load(Ordering::SeqCst) as i64)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }

    async fn sleep_until(&self, deadline: Duration) {
        self.0.fetch_max(deadline.as_micros() as u64, Ordering::SeqCst);
        // Others get their turn, as they would while time passes.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }
}

/// An event that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) topic: &'static str,
    pub(crate) partition: i32,
    pub(crate) position: u64,
    pub(crate) time: i64,
    pub(crate) kind: TimeKind,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) properties: Vec<(String, String)>,
}

impl Event {
    pub(crate) fn plain(partition: i32, position: u64, time: i64) -> Self {
        Self {
            topic: "orders",
            partition,
            position,
            time,
            kind: TimeKind::Create,
            key: Some(format!("key-{}", position % 7).into_bytes()),
            value: Some(format!("{partition}/{position}").into_bytes()),
            headers: vec![("trace".into(), Some(position.to_string().into_bytes()))],
            properties: vec![],
        }
    }

    pub(crate) fn lane(&self) -> LaneId {
        LaneId::new(source_of(self.topic), self.partition)
    }

    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.lane(), self.position)
    }
}

/// Each topic is a source of its own.
pub(crate) fn source_of(topic: &str) -> String {
    if topic == "orders" { SOURCE.to_owned() } else { format!("kafka/cluster/{topic}/0") }
}

/// An archive in memory.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) archive: Archive,
    pub(crate) clock: Arc<JumpClock>,
    pub(crate) options: WriterOptions,
    rng: fastrand::Rng,
    logs: BTreeMap<&'static str, TableLog>,
    /// Topics that do not go to a table of their own.
    moved: BTreeMap<&'static str, &'static str>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::at(Store::of(Arc::new(InMemory::new()))).await
    }

    /// An archive in `store`.
    pub(crate) async fn at(store: Store) -> Self {
        let clock = Arc::new(JumpClock::default());
        let mut rng = fastrand::Rng::with_seed(7);
        let archive = Archive::open_or_create(store.clone(), "{topic}", clock.as_ref(), &mut rng).await.expect("memory");
        Self { store, archive, clock, options: WriterOptions::default(), rng, logs: BTreeMap::new(), moved: BTreeMap::new() }
    }

    /// What follows of a topic goes to another table, as an operator arranges it.
    pub(crate) async fn move_topic(&mut self, topic: &'static str, table: &'static str) {
        self.store.store.delete(&layout::archive_topic(topic)).await.expect("memory");
        self.logs.remove(topic);
        self.moved.insert(topic, table);
    }

    fn table_of(&self, topic: &'static str) -> &'static str {
        self.moved.get(topic).copied().unwrap_or(topic)
    }

    /// Commits one batch of one topic: a segment an hour, sorted by partition in chunks of `chunk` events, as the archiver does.
    pub(crate) async fn commit(&mut self, events: &[Event], chunk: usize) {
        let topic = events[0].topic;
        if !self.logs.contains_key(topic) {
            let table = self.table_of(topic);
            self.archive.settle_topic(topic, table, self.clock.as_ref(), &mut self.rng).await.expect("memory");
            let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
            let log = TableLog::open(&self.store, TableOptions::of(table, "test"), clock, self.rng.fork(), Arc::new(())).await;
            self.logs.insert(topic, log.expect("memory"));
        }
        let mut hours: BTreeMap<Window, Vec<Event>> = BTreeMap::new();
        for event in events {
            hours.entry(Window::of(Timestamp::from_micros(event.time))).or_default().push(event.clone());
        }
        let mut segments = Vec::new();
        for (window, events) in hours {
            segments.push(self.put(topic, window, &events, chunk).await);
        }
        let advances = self.advances(topic, events).await;
        let log = self.logs.get_mut(topic).expect("opened above");
        assert!(matches!(log.append(&Record { advances, segments }).await.expect("memory"), Appended::Committed(_)));
    }

    async fn advances(&mut self, topic: &'static str, events: &[Event]) -> Vec<Advance> {
        let log = self.logs.get_mut(topic).expect("opened before");
        let known = log.checkpoint().await.expect("memory");
        let mut lanes: BTreeMap<LaneId, (u64, u64, u64)> = BTreeMap::new();
        for event in events {
            let lane = lanes.entry(event.lane()).or_insert((event.position, event.position, 0));
            *lane = (lane.0.min(event.position), lane.1.max(event.position), lane.2 + 1);
        }
        let starts: Vec<Advance> = lanes
            .iter()
            .filter(|(lane, _)| !known.contains_key(lane))
            .map(|(lane, (first, _, _))| advance(lane, None, *first, *first, 0))
            .collect();
        if !starts.is_empty() {
            let begun = log.append(&Record { advances: starts, segments: vec![] }).await.expect("memory");
            assert!(matches!(begun, Appended::Committed(_)));
        }
        let known = log.checkpoint().await.expect("memory");
        lanes
            .iter()
            .map(|(lane, (_, last, rows))| advance(lane, known.get(lane).copied(), known[lane].get(), last + 1, *rows))
            .collect()
    }

    async fn put(&mut self, topic: &'static str, window: Window, events: &[Event], chunk: usize) -> SegmentRef {
        let mut writer =
            SegmentWriter::new(topic.into(), source_of(topic).into(), window, Timestamp::from_micros(TEN), &self.options);
        let mut object = Vec::new();
        for chunk in events.chunks(chunk) {
            let mut blocks: BTreeMap<i32, Columns> = BTreeMap::new();
            chunk.iter().for_each(|event| push(blocks.entry(event.partition).or_default(), event));
            writer.write_chunk(blocks.into_iter().collect());
            writer.take_parts(1).iter().for_each(|part| object.extend_from_slice(part));
        }
        let mut finished = writer.finish();
        finished.take_parts().iter().for_each(|part| object.extend_from_slice(part));
        let path = layout::segment_path(topic, window, &fresh_uuid(Timestamp::from_micros(TEN), &mut self.rng));
        self.store
            .store
            .put(&layout::table_object(self.table_of(topic), &path), Bytes::from(object).into())
            .await
            .expect("memory");
        finished.into_ref(path, Timestamp::from_micros(TEN))
    }

    pub(crate) async fn plan(&self, selection: Selection) -> Result<Plan, PlannerError> {
        let target = Target::parse("kafka://broker:9092").expect("good");
        let ask = Ask { selection, target, limits: Default::default(), whole_object_max: 1 << 20, now: self.clock.now() };
        plan(&self.archive, ask).await
    }

    /// All of `plan` from `cursor` on, read before anything is sent: on a clock that jumps, waiting for a decoder would take hours.
    pub(crate) async fn read_all(&self, plan: &Arc<Plan>, cursor: &Cursor) -> mpsc::Receiver<Result<Chunk, StreamError>> {
        let (mut chunks, mut all) = (self.read(plan, cursor, 1 << 24), Vec::new());
        while let Some(chunk) = chunks.recv().await {
            all.push(chunk);
        }
        let (sender, receiver) = mpsc::channel(all.len().max(1));
        for chunk in all {
            sender.try_send(chunk).expect("it was made to hold them");
        }
        receiver
    }

    /// Starts reading `plan` from `cursor` on.
    pub(crate) fn read(&self, plan: &Arc<Plan>, cursor: &Cursor, budget: usize) -> mpsc::Receiver<Result<Chunk, StreamError>> {
        let resume_at = plan.lanes.iter().map(|lane| cursor.of(&lane.id()).map(|at| at.next).unwrap_or_default()).collect();
        open(Source {
            plan: Arc::clone(plan),
            resume_at,
            store: self.store.clone(),
            budget: ByteBudget::new(budget),
            clock: Arc::clone(&self.clock) as _,
            rng: fastrand::Rng::with_seed(3),
            counters: Arc::new(Counters::default()),
        })
    }
}

fn advance(lane: &LaneId, expected: Option<Position>, from: u64, until: u64, rows: u64) -> Advance {
    let span = Span::new(Position::new(from), Position::new(until)).expect("forward");
    Advance { lane: lane.clone(), expected, span, rows, skipped: 0, gap: None }
}

fn push(columns: &mut Columns, event: &Event) {
    let fields = EventFields {
        position: Position::new(event.position),
        time: Timestamp::from_micros(event.time),
        time_kind: event.kind,
        leader_epoch: None,
        key: event.key.as_deref(),
        value: event.value.as_deref(),
    };
    let headers = event.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
    let properties = event.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    columns.push(fields, headers, properties);
}

/// All events of a selection by lane and position.
pub(crate) fn by_lane(events: &[Event]) -> BTreeMap<LaneId, Vec<u64>> {
    let mut lanes: BTreeMap<LaneId, Vec<u64>> = BTreeMap::new();
    events.iter().for_each(|event| lanes.entry(event.lane()).or_default().push(event.position));
    lanes.values_mut().for_each(|positions| positions.sort_unstable());
    lanes
}

/// One event as the broker holds it.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) time: Option<Timestamp>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// Names as bytes, raw ones included.
    pub(crate) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Sent {
    pub(crate) fn marked(&self) -> markers::Marked {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref())).collect();
        markers::read(&headers).expect("every replayed event is marked")
    }
}

/// What the broker has, for ever.
#[derive(Debug, Default)]
pub(crate) struct Topics(pub(crate) Mutex<Vec<Sent>>);

impl Topics {
    pub(crate) fn all(&self) -> Vec<Sent> {
        self.0.lock().unwrap().clone()
    }

    /// Positions by lane, in the order in which they arrived.
    pub(crate) fn arrived(&self) -> BTreeMap<LaneId, Vec<u64>> {
        let mut lanes: BTreeMap<LaneId, Vec<u64>> = BTreeMap::new();
        for sent in self.0.lock().unwrap().iter() {
            let marked = sent.marked();
            lanes.entry(marked.lane).or_default().push(marked.position.get());
        }
        lanes
    }
}

/// A producer whose broker takes and confirms as its seed says, and which can be the moment of a crash.
pub(crate) struct SeededProducer {
    pub(crate) topics: Arc<Topics>,
    rng: fastrand::Rng,
    queued: VecDeque<(Sent, u32, Position)>,
    taken: VecDeque<(u32, Position)>,
    confirmed: BTreeMap<u32, (Position, u64)>,
    /// Calls until the crash, and who hears of it.
    pub(crate) calls_left: Option<u64>,
    pub(crate) crash: Arc<Notify>,
    pub(crate) queue_max: usize,
    /// The broker confirms nothing while this is set.
    pub(crate) is_silent: bool,
    pub(crate) refuses: Option<u64>,
}

impl SeededProducer {
    pub(crate) fn new(topics: &Arc<Topics>, seed: u64) -> Self {
        Self {
            topics: Arc::clone(topics),
            rng: fastrand::Rng::with_seed(seed),
            queued: VecDeque::new(),
            taken: VecDeque::new(),
            confirmed: BTreeMap::new(),
            calls_left: None,
            crash: Arc::new(Notify::new()),
            queue_max: 500,
            is_silent: false,
            refuses: None,
        }
    }

    fn call(&mut self) -> bool {
        if let Some(left) = &mut self.calls_left {
            if *left == 0 {
                self.crash.notify_one();
                return false;
            }
            *left -= 1;
        }
        true
    }

    fn send(&mut self, event: &Outgoing<'_>, raw: &[(usize, &[u8])]) -> bool {
        if !self.call() || self.unconfirmed() >= self.queue_max {
            return false;
        }
        let name =
            |index: usize, name: &str| raw.iter().find(|(of, _)| *of == index).map_or(name.as_bytes(), |(_, name)| name).to_vec();
        let sent = Sent {
            topic: event.topic.to_owned(),
            partition: event.partition,
            time: event.time,
            key: event.key.map(<[u8]>::to_vec),
            value: event.value.map(|value| value.to_vec()),
            headers: event
                .headers
                .iter()
                .enumerate()
                .map(|(index, (text, value))| (name(index, text), value.map(<[u8]>::to_vec)))
                .collect(),
        };
        self.queued.push_back((sent, event.lane, event.position));
        true
    }

    /// The broker moves: takes some of the queue, confirms some of what it took.
    fn broker(&mut self) {
        if self.is_silent {
            return;
        }
        for _ in 0..self.rng.usize(0..=self.queued.len()) {
            let (sent, lane, position) = self.queued.pop_front().expect("counted");
            self.topics.0.lock().unwrap().push(sent);
            self.taken.push_back((lane, position));
        }
        for _ in 0..self.rng.usize(0..=self.taken.len()) {
            let (lane, position) = self.taken.pop_front().expect("counted");
            let events = self.confirmed.get(&lane).map_or(0, |lane| lane.1);
            self.confirmed.insert(lane, (position.next(), events + 1));
        }
    }
}

impl Producer for SeededProducer {
    fn publish(&mut self, event: &Outgoing<'_>) -> Result<bool, BusError> {
        Ok(self.send(event, &[]))
    }

    fn publish_raw(&mut self, event: &Outgoing<'_>, raw_names: &[(usize, &[u8])]) -> Result<bool, BusError> {
        Ok(self.send(event, raw_names))
    }

    fn confirmed(&mut self) -> Result<Vec<Confirmed>, BusError> {
        if self.call() {
            self.broker();
        }
        let total: u64 = self.confirmed.values().map(|lane| lane.1).sum();
        if self.refuses.is_some_and(|after| total >= after) {
            return Err(BusError::new(ErrorKind::Invalid, "topic orders partition 0 refused the event of position 5: too large"));
        }
        Ok(self.confirmed.iter().map(|(lane, (next, events))| Confirmed { lane: *lane, next: *next, events: *events }).collect())
    }

    fn unconfirmed(&self) -> usize {
        self.queued.len() + self.taken.len()
    }
}

/// Passes cursors on after checking that none stands ahead of what the broker has.
pub(crate) struct CheckedLedger {
    pub(crate) inner: Arc<dyn Ledger>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) planned: BTreeMap<LaneId, Vec<u64>>,
    pub(crate) saved: Mutex<Vec<Cursor>>,
    /// So many cursors are saved whatever happens.
    pub(crate) grace: AtomicU64,
    /// After that the store takes nothing while this is above zero, and counts down.
    pub(crate) away: AtomicU64,
}

impl CheckedLedger {
    pub(crate) fn new(inner: Arc<dyn Ledger>, topics: &Arc<Topics>, planned: BTreeMap<LaneId, Vec<u64>>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            topics: Arc::clone(topics),
            planned,
            saved: Mutex::default(),
            grace: AtomicU64::new(0),
            away: AtomicU64::new(0),
        })
    }

    pub(crate) fn check(&self, cursor: &Cursor) {
        let arrived = self.topics.arrived();
        for (lane, planned) in &self.planned {
            let Some(at) = cursor.of(lane) else { continue };
            let before: Vec<u64> = planned.iter().copied().filter(|position| *position < at.next.get()).collect();
            let there = arrived.get(lane).cloned().unwrap_or_default();
            assert!(
                before.iter().all(|position| there.contains(position)),
                "the cursor of {lane} stands at {} ahead of the bus",
                at.next
            );
            assert_eq!(before.len() as u64, at.events, "the cursor of {lane} counts what lies before it");
        }
        let saved = self.saved.lock().unwrap();
        if let Some(last) = saved.last() {
            for (lane, at) in &last.lanes {
                assert!(cursor.lanes[lane].next >= at.next, "the cursor of {lane} moved back");
            }
        }
    }
}

#[async_trait]
impl Ledger for CheckedLedger {
    async fn save(&self, cursor: Cursor) -> Result<(), LedgerError> {
        self.check(&cursor);
        if self.grace.load(Ordering::SeqCst) > 0 {
            self.grace.fetch_sub(1, Ordering::SeqCst);
        } else if self.away.load(Ordering::SeqCst) > 0 {
            self.away.fetch_sub(1, Ordering::SeqCst);
            return Err(LedgerError::Store { job: cursor.job, source: "away".into() });
        }
        self.inner.save(cursor.clone()).await?;
        self.saved.lock().unwrap().push(cursor);
        Ok(())
    }
}

/// A ledger that takes everything.
pub(crate) struct Nowhere;

#[async_trait]
impl Ledger for Nowhere {
    async fn save(&self, _cursor: Cursor) -> Result<(), LedgerError> {
        Ok(())
    }
}
