//! Stores and busses that are away, memory that runs short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tapedeck_common::Position;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::limits::{MEMORY_BUDGET_MIN, OVERSIZE_ROOM, OVERSIZE_SHARE};
use tapedeck_sim::{BusEvent, Call, Fault, When, settle};
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::view::History;
use tapedeck_storage::store::Store;

use super::SECOND;
use super::world::{AGE_MAX, LONG, Setup, TICK, World};
use crate::seal::SealPolicy;

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

/// The highest use of a budget, looked at all the time by a thread of its own.
struct HighWater {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl HighWater {
    fn of(budget: &ByteBudget) -> Self {
        let (stop, budget) = (Arc::new(AtomicBool::new(false)), budget.clone());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut highest = 0;
            while !stopped.load(Ordering::Relaxed) {
                highest = budget.used().max(highest);
                std::thread::park_timeout(Duration::from_micros(100));
            }
            highest
        });
        Self { stop, thread }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

#[tokio::test(start_paused = true)]
async fn over_size_events_get_through_beside_the_others_each_in_a_segment_of_its_own() {
    let policy = SealPolicy { bytes_max: 1 << 40, age_max: 10 * LONG };
    let setup = Setup { budget_bytes: MEMORY_BUDGET_MIN as usize, policy, ..Setup::default() };
    let (world, process, running) = World::reading(setup, 2).await;
    let oversize = process.budget.capacity() / OVERSIZE_SHARE;
    // Memory that stays, since it waits for more events: less than would be relieved, more than would leave room for a giant.
    let mut noise = fastrand::Rng::with_seed(1);
    let mut large = |bytes: usize| {
        let mut value = vec![0; bytes];
        noise.fill(&mut value);
        BusEvent::of(value)
    };
    for _ in 0..20 {
        world.bus.publish("orders", 1, large(500_000));
    }
    world.advance(SECOND).await;
    let high_water = HighWater::of(&process.budget);
    let sizes = [1 << 20, oversize - 200, oversize, 16 << 20, 64 << 20, 5 << 20];
    for bytes in sizes {
        world.publish("orders", 3);
        world.bus.publish("orders", 0, large(bytes));
    }
    world.publish("orders", 3);
    // No batch grows old and nobody seals, so that whoever waited for such memory would wait for ever.
    world.advance(Duration::from_secs(30)).await;
    let status = running.status.borrow().clone();
    let taken_in: u64 = status.lanes.iter().filter_map(|lane| lane.next).map(Position::get).sum();
    assert_eq!(taken_in, world.bus.published().len() as u64, "all of them are taken in");
    process.seal().await;
    world.advance(SECOND).await;
    let (highest, room) = (high_water.end(), (OVERSIZE_ROOM + 1) * sizes[4]);
    println!("{} MiB at most in a budget of {} MiB", highest >> 20, process.budget.capacity() >> 20);
    assert!(highest <= process.budget.capacity() + room, "{highest} bytes: more than the budget and one giant's room");
    world.check_all_archived().await;
    let view = TableView::load(&Store::of(world.below()), "orders", None, History::Recent).await.expect("it can be read");
    let lone =
        view.segments.iter().filter(|live| live.segment.rows == 1).map(|live| live.segment.lanes[0].payload_bytes as usize);
    let mut lone: Vec<_> = lone.collect();
    lone.sort_unstable();
    assert_eq!(lone, [oversize, 5 << 20, 16 << 20, 64 << 20]);
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
