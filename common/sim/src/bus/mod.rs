//! A bus in memory: topics with partitions, a group of members, and a test's hand on everything that happens to them.
//!
//! Promises: histories with holes, retention, truncation and topics made again; lanes that move between members as a
//! coordinator moves them, zombies included. Nothing moves by itself except what the test's clock sets off.
//! Never: hand a lane to somebody, or take one, that no test asked for.

mod consumer;
mod group;
mod partition;
pub mod producer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tapedeck_common::clock::Clock;
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::Notify;

pub use consumer::{MemberOptions, MemoryConsumer, StartAt};
pub use group::{MemberId, Revocation};

use crate::clock::ManualClock;
use crate::event::BusEvent;
use group::Group;
use partition::Partition;

/// A bus in memory. Clones are the same bus.
#[derive(Debug, Clone)]
pub struct MemoryBus(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: ManualClock,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<Arc<str>, Topic>,
    group: Group,
    /// Everything that a reader could ever see, deleted or not.
    published: BTreeMap<(LaneId, Position), BusEvent>,
    away: bool,
    topics_made: u32,
}

#[derive(Debug)]
struct Topic {
    source: Arc<str>,
    partitions: Vec<Partition>,
}

impl Topic {
    fn lane(&self, partition: i32) -> LaneId {
        LaneId::new(Arc::clone(&self.source), partition)
    }
}

impl State {
    fn topic(&mut self, name: &str) -> &mut Topic {
        self.topics.get_mut(name).unwrap_or_else(|| panic!("no topic {name} on this bus"))
    }

    fn partition(&mut self, topic: &str, partition: i32) -> &mut Partition {
        let found = self.topic(topic).partitions.get_mut(partition as usize);
        found.unwrap_or_else(|| panic!("no partition {partition} in {topic}"))
    }

    /// The partition behind a lane; `None` once its topic was made again.
    fn behind(&self, topic: &str, lane: &LaneId) -> Option<&Partition> {
        let topic = self.topics.get(topic).filter(|topic| topic.source == lane.source)?;
        topic.partitions.get(lane.partition as usize)
    }
}

impl MemoryBus {
    /// An empty bus on whose clock rebalances run out of time.
    pub fn new(clock: ManualClock) -> Self {
        Self(Arc::new(Inner { clock, state: Mutex::default(), changed: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then wakes everybody who waits for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = change(&mut self.state());
        self.0.changed.notify_waiters();
        answer
    }

    /// Makes a topic, also anew under an old name: then it is another source, and the lanes of the old one are gone.
    /// Answers its lanes.
    pub fn make_topic(&self, name: &str, partitions: i32) -> Vec<LaneId> {
        self.change(|state| {
            state.topics_made += 1;
            let source = format!("memory/sim/{name}-{}/0", state.topics_made).into();
            let topic = Topic { source, partitions: (0..partitions).map(|_| Partition::default()).collect() };
            let lanes = (0..partitions).map(|partition| topic.lane(partition)).collect();
            state.topics.insert(name.into(), topic);
            lanes
        })
    }

    /// Adds partitions to a topic; answers their lanes.
    pub fn add_partitions(&self, name: &str, count: i32) -> Vec<LaneId> {
        self.change(|state| {
            let topic = state.topic(name);
            let first = topic.partitions.len() as i32;
            topic.partitions.extend((0..count).map(|_| Partition::default()));
            (first..first + count).map(|partition| topic.lane(partition)).collect()
        })
    }

    /// All lanes of a topic.
    pub fn lanes(&self, name: &str) -> Vec<LaneId> {
        let mut state = self.state();
        let topic = state.topic(name);
        (0..topic.partitions.len() as i32).map(|partition| topic.lane(partition)).collect()
    }

    /// Appends an event; one without a time gets the bus's. Answers its position.
    pub fn publish(&self, topic: &str, partition: i32, event: BusEvent) -> Position {
        let time = event.time.unwrap_or_else(|| self.0.clock.now());
        let event = BusEvent { time: Some(time), ..event };
        self.change(|state| {
            let position = Position::new(state.partition(topic, partition).append(event.clone()));
            let lane = state.topic(topic).lane(partition);
            state.published.insert((lane, position), event);
            position
        })
    }

    /// Appends several events.
    pub fn publish_all(&self, topic: &str, partition: i32, events: impl IntoIterator<Item = BusEvent>) {
        for event in events {
            self.publish(topic, partition, event);
        }
    }

    /// Appends positions that no reader ever sees: control records, aborted events.
    pub fn publish_holes(&self, topic: &str, partition: i32, count: u64) {
        self.change(|state| state.partition(topic, partition).append_holes(count));
    }

    /// Compaction removes one event. Who has not read it never will, and nothing is lost by that.
    pub fn compact(&self, topic: &str, partition: i32, position: Position) {
        self.change(|state| {
            let lane = state.topic(topic).lane(partition);
            state.partition(topic, partition).compact(position.get());
            state.published.remove(&(lane, position));
        });
    }

    /// Retention removes everything before `begin`.
    pub fn expire(&self, topic: &str, partition: i32, begin: Position) {
        self.change(|state| state.partition(topic, partition).expire(begin.get()));
    }

    /// The bus loses its tail from `end` on.
    pub fn truncate(&self, topic: &str, partition: i32, end: Position) {
        self.change(|state| state.partition(topic, partition).truncate(end.get()));
    }

    /// While it is away nothing is read or located, and memberships stay as they are.
    pub fn set_away(&self, away: bool) {
        self.change(|state| state.away = away);
    }

    /// Where a lane begins and ends now; `None` for a lane of a topic that was made again.
    pub fn bounds(&self, topic: &str, lane: &LaneId) -> Option<Span> {
        let state = self.state();
        let partition = state.behind(topic, lane)?;
        Span::new(Position::new(partition.begin()), Position::new(partition.end())).ok()
    }

    /// Everything that a reader could ever see, deleted by retention or not: what an archive is compared with.
    pub fn published(&self) -> BTreeMap<(LaneId, Position), BusEvent> {
        self.state().published.clone()
    }
}

#[cfg(test)]
mod tests;
