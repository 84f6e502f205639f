//! Where lanes begin, go on, and end.

use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::REVOKE_GRACE;
use tapedeck_common::position::Position;
use tapedeck_sim::bus::StartAt;
use tapedeck_sim::{BusEvent, Call, Fault, When, settle};

use super::SECOND;
use super::world::{AGE_MAX, Setup, TICK, World};
use crate::pipeline::OnGap;

#[tokio::test(start_paused = true)]
async fn the_start_of_a_lane_is_committed_before_anything_is_read() {
    let mut world = World::new(Setup { start: StartAt::Latest, ..Setup::default() });
    world.bus.make_topic("orders", 1);
    world.publish("orders", 4);
    let process = world.process().await;
    // The record that makes the table, then the one with the start.
    process.store.inject(When::at(Call::Put).to("_delta_log/").after(1).once(), Fault::HangBefore);
    let running = process.read_all(&world).await;
    process.must_hang().await;
    world.publish("orders", 1);
    world.advance(TICK).await;
    assert_eq!(process.metric("events_consumed", ""), 0.0);
    assert!(!running.status.borrow().is_ready());
    process.store.release();
    world.advance(TICK).await;
    assert!(running.status.borrow().is_ready());
    // What came after the start belongs to the archive, though the process dies before it has read it.
    running.crash(process).await;
    let again = world.process().await;
    let running = again.read_all(&world).await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!(archived.events.keys().map(|(_, position)| position.get()).collect::<Vec<_>>(), [4]);
}

#[tokio::test(start_paused = true)]
async fn processes_that_start_side_by_side_begin_all_lanes_at_one_moment() {
    let mut world = World::new(Setup { start: StartAt::Latest, ..Setup::default() });
    world.bus.make_topic("orders", 2);
    world.publish("orders", 4);
    let (one, two) = (world.process().await, world.process().await);
    let (first, second) = (one.pipeline(&world), two.pipeline(&world));
    // The second sees the table only when the first has begun it.
    two.store.inject(When::at(Call::Get).to("_archive/topics/").once(), Fault::HangBefore);
    world.bus.rebalance();
    two.must_hang().await;
    world.advance(TICK).await;
    assert!(first.status.borrow().is_ready() && !second.status.borrow().is_ready());
    world.publish("orders", 3);
    two.store.release();
    world.advance(TICK).await;
    assert!(second.status.borrow().is_ready());
    assert!(first.leave(&world).await.is_ok() && second.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!(archived.events.len(), 6, "what came after the start, of both lanes");
    assert!(archived.lanes.values().all(|lane| lane.from == 4), "{:?}", archived.lanes);
}

#[tokio::test(start_paused = true)]
async fn partitions_that_appear_later_begin_at_their_first_event() {
    let mut world = World::new(Setup { start: StartAt::Latest, ..Setup::default() });
    world.bus.make_topic("orders", 1);
    world.publish("orders", 4);
    let process = world.process().await;
    let running = process.read_all(&world).await;
    world.bus.add_partitions("orders", 1);
    world.publish("orders", 2);
    world.bus.rebalance();
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 4, "two of the old one, two of the new one");
}

#[tokio::test(start_paused = true)]
async fn what_retention_took_while_nobody_read_is_recorded_and_reading_goes_on() {
    let (mut world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 4);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    world.publish("orders", 6);
    world.bus.expire("orders", 0, Position::new(7));
    drop(process);
    let second = world.process().await;
    let running = second.read_all(&world).await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    let lane = archived.lanes.values().next().expect("one lane");
    let gaps: Vec<_> = lane.gaps.iter().map(|gap| (gap.from, gap.until, gap.cause)).collect();
    assert_eq!((gaps, lane.rows, lane.next), (vec![(4, 7, "retention")], 7, 10));
    assert_eq!(second.metric("gap_events", "retention"), 3.0);
}

#[tokio::test(start_paused = true)]
async fn where_it_is_so_wanted_a_gap_halts_its_lane_and_nothing_is_written() {
    let setup = Setup { on_gap: OnGap::Halt, ..Setup::default() };
    let (mut world, process, running) = World::reading(setup, 2).await;
    world.publish("orders", 4);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    drop(process);
    world.publish("orders", 6);
    world.bus.expire("orders", 0, Position::new(7));
    let second = world.process().await;
    let running = second.read_all(&world).await;
    world.advance(AGE_MAX + TICK).await;
    let halted: Vec<_> = running.status.borrow().lanes.iter().map(|lane| lane.halted).collect();
    assert_eq!((halted, second.metric("lanes_halted", ""), second.metric("gap_events", "")), (vec![true, false], 1.0, 0.0));
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check().await;
    assert_eq!(archived.lanes.values().map(|lane| (lane.next, lane.gaps.len())).collect::<Vec<_>>(), [(4, 0), (10, 0)]);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_retention_overtook_is_committed_and_only_the_rest_is_a_gap() {
    let (world, process, running) = World::reading(Setup { run_events: 4, ..Setup::default() }, 1).await;
    world.publish("orders", 4);
    settle().await;
    world.bus.set_away(true);
    world.publish("orders", 6);
    world.bus.expire("orders", 0, Position::new(7));
    world.bus.set_away(false);
    world.advance(REVOKE_GRACE + SECOND).await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    let lane = archived.lanes.values().next().expect("one lane");
    assert_eq!((lane.lost, lane.rows, process.metric("gap_events", "")), (3, 7, 3.0));
}

#[tokio::test(start_paused = true)]
async fn a_topic_made_again_is_read_from_its_beginning_beside_the_old_one() {
    let (mut world, process, running) = World::reading(Setup { start: StartAt::Latest, ..Setup::default() }, 1).await;
    world.publish("orders", 3);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    drop(process);
    world.bus.make_topic("orders", 1);
    world.publish("orders", 2);
    let second = world.process().await;
    let running = second.read_all(&world).await;
    assert!(running.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!((archived.events.len(), archived.lanes.len()), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_next_event_cannot_be_read_is_halted_and_goes_on_once_it_is_assigned_again() {
    let (world, process, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 4);
    settle().await;
    let lane = world.bus.lanes("orders")[0].clone();
    world.bus.halt(&lane, BusError::new(ErrorKind::Corrupt, "a damaged batch"));
    world.publish("orders", 4);
    world.advance(AGE_MAX + TICK).await;
    let halted = || running.status.borrow().lanes.iter().map(|lane| lane.halted).collect::<Vec<_>>();
    assert_eq!((halted(), running.status.borrow().is_ready()), (vec![true, false], true));
    assert_eq!(process.metric("lanes_halted", ""), 1.0);
    assert_eq!(world.check().await.events.len(), 4 + 8, "what came before it, and all of the other lane");
    let owner = world.bus.owner(&lane).expect("owned");
    drop(world.bus.hand_over(owner, owner, std::slice::from_ref(&lane)));
    world.advance(AGE_MAX + TICK).await;
    assert_eq!(halted(), [false, false]);
    assert!(running.leave(&world).await.is_ok());
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_bus_lost_its_tail_is_halted_and_nothing_is_overwritten() {
    let (mut world, process, running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 5);
    settle().await;
    assert!(running.leave(&world).await.is_ok());
    drop(process);
    let before = world.check_all_archived().await;
    world.bus.truncate("orders", 0, Position::new(2));
    let second = world.process().await;
    let running = second.read_all(&world).await;
    world.bus.publish("orders", 1, BusEvent::of("the other lane goes on"));
    world.advance(AGE_MAX + TICK).await;
    let halted: Vec<_> = running.status.borrow().lanes.iter().map(|lane| lane.halted).collect();
    assert_eq!((halted, running.status.borrow().is_ready()), (vec![true, false], true));
    assert_eq!(second.metric("lanes_halted", ""), 1.0);
    let after = world.check().await;
    assert_eq!(after.events.len(), before.events.len() + 1);
    assert!(running.leave(&world).await.is_ok());
}
