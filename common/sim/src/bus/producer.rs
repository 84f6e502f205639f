//! An outflow to a bus in memory, with a test's hand on what the broker takes and on what it confirms.
//!
//! Promises: all that the doc comments of [`Producer`] say. Taking and confirming are two steps, so a test can crash
//! between them; a refusal is final. Never: confirm what the bus does not hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tapedeck_common::bus::{BusError, Confirmed, Outgoing, Producer};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;

use super::MemoryBus;
use crate::event::BusEvent;

/// Who decides what happens to published events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// Takes and confirms everything at once.
    Willing,
    /// Does nothing until the test says so.
    ByHand,
}

/// How a producer is set up.
#[derive(Debug, Clone, Copy)]
pub struct ProducerOptions {
    /// Who decides.
    pub broker: Broker,
    /// Events that may be unconfirmed before the queue is full.
    pub queue_events_max: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self { broker: Broker::Willing, queue_events_max: 100_000 }
    }
}

/// An outflow.
#[derive(Debug)]
pub struct MemoryProducer(Arc<Line>);

/// The test's hand on an outflow.
#[derive(Debug, Clone)]
pub struct ProducerHand(Arc<Line>);

#[derive(Debug)]
struct Line {
    bus: MemoryBus,
    options: ProducerOptions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_hand: bool,
    queued: VecDeque<Sent>,
    /// On the bus, and the producer does not know it.
    taken: VecDeque<Sent>,
    lanes: BTreeMap<u32, LaneState>,
    refused: Option<String>,
}

/// One event on its way.
#[derive(Debug, Clone)]
struct Sent {
    topic: Arc<str>,
    partition: i32,
    event: BusEvent,
    lane: u32,
    position: Position,
}

#[derive(Debug, Default)]
struct LaneState {
    /// In the order of the calls; true once confirmed.
    unsettled: VecDeque<(Position, bool)>,
    confirmed: Option<(Position, u64)>,
}

impl LaneState {
    fn confirm(&mut self, position: Position) {
        if let Some(entry) = self.unsettled.iter_mut().find(|(of, done)| *of == position && !done) {
            entry.1 = true;
        }
        while let Some((position, true)) = self.unsettled.front().copied() {
            self.unsettled.pop_front();
            let events = self.confirmed.map_or(0, |(_, events)| events);
            self.confirmed = Some((position.next(), events + 1));
        }
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, count: usize) -> usize {
        let mut state = self.state();
        let count = count.min(if state.refused.is_some() { 0 } else { state.queued.len() });
        let taken: Vec<_> = state.queued.drain(..count).collect();
        for sent in &taken {
            self.bus.publish(&sent.topic, sent.partition, sent.event.clone());
        }
        state.taken.extend(taken);
        count
    }

    fn confirm(&self, count: usize, partition: Option<(&str, i32)>) -> usize {
        let mut state = self.state();
        let mut left = VecDeque::new();
        let mut confirmed = 0;
        for sent in std::mem::take(&mut state.taken) {
            let chosen = partition.is_none_or(|chosen| chosen == (&*sent.topic, sent.partition));
            if confirmed < count && chosen {
                state.lanes.entry(sent.lane).or_default().confirm(sent.position);
                confirmed += 1;
            } else {
                left.push_back(sent);
            }
        }
        state.taken = left;
        confirmed
    }

    fn refusal(state: &State) -> Result<(), BusError> {
        state.refused.as_ref().map_or(Ok(()), |what| Err(BusError::new(ErrorKind::Invalid, what.clone())))
    }
}

impl MemoryBus {
    /// An outflow to this bus, and the hand on it.
    pub fn producer(&self, options: ProducerOptions) -> (MemoryProducer, ProducerHand) {
        let state = State { by_hand: options.broker == Broker::ByHand, ..State::default() };
        let line = Arc::new(Line { bus: self.clone(), options, state: Mutex::new(state) });
        (MemoryProducer(Arc::clone(&line)), ProducerHand(line))
    }
}

impl ProducerHand {
    /// The broker takes the oldest events of the queue: they are on the bus. Answers how many it took.
    pub fn take(&self, count: usize) -> usize {
        self.0.take(count)
    }

    /// The producer hears of the oldest taken events. Answers how many.
    pub fn confirm(&self, count: usize) -> usize {
        self.0.confirm(count, None)
    }

    /// The producer hears of the oldest taken events of one partition, past those of others.
    pub fn confirm_in(&self, topic: &str, partition: i32, count: usize) -> usize {
        self.0.confirm(count, Some((topic, partition)))
    }

    /// The oldest queued event is refused for good, and with it all that come after.
    pub fn refuse(&self, what: &str) {
        self.0.state().refused = Some(what.to_owned());
    }

    /// From now on everything is taken and confirmed at once, what waits included.
    pub fn let_go(&self) {
        self.0.state().by_hand = false;
        self.0.take(usize::MAX);
        self.0.confirm(usize::MAX, None);
    }

    /// Events that the broker has not taken.
    pub fn queued(&self) -> usize {
        self.0.state().queued.len()
    }
}

impl Producer for MemoryProducer {
    fn publish(&mut self, event: &Outgoing<'_>) -> Result<bool, BusError> {
        let willing = {
            let mut state = self.0.state();
            Line::refusal(&state)?;
            if state.queued.len() + state.taken.len() >= self.0.options.queue_events_max {
                return Ok(false);
            }
            state.lanes.entry(event.lane).or_default().unsettled.push_back((event.position, false));
            state.queued.push_back(Sent {
                topic: event.topic.into(),
                partition: event.partition,
                event: event_of(event),
                lane: event.lane,
                position: event.position,
            });
            !state.by_hand
        };
        if willing {
            self.0.take(usize::MAX);
            self.0.confirm(usize::MAX, None);
        }
        Ok(true)
    }

    fn confirmed(&mut self) -> Result<Vec<Confirmed>, BusError> {
        let state = self.0.state();
        Line::refusal(&state)?;
        let confirmed = state.lanes.iter().filter_map(|(lane, of)| {
            let (next, events) = of.confirmed?;
            Some(Confirmed { lane: *lane, next, events })
        });
        Ok(confirmed.collect())
    }

    fn unconfirmed(&self) -> usize {
        let state = self.0.state();
        state.queued.len() + state.taken.len()
    }
}

fn event_of(event: &Outgoing<'_>) -> BusEvent {
    BusEvent {
        time: event.time,
        key: event.key.map(<[u8]>::to_vec),
        value: event.value.map(|value| value.to_vec()),
        headers: event.headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::ManualClock;

    fn outgoing(lane: u32, position: u64) -> Outgoing<'static> {
        static VALUE: Bytes = Bytes::from_static(b"v");
        let (position, key, value) = (Position::new(position), None, Some(&VALUE));
        Outgoing { topic: "t", partition: lane as i32, time: None, key, value, headers: &[], lane, position }
    }

    fn bench(options: ProducerOptions) -> (MemoryBus, MemoryProducer, ProducerHand) {
        let bus = MemoryBus::new(ManualClock::default());
        bus.make_topic("t", 2);
        let (producer, hand) = bus.producer(options);
        (bus, producer, hand)
    }

    const BY_HAND: ProducerOptions = ProducerOptions { broker: Broker::ByHand, queue_events_max: 3 };

    #[test]
    fn a_lane_is_confirmed_as_far_as_nothing_before_it_is_missing() {
        let (bus, mut producer, hand) = bench(BY_HAND);
        for (lane, position) in [(0, 4), (1, 7), (0, 9)] {
            assert!(producer.publish(&outgoing(lane, position)).expect("queued"));
        }
        assert!(!producer.publish(&outgoing(1, 8)).expect("full"), "the queue is full");
        assert_eq!((hand.take(2), bus.published().len(), producer.confirmed().expect("none yet")), (2, 2, vec![]));
        hand.confirm_in("t", 1, 1);
        let second = Confirmed { lane: 1, next: Position::new(8), events: 1 };
        assert_eq!(producer.confirmed().expect("fine"), [second]);
        hand.let_go();
        let first = Confirmed { lane: 0, next: Position::new(10), events: 2 };
        assert_eq!(producer.confirmed().expect("fine"), [first, second]);
        assert_eq!(producer.unconfirmed(), 0);
    }

    #[test]
    fn a_refusal_is_final() {
        let (bus, mut producer, hand) = bench(BY_HAND);
        assert!(producer.publish(&outgoing(0, 0)).expect("queued"));
        hand.refuse("too large");
        assert_eq!(hand.take(1), 0);
        assert!(producer.confirmed().is_err() && producer.publish(&outgoing(0, 1)).is_err());
        assert!(bus.published().is_empty());
    }
}
