//! What every implementer of a seam must keep, as suites that run on any of them: in memory here, on real servers where
//! those are started.
//!
//! Promises: each claim stands in a doc comment of the seam. Never: lean on more than the seam says.

mod consumer;
mod reader;

use std::sync::Arc;

use async_trait::async_trait;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::Consumer;
use tapedeck_common::position::Position;

pub use consumer::consumer;

use crate::event::BusEvent;

/// A bus as a suite needs it: something to read, members who read it, and a hand on its history.
#[async_trait]
pub trait ConsumerWorld: Send {
    /// Makes a topic under a name that was not used before. Each topic has a group of its own.
    async fn make_topic(&mut self, partitions: i32) -> Arc<str>;

    /// Publishes events to a partition, in order; returns once the bus has them. Their times are whole milliseconds.
    async fn publish(&mut self, topic: &str, partition: i32, events: &[BusEvent]);

    /// Deletes everything of a partition before `begin`, as retention does.
    async fn expire(&mut self, topic: &str, partition: i32, begin: Position);

    /// A new member of the topic's group, which draws from `budget` and begins unknown lanes at their first event.
    async fn join(&mut self, topic: &str, budget: &ByteBudget) -> Box<dyn Consumer>;

    /// A member has left; a bus that does not notice by itself deals its lanes out now.
    async fn member_left(&mut self, topic: &str);

    /// How far the group has acknowledged a partition.
    async fn acknowledged(&mut self, topic: &str, partition: i32) -> Option<Position>;

    /// Lasts as long as something that is under way may take to arrive. Only to see that nothing comes: shorter than the
    /// time for which a revocation waits.
    async fn calm(&self);

    /// Lasts until waiting any longer for something is pointless.
    async fn give_up(&self);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{MemberOptions, MemoryBus};
    use crate::clock::{ManualClock, settle};

    struct MemoryWorld {
        bus: MemoryBus,
        made: u32,
    }

    #[async_trait]
    impl ConsumerWorld for MemoryWorld {
        async fn make_topic(&mut self, partitions: i32) -> Arc<str> {
            // A bus has one group, so each topic gets a bus.
            self.bus = MemoryBus::new(ManualClock::default());
            self.made += 1;
            let name = format!("topic-{}", self.made);
            self.bus.make_topic(&name, partitions);
            name.into()
        }

        async fn publish(&mut self, topic: &str, partition: i32, events: &[BusEvent]) {
            self.bus.publish_all(topic, partition, events.iter().cloned());
        }

        async fn expire(&mut self, topic: &str, partition: i32, begin: Position) {
            self.bus.expire(topic, partition, begin);
        }

        async fn join(&mut self, _topic: &str, budget: &ByteBudget) -> Box<dyn Consumer> {
            let consumer = self.bus.join(MemberOptions::drawing_from(budget));
            self.bus.rebalance();
            Box::new(consumer)
        }

        async fn member_left(&mut self, _topic: &str) {
            self.bus.rebalance();
        }

        async fn acknowledged(&mut self, topic: &str, partition: i32) -> Option<Position> {
            let lane = self.bus.lanes(topic).remove(partition as usize);
            self.bus.acknowledged().get(&lane).copied()
        }

        async fn calm(&self) {
            settle().await;
        }

        async fn give_up(&self) {
            settle().await;
            settle().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_bus_in_memory_keeps_what_any_bus_must() {
        consumer(&mut MemoryWorld { bus: MemoryBus::new(ManualClock::default()), made: 0 }).await;
    }
}
