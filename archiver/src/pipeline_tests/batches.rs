//! What a batch is made of.

use tapedeck_common::time::Timestamp;
use tapedeck_sim::{BusEvent, settle};

use super::world::{AGE_MAX, Setup, TICK, World};

#[tokio::test(start_paused = true)]
async fn copies_of_a_replay_are_counted_in_the_record_and_not_archived() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 2);
    world.bus.publish_all("orders", 0, [BusEvent::of("copy").replayed(), BusEvent::of("copy").replayed()]);
    world.publish("orders", 1);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    let lane = archived.lanes.values().next().expect("one lane");
    assert_eq!((lane.rows, lane.skipped, lane.next), (3, 2, 5));
    assert_eq!(process.metric("events_skipped", ""), 2.0);
}

#[tokio::test(start_paused = true)]
async fn nothing_but_copies_still_moves_the_lane_on() {
    let (world, _process, running) = World::reading(Setup::default(), 1).await;
    world.bus.publish_all("orders", 0, [BusEvent::of("copy").replayed(), BusEvent::of("copy").replayed()]);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!(archived.lanes.values().map(|lane| (lane.rows, lane.skipped)).collect::<Vec<_>>(), [(0, 2)]);
}

#[tokio::test(start_paused = true)]
async fn holes_of_the_bus_lie_inside_spans() {
    let (world, _process, running) = World::reading(Setup { run_events: 2, ..Setup::default() }, 1).await;
    for _ in 0..4 {
        world.publish("orders", 3);
        world.bus.publish_holes("orders", 0, 2);
        settle().await;
        world.publish("orders", 1);
        world.bus.publish_holes("orders", 0, 1);
        world.advance(AGE_MAX + TICK).await;
        world.bus.publish_holes("orders", 0, 1);
        settle().await;
    }
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!(archived.events.len(), 16);
    assert!(archived.lanes.values().all(|lane| lane.lost == 0));
}

#[tokio::test(start_paused = true)]
async fn events_of_many_hours_are_one_batch_however_many_there_are() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    for number in 0..300_u64 {
        let time = Timestamp::from_micros((number as i64 % 100) * 3_600_000_000);
        world.bus.publish("orders", 0, BusEvent::of(vec![number as u8; 5_000]).at(time));
    }
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!((archived.events.len(), archived.records), (300, 2), "the start record, and one for all of them");
    assert_eq!(process.budget.used(), 0);
}
