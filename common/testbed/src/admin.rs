//! Topics and groups of a real broker, from a test's point of view: each call returns once its effect can be seen.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::wait::{wait_for, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

/// An admin client for one broker.
pub struct Admin {
    client: AdminClient<DefaultClientContext>,
    bootstrap: String,
}

impl Admin {
    /// For the broker at `bootstrap`.
    pub fn new(bootstrap: &str) -> Result<Self> {
        let client = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            // Tests look at changes at once.
            .set("topic.metadata.refresh.interval.ms", "500")
            .create()?;
        Ok(Self { client, bootstrap: bootstrap.to_owned() })
    }

    /// Makes a topic, with topic settings, and waits until each of its partitions has a leader.
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (setting, value) in settings {
            topic = topic.set(setting, value);
        }
        let done = block_on(self.client.create_topics([&topic], &options()))?;
        all_done(done)?;
        self.wait_for_partitions(name, partitions)
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let done = block_on(self.client.delete_topics(&[name], &options()))?;
        all_done(done)?;
        wait_until(&format!("topic {name} to go"), LIMIT, || Ok(self.partition_count(name)? == 0))
    }

    /// Grows a topic to `total` partitions.
    pub fn add_partitions(&self, name: &str, total: i32) -> Result<()> {
        let growth = NewPartitions::new(name, usize::try_from(total)?);
        let done = block_on(self.client.create_partitions([&growth], &options()))?;
        all_done(done)?;
        self.wait_for_partitions(name, total)
    }

    /// Sets topic settings. Settings made before and not named here fall back to the broker's.
    pub fn set_topic_config(&self, name: &str, settings: &[(&str, &str)]) -> Result<()> {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (setting, value) in settings {
            change = change.set(setting, value);
        }
        for done in block_on(self.client.alter_configs([&change], &options()))? {
            if let Err((_, code)) = done {
                bail!("settings of {name}: {code}");
            }
        }
        Ok(())
    }

    /// Throws away everything below `offset`, as retention would.
    pub fn delete_records(&self, name: &str, partition: i32, offset: i64) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(name, partition, Offset::Offset(offset))?;
        let done = block_on(self.client.delete_records(&list, &options()))?;
        for element in done.elements() {
            element.error()?;
        }
        Ok(())
    }

    /// How many partitions a topic has; 0 when there is no such topic.
    pub fn partition_count(&self, name: &str) -> Result<i32> {
        let metadata = self.client.inner().fetch_metadata(Some(name), LIMIT)?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(0);
        };
        if topic.error().is_some() {
            return Ok(0);
        }
        let led = topic.partitions().iter().filter(|partition| partition.leader() >= 0);
        Ok(i32::try_from(led.count())?)
    }

    /// First offset still there and next offset to be written, per partition.
    pub fn watermarks(&self, name: &str) -> Result<BTreeMap<i32, (i64, i64)>> {
        let mut marks = BTreeMap::new();
        for partition in 0..self.partition_count(name)? {
            let pair = self.client.inner().fetch_watermarks(name, partition, LIMIT)?;
            marks.insert(partition, pair);
        }
        Ok(marks)
    }

    /// The offsets that a group has committed for a topic; partitions without one are left out.
    pub fn committed(&self, group: &str, name: &str) -> Result<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).set("group.id", group).create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partition_count(name)? {
            list.add_partition(name, partition);
        }
        let committed = consumer.committed_offsets(list, LIMIT)?;
        let known = committed.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        Ok(known.collect())
    }

    /// How many members each consumer group has, and its state (`Stable`, `PreparingRebalance`, ...).
    pub fn group_members(&self, group: &str) -> Result<(usize, String)> {
        let groups = self.client.inner().fetch_group_list(Some(group), LIMIT)?;
        let found = groups.groups().iter().find(|found| found.name() == group);
        let found = found.with_context(|| format!("no group {group}"))?;
        Ok((found.members().len(), found.state().to_owned()))
    }

    fn wait_for_partitions(&self, name: &str, partitions: i32) -> Result<()> {
        wait_until(&format!("topic {name} with {partitions} partitions"), LIMIT, || Ok(self.partition_count(name)? == partitions))
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT))
}

fn all_done(results: Vec<std::result::Result<String, (String, RDKafkaErrorCode)>>) -> Result<()> {
    for result in results {
        if let Err((topic, code)) = result {
            bail!("topic {topic}: {code}");
        }
    }
    Ok(())
}

/// Waits for the answer to an admin call, which has time limits of its own.
fn block_on<T>(asked: impl Future<Output = KafkaResult<T>>) -> Result<T> {
    Ok(wait_for("the broker's answer", 2 * LIMIT, asked)??)
}
