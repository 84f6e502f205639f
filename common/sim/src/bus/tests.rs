//! What a test can do to a bus in memory, beyond what any bus must keep (see [`crate::conformance`]).

use std::time::Duration;

use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{BusError, Consumer as _, Incoming};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::REVOKE_GRACE;
use tapedeck_common::position::{LaneId, Position, Span};

use super::*;
use crate::clock::settle;
use crate::event::events;

struct Bench {
    clock: ManualClock,
    bus: MemoryBus,
    lane: LaneId,
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::default();
        let bus = MemoryBus::new(clock.clone());
        let lane = bus.make_topic("t", 1).remove(0);
        Self { clock, bus, lane }
    }

    fn join(&self) -> MemoryConsumer {
        self.bus.join(MemberOptions::drawing_from(&ByteBudget::new(1 << 20)))
    }

    /// A member that reads the lane from its first event.
    async fn reading(&self) -> MemoryConsumer {
        let mut consumer = self.join();
        self.bus.assign(consumer.id(), std::slice::from_ref(&self.lane));
        assert!(matches!(consumer.next().await, Ok(Incoming::Assigned(_))));
        consumer.resume(vec![(self.lane.clone(), Position::new(0))]).await.expect("never fails");
        consumer
    }
}

fn span(from: u64, until: u64) -> Span {
    Span::new(Position::new(from), Position::new(until)).expect("forward")
}

async fn next_runs(consumer: &mut MemoryConsumer) -> Vec<(Span, Vec<i64>, u64)> {
    match consumer.next().await {
        Ok(Incoming::Deliveries(runs)) => runs.into_iter().map(|run| (run.span, run.events.positions, run.skipped)).collect(),
        other => panic!("deliveries were to come, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn holes_lie_inside_a_span_or_are_told_at_the_end() {
    let bench = Bench::new();
    bench.bus.publish_all("t", 0, events("v", 2));
    bench.bus.publish_holes("t", 0, 1);
    bench.bus.publish_all("t", 0, events("w", 2));
    bench.bus.publish_holes("t", 0, 2);
    bench.bus.compact("t", 0, Position::new(0));
    let mut consumer = bench.reading().await;
    assert_eq!(next_runs(&mut consumer).await, [(span(0, 5), vec![1, 3, 4], 0)]);
    let Ok(Incoming::Idle(idle)) = consumer.next().await else { panic!("the end was to be told") };
    assert_eq!(idle, [(bench.lane.clone(), Position::new(7))]);
    bench.bus.publish_all("t", 0, events("x", 1));
    assert_eq!(next_runs(&mut consumer).await, [(span(7, 8), vec![7], 0)]);
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_replay_are_left_out_and_counted() {
    let bench = Bench::new();
    bench.bus.publish_all("t", 0, [BusEvent::of("a"), BusEvent::of("b").replayed(), BusEvent::of("c")]);
    let mut consumer = bench.reading().await;
    assert_eq!(next_runs(&mut consumer).await, [(span(0, 3), vec![0, 2], 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_zombie_reads_on_and_its_acknowledgements_are_refused() {
    let bench = Bench::new();
    let (mut zombie, owner) = (bench.reading().await, bench.join());
    bench.bus.steal(owner.id(), std::slice::from_ref(&bench.lane));
    bench.bus.publish("t", 0, BusEvent::of("v"));
    assert_eq!(next_runs(&mut zombie).await, [(span(0, 1), vec![0], 0)]);
    assert_eq!(bench.bus.owner(&bench.lane), Some(owner.id()));
    bench.bus.lose(zombie.id(), std::slice::from_ref(&bench.lane));
    assert!(matches!(zombie.next().await, Ok(Incoming::Lost(lanes)) if lanes == [bench.lane.clone()]));
    assert_eq!(bench.bus.owner(&bench.lane), Some(owner.id()), "the loss is the zombie's alone");
}

#[tokio::test(start_paused = true)]
async fn a_revocation_ends_with_its_grace_though_the_guard_lives() {
    let bench = Bench::new();
    let (mut first, mut second) = (bench.reading().await, bench.join());
    let revocation = bench.bus.hand_over(first.id(), second.id(), std::slice::from_ref(&bench.lane));
    let Ok(Incoming::Revoking(_, guard)) = first.next().await else { panic!("a revocation was to come") };
    bench.clock.advance(REVOKE_GRACE - Duration::from_millis(1)).await;
    assert!(!revocation.has_ended());
    bench.clock.advance(Duration::from_millis(1)).await;
    assert!(revocation.has_ended());
    assert!(matches!(second.next().await, Ok(Incoming::Assigned(_))));
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_retention_overtakes_is_revoked_and_assigned_again() {
    let bench = Bench::new();
    bench.bus.publish_all("t", 0, events("v", 9));
    let mut consumer = bench.reading().await;
    bench.bus.expire("t", 0, Position::new(4));
    let Ok(Incoming::Revoking(lanes, guard)) = consumer.next().await else { panic!("a revocation was to come") };
    assert_eq!(lanes, std::slice::from_ref(&bench.lane));
    drop(guard);
    settle().await;
    assert!(matches!(consumer.next().await, Ok(Incoming::Assigned(lanes)) if lanes[0].lane == bench.lane));
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_again_is_another_source() {
    let bench = Bench::new();
    let mut consumer = bench.reading().await;
    let again = bench.bus.make_topic("t", 1).remove(0);
    assert_ne!(again.source, bench.lane.source);
    bench.bus.publish("t", 0, BusEvent::of("v"));
    let mut next = Box::pin(consumer.next());
    settle().await;
    assert!(futures::poll!(next.as_mut()).is_pending(), "nothing of the new one under the old name of the lane");
}

#[tokio::test(start_paused = true)]
async fn while_the_bus_is_away_nothing_is_read_and_members_stay() {
    let bench = Bench::new();
    let mut consumer = bench.reading().await;
    bench.bus.set_away(true);
    bench.bus.publish("t", 0, BusEvent::of("v"));
    let id = consumer.id();
    let read = tokio::spawn(async move { next_runs(&mut consumer).await });
    settle().await;
    assert!(!read.is_finished());
    assert_eq!(bench.bus.owner(&bench.lane), Some(id));
    bench.bus.set_away(false);
    assert_eq!(read.await.expect("no panic").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_once() {
    let bench = Bench::new();
    let mut consumer = bench.reading().await;
    bench.bus.fail_next(consumer.id(), BusError::new(ErrorKind::Unavailable, "broker away"));
    assert!(consumer.next().await.is_err());
    assert!(matches!(consumer.next().await, Ok(Incoming::Idle(_))));
}
