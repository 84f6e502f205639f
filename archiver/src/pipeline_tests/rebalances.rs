//! Lanes that come and go between members.

use tapedeck_common::limits::REVOKE_GRACE;
use tapedeck_common::position::Position;
use tapedeck_sim::{Call, Fault, When, settle};

use super::SECOND;
use super::world::{AGE_MAX, LONG, Setup, TICK, World};

#[tokio::test(start_paused = true)]
async fn a_revoked_lane_is_sealed_at_once_and_moves_on_with_its_commit() {
    let (mut world, first, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 4);
    settle().await;
    let second = world.process().await;
    let other = second.pipeline(&world);
    let moved = world.bus.lanes("orders").remove(1);
    first.store.inject(When::at(Call::Put).to(".parquet").once(), Fault::HangBefore);
    let revocation = world.bus.hand_over(running.member, other.member, std::slice::from_ref(&moved));
    first.must_hang().await;
    world.publish("orders", 1);
    settle().await;
    assert!(!revocation.has_ended(), "the bus waits for the commit");
    assert_eq!(second.metric("events_consumed", ""), 0.0);
    first.store.release();
    settle().await;
    assert!(revocation.has_ended());
    assert_eq!(world.bus.acknowledged().get(&moved), Some(&Position::new(4)), "acknowledged while it was still ours");
    assert_eq!(first.metric("seals", "revoke"), 1.0);
    assert_eq!(second.metric("events_consumed", ""), 1.0, "the other member goes on right behind");
    assert!(running.leave(&world).await.is_ok() && other.leave(&world).await.is_ok());
    world.check_all_archived().await;
    assert_eq!(first.metric("batches_abandoned", "") + second.metric("batches_abandoned", ""), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_holds_nothing_back_moves_on_at_once() {
    let (mut world, _first, running) = World::reading(Setup::default(), 1).await;
    let second = world.process().await;
    let other = second.pipeline(&world);
    let revocation = world.bus.hand_over(running.member, other.member, &world.bus.lanes("orders"));
    settle().await;
    assert!(revocation.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_behind_a_batch_on_its_way_waits_for_both() {
    let (mut world, first, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 2);
    first.store.inject(When::at(Call::Put).to("_delta_log/").times(2), Fault::HangBefore);
    first.seal().await;
    first.must_hang().await;
    world.publish("orders", 2);
    settle().await;
    let second = world.process().await;
    let other = second.pipeline(&world);
    let revocation = world.bus.hand_over(running.member, other.member, &world.bus.lanes("orders"));
    settle().await;
    first.store.release();
    settle().await;
    assert!(!revocation.has_ended(), "the second batch holds events of the lane too");
    first.store.release();
    settle().await;
    assert!(revocation.has_ended());
    assert_eq!(world.check_all_archived().await.events.len(), 4);
    assert!(other.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_comes_back_is_not_read_twice_into_the_batch_that_still_waits() {
    let (world, process, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 2);
    process.store.inject(When::at(Call::Put).to(".parquet").once(), Fault::HangBefore);
    process.seal().await;
    process.must_hang().await;
    // This batch cannot be sealed before the one on its way is settled, so the revocation runs out of time.
    world.publish("orders", 2);
    settle().await;
    let lane = &world.bus.lanes("orders")[..1];
    world.bus.hand_over(running.member, running.member, lane);
    world.advance(REVOKE_GRACE + SECOND).await;
    world.publish("orders", 1);
    settle().await;
    process.store.release();
    world.advance(LONG).await;
    assert_eq!(world.check_all_archived().await.events.len(), 10);
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_is_too_slow_for_a_revocation_abandons_what_the_next_owner_committed() {
    let (mut world, first, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 4);
    settle().await;
    let second = world.process().await;
    let other = second.pipeline(&world);
    first.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangBefore);
    let moved = &world.bus.lanes("orders")[..1];
    let revocation = world.bus.hand_over(running.member, other.member, moved);
    world.advance(REVOKE_GRACE + SECOND).await;
    assert!(revocation.has_ended());
    second.seal().await;
    world.advance(SECOND).await;
    first.store.release();
    world.advance(LONG).await;
    assert_eq!(first.metric("batches_abandoned", ""), 1.0);
    world.check_all_archived().await;
    assert!(running.leave(&world).await.is_ok() && other.leave(&world).await.is_ok());
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn a_zombie_whose_lane_went_on_elsewhere_adds_nothing() {
    let (mut world, zombie, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 5);
    settle().await;
    let second = world.process().await;
    let owner = second.pipeline(&world);
    let stolen = &world.bus.lanes("orders")[..1];
    world.bus.steal(owner.member, stolen);
    settle().await;
    second.seal().await;
    for _ in 0..3 {
        world.publish("orders", 2);
        world.advance(AGE_MAX + TICK).await;
        world.check().await;
    }
    assert!(zombie.metric("batches_abandoned", "") > 0.0);
    world.bus.lose(running.member, stolen);
    world.publish("orders", 2);
    world.advance(AGE_MAX + TICK).await;
    assert_eq!(world.check_all_archived().await.events.len(), 2 * 5 + 2 * 8);
    assert!(running.leave(&world).await.is_ok() && owner.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn lost_lanes_are_abandoned_and_the_others_go_on() {
    let (mut world, first, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 5);
    settle().await;
    let lanes = world.bus.lanes("orders");
    world.bus.lose(running.member, &lanes[..1]);
    settle().await;
    let second = world.process().await;
    let other = second.pipeline(&world);
    world.bus.assign(other.member, &lanes[..1]);
    world.publish("orders", 3);
    world.advance(AGE_MAX + TICK).await;
    assert_eq!(world.check_all_archived().await.events.len(), 16);
    assert_eq!(first.metric("batches_abandoned", ""), 0.0, "it never tried to commit what it lost");
    assert!(running.leave(&world).await.is_ok() && other.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn lanes_that_are_lost_while_their_batch_is_on_its_way_end_exactly_once() {
    let (mut world, first, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 5);
    first.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangAfter);
    first.seal().await;
    first.must_hang().await;
    world.publish("orders", 2);
    settle().await;
    let lanes = world.bus.lanes("orders");
    world.bus.lose(running.member, &lanes[..1]);
    let second = world.process().await;
    let other = second.pipeline(&world);
    world.bus.assign(other.member, &lanes[..1]);
    settle().await;
    first.store.release();
    world.advance(LONG).await;
    assert_eq!(world.check_all_archived().await.events.len(), 14);
    assert!(running.leave(&world).await.is_ok() && other.leave(&world).await.is_ok());
}
