//! Reads a whole topic back, partition by partition, up to what its end was when the reader got there.
//! Its own plain consumer, without groups, so that the judge shares no code with the judged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Headers;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::events::Event;

const SILENCE: Duration = Duration::from_secs(60);

/// Which events of transactions are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Only events of committed transactions, as a user of the bus sees it.
    Committed,
    /// Everything on the log, aborted events too.
    Uncommitted,
}

/// An event as the bus holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The partition.
    pub partition: i32,
    /// The offset within the partition.
    pub offset: i64,
    /// The event itself.
    pub event: Event,
}

/// Hands every event of `topic` to `each`; within a partition in order of offset.
pub fn read_each(bootstrap: &str, topic: &str, isolation: Isolation, mut each: impl FnMut(Received) -> Result<()>) -> Result<()> {
    let consumer = consumer(bootstrap, isolation)?;
    let mut unfinished = assign_all(&consumer, topic)?;
    let mut heard = Instant::now();
    while !unfinished.is_empty() {
        match consumer.poll(Duration::from_millis(500)) {
            None if heard.elapsed() > SILENCE => bail!("topic {topic}: the broker is silent"),
            None => continue,
            Some(Ok(message)) => {
                each(Received { partition: message.partition(), offset: message.offset(), event: copy(&message) })?;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unfinished.remove(&partition);
            }
            Some(Err(error)) => return Err(error).with_context(|| format!("topic {topic}")),
        }
        heard = Instant::now();
    }
    Ok(())
}

/// All events of a topic, per partition in order of offset. Partitions without events are there, empty.
pub fn read_all(bootstrap: &str, topic: &str, isolation: Isolation) -> Result<BTreeMap<i32, Vec<Received>>> {
    let mut all: BTreeMap<i32, Vec<Received>> = BTreeMap::new();
    read_each(bootstrap, topic, isolation, |received| {
        all.entry(received.partition).or_default().push(received);
        Ok(())
    })?;
    Ok(all)
}

fn consumer(bootstrap: &str, isolation: Isolation) -> Result<BaseConsumer> {
    let level = match isolation {
        Isolation::Committed => "read_committed",
        Isolation::Uncommitted => "read_uncommitted",
    };
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "tapedeck-testbed-reader")
        .set("isolation.level", level)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.message.max.bytes", "8388608")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.queue.backoff.ms", "1")
        .create()?;
    Ok(consumer)
}

fn assign_all(consumer: &BaseConsumer, topic: &str) -> Result<BTreeSet<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), SILENCE)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.with_context(|| format!("no topic {topic}"))?;
    if found.partitions().is_empty() {
        bail!("no topic {topic}");
    }
    let partitions: BTreeSet<i32> = found.partitions().iter().map(|one| one.id()).collect();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    Ok(partitions)
}

fn copy(message: &impl Message) -> Event {
    let headers = message.headers().map(|headers| {
        let copied = (0..headers.count()).map(|index| {
            let header = headers.get(index);
            (header.key.to_owned(), header.value.map(<[u8]>::to_vec))
        });
        copied.collect()
    });
    Event {
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
    }
}
