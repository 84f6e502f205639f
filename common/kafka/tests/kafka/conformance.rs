//! The suite that any bus must pass, on a real Kafka.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::Consumer;
use tapedeck_common::position::Position;
use tapedeck_kafka::config::GroupProtocol;
use tapedeck_sim::conformance::{self, ConsumerWorld};
use tapedeck_sim::event::BusEvent;
use tapedeck_testbed::{Event, Loader};

use crate::support::{LIMIT, admin, broker, consumer, eventually, named, settings_by, topic};

struct KafkaWorld {
    protocol: GroupProtocol,
    made: u32,
}

#[async_trait]
impl ConsumerWorld for KafkaWorld {
    async fn make_topic(&mut self, partitions: i32) -> Arc<str> {
        self.made += 1;
        topic(&named(self.protocol, &format!("conformance-{}", self.made)), partitions).into()
    }

    async fn publish(&mut self, topic: &str, partition: i32, events: &[BusEvent]) {
        let loader = Loader::new(&broker(), &[]).expect("a producer");
        for event in events {
            let timestamp = event.time.expect("the suite names times").millis_floor();
            let (key, value, headers) = (event.key.clone(), event.value.clone(), event.headers.clone());
            loader.send(topic, Some(partition), &Event { key, value, headers, timestamp }).expect("sent");
        }
        loader.finish().expect("delivered");
    }

    async fn expire(&mut self, topic: &str, partition: i32, begin: Position) {
        admin().delete_records(topic, partition, begin.as_i64()).expect("deleted");
    }

    async fn join(&mut self, topic: &str, budget: &ByteBudget) -> Box<dyn Consumer> {
        Box::new(consumer(settings_by(self.protocol, topic, &[topic]), budget))
    }

    async fn member_left(&mut self, _topic: &str) {
        // The group notices by itself.
    }

    async fn acknowledged(&mut self, topic: &str, partition: i32) -> Option<Position> {
        // An acknowledgement is on its way when the call returns.
        let committed = || admin().committed(topic, topic).expect("offsets").get(&partition).copied();
        eventually("the broker knows", || committed().is_some()).await;
        committed().and_then(Position::from_i64)
    }

    async fn calm(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn give_up(&self) {
        tokio::time::sleep(LIMIT).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_keeps_what_any_bus_must() {
    conformance::consumer(&mut KafkaWorld { protocol: GroupProtocol::Classic, made: 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_keeps_it_with_the_protocol_of_kip_848_too() {
    conformance::consumer(&mut KafkaWorld { protocol: GroupProtocol::Consumer, made: 0 }).await;
}
