//! What any bus must keep as a source: one claim of [`Consumer`] after the other.

use futures::FutureExt as _;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{Located, ToLocate};
use tapedeck_common::commit::{Advance, Appended, CommitLog as _, GapCause, Record};
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;

use super::ConsumerWorld;
use super::reader::Reader;
use crate::clock::GENESIS;
use crate::event::{BusEvent, events};
use crate::memory_log::MemoryLog;

const ROOMY: usize = 64 << 20;

/// Runs the whole suite; panics at the first promise that is broken.
pub async fn consumer(world: &mut dyn ConsumerWorld) {
    nothing_is_read_before_it_is_resumed(world).await;
    what_was_published_is_what_is_read(world).await;
    a_lane_is_read_from_where_it_was_resumed(world).await;
    the_end_is_told_and_what_follows_meets_it(world).await;
    resuming_again_is_a_seek(world).await;
    lanes_that_are_not_ours_are_passed_over(world).await;
    a_dropped_call_loses_nothing(world).await;
    without_room_nothing_is_delivered(world).await;
    lanes_are_located_by_what_the_bus_still_has(world).await;
    a_lane_that_is_new_begins_at_its_first_event(world).await;
    a_revoked_lane_moves_on_when_its_guard_is_gone(world).await;
    who_leaves_frees_its_lanes(world).await;
    what_was_acknowledged_is_known_to_the_bus(world).await;
}

async fn join(world: &mut dyn ConsumerWorld, topic: &str) -> Reader {
    Reader::new(world.join(topic, &ByteBudget::new(ROOMY)).await)
}

/// A topic of one partition with so many events, and a member that is assigned.
async fn one_lane(world: &mut dyn ConsumerWorld, count: usize) -> (std::sync::Arc<str>, Reader) {
    let topic = world.make_topic(1).await;
    world.publish(&topic, 0, &timed(events("v", count))).await;
    let mut reader = join(world, &topic).await;
    reader.until(world, "the lane is assigned", |reader| reader.lanes.len() == 1).await;
    (topic, reader)
}

/// Whole seconds, so that any bus can keep them.
fn timed(events: Vec<BusEvent>) -> Vec<BusEvent> {
    events.into_iter().map(|event| event.at(GENESIS)).collect()
}

fn positions(reader: &Reader, lane: &LaneId) -> Vec<u64> {
    reader.events_of(lane).into_iter().map(|(position, _)| position).collect()
}

async fn nothing_is_read_before_it_is_resumed(world: &mut dyn ConsumerWorld) {
    let (_, mut reader) = one_lane(world, 3).await;
    assert!(!reader.step_if_any(world).await, "nothing comes before a position is named");
    reader.consumer.close().await;
}

async fn what_was_published_is_what_is_read(world: &mut dyn ConsumerWorld) {
    let topic = world.make_topic(1).await;
    let later = Timestamp::from_micros(GENESIS.micros() + 1_234_000);
    let written = [
        BusEvent::of("plain").at(GENESIS),
        BusEvent::of("").key("").at(later),
        BusEvent::tombstone().key("k").at(GENESIS),
        BusEvent::of([0, 255, 10]).key([0]).header("h", Some(b"1")).header("h", None).header("g", Some(b"")).at(later),
    ];
    world.publish(&topic, 0, &written).await;
    let mut reader = join(world, &topic).await;
    reader.until_reading(world, 1, 0).await;
    reader.until(world, "all is read", |reader| reader.read.len() == written.len()).await;
    let read: Vec<_> = reader.events_of(&reader.lane()).into_iter().map(|(_, event)| event).collect();
    assert_eq!(read, written);
    reader.consumer.close().await;
}

async fn a_lane_is_read_from_where_it_was_resumed(world: &mut dyn ConsumerWorld) {
    let (_, mut reader) = one_lane(world, 5).await;
    let lane = reader.lane();
    reader.resume(vec![(lane.clone(), Position::new(3))]).await;
    reader.until(world, "the rest is read", |reader| reader.read.len() == 2).await;
    assert_eq!(positions(&reader, &lane), [3, 4]);
    reader.consumer.close().await;
}

async fn the_end_is_told_and_what_follows_meets_it(world: &mut dyn ConsumerWorld) {
    let (topic, mut reader) = one_lane(world, 2).await;
    let lane = reader.lane();
    reader.resume(vec![(lane.clone(), Position::new(0))]).await;
    let at = |position| move |reader: &Reader| reader.lanes.values().all(|held| held.idle == Some(Position::new(position)));
    reader.until(world, "the lane is idle at its end", at(2)).await;
    let ends = |reader: &Reader| reader.consumer.bounds(&lane).map(Span::until) == Some(Position::new(2));
    reader.until(world, "the bounds are known", ends).await;
    world.publish(&topic, 0, &timed(events("w", 3))).await;
    reader.until(world, "the lane is idle again", at(5)).await;
    assert_eq!(positions(&reader, &lane), [0, 1, 2, 3, 4]);
    reader.consumer.close().await;
}

async fn resuming_again_is_a_seek(world: &mut dyn ConsumerWorld) {
    let (_, mut reader) = one_lane(world, 2_000).await;
    let lane = reader.lane();
    reader.resume(vec![(lane.clone(), Position::new(0))]).await;
    reader.until(world, "something is read", |reader| reader.runs > 0).await;
    for target in [1_900, 10] {
        // The reader checks that the next run begins there.
        reader.resume(vec![(lane.clone(), Position::new(target))]).await;
        let runs = reader.runs;
        reader.until(world, "it goes on there", |reader| reader.runs > runs).await;
    }
    reader.until(world, "all is read", |reader| reader.read.len() == 2_000).await;
    reader.consumer.close().await;
}

async fn lanes_that_are_not_ours_are_passed_over(world: &mut dyn ConsumerWorld) {
    let (_, mut reader) = one_lane(world, 1).await;
    let (ours, foreign) = (reader.lane(), LaneId::new("somewhere/else/0", 0));
    reader.resume(vec![(foreign, Position::new(0)), (ours, Position::new(0))]).await;
    reader.until(world, "ours is read", |reader| reader.read.len() == 1).await;
    reader.consumer.close().await;
}

async fn a_dropped_call_loses_nothing(world: &mut dyn ConsumerWorld) {
    let (_, mut reader) = one_lane(world, 1_000).await;
    let lane = reader.lane();
    reader.resume(vec![(lane, Position::new(0))]).await;
    while reader.read.len() < 1_000 {
        // One look, then the call is dropped, whatever it was about to do.
        match reader.consumer.next().now_or_never() {
            Some(incoming) => reader.check(incoming.expect("the bus is well")),
            None => tokio::task::yield_now().await,
        }
    }
    reader.consumer.close().await;
}

async fn without_room_nothing_is_delivered(world: &mut dyn ConsumerWorld) {
    let topic = world.make_topic(1).await;
    let large = |number: usize| BusEvent::of(vec![number as u8; 10_000]).at(GENESIS);
    world.publish(&topic, 0, &(0..200).map(large).collect::<Vec<_>>()).await;
    let budget = ByteBudget::new(1 << 20);
    let mut reader = Reader::new(world.join(&topic, &budget).await);
    reader.until_reading(world, 1, 0).await;
    while reader.step_if_any(world).await {}
    assert!(reader.read.len() < 200, "2 MB do not fit into 1 MiB");
    assert!(budget.used() <= budget.capacity(), "{} of {} bytes", budget.used(), budget.capacity());
    while reader.read.len() < 200 {
        reader.permits.clear();
        let read = reader.read.len();
        reader.until(world, "it goes on when there is room", |reader| reader.read.len() > read).await;
    }
    reader.consumer.close().await;
    reader.permits.clear();
    assert_eq!(budget.used(), 0, "all room is given back");
}

async fn lanes_are_located_by_what_the_bus_still_has(world: &mut dyn ConsumerWorld) {
    let (topic, mut reader) = one_lane(world, 10).await;
    world.expire(&topic, 0, Position::new(4)).await;
    let lane = reader.lane();
    let gap = Span::new(Position::new(1), Position::new(4)).expect("forward");
    let cases = [
        (None, Located::Start(Position::new(4))),
        (Some(1), Located::Gap(gap, GapCause::Retention)),
        (Some(4), Located::Continue(Position::new(4))),
        (Some(10), Located::Continue(Position::new(10))),
        (Some(11), Located::Beyond { log: Position::new(11), bus_end: Position::new(10) }),
    ];
    for (log, answer) in cases {
        let question = ToLocate {
            lane: lane.clone(),
            topic: topic.clone(),
            log: log.map(Position::new),
            topic_known: false,
            table: std::sync::Arc::default(),
        };
        let answers = reader.consumer.locate(vec![question]).await.expect("the bus is well");
        assert_eq!(answers, [(lane.clone(), answer)], "the log stands at {log:?}");
    }
    reader.consumer.close().await;
}

async fn a_lane_that_is_new_begins_at_its_first_event(world: &mut dyn ConsumerWorld) {
    let (topic, mut reader) = one_lane(world, 3).await;
    let lane = reader.lane();
    let question = ToLocate { lane: lane.clone(), topic, log: None, topic_known: true, table: std::sync::Arc::default() };
    let answers = reader.consumer.locate(vec![question]).await.expect("the bus is well");
    assert_eq!(answers, [(lane, Located::Start(Position::new(0)))]);
    reader.consumer.close().await;
}

async fn a_revoked_lane_moves_on_when_its_guard_is_gone(world: &mut dyn ConsumerWorld) {
    let topic = world.make_topic(2).await;
    let mut first = join(world, &topic).await;
    first.until_reading(world, 2, 0).await;
    let mut second = join(world, &topic).await;
    first.until(world, "a lane is revoked", |reader| !reader.revoking.is_empty()).await;
    let (moved, guard) = first.revoking.remove(0);
    for partition in 0..2 {
        world.publish(&topic, partition, &timed(events("v", 3))).await;
    }
    // Each reader checks that it gets nothing of a lane that is not its own.
    while first.step_if_any(world).await {}
    while second.step_if_any(world).await {}
    assert!(moved.iter().all(|lane| !second.lanes.contains_key(lane)), "nobody else gets it while the guard lives");
    drop(guard);
    first.until(world, "the rest of the first", |reader| reader.read.len() == 3 * reader.lanes.len()).await;
    second.until(world, "the lane has moved", |reader| moved.iter().all(|lane| reader.lanes.contains_key(lane))).await;
    let at = moved.iter().map(|lane| (lane.clone(), Position::new(0))).collect();
    second.resume(at).await;
    second.until(world, "it is read there", |reader| reader.read.len() == 3 * moved.len()).await;
    first.consumer.close().await;
    second.consumer.close().await;
}

async fn who_leaves_frees_its_lanes(world: &mut dyn ConsumerWorld) {
    let (topic, first) = one_lane(world, 1).await;
    first.consumer.close().await;
    let mut second = join(world, &topic).await;
    world.member_left(&topic).await;
    second.until_reading(world, 1, 0).await;
    second.until(world, "it is read", |reader| reader.read.len() == 1).await;
    second.consumer.close().await;
}

async fn what_was_acknowledged_is_known_to_the_bus(world: &mut dyn ConsumerWorld) {
    let (topic, mut reader) = one_lane(world, 3).await;
    let lane = reader.lane();
    reader.resume(vec![(lane.clone(), Position::new(0))]).await;
    reader.until(world, "all is read", |reader| reader.read.len() == 3).await;
    let span = Span::new(Position::new(0), Position::new(2)).expect("forward");
    let advance = Advance { lane, expected: None, span, rows: 2, skipped: 0, gap: None };
    let record = Record { advances: vec![advance], segments: Vec::new() };
    let Ok(Appended::Committed(receipt)) = MemoryLog::default().append(&record).await else { panic!("an empty log takes it") };
    reader.consumer.acknowledge(&receipt).await;
    assert_eq!(world.acknowledged(&topic, 0).await, Some(Position::new(2)));
    reader.consumer.close().await;
}
