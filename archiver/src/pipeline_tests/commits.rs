//! Nothing is acknowledged before it is committed, and nothing is committed twice.

use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;
use tapedeck_sim::{Call, Fault, When, settle};

use super::SECOND;
use super::world::{AGE_MAX, LONG, Setup, TICK, World};

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
