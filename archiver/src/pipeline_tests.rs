//! Scenarios of the pipeline: real logs and segments, a bus, a store and a clock in memory (see `world`).
//!
//! Each test is a claim, told as a story. Whatever happens in one, the committed view at its end is held against all that
//! the bus ever showed: nothing is missing below the lanes' positions, nothing is there twice, nothing came from nowhere.

mod storm;
mod world;

use std::time::Duration;

use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock as _;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{MEMORY_BUDGET_MIN, REVOKE_GRACE};
use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;
use tapedeck_sim::bus::StartAt;
use tapedeck_sim::{BusEvent, Call, Fault, When, settle};

use crate::seal::SealPolicy;
use world::{AGE_MAX, LONG, Setup, TICK, World};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_quiet_source_is_committed_when_its_batch_grows_old() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 1);
    world.advance(AGE_MAX - SECOND).await;
    assert!(world.check().await.events.is_empty(), "its batch is still young");
    world.advance(SECOND + TICK).await;
    assert_eq!(world.check_all_archived().await.events.len(), 1);
    assert_eq!(process.metric("seals", "age"), 1.0);
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_neither_loses_nor_hurries_anything() {
    let (world, _process, _running) = World::reading(Setup::default(), 1).await;
    let before = world.clock.next_wake();
    for jump in [Timestamp::from_micros(0), Timestamp::from_micros(4_000_000_000_000_000)] {
        world.publish("orders", 2);
        world.clock.set_wall(jump);
        settle().await;
    }
    world.advance(AGE_MAX / 2).await;
    assert!(world.check().await.events.is_empty() && world.clock.next_wake() > before, "ages are not the wall clock's");
    world.advance(AGE_MAX).await;
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_its_commit() {
    let (world, process, _running) = World::reading(Setup::default(), 2).await;
    world.publish("orders", 3);
    process.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangBefore);
    process.seal().await;
    process.must_hang().await;
    assert!(world.bus.acknowledged().is_empty());
    assert!(world.check().await.events.is_empty());
    process.store.release();
    settle().await;
    assert_eq!(world.bus.acknowledged().into_values().collect::<Vec<_>>(), [Position::new(3), Position::new(3)]);
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_is_recognised() {
    let (world, process, _running) = World::reading(Setup::default(), 1).await;
    for fault in [Fault::FailAfter, Fault::FailBefore, Fault::Conflict] {
        world.publish("orders", 3);
        process.store.inject(When::at(Call::Put).to("_delta_log/").once(), fault);
        process.seal().await;
        world.advance(LONG).await;
        let records = world.check_all_archived().await.records;
        let acknowledged = world.bus.acknowledged().into_values().next().expect("one lane");
        assert_eq!(acknowledged.get(), world.bus.published().len() as u64, "{fault}");
        assert_eq!(process.metric("batches_abandoned", ""), 0.0, "{fault} is no conflict with anybody");
        assert_eq!(records, 1 + acknowledged.get() / 3, "{fault}: the start record, and one for each batch");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_lands_late_is_counted_once() {
    let (world, process, _running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 3);
    process.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::Late);
    process.seal().await;
    process.store.land().await;
    world.advance(LONG).await;
    assert_eq!(world.check_all_archived().await.records, 2);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_lands_after_its_process_died_is_gone_on_from() {
    let (mut world, process, running) = World::reading(Setup::default(), 1).await;
    let ghost = process.store.clone();
    world.publish("orders", 3);
    process.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::Late);
    process.seal().await;
    running.crash(process).await;
    let second = world.process().await;
    let running = second.read_all(&world).await;
    world.publish("orders", 2);
    settle().await;
    assert_eq!(ghost.land().await, 1, "nobody else has committed that number yet");
    second.seal().await;
    world.advance(LONG).await;
    assert_eq!(second.metric("batches_abandoned", ""), 1.0);
    world.check_all_archived().await;
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_failed_is_followed_by_another_that_goes_on_from_the_log() {
    for fault in [Fault::HangBefore, Fault::HangAfter, Fault::Late] {
        let (world, process, running) = World::reading(Setup::default(), 2).await;
        world.publish("orders", 3);
        process.store.inject(When::at(Call::Put).to("_delta_log/").once(), fault);
        process.seal().await;
        world.bus.fail_next(running.member, BusError::new(ErrorKind::Unavailable, "the client gave up"));
        settle().await;
        let error = running.task.await.expect("no panic").expect_err("its bus failed");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        process.store.land().await;
        // The same process, and so the same open log, whose last commit nobody waited for.
        let next = process.read_all(&world).await;
        world.publish("orders", 2);
        settle().await;
        assert!(next.leave(&world).await.is_ok());
        assert_eq!(world.check_all_archived().await.events.len(), 10, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn segments_may_be_stored_before_the_log_has_answered() {
    let (world, process, _running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 3);
    process.store.inject(When::at(Call::Get).to("_delta_log/").once(), Fault::HangBefore);
    process.seal().await;
    process.must_hang().await;
    assert_eq!(process.store.calls(Call::Put, ".parquet"), 1);
    process.store.release();
    world.advance(SECOND).await;
    assert_eq!(world.check_all_archived().await.events.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn leaving_seals_commits_and_acknowledges_what_is_held() {
    let (world, process, running) = World::reading(Setup::default(), 3).await;
    world.publish("orders", 5);
    settle().await;
    let lanes = world.bus.lanes("orders");
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 15);
    assert_eq!(world.bus.acknowledged().len(), 3);
    assert!(lanes.iter().all(|lane| world.bus.owner(lane).is_none()), "it has left the group");
    assert_eq!(process.budget.used(), 0, "all memory is given back");
}

#[tokio::test(start_paused = true)]
async fn leaving_waits_for_the_batch_on_its_way_and_then_for_the_one_behind_it() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 2);
    process.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangBefore);
    process.seal().await;
    process.must_hang().await;
    world.publish("orders", 2);
    settle().await;
    running.stop.cancel();
    settle().await;
    assert!(!running.task.is_finished());
    process.store.release();
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 4);
}

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

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_memory_stays_within_its_budget_and_then_all_is_committed() {
    let policy = SealPolicy { bytes_max: 8 << 20, age_max: AGE_MAX };
    let setup = Setup { budget_bytes: MEMORY_BUDGET_MIN as usize, policy, ..Setup::default() };
    let (world, process, running) = World::reading(setup, 3).await;
    process.store.inject(When::always(), Fault::FailBefore);
    let mut noise = fastrand::Rng::with_seed(1);
    let mut used_max = 0;
    let began = running.rounds();
    for round in 0..180 {
        for partition in 0..3 {
            let mut value = vec![0; 100_000];
            noise.fill(&mut value);
            world.bus.publish("orders", partition, BusEvent::of(value));
        }
        world.advance(SECOND).await;
        used_max = used_max.max(process.budget.used());
        assert!(running.rounds() > began + 9 * round, "the loop goes round");
    }
    assert!(used_max <= process.budget.capacity(), "{used_max} of {} bytes", process.budget.capacity());
    assert!(world.bus.published().len() * 100_000 > process.budget.capacity(), "more than memory holds was published");
    assert!(world.bus.lanes("orders").iter().all(|lane| world.bus.owner(lane) == Some(running.member)), "still a member");
    process.store.heal();
    world.advance(LONG).await;
    assert_eq!(world.check_all_archived().await.events.len(), 540);
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(process.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_waited_for_like_one_that_refuses() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 3);
    process.store.inject(When::at(Call::Put).to("_delta_log/"), Fault::HangBefore);
    process.seal().await;
    world.advance(Duration::from_secs(300)).await;
    assert!(world.check().await.events.is_empty());
    process.store.heal();
    world.advance(LONG).await;
    assert_eq!(world.check_all_archived().await.events.len(), 3);
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_an_upload_costs_a_batch_and_no_event() {
    let policy = SealPolicy { bytes_max: 1 << 30, age_max: AGE_MAX };
    let (world, process, running) = World::reading(Setup { budget_bytes: 256 << 20, policy, ..Setup::default() }, 1).await;
    let mut noise = fastrand::Rng::with_seed(1);
    process.store.inject(When::at(Call::Part).after(1).once(), Fault::FailBefore);
    for _ in 0..400 {
        let mut value = vec![0; 200_000];
        noise.fill(&mut value);
        world.bus.publish("orders", 0, BusEvent::of(value));
    }
    world.advance(2 * SECOND).await;
    assert!(process.store.uploads_begun() > 0, "parts leave while the batch is open");
    process.store.forget_uploads();
    world.advance(2 * AGE_MAX).await;
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 400);
    assert_eq!((process.store.uploads_begun(), process.budget.used()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn when_memory_runs_short_rows_are_encoded_early_and_then_batches_are_sealed() {
    let setup =
        Setup { budget_bytes: 4 << 20, policy: SealPolicy { bytes_max: 1 << 40, age_max: 100 * LONG }, ..Setup::default() };
    let (world, process, running) = World::reading(setup, 2).await;
    let mut noise = fastrand::Rng::with_seed(1);
    for _ in 0..600 {
        for partition in 0..2 {
            let value: Vec<u8> = (0..20_000).map(|_| noise.u8(..)).collect();
            world.bus.publish("orders", partition, BusEvent::of(value));
        }
        settle().await;
        assert!(process.budget.used() <= process.budget.capacity(), "{} bytes", process.budget.used());
    }
    world.advance(SECOND).await;
    assert!(process.metric("seals", "memory") > 0.0);
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 1_200);
    assert_eq!(process.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_larger_than_the_whole_budget_gets_through() {
    let setup = Setup { budget_bytes: 1 << 20, ..Setup::default() };
    let (world, process, running) = World::reading(setup, 1).await;
    world.publish("orders", 3);
    world.bus.publish("orders", 0, BusEvent::of(vec![7; 3 << 20]));
    world.publish("orders", 3);
    world.advance(3 * AGE_MAX).await;
    world.check_all_archived().await;
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(process.budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_for_good_ends_the_pipeline_with_the_reason() {
    let (world, process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 1);
    process.store.inject(When::at(Call::Put).to("_delta_log/"), Fault::Deny);
    process.seal().await;
    let waited = world.clock.advance_until(LONG, || running.task.is_finished()).await;
    // Whether it waits or ends is the log's choice; that nothing is acknowledged is not.
    assert!(world.bus.acknowledged().is_empty(), "{waited}");
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_bus_is_away_the_loop_goes_round_and_can_be_stopped() {
    let (world, _process, running) = World::reading(Setup::default(), 1).await;
    world.publish("orders", 3);
    settle().await;
    world.bus.set_away(true);
    // A new lane must be located, and the bus does not answer.
    let added = world.bus.add_partitions("orders", 1);
    world.bus.assign(running.member, &added);
    world.advance(TICK).await;
    let rounds = running.rounds();
    world.advance(Duration::from_secs(10)).await;
    assert!(running.rounds() > rounds + 50, "{} rounds in ten seconds", running.rounds() - rounds);
    assert!(running.leave(&world).await.is_ok());
    assert_eq!(world.check().await.events.len(), 3, "what was held is committed");
}

#[tokio::test(start_paused = true)]
async fn two_sources_of_a_process_share_a_table() {
    let mut world = World::new(Setup { one_table: true, ..Setup::default() });
    let (orders, clicks) = (world.bus.make_topic("orders", 2), world.bus.make_topic("clicks", 2));
    let process = world.process().await;
    let (first, second) = (process.pipeline(&world), process.pipeline(&world));
    world.bus.assign(first.member, &orders);
    world.bus.assign(second.member, &clicks);
    for _ in 0..5 {
        world.publish("orders", 3);
        world.publish("clicks", 2);
        process.seal().await;
        world.advance(SECOND).await;
    }
    assert_eq!(process.metric("batches_abandoned", ""), 0.0);
    assert!(first.leave(&world).await.is_ok() && second.leave(&world).await.is_ok());
    let archived = world.check_all_archived().await;
    assert_eq!((archived.events.len(), archived.lanes.len()), (50, 4));
}

#[tokio::test(start_paused = true)]
async fn two_processes_share_a_table() {
    let mut world = World::new(Setup { one_table: true, ..Setup::default() });
    world.bus.make_topic("orders", 4);
    let (first, second) = (world.process().await, world.process().await);
    let (one, two) = (first.pipeline(&world), second.pipeline(&world));
    world.bus.rebalance();
    for _ in 0..10 {
        world.publish("orders", 3);
        settle().await;
        first.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::FailAfter);
        let _together = (first.seal().await, second.seal().await);
        world.advance(5 * SECOND).await;
    }
    assert_eq!(first.metric("batches_abandoned", "") + second.metric("batches_abandoned", ""), 0.0, "their lanes never met");
    assert!(one.leave(&world).await.is_ok() && two.leave(&world).await.is_ok());
    assert_eq!(world.check_all_archived().await.events.len(), 120);
}

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
