//! Up to when a lane is archived.

use tapedeck_common::clock::Clock as _;

use super::SECOND;
use super::world::{AGE_MAX, Setup, World};

#[tokio::test(start_paused = true)]
async fn an_idle_lane_is_archived_up_to_this_moment_and_a_held_event_holds_it_back() {
    let (world, _process, running) = World::reading(Setup::default(), 1).await;
    world.advance(3 * SECOND).await;
    let watermark = || running.status.borrow().lanes[0].watermark;
    let at = watermark().expect("nothing is held back");
    world.publish("orders", 1);
    world.advance(AGE_MAX / 2).await;
    let status = running.status.borrow().clone();
    assert_eq!((status.buffered_events, status.lanes[0].watermark), (1, watermark()));
    assert!(watermark().expect("once there was one") <= at + SECOND, "an event of back then is not archived yet");
    world.advance(AGE_MAX).await;
    assert!(watermark().expect("it is idle again") > at + AGE_MAX);
    assert_eq!(running.status.borrow().lanes[0].lag(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_watermark_stands_still_while_the_bus_cannot_be_asked() {
    let (world, _process, running) = World::reading(Setup::default(), 1).await;
    world.advance(5 * SECOND).await;
    let watermark = || running.status.borrow().lanes[0].watermark.expect("it is read");
    let before = watermark();
    world.bus.set_away(true);
    let away_since = world.clock.now();
    world.publish("orders", 1);
    world.advance(30 * SECOND).await;
    assert!(watermark() >= before && watermark() <= away_since, "nobody knows what is on the bus since {away_since}");
    world.bus.set_away(false);
    world.advance(AGE_MAX + 2 * SECOND).await;
    assert!(watermark() > away_since + AGE_MAX);
}

#[tokio::test(start_paused = true)]
async fn control_records_at_the_end_of_a_lane_leave_no_lag_behind() {
    let (world, _process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 3);
    world.bus.publish_holes("orders", 0, 2);
    world.advance(2 * AGE_MAX).await;
    world.bus.publish_holes("orders", 0, 2);
    let since = world.clock.now();
    world.advance(5 * SECOND).await;
    let lane = running.status.borrow().lanes[0].clone();
    assert_eq!(lane.lag(), Some(0));
    assert!(lane.watermark > Some(since), "{lane:?}");
}
