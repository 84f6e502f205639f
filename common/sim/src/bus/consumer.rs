//! A member of the group of a bus in memory.
//!
//! Promises: all that the doc comments of [`Consumer`] say. A run is taken and its room reserved in one step without
//! waiting, so a dropped call loses nothing. A lane that retention overtakes while it is read is revoked and assigned again:
//! what was read before is committed, and the look-up that follows finds the gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::budget::{ByteBudget, BytePermit};
use tapedeck_common::bus::{Answer, BusError, Consumer, Deliveries, Incoming, Located, ToLocate};
use tapedeck_common::clock::Clock as _;
use tapedeck_common::columns::{Columns, ColumnsPool, EventFields, ROW_OVERHEAD_BYTES};
use tapedeck_common::commit::{GapCause, Receipt};
use tapedeck_common::event::TimeKind;
use tapedeck_common::limits::{OVERSIZE_SHARE, READ_BATCH_EVENTS};
use tapedeck_common::position::{LaneId, Position, Span};

use super::group::{MemberId, Reading};
use super::partition::Partition;
use super::{MemoryBus, State};
use crate::event::BusEvent;

/// Where a lane begins that no log knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// At its first event.
    Earliest,
    /// After its last event.
    Latest,
}

/// How a member reads.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// What deliveries draw from.
    pub budget: ByteBudget,
    /// Used columns.
    pub pool: Arc<ColumnsPool>,
    /// Events in a run, at most.
    pub run_events: usize,
    /// Where unknown lanes of unknown topics begin.
    pub start: StartAt,
    /// Whether copies that a replay published are left out and counted.
    pub skip_replayed: bool,
}

impl MemberOptions {
    /// As a deployment reads by default, drawing from `budget`.
    pub fn drawing_from(budget: &ByteBudget) -> Self {
        Self {
            budget: budget.clone(),
            pool: Arc::new(ColumnsPool::new(1 << 20)),
            run_events: READ_BATCH_EVENTS,
            start: StartAt::Earliest,
            skip_replayed: true,
        }
    }
}

/// A member of the group.
#[derive(Debug)]
pub struct MemoryConsumer {
    bus: MemoryBus,
    id: MemberId,
    options: MemberOptions,
}

impl MemoryBus {
    /// A new member. It has no lanes until a test assigns some.
    pub fn join(&self, options: MemberOptions) -> MemoryConsumer {
        let id = self.change(State::add_member);
        MemoryConsumer { bus: self.clone(), id, options }
    }
}

/// How often a member is told where the bus ends.
const ENDS_EVERY: Duration = Duration::from_secs(1);

type Lanes = BTreeMap<LaneId, Reading>;

/// What a look at the bus brought.
enum Look {
    Found(Result<Incoming, BusError>),
    /// This much room is wanted first.
    NoRoom(usize),
    /// These lanes stand where the bus has nothing: it deleted its head past them, or lost its tail.
    Displaced(Vec<LaneId>),
    Nothing,
}

impl MemoryConsumer {
    /// Its name in the group.
    pub fn id(&self) -> MemberId {
        self.id
    }

    /// Takes what comes next, if there is something.
    fn look(&self) -> Look {
        let mut guard = self.bus.state();
        let state = &mut *guard;
        let Some(member) = state.group.members.get_mut(&self.id) else { return Look::Nothing };
        if let Some(news) = member.mailbox.pop_front() {
            return Look::Found(news);
        }
        if state.away {
            return Look::Nothing;
        }
        let now = self.bus.0.clock.monotonic();
        let due = *member.ends_due.get_or_insert(now + ENDS_EVERY);
        if now >= due {
            member.ends_due = Some(now + ENDS_EVERY);
            let ends = ends(state, self.id);
            if !ends.is_empty() {
                return Look::Found(Ok(Incoming::Ends(ends, self.bus.0.clock.now())));
            }
        }
        let Some(member) = state.group.members.get_mut(&self.id) else { return Look::Nothing };
        // Out of the state while its partitions are looked at.
        let mut lanes = std::mem::take(&mut member.lanes);
        let turn = member.turn;
        let (look, turn) = self.read_round(state, &mut lanes, turn);
        let member = state.group.members.get_mut(&self.id).expect("looked up above");
        (member.lanes, member.turn) = (lanes, turn);
        look
    }

    /// One run of each lane that has events, as far as there is room; else the lanes that came to their end.
    fn read_round(&self, state: &State, lanes: &mut Lanes, turn: usize) -> (Look, usize) {
        let displaced = displaced(state, lanes);
        if !displaced.is_empty() {
            return (Look::Displaced(displaced), turn);
        }
        let (mut runs, mut no_room) = (Vec::new(), None);
        let order: Vec<_> = lanes.keys().cloned().collect();
        for number in (0..order.len()).map(|step| (turn + step) % order.len()) {
            let lane = &order[number];
            let reading = lanes.get_mut(lane).expect("its own key");
            let (Some(partition), Some(next)) = (state.behind(&reading.topic, lane), reading.next) else { continue };
            match self.read_lane(lane, reading, next, partition) {
                Ok(run) => runs.extend(run),
                Err(bytes) => {
                    no_room = Some((bytes, number));
                    break;
                }
            }
        }
        // Who finds no room is first next time.
        let turn = no_room.map_or(turn + 1, |(_, number)| number);
        if !runs.is_empty() {
            return (Look::Found(Ok(Incoming::Deliveries(runs))), turn);
        }
        let idle = note_idle(state, lanes);
        if !idle.is_empty() {
            return (Look::Found(Ok(Incoming::Idle(idle))), turn);
        }
        (no_room.map_or(Look::Nothing, |(bytes, _)| Look::NoRoom(bytes)), turn)
    }

    /// A run is small beside the budget, whatever its events weigh; one event alone may be as large as it is.
    fn cut_run<'a>(&self, events: impl Iterator<Item = (u64, &'a BusEvent)>) -> Vec<(u64, &'a BusEvent)> {
        let bytes_max = self.options.budget.capacity() / OVERSIZE_SHARE;
        let mut bytes = 0;
        let fits = |(_, event): &(u64, &BusEvent)| {
            let first = bytes == 0;
            bytes += memory_of(event);
            first || bytes <= bytes_max
        };
        events.take_while(fits).collect()
    }

    /// Reads a run and moves the lane on. `Err` is the room that it would need.
    fn read_lane(
        &self,
        lane: &LaneId,
        reading: &mut Reading,
        next: Position,
        partition: &Partition,
    ) -> Result<Option<Deliveries>, usize> {
        let events = self.cut_run(partition.read(next.get(), self.options.run_events));
        let Some((last, _)) = events.last() else { return Ok(None) };
        let until = Position::new(*last).next();
        let skips = |event: &BusEvent| self.options.skip_replayed && event.is_replayed();
        let kept = || events.iter().filter(|(_, event)| !skips(event));
        let bytes: usize = kept().map(|(_, event)| memory_of(event)).sum();
        // An over-size event gets in beside what is held, as it does from a real bus.
        let reserved = bytes.min(self.options.budget.capacity() / OVERSIZE_SHARE);
        let mut permit = self.options.budget.try_reserve(reserved).ok_or(reserved)?;
        let mut columns = self.options.pool.take();
        kept().for_each(|(position, event)| push(&mut columns, *position, event));
        permit.resize(columns.room_bytes(self.options.budget.capacity()));
        let skipped = (events.len() - columns.len()) as u64;
        reading.next = Some(until);
        Ok(Some(run_of(lane, reading, Span::new(next, until).expect("events lie ahead"), columns, skipped, permit)))
    }
}

/// Refreshes what is known of the bus's bounds; answers the lanes that stand outside of them.
fn displaced(state: &State, lanes: &mut Lanes) -> Vec<LaneId> {
    let mut displaced = Vec::new();
    for (lane, reading) in lanes {
        let Some(partition) = state.behind(&reading.topic, lane) else { continue };
        reading.bounds = Span::new(Position::new(partition.begin()), Position::new(partition.end())).ok();
        let stands = |next: Position| (partition.begin()..=partition.end()).contains(&next.get());
        if reading.next.is_some_and(|next| !stands(next)) {
            displaced.push(lane.clone());
        }
    }
    displaced
}

/// Where the bus ends for the lanes that the member reads.
fn ends(state: &State, id: MemberId) -> Vec<(LaneId, Position)> {
    let lanes = state.group.members.get(&id).into_iter().flat_map(|member| &member.lanes);
    let end = |(lane, reading): (&LaneId, &Reading)| {
        Some((lane.clone(), Position::new(state.behind(&reading.topic, lane)?.end()))).filter(|_| reading.next.is_some())
    };
    lanes.filter_map(end).collect()
}

fn run_of(lane: &LaneId, reading: &Reading, span: Span, events: Columns, skipped: u64, permit: BytePermit) -> Deliveries {
    Deliveries { lane: lane.clone(), topic: Arc::clone(&reading.topic), span, events, skipped, permit, window: None }
}

/// The lanes that came to an end of which the member has not been told, and that end; their next runs begin there.
fn note_idle(state: &State, lanes: &mut Lanes) -> Vec<(LaneId, Position)> {
    let mut idle = Vec::new();
    for (lane, reading) in lanes {
        let (Some(partition), Some(next)) = (state.behind(&reading.topic, lane), reading.next) else { continue };
        let end = Position::new(partition.end());
        if partition.read(next.get(), 1).next().is_none() && reading.idle != Some(end) {
            (reading.idle, reading.next) = (Some(end), Some(end));
            idle.push((lane.clone(), end));
        }
    }
    idle
}

fn memory_of(event: &BusEvent) -> usize {
    let headers = event.header_slices().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
    let payload = event.key.as_ref().map_or(0, Vec::len) + event.value.as_ref().map_or(0, Vec::len) + headers.sum::<usize>();
    payload + ROW_OVERHEAD_BYTES
}

fn push(columns: &mut Columns, position: u64, event: &BusEvent) {
    let fields = EventFields {
        position: Position::new(position),
        time: event.time.expect("the bus sets one"),
        time_kind: TimeKind::Create,
        leader_epoch: Some(0),
        key: event.key.as_deref(),
        value: event.value.as_deref(),
    };
    columns.push(fields, event.header_slices(), []);
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Incoming, BusError> {
        loop {
            let mut changed = std::pin::pin!(self.bus.0.changed.notified());
            changed.as_mut().enable();
            match self.look() {
                Look::Found(news) => return news,
                Look::Displaced(lanes) => {
                    let (id, again) = (self.id, lanes.clone());
                    let bus = self.bus.clone();
                    drop(bus.revoke_then(id, &lanes, move |state| state.assign(id, &again)));
                }
                Look::Nothing => tokio::select! {
                    () = changed => {}
                    () = self.bus.0.clock.sleep(ENDS_EVERY) => {}
                },
                Look::NoRoom(bytes) => tokio::select! {
                    () = changed => {}
                    // Let go at once: the next look takes what it really needs.
                    permit = self.options.budget.reserve(bytes) => drop(permit),
                },
            }
        }
    }

    fn locate(&mut self, lanes: Vec<ToLocate>) -> Answer<Vec<(LaneId, Located)>> {
        let (bus, id, start) = (self.bus.clone(), self.id, self.options.start);
        Box::pin(async move {
            loop {
                let mut changed = std::pin::pin!(bus.0.changed.notified());
                changed.as_mut().enable();
                if let Some(located) = locate(&bus.state(), id, start, &lanes) {
                    return Ok(located);
                }
                changed.await;
            }
        })
    }

    async fn resume(&mut self, at: Vec<(LaneId, Position)>) -> Result<(), BusError> {
        let id = self.id;
        self.bus.change(|state| {
            let Some(member) = state.group.members.get_mut(&id) else { return };
            for (lane, position) in at {
                if let Some(reading) = member.lanes.get_mut(&lane) {
                    (reading.next, reading.idle) = (Some(position), None);
                }
            }
        });
        Ok(())
    }

    async fn acknowledge(&mut self, receipt: &Receipt) {
        let id = self.id;
        self.bus.change(|state| state.acknowledge(id, receipt));
    }

    fn bounds(&self, lane: &LaneId) -> Option<Span> {
        self.bus.state().group.members.get(&self.id)?.lanes.get(lane)?.bounds
    }

    async fn close(self: Box<Self>) {}
}

/// Where lanes can go on that are still the member's; `None` while the bus is away.
fn locate(state: &State, id: MemberId, start: StartAt, lanes: &[ToLocate]) -> Option<Vec<(LaneId, Located)>> {
    let ours = state.group.members.get(&id).filter(|_| !state.away)?;
    let asked = lanes.iter().filter(|lane| ours.lanes.contains_key(&lane.lane));
    let answer = |lane: &ToLocate| Some((lane.lane.clone(), locate_one(state.behind(&lane.topic, &lane.lane)?, start, lane)));
    let mut answers: BTreeMap<LaneId, Located> = asked.clone().filter_map(answer).collect();
    for lane in asked.filter(|lane| lane.log.is_none() && !lane.topic_known && start != StartAt::Earliest) {
        for partition in 0.. {
            let other = ToLocate { lane: LaneId::new(Arc::clone(&lane.lane.source), partition), ..lane.clone() };
            let Some((other, located)) = answer(&other) else { break };
            answers.entry(other).or_insert(located);
        }
    }
    Some(answers.into_iter().collect())
}

fn locate_one(partition: &Partition, start: StartAt, lane: &ToLocate) -> Located {
    let (begin, end) = (Position::new(partition.begin()), Position::new(partition.end()));
    match lane.log {
        None if lane.topic_known || start == StartAt::Earliest => Located::Start(begin),
        None => Located::Start(end),
        Some(log) if log > end => Located::Beyond { log, bus_end: end },
        Some(log) => match Span::new(log, begin) {
            Ok(gap) if !gap.is_empty() => Located::Gap(gap, GapCause::Retention),
            _ => Located::Continue(log),
        },
    }
}

/// Leaving and crashing look alike to the bus: the lanes are nobody's, and a test says who gets them.
impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let id = self.id;
        self.bus.change(|state| state.remove_member(id));
    }
}
