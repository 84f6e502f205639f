//! Sources and processes that share a table.

use tapedeck_sim::{Call, Fault, When, settle};

use super::SECOND;
use super::world::{Setup, World};

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
