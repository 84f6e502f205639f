//! Several brokers at once: librdkafka's own mock cluster in this process. It keeps about 5 MiB a partition and knows few requests,
//! but its partitions and its groups can be moved from broker to broker, which takes three real ones otherwise.

use anyhow::{Result, anyhow};
use rdkafka::error::KafkaError;
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::DefaultProducerContext;

/// A cluster that ends on drop. Its brokers are numbered from 1 on.
pub struct MockBrokers {
    cluster: MockCluster<'static, DefaultProducerContext>,
    brokers: i32,
}

fn failed(error: KafkaError) -> anyhow::Error {
    anyhow!("the mock brokers: {error}")
}

impl MockBrokers {
    /// Starts so many brokers, with one topic.
    pub fn start(brokers: i32, topic: &str, partitions: i32) -> Result<Self> {
        let cluster = MockCluster::new(brokers).map_err(failed)?;
        cluster.create_topic(topic, partitions, brokers).map_err(failed)?;
        Ok(Self { cluster, brokers })
    }

    /// Their addresses.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Another broker leads the partition from now on; it is the one of that number, counted round. (With none at all the mock
    /// falls over the next message that is sent there.)
    pub fn lead(&self, topic: &str, partition: i32, number: i32) -> Result<()> {
        self.cluster.partition_leader(topic, partition, Some(number % self.brokers + 1)).map_err(failed)
    }

    /// Another broker coordinates the group from now on.
    pub fn coordinate(&self, group: &str, number: i32) -> Result<()> {
        self.cluster.coordinator(MockCoordinator::Group(group.to_owned()), number % self.brokers + 1).map_err(failed)
    }

    /// A broker goes away, or comes back.
    pub fn set_down(&self, number: i32, down: bool) -> Result<()> {
        let broker = number % self.brokers + 1;
        if down { self.cluster.broker_down(broker) } else { self.cluster.broker_up(broker) }.map_err(failed)
    }
}
