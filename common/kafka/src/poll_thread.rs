//! The thread that owns the client: serves the group, reads, and hands over. It alone changes the assignment.
//!
//! Promises: the group is served at least every 50 ms whatever happens to the reader, so membership survives any back-pressure;
//! room is reserved before a read; partitions are assigned once, with explicit positions, outside the client's callbacks; a
//! revoked lane stays ours until its guards are gone or the grace is over; nothing is read for a lane before its position is named.
//! Never: network calls that wait, an unbounded queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use tapedeck_common::budget::{Aside, ByteBudget, BytePermit};
use tapedeck_common::bus::{AssignedLane, BusError, Deliveries, RevokeGuard};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{FETCH_QUEUE_KIB, OVERSIZE_SHARE};
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::config::Replayed;
use crate::counters::KafkaCounters;
use crate::desk::Ask;
use crate::ffi::{ReadQueue, Waker};
use crate::group::GroupContext;
use crate::lanes::{Lanes, Phase};
use crate::park::wait_once;
use crate::reading::{Limits, READ_BYTES, Reading, Run, Trouble};
use crate::rebalance::{Displacement, Revocation};

/// The longest that the group waits to be served.
const SERVE_EVERY: Duration = Duration::from_millis(50);
/// With more than this in the client's queue it is read message by message until there is less: three times what it is set to hold.
const QUEUE_BYTES_MAX: usize = 3 * FETCH_QUEUE_KIB * 1024;
/// What an event is taken for before one was seen.
const USUAL_BYTES_FIRST: usize = 1 << 10;
/// A lane whose next event could not be read is left alone for so long: a broker may be mended, a right be granted meanwhile.
const HALTED_FOR: Duration = Duration::from_secs(300);
/// Leaving the group may take this long; then it is left to time out.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Something the poll thread is to do.
pub(crate) enum Command {
    /// Read these lanes from here on, in this generation.
    Resume(Vec<(LaneId, Position, u64)>),
    /// The names that the desk found; topics that are missing must be asked for again.
    Named(BTreeMap<String, Result<Arc<str>, RDKafkaErrorCode>>),
    /// The topics that the settings select now.
    Subscribe(BTreeSet<String>),
    /// Asked at this moment, the bus ended here.
    Ends(Vec<(LaneId, Position)>, Timestamp),
    /// These lanes can't be located: the topic is gone or another one.
    Vanished(Vec<LaneId>),
    /// Leave the group, then say so.
    Close(oneshot::Sender<()>),
}

/// Something the poll thread hands over. Lanes carry their generation.
#[derive(Debug)]
pub(crate) enum Passed {
    Deliveries(Vec<(u64, Deliveries)>),
    Idle(Vec<(u64, LaneId, Position)>),
    Halted((u64, LaneId, BusError)),
    Ends(Vec<(LaneId, Position)>, Timestamp),
    Assigned(Vec<AssignedLane>),
    Revoking(Vec<LaneId>, RevokeGuard),
    Lost(Vec<LaneId>),
    Failed(BusError),
}

/// Wakes the poll thread, whatever it waits for.
pub(crate) struct Alarm {
    queue: Waker<GroupContext>,
    thread: OnceLock<Thread>,
    blocked: AtomicBool,
}

impl Alarm {
    pub(crate) fn new(queue: Waker<GroupContext>) -> Self {
        Self { queue, thread: OnceLock::new(), blocked: AtomicBool::new(false) }
    }

    /// Something is to be done.
    pub(crate) fn ring(&self) {
        self.queue.wake();
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The reader has taken something over.
    pub(crate) fn taken_over(&self) {
        if self.blocked.swap(false, Ordering::AcqRel) {
            self.ring();
        }
    }
}

/// The way to the poll thread.
#[derive(Clone)]
pub(crate) struct ToPollThread {
    pub(crate) commands: SyncSender<Command>,
    pub(crate) alarm: Arc<Alarm>,
}

impl ToPollThread {
    /// Waits for room in the mailbox; a thread that has ended needs no more commands.
    pub(crate) fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.alarm.ring();
        }
    }
}

/// What the poll thread is made of.
pub(crate) struct Parts {
    pub(crate) consumer: Arc<BaseConsumer<GroupContext>>,
    pub(crate) queue: ReadQueue<GroupContext>,
    pub(crate) lanes: Lanes,
    pub(crate) commands: Receiver<Command>,
    pub(crate) asks: SyncSender<Ask>,
    pub(crate) out: mpsc::Sender<Passed>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) budget: ByteBudget,
    /// The room that the client's own queue takes, for as long as the thread lives.
    pub(crate) _queue_share: Aside,
    pub(crate) pool: Arc<ColumnsPool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<KafkaCounters>,
    pub(crate) replayed: Replayed,
    /// Topics that are named, not matched: they stay subscribed even while they do not exist.
    pub(crate) literals: BTreeSet<String>,
}

/// See the head of this file.
pub(crate) struct PollThread {
    pub(crate) parts: Parts,
    pub(crate) outbox: VecDeque<Passed>,
    pub(crate) revocations: Vec<Revocation>,
    pub(crate) displacements: Vec<Displacement>,
    pub(crate) subscription: BTreeSet<String>,
    pub(crate) names_due: Duration,
    /// The desk has been asked and has not answered yet: its tray keeps one place for this question.
    pub(crate) names_asked: bool,
    /// What was logged a short while ago.
    pub(crate) said: BTreeMap<String, Duration>,
    /// The memory that the largest of the latest events took.
    largest: usize,
    /// The memory that an event of late took, on average.
    usual: usize,
    finished: bool,
    /// Who waits for the end.
    closing: Option<oneshot::Sender<()>>,
}

impl PollThread {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            outbox: VecDeque::new(),
            revocations: Vec::new(),
            displacements: Vec::new(),
            subscription: BTreeSet::new(),
            names_due: Duration::ZERO,
            names_asked: false,
            said: BTreeMap::new(),
            largest: 0,
            usual: USUAL_BYTES_FIRST,
            finished: false,
            closing: None,
        }
    }

    /// Runs until told to close, or until nobody listens any more.
    pub(crate) fn run(mut self) {
        // Set before anything can ring: commands that came earlier are looked at in the first round.
        drop(self.parts.alarm.thread.set(thread::current()));
        self.subscribe(self.parts.literals.clone());
        while !self.finished {
            self.serve_group();
            self.serve_commands();
            self.serve_revocations();
            self.serve_displacements();
            self.start_lanes();
            self.ask_for_names();
            if self.finished {
                break;
            }
            if !self.hand_over() {
                self.wait_for_the_reader();
            } else if let Some(room) = self.room() {
                self.read(room);
            }
        }
        self.bury();
    }

    /// Destroying the client may block or even hang, so it happens here and nowhere else: everybody else's hold on it ends first.
    fn bury(mut self) {
        let closing = self.closing.take();
        let consumer = Arc::clone(&self.parts.consumer);
        consumer.context().begin_closing();
        // All room is given back before anybody learns of the end.
        drop(self);
        if let Some(closing) = closing {
            // Whoever closes may have stopped waiting.
            let _ = closing.send(());
        }
        while Arc::strong_count(&consumer) > 1 {
            thread::park_timeout(SERVE_EVERY);
        }
    }

    pub(crate) fn end(&mut self, kind: ErrorKind, what: String) {
        self.outbox.push_back(Passed::Failed(BusError::new(kind, what)));
        self.finished = true;
        // Nobody may be left to take it: the end of the channel then says the same.
        self.hand_over();
    }

    fn serve_commands(&mut self) {
        loop {
            match self.parts.commands.try_recv() {
                Ok(Command::Resume(at)) => self.resume(at),
                Ok(Command::Named(names)) => {
                    self.names_asked = false;
                    self.named(&names);
                }
                Ok(Command::Subscribe(topics)) => {
                    let wanted: BTreeSet<String> = topics.union(&self.parts.literals).cloned().collect();
                    if wanted.is_empty() {
                        // Nothing matches, and the group is not joined for nothing.
                        self.outbox.push_back(Passed::Assigned(Vec::new()));
                    }
                    if wanted != self.subscription {
                        self.subscribe(wanted);
                    }
                }
                Ok(Command::Ends(ends, asked)) => {
                    // Behind a slow reader only the last answer counts.
                    self.outbox.retain(|passed| !matches!(passed, Passed::Ends(..)));
                    self.outbox.push_back(Passed::Ends(ends, asked));
                }
                Ok(Command::Vanished(lanes)) => self.vanished(&lanes),
                Ok(Command::Close(done)) => {
                    self.close();
                    self.finished = true;
                    self.closing = Some(done);
                    return;
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.close();
                    self.finished = true;
                    return;
                }
            }
        }
    }

    // ---- reading ----

    /// Room for the worst read: a read ends before an event as large as the largest of late could exceed it. Over-size ones are
    /// not waited for, since memory that waits for more events may never leave so much room: one at a time gets in beside it.
    /// `None` after a wait in vain, so that the group is served meanwhile.
    fn room(&mut self) -> Option<BytePermit> {
        let bytes = READ_BYTES.min(self.parts.budget.capacity() / 16) + self.largest;
        if let Some(room) = self.parts.budget.try_reserve(bytes) {
            return Some(room);
        }
        let began = self.parts.clock.monotonic();
        let room = wait_once(self.parts.budget.reserve(bytes), SERVE_EVERY);
        self.parts.counters.add_backpressure(self.parts.clock.monotonic().saturating_sub(began));
        room
    }

    fn wait_for_the_reader(&mut self) {
        let began = self.parts.clock.monotonic();
        self.parts.alarm.blocked.store(true, Ordering::Release);
        // Looked at again after the flag is up, so that what was taken over in between is not missed.
        if !self.hand_over() {
            thread::park_timeout(SERVE_EVERY);
        }
        self.parts.counters.add_backpressure(self.parts.clock.monotonic().saturating_sub(began));
    }

    fn read(&mut self, room: BytePermit) {
        let arrival = self.parts.clock.now();
        let limits = Limits { bytes: room.bytes(), largest: self.largest };
        let mut reading = Reading::new(&self.parts.lanes, &self.parts.pool, self.parts.replayed, arrival, limits);
        // The client takes its whole queue out for a read in bulk, finds it empty meanwhile, and fetches more: a reader that is
        // slower than the broker would make it grow with each read.
        if self.parts.queue.waiting() * self.usual < QUEUE_BYTES_MAX {
            self.parts.queue.read(SERVE_EVERY, &mut |message| reading.visit(message));
        } else {
            self.parts.queue.read_singly(SERVE_EVERY, &mut |message| reading.visit(message));
        }
        let (runs, largest) = reading.finish();
        self.note_usual(&runs);
        // Forgotten bit by bit, so that one giant does not hold room for ever.
        let oversize = self.parts.budget.capacity() / OVERSIZE_SHARE;
        self.largest = largest.min(oversize).max(self.largest - self.largest / 16);
        if runs.is_empty() {
            return;
        }
        // What the client noticed before it fetched these messages may speak against them: a topic made anew, a revocation.
        self.serve_group();
        self.pass_runs(runs, room);
        self.hand_over();
    }

    /// Remembers how large events are of late.
    fn note_usual(&mut self, runs: &[Run]) {
        let (events, bytes) =
            runs.iter().fold((0, 0), |(events, bytes), run| (events + run.events.len(), bytes + run.events.memory_bytes()));
        if let Some(mean) = bytes.checked_div(events) {
            self.usual = (self.usual * 7 + mean) / 8;
        }
    }

    fn pass_runs(&mut self, runs: Vec<Run>, mut room: BytePermit) {
        let (mut deliveries, mut idle, mut out_of_range, mut halted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for run in runs {
            self.parts.counters.add_stale(run.stale);
            let lane = self.parts.lanes.get_mut(&run.topic, run.partition);
            let lane = lane.filter(|lane| lane.phase == Phase::Active && Some(lane.generation) == run.generation);
            let Some((lane, id)) = lane.and_then(|lane| lane.id.clone().map(|id| (lane, id))) else {
                self.parts.pool.give_back(run.events);
                continue;
            };
            let generation = lane.generation;
            (lane.next, lane.proof) = (run.next, run.proof);
            if let Some(end) = run.end {
                lane.next = end;
                idle.push((generation, id.clone(), end));
            }
            match run.trouble {
                None => {}
                Some(Trouble::OutOfRange) => out_of_range.extend(lane.displace()),
                Some(Trouble::Truncated(text)) => {
                    // What lies behind is another history. Looking again would change nothing.
                    lane.phase = Phase::Halted(Duration::MAX);
                    let what = format!("topic {} partition {}: the bus lost its tail: {text}", run.topic, run.partition);
                    halted.push((generation, id.clone(), BusError::new(ErrorKind::Corrupt, what)));
                }
                Some(Trouble::Damaged(kind, text)) => {
                    // The client would go on behind it.
                    lane.phase = Phase::Halted(self.parts.clock.monotonic() + HALTED_FOR);
                    let what = format!("topic {} partition {}: {text}", run.topic, run.partition);
                    halted.push((generation, id.clone(), BusError::new(kind, what)));
                }
            }
            let Ok(span) = Span::new(run.from, run.next) else { unreachable!("offsets only grow within a run") };
            if span.is_empty() {
                self.parts.pool.give_back(run.events);
                continue;
            }
            let bytes = run.events.room_bytes(self.parts.budget.capacity());
            let mut permit = room.split(bytes);
            permit.resize(bytes);
            self.parts.counters.add_events(run.events.len() as u64);
            self.parts.counters.add_bytes(run.events.payload_bytes() as u64);
            self.parts.counters.add_skipped(run.skipped);
            let run =
                Deliveries { lane: id, topic: run.topic, span, events: run.events, skipped: run.skipped, permit, window: None };
            deliveries.push((generation, run));
        }
        if !deliveries.is_empty() {
            self.outbox.push_back(Passed::Deliveries(deliveries));
        }
        if !idle.is_empty() {
            self.outbox.push_back(Passed::Idle(idle));
        }
        if !halted.is_empty() {
            self.outbox.extend(halted.into_iter().map(Passed::Halted));
            self.displaced(Vec::new());
        }
        if !out_of_range.is_empty() {
            warn!(lanes = out_of_range.len(), "positions are not on the bus any more, locating the lanes again");
            self.displaced(out_of_range);
        }
    }

    /// Passes on what waits; false if the reader has no room for all of it.
    fn hand_over(&mut self) -> bool {
        while let Some(passed) = self.outbox.pop_front() {
            match self.parts.out.try_send(passed) {
                Ok(()) => {}
                Err(TrySendError::Full(passed)) => {
                    self.outbox.push_front(passed);
                    return false;
                }
                Err(TrySendError::Closed(_)) => {
                    self.outbox.clear();
                    return true;
                }
            }
        }
        true
    }

    /// Leaves the group, within bounds: closing the client may hang when brokers are away.
    fn close(&mut self) {
        self.parts.consumer.context().begin_closing();
        self.outbox.clear();
        let began = self.parts.clock.monotonic();
        if let Err(error) = self.parts.consumer.close_queue() {
            warn!(%error, "closing the client failed");
            return;
        }
        // A revocation that is open was called back before; closing goes on only once it is answered.
        let all = self.parts.consumer.assignment().unwrap_or_default();
        if !self.revocations.is_empty()
            && let Err(error) = self.parts.consumer.incremental_unassign(&all)
        {
            debug!(%error, "giving up partitions while closing failed");
        }
        while !self.parts.consumer.closed() {
            drop(self.parts.consumer.poll(SERVE_EVERY));
            if self.parts.clock.monotonic() > began + CLOSE_PATIENCE {
                warn!("leaving the consumer group takes too long, the group will notice by itself");
                break;
            }
        }
    }
}
