//! Follows one member of a group and holds every answer against the promises of [`Consumer`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tapedeck_common::budget::BytePermit;
use tapedeck_common::bus::{AssignedLane, Consumer, Deliveries, Incoming, RevokeGuard};
use tapedeck_common::position::{LaneId, Position};

use super::ConsumerWorld;
use crate::event::BusEvent;

/// A member, what it reads, and what it has read.
pub(super) struct Reader {
    pub(super) consumer: Box<dyn Consumer>,
    pub(super) lanes: BTreeMap<LaneId, Held>,
    pub(super) read: BTreeMap<(LaneId, Position), BusEvent>,
    pub(super) permits: Vec<BytePermit>,
    pub(super) revoking: Vec<(Vec<LaneId>, RevokeGuard)>,
    pub(super) runs: usize,
}

/// A lane that the member has.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) topic: Arc<str>,
    /// Where the next run must begin; `None` until it is resumed.
    pub(super) next: Option<Position>,
    /// Where the bus said that there is nothing more.
    pub(super) idle: Option<Position>,
}

impl Reader {
    pub(super) fn new(consumer: Box<dyn Consumer>) -> Self {
        let (lanes, read) = (BTreeMap::new(), BTreeMap::new());
        Self { consumer, lanes, read, permits: Vec::new(), revoking: Vec::new(), runs: 0 }
    }

    /// Takes what comes next; false if nothing comes while the world is calm. Where the bus ends is always told, and does not count.
    pub(super) async fn step_if_any(&mut self, world: &dyn ConsumerWorld) -> bool {
        let mut calm = std::pin::pin!(world.calm());
        loop {
            let incoming = tokio::select! {
                biased;
                incoming = self.consumer.next() => incoming.expect("the bus is well"),
                () = &mut calm => return false,
            };
            let counts = !matches!(incoming, Incoming::Ends(..));
            self.check(incoming);
            if counts {
                return true;
            }
        }
    }

    /// Takes what comes until `done`; fails the test when it never comes.
    pub(super) async fn until(&mut self, world: &dyn ConsumerWorld, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let incoming = tokio::select! {
                biased;
                incoming = self.consumer.next() => incoming,
                () = world.give_up() => panic!("it never came to this: {what}"),
            };
            self.check(incoming.expect("the bus is well"));
        }
    }

    /// Waits for so many lanes, then resumes each at `at`.
    pub(super) async fn until_reading(&mut self, world: &dyn ConsumerWorld, lanes: usize, at: u64) {
        self.until(world, "lanes are assigned", |reader| reader.lanes.len() == lanes).await;
        let at: Vec<_> = self.lanes.keys().map(|lane| (lane.clone(), Position::new(at))).collect();
        self.resume(at).await;
    }

    pub(super) async fn resume(&mut self, at: Vec<(LaneId, Position)>) {
        for (lane, position) in &at {
            if let Some(held) = self.lanes.get_mut(lane) {
                (held.next, held.idle) = (Some(*position), None);
            }
        }
        self.consumer.resume(at).await.expect("the bus is well");
    }

    /// The only lane that it has.
    pub(super) fn lane(&self) -> LaneId {
        assert_eq!(self.lanes.len(), 1, "one lane");
        self.lanes.keys().next().expect("one").clone()
    }

    /// What it has read of a lane, in order.
    pub(super) fn events_of(&self, lane: &LaneId) -> Vec<(u64, BusEvent)> {
        let of = self.read.iter().filter(|((of, _), _)| of == lane);
        of.map(|((_, position), event)| (position.get(), event.clone())).collect()
    }

    pub(super) fn check(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Deliveries(runs) => runs.into_iter().for_each(|run| self.check_run(run)),
            Incoming::Assigned(lanes) => lanes.into_iter().for_each(|lane| self.check_assigned(lane)),
            Incoming::Revoking(lanes, guard) => {
                self.let_go(&lanes);
                self.revoking.push((lanes, guard));
            }
            Incoming::Lost(lanes) => self.let_go(&lanes),
            Incoming::Idle(lanes) => {
                for (lane, position) in lanes {
                    let held = self.lanes.get_mut(&lane).unwrap_or_else(|| panic!("{lane} is idle, and not ours"));
                    let next = held.next.unwrap_or_else(|| panic!("{lane} is idle before it was resumed"));
                    assert!(position >= next, "{lane} is idle at {position}, and was read to {next}");
                    (held.next, held.idle) = (Some(position), Some(position));
                }
            }
            Incoming::Halted(lane, error) => panic!("{lane} is halted on a bus that is whole: {error}"),
            // A lane may have gone since the bus was asked.
            Incoming::Ends(..) => {}
        }
    }

    fn let_go(&mut self, lanes: &[LaneId]) {
        for lane in lanes {
            assert!(self.lanes.remove(lane).is_some(), "{lane} was taken, and not ours");
        }
    }

    fn check_assigned(&mut self, AssignedLane { lane, topic }: AssignedLane) {
        let earlier = self.lanes.insert(lane.clone(), Held { topic, next: None, idle: None });
        assert!(earlier.is_none(), "{lane} was assigned, and is ours already");
    }

    fn check_run(&mut self, run: Deliveries) {
        let lane = &run.lane;
        let held = self.lanes.get_mut(lane).unwrap_or_else(|| panic!("a run of {lane}, which is not ours"));
        let next = held.next.unwrap_or_else(|| panic!("a run of {lane} before it was resumed"));
        assert_eq!(held.topic, run.topic, "{lane}");
        assert_eq!(run.span.from(), next, "a run of {lane} begins where the last one ended, or the bus was idle");
        let mut earlier = None;
        for row in 0..run.events.len() {
            let position = run.events.get(row).position;
            assert!(run.span.contains(position), "{lane}: {position} lies outside of {}", run.span);
            assert!(earlier < Some(position), "{lane}: {position} after {earlier:?}");
            earlier = Some(position);
            self.read.insert((lane.clone(), position), BusEvent::from_row(&run.events, row));
        }
        assert!(run.permit.bytes() >= run.events.payload_bytes(), "the memory of a run of {lane} is reserved");
        (held.next, held.idle) = (Some(run.span.until()), None);
        self.permits.push(run.permit);
        self.runs += 1;
    }
}
