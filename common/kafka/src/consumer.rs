//! `KafkaConsumer`: the caller's end of the poll thread and the desk.
//!
//! Promises: `next` is cancel safe; what belongs to a time before the last `resume` of its lane, or to a lane that is gone, is
//! never handed over; dropping the consumer ends its threads.
//! Never: block a task: every call into the client that may wait happens on a thread of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{Answer, BusError, Consumer, Deliveries, Incoming, Located, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::Receipt;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

use crate::config::{KafkaSettings, SettingsError, TopicSelector};
use crate::counters::KafkaCounters;
use crate::desk::{Ask, Desk, TopicsSeen};
use crate::ffi::{ReadQueue, set_last_epoch};
use crate::group::GroupContext;
use crate::lanes::{Epochs, Lanes, Ours, look_into};
use crate::poll_thread::{Alarm, Command, Parts, Passed, PollThread, ToPollThread};

/// Reads that wait to be taken over; their memory is reserved.
const READS_WAITING: usize = 16;
const COMMANDS_WAITING: usize = 64;
/// Places in the desk's tray that only the poll thread's question takes: it does not ask again before it is answered.
const NAME_QUESTIONS_WAITING: usize = 1;
/// How long `close` waits for the threads.
const CLOSE_PATIENCE: Duration = Duration::from_secs(6);

impl From<SettingsError> for BusError {
    fn from(error: SettingsError) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

struct Known {
    topic: Arc<str>,
    generation: u64,
    epochs: Epochs,
}

/// One consumer of a group.
pub struct KafkaConsumer {
    consumer: Arc<BaseConsumer<GroupContext>>,
    incoming: mpsc::Receiver<Passed>,
    poll_thread: ToPollThread,
    asks: std::sync::mpsc::SyncSender<Ask>,
    lanes: BTreeMap<LaneId, Known>,
    generations: u64,
    ours: Ours,
    pool: Arc<ColumnsPool>,
    clock: Arc<dyn Clock>,
    counters: Arc<KafkaCounters>,
    mark: String,
    /// Places for questions in the desk's tray.
    places: Arc<Semaphore>,
}

impl KafkaConsumer {
    /// Joins the group. Returns at once; a broker that is away is waited for by the client.
    pub fn start(
        settings: KafkaSettings,
        budget: &ByteBudget,
        pool: Arc<ColumnsPool>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, BusError> {
        let mut config = settings.consumer()?;
        let debug_wanted = config.get("debug").map(str::to_owned);
        let mut contexts: Vec<&str> = debug_wanted.iter().map(String::as_str).collect();
        contexts.push("metadata");
        // A line of the metadata log is the only sign of a topic made anew.
        config.set("debug", contexts.join(",")).set_log_level(rdkafka::config::RDKafkaLogLevel::Debug);
        let survey_every = interval(&config, "topic.metadata.refresh.interval.ms");
        let invalid = |error: rdkafka::error::KafkaError| {
            BusError::new(ErrorKind::Invalid, format!("the Kafka client refuses its settings: {error}"))
        };
        let consumer: BaseConsumer<GroupContext> =
            config.create_with_context(GroupContext::new(debug_wanted.is_some())).map_err(invalid)?;
        let consumer = Arc::new(consumer);
        let queue = ReadQueue::new(&consumer).ok_or_else(|| BusError::new(ErrorKind::Bug, "a client in a group has a queue"))?;
        let alarm = Arc::new(Alarm::new(queue.waker()));
        let (commands_in, commands) = sync_channel(COMMANDS_WAITING);
        let (asks_in, asks) = sync_channel(COMMANDS_WAITING);
        let (out, incoming) = mpsc::channel(READS_WAITING);
        let poll_thread = ToPollThread { commands: commands_in, alarm: Arc::clone(&alarm) };
        let counters = Arc::new(KafkaCounters::default());
        let ours = Ours::default();
        let desk = Desk {
            consumer: Arc::clone(&consumer),
            clock: Arc::clone(&clock),
            asks,
            poll_thread: poll_thread.clone(),
            ours: Arc::clone(&ours),
            survey_every,
            topics: TopicsSeen::default(),
            settings: settings.clone(),
        };
        let parts = Parts {
            consumer: Arc::clone(&consumer),
            queue,
            lanes: Lanes::new(Arc::clone(&ours)),
            commands,
            asks: asks_in.clone(),
            out,
            alarm,
            // A tiny budget (of a test) would otherwise be full before anything is read.
            _queue_share: budget.set_aside(settings.queue_bytes().min(budget.capacity() / 8)),
            budget: budget.clone(),
            pool: Arc::clone(&pool),
            clock: Arc::clone(&clock),
            counters: Arc::clone(&counters),
            replayed: settings.replayed,
            literals: literal_names(&settings.topics),
        };
        spawn("kafka-desk", || desk.run())?;
        spawn("kafka-poll", || PollThread::new(parts).run())?;
        let lanes = BTreeMap::new();
        let (mark, places) = (settings.mark, Arc::new(Semaphore::new(COMMANDS_WAITING - NAME_QUESTIONS_WAITING)));
        Ok(Self {
            consumer,
            incoming,
            poll_thread,
            asks: asks_in,
            lanes,
            generations: 0,
            ours,
            pool,
            clock,
            counters,
            mark,
            places,
        })
    }

    /// What this consumer counts about itself.
    pub fn counters(&self) -> Arc<KafkaCounters> {
        Arc::clone(&self.counters)
    }

    /// True if a lane is being read in this generation.
    fn is_current(&self, lane: &LaneId, generation: u64) -> bool {
        self.lanes.get(lane).is_some_and(|known| known.generation == generation)
    }

    /// Behind a copy of a replay that was left out nobody knows the epoch of the last event.
    fn note_epoch(&mut self, run: &Deliveries) {
        let last = run.events.positions.last().zip(run.events.leader_epochs.last());
        let last = last.filter(|(at, epoch)| **at + 1 == run.span.until().as_i64() && **epoch >= 0);
        if let (Some((_, epoch)), Some(known)) = (last, self.lanes.get_mut(&run.lane)) {
            known.epochs.note(run.span.until(), *epoch);
        }
    }

    fn take(&mut self, passed: Passed) -> Result<Option<Incoming>, BusError> {
        let incoming = match passed {
            Passed::Deliveries(runs) => {
                let mut current = Vec::with_capacity(runs.len());
                for (generation, run) in runs {
                    if self.is_current(&run.lane, generation) {
                        self.note_epoch(&run);
                        current.push(run);
                    } else {
                        self.pool.give_back(run.events);
                    }
                }
                if current.is_empty() {
                    return Ok(None);
                }
                Incoming::Deliveries(current)
            }
            Passed::Idle(lanes) => {
                let current = lanes.into_iter().filter(|(generation, lane, _)| self.is_current(lane, *generation));
                let current: Vec<_> = current.map(|(_, lane, end)| (lane, end)).collect();
                if current.is_empty() {
                    return Ok(None);
                }
                Incoming::Idle(current)
            }
            Passed::Halted((generation, lane, error)) => {
                if !self.is_current(&lane, generation) {
                    return Ok(None);
                }
                Incoming::Halted(lane, error)
            }
            Passed::Ends(mut lanes, asked) => {
                lanes.retain(|(lane, _)| self.lanes.contains_key(lane));
                Incoming::Ends(lanes, asked)
            }
            Passed::Assigned(lanes) => {
                for assigned in &lanes {
                    let known = Known { topic: Arc::clone(&assigned.topic), generation: 0, epochs: Epochs::default() };
                    self.lanes.insert(assigned.lane.clone(), known);
                }
                Incoming::Assigned(lanes)
            }
            Passed::Revoking(lanes, guard) => {
                // Nothing of them comes any more, but what was committed of them may still be acknowledged.
                for lane in &lanes {
                    self.lanes.entry(lane.clone()).and_modify(|known| known.generation = 0);
                }
                Incoming::Revoking(lanes, guard)
            }
            Passed::Lost(lanes) => {
                for lane in &lanes {
                    self.lanes.remove(lane);
                }
                Incoming::Lost(lanes)
            }
            Passed::Failed(error) => return Err(error),
        };
        Ok(Some(incoming))
    }

    fn command(&self, command: Command) -> Result<(), BusError> {
        let sent = self.poll_thread.commands.try_send(command);
        self.poll_thread.alarm.ring();
        sent.map_err(|_| BusError::new(ErrorKind::Unavailable, "the thread that polls Kafka does not answer"))
    }
}

fn literal_names(topics: &[TopicSelector]) -> BTreeSet<String> {
    let names = topics.iter().filter_map(|selector| match selector {
        TopicSelector::Name(name) => Some(name.clone()),
        TopicSelector::Pattern(_) => None,
    });
    names.collect()
}

fn interval(config: &rdkafka::ClientConfig, name: &str) -> Duration {
    let millis = config.get(name).and_then(|text| text.parse::<u64>().ok());
    Duration::from_millis(millis.unwrap_or(60_000).max(100))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), BusError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|error| BusError::new(ErrorKind::Unavailable, format!("no thread for {name}: {error}")))
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&mut self) -> Result<Incoming, BusError> {
        loop {
            let passed = self.incoming.recv().await;
            self.poll_thread.alarm.taken_over();
            let passed = passed.ok_or_else(|| BusError::new(ErrorKind::Unavailable, "the thread that polls Kafka has ended"))?;
            if let Some(incoming) = self.take(passed)? {
                return Ok(incoming);
            }
        }
    }

    fn locate(&mut self, lanes: Vec<ToLocate>) -> Answer<Vec<(LaneId, Located)>> {
        let (reply, answer) = oneshot::channel();
        let (asks, places) = (self.asks.clone(), Arc::clone(&self.places));
        Box::pin(async move {
            let ended = || BusError::new(ErrorKind::Unavailable, "the thread that asks Kafka has ended");
            // The tray has a place for each permit, so the question waits here and never there.
            let place = places.acquire_owned().await.map_err(|_| ended())?;
            asks.try_send(Ask::Locate(lanes, reply, place)).map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        })
    }

    async fn resume(&mut self, at: Vec<(LaneId, Position)>) -> Result<(), BusError> {
        let mut commands = Vec::with_capacity(at.len());
        for (lane, position) in at {
            let Some(known) = self.lanes.get_mut(&lane) else { continue };
            self.generations += 1;
            known.generation = self.generations;
            known.epochs = Epochs::default();
            commands.push((lane, position, self.generations));
        }
        self.command(Command::Resume(commands))
    }

    async fn acknowledge(&mut self, receipt: &Receipt) {
        let mut list = TopicPartitionList::new();
        let held = look_into(&self.ours).held.clone();
        let mut epochs = Vec::new();
        for (lane, span) in receipt.spans().iter().filter(|(lane, _)| held.contains(*lane)) {
            let Some(known) = self.lanes.get_mut(lane) else { continue };
            let mut element = list.add_partition(&known.topic, lane.partition);
            element.set_metadata(&self.mark);
            if let Err(error) = element.set_offset(Offset::Offset(span.until().as_i64())) {
                warn!(%lane, %error, "a position that the client does not take");
            }
            // With it whoever goes on there can tell whether the bus lost its tail meanwhile.
            if let Some(epoch) = known.epochs.before(span.until()) {
                set_last_epoch(&mut list, epoch);
                epochs.push((lane.clone(), (span.until(), epoch)));
            }
        }
        look_into(&self.ours).epochs.extend(epochs);
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            debug!(%error, "the offsets could not be sent to the broker");
        }
    }

    fn bounds(&self, lane: &LaneId) -> Option<Span> {
        look_into(&self.ours).bounds.get(lane).copied()
    }

    async fn close(self: Box<Self>) {
        let (done, closed) = oneshot::channel();
        if self.command(Command::Close(done)).is_err() {
            return;
        }
        tokio::select! {
            _ = closed => {}
            () = self.clock.sleep(CLOSE_PATIENCE) => warn!("the Kafka client does not close in time, leaving it behind"),
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        // After `close` the thread is gone or stuck, and this changes nothing.
        let (done, _) = oneshot::channel();
        drop(self.command(Command::Close(done)));
    }
}
